"""Keeping the node cache below its limit: who goes first, and who may not go.

The limit is on blocks of the disk, over all processes, so the truth is in the
folder. Looking there for each chunk would cost more than the chunk; so a process may fill
a 1/32 of the limit between two looks, and a look leaves room for several processes to do so.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from bootstream.block.segment import NEW

_STALE_SECONDS = 10.0


class _Found(NamedTuple):
    used_ns: int
    size: int
    path: Path


class Evictor:
    """Counts and unlinks segments below ``root``. Safe to use from several threads.

    ``stamp`` is called before ages are compared; ``release`` with the path of a segment
    before it is evicted, so that this process's own pin does not hold it.
    """

    def __init__(
        self, root: Path, limit: int, stamp: Callable[[], None], release: Callable[[Path], None]
    ) -> None:
        self._root = root
        self._limit = limit
        self._stamp = stamp
        self._release = release
        self._lock = threading.Lock()
        self._left = 0

    def used(self) -> int:
        """Return how many bytes of disk all segments take."""
        return sum(found.size for found in self._scan())

    def reserve(self, size: int) -> bool:
        """Tell whether ``size`` bytes more may be filled, after evicting if it needs that.

        Raises OSError when the folder cannot be read.
        """
        if size > self._limit // 2:
            return False
        with self._lock:
            if self._left >= size:
                self._left -= size
                return True
            step = max(self._limit // 32, size)
            room = self._limit - self._make_room(step)
            if room < size:
                return False
            # A quarter of what is left: other processes are given the same at this moment.
            self._left = max(0, min(step, room // 4) - size)
            return True

    def _scan(self) -> Iterator[_Found]:
        for folder in list(_entries(self._root)):
            if not folder.is_dir(follow_symlinks=False):
                continue
            for entry in list(_entries(folder.path)):
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if entry.name.endswith(NEW) and status.st_nlink > 1:
                    Path(entry.path).unlink(missing_ok=True)  # it has its real name already
                    continue
                yield _Found(status.st_mtime_ns, status.st_blocks * 512, Path(entry.path))

    def _make_room(self, step: int) -> int:
        """Evict if ``step`` more bytes do not fit; return what is used afterwards."""
        self._stamp()
        found = sorted(self._scan())
        used = sum(entry.size for entry in found)
        stale = time.time_ns() - int(_STALE_SECONDS * 1e9)
        for entry in found:
            if entry.path.suffix == NEW and entry.used_ns < stale and self._evict(entry.path):
                used -= entry.size
        if used + step <= self._limit:
            return used
        with _only_one(self._root / "evict") as alone:
            if not alone:
                return used  # another process is at it
            wanted = min(self._limit - self._limit // 8, self._limit - step)
            for entry in found:
                if used <= wanted:
                    break
                if entry.path.suffix != NEW and self._evict(entry.path):
                    used -= entry.size
        return used

    def _evict(self, path: Path) -> bool:
        """Unlink a segment that nobody pins; False if somebody does."""
        self._release(path)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
            path.parent.rmdir()
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                raise
        finally:
            os.close(descriptor)
        return True


class _only_one:  # noqa: N801 - reads as the verb that it is, in a with statement
    """Hold a lock file if nobody else does; the context's value tells."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def __enter__(self) -> bool:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def __exit__(self, *error: object) -> None:
        os.close(self._descriptor)


def _entries(folder: Path | str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except (FileNotFoundError, NotADirectoryError):
        return
