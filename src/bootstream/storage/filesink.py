"""Downloads into a file, at their place: pieces are written as they come, by whoever has them.

A ``Sink`` takes bytes in order, so that a download by several requests has to hold what came
early, and one thread has to write all of it. A file needs no order. ``place_of`` tells whether
a sink is such a file, or a sink around one, and gives a ``Place``; providers without a use for
it just call ``write``.

What a caller sees stays what it sees of a sink. After a failure the file ends where the bytes
that arrived in order end, and its position is there. A process that is killed leaves no file
of the full size with holes in it, as long as the last piece is written last.
"""

from __future__ import annotations

import fcntl
import io
import os
import stat
import threading
from typing import Protocol, TypeAlias, cast, runtime_checkable

from bootstream.storage.protocol import Sink

File: TypeAlias = io.FileIO | io.BufferedWriter | io.BufferedRandom
_FILES = (io.FileIO, io.BufferedWriter, io.BufferedRandom)


class Dropped(Exception):
    """The place was given up; whoever still has bytes for it can stop."""


class Place(Protocol):
    """Where a download goes, from the sink's position on."""

    def write_at(self, data: memoryview, offset: int, /) -> None:
        """Write all of ``data`` at ``offset`` bytes from the start. Thread safe.

        Raises:
            Dropped: ``drop`` was called.
            OSError: the file does not take it.
        """
        ...

    def advance(self, count: int, /) -> None:
        """Say that the next ``count`` bytes are written: the sink's position is after them."""
        ...

    def drop(self) -> None:
        """Remove what lies beyond the position; writes that run end first, none follows."""
        ...


@runtime_checkable
class Placeable(Protocol):
    """A sink around another one, which hands its place on."""

    def place(self) -> Place | None:
        """Return the place, or None where the bytes have to come in order."""
        ...


def place_of(sink: Sink) -> Place | None:
    """Return where to write, or None where ``sink`` is not a file to write at any place.

    It is one where it is a binary file of Python's own, regular, opened for writing and not
    for appending, and ends at its position: nothing in it is overwritten.
    """
    if isinstance(sink, Placeable):
        return sink.place()
    if type(sink) not in _FILES:  # a subclass may do more in its write() than write
        return None
    file = cast("File", sink)
    try:
        if not file.writable() or not file.seekable():
            return None
        file.flush()
        descriptor, start = file.fileno(), file.tell()
        status = os.fstat(descriptor)
        appends = bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_APPEND)
    except (OSError, ValueError):
        return None  # write() will tell
    if not stat.S_ISREG(status.st_mode) or appends or status.st_size > start:
        return None
    return FilePlace(file, descriptor, start)


class FilePlace:
    """A regular file that ends at ``start``; see ``Place``.

    Args:
        file: whose position is moved.
        descriptor: the file's.
        start: its position and its size, in bytes.
    """

    def __init__(self, file: File, descriptor: int, start: int) -> None:
        self._file = file
        self._descriptor = descriptor
        self._start = start
        self._done = 0
        self._writing = 0
        self._dropped = False
        self._quiet = threading.Condition()

    def write_at(self, data: memoryview, offset: int, /) -> None:
        """Write all of ``data``; see ``Place``."""
        with self._quiet:
            if self._dropped:
                raise Dropped
            self._writing += 1
        try:
            at = self._start + offset
            while len(data):
                count = os.pwrite(self._descriptor, data, at)
                data = data[count:]
                at += count
        finally:
            with self._quiet:
                self._writing -= 1
                self._quiet.notify_all()

    def advance(self, count: int, /) -> None:
        """Move the position; see ``Place``."""
        self._done += count
        self._file.seek(self._start + self._done)

    def drop(self) -> None:
        """Cut the file at the position; see ``Place``."""
        with self._quiet:
            self._dropped = True
            while self._writing:
                self._quiet.wait()
        os.ftruncate(self._descriptor, self._start + self._done)
