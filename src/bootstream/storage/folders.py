"""Moving about below the store's folder without ever leaving it.

Whoever may write into the store could plant a symbolic link, and could do so between a
check and the use of what was checked. So nothing here handles a path of several
components: every component is opened relative to the folder before it, as a folder and
without following links (``openat`` with ``O_NOFOLLOW``), and what is then done is done
relative to that open folder. A link in the middle of a path is refused; a link or a device
in the place of an object is no object.

Empty folders mean nothing in an object store, so any process may remove any empty folder at
any time. Whoever makes folders to put something into them is therefore told by
``FileNotFoundError`` that one of them went, and starts again from the top.

Names are bytes, UTF-8 whatever the locale says.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from bootstream.errors import InvalidInput, PermissionDenied
from bootstream.storage.paths import MAX_PATH_BYTES, is_valid_path

Parts = tuple[bytes, ...]
"""The components of a path below the store's folder."""

UPLOAD_PREFIX = b".bootstream-upload-"
"""Begins the names, in the store's own folder, of uploads that are still on their way."""
LOST_AND_FOUND = b"lost+found"
"""Where e2fsck puts things, in the top folder of an ext4; never ours to list or to remove."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Neither a pipe nor a terminal that lies about may stop or capture the process.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_PAGE = 256
_DEEPEST = MAX_PATH_BYTES // 2  # components of one byte and a slash


def is_reserved(top: bytes) -> bool:
    """Tell whether the first component of a path is kept for something else."""
    return top.startswith(UPLOAD_PREFIX) or top == LOST_AND_FOUND


def open_root(root: str, *, make: bool = False) -> int:
    """Open the store's folder, which may be reached by links; with ``make``, make it first.

    A folder that is made here is for its owner only (0700), whatever the umask: that one
    mode decides who may see templates at all. Below it the umask rules.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    try:
        return os.open(root, flags)
    except FileNotFoundError:
        if not make:
            raise
    path = Path(root).absolute()
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    parent = os.open(path.parent, flags)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)
    return os.open(root, flags)


@contextmanager
def folder(root: str, parts: Sequence[bytes], *, make: bool = False) -> Iterator[int]:
    """Yield a descriptor of the folder at ``parts``.

    Raises:
        FileNotFoundError: it is not there; with ``make``, it was removed meanwhile: again.
        NotADirectoryError: only with ``make``: a file is in the way.
        PermissionDenied: a symbolic link is in the way.
    """
    current = open_root(root, make=make)
    try:
        for part in parts:
            below = _open_below(current, part, make=make)
            os.close(current)
            current = below
        yield current
    finally:
        os.close(current)


def _open_below(parent: int, name: bytes, *, make: bool) -> int:
    try:
        return os.open(name, _FOLDER, dir_fd=parent)
    except FileNotFoundError:
        if not make:
            raise
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        if stat.S_ISLNK(os.lstat(name, dir_fd=parent).st_mode):
            raise link_refused(name) from error
        if make:
            raise
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from error
    with suppress(FileExistsError):
        os.mkdir(name, dir_fd=parent)
        os.fsync(parent)
    return os.open(name, _FOLDER, dir_fd=parent)


def link_refused(name: bytes) -> PermissionDenied:
    """The error for a symbolic link where a folder or an object should be."""
    return PermissionDenied(
        f"{name.decode('utf-8', 'replace')} is a symbolic link, which is never followed inside "
        "a store",
        operation="open object",
        remedy="replace the link by what it points to, or bind-mount that; the store's own "
        "folder may be a link",
    )


def open_regular(root: str, parts: Parts) -> tuple[int, os.stat_result]:
    """Open the file at ``parts`` for reading; return its descriptor and its status.

    Raises:
        FileNotFoundError: it is not there, or it is a folder.
        PermissionDenied: a link is in the way, or it is no regular file.
    """
    with folder(root, parts[:-1]) as parent:
        try:
            descriptor = os.open(parts[-1], _FILE, dir_fd=parent)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise link_refused(parts[-1]) from error
            if error.errno == errno.ENXIO:
                raise _not_regular(parts[-1]) from error
            raise
    with ExitStack() as undo:
        undo.callback(os.close, descriptor)
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        if not stat.S_ISREG(status.st_mode):
            raise _not_regular(parts[-1])
        undo.pop_all()
    return descriptor, status


def _not_regular(name: bytes) -> PermissionDenied:
    return PermissionDenied(
        f"{name.decode('utf-8', 'replace')} is a device, pipe or socket, not an object",
        operation="open object",
        remedy="remove it from the store",
    )


