"""Moves one object or file, and checks that it arrived."""

from __future__ import annotations

import hashlib
import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from bootstream.cli.errors import from_os_error
from bootstream.cli.localfile import appearing
from bootstream.cli.storageplaces import Place
from bootstream.errors import BootstreamError, Corrupt, InvalidInput, NotFound, Unavailable
from bootstream.progress import Progress
from bootstream.storage.protocol import ObjectStat, StorageObject

SHA256 = "sha256"

_PIECE = 8 << 20
_AHEAD = 8
_PHASE = "copy"


@dataclass(frozen=True, slots=True)
class Item:
    """One copy to make; ``size`` in bytes, as it was when it was found."""

    origin: Place | Path
    target: Place | Path
    size: int


@dataclass(frozen=True, slots=True)
class Copied:
    """One copy that was made, or was there already."""

    source: str
    destination: str
    size: int
    sha256: str | None
    skipped: bool


class Transfer:
    """Copies items. Safe to use from several threads.

    Args:
        check: read back what was written, and compare.
        resume: leave what is there and the same; go on with broken downloads.
    """

    def __init__(self, *, check: bool, resume: bool) -> None:
        self._check = check
        self._resume = resume

    def copy(self, item: Item, progress: Progress) -> Copied:
        """Copy one.

        Raises:
            Corrupt: what arrived is not what was sent.
        """
        origin, target = item.origin, item.target
        if isinstance(origin, Path):
            assert isinstance(target, Place)
            return self._upload(origin, target, progress)
        if isinstance(target, Path):
            return self._download(origin, target, progress)
        return self._between(origin, target, progress)

    # -- up -----------------------------------------------------------------------------------

    def _upload(self, path: Path, target: Place, progress: Progress) -> Copied:
        digest = _file_digest(path, progress)
        there = target.storage.open_object(target.path)
        if self._resume:
            size = _stat_file(path)
            if _is_same(there, size, digest, progress):
                progress.advance(_PHASE, size)
                return Copied(str(path), str(target), size, digest, skipped=True)
        try:
            file = path.open("rb", buffering=0)
        except OSError as error:
            raise from_os_error(error, operation="copy", object=str(path)) from error
        with file:
            size = _write(there, lambda: _Reader(file.fileno(), path, progress), digest)
        self._compare(there, size, digest, progress)
        return Copied(str(path), str(target), size, digest, skipped=False)

    # -- down ---------------------------------------------------------------------------------

    def _download(self, origin: Place, path: Path, progress: Progress) -> Copied:
        there = origin.storage.open_object(origin.path)
        status = there.stat()
        known = status.metadata.get(SHA256)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise from_os_error(error, operation="copy to", object=str(path)) from error
        if self._resume and path.is_file() and _stat_file(path) == status.size:
            digest = _file_digest(path, progress)
            if digest == (known or _object_digest(there, progress)):
                progress.advance(_PHASE, status.size)
                return Copied(str(origin), str(path), status.size, digest, skipped=True)
        if self._resume:
            digest = self._download_in_pieces(there, status, path, progress)
        else:
            with appearing(path, operation="copy to", replace=True) as temporary:
                with temporary.open("wb", buffering=0) as file:
                    sink = _Writer(file.fileno(), path, progress)
                    there.write_to(sink)
                    _sync(file.fileno(), path)
                digest = sink.digest.hexdigest()
                self._insist(known, digest, origin)
                if self._check and _file_digest(temporary, progress) != digest:
                    raise _arrived_wrong(str(path))
        return Copied(str(origin), str(path), status.size, digest, skipped=False)

    def _download_in_pieces(
        self, there: StorageObject, status: ObjectStat, path: Path, progress: Progress
    ) -> str:
        """Download by ranges into a file beside ``path`` that a later run goes on with.

        Its name tells of which version of the object its bytes are.
        """
        mark = hashlib.sha256(f"{there.path}\0{status.etag}".encode()).hexdigest()[:16]
        part = path.with_name(f".{path.name[:100]}.{mark}.part")
        try:
            descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise from_os_error(error, operation="copy to", object=str(part)) from error
        try:
            offset = min(os.fstat(descriptor).st_size, status.size) // _PIECE * _PIECE
            progress.advance(_PHASE, offset)
            with ThreadPoolExecutor(_AHEAD) as pool:
                while offset < status.size:
                    starts = range(offset, min(offset + _AHEAD * _PIECE, status.size), _PIECE)
                    pieces = [pool.submit(_piece, there, start, status.size) for start in starts]
                    for piece in pieces:
                        data = piece.result()
                        _write_at(descriptor, data, offset, path)
                        offset += len(data)
                        progress.advance(_PHASE, len(data))
            if there.stat().etag != status.etag:
                raise Unavailable(
                    "it was replaced while it was read", operation="copy", object=there.path
                )
            os.ftruncate(descriptor, status.size)
            _sync(descriptor, path)
        finally:
            os.close(descriptor)
        digest = _file_digest(part, progress)
        known = status.metadata.get(SHA256)
        if known is None and self._check:
            known = _object_digest(there, progress)
        if known is not None and known != digest:
            part.unlink(missing_ok=True)  # a later run shall not go on with wrong bytes
            raise _arrived_wrong(str(path))
        try:
            part.replace(path)
        except OSError as error:
            raise from_os_error(error, operation="copy to", object=str(path)) from error
        return digest

    # -- across -------------------------------------------------------------------------------

    def _between(self, origin: Place, target: Place, progress: Progress) -> Copied:
        source = origin.storage.open_object(origin.path)
        there = target.storage.open_object(target.path)
        status = source.stat()
        known = status.metadata.get(SHA256)
        if self._resume:
            digest = known or _object_digest(source, progress)
            if _is_same(there, status.size, digest, progress):
                progress.advance(_PHASE, status.size)
                return Copied(str(origin), str(target), status.size, digest, skipped=True)
        if origin.storage is target.storage:
            origin.storage.copy_object(origin.path, target.path)
            progress.advance(_PHASE, status.size)
            if there.size() != status.size:
                raise _arrived_wrong(str(target))
            if self._check and known is not None and _object_digest(there, progress) != known:
                raise _arrived_wrong(str(target))
            return Copied(str(origin), str(target), status.size, known, skipped=False)
        with _Pipe(source, progress) as pipe:
            size = _write(there, lambda: pipe, known)
        digest = pipe.digest.hexdigest()
        self._insist(known, digest, origin)
        self._compare(there, size, digest, progress)
        return Copied(str(origin), str(target), size, digest, skipped=False)

    # -- checks -------------------------------------------------------------------------------

    def _compare(self, there: StorageObject, size: int, digest: str, progress: Progress) -> None:
        if there.size() != size or (self._check and _object_digest(there, progress) != digest):
            raise _arrived_wrong(there.path)

    def _insist(self, known: str | None, digest: str, origin: Place) -> None:
        if known is not None and known != digest:
            raise Corrupt(
                f"its bytes have the sha256 {digest}, where {known} was kept with them",
                operation="copy",
                object=str(origin),
            )


