"""What the object storage knows, in SQLite; what it keeps, in files that never change.

::

    data/
    ├── lock            held while a server runs: two would not see each other's locks
    ├── objects.db      buckets, objects, uploads, parts, pre-authenticated and work requests
    └── files/ab/abcd…  one file to an object or part, named at random

A file is written whole before its row is: a server that is killed leaves files without rows,
which the next start removes, and never an object in part. A process may be killed at any time;
against a loss of power the database is consistent, and the newest objects may be lost.

Writers take turns: every condition of a request is checked in the transaction that acts on it.
Readers do not wait for them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import queue
import sqlite3
import threading
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bootstream.errors import Conflict, Corrupt
from bootstream.localoci.recent import RecentFiles, RecentObjects

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

VERSION = 1
_READERS = 16  # connections, each of which has files of its own
_CHECKPOINT = 8000  # pages of 4 KiB that are written to the log before writers wait for the disk

_SCHEMA = """
CREATE TABLE buckets (
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, details TEXT NOT NULL
);
CREATE TABLE objects (
    bucket INTEGER NOT NULL REFERENCES buckets, name TEXT NOT NULL,
    etag TEXT NOT NULL, version TEXT NOT NULL, file TEXT NOT NULL, size INTEGER NOT NULL,
    md5 TEXT, created REAL NOT NULL, modified REAL NOT NULL, tier TEXT NOT NULL,
    ready REAL NOT NULL DEFAULT 0, restored REAL NOT NULL DEFAULT 0, headers TEXT NOT NULL,
    PRIMARY KEY (bucket, name)
) WITHOUT ROWID;
CREATE TABLE versions (
    bucket INTEGER NOT NULL REFERENCES buckets, name TEXT NOT NULL,
    etag TEXT NOT NULL, version TEXT NOT NULL, file TEXT NOT NULL, size INTEGER NOT NULL,
    md5 TEXT, created REAL NOT NULL, modified REAL NOT NULL, tier TEXT NOT NULL,
    ready REAL NOT NULL DEFAULT 0, restored REAL NOT NULL DEFAULT 0, headers TEXT NOT NULL,
    number INTEGER PRIMARY KEY
);
CREATE INDEX versions_by_name ON versions (bucket, name, number);
CREATE TABLE uploads (
    id TEXT PRIMARY KEY, bucket INTEGER NOT NULL REFERENCES buckets, name TEXT NOT NULL,
    created REAL NOT NULL, details TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE parts (
    upload TEXT NOT NULL REFERENCES uploads ON DELETE CASCADE, number INTEGER NOT NULL,
    etag TEXT NOT NULL, md5 TEXT NOT NULL, size INTEGER NOT NULL, file TEXT NOT NULL,
    sums TEXT NOT NULL,
    PRIMARY KEY (upload, number)
) WITHOUT ROWID;
CREATE TABLE pars (
    id TEXT PRIMARY KEY, bucket INTEGER NOT NULL REFERENCES buckets, token TEXT NOT NULL UNIQUE,
    details TEXT NOT NULL, expires REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE work (id TEXT PRIMARY KEY, created REAL NOT NULL, details TEXT NOT NULL)
    WITHOUT ROWID;
"""


class Database:
    """The data folder of one server. Thread safe.

    Raises:
        Conflict: another server has the folder.
        Corrupt: the database is not one, or of another version.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = folder / "files"
        self.files.mkdir(parents=True, exist_ok=True)
        self._lock_file = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock_file)
            raise Conflict(
                "another local OCI uses the folder",
                operation="open",
                object=str(folder),
                remedy="stop it, or choose another data folder",
            ) from None
        self.recent, self.recent_files = RecentObjects(), RecentFiles()
        self._folders: set[str] = set()  # those of files/ that exist
        self._turn = threading.Lock()
        self._readers: queue.LifoQueue[sqlite3.Connection] = queue.LifoQueue()
        self._every: list[sqlite3.Connection] = []
        try:
            self._writer = self._connect()
            self._prepare()
            self._collect()
        except sqlite3.DatabaseError as error:
            self.close()
            raise Corrupt(str(error), operation="open", object=str(folder)) from None
        except BaseException:
            self.close()
            raise

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.folder / "objects.db",
            isolation_level=None,
            check_same_thread=False,
            cached_statements=256,
        )
        self._every.append(connection)
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute(f"PRAGMA wal_autocheckpoint={_CHECKPOINT}")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA busy_timeout=10000")
        return connection

    def _prepare(self) -> None:
        version = self._writer.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            self._writer.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version={VERSION}; COMMIT;")
        elif version != VERSION:
            raise Corrupt(
                f"its format is {version}, and this server knows {VERSION}",
                operation="open",
                object=str(self.folder),
                remedy="use another data folder",
            )

    def _collect(self) -> None:
        """Remove the files that no row names: of requests that a kill ended."""
        known = {
            row[0].partition("@")[0]
            for table in ("objects", "versions", "parts")
            for row in self._writer.execute(f"SELECT file FROM {table}")  # noqa: S608 - constants
        }
        for path in self.files.glob("??/*"):
            if path.name not in known:
                path.unlink()

    def new_file(self) -> str:
        """A name for a new file, whose folder exists."""
        name = uuid.uuid4().hex
        if name[:2] not in self._folders:
            (self.files / name[:2]).mkdir(exist_ok=True)
            self._folders.add(name[:2])
        return name

    def path(self, name: str) -> str:
        """Where a file is."""
        return f"{self.files}/{name[:2]}/{name}"

    def drop(self, *names: str) -> None:
        """Remove files that no row names any more; who reads one reads on."""
        for name in names:
            if name:
                self.recent_files.drop(name)
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.path(name))  # noqa: PTH108 - half the time of Path's

    @contextlib.contextmanager
    def write(
        self, touched: Iterable[tuple[int, str]] | None = None
    ) -> Iterator[sqlite3.Connection]:
        """A transaction: kept when the block ends, undone when it raises.

        ``touched`` are the only rows of ``objects`` that it changes, by bucket and name; None
        for any.
        """
        with self._turn:
            self.recent.begin(touched)
            try:
                self._writer.execute("BEGIN IMMEDIATE")
                try:
                    yield self._writer
                except BaseException:
                    self._writer.execute("ROLLBACK")
                    raise
                self._writer.execute("COMMIT")
            except BaseException:
                self.recent.end(kept=False)
                raise
            self.recent.end(kept=True)

    @contextlib.contextmanager
    def _reader(self) -> Iterator[sqlite3.Connection]:
        try:
            connection = self._readers.get_nowait()
        except queue.Empty:
            connection = self._another()
        try:
            yield connection
        finally:
            self._readers.put(connection)

    def _another(self) -> sqlite3.Connection:
        """One reader more, or the next that is free."""
        with self._turn:
            if len(self._every) <= _READERS:
                return self._connect()
        return self._readers.get()

    def row(self, query: str, *values: Any) -> sqlite3.Row | None:
        """The first row of a query, as committed now."""
        with self._reader() as connection:
            row: sqlite3.Row | None = connection.execute(query, values).fetchone()
            return row

    def rows(self, query: str, *values: Any) -> list[sqlite3.Row]:
        """All rows of a query, as committed now; the query has a limit."""
        with self._reader() as connection:
            return connection.execute(query, values).fetchall()

    def close(self) -> None:
        """Close, when no request is in work any more. Idempotent."""
        self.recent_files.clear()
        every, self._every = self._every, []
        for connection in every:
            connection.close()
        if self._lock_file >= 0:
            os.close(self._lock_file)
            self._lock_file = -1