@contextmanager
def locked(root_descriptor: int, *, exclusive: bool) -> Iterator[None]:
    """Hold the store's lock: one ``flock`` on its folder, released by the kernel with us.

    Shared for what adds, removes or lists names, exclusive for what replaces an object.
    So a comparison and the replacement that depends on it are one step, and a listing never
    looks at a folder at the moment when a name changes hands, which ``readdir`` may show
    as no name at all. It is held for a few system calls, never during data transfer.

    ``root_descriptor`` must be the caller's own: threads exclude each other only by
    descriptors opened separately.
    """
    try:
        fcntl.flock(root_descriptor, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
    except OSError as error:
        if error.errno not in (errno.EBADF, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        raise InvalidInput(
            "this file system cannot lock a folder",
            operation="lock store",
            remedy="keep the store on a local file system, not on NFS",
        ) from error
    try:
        yield
    finally:  # not left to close(): a process forked meanwhile may hold a copy for long
        fcntl.flock(root_descriptor, fcntl.LOCK_UN)


# -- listing ------------------------------------------------------------------------------


def walk(root: str, parts: Parts) -> Iterator[tuple[Parts, list[bytes]]]:
    """Yield ``(folder, names)`` of all regular files below ``parts``, a page at a time.

    The order is that of the whole paths as bytes. Nothing is held open between pages, and
    memory is bounded by the folders on the way down, not by the tree. What goes meanwhile
    is simply not there.
    """
    above = sum(len(part) + 1 for part in parts)
    stack = [(parts, above, iter(_names(root, parts, above)))]
    while stack:
        here, length, names = stack[-1]
        page: list[bytes] = []
        below: bytes | None = None
        for name in names:
            if name.endswith(b"/"):
                below = name[:-1]
                break
            page.append(name)
            if len(page) == _PAGE:
                break
        if page:
            yield here, page
        if below is not None:
            deeper, length = (*here, below), length + len(below) + 1
            stack.append((deeper, length, iter(_names(root, deeper, length))))
        elif len(page) < _PAGE:
            stack.pop()


def _names(root: str, parts: Parts, above: int) -> list[bytes]:
    """Return the names in a folder that can be objects or, with a final ``/``, folders.

    Sorting folders with their slash is what makes the order that of whole paths: ``a``,
    ``a-b``, ``a/b``.
    """
    found = []
    try:
        with (
            folder(root, ()) as top,
            folder(root, parts) as here,
            locked(top, exclusive=False),
            os.scandir(here) as entries,
        ):
            for entry in entries:
                name = os.fsencode(entry.name)
                if above + len(name) > MAX_PATH_BYTES or (not parts and is_reserved(name)):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    found.append(name + b"/")
                elif entry.is_file(follow_symlinks=False):
                    found.append(name)
    except FileNotFoundError:
        return []
    return sorted(name for name in found if _is_nameable(name.removesuffix(b"/")))


def _is_nameable(name: bytes) -> bool:
    try:
        return is_valid_path(name.decode())
    except UnicodeDecodeError:
        return False


# -- removing empty folders ---------------------------------------------------------------


def prune_upwards(root: str, parts: Parts) -> None:
    """Remove the folder at ``parts`` and those above it, as far as they are empty."""
    if parts and is_reserved(parts[0]):
        return
    for depth in range(len(parts), 0, -1):
        try:
            with folder(root, parts[: depth - 1]) as parent:
                os.rmdir(parts[depth - 1], dir_fd=parent)
        except FileNotFoundError:
            continue
        except (OSError, PermissionDenied):
            return  # not empty; or not ours to remove, and then it does no harm


def prune_downwards(root: str, parts: Parts = ()) -> None:
    """Remove every empty folder below ``parts``: what killed processes left, mostly."""
    with suppress(OSError, PermissionDenied), folder(root, parts) as here:
        _prune(here, len(parts))


def _prune(here: int, depth: int) -> bool:
    """Remove empty folders below ``here``; tell whether ``here`` looks empty now."""
    empty = True
    with os.scandir(here) as entries:
        names = [
            (os.fsencode(entry.name), entry.is_dir(follow_symlinks=False)) for entry in entries
        ]
    for name, is_folder in names:
        removed = False
        if is_folder and depth < _DEEPEST and not (depth == 0 and is_reserved(name)):
            try:
                below = os.open(name, _FOLDER, dir_fd=here)
                try:
                    removed = _prune(below, depth + 1)
                finally:
                    os.close(below)
                if removed:
                    os.rmdir(name, dir_fd=here)
            except FileNotFoundError:
                pass
            except OSError:
                removed = False
        empty = empty and removed
    return empty
