"""Object storage: ours next to the SDKs, rclone and s5cmd, against the same server on this machine.

    .venv/bin/python bench/storage.py [--large 1G --count 1000] [--runs N] [--big 1G]
        [--only oci|s3|link|memory] [--json]

OCI (``bootstream local-oci``): ours, Oracle's SDK (UploadManager; get_object by ranges), rclone's
oracleobjectstorage. S3 (nanio): ours, obstore alone, boto3, s5cmd. One large file and many objects
of 1 MiB up and down, and reads of 4, 64 and 512 KiB at random places, all by 16 threads.

Each client is a process of its own, so that its CPU time is its own; starting and signing in
are not counted, except rclone's and s5cmd's, which are commands. Medians of all runs; clients take
turns within a run. MB/s of contents, and CPU seconds of the client for a GB.

``link``: one big file from the local OCI over a link of 100 and 400 MB/s that all connections
share, 30 ms away (bench/link.py), and which share of the link was used. ``memory``: the most
memory that our process had, big files and 10,000 small operations, next to the bar.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storageclients import CLIENTS, MIB, RANGE, THREADS, Client
from storagelimits import Limits, far_away, limit, memory

from bootstream.config import parse_size
from bootstream.testing.localoci import LocalOciServer
from bootstream.testing.servers.s3 import REGION, Nanio

SIZES = {"read 4 KiB": 4096, "read 64 KiB": 65536, "read 512 KiB": 524288}
CASES = ("upload", "download", "put 1 MiB", "get 1 MiB", *SIZES)


@dataclass(frozen=True, slots=True)
class Work:
    """What every client is given: a large file, and sizes."""

    large: str
    size: int
    count: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Result:
    """What one client needed for one case."""

    seconds: float
    cpu: float
    size: int

    @property
    def rate(self) -> float:
        """MB a second."""
        return self.size / 1e6 / self.seconds

    @property
    def cost(self) -> float:
        """CPU seconds for a GB."""
        return self.cpu / (self.size / 1e9)


# -- in the process of a client --------------------------------------------------------------


def child(name: str, case: str, work: Work) -> None:
    """Do one case and print what it took."""
    client = CLIENTS[name]()
    prefix = name.replace(" ", "-")
    small = random.Random(1).randbytes(MIB)
    warm(client, f"{prefix}/warm", small)
    downloaded(work, prefix).unlink(missing_ok=True)  # writing over dirty pages would wait
    began, cpu = time.perf_counter(), own_cpu()
    size = perform(client, case, prefix, work, small)
    seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "cpu": own_cpu() - cpu, "size": size}))


def warm(client: Client, name: str, data: bytes) -> None:
    """Sign in and open connections, outside the measurement."""
    client.put(name, data)
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda _: client.read(name, 0, 4096), range(2 * THREADS)))


def perform(client: Client, case: str, prefix: str, work: Work, small: bytes) -> int:
    """Do one case; return the bytes of contents that moved."""
    large = Path(work.large)
    names = [f"{prefix}/small/{number}" for number in range(work.count)]
    if case == "upload":
        client.upload(large, f"{prefix}/large")
        return work.size
    if case == "download":
        client.download(f"{prefix}/large", downloaded(work, prefix))
        return work.size
    with ThreadPoolExecutor(THREADS) as pool:
        if case == "put 1 MiB":
            list(pool.map(lambda name: client.put(name, small), names))
            return work.count * MIB
        if case == "get 1 MiB":
            list(pool.map(lambda name: client.get(name, MIB), names))
            return work.count * MIB
        size = SIZES[case]
        deadline = time.perf_counter() + work.seconds

        def read(seed: int) -> int:
            places = random.Random(seed)
            count = 0
            while time.perf_counter() < deadline:
                client.read(f"{prefix}/large", places.randrange(work.size - size), size)
                count += 1
            return count

        return size * sum(pool.map(read, range(THREADS)))


def downloaded(work: Work, prefix: str) -> Path:
    """Return where a client's download goes."""
    return Path(work.large).with_name(f"{prefix}.down")


