"""Reading local files that images lie in, by offset, from any number of threads."""

from __future__ import annotations

import errno
import os
import stat
import weakref

from bootstream.errors import (
    BootstreamError,
    Corrupt,
    ImageNotFound,
    InvalidInput,
    PermissionDenied,
    StorageFull,
    Unavailable,
)


class SharedFile:
    """An open regular file, read with ``pread``; closed when nobody refers to it any more."""

    def __init__(self, descriptor: int, name: str) -> None:
        self.name = name
        self._descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)
        self.size = os.fstat(descriptor).st_size

    @classmethod
    def open(cls, path: str, *, what: str) -> SharedFile:
        """Open ``path``; ``what`` says what it should be, in errors.

        Raises:
            ImageNotFound: there is no such file.
            InvalidInput: it is not a regular file.
            PermissionDenied: this user may not read it.
        """
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise read_error(error, path) from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise InvalidInput(f"it is not {what}", operation="open", object=path)
        return cls(descriptor, path)

    def read_at(self, offset: int, size: int) -> bytes:
        """Return up to ``size`` bytes from ``offset``; none past the end."""
        try:
            return os.pread(self._descriptor, size, offset)
        except OSError as error:
            raise read_error(error, self.name) from error


class FileSlice:
    """A ``RawReader`` of a range of a file; ends early where the file does."""

    def __init__(self, file: SharedFile, offset: int = 0, size: int | None = None) -> None:
        self._file: SharedFile | None = file
        self._offset = offset
        self._end = offset + (file.size - offset if size is None else size)

    def read(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes, none at the end."""
        if self._file is None:
            raise ValueError("read from a closed blob")
        data = self._file.read_at(self._offset, min(size, self._end - self._offset))
        self._offset += len(data)
        return data

    def close(self) -> None:
        """Let go of the file."""
        self._file = None


def read_small(file: SharedFile, offset: int, size: int, limit: int) -> bytes:
    """Return a small piece of a file; raises Corrupt where it is too large or ends early."""
    if size > limit:
        raise Corrupt(
            f"it has {size} bytes where at most {limit} are possible",
            operation="read",
            object=file.name,
        )
    data = file.read_at(offset, size)
    if len(data) != size:
        raise Corrupt("it ends early", operation="read", object=file.name)
    return data


def read_error(error: OSError, path: str) -> BootstreamError:
    """Map an operating system error met while reading an image's files."""
    what = error.strerror or str(error)
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return ImageNotFound(what, operation="open", object=path, remedy="check the path")
    if error.errno in (errno.EACCES, errno.EPERM):
        return PermissionDenied(what, operation="open", object=path)
    if error.errno in (errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.ENXIO):
        return InvalidInput(what, operation="open", object=path)
    return Unavailable(what, operation="read", object=path, transient=False)


def write_error(error: OSError, path: str) -> BootstreamError:
    """Map an operating system error met while writing below a cache folder."""
    what = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return StorageFull(
            what,
            operation="write blob",
            object=path,
            remedy="free some room there, or point BOOTSTREAM_CACHE_DIR at a larger disk",
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return PermissionDenied(
            what,
            operation="write blob",
            object=path,
            remedy="point BOOTSTREAM_CACHE_DIR at a folder that you may write",
        )
    return Unavailable(what, operation="write blob", object=path, transient=False)
