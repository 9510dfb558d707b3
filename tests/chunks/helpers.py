"""What the tests of chunks share: small artifacts, a naive reading of the index, a flaky store."""

from __future__ import annotations

import struct
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from uuid import UUID

from bootstream.chunks.index import Index
from bootstream.chunks.reader import ChunkReader, load_index
from bootstream.chunks.writer import ArtifactSummary, write_artifact
from bootstream.storage.memory import MemoryStorageObject, MemoryStorageProvider
from bootstream.storage.protocol import Metadata, Source, StorageProvider, WritableBuffer

NAME = "rootfs.ext4"
CHUNK = 4096


def build_id(number: int) -> str:
    """A build id that tests can tell apart."""
    return str(UUID(int=number))


def chunk_of(seed: int, size: int = CHUNK) -> bytes:
    """A chunk that compresses somewhat and that only this seed makes."""
    return (sha256(b"%d" % seed).digest() * 3 + bytes(range(160)) * (size // 160))[:size]


def publish(
    storage: StorageProvider,
    folder: Path,
    content: bytes,
    *,
    number: int = 1,
    parent: Index | None = None,
    **options: object,
) -> tuple[ArtifactSummary, Index]:
    """Write ``content`` as an artifact and load its index again."""
    path = folder / "image"
    path.write_bytes(content)
    if parent is None:
        options.setdefault("chunk_size", CHUNK)
    summary = write_artifact(
        path,
        build_id=build_id(number),
        artifact=NAME,
        storage=storage,
        parent=parent,
        **options,  # type: ignore[arg-type]  # the tests name them right
    )
    index = load_index(
        storage,
        build_id(number),
        NAME,
        sha256=summary.index_sha256,
        size=summary.index_size,
    )
    return summary, index


def read_back(storage: StorageProvider, index: Index, **options: int) -> bytes:
    """The whole artifact, through ``lookup`` and ``fetch``."""
    content = bytearray(index.size)
    wanted = [chunk for chunk in range(index.chunk_count) if index.lookup(chunk) is not None]

    def deliver(chunk: int, data: bytes | memoryview) -> None:
        start = chunk * index.chunk_size
        content[start : start + len(data)] = data

    ChunkReader(storage, index, **options).fetch(wanted, deliver)
    return bytes(content)


def naive_entries(data: bytes) -> list[tuple[int, int, int, int, bytes] | None]:
    """Read an index as docs/formats/index.md has it, one number at a time.

    A tuple is (offset, ordinal, length, pack, sha256).
    """
    chunks, entries = struct.unpack_from("<II", data, 24)
    starts = [64]
    for width in (8 * entries, 4 * chunks, 4 * entries, 4 * entries, 2 * entries):
        starts.append(starts[-1] + width)
    found: list[tuple[int, int, int, int, bytes] | None] = []
    for chunk in range(chunks):
        (position,) = struct.unpack_from("<I", data, starts[1] + 4 * chunk)
        entry = position - 1
        if entry < 0:
            found.append(None)
            continue
        found.append(
            (
                struct.unpack_from("<Q", data, starts[0] + 8 * entry)[0],
                struct.unpack_from("<I", data, starts[2] + 4 * entry)[0],
                struct.unpack_from("<I", data, starts[3] + 4 * entry)[0],
                struct.unpack_from("<H", data, starts[4] + 2 * entry)[0],
                data[starts[5] + 32 * entry : starts[5] + 32 * entry + 32],
            )
        )
    return found


def seal(body: bytes | bytearray) -> bytes:
    """Give a changed index a checksum that fits again."""
    return bytes(body[:-32]) + sha256(body[:-32]).digest()


class WatchedStorage(MemoryStorageProvider):
    """A store in memory that counts reads and can be made to fail or to lie.

    ``on_read(path, buffer, offset, count) -> count`` runs after every ``read_at``;
    ``on_upload(path, source) -> source`` before every ``read_from``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[tuple[str, int, int]] = []
        self.on_read: Callable[[str, WritableBuffer, int, int], int] | None = None
        self.on_upload: Callable[[str, Source], Source] | None = None

    def open_object(self, path: str) -> MemoryStorageObject:
        """Return a handle that goes through the hooks."""
        return _Watched(self, super().open_object(path).path)


class _Watched(MemoryStorageObject):
    _provider: WatchedStorage

    def read_at(self, buffer: WritableBuffer, offset: int) -> int:
        count = super().read_at(buffer, offset)
        self._provider.reads.append((self.path, offset, len(buffer)))
        if self._provider.on_read is not None:
            count = self._provider.on_read(self.path, buffer, offset, count)
        return count

    def read_from(self, source: Source, *, metadata: Metadata | None = None) -> int:
        if self._provider.on_upload is not None:
            source = self._provider.on_upload(self.path, source)
        return super().read_from(source, metadata=metadata)
