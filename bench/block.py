"""The cost of one warm read and one overlay write, without a wire, next to bare system calls."""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

from bootstream.block.cache import NodeCache
from bootstream.block.chunked import ChunkedDevice
from bootstream.block.file import FileDevice
from bootstream.block.overlay import Overlay
from bootstream.chunks.fetch import ChunkReader
from bootstream.chunks.reader import load_index
from bootstream.chunks.writer import write_artifact
from bootstream.storage.memory import MemoryStorageProvider

BUILD = "11111111-1111-4111-8111-111111111111"
BLOCK = 4096


def best(call: Callable[[int], object], offsets: Sequence[int], runs: int) -> float:
    """Call it with every offset, several times; return the least microseconds of a call."""
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        for offset in offsets:
            call(offset)
        times.append(time.perf_counter() - started)
    return min(times) / len(offsets) * 1e6


def measure(folder: Path, size: int, calls: int, runs: int) -> dict[str, float]:
    """Make an image of ``size`` bytes in ``folder`` and measure everything."""
    path = folder / "image"
    source = random.Random(1)
    with path.open("wb") as file:
        for _ in range(size >> 20):
            file.write(source.randbytes(1 << 20))
    storage = MemoryStorageProvider()
    write_artifact(path, build_id=BUILD, artifact="rootfs.ext4", storage=storage, level=1)
    index = load_index(storage, BUILD, "rootfs.ext4")
    results = {}
    with ExitStack() as stack:
        cache = stack.enter_context(closing(NodeCache(folder / "cache", 4 * size)))
        chunked = stack.enter_context(
            closing(ChunkedDevice(ChunkReader(storage, index), cache, store="memory"))
        )
        raw = stack.enter_context(closing(FileDevice(path)))
        for offset in range(0, size, 1 << 20):
            chunked.read_views(offset, 1 << 20)
            raw.read_views(offset, 1 << 20)
        overlay = stack.enter_context(
            closing(Overlay(chunked, folder / "overlay", base_digest=index.digest))
        )
        descriptor = os.open(path, os.O_RDONLY)
        stack.callback(os.close, descriptor)

        small = [source.randrange(size // BLOCK) * BLOCK for _ in range(calls)]
        large = [source.randrange(size // BLOCK - 256) * BLOCK for _ in range(calls // 50)]
        odd = [offset + 100 for offset in small if offset + BLOCK + 100 <= size]
        buffer = memoryview(bytearray(BLOCK))
        data = memoryview(source.randbytes(BLOCK))
        part = data[:700]

        def add(name: str, call: Callable[[int], object], offsets: Sequence[int] = small) -> None:
            results[name] = best(call, offsets, runs)

        add("os.pread 4 KiB (floor)", lambda at: os.pread(descriptor, BLOCK, at))
        add("file read_warm 4 KiB", lambda at: raw.read_warm(at, BLOCK))
        add("chunked read_warm 4 KiB", lambda at: chunked.read_warm(at, BLOCK))
        add("chunked read_views 4 KiB", lambda at: chunked.read_views(at, BLOCK))
        add("chunked read_into 4 KiB", lambda at: chunked.read_into(buffer, at))
        add("chunked read_warm 4 KiB, odd", lambda at: chunked.read_warm(at, BLOCK), odd)
        add("chunked read_warm 1 MiB", lambda at: chunked.read_warm(at, 1 << 20), large)
        add("file read_warm 1 MiB", lambda at: raw.read_warm(at, 1 << 20), large)
        add("overlay read_warm 4 KiB, unwritten", lambda at: overlay.read_warm(at, BLOCK))
        add("overlay read_warm 1 MiB, unwritten", lambda at: overlay.read_warm(at, 1 << 20), large)
        add("overlay write 700 B", lambda at: overlay.write(part, at))
        add("overlay write 4 KiB", lambda at: overlay.write(data, at))
        add("overlay write 4 KiB, odd", lambda at: overlay.write(data, at), odd)
        add("overlay read_warm 4 KiB, written", lambda at: overlay.read_warm(at, BLOCK))
        add("overlay read_warm 1 MiB, mixed", lambda at: overlay.read_warm(at, 1 << 20), large)

        fresh = stack.enter_context(
            closing(Overlay(chunked, None, base_digest=index.digest, folder=folder))
        )
        results["overlay write 4 KiB, first"] = best(
            lambda at: fresh.write(data, at), random.sample(range(0, size, BLOCK), calls // 10), 1
        )

        def write_and_flush(at: int) -> None:
            overlay.write(data, at)
            overlay.flush()

        overlay.flush()
        results["overlay write 4 KiB and flush"] = best(write_and_flush, small[:50], 1)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=256, help="of the image, in MiB")
    parser.add_argument("--calls", type=int, default=50_000, help="calls of each, per run")
    parser.add_argument("--runs", type=int, default=5, help="runs of each; the best counts")
    parser.add_argument("--folder", type=Path, help="where files lie; a temporary one")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        results = measure(Path(folder), options.size << 20, options.calls, options.runs)
    if options.json:
        print(json.dumps(results, indent=2))
        return
    floor = results["os.pread 4 KiB (floor)"]
    for name, microseconds in results.items():
        print(f"{name:<36}{microseconds:9.2f} µs  {microseconds / floor:7.2f} x")


if __name__ == "__main__":
    main()
