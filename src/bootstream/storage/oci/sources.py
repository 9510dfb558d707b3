"""Where the bytes of an upload come from: cut into parts, in memory that is used again."""

from __future__ import annotations

import os
from os import PathLike
from typing import Protocol

from bootstream.errors import InvalidInput
from bootstream.storage.oserrors import source_error
from bootstream.storage.protocol import ReadableBuffer, Source

READ = 1 << 20


class Buffer:
    """Memory of one part, made when it is needed and used again."""

    __slots__ = ("memory", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.memory = bytearray()

    def room(self, end: int) -> memoryview:
        """Return the memory, at least ``end`` bytes of it; what was there is kept."""
        if len(self.memory) < end:
            larger = bytearray(min(max(self.size, end), max(end, 4 * len(self.memory))))
            larger[: len(self.memory)] = self.memory
            self.memory = larger
        return memoryview(self.memory)


class Reader(Protocol):
    """Gives an upload's bytes part by part."""

    def fill(self, buffer: Buffer) -> memoryview:
        """Return a full buffer, less at the end, nothing after it."""
        ...


class StreamReader:
    """Cuts a source into parts; keeps what it was given beyond one."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._rest = memoryview(b"")

    def fill(self, buffer: Buffer) -> memoryview:
        """Return a full buffer, or less at the source's end."""
        done = 0
        while done < buffer.size:
            if not len(self._rest):
                given: ReadableBuffer = self._source.read(min(READ, buffer.size - done))
                self._rest = memoryview(given).cast("B")
                if not len(self._rest):
                    break
            piece = self._rest[: buffer.size - done]
            self._rest = self._rest[len(piece) :]
            buffer.room(done + len(piece))[done : done + len(piece)] = piece
            done += len(piece)
        return memoryview(buffer.memory)[:done]


class FileReader:
    """Cuts a file of a known size into parts; it must be the same when it was read."""

    def __init__(self, descriptor: int, before: os.stat_result, path: str | PathLike[str]) -> None:
        self._descriptor = descriptor
        self._before = before
        self._path = path
        self._offset = 0

    def fill(self, buffer: Buffer) -> memoryview:
        """Return a full buffer, or less at the file's end."""
        size = min(buffer.size, self._before.st_size - self._offset)
        view = buffer.room(size)[:size]
        done = 0
        while done < size:
            try:
                count = os.preadv(self._descriptor, [view[done:]], self._offset)
            except OSError as error:
                raise source_error(error, self._path) from error
            if not count:
                raise self._changed()
            done += count
            self._offset += count
        return view

    def check(self) -> None:
        """Raise InvalidInput where the file is not what it was."""
        after = os.fstat(self._descriptor)
        if (after.st_size, after.st_mtime_ns) != (self._before.st_size, self._before.st_mtime_ns):
            raise self._changed()

    def _changed(self) -> InvalidInput:
        return InvalidInput(
            "it was changed while it was uploaded",
            operation="read file",
            object=os.fspath(self._path),
        )
