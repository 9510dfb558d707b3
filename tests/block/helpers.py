"""Devices over small images in a store in memory."""

from __future__ import annotations

import resource
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bootstream.block.fetcher import Deliver
from bootstream.chunks.fetch import ChunkReader
from bootstream.chunks.index import Index
from bootstream.chunks.reader import load_index
from bootstream.chunks.writer import write_artifact
from bootstream.errors import Unavailable
from bootstream.storage.memory import MemoryStorageProvider

BUILD = "11111111-1111-4111-8111-111111111111"
ARTIFACT = "rootfs.ext4"
CHUNK = 16 << 10


def store_image(
    contents: bytes,
    folder: Path,
    *,
    chunk_size: int = CHUNK,
    build_id: str = BUILD,
    parent: Index | None = None,
    storage: MemoryStorageProvider | None = None,
    form: str = "chunked",
) -> ChunkReader:
    """Store ``contents`` as an artifact, and return a reader of it."""
    storage = storage or MemoryStorageProvider()
    path = folder / f"{build_id}.img"
    path.write_bytes(contents)
    write_artifact(
        path,
        build_id=build_id,
        artifact=ARTIFACT,
        storage=storage,
        parent=parent,
        chunk_size=None if parent else chunk_size,
        form="raw" if form == "raw" else "chunked",
    )
    path.unlink()
    return ChunkReader(storage, load_index(storage, build_id, ARTIFACT))


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let this process write no file beyond ``size``: its disk is full there."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class WatchedReader:
    """A reader that counts, waits at a gate, and fails while it is told to."""

    def __init__(self, inner: ChunkReader) -> None:
        self.inner = inner
        self.index = inner.index
        self.calls: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Semaphore(0)
        self.failure: BaseException | None = None

    @property
    def received(self) -> int:
        """As the reader counts."""
        return self.inner.received

    def plan(self, chunks: Iterable[int]) -> list[list[int]]:
        """Group, as the reader does."""
        return self.inner.plan(chunks)

    def fetch(self, chunks: Sequence[int], deliver: Deliver) -> None:
        """Fetch, as the test wants it."""
        self.calls.append(list(chunks))
        self.begun.release()
        if not self.gate.wait(20):
            raise Unavailable("the gate never opened")
        if self.failure is not None:
            raise self.failure
        self.inner.fetch(chunks, deliver)

    @property
    def fetched(self) -> list[int]:
        """All chunks that were asked for, in order."""
        return [chunk for call in self.calls for chunk in call]
