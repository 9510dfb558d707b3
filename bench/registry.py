"""How fast images travel to, from and between registries, next to ``skopeo copy``.

    .venv/bin/python bench/registry.py [--runs N] [--json]

A Debian root file system and six layers that do not compress, about 330 MB, and a registry
on this machine. ``pull``: to an OCI layout. ``push``: from one. ``copy``: from one registry to
another. ``again``: a push of what is there, which for ours is mostly the start of Python.
Every run is a process of its own, into an empty place, ours and skopeo's in turn; the fastest
of all runs counts. Seconds, CPU-seconds of the client, and for ours the most memory it had.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from memory import peak_memory

from bootstream.images.client import RegistryClient
from bootstream.images.credentials import NoCredentials
from bootstream.images.reference import LayoutReference, RegistryReference, parse_reference
from bootstream.images.transfer import LayoutTarget, RegistryTarget, copy, open_source
from bootstream.testing.debian import debian_layout
from bootstream.testing.images import LayerBuilder, write_layout
from bootstream.testing.registry import DockerRegistry

LAYERS, LAYER_BYTES = 6, 45 << 20
SKOPEO = (
    *("skopeo", "copy", "--insecure-policy", "--quiet", "--all"),
    *("--src-tls-verify=false", "--dest-tls-verify=false"),
)


@dataclass(frozen=True, slots=True)
class Run:
    """One process: seconds, CPU-seconds, bytes at most (0: not known)."""

    seconds: float
    cpu: float
    memory: int


def run(command: list[str]) -> Run:
    """Run a program and measure it."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = status
    process.stdout.close()
    if status:
        raise RuntimeError(f"{command} failed")
    return Run(seconds, usage.ru_utime + usage.ru_stime, int(said or 0))


def transfer(source: str, target: str, workers: int) -> None:
    """What the measured process does: copy, and print how much memory that took."""
    parsed = parse_reference(target)
    read = open_source(
        source,
        scratch=lambda: Path(tempfile.gettempdir()),
        credentials=NoCredentials(),
        plain_http=True,
    )
    if isinstance(parsed, RegistryReference):
        client = RegistryClient(parsed, plain_http=True, ca_file=None, credentials=NoCredentials())
        copy(read, RegistryTarget(client, parsed.tag), workers=workers)
    else:
        assert isinstance(parsed, LayoutReference)
        copy(read, LayoutTarget(parsed.path, parsed.tag), workers=workers)
    sys.stdout.write(str(peak_memory()))


def make_image(folder: Path) -> Path:
    """Return an OCI layout with tag ``x``."""
    images = Path(os.environ.get("BOOTSTREAM_TEST_IMAGES", "/tmp/bootstream-test-images"))
    debian_layout(images)
    noise = [
        LayerBuilder().file("noise", random.Random(number).randbytes(LAYER_BYTES)).finish()
        for number in range(LAYERS)
    ]
    write_layout(folder, [(images / "base.tar").read_bytes(), *noise], tag="x")
    return folder


def compare(runs: int, workers: int) -> dict[str, dict[str, float]]:
    """Run everything; return the figures by what was done."""
    results: dict[str, dict[str, float]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        layout = make_image(folder / "layout")
        size = sum(file.stat().st_size for file in layout.glob("blobs/*/*"))
        one = stack.enter_context(DockerRegistry(folder / "one"))
        one.push(f"oci:{layout}:x", "from:1")
        number = 0

        def measure(what: str, ends: Callable[[str], tuple[str, str]]) -> None:
            nonlocal number
            best: dict[str, list[Run]] = {"ours": [], "skopeo": []}
            for _ in range(runs):
                for who, done in best.items():
                    shutil.rmtree(folder / "out", ignore_errors=True)
                    shutil.rmtree(folder / "two", ignore_errors=True)
                    number += 1
                    with DockerRegistry(folder / "two") as two:
                        source, target = ends(two.host)
                        if what == "again":
                            two.push(f"oci:{layout}:x", "to:1")
                        done.append(run(command(who, source, target, workers)))
            ours, theirs = (min(best[who], key=lambda r: r.seconds) for who in best)
            results[what] = {
                "seconds": ours.seconds,
                "seconds, skopeo": theirs.seconds,
                "ratio": ours.seconds / theirs.seconds,
                "cpu": min(r.cpu for r in best["ours"]),
                "cpu, skopeo": min(r.cpu for r in best["skopeo"]),
                "MB/s": size / 1e6 / ours.seconds,
                "memory, MB": max(r.memory for r in best["ours"]) / 1e6,
            }

        measure("pull", lambda _: (f"docker://{one.host}/from:1", f"oci:{folder}/out:x"))
        measure("push", lambda two: (f"oci:{layout}:x", f"docker://{two}/to:1"))
        measure("copy", lambda two: (f"docker://{one.host}/from:1", f"docker://{two}/to:1"))
        measure("again", lambda two: (f"oci:{layout}:x", f"docker://{two}/to:1"))
    return results


def command(who: str, source: str, target: str, workers: int) -> list[str]:
    """Return what copies from one end to the other."""
    if who == "skopeo":
        return [*SKOPEO, source, target]
    return [sys.executable, __file__, "--transfer", source, target, "--workers", str(workers)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--workers", type=int, default=6)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--transfer", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.transfer:
        source, target = arguments.transfer
        transfer(source, target, arguments.workers)
        return
    results = compare(arguments.runs, arguments.workers)
    if arguments.json:
        json.dump(results, sys.stdout, indent=2)
        return
    for what, figures in results.items():
        shown = "  ".join(f"{name} {value:.2f}" for name, value in figures.items())
        sys.stdout.write(f"{what:6} {shown}\n")


if __name__ == "__main__":
    main()
