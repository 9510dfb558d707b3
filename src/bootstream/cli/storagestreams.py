"""Files, pipes and digests that ``storage cp`` moves bytes through; all of them tell progress."""

from __future__ import annotations

import fcntl
import hashlib
import os
import queue
import threading
from pathlib import Path

from bootstream.cli.errors import from_os_error
from bootstream.errors import Conflict
from bootstream.progress import Progress
from bootstream.storage.protocol import StorageObject

PHASE = "copy"
PIECE = 8 << 20
_AHEAD = 8


class FileSource:
    """A local file for an upload, which can be rewound; it tells progress."""

    def __init__(self, descriptor: int, path: Path, progress: Progress) -> None:
        self._descriptor = descriptor
        self._path = path
        self._progress = progress
        self._offset = 0

    def read(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes, none at the end."""
        try:
            data = os.pread(self._descriptor, size, self._offset)
        except OSError as error:
            raise from_os_error(error, operation="copy", object=str(self._path)) from error
        self._offset += len(data)
        self._progress.advance(PHASE, len(data))
        return data

    def seekable(self) -> bool:
        """Tell that it can be rewound."""
        return True

    def tell(self) -> int:
        """Return the offset in bytes of the next read."""
        return self._offset

    def seek(self, offset: int, /) -> int:
        """Go to an offset in bytes from the file's start."""
        self._progress.advance(PHASE, offset - self._offset)
        self._offset = offset
        return offset


class FileSink:
    """A local file for a download."""

    def __init__(self, descriptor: int, path: Path, progress: Progress) -> None:
        self._descriptor = descriptor
        self._path = path
        self._progress = progress
        self._offset = 0
        self.digest = hashlib.sha256()

    def write(self, data: memoryview, /) -> None:
        """Write what comes next."""
        write_at(self._descriptor, data, self._offset, self._path)
        self._offset += len(data)
        self.digest.update(data)
        self._progress.advance(PHASE, len(data))


class Pipe:
    """A download in a thread of its own, as the source of an upload. A context manager."""

    def __init__(self, source: StorageObject, progress: Progress) -> None:
        self._source = source
        self._progress = progress
        self._pieces: queue.Queue[bytes | BaseException | None] = queue.Queue(_AHEAD)
        self._left = b""
        self._ended = False
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="copy", daemon=True)
        self.digest = hashlib.sha256()

    def __enter__(self) -> Pipe:
        self._thread.start()
        return self

    def __exit__(self, *_unused: object) -> None:
        self._closed.set()
        while self._thread.is_alive():
            try:
                self._pieces.get(timeout=0.05)
            except queue.Empty:
                continue
        self._thread.join()

    def _run(self) -> None:
        try:
            self._source.write_to(self)
        except BaseException as error:  # noqa: BLE001 - it is raised by whoever reads
            self._pieces.put(error)
        else:
            self._pieces.put(None)

    def write(self, data: memoryview, /) -> None:
        """Hand a piece to the reader, when it has room for it."""
        if self._closed.is_set():
            raise InterruptedError("nobody reads any more")
        self._pieces.put(bytes(data))

    def read(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes, none at the end; raises what the download raised."""
        if not self._left and not self._ended:
            piece = self._pieces.get()
            if isinstance(piece, BaseException):
                self._ended = True
                raise piece
            if piece is None:
                self._ended = True
            else:
                self._left = piece
        data, self._left = self._left[:size], self._left[size:]
        self.digest.update(data)
        self._progress.advance(PHASE, len(data))
        return data


class _Hashing:
    def __init__(self, progress: Progress) -> None:
        self.digest = hashlib.sha256()
        self._progress = progress

    def write(self, data: memoryview, /) -> None:
        self.digest.update(data)
        self._progress.advance(PHASE, 0)  # where work is stopped


def object_digest(there: StorageObject, progress: Progress) -> str:
    """Return the sha256 of all of an object, in hexadecimal."""
    sink = _Hashing(progress)
    there.write_to(sink)
    return sink.digest.hexdigest()


def file_digest(path: Path, progress: Progress) -> str:
    """Return the sha256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    try:
        with path.open("rb", buffering=0) as file:
            while data := file.read(PIECE):
                progress.advance(PHASE, 0)
                digest.update(data)
    except OSError as error:
        raise from_os_error(error, operation="copy", object=str(path)) from error
    return digest.hexdigest()


def file_size(path: Path) -> int:
    """Return a file's size in bytes."""
    try:
        return path.stat().st_size
    except OSError as error:
        raise from_os_error(error, operation="copy", object=str(path)) from error


def write_at(descriptor: int, data: bytearray | memoryview, offset: int, path: Path) -> None:
    """Write all of ``data`` at an offset in bytes."""
    view = memoryview(data)
    try:
        while view:
            count = os.pwrite(descriptor, view, offset)
            view, offset = view[count:], offset + count
    except OSError as error:
        raise from_os_error(error, operation="copy to", object=str(path)) from error


def lock(descriptor: int, path: Path) -> None:
    """Lock a file for this process; raises Conflict where another one has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise Conflict(
            "another run is copying to it",
            operation="copy to",
            object=str(path),
            remedy="wait for it, then run again",
        ) from error
    except OSError:  # a file system without locks
        return


def sync(descriptor: int, path: Path) -> None:
    """Return when a file's bytes are on its disk."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        raise from_os_error(error, operation="copy to", object=str(path)) from error
