"""How a file comes into the store: whole and durable, or not at all.

The bytes go into a file without a name (``O_TMPFILE``); when they are on the disk it is
given its name by ``linkat``, which of many creators lets exactly one through. A process
that is killed before leaves nothing, since the kernel frees what has no name.

Two cases need a name of their own before the final one, ``.bootstream-upload-…`` in the
store's own folder: replacing (``linkat`` replaces nothing, so the file is linked there and
renamed; only a kill between the two leaves anything) and file systems without
``O_TMPFILE``. The writer holds a ``flock`` on such a file, so that ``collect`` knows a
dead one's by its being free.

An etag is made of modification time, inode and size. The time is set from the clock in
nanoseconds, not taken from the kernel, whose own moves in ticks of some milliseconds; so
two writes differ even when the second gets the inode that the first freed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType

from bootstream.errors import AlreadyExists, InvalidInput, PreconditionFailed, Unavailable
from bootstream.storage.folders import (
    UPLOAD_PREFIX,
    Parts,
    folder,
    locked,
    open_root,
    prune_downwards,
    prune_upwards,
)

_NO_TMPFILE = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL, errno.ENOSYS})
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
_TRIES = 1000


def etag_of(status: os.stat_result) -> str:
    """Return the etag of the file that has this status."""
    return f"{status.st_mtime_ns:x}-{status.st_ino:x}-{status.st_size:x}"


class Staged:
    """A file on its way into the store; a context manager, for one thread.

    Args:
        root: the store's folder, made if it is missing.
        unnamed: False keeps it from using ``O_TMPFILE``.

    ``descriptor`` is where the bytes go. Raises OSError, from any method.
    """

    def __init__(self, root: str, *, unnamed: bool = True) -> None:
        self._root_path = root
        self._name: bytes | None = None
        with ExitStack() as undo:
            self._root = open_root(root, make=True)
            undo.callback(os.close, self._root)
            self.descriptor = self._open(unnamed=unnamed)
            undo.pop_all()

    def _open(self, *, unnamed: bool) -> int:
        if unnamed:
            try:
                descriptor = os.open(
                    b".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o666, dir_fd=self._root
                )
            except OSError as error:
                if error.errno not in _NO_TMPFILE:
                    raise
            else:
                if Path(f"/proc/self/fd/{descriptor}").exists():  # what _link needs
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
                    return descriptor
                os.close(descriptor)
        while True:
            name = _upload_name()
            flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC
            descriptor = os.open(name, flags, 0o666, dir_fd=self._root)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_nlink:
                self._name = name
                return descriptor
            os.close(descriptor)  # collected between its creation and its lock

    def publish(
        self, parts: Parts, *, if_none_match: bool = False, if_match: str | None = None
    ) -> str:
        """Make what was written durable and then the object at ``parts``; return its etag.

        Raises:
            AlreadyExists, PreconditionFailed: as ``StorageObject.put``.
            InvalidInput: an object is in the way of a folder, or a folder of the object.
            PermissionDenied: a symbolic link is in the way.
        """
        now = time.time_ns()
        os.utime(self.descriptor, ns=(now, now))
        os.fsync(self.descriptor)
        etag = etag_of(os.fstat(self.descriptor))
        try:
            self._publish(parts, if_none_match=if_none_match, if_match=if_match)
        except BaseException:
            prune_upwards(self._root_path, parts[:-1])
            raise
        return etag

    def _publish(self, parts: Parts, *, if_none_match: bool, if_match: str | None) -> None:
        for _ in range(_TRIES):
            try:
                with folder(self._root_path, parts[:-1], make=if_match is None) as parent:
                    if if_match is not None:
                        self._exchange(parent, parts[-1], if_match)
                    elif not self._create(parent, parts[-1]):
                        if self._make_way(parent, parts):
                            continue
                        if if_none_match:
                            raise AlreadyExists("it exists", operation="create object")
                        self._replace(parent, parts[-1])
                    os.fsync(parent)
                    return
            except FileNotFoundError:
                if if_match is not None:
                    raise _not_expected() from None
                # Somebody removed a folder of ours as empty: make it again.
            except NotADirectoryError as error:
                raise InvalidInput(
                    "part of its path is an object, which cannot be a folder here too",
                    operation="write object",
                    remedy="on a file system, no object can lie below another one",
                ) from error
        raise Unavailable(
            "its folder is removed again and again", operation="write object", transient=True
        )

    def _create(self, parent: int, name: bytes) -> bool:
        """Give the file its name; False if the name is taken."""
        try:
            with locked(self._root, exclusive=False):
                self._link(name, parent)
        except FileExistsError:
            return False
        except OSError as error:
            if self._name is None or error.errno not in _NO_LINKS:
                raise
            # No hard links here. All who create hold the lock, so that this one is alone.
            with locked(self._root, exclusive=True):
                if _exists(parent, name):
                    return False
                self._rename(parent, name)
        if self._name is not None:
            os.unlink(self._name, dir_fd=self._root)
            self._name = None
        return True

    def _link(self, name: bytes, parent: int) -> None:
        if self._name is None:
            source = f"/proc/self/fd/{self.descriptor}"
            os.link(source, name, dst_dir_fd=parent, follow_symlinks=True)
        else:
            os.link(self._name, name, src_dir_fd=self._root, dst_dir_fd=parent)

    def _rename(self, parent: int, name: bytes) -> None:
        if self._name is None:
            upload = _upload_name()
            self._link(upload, self._root)
            self._name = upload
        os.rename(self._name, name, src_dir_fd=self._root, dst_dir_fd=parent)
        self._name = None

    def _replace(self, parent: int, name: bytes) -> None:
        with locked(self._root, exclusive=True):
            self._rename(parent, name)

    def _exchange(self, parent: int, name: bytes, expected: str) -> None:
        with locked(self._root, exclusive=True):
            status = os.lstat(name, dir_fd=parent)
            if not stat.S_ISREG(status.st_mode) or etag_of(status) != expected:
                raise _not_expected()
            self._rename(parent, name)

    def _make_way(self, parent: int, parts: Parts) -> bool:
        """Tell whether a folder in the object's place was empty and is gone now."""
        try:
            if not stat.S_ISDIR(os.lstat(parts[-1], dir_fd=parent).st_mode):
                return False
        except FileNotFoundError:
            return True
        prune_downwards(self._root_path, parts)
        try:
            os.rmdir(parts[-1], dir_fd=parent)
        except FileNotFoundError:
            return True
        except OSError as error:
            raise InvalidInput(
                "its path is a folder for other objects, which cannot be an object here too",
                operation="write object",
                remedy="on a file system, no object can lie below another one",
            ) from error
        return True

    def __enter__(self) -> Staged:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._name is not None:
            with suppress(OSError):
                os.unlink(self._name, dir_fd=self._root)
        # Not left to close(): a process forked meanwhile may hold a copy for long.
        with suppress(OSError):
            fcntl.flock(self.descriptor, fcntl.LOCK_UN)
        os.close(self.descriptor)
        os.close(self._root)


