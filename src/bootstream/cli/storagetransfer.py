"""Moves one object or file, and checks that it arrived."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from bootstream.cli.errors import from_os_error
from bootstream.cli.localfile import appearing
from bootstream.cli.storageplaces import Place
from bootstream.cli.storageresume import UploadRecord
from bootstream.cli.storagestreams import (
    PHASE,
    PIECE,
    FileSink,
    FileSource,
    Pipe,
    file_digest,
    file_size,
    lock,
    object_digest,
    sync,
    write_at,
)
from bootstream.errors import (
    BootstreamError,
    Corrupt,
    InvalidInput,
    NotFound,
    Unavailable,
)
from bootstream.progress import Progress
from bootstream.storage.protocol import Metadata, ObjectStat, StorageObject
from bootstream.storage.resume import upload

SHA256 = "sha256"

_AHEAD = 8


@dataclass(frozen=True, slots=True)
class Item:
    """One copy to make; ``size`` in bytes, as it was when it was found."""

    origin: Place | Path
    target: Place | Path
    size: int


@dataclass(frozen=True, slots=True)
class Copied:
    """One copy that was made, or was there already.

    ``resumed``: bytes that an earlier run had brought. ``changed``: that run's source had
    other bytes, so that this one began anew.
    """

    source: str
    destination: str
    size: int
    sha256: str | None
    skipped: bool
    resumed: int = 0
    changed: bool = False


class Transfer:
    """Copies items. Safe to use from several threads.

    Args:
        check: read back what was written, and compare.
        resume: leave what is there and the same; go on with what was broken off.
        records: the folder where uploads are written down.
    """

    def __init__(self, *, check: bool, resume: bool, records: Path) -> None:
        self._check = check
        self._records = records
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
        digest = file_digest(path, progress)
        there = target.storage.open_object(target.path)
        if self._resume:
            size = file_size(path)
            if _is_same(there, size, digest, progress):
                progress.advance(PHASE, size)
                return Copied(str(path), str(target), size, digest, skipped=True)
        try:
            file = path.open("rb", buffering=0)
        except OSError as error:
            raise from_os_error(error, operation="copy", object=str(path)) from error
        expected = file_size(path)
        record = UploadRecord(
            self._records, str(target), digest=digest, size=expected, resume=self._resume
        )
        with file, record:
            size = _write(
                there, lambda: FileSource(file.fileno(), path, progress), digest, expected, record
            )
        self._compare(there, size, digest, progress)
        return Copied(
            str(path), str(target), size, digest,
            skipped=False, resumed=record.there, changed=record.changed,
        )  # fmt: skip

    # -- down ---------------------------------------------------------------------------------

    def _download(self, origin: Place, path: Path, progress: Progress) -> Copied:
        there = origin.storage.open_object(origin.path)
        status = there.stat()
        known = status.metadata.get(SHA256)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise from_os_error(error, operation="copy to", object=str(path)) from error
        if self._resume and path.is_file() and file_size(path) == status.size:
            digest = file_digest(path, progress)
            if digest == (known or object_digest(there, progress)):
                progress.advance(PHASE, status.size)
                return Copied(str(origin), str(path), status.size, digest, skipped=True)
        there_already = 0
        if self._resume:
            digest, there_already = self._download_in_pieces(there, status, path, progress)
        else:
            with appearing(path, operation="copy to", replace=True) as temporary:
                with temporary.open("wb", buffering=0) as file:
                    sink = FileSink(file.fileno(), path, progress)
                    there.write_to(sink)
                    sync(file.fileno(), path)
                digest = sink.digest.hexdigest()
                self._insist(known, digest, origin)
                if self._check and file_digest(temporary, progress) != digest:
                    raise _arrived_wrong(str(path))
        return Copied(
            str(origin), str(path), status.size, digest, skipped=False, resumed=there_already
        )

    def _download_in_pieces(
        self, there: StorageObject, status: ObjectStat, path: Path, progress: Progress
    ) -> tuple[str, int]:
        """Download by ranges into a file beside ``path`` that a later run goes on with.

        Its name tells of which version of the object its bytes are. Of two runs at a time, the
        second is refused. Returns the sha256, and how many bytes were there already.
        """
        mark = hashlib.sha256(f"{there.path}\0{status.etag}".encode()).hexdigest()[:16]
        part = path.with_name(f".{path.name[:100]}.{mark}.part")
        try:
            descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise from_os_error(error, operation="copy to", object=str(part)) from error
        try:
            lock(descriptor, path)
            offset = min(os.fstat(descriptor).st_size, status.size) // PIECE * PIECE
            before = offset
            progress.advance(PHASE, offset)
            with ThreadPoolExecutor(_AHEAD) as pool:
                while offset < status.size:
                    starts = range(offset, min(offset + _AHEAD * PIECE, status.size), PIECE)
                    pieces = [pool.submit(_piece, there, start, status.size) for start in starts]
                    for piece in pieces:
                        data = piece.result()
                        write_at(descriptor, data, offset, path)
                        offset += len(data)
                        progress.advance(PHASE, len(data))
            if there.stat().etag != status.etag:
                raise Unavailable(
                    "it was replaced while it was read", operation="copy", object=there.path
                )
            os.ftruncate(descriptor, status.size)
            sync(descriptor, path)
            digest = file_digest(part, progress)
            known = status.metadata.get(SHA256)
            if known is None and self._check:
                known = object_digest(there, progress)
            if known is not None and known != digest:
                part.unlink(missing_ok=True)  # a later run shall not go on with wrong bytes
                raise _arrived_wrong(str(path))
            try:
                part.replace(path)
            except OSError as error:
                raise from_os_error(error, operation="copy to", object=str(path)) from error
        finally:
            os.close(descriptor)  # and with it goes the lock
        return digest, before

    # -- across -------------------------------------------------------------------------------

    def _between(self, origin: Place, target: Place, progress: Progress) -> Copied:
        source = origin.storage.open_object(origin.path)
        there = target.storage.open_object(target.path)
        status = source.stat()
        known = status.metadata.get(SHA256)
        if self._resume:
            digest = known or object_digest(source, progress)
            if _is_same(there, status.size, digest, progress):
                progress.advance(PHASE, status.size)
                return Copied(str(origin), str(target), status.size, digest, skipped=True)
        if origin.storage is target.storage:
            origin.storage.copy_object(origin.path, target.path)
            progress.advance(PHASE, status.size)
            if there.size() != status.size:
                raise _arrived_wrong(str(target))
            if self._check and known is not None and object_digest(there, progress) != known:
                raise _arrived_wrong(str(target))
            return Copied(str(origin), str(target), status.size, known, skipped=False)
        with Pipe(source, progress) as pipe:
            size = _write(there, lambda: pipe, known, status.size, None)
        digest = pipe.digest.hexdigest()
        self._insist(known, digest, origin)
        self._compare(there, size, digest, progress)
        return Copied(str(origin), str(target), size, digest, skipped=False)

    # -- checks -------------------------------------------------------------------------------

    def _compare(self, there: StorageObject, size: int, digest: str, progress: Progress) -> None:
        if there.size() != size or (self._check and object_digest(there, progress) != digest):
            raise _arrived_wrong(there.path)

    def _insist(self, known: str | None, digest: str, origin: Place) -> None:
        if known is not None and known != digest:
            raise Corrupt(
                f"its bytes have the sha256 {digest}, where {known} was kept with them",
                operation="copy",
                object=str(origin),
            )


def _write(
    there: StorageObject,
    source: Callable[[], FileSource | Pipe],
    digest: str | None,
    size: int,
    record: UploadRecord | None,
) -> int:
    """Upload with the sha256 as metadata; without, where the store cannot keep any."""

    def send(metadata: Metadata | None) -> int:
        if record is None:
            return there.read_from(source(), metadata=metadata)
        return upload(there, source(), size, metadata=metadata, checkpoint=record)

    if digest is not None:
        try:
            return send({SHA256: digest})
        except InvalidInput as error:
            if "metadata" not in error.message:  # refused before anything was read
                raise
    return send(None)


def _is_same(there: StorageObject, size: int, digest: str, progress: Progress) -> bool:
    try:
        status = there.stat()
    except NotFound:
        return False
    if status.size != size:
        return False
    return (status.metadata.get(SHA256) or object_digest(there, progress)) == digest


def _piece(there: StorageObject, start: int, size: int) -> bytearray:
    buffer = bytearray(min(PIECE, size - start))
    if there.read_at(buffer, start) != len(buffer):
        raise Unavailable("it became shorter", operation="copy", object=there.path)
    return buffer


def _arrived_wrong(name: str) -> BootstreamError:
    return Corrupt(
        "what arrived is not what was sent",
        operation="copy to",
        object=name,
        remedy="copy it again; if it happens again, this host's memory, disk or network is broken",
    )
