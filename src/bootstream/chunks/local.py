"""The one place where errors of local files become the package's own."""

from __future__ import annotations

import errno
from pathlib import Path

from bootstream.errors import (
    BootstreamError,
    InvalidInput,
    PermissionDenied,
    StorageFull,
    Unavailable,
)

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_DENIED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_WRONG = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG})


def file_error(error: OSError, operation: str, path: Path) -> BootstreamError:
    """Return what ``error`` means to the caller; raise it from the original."""
    message = error.strerror or str(error)
    if error.errno in _FULL:
        return StorageFull(
            message, operation=operation, object=str(path), remedy="make room, or name another disk"
        )
    if error.errno in _DENIED:
        return PermissionDenied(message, operation=operation, object=str(path))
    if error.errno in _WRONG:
        return InvalidInput(message, operation=operation, object=str(path))
    return Unavailable(message, operation=operation, object=str(path), transient=False)
