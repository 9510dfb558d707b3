"""From a file to a pack and an index in the store, in one pass.

The upload pulls: it reads from a source, and the source takes the next finished
batch of chunks, in order, decides for each chunk whether it is zeros, known or new,
and hands out the new frames. A few batches ahead, threads read, hash and compress.
What a thread compresses depends on timing (it may not know yet that the chunk before
is the same), what is stored does not: that is decided in order. A slow store slows
the threads down, an error of the store ends the reading, and an error of a thread
comes out of the source, so that the store abandons the upload.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Container, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import zstandard

from bootstream.chunks.build import IndexBuilder
from bootstream.chunks.index import MAX_CHUNK_SIZE, Index, Pack
from bootstream.chunks.names import index_path, validate_artifact, validate_build_id
from bootstream.chunks.parallel import check_threads, in_order, usable_cores
from bootstream.chunks.source import Batch, FileSource, Kind, Source
from bootstream.errors import InvalidInput, Unavailable
from bootstream.progress import NO_PROGRESS, Progress
from bootstream.storage.protocol import StorageProvider

DEFAULT_CHUNK_SIZE = 64 << 10
DEFAULT_LEVEL = 3
"""Both were measured: docs/decisions/chunk-size.md."""

_ZEROS = memoryview(bytes(MAX_CHUNK_SIZE))


@dataclass(frozen=True, slots=True)
class ArtifactSummary:
    """What became of an artifact. Sizes in bytes.

    ``stored_bytes`` is what this build itself keeps beside the index. The counts add up
    to the artifact's chunks: zeros; held by the parent or its ancestors; like another
    chunk of this artifact; stored anew.
    """

    form: Literal["chunked", "raw"]
    size: int
    chunk_size: int
    index_size: int
    index_sha256: str
    stored_bytes: int
    zero_chunks: int
    parent_chunks: int
    duplicate_chunks: int
    new_chunks: int


def write_artifact(
    path: Path,
    *,
    build_id: str,
    artifact: str,
    storage: StorageProvider,
    parent: Index | None = None,
    chunk_size: int | None = None,
    level: int | None = None,
    threads: int | None = None,
    progress: Progress = NO_PROGRESS,
    form: Literal["chunked", "raw"] = "chunked",
) -> ArtifactSummary:
    """Cut the file ``path`` into chunks, upload what the store lacks, then the index.

    Memory does not depend on the file's size, but for the index itself (some 60 bytes a
    stored chunk) and the parent's. Equal input, parent and level make equal objects.

    Args:
        path: a regular file that nobody changes meanwhile; holes in it cost no reading.
        build_id: whose artifact it is.
        artifact: its name, also the name of the phase of ``progress``.
        storage: where it goes.
        parent: the index of the artifact in the parent build; its chunk size is inherited.
        chunk_size: a power of two from 4 KiB to 16 MiB; None takes the parent's, or 64 KiB.
        level: of zstd, 1 to 22; None takes 3.
        threads: how many compress; None takes all cores.
        progress: hears of bytes of the file. What its ``advance`` raises passes out.
        form: "raw" uploads the file as it is, with an index of it.

    Raises:
        InvalidInput: a bad argument, or the file is no regular file or changed meanwhile.
        StorageFull, Unavailable, PermissionDenied: of the file or the store. Then nothing
            is left, but for the pack where only the upload of the index failed: it is
            collected like all of a build that was not finished.
    """
    own = Pack(validate_build_id(build_id), validate_artifact(artifact), form == "raw")
    if parent is not None and chunk_size not in (None, parent.chunk_size):
        raise InvalidInput(
            f"chunks of {chunk_size} bytes cannot be shared with a parent of {parent.chunk_size}",
            operation="write artifact",
            object=artifact,
            remedy="leave the chunk size to the parent, or build without a parent",
        )
    level = _check_level(level, artifact)
    if chunk_size is None:
        chunk_size = DEFAULT_CHUNK_SIZE if parent is None else parent.chunk_size
    with FileSource(path) as source:
        if not own.raw:
            builder = IndexBuilder(own, source.size, chunk_size, parent)
            return _write(source, builder, storage, level, threads, progress)
        builder = IndexBuilder(own, source.size, chunk_size, None)
        return _write(source, builder, storage, level, threads, progress, raw=path)


def write_source(
    source: Source,
    *,
    build_id: str,
    artifact: str,
    storage: StorageProvider,
    parent: Index | None = None,
    chunk_size: int | None = None,
    rewrite: Container[int] = (),
    level: int | None = None,
    threads: int | None = None,
    progress: Progress = NO_PROGRESS,
) -> ArtifactSummary:
    """Write an artifact in the chunked form from anything that can be read in batches.

    Batches that are as in the parent are not read, and cost an entry of the index each
    chunk. All else is as ``write_artifact`` has it.

    Args:
        source: the bytes; closed by the caller.
        build_id: whose artifact it is.
        artifact: its name, also the name of the phase of ``progress``.
        storage: where it goes.
        parent: what ``Kind.SAME`` refers to; its chunk size is inherited.
        chunk_size: where there is no parent; None takes 64 KiB.
        rewrite: numbers of entries of the parent that are not referred to.
        level: of zstd, 1 to 22; None takes 3.
        threads: how many read and compress; None takes all cores.
        progress: hears of the source's work.

    Raises:
        InvalidInput: a bad argument, or a source that changed.
        StorageFull, Unavailable, PermissionDenied: of the store; and what the source raises.
    """
    own = Pack(validate_build_id(build_id), validate_artifact(artifact), raw=False)
    if parent is not None:
        chunk_size = parent.chunk_size
    builder = IndexBuilder(
        own, source.size, chunk_size or DEFAULT_CHUNK_SIZE, parent, rewrite=rewrite
    )
    return _write(source, builder, storage, _check_level(level, artifact), threads, progress)


def _check_level(level: int | None, artifact: str) -> int:
    if level is None:
        return DEFAULT_LEVEL
    if not 1 <= level <= zstandard.MAX_COMPRESSION_LEVEL:
        raise InvalidInput(
            f"{level} is not a compression level",
            operation="write artifact",
            object=artifact,
            remedy=f"choose 1 to {zstandard.MAX_COMPRESSION_LEVEL}",
        )
    return level


def _write(
    source: Source,
    builder: IndexBuilder,
    storage: StorageProvider,
    level: int,
    threads: int | None,
    progress: Progress,
    *,
    raw: Path | None = None,
) -> ArtifactSummary:
    """Write pack, or the raw object that is the file ``raw``, and the index."""
    own, chunk_size = builder.own, builder.chunk_size
    cutter = _Cutter(source, chunk_size, level, builder)
    progress.phase(own.artifact, source.work)
    workers = check_threads(threads, usable_cores())
    batches = in_order(
        cutter.measure if own.raw else cutter.compress,
        source.batches(chunk_size),
        threads=workers,
        ahead=workers + 2,
    )
    with closing(batches):
        frames = _Frames(
            batches,
            builder,
            advance=lambda count: progress.advance(own.artifact, count),
            at_end=source.check_unchanged,
        )
        if raw is not None:
            frames.drain()
            storage.open_object(own.path).write_from_file_system(raw)
            source.check_unchanged()
        elif frames.prime():
            uploaded = storage.open_object(own.path).read_from(frames)
            _check_uploaded(own, uploaded, builder.stored_bytes)
    index = builder.finish()
    uploaded = storage.open_object(index_path(own.build_id, own.artifact)).read_from(index)
    _check_uploaded(own, uploaded, index.size)
    progress.done(own.artifact)
    return ArtifactSummary(
        form="raw" if own.raw else "chunked",
        size=source.size,
        chunk_size=chunk_size,
        index_size=index.size,
        index_sha256=index.sha256,
        stored_bytes=source.size if own.raw else builder.stored_bytes,
        zero_chunks=builder.zero_chunks,
        parent_chunks=builder.parent_chunks,
        duplicate_chunks=builder.duplicate_chunks,
        new_chunks=builder.new_chunks,
    )


def _check_uploaded(own: Pack, uploaded: int, expected: int) -> None:
    if uploaded != expected:
        raise Unavailable(
            f"the storage took {uploaded} of {expected} bytes",
            operation="write artifact",
            object=f"{own.build_id}/{own.artifact}",
        )


class _Done(NamedTuple):
    """A batch and what it holds: None for zeros, else digest, bytes and perhaps the frame."""

    batch: Batch
    chunks: list[tuple[bytes, int, bytes | None] | None]


class _Cutter(threading.local):
    """Reads and hashes batches, and compresses them; every thread has buffer and context."""

    def __init__(self, source: Source, chunk_size: int, level: int, builder: IndexBuilder) -> None:
        self._source = source
        self._chunk_size = chunk_size
        self._builder = builder
        self._compress = zstandard.ZstdCompressor(level=level, write_checksum=False).compress
        self._buffer = bytearray()

    def compress(self, batch: Batch) -> _Done:
        """Return digests, and frames of what is not known to be stored already."""
        return _Done(batch, self._cut(batch, frames=True))

    def measure(self, batch: Batch) -> _Done:
        """Return digests alone."""
        return _Done(batch, self._cut(batch, frames=False))

    def _cut(self, batch: Batch, *, frames: bool) -> list[tuple[bytes, int, bytes | None] | None]:
        if batch.kind is not Kind.DATA:
            return []
        if len(self._buffer) < batch.size:
            self._buffer = bytearray(batch.size)
        view = memoryview(self._buffer)[: batch.size]
        self._source.read(view, batch.offset)
        chunks: list[tuple[bytes, int, bytes | None] | None] = []
        seen: set[bytes] = set()
        for start in range(0, batch.size, self._chunk_size):
            chunk = view[start : start + self._chunk_size]
            # startswith compares in place and ends at the first difference
            if self._buffer.startswith(_ZEROS[: len(chunk)], start):
                chunks.append(None)
                continue
            digest = hashlib.sha256(chunk).digest()
            wanted = frames and digest not in seen and not self._builder.known(digest)
            chunks.append((digest, len(chunk), self._compress(chunk) if wanted else None))
            seen.add(digest)
        return chunks


class _Frames:
    """The pack's bytes, as the source of its upload; adds to the index on the way."""

    def __init__(
        self,
        batches: Iterator[_Done],
        builder: IndexBuilder,
        *,
        advance: Callable[[int], None],
        at_end: Callable[[], None],
    ) -> None:
        self._batches = batches
        self._builder = builder
        self._advance = advance
        self._at_end = at_end
        self._pending = memoryview(b"")
        self._chunk_size = builder.chunk_size
        self._lock = threading.Lock()
        self._error: BaseException | None = None

    def prime(self) -> bool:
        """Work up to the first frame; False if there is none at all."""
        while not self._pending:
            done = next(self._batches, None)
            if done is None:
                self._at_end()
                return False
            self._pending = memoryview(b"".join(self._take(done)))
        return True

    def read(self, size: int, /) -> memoryview:
        """Return the next bytes of the pack, none at its end. An error is for good."""
        with self._lock:
            if self._error is not None:
                raise self._error
            try:
                self.prime()
            except BaseException as error:
                self._error = error  # or else the next read would look like the end
                raise
            piece, self._pending = self._pending[:size], self._pending[size:]
            return piece

    def drain(self) -> None:
        """Put all chunks into the index as they are, for the raw form."""
        for batch, chunks in self._batches:
            if batch.kind is Kind.HOLE:
                self._builder.add_zeros(-(-batch.size // self._chunk_size))
            for chunk in chunks:
                if chunk is None:
                    self._builder.add_zeros(1)
                else:
                    self._builder.place(chunk[0], chunk[1])
            self._advance(batch.work)
        self._at_end()

    def _take(self, done: _Done) -> list[bytes]:
        """Decide, in order, what becomes of each chunk; return the frames that are stored."""
        builder = self._builder
        frames: list[bytes] = []
        if done.batch.kind is not Kind.DATA:
            count = -(-done.batch.size // self._chunk_size)
            if done.batch.kind is Kind.HOLE:
                builder.add_zeros(count)
            else:
                builder.inherit(done.batch.offset // self._chunk_size, count)
        for chunk in done.chunks:
            if chunk is None:
                builder.add_zeros(1)
                continue
            digest, _, frame = chunk
            if not builder.refer(digest):
                assert frame is not None  # nobody knew it, so it was compressed
                builder.store(len(frame), digest)
                frames.append(frame)
        self._advance(done.batch.work)
        return frames
