"""A device over a raw file, or over another block device of this host.

Reads go through ``pread``: a mapping would be faster for large reads, but would kill
the process if somebody cut the file short.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from bootstream.block.device import ZEROS, Extent, merge_extents
from bootstream.block.disk import data_ranges, disk_error, punch_hole, write_all, zero_range
from bootstream.errors import InvalidInput, NotFound, Unavailable


class FileDevice:
    """The bytes of ``path``; its size is that of the file when it is opened. Thread safe.

    Raises:
        NotFound: there is no such file.
        InvalidInput: it is neither a file nor a block device.
        PermissionDenied, Unavailable, StorageFull: of the disk, also from every method.
    """

    def __init__(self, path: Path, *, writable: bool = False) -> None:
        self.writable = writable
        self._name = str(path)
        flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            self._descriptor = os.open(path, flags)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotFound("there is no such file", operation="open", object=self._name) from error
        except IsADirectoryError as error:
            raise self._unfit() from error
        except OSError as error:
            if error.errno == errno.ENXIO:
                raise self._unfit() from error
            raise disk_error(error, "open", self._name) from error
        mode = os.fstat(self._descriptor).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            self.close()
            raise self._unfit()
        self.size = os.lseek(self._descriptor, 0, os.SEEK_END)

    def _unfit(self) -> InvalidInput:
        return InvalidInput(
            "it is neither a file nor a block device", operation="open", object=self._name
        )

    # Reading

    def read_views(self, offset: int, length: int) -> Sequence[memoryview]:
        """Return the range, freshly read."""
        try:
            data = os.pread(self._descriptor, length, offset)
        except OSError as error:
            raise disk_error(error, "read", self._name) from error
        if len(data) == length:
            return (memoryview(data),)
        buffer = memoryview(bytearray(length))
        self.read_into(buffer, offset)
        return (buffer,)

    def read_warm(self, offset: int, length: int) -> Sequence[memoryview]:
        """Return the range: a file of this host never waits for storage."""
        return self.read_views(offset, length)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer``."""
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(self._descriptor, [buffer[done:]], offset + done)
            except OSError as error:
                raise disk_error(error, "read", self._name) from error
            if not count:
                raise Unavailable(
                    "the file was cut short while it was in use",
                    operation="read",
                    object=self._name,
                    transient=False,
                )
            done += count

    def extents(self, offset: int, length: int) -> list[Extent]:
        """Describe the range; the file's holes are holes."""
        found = []
        end = offset + length
        try:
            for start, stop in data_ranges(self._descriptor, offset, end):
                found.append(Extent(start - offset, hole=True, zero=True))
                found.append(Extent(stop - start, hole=False, zero=False))
                offset = stop
        except OSError as error:
            raise disk_error(error, "read", self._name) from error
        found.append(Extent(end - offset, hole=True, zero=True))
        return merge_extents(found)

    def prefetch(self, offset: int, length: int) -> None:
        """Let the kernel read it ahead."""
        try:
            os.posix_fadvise(self._descriptor, offset, length, os.POSIX_FADV_WILLNEED)
        except OSError as error:
            raise disk_error(error, "read", self._name) from error

    # Writing

    def _check_writable(self) -> None:
        if not self.writable:
            raise InvalidInput("it was opened read-only", operation="write", object=self._name)

    def write(self, data: memoryview, offset: int) -> None:
        """Write ``data`` at ``offset``."""
        self._check_writable()
        try:
            if os.pwrite(self._descriptor, data, offset) != len(data):
                write_all(self._descriptor, [data], offset)
        except OSError as error:
            raise disk_error(error, "write", self._name) from error

    def zero(self, offset: int, length: int, *, may_trim: bool) -> None:
        """Make the range read as zeros; zeros are written where the file system cannot."""
        self._check_writable()
        try:
            if may_trim and punch_hole(self._descriptor, offset, length):
                return
            if zero_range(self._descriptor, offset, length):
                return
            piece = len(ZEROS)
            for at in range(0, length, piece):
                write_all(self._descriptor, [ZEROS[: min(piece, length - at)]], offset + at)
        except OSError as error:
            raise disk_error(error, "zero", self._name) from error

    def trim(self, offset: int, length: int) -> None:
        """Give the range's room back; it reads as zeros."""
        self.zero(offset, length, may_trim=True)

    def flush(self) -> None:
        """Make what was written durable."""
        if not self.writable:
            return
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            raise disk_error(error, "flush", self._name) from error

    def close(self) -> None:
        """Close the file; idempotent."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
