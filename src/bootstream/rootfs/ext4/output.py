"""The image file while it is made: sparse, written mostly upwards, in large pieces."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from bootstream.errors import BootstreamError, InvalidInput, NotFound, PermissionDenied, StorageFull

_LATER = 1 << 20
_ZEROS = bytes(1 << 16)
_PUNCH_HOLE_KEEP_SIZE = 3


class Output:
    """Blocks of one file. A failed build leaves no file; not thread safe.

    Raises:
        StorageFull: the disk is full, for every method.
        PermissionDenied, NotFound, InvalidInput: the file cannot be made or written.
    """

    def __init__(self, path: Path, block_size: int) -> None:
        self._path = path
        self._block_size = block_size
        self._pending = bytearray()
        self._pending_block = 0
        with self._errors():
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        regular = stat.S_ISREG(os.fstat(self._fd).st_mode)
        os.close(self._fd)
        if error is not None and regular:
            with suppress(OSError):
                self._path.unlink()

    def append(self, block: int, data: bytes) -> None:
        """Write ``data``, padded to whole blocks, soon; cheap where it goes on from the last."""
        pending = self._pending
        if self._pending_block + len(pending) // self._block_size != block or (
            len(pending) > _LATER
        ):
            self.flush()
            pending = self._pending
            self._pending_block = block
        pending += data
        over = len(data) % self._block_size
        if over:
            pending += _ZEROS[: self._block_size - over]

    def write(self, block: int, data: bytes | memoryview) -> None:
        """Write ``data`` at the start of a block, now."""
        self._write_at(block * self._block_size, data)

    def write_bytes(self, offset: int, data: bytes) -> None:
        """Write ``data`` at a byte of the image, now."""
        self._write_at(offset, data)

    def flush(self) -> None:
        """Write what ``append`` kept."""
        if self._pending:
            data, self._pending = self._pending, bytearray()
            self._write_at(self._pending_block * self._block_size, data)

    def clear(self, block: int, count: int) -> None:
        """Make blocks zero, as holes where the disk's file system has such."""
        offset, size = block * self._block_size, count * self._block_size
        end = os.fstat(self._fd).st_size
        size = min(size, end - offset)
        if size <= 0 or _punch(self._fd, offset, size):
            return
        while size > 0:
            part = _ZEROS[:size]
            self._write_at(offset, part)
            offset += len(part)
            size -= len(part)

    def resize(self, size: int) -> None:
        """Give the file its final size."""
        with self._errors():
            os.ftruncate(self._fd, size)

    def _write_at(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        with self._errors():
            written = os.pwrite(self._fd, data, offset)
            while written < len(data):
                written += os.pwrite(self._fd, memoryview(data)[written:], offset + written)

    def _errors(self) -> _Errors:
        return _Errors(self._path)


class _Errors:
    """Turns what the operating system says of one file into this package's errors."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, OSError):
            raise file_error(error, self._path, "make ext4") from error


def file_error(error: OSError, path: Path, operation: str) -> BootstreamError:
    """Return the error of the tree for an ``OSError`` about ``path``."""
    text = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull(
            text, operation=operation, object=str(path), remedy="free space, or use another folder"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return PermissionDenied(text, operation=operation, object=str(path))
    if error.errno == errno.ENOENT:
        return NotFound(text, operation=operation, object=str(path))
    return InvalidInput(text, operation=operation, object=str(path))


def _find_fallocate() -> Callable[[int, int, int, int], int] | None:
    try:
        function = ctypes.CDLL(None, use_errno=True).fallocate64
    except (OSError, AttributeError):
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    function.restype = ctypes.c_int
    found: Callable[[int, int, int, int], int] = function
    return found


_fallocate = _find_fallocate()


def _punch(fd: int, offset: int, size: int) -> bool:
    """Punch a hole; False where that is not possible (the ``os`` module has no call for it)."""
    return _fallocate is not None and _fallocate(fd, _PUNCH_HOLE_KEEP_SIZE, offset, size) == 0
