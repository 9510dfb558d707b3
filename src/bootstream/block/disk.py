"""What a host's own disk offers beyond the ``os`` module, and its errors in the package's tree.

``os.posix_fallocate`` will not do: where the file system has no such call, the C
library writes to every block instead, which races with other writers.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator

from bootstream.errors import BootstreamError, PermissionDenied, StorageFull, Unavailable

_KEEP_SIZE = 0x01
_PUNCH_HOLE = 0x02
_ZERO_RANGE = 0x10
_UNSUPPORTED = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV})

_libc = ctypes.CDLL(None, use_errno=True)
_fallocate = getattr(_libc, "fallocate64", None) or _libc.fallocate
_fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_fallocate.restype = ctypes.c_int


def _call(descriptor: int, mode: int, offset: int, length: int) -> bool:
    while _fallocate(descriptor, mode, offset, length) != 0:
        number = ctypes.get_errno()
        if number in _UNSUPPORTED:
            return False
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))
    return True


def allocate(descriptor: int, offset: int, length: int) -> bool:
    """Reserve room for the range; its bytes stay. False where the file system cannot."""
    return _call(descriptor, 0, offset, length)


def punch_hole(descriptor: int, offset: int, length: int) -> bool:
    """Give the range's room back; it reads as zeros. False where that cannot be done."""
    return _call(descriptor, _PUNCH_HOLE | _KEEP_SIZE, offset, length)


def zero_range(descriptor: int, offset: int, length: int) -> bool:
    """Make the range read as zeros and keep its room. False where that cannot be done."""
    return _call(descriptor, _ZERO_RANGE | _KEEP_SIZE, offset, length)


def data_ranges(descriptor: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the parts of ``[start, end)`` that are not holes, as start and stop."""
    while start < end:
        try:
            start = os.lseek(descriptor, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                return
            if error.errno != errno.EINVAL:
                raise
            yield start, end  # a device, which has no holes
            return
        if start >= end:
            return
        stop = min(end, os.lseek(descriptor, start, os.SEEK_HOLE))
        yield start, stop
        start = stop


def write_all(descriptor: int, buffers: list[bytes | memoryview], offset: int) -> None:
    """Write all buffers end to end at ``offset``; raises OSError, then part may be written."""
    done = os.pwritev(descriptor, buffers, offset)
    total = sum(map(len, buffers))
    if done == total:
        return
    rest = memoryview(b"".join(buffers))
    while done < total:
        done += os.pwrite(descriptor, rest[done:], offset + done)


def disk_error(error: OSError, operation: str, name: str) -> BootstreamError:
    """Map an error of the host's own disk to the package's tree."""
    what = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return StorageFull(
            what, operation=operation, object=name, remedy="free some room on that disk"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return PermissionDenied(what, operation=operation, object=name)
    return Unavailable(what, operation=operation, object=name, transient=False)
