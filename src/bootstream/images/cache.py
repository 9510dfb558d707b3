"""Blobs on disk by digest, shared by every process of a user.

Below the folder, for version 1 of the layout (other versions are left alone)::

    v1/sha256/ab/<hex>         a whole blob, checked against its digest, read-only
    v1/partial/sha256-<hex>    a blob that is being downloaded, or was

Whoever downloads a blob holds a lock on its partial file; the kernel drops it when
the process dies, and the next one goes on where the file ends. A blob gets its
final name in one step, after its digest was checked and its bytes are on disk.
Being there with the right size is then enough to be used: its contents are checked
once more, by diff id, whenever a layer is read, and a damaged one is dropped.

Blobs that were not used for the longest time go first when room is made. Folders
are 0700, files 0600.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bootstream.errors import Corrupt, ImageNotFound
from bootstream.images.digest import new_hash, split_digest
from bootstream.images.files import SharedFile, write_error
from bootstream.images.manifest import Descriptor

VERSION = "v1"
PARTIAL_SECONDS = 7 * 86400.0
RECENT_SECONDS = 3600.0
DEFAULT_LIMIT = 20 << 30
_LOCK_POLL_SECONDS = 0.05
_PIECE = 1 << 20


class BlobCache:
    """A folder of blobs. Safe to use from several threads and processes.

    Args:
        folder: made, with mode 0700, when something is first put there.
        limit: bytes that whole blobs may take; more is pruned after a fetch. None: no limit.
            Blobs of the last hour stay, so it may be exceeded for that long.
    """

    def __init__(self, folder: Path, *, limit: int | None = DEFAULT_LIMIT) -> None:
        self.folder = folder
        self.limit = limit
        self._root = folder / VERSION

    def scratch(self) -> Path:
        """Return an existing folder for temporary files beside the blobs."""
        folder = self._root / "partial"
        self._make(folder)
        return folder

    def find(self, descriptor: Descriptor) -> SharedFile | None:
        """Return the blob, and mark it as used now; None if it is not there whole."""
        path = self._path(descriptor.digest)
        try:
            file = SharedFile.open(str(path), what="a cached blob")
        except ImageNotFound:
            return None
        if file.size != descriptor.size:
            self.remove(descriptor.digest)
            return None
        with contextlib.suppress(OSError):  # evicted this moment; the open file stays
            os.utime(path)
        return file

    def remove(self, digest: str) -> None:
        """Drop a blob; nothing happens if it is not there."""
        try:
            self._path(digest).unlink(missing_ok=True)
        except OSError as error:
            raise write_error(error, str(self._path(digest))) from error

    @contextmanager
    def partial(
        self, descriptor: Descriptor, *, poll: Callable[[], object]
    ) -> Iterator[Partial | None]:
        """Hold the only right to download a blob; None if it is there by now.

        Args:
            descriptor: the blob's digest and size.
            poll: called some times a second while another holds the right; what it raises
                ends the wait.

        Raises:
            StorageFull, PermissionDenied: of the folder.
        """
        final = self._path(descriptor.digest)
        path = self._root / "partial" / descriptor.digest.replace(":", "-")
        try:
            self._make(path.parent)
            self._make(final.parent)
            descriptor_number = _lock(path, poll)
        except OSError as error:
            raise write_error(error, str(path)) from error
        try:
            if self.find(descriptor) is not None:
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()
                yield None
                return
            yield Partial(descriptor, descriptor_number, path, final)
        finally:
            os.close(descriptor_number)

    def prune(self, limit: int, *, recent: float = RECENT_SECONDS) -> int:
        """Drop the blobs least recently used until at most ``limit`` bytes are left.

        Blobs used in the last ``recent`` seconds stay. Downloads that nobody continued
        for a week go as well. Returns how many bytes were freed.
        """
        now = time.time()
        freed = 0
        for path, status in _files(self._root / "partial", "*"):
            if now - status.st_mtime > PARTIAL_SECONDS and _drop_partial(path):
                freed += status.st_size
        blobs = sorted(_files(self._root, "sha*/*/*"), key=lambda entry: entry[1].st_mtime)
        total = sum(status.st_size for _, status in blobs)
        for path, status in blobs:
            if total <= limit:
                break
            if now - status.st_mtime < recent:
                continue
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            total -= status.st_size
            freed += status.st_size
        return freed

    def _path(self, digest: str) -> Path:
        algorithm, digits = split_digest(digest)
        return self._root / algorithm / digits[:2] / digits

    def _make(self, folder: Path) -> None:
        """Make a folder and those above it, all private as far as they are new."""
        if folder.is_dir():
            return
        try:
            if folder.parent != folder:
                self._make(folder.parent)
            folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise write_error(error, str(folder)) from error


class Partial:
    """A blob while it is downloaded, by whoever holds the right to; for one thread.

    ``size`` is how many bytes are there; they are hashed as they come. Bytes that an
    earlier process left count only once they were hashed, by ``resume``.
    """

    def __init__(self, descriptor: Descriptor, number: int, path: Path, final: Path) -> None:
        self.size = 0
        self.resumed = False
        self._descriptor = descriptor
        self._number = number
        self._path = path
        self._final = final
        self._hash = new_hash(descriptor.digest)

    def resume(self, poll: Callable[[], object]) -> None:
        """Take over what an earlier download left; ``poll`` may raise between two steps."""
        try:
            left = os.fstat(self._number).st_size
            if left > self._descriptor.size:
                left = 0
            while self.size < left:
                poll()
                data = os.pread(self._number, min(_PIECE, left - self.size), self.size)
                if not data:
                    break
                self._hash.update(data)
                self.size += len(data)
            os.ftruncate(self._number, self.size)
        except OSError as error:
            raise write_error(error, str(self._path)) from error
        self.resumed = self.size > 0

    def write(self, data: bytes) -> None:
        """Append bytes. Raises Corrupt if there are more than the blob has, StorageFull."""
        if self.size + len(data) > self._descriptor.size:
            raise Corrupt(
                f"it has more than the {self._descriptor.size} bytes that were promised",
                operation="download",
                object=self._descriptor.digest,
            )
        view = memoryview(data)
        try:
            while view:
                count = os.pwrite(self._number, view, self.size)
                self._hash.update(view[:count])
                self.size += count
                view = view[count:]
        except OSError as error:
            raise write_error(error, str(self._path)) from error

    def restart(self) -> None:
        """Forget all bytes."""
        try:
            os.ftruncate(self._number, 0)
        except OSError as error:
            raise write_error(error, str(self._path)) from error
        self.size = 0
        self.resumed = False
        self._hash = new_hash(self._descriptor.digest)

    @property
    def found(self) -> str:
        """The digest of the bytes that are there."""
        return f"{split_digest(self._descriptor.digest)[0]}:{self._hash.hexdigest()}"

    def commit(self) -> None:
        """Make it a whole blob, durably.

        Raises:
            Corrupt: its digest is another one; the bytes are forgotten then.
        """
        found = self.found
        if self.size != self._descriptor.size or found != self._descriptor.digest:
            size = self.size
            self.restart()
            raise Corrupt(
                f"{size} bytes came with the digest {found}, not "
                f"{self._descriptor.size} with {self._descriptor.digest} as promised",
                operation="download",
                object=self._descriptor.digest,
            )
        try:
            os.fsync(self._number)
            self._path.rename(self._final)
        except OSError as error:
            raise write_error(error, str(self._final)) from error


def _lock(path: Path, poll: Callable[[], object]) -> int:
    """Return the open, locked file at ``path``; made if need be."""
    while True:
        number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            while True:
                try:
                    fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    poll()
                    time.sleep(_LOCK_POLL_SECONDS)
            if _is_at(number, path):
                return number
        except BaseException:
            os.close(number)
            raise
        os.close(number)  # it became a whole blob, or was dropped, while this one waited


def _is_at(number: int, path: Path) -> bool:
    try:
        there = path.stat(follow_symlinks=False)
    except FileNotFoundError:
        return False
    mine = os.fstat(number)
    return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)


def _files(folder: Path, pattern: str) -> Iterator[tuple[Path, os.stat_result]]:
    for path in folder.glob(pattern):
        with contextlib.suppress(OSError):  # gone, or somebody else's
            status = path.stat(follow_symlinks=False)
            if stat.S_ISREG(status.st_mode):
                yield path, status


def _drop_partial(path: Path) -> bool:
    """Remove a download unless somebody is at it."""
    try:
        number = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    except OSError:
        return False
    finally:
        os.close(number)
    return True
