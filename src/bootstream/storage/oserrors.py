"""The one place where the local store turns operating system errors into the package's own."""

from __future__ import annotations

import errno
import os

from bootstream.errors import (
    BootstreamError,
    InvalidInput,
    NotFound,
    ObjectNotFound,
    PermissionDenied,
    StorageFull,
    Unavailable,
)

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_DENIED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_BUSY = frozenset(
    {
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
        errno.EAGAIN,
        errno.ENOLCK,
        errno.ESTALE,
        errno.ETIMEDOUT,
    }
)

MOVE_STORE = "point LOCAL_TEMPLATE_STORAGE_BASE_PATH at a folder that this user may read and write"
MAKE_ROOM = (
    "make room on that disk ('bootstream gc' reclaims deleted builds), or point "
    "LOCAL_TEMPLATE_STORAGE_BASE_PATH at a larger one"
)


def storage_error(error: OSError, *, operation: str, object: str) -> BootstreamError:
    """Map an error met while working on ``object`` inside the store's folder."""
    what = (error.strerror or str(error) or type(error).__name__).lower()
    number = error.errno
    kind: type[BootstreamError] = Unavailable
    remedy: str | None = None
    transient: bool | None = False
    if number in _FULL:
        kind, remedy = StorageFull, MAKE_ROOM
    elif number == errno.EFBIG:
        kind, remedy = StorageFull, "raise the limit on file sizes (ulimit -f)"
        what += ": the file system or a limit of this process allows no larger one"
    elif number in _DENIED:
        kind, remedy = PermissionDenied, MOVE_STORE
    elif number == errno.ENOENT:
        kind, what = ObjectNotFound, "it does not exist"
    elif number == errno.ENAMETOOLONG:
        kind, remedy = InvalidInput, "use shorter names; this file system takes no longer ones"
    elif number == errno.EILSEQ:
        kind, remedy = InvalidInput, "use other names; this file system refuses this one"
    elif number == errno.EXDEV:
        kind = InvalidInput
        what = "another file system is mounted inside the store"
        remedy = "keep the whole store on one file system"
    elif number in _BUSY:
        transient = None  # the class's own: waiting helps
    return kind(what, operation=operation, object=object, remedy=remedy, transient=transient)


def source_error(error: OSError, path: str | os.PathLike[str]) -> BootstreamError:
    """Map an error met while reading a local file that is being uploaded."""
    what = (error.strerror or str(error) or type(error).__name__).lower()
    kind: type[BootstreamError] = Unavailable
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        kind = NotFound
    elif error.errno in _DENIED:
        kind = PermissionDenied
    elif error.errno in (errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO):
        kind = InvalidInput
    return kind(what, operation="upload file", object=os.fspath(path), transient=False)
