"""A whole artifact out of the store into a sparse file."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

from bootstream.chunks.batches import Step, steps
from bootstream.chunks.fetch import ChunkReader
from bootstream.chunks.index import Index
from bootstream.chunks.local import file_error
from bootstream.chunks.parallel import check_threads, in_order, io_threads
from bootstream.progress import NO_PROGRESS, Progress
from bootstream.storage.protocol import StorageProvider


def export_artifact(
    storage: StorageProvider,
    index: Index,
    artifact: str,
    target: Path,
    *,
    threads: int | None = None,
    progress: Progress = NO_PROGRESS,
) -> None:
    """Write an artifact to ``target``, a sparse file of exactly its size.

    What is in the file before is dropped; when this raises, the file is unfinished and the
    caller's to remove. Every chunk was checked, and the file is on the disk on return.

    Args:
        storage: where the packs are.
        index: of the artifact.
        artifact: its name, also the name of the phase of ``progress``.
        target: a file, new or not.
        threads: how many fetch at once; None chooses.
        progress: hears of bytes of the artifact.

    Raises:
        StorageFull, PermissionDenied, InvalidInput: of the target.
        Corrupt, NotFound, Unavailable: of the store.
    """
    reader = ChunkReader(storage, index)
    workers = check_threads(threads, io_threads())
    try:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise file_error(error, "write", target) from error

    def deliver(chunk: int, data: bytes | memoryview) -> None:
        write_at(descriptor, data, chunk * index.chunk_size, target)

    def work(step: Step) -> int:
        reader.fetch(step.chunks, deliver)
        return step.span

    try:
        progress.phase(artifact, index.size)
        try:
            os.ftruncate(descriptor, index.size)
        except OSError as error:
            raise file_error(error, "write", target) from error
        spans = in_order(work, steps(index, distinct=False), threads=workers, ahead=2 * workers)
        with closing(spans):
            for span in spans:
                progress.advance(artifact, span)
        try:
            os.fsync(descriptor)
        except OSError as error:
            raise file_error(error, "write", target) from error
    finally:
        os.close(descriptor)
    progress.done(artifact)


def write_at(descriptor: int, data: bytes | memoryview, offset: int, target: Path) -> None:
    """Write all of ``data`` at ``offset``; errors name ``target``."""
    view = memoryview(data)
    while view:
        try:
            count = os.pwrite(descriptor, view, offset)
        except OSError as error:
            raise file_error(error, "write", target) from error
        view = view[count:]
        offset += count
