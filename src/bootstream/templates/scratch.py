"""Room on disk for one piece of work, given back also after a crash.

Each piece of work has a folder of its own, with a lock held while it lasts. The
kernel drops the lock of a process that dies, so the next one to come finds the
folders that nobody holds and removes them.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType

from bootstream.errors import PermissionDenied, StorageFull, Unavailable

_LOCK = "lock"


class Scratch:
    """A private folder below ``base`` for as long as the context lasts.

    Raises:
        PermissionDenied, StorageFull, Unavailable: it cannot be made there.
    """

    def __init__(self, base: Path) -> None:
        self._base = base
        self._descriptor = -1
        self.path = base

    def __enter__(self) -> Scratch:
        try:
            self._base.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._remove_dead()
            while not self._claim():
                pass
        except OSError as error:
            raise scratch_error(error, self._base) from error
        return self

    def _claim(self) -> bool:
        """Make and lock a folder; False if a cleaner took it before the lock was held."""
        self.path = Path(tempfile.mkdtemp(prefix="work-", dir=self._base))
        lock = self.path / _LOCK
        try:
            self._descriptor = os.open(lock, os.O_CREAT | os.O_RDWR, 0o600)
        except FileNotFoundError:
            return False
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        if lock.exists():
            return True
        os.close(self._descriptor)
        return False

    def _remove_dead(self) -> None:
        for folder in self._base.glob("work-*"):
            try:
                descriptor = os.open(folder / _LOCK, os.O_RDWR)
            except FileNotFoundError:
                continue  # being made, or being removed
            except OSError:
                continue  # somebody else's
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            except BlockingIOError:
                pass
            finally:
                os.close(descriptor)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._descriptor)


def scratch_error(error: OSError, base: Path) -> PermissionDenied | StorageFull | Unavailable:
    """Map an operating system error met while working below ``base``."""
    what = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull(
            what,
            operation="write scratch file",
            object=str(base),
            remedy="free some room there, or point BOOTSTREAM_CACHE_DIR at a larger disk",
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return PermissionDenied(
            what,
            operation="write scratch file",
            object=str(base),
            remedy="point BOOTSTREAM_CACHE_DIR at a folder that you may write",
        )
    return Unavailable(what, operation="write scratch file", object=str(base), transient=False)
