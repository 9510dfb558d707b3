"""Objects on disk: conditional, atomic, with versions where a bucket keeps them.

An object is a row and a file. Whatever replaces an object makes a new file and a new row, in
one transaction in which the conditions are checked; of writers that may only create exactly one
succeeds. The current version is in ``objects``; older ones, and delete markers (rows without a
file), are in ``versions``, newest last.
"""

from __future__ import annotations

# ruff: noqa: S608 - statements are put together of constants, values are always parameters
import json
import sqlite3
import threading
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bootstream.localoci.checksums import Checksums
from bootstream.localoci.conditions import NO_CONDITIONS, Conditions
from bootstream.localoci.errors import ApiError, not_found_or_not_authorized
from bootstream.localoci.inplace import Places, split

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from bootstream.localoci.database import Database
    from bootstream.localoci.http import Body
    from bootstream.localoci.recent import OpenFile

COLUMNS = "name, etag, version, file, size, md5, created, modified, tier, ready, restored, headers"
_BUFFER = 256 << 10  # bytes of a body that are taken at a time


@dataclass(frozen=True, slots=True)
class Bucket:
    """A bucket; ``details`` are the attributes that its answers show."""

    id: int
    name: str
    details: Mapping[str, Any]

    @property
    def etag(self) -> str:
        """The version of its attributes."""
        return str(self.details["etag"])

    @property
    def versioned(self) -> bool:
        """Whether what is overwritten or deleted is kept."""
        return bool(self.details.get("versioning") == "Enabled")