def collect(root: str, older_than: float, *, dry_run: bool) -> int:
    """Remove the files that dead writers left more than ``older_than`` seconds ago; count them."""
    try:
        top = open_root(root)
    except FileNotFoundError:
        return 0
    try:
        with os.scandir(top) as entries:
            names = [
                name
                for entry in entries
                if (name := os.fsencode(entry.name)).startswith(UPLOAD_PREFIX)
                and entry.is_file(follow_symlinks=False)
            ]
        return sum(_collect_one(top, name, older_than, dry_run=dry_run) for name in names)
    finally:
        os.close(top)


def _collect_one(top: int, name: bytes, older_than: float, *, dry_run: bool) -> bool:
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if time.time() - os.fstat(descriptor).st_mtime < older_than:
            return False
        if not dry_run:
            os.unlink(name, dir_fd=top)
    except (BlockingIOError, FileNotFoundError):
        return False  # its writer lives, or finished just now
    finally:
        os.close(descriptor)
    return True


def _upload_name() -> bytes:
    return UPLOAD_PREFIX + secrets.token_hex(16).encode()


def _exists(parent: int, name: bytes) -> bool:
    try:
        os.lstat(name, dir_fd=parent)
    except FileNotFoundError:
        return False
    return True


def _not_expected() -> PreconditionFailed:
    return PreconditionFailed("it is not the version that was expected", operation="replace object")
