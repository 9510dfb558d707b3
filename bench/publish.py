"""Publishing an image to a folder, beside ``zstd -3 -T2`` on the same file.

    .venv/bin/python bench/publish.py FOLDER [--image FILE] [--rounds N]

Both read the file from the page cache and write to FOLDER, in turns, each as a process of
its own from its start to its end; the best of N rounds counts. Ours also hashes every
chunk, looks for equal ones, writes an index, and makes pack and index durable (fsync),
which zstd does not. Without ``--image`` the image is the first GiB of a tar of /usr.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

from memory import peak_memory

from bootstream.chunks.writer import DEFAULT_CHUNK_SIZE, DEFAULT_LEVEL, write_artifact
from bootstream.storage.local import LocalStorageProvider

GIB = 1 << 30
BUILD = "11111111-1111-4111-8111-111111111111"


def make_image(path: Path) -> Path:
    """Make a GiB of real files, once."""
    if not path.exists() or path.stat().st_size != GIB:
        with (
            path.open("wb") as target,
            subprocess.Popen(
                ["tar", "-c", "-C", "/", "usr"],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            ) as tar,
        ):
            assert tar.stdout is not None
            left = GIB
            while left and (data := tar.stdout.read(min(left, 1 << 20))):
                target.write(data)
                left -= len(data)
            tar.terminate()
        if left:
            sys.exit("/usr has less than a GiB: name an --image")
    return path


def processor_time() -> float:
    """Seconds that child processes used so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def ours(store: Path, image: Path, arguments: argparse.Namespace) -> tuple[float, int]:
    """Run one publishing in a process of its own; return seconds and stored bytes."""
    shutil.rmtree(store, ignore_errors=True)
    store.mkdir(parents=True)
    command = [sys.executable, __file__, str(store), "--image", str(image), "--once"]
    command += ["--level", str(arguments.level), "--chunk-size", str(arguments.chunk_size)]
    command += ["--threads", str(arguments.threads)]
    start = time.perf_counter()
    subprocess.run(command, check=True)
    took = time.perf_counter() - start
    return took, sum(path.stat().st_size for path in store.rglob("*") if path.is_file())


def theirs(target: Path, image: Path, arguments: argparse.Namespace) -> tuple[float, int]:
    """Run zstd on the same file; return seconds and bytes."""
    target.unlink(missing_ok=True)
    options = [f"-{arguments.level}", f"-T{arguments.threads}"]
    start = time.perf_counter()
    subprocess.run(["zstd", "-q", *options, str(image), "-o", str(target)], check=True)
    return time.perf_counter() - start, target.stat().st_size


def once(arguments: argparse.Namespace) -> None:
    start = time.perf_counter()
    summary = write_artifact(
        arguments.image,
        build_id=BUILD,
        artifact="rootfs.ext4",
        storage=LocalStorageProvider(arguments.folder),
        level=arguments.level,
        chunk_size=arguments.chunk_size,
        threads=arguments.threads,
    )
    took = time.perf_counter() - start
    print(
        f"  ours: {took:.2f} s in write_artifact, peak memory {peak_memory() >> 20} MiB, chunks:"
        f" {summary.new_chunks} new, {summary.duplicate_chunks} equal, {summary.zero_chunks} zeros",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare publishing with zstd.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--image", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--level", type=int, default=DEFAULT_LEVEL)
    parser.add_argument("--chunk-size", type=int, default=DEFAULT_CHUNK_SIZE)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.once:
        once(arguments)
        return
    arguments.folder.mkdir(parents=True, exist_ok=True)
    image = arguments.image or make_image(arguments.folder / "image")
    with image.open("rb") as file:
        while file.read(1 << 24):
            pass
    best: dict[str, tuple[float, int]] = {}
    cpu: dict[str, float] = {}
    for number in range(arguments.rounds):
        for name, run in (("ours", ours), ("zstd", theirs)):
            before = processor_time()
            result = run(arguments.folder / name, image, arguments)
            spent = processor_time() - before
            best[name] = min(best.get(name, result), result)
            cpu[name] = min(cpu.get(name, spent), spent)
            print(f"round {number + 1}: {name} {result[0]:.2f} s, CPU {spent:.2f} s", flush=True)
    size = image.stat().st_size
    for name, (took, stored) in best.items():
        print(
            f"{name}: {size / took / 1e6:6.0f} MB/s, {cpu[name]:.2f} CPU seconds,"
            f" {stored} bytes, ratio {size / stored:.2f}"
        )
    print(f"ours reaches {100 * best['zstd'][0] / best['ours'][0]:.0f} % of zstd's speed")


if __name__ == "__main__":
    main()