@dataclass(frozen=True, slots=True)
class StoredObject:
    """A version of an object. Times are in seconds of the epoch.

    ``headers`` are what answers repeat: content headers, ``opc-meta-*``, checksums. ``md5`` is
    None for what was assembled of parts. An archived object can be read from ``ready`` until
    ``restored``. A delete marker has no file.
    """

    name: str
    etag: str
    version: str
    file: str
    size: int
    md5: str | None
    created: float
    modified: float
    tier: str
    ready: float
    restored: float
    headers: Mapping[str, str]

    def values(self) -> tuple[object, ...]:
        """In the order of ``COLUMNS``."""
        return (
            self.name, self.etag, self.version, self.file, self.size, self.md5, self.created,
            self.modified, self.tier, self.ready, self.restored, json.dumps(dict(self.headers)),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Received:
    """A body that is on disk: the file, bytes, and digests in base64 by algorithm."""

    file: str
    size: int
    digests: Mapping[str, str]


class Store:
    """Objects of one data folder. Thread safe.

    Args:
        database: its rows and files.
        clock: seconds of the epoch.
        limit: bytes of the largest object.
    """

    def __init__(self, database: Database, clock: Callable[[], float], limit: int) -> None:
        self.database = database
        self.clock = clock
        self.places = Places(database, limit)
        self._local = threading.local()

    def receive(
        self, body: Body, limit: int, algorithms: frozenset[str], place: str | None = None
    ) -> Received:
        """Take a body to a new file, or to a place in one, with its checksums.

        Raises:
            ApiError: 413, it is over ``limit`` bytes; 507, the disk is full.
        """
        _bound(body.length or 0, limit)
        checksums = Checksums(algorithms)
        file = self.database.new_file() if place is None else place
        path, start = split(file)
        size = 0
        try:
            with open(self.database.path(path), "xb" if place is None else "r+b", 0) as target:
                target.seek(start)
                buffer = self._buffer(body.length)
                while count := self._fill(body, buffer):
                    size += count
                    _bound(size, limit)
                    checksums.update(buffer[:count])
                    written = 0
                    while written < count:
                        written += target.write(buffer[written:count])
        except BaseException as error:
            self.discard(file)
            if isinstance(error, OSError):
                raise ApiError(
                    507, "InsufficientStorage", f"The data folder cannot take more: {error}"
                ) from error
            raise
        return Received(file, size, checksums.digests())

    def discard(self, file: str) -> None:
        """Give up what was received; a place is kept for the next."""
        if "@" not in file:
            self.database.drop(file)

    def _buffer(self, length: int | None) -> memoryview:
        """Room for a body, or a piece of it; a thread's own, until its next body."""
        if length is not None and length <= _BUFFER >> 3:
            return memoryview(bytearray(max(length, 1)))
        buffer: memoryview | None = getattr(self._local, "buffer", None)
        if buffer is None:
            buffer = self._local.buffer = memoryview(bytearray(_BUFFER))
        return buffer

    @staticmethod
    def _fill(body: Body, buffer: memoryview) -> int:
        """As many bytes as there are, up to the buffer's: large steps cost less."""
        filled = 0
        while filled < len(buffer) and (count := body.readinto(buffer[filled:])):
            filled += count
        return filled

    def get(self, bucket: Bucket, name: str, version: str | None = None) -> StoredObject:
        """An object's current version, or the one that is named.

        Raises:
            ApiError: 404 ``ObjectNotFound``.
        """
        recent = self.database.recent
        item = recent.get(bucket.id, name)
        if item is not None and version in {None, item.version}:
            return item
        writes = recent.writes
        row = self.database.row(
            f"SELECT {COLUMNS} FROM objects WHERE bucket=? AND name=?", bucket.id, name
        )
        if row is not None and version is None:
            item = read_row(row)
            recent.keep(bucket.id, item, writes)
            return item
        if version is not None and (row is None or row["version"] != version):
            row = self.database.row(
                f"SELECT {COLUMNS} FROM versions"
                " WHERE bucket=? AND name=? AND version=? AND file<>''",
                bucket.id, name, version,
            )  # fmt: skip
        if row is None:
            raise no_object(bucket, name)
        return read_row(row)

    def check(self, bucket: Bucket, name: str, conditions: Conditions) -> None:
        """Check conditions ahead of a long body; they are checked again when it is there."""
        if conditions != NO_CONDITIONS:
            row = self.database.row(
                "SELECT etag FROM objects WHERE bucket=? AND name=?", bucket.id, name
            )
            conditions.check(None if row is None else row["etag"])

    def put(
        self,
        bucket: Bucket,
        name: str,
        file: str,
        size: int,
        *,
        md5: str | None,
        tier: str,
        headers: Mapping[str, str],
        conditions: Conditions = NO_CONDITIONS,
        upload: str | None = None,
        shared: bool = False,
    ) -> StoredObject:
        """Make a file the object; ``upload`` is the multipart upload that ends with it.

        The file belongs to the store from here on, whether the object comes to be or not; one
        that is ``shared`` stays the upload's in the latter case.

        Raises:
            ApiError: 412, a condition does not hold.
        """
        now = self.clock()
        new = StoredObject(
            name, str(uuid.uuid4()), str(uuid.uuid4()), file, size, md5, now, now, tier, 0.0, 0.0,
            dict(headers),
        )  # fmt: skip
        dropped: list[str] = []
        parts: list[str] = []
        try:
            with self.database.write([(bucket.id, name)]) as rows:
                old = self.current(rows, bucket, name)
                conditions.check(None if old is None else old.etag)
                if upload is not None:
                    found = rows.execute("SELECT file FROM parts WHERE upload=?", (upload,))
                    parts = [row["file"] for row in found.fetchall()]
                    self._end_upload(rows, upload)
                if old is not None:
                    dropped += self.retire(rows, bucket, old)
                self.insert(rows, bucket, new)
                self.database.recent.becomes(bucket.id, new)
        except BaseException as error:
            if not shared:
                self.database.drop(file)
            if isinstance(error, sqlite3.IntegrityError):
                raise not_found_or_not_authorized(bucket.name) from None
            raise
        if upload is not None:
            dropped += self.places.end(upload, parts) - {file}
        self.database.drop(*dropped)
        return new

    @staticmethod
    def _end_upload(rows: sqlite3.Connection, upload: str) -> None:
        if not rows.execute("DELETE FROM uploads WHERE id=?", (upload,)).rowcount:
            raise ApiError(404, "UploadNotFound", "The upload has ended")

    def delete(
        self,
        bucket: Bucket,
        name: str,
        conditions: Conditions = NO_CONDITIONS,
        version: str | None = None,
    ) -> StoredObject:
        """Delete the object or one version of it; returns what was deleted, or its marker.

        Raises:
            ApiError: 404, there is none; 412, a condition does not hold.
        """
        with self.database.write([(bucket.id, name)]) as rows:
            old = self.current(rows, bucket, name)
            if version is not None and (old is None or old.version != version):
                result = self._delete_version(rows, bucket, name, version)
                dropped = [result.file]
            elif old is None:
                raise no_object(bucket, name)
            elif version is not None:
                conditions.check(old.etag)
                rows.execute("DELETE FROM objects WHERE bucket=? AND name=?", (bucket.id, name))
                self._promote(rows, bucket, name)
                dropped, result = [old.file], old
            else:
                conditions.check(old.etag)
                dropped, result = self.retire(rows, bucket, old), old
                if bucket.versioned:
                    result = self._mark(rows, bucket, name)
        self.database.drop(*dropped)
        return result

    def current(self, rows: sqlite3.Connection, bucket: Bucket, name: str) -> StoredObject | None:
        """The object within a transaction, or None."""
        row = rows.execute(
            f"SELECT {COLUMNS} FROM objects WHERE bucket=? AND name=?", (bucket.id, name)
        ).fetchone()
        return None if row is None else read_row(row)

    def insert(
        self,
        rows: sqlite3.Connection,
        bucket: Bucket,
        item: StoredObject,
        table: str = "objects",
    ) -> None:
        """Add a row, within a transaction."""
        rows.execute(
            f"INSERT INTO {table} (bucket, {COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)",
            (bucket.id, *item.values()),
        )

    def retire(self, rows: sqlite3.Connection, bucket: Bucket, old: StoredObject) -> list[str]:
        """Take the current version away, within a transaction; the files to drop after it."""
        rows.execute("DELETE FROM objects WHERE bucket=? AND name=?", (bucket.id, old.name))
        if not bucket.versioned:
            return [old.file]
        self.insert(rows, bucket, old, "versions")
        return []

    def _mark(self, rows: sqlite3.Connection, bucket: Bucket, name: str) -> StoredObject:
        now = self.clock()
        marker = StoredObject(
            name,
            str(uuid.uuid4()),
            str(uuid.uuid4()),
            "",
            0,
            None,
            now,
            now,
            "Standard",
            0.0,
            0.0,
            {},
        )
        self.insert(rows, bucket, marker, "versions")
        return marker

    def _delete_version(
        self, rows: sqlite3.Connection, bucket: Bucket, name: str, version: str
    ) -> StoredObject:
        row = rows.execute(
            f"SELECT {COLUMNS}, number FROM versions WHERE bucket=? AND name=? AND version=?",
            (bucket.id, name, version),
        ).fetchone()
        if row is None:
            raise no_object(bucket, name)
        rows.execute("DELETE FROM versions WHERE number=?", (row["number"],))
        if not row["file"]:
            self._promote(rows, bucket, name)
        return read_row(row)

    def _promote(self, rows: sqlite3.Connection, bucket: Bucket, name: str) -> None:
        """Make the newest older version the current one, where a marker or nothing stands."""
        if self.current(rows, bucket, name) is not None:
            return
        row = rows.execute(
            f"SELECT {COLUMNS}, number FROM versions WHERE bucket=? AND name=?"
            " ORDER BY number DESC LIMIT 1",
            (bucket.id, name),
        ).fetchone()
        if row is not None and row["file"]:
            rows.execute("DELETE FROM versions WHERE number=?", (row["number"],))
            self.insert(rows, bucket, read_row(row))

    def open(self, item: StoredObject) -> OpenFile:
        """An object's file, which is open as long as somebody refers to it.

        Raises:
            FileNotFoundError: the object was replaced meanwhile: get it again.
        """
        return self.database.recent_files.open(item.file, self.database.path(item.file))


def read_row(row: sqlite3.Row) -> StoredObject:
    """The object that a row of ``COLUMNS`` is."""
    values = list(row)
    values[11] = json.loads(values[11])
    return StoredObject(*values[:12])


def _bound(size: int, limit: int) -> None:
    if size > limit:
        raise ApiError(413, "RequestEntityTooLarge", f"The body is over {limit} bytes")


def no_object(bucket: Bucket, name: str) -> ApiError:
    """404 ``ObjectNotFound``."""
    return ApiError(
        404, "ObjectNotFound", f"The object '{name}' was not found in the bucket '{bucket.name}'"
    )