def _write(there: StorageObject, source: Callable[[], _Reader | _Pipe], digest: str | None) -> int:
    """Upload with the sha256 as metadata; without, where the store cannot keep any."""
    if digest is not None:
        try:
            return there.read_from(source(), metadata={SHA256: digest})
        except InvalidInput as error:
            if "metadata" not in error.message:  # refused before anything was read
                raise
    return there.read_from(source())


def _is_same(there: StorageObject, size: int, digest: str, progress: Progress) -> bool:
    try:
        status = there.stat()
    except NotFound:
        return False
    if status.size != size:
        return False
    return (status.metadata.get(SHA256) or _object_digest(there, progress)) == digest


def _piece(there: StorageObject, start: int, size: int) -> bytearray:
    buffer = bytearray(min(_PIECE, size - start))
    if there.read_at(buffer, start) != len(buffer):
        raise Unavailable("it became shorter", operation="copy", object=there.path)
    return buffer


class _Reader:
    """A local file for an upload, which can be rewound; it tells progress."""

    def __init__(self, descriptor: int, path: Path, progress: Progress) -> None:
        self._descriptor = descriptor
        self._path = path
        self._progress = progress
        self._offset = 0

    def read(self, size: int, /) -> bytes:
        try:
            data = os.pread(self._descriptor, size, self._offset)
        except OSError as error:
            raise from_os_error(error, operation="copy", object=str(self._path)) from error
        self._offset += len(data)
        self._progress.advance(_PHASE, len(data))
        return data

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._offset

    def seek(self, offset: int, /) -> int:
        self._progress.advance(_PHASE, offset - self._offset)
        self._offset = offset
        return offset


class _Writer:
    """A local file for a download."""

    def __init__(self, descriptor: int, path: Path, progress: Progress) -> None:
        self._descriptor = descriptor
        self._path = path
        self._progress = progress
        self._offset = 0
        self.digest = hashlib.sha256()

    def write(self, data: memoryview, /) -> None:
        _write_at(self._descriptor, data, self._offset, self._path)
        self._offset += len(data)
        self.digest.update(data)
        self._progress.advance(_PHASE, len(data))


class _Pipe:
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

    def __enter__(self) -> _Pipe:
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
        if self._closed.is_set():
            raise InterruptedError("nobody reads any more")
        self._pieces.put(bytes(data))

    def read(self, size: int, /) -> bytes:
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
        self._progress.advance(_PHASE, len(data))
        return data


class _Hashing:
    def __init__(self, progress: Progress) -> None:
        self.digest = hashlib.sha256()
        self._progress = progress

    def write(self, data: memoryview, /) -> None:
        self.digest.update(data)
        self._progress.advance(_PHASE, 0)  # where work is stopped


def _object_digest(there: StorageObject, progress: Progress) -> str:
    sink = _Hashing(progress)
    there.write_to(sink)
    return sink.digest.hexdigest()


def _file_digest(path: Path, progress: Progress) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb", buffering=0) as file:
            while data := file.read(_PIECE):
                progress.advance(_PHASE, 0)
                digest.update(data)
    except OSError as error:
        raise from_os_error(error, operation="copy", object=str(path)) from error
    return digest.hexdigest()


def _stat_file(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise from_os_error(error, operation="copy", object=str(path)) from error


def _write_at(descriptor: int, data: bytearray | memoryview, offset: int, path: Path) -> None:
    view = memoryview(data)
    try:
        while view:
            count = os.pwrite(descriptor, view, offset)
            view, offset = view[count:], offset + count
    except OSError as error:
        raise from_os_error(error, operation="copy to", object=str(path)) from error


def _sync(descriptor: int, path: Path) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        raise from_os_error(error, operation="copy to", object=str(path)) from error


def _arrived_wrong(name: str) -> BootstreamError:
    return Corrupt(
        "what arrived is not what was sent",
        operation="copy to",
        object=name,
        remedy="copy it again; if it happens again, this host's memory, disk or network is broken",
    )
