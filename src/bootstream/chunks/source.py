"""What an artifact is written from: a file, or anything that can be read in batches.

A source says of every part of the artifact whether it is a hole (known zeros), as in the
parent, or data that has to be read; so what nobody changed costs nothing.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import NamedTuple, Protocol

from bootstream.chunks.local import file_error
from bootstream.errors import InvalidInput

BATCH = 1 << 20
_HOLE_BATCH = 4 << 30
"""Bytes of a hole that are one step of progress."""


class Kind(Enum):
    """What is known of a batch before it is read."""

    DATA = "data"
    HOLE = "hole"
    SAME = "same"
    """As in the parent, chunk by chunk."""


class Batch(NamedTuple):
    """A few neighbouring whole chunks: ``size`` bytes from ``offset``; the last may be short.

    ``work`` is what progress hears of it, in bytes.
    """

    offset: int
    size: int
    kind: Kind
    work: int


class Source(Protocol):
    """The bytes of an artifact. ``read`` is called by several threads at once."""

    @property
    def size(self) -> int:
        """The artifact's size in bytes."""
        ...

    @property
    def work(self) -> int:
        """What the ``work`` of all batches adds up to."""
        ...

    def batches(self, chunk_size: int) -> Iterator[Batch]:
        """Yield the whole artifact in order, in batches of at most a few MiB of data."""
        ...

    def read(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer`` from ``offset``."""
        ...

    def check_unchanged(self) -> None:
        """Raise InvalidInput if somebody changed it since it was opened."""
        ...


class FileSource:
    """A regular file of a size that must not change; a context manager.

    Raises:
        InvalidInput: it is no regular file, or changed meanwhile.
        PermissionDenied, Unavailable: of the disk.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise file_error(error, "read", path) from error
        self._status = os.fstat(self.descriptor)
        self.size = self.work = self._status.st_size
        if not stat.S_ISREG(self._status.st_mode):
            os.close(self.descriptor)
            raise InvalidInput("it is not a regular file", operation="read", object=str(path))

    def __enter__(self) -> FileSource:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)

    def check_unchanged(self) -> None:
        """Raise InvalidInput if somebody wrote to the file since it was opened."""
        now = os.fstat(self.descriptor)
        if (now.st_size, now.st_mtime_ns) != (self._status.st_size, self._status.st_mtime_ns):
            raise self._changed()

    def _changed(self) -> InvalidInput:
        return InvalidInput(
            "the file changed while it was read",
            operation="read",
            object=str(self._path),
            remedy="stop what writes to it, or copy it first",
        )

    def read(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer`` from ``offset``."""
        while buffer:
            try:
                count = os.preadv(self.descriptor, [buffer], offset)
            except OSError as error:
                raise file_error(error, "read", self._path) from error
            if count == 0:
                raise self._changed()
            buffer = buffer[count:]
            offset += count

    def batches(self, chunk_size: int) -> Iterator[Batch]:
        """Yield the whole file in order; chunks that lie in a hole entirely are holes."""
        offset = 0
        while offset < self.size:
            data = self._seek(offset, os.SEEK_DATA, self.size)
            start = self.size if data >= self.size else data // chunk_size * chunk_size
            yield from split(offset, start, chunk_size, Kind.HOLE)
            # asked from the data on: its chunk may begin before it, in the hole
            hole = self._seek(data, os.SEEK_HOLE, self.size)
            end = min(-(-hole // chunk_size) * chunk_size, self.size)
            yield from split(start, end, chunk_size, Kind.DATA)
            offset = end

    def _seek(self, offset: int, whence: int, default: int) -> int:
        if offset >= self.size:
            return default
        try:
            return os.lseek(self.descriptor, offset, whence)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole follows
                return default
            if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):  # no holes on this file system
                return offset if whence == os.SEEK_DATA else default
            raise file_error(error, "read", self._path) from error


def split(
    start: int, end: int, chunk_size: int, kind: Kind, *, counts: bool = True
) -> Iterator[Batch]:
    """Cut ``[start, end)``, which begins with a chunk, into batches of one kind.

    With ``counts`` their bytes are work that progress hears of.
    """
    step = max(BATCH if kind is Kind.DATA else _HOLE_BATCH, chunk_size)
    for offset in range(start, end, step):
        size = min(step, end - offset)
        yield Batch(offset, size, kind, size if counts else 0)
