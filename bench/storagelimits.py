"""What bench/storage.py measures of ours alone: the share of a link, and memory."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from link import Link
from memory import peak_memory
from storageclients import CLIENTS, MIB, THREADS

from bootstream.config import Settings
from bootstream.storage.protocol import StorageProvider
from bootstream.wiring import get_template_storage_provider

RATES = (100_000_000, 400_000_000)
LATENCY = 0.03
SHARE = 0.9
OPERATIONS = (1_000, 10_000)
PART = 4 * MIB
BAR = 150_000_000 + THREADS * PART


@dataclass(frozen=True, slots=True)
class Limits:
    """What a child is given: the file to send, the one to write, and the size of both."""

    source: str
    target: str
    size: int


def limit(case: str, given: Limits) -> None:
    """Do one case in a process of its own; print what it took."""
    client = CLIENTS["ours"]()
    client.put("limits/warm", b"warm")
    began = time.perf_counter()
    peaks = []
    if case == "upload":
        client.upload(Path(given.source), "limits/big")
    elif case == "download":
        client.download("limits/big", Path(given.target))
    else:
        done = 0
        storage = get_template_storage_provider(Settings.from_environment(os.environ))
        for upto in OPERATIONS:
            small_operations(storage, done, upto)
            done = upto
            peaks.append(peak_memory())
    seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "peaks": peaks or [peak_memory()]}))


def small_operations(storage: StorageProvider, start: int, end: int) -> None:
    """Write, look at, read and delete objects of 4 KiB, so many operations in all."""
    data = random.Random(1).randbytes(4096)

    def some(first: int) -> None:
        for number in range(first, end // 4, THREADS):
            target = storage.open_object(f"limits/{number % 64}/{number}")
            target.put(data)
            assert target.size() == len(data)
            assert target.read_at(bytearray(4096), 0) == len(data)
            target.delete()

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(some, range(start // 4, start // 4 + THREADS)))


def run(case: str, given: Limits, environment: dict[str, str]) -> dict[str, Any]:
    """Run one case in a process of its own."""
    script = str(Path(__file__).with_name("storage.py"))
    work = ["--work", json.dumps(astuple(given))]
    done = subprocess.run(
        [sys.executable, script, "--child", "limit", "--case", case, *work],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{case}: {done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def big_file(folder: Path, size: int) -> Limits:
    """Write the big file, where it is not there."""
    path = folder / "big"
    if not path.exists():
        piece = os.urandom(16 * MIB)
        with path.open("wb") as file:
            for start in range(0, size, len(piece)):
                file.write(piece[: size - start])
    return Limits(str(path), str(folder / "big.down"), size)


def printer(*, quiet: bool) -> Callable[[str], None]:
    """Return what prints a line, or nothing."""
    return (lambda _: None) if quiet else (lambda line: print(line, flush=True))


def far_away(
    environment: dict[str, str], folder: Path, size: int, *, quiet: bool
) -> list[dict[str, Any]]:
    """Download and upload over links; return and print which share of each was used."""
    given = big_file(folder, size)
    run("upload", given, environment)
    endpoint = "OCI_OBJECT_STORAGE_ENDPOINT"
    host = environment[endpoint].removeprefix("http://")
    say = printer(quiet=quiet)
    say(f"\nlink, {LATENCY * 1e3:.0f} ms\n{'case':<14}{'link MB/s':>10}{'MB/s':>9}{'share':>8}")
    documents = []
    for rate in RATES:
        with Link(host, rate=rate, latency=LATENCY) as link:
            through = environment | {endpoint: f"http://127.0.0.1:{link.port}"}
            for case in ("download", "upload"):
                Path(given.target).unlink(missing_ok=True)
                found = size / run(case, given, through)["seconds"]
                bar = f"   bar {SHARE:.0%}" if case == "download" else ""
                say(f"{case:<14}{rate / 1e6:>10.0f}{found / 1e6:>9.0f}{found / rate:>8.1%}{bar}")
                documents.append(
                    {
                        "server": "oci",
                        "case": case,
                        "link_mb_per_second": rate / 1e6,
                        "latency_ms": LATENCY * 1e3,
                        "mb_per_second": found / 1e6,
                        "share_of_link": found / rate,
                    }
                )
    return documents


def memory(
    environment: dict[str, str], folder: Path, size: int, *, quiet: bool
) -> list[dict[str, Any]]:
    """Return and print the most memory of a process for big files and small operations."""
    given = big_file(folder, size)
    say = printer(quiet=quiet)
    say(f"\nmemory, bar {BAR / 1e6:.0f} MB\n{'case':<24}{'peak MB':>9}")
    documents = []
    for case in ("upload", "download", "operations"):
        Path(given.target).unlink(missing_ok=True)
        peaks = run(case, given, environment)["peaks"]
        steps = [f"{count:,} operations" for count in OPERATIONS]
        for name, peak in zip(steps if len(peaks) > 1 else [case], peaks, strict=True):
            say(f"{name:<24}{peak / 1e6:>9.0f}")
            documents.append({"server": "oci", "case": name, "peak_mb": peak / 1e6})
    return documents
