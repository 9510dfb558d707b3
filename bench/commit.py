"""Commits of an overlay: seconds, bytes stored, what a client's writes feel of it.

One image of 1 GiB (``--size``) as a build; three ways to write to it; each committed twice, the
second time after a little more. A client writes a block every half millisecond meanwhile.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from bootstream.block.cache import NodeCache
from bootstream.block.chunked import ChunkedDevice
from bootstream.block.overlay import Overlay
from bootstream.chunks.fetch import ChunkReader
from bootstream.chunks.fragmentation import measure
from bootstream.storage.local import LocalStorageProvider
from bootstream.templates.build import ROOTFS, BuildOptions, TemplateBuilder
from bootstream.templates.commit import commit
from bootstream.templates.commit_artifacts import load
from bootstream.templates.flatten import compact, flatten
from bootstream.templates.manifest import Manifest
from bootstream.templates.names import TemplateName

MIB = 1 << 20
Writes = Sequence[tuple[int, bytes]]


class Clock:
    """Seconds and CPU-seconds since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def __str__(self) -> str:
        wall = time.perf_counter() - self._wall
        return f"{wall:6.2f} s  {time.process_time() - self._cpu:6.2f} CPU-s"


def text(source: random.Random, size: int) -> bytes:
    """Bytes that compress about as a root file system does."""
    words = [source.randbytes(source.randrange(3, 12)) for _ in range(4000)]
    made = bytearray()
    while len(made) < size:
        made += source.choice(words)
    return bytes(made[:size])


@contextmanager
def client(overlay: Overlay, offset: int, worst: list[float]) -> Iterator[None]:
    """Write one block again and again while the block lasts; note the longest write."""
    stop = threading.Event()

    def write() -> None:
        block = memoryview(bytes(4096))
        while not stop.wait(0.0005):
            started = time.perf_counter()
            overlay.write(block, offset)
            worst[0] = max(worst[0], time.perf_counter() - started)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


class Bench:
    """A store with the image in it."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder = folder
        self.size = size
        self.source = random.Random(1)
        self.store = LocalStorageProvider(folder / "store")
        self.scratch = folder / "scratch"
        pool = [text(self.source, 1 << 16) for _ in range(200)]
        with (folder / "image").open("wb") as file:
            for number in range(size >> 16):
                file.write(number.to_bytes(8, "little") + pool[number % 200][8:])
        clock = Clock()
        builder = TemplateBuilder(self.store, scratch=self.scratch, node_id="bench")
        self.base = builder.from_files(
            {ROOTFS: folder / "image"},
            TemplateName.parse("bench"),
            options=BuildOptions(parent="none"),
        ).manifest
        self.index = load(self.store, self.base, ROOTFS)
        print(f"{'build without a parent':<44}{clock}  {self.base.stored_size / MIB:7.1f} MiB")

    def run(self, name: str, writes: Writes) -> Manifest:
        """Write, commit, write some of it again, commit."""
        cache = NodeCache(self.folder / "cache", limit=4 * self.size)
        with closing(cache):
            reader = ChunkReader(self.store, self.index)
            chunked = ChunkedDevice(reader, cache, store="bench")
            with closing(chunked):
                path = self.folder / name.replace(" ", "-")
                overlay = Overlay(chunked, path, base_digest=self.index.digest)
                with closing(overlay):
                    return self._commits(name, overlay, writes)

    def _commits(self, name: str, overlay: Overlay, writes: Writes) -> Manifest:
        for offset, data in writes:
            overlay.write(memoryview(data), offset)
        worst = [0.0]
        with client(overlay, self.size // 2, worst):
            first = self._commit(name, overlay)
        print(f"{'  the longest write meanwhile':<44}{worst[0]:6.3f} s")
        for offset, data in writes[:20]:
            overlay.write(memoryview(data[::-1]), offset)
        self._commit("  a tenth of it, or less, again", overlay)
        return first

    def _commit(self, name: str, overlay: Overlay) -> Manifest:
        clock = Clock()
        with overlay.freeze() as frozen:
            frozen_at = str(clock)
            done = commit(
                self.store, frozen, self.base, node_id="bench", scratch=self.scratch
            ).published
        stored = done.summaries[ROOTFS].stored_bytes / MIB
        print(
            f"{name:<44}{clock}  {stored:7.1f} MiB  (freeze {frozen_at.split('s', maxsplit=1)[0]}s)"
        )
        return done.manifest

    def figure(self, name: str, manifest: Manifest) -> None:
        """Print how fragmented a build is."""
        found = measure(load(self.store, manifest, ROOTFS))
        print(f"{name:<44}{found.figure:6.2f} ({found.requests} requests, {found.ideal} would do)")

    def tidy(self, manifest: Manifest) -> None:
        """Compact and flatten a worn build."""
        clock = Clock()
        done = compact(self.store, manifest, node_id="bench", scratch=self.scratch).published
        if done is not None:
            stored = done.summaries[ROOTFS].stored_bytes / MIB
            print(f"{'compact':<44}{clock}  {stored:7.1f} MiB")
            self.figure("  its fragmentation", done.manifest)
        clock = Clock()
        flat = flatten(self.store, manifest, node_id="bench", scratch=self.scratch)
        print(f"{'flatten':<44}{clock}  {flat.summaries[ROOTFS].stored_bytes / MIB:7.1f} MiB")
        self.figure("  its fragmentation", flat.manifest)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=1024, help="of the image, in MiB")
    parser.add_argument("--changed", type=int, default=200, help="MiB that are written")
    parser.add_argument("--folder", type=Path, help="where files lie; a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        bench = Bench(Path(folder), options.size * MIB)
        source = bench.source
        step = options.size // options.changed
        places = [number * step * MIB for number in range(options.changed)]
        texts = [(place, text(source, MIB)) for place in places]
        pieces = bench.run(f"{options.changed} MiB, pieces of 1 MiB", texts)
        bench.run("the same, not compressible", [(at, source.randbytes(MIB)) for at in places])
        blocks = source.sample(range(options.size << 8), options.changed * 50)
        scattered = [(block << 12, source.randbytes(4096)) for block in blocks]
        worn = bench.run(f"{len(blocks)} blocks of 4 KiB all over", scattered)
        bench.figure("fragmentation as built", bench.base)
        bench.figure("after the pieces", pieces)
        bench.figure("after the blocks", worn)
        bench.tidy(worn)


if __name__ == "__main__":
    main()
