"""Local files into other local files: sparse ones stay sparse, and the kernel does the work."""

from __future__ import annotations

import errno
import os
import stat

from bootstream.errors import InvalidInput, Unavailable
from bootstream.storage.oserrors import source_error
from bootstream.storage.protocol import ReadableBuffer

_PIECE = 1 << 20
_MOST = 1 << 30
_NO_COPY = frozenset(
    {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.ETXTBSY}
)


def write_all(descriptor: int, data: ReadableBuffer) -> int:
    """Write all of ``data`` at the descriptor's position; return its count of bytes."""
    view = memoryview(data).cast("B")
    done = 0
    while done < len(view):
        done += os.write(descriptor, view[done:])
    return done


def copy_file(path: str | os.PathLike[str], target: int) -> int:
    """Copy a regular file into the empty file ``target``; return its size.

    Raises:
        NotFound, PermissionDenied, InvalidInput: the file cannot be read, or is no file.
        Unavailable: it became shorter meanwhile.
        OSError: ``target`` cannot be written.
    """
    try:
        source = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise source_error(error, path) from error
    try:
        if not stat.S_ISREG(os.fstat(source).st_mode):
            raise InvalidInput(
                "it is not a regular file", operation="upload file", object=os.fspath(path)
            )
        return copy_descriptor(source, target, path)
    finally:
        os.close(source)


def copy_descriptor(source: int, target: int, name: str | os.PathLike[str]) -> int:
    """Copy an open regular file into the empty file ``target``; return its size.

    ``name`` is what errors call it; they are those of ``copy_file``.
    """
    size = os.fstat(source).st_size
    os.ftruncate(target, size)
    offset = 0
    while offset < size:
        start, end = _data(source, offset, size)
        _copy_range(source, target, start, end, name)
        offset = end
    return size


def _data(source: int, offset: int, size: int) -> tuple[int, int]:
    """Return the next run of data at or after ``offset``; both ends ``size`` where none is."""
    try:
        start = os.lseek(source, offset, os.SEEK_DATA)
        end = os.lseek(source, start, os.SEEK_HOLE)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return size, size
        return offset, size  # the file system tells nothing of holes
    return min(start, size), min(end, size)


def _copy_range(
    source: int, target: int, start: int, end: int, path: str | os.PathLike[str]
) -> None:
    by_kernel = True
    while start < end:
        count = 0
        if by_kernel:
            try:
                count = os.copy_file_range(source, target, min(end - start, _MOST), start, start)
            except OSError as error:
                if error.errno not in _NO_COPY:
                    raise
            by_kernel = bool(count)
        if not count:  # also where the kernel says 0: it does so for files in /proc and the like
            try:
                piece = os.pread(source, min(end - start, _PIECE), start)
            except OSError as error:
                raise source_error(error, path) from error
            if not piece:
                raise Unavailable(
                    "it became shorter while it was read",
                    operation="upload file",
                    object=os.fspath(path),
                    transient=False,
                )
            count = os.pwrite(target, piece, start)
        start += count