def own_cpu() -> float:
    """CPU seconds of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


# -- in the process that compares ------------------------------------------------------------


def measure(name: str, case: str, work: Work, environment: dict[str, str]) -> Result:
    """Run one client in a process of its own."""
    command = [sys.executable, __file__, "--child", name, "--case", case]
    arguments = ["--work", json.dumps([work.large, work.size, work.count, work.seconds])]
    done = subprocess.run(
        [*command, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{name}, {case}: {done.stderr[-3000:]}")
    return Result(**json.loads(done.stdout.splitlines()[-1]))


def rclone(case: str, work: Work, environment: dict[str, str], folder: Path) -> list[str] | None:
    """Return the command that does the case; None where it has none."""
    bucket = f"localoci:{environment['TEMPLATE_BUCKET_NAME']}"
    large, small, back = f"{bucket}/rclone/large", f"{bucket}/rclone/small", folder / "rclone.down"
    concurrency = ["--oos-upload-concurrency", str(THREADS), "--oos-chunk-size", "8M"]
    many = ["--transfers", str(THREADS), "--checkers", str(THREADS), "--no-traverse"]
    commands = {
        "upload": ["copyto", work.large, large, "--oos-upload-cutoff", "8M", *concurrency],
        "download": ["copyto", large, str(back), "--multi-thread-streams", str(THREADS)],
        "put 1 MiB": ["copy", str(folder / "small"), small, *many],
        "get 1 MiB": ["copy", small, str(folder / "rclone.small"), *many],
    }
    return ["--config", "", "--ignore-times", *commands[case]] if case in commands else None


def s5cmd(case: str, work: Work, environment: dict[str, str], folder: Path) -> list[str] | None:
    """Return the command that does the case; None where it has none."""
    bucket = f"s3://{environment['TEMPLATE_BUCKET_NAME']}/s5cmd"
    parts = ["cp", "--concurrency", str(THREADS), "--part-size", str(RANGE // MIB)]
    commands = {
        "upload": [*parts, work.large, f"{bucket}/large"],
        "download": [*parts, f"{bucket}/large", str(folder / "s5cmd.down")],
        "put 1 MiB": ["cp", f"{folder / 'small'}/", f"{bucket}/small/"],
        # nanio refuses ranges that are longer than the object, and s5cmd asks for a part.
        "get 1 MiB": ["cp", "--part-size", "1", f"{bucket}/small/*", f"{folder / 's5cmd.small'}/"],
    }
    where = ["--endpoint-url", environment.get("AWS_ENDPOINT_URL", ""), "--log", "error"]
    return [*where, "--numworkers", str(THREADS), *commands[case]] if case in commands else None


PROGRAMS = {"rclone": rclone, "s5cmd": s5cmd}


def run_program(
    name: str, case: str, work: Work, environment: dict[str, str], folder: Path
) -> Result | None:
    """Run the command that does the case; None where it has none."""
    arguments = PROGRAMS[name](case, work, environment, folder)
    if arguments is None:
        return None
    (folder / f"{name}.down").unlink(missing_ok=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    done = subprocess.run(
        [str(Path(sys.executable).with_name(name)), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{name}, {case}: {done.stderr[-3000:]}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Result(seconds, cpu, work.size if case.endswith("load") else work.count * MIB)


def compare(
    clients: tuple[str, ...], work: Work, environment: dict[str, str], folder: Path, runs: int
) -> Iterator[tuple[str, str, list[Result]]]:
    """Yield case, client and its results; clients take turns within each run."""
    for case in CASES:
        results: dict[str, list[Result]] = {name: [] for name in clients}
        for _ in range(runs):
            for name in clients:
                found = (
                    run_program(name, case, work, environment, folder)
                    if name in PROGRAMS
                    else measure(name, case, work, environment)
                )
                if found is not None:
                    results[name].append(found)
        yield from ((case, name, results[name]) for name in clients if results[name])


def report(
    title: str, rows: Iterator[tuple[str, str, list[Result]]], *, quiet: bool
) -> list[dict[str, Any]]:
    """Print medians and the ratios of ours to the others."""
    documents = []
    ours: Result | None = None
    if not quiet:
        print(f"\n{title}\n{'case':<14}{'client':<10}{'MB/s':>9}{'CPU s/GB':>10}   ours is")
    for case, name, results in rows:
        median = sorted(results, key=lambda one: one.rate)[len(results) // 2]
        cost = statistics.median(one.cost for one in results)
        ratio = None
        if name == "ours":
            ours = median
        elif ours is not None:
            ratio = ours.rate / median.rate
        documents.append(
            {
                "server": title,
                "case": case,
                "client": name,
                "mb_per_second": median.rate,
                "cpu_seconds_per_gb": cost,
                "ours_is_times_as_fast": ratio,
            }
        )
        if not quiet:
            times = "" if ratio is None else f"   {ratio:.2f} times as fast"
            print(f"{case:<14}{name:<10}{median.rate:>9.0f}{cost:>10.2f}{times}", flush=True)
    return documents


def oci(stack: ExitStack, folder: Path) -> dict[str, str]:
    """Start the local OCI; return the variables of its clients."""
    server = stack.enter_context(LocalOciServer(folder / "oci"))
    return os.environ | dict(server.variables)


def s3(stack: ExitStack, folder: Path) -> dict[str, str]:
    """Start nanio; return the variables of its clients."""
    (folder / "s3").mkdir()
    server = stack.enter_context(Nanio(folder / "s3"))
    server.create_bucket("bench")
    return os.environ | {
        "STORAGE_PROVIDER": "AWSBucket",
        "TEMPLATE_BUCKET_NAME": "bench",
        "AWS_ENDPOINT_URL": server.url,
        "AWS_ACCESS_KEY_ID": server.keys.access_key,
        "AWS_SECRET_ACCESS_KEY": server.keys.secret_key,
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
    }


def prepare(folder: Path, size: int, count: int) -> Path:
    """Write the large file, and small ones for rclone; nothing in them is worth compressing."""
    path = folder / "large"
    with path.open("wb") as file:
        for start in range(0, size, MIB):
            file.write(os.urandom(min(MIB, size - start)))
    (folder / "small").mkdir()
    data = os.urandom(MIB)
    for number in range(count):
        (folder / "small" / str(number)).write_bytes(data)
    return path


def main() -> None:
    """Compare, or be one of the compared."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--large", default="128M", help="size of the large file")
    parser.add_argument("--count", type=int, default=128, help="objects of 1 MiB")
    parser.add_argument("--seconds", type=float, default=0.6, help="of each reading case")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--big", default="1G", help="size of the file for link and memory")
    parser.add_argument("--only", choices=["oci", "s3", "link", "memory"])
    parser.add_argument("--folder", type=Path, help="where files and servers live, for a while")
    parser.add_argument("--json", action="store_true")
    for hidden in ("--child", "--case", "--work"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child == "limit":
        limit(arguments.case, Limits(*json.loads(arguments.work)))
        return
    if arguments.child:
        child(arguments.child, arguments.case, Work(*json.loads(arguments.work)))
        return
    size = max(parse_size(arguments.large), MIB)
    documents: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        large = prepare(folder, size, arguments.count)
        work = Work(str(large), size, arguments.count, arguments.seconds)
        for title, start, clients in (
            ("oci", oci, ("ours", "OCI SDK", "rclone")),
            ("s3", s3, ("ours", "obstore", "boto3", "s5cmd")),
        ):
            if arguments.only in (None, title):
                with ExitStack() as stack:
                    environment = start(stack, folder)
                    rows = compare(clients, work, environment, folder, arguments.runs)
                    documents += report(title, rows, quiet=arguments.json)
        if arguments.only in (None, "link", "memory"):
            with ExitStack() as stack:
                environment = oci(stack, folder)
                size = max(parse_size(arguments.big), 16 * MIB)
                if arguments.only != "memory":
                    documents += far_away(environment, folder, size, quiet=arguments.json)
                if arguments.only != "link":
                    documents += memory(environment, folder, size, quiet=arguments.json)
    if arguments.json:
        print(json.dumps(documents, indent=2))


if __name__ == "__main__":
    main()
