"""What the registry knows: repositories, their images, and the versions (tags) of these.

An image is a manifest of a repository, of any type: one image may have several versions, or none.
The bytes are the real registry's; a row here says that they are an image. Deleting an image
takes its versions away and marks the row, so that it can be restored; removing a version leaves
the image.

Everything is in SQLite, in ``registry.db``, over one connection: who reads sees the last write.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import sqlite3
import threading
from typing import TYPE_CHECKING, Any

from bootstream.errors import Corrupt
from bootstream.localoci.keys import make_ocid
from bootstream.localoci.registry.values import (
    Changed,
    Exists,
    Image,
    Immutable,
    Repository,
    Version,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

_VERSION = 1
_SCHEMA = """
CREATE TABLE repositories (
    id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, folder TEXT NOT NULL UNIQUE,
    compartment TEXT NOT NULL, immutable INTEGER NOT NULL, public INTEGER NOT NULL,
    details TEXT NOT NULL, created REAL NOT NULL, created_by TEXT NOT NULL, pushed REAL
);
CREATE TABLE images (
    id TEXT PRIMARY KEY, repository TEXT NOT NULL REFERENCES repositories ON DELETE CASCADE,
    digest TEXT NOT NULL, media_type TEXT NOT NULL, size INTEGER NOT NULL, layers TEXT NOT NULL,
    created REAL NOT NULL, created_by TEXT NOT NULL, state TEXT NOT NULL,
    last_version TEXT, pulls INTEGER NOT NULL DEFAULT 0, pulled REAL,
    UNIQUE (repository, digest)
);
CREATE TABLE versions (
    repository TEXT NOT NULL REFERENCES repositories ON DELETE CASCADE, version TEXT NOT NULL,
    image TEXT NOT NULL REFERENCES images ON DELETE CASCADE, number INTEGER PRIMARY KEY,
    created REAL NOT NULL, created_by TEXT NOT NULL,
    UNIQUE (repository, version)
);
CREATE INDEX versions_by_image ON versions (image);
"""


class Catalogue:
    """The database. Thread safe; each method is one transaction.

    Args:
        path: its file; made when missing.
        region: of new OCIDs.
        clock: seconds since the epoch.

    Raises:
        Corrupt: the file is not one of ours, or of another version.
    """

    def __init__(self, path: Path, *, region: str, clock: Callable[[], float]) -> None:
        self._region = region
        self._clock = clock
        self._lock = threading.Lock()
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            self._database.execute("PRAGMA foreign_keys = ON")
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = NORMAL")
            version = self._database.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                self._database.executescript(
                    f"BEGIN; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;"
                )
            elif version != _VERSION:
                raise sqlite3.DatabaseError(f"version {version}")
        except sqlite3.Error as error:
            self._database.close()
            raise Corrupt(
                f"the registry's database cannot be used ({error})",
                operation="open",
                object=str(path),
                remedy="remove the folder; the images in it are lost",
            ) from error

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")

    # Repositories

    def repositories(self) -> list[Repository]:
        """All repositories, by name."""
        with self._transaction() as database:
            rows = database.execute("SELECT * FROM repositories ORDER BY name")
            return [_repository(row) for row in rows]

    def repository(self, *, name: str | None = None, ocid: str = "") -> Repository | None:
        """The repository of a name, or of an OCID."""
        with self._transaction() as database:
            return self._find(database, name, ocid)

    @staticmethod
    def _find(database: sqlite3.Connection, name: str | None, ocid: str = "") -> Repository | None:
        column, value = ("id", ocid) if name is None else ("name", name)
        row = database.execute(
            f"SELECT * FROM repositories WHERE {column} = ?",  # noqa: S608 - one of two words
            (value,),
        ).fetchone()
        return None if row is None else _repository(row)

    def create(
        self,
        name: str,
        compartment: str,
        creator: str,
        *,
        immutable: bool = False,
        public: bool = False,
        details: Mapping[str, Any] | None = None,
    ) -> Repository:
        """Make a repository.

        Raises:
            Exists: there is one of the name.
        """
        ocid = make_ocid("containerrepo", self._region)
        row = (
            *(ocid, name, f"r/{secrets.token_hex(12)}", compartment, immutable, public),
            *(json.dumps(details or {}), self._clock(), creator, None),
        )
        with self._transaction() as database:
            try:
                database.execute("INSERT INTO repositories VALUES (?,?,?,?,?,?,?,?,?,?)", row)
            except sqlite3.IntegrityError:
                raise Exists from None
            made = self._find(database, None, ocid)
        assert made is not None
        return made

    def update(
        self,
        ocid: str,
        *,
        immutable: bool,
        public: bool,
        details: Mapping[str, Any],
        etag: str | None = None,
    ) -> Repository | None:
        """Change a repository; None if it is gone.

        Raises:
            Changed: it has another etag.
        """
        with self._transaction() as database:
            _unchanged(self._find(database, None, ocid), etag)
            database.execute(
                "UPDATE repositories SET immutable = ?, public = ?, details = ? WHERE id = ?",
                (immutable, public, json.dumps(details), ocid),
            )
            return self._find(database, None, ocid)

    def delete(self, ocid: str, etag: str | None = None) -> None:
        """Delete a repository with its images.

        Raises:
            Changed: it has another etag.
        """
        with self._transaction() as database:
            _unchanged(self._find(database, None, ocid), etag)
            database.execute("DELETE FROM repositories WHERE id = ?", (ocid,))

    # Images

    def put(
        self,
        repository: Repository,
        digest: str,
        version: str | None,
        *,
        media_type: str,
        size: int,
        layers: Mapping[str, int],
        creator: str,
    ) -> bool:
        """Add a manifest, or have it again, and let a version name it; False: no repository.

        Raises:
            Immutable: the version names another image and may not move; nothing has changed.
        """
        now = self._clock()
        with self._transaction() as database:
            held = self._find(database, None, repository.id)
            if held is None:
                return False
            row = database.execute(
                "SELECT id FROM images WHERE repository = ? AND digest = ?", (held.id, digest)
            ).fetchone()
            image = row[0] if row else make_ocid("containerimage", self._region)
            if version is not None and held.immutable:
                named = self._named(database, held.id, version)
                if named is not None and named != image:
                    raise Immutable
            if row is None:
                database.execute(
                    "INSERT INTO images VALUES (?,?,?,?,?,?,?,?,'AVAILABLE',NULL,0,NULL)",
                    (image, held.id, digest, media_type, size, json.dumps(layers), now, creator),
                )
            database.execute("UPDATE images SET state = 'AVAILABLE' WHERE id = ?", (image,))
            if version is not None:
                self._name(database, held.id, image, version, creator)
            database.execute("UPDATE repositories SET pushed = ? WHERE id = ?", (now, held.id))
        return True

    @staticmethod
    def _named(database: sqlite3.Connection, repository: str, version: str) -> str | None:
        row = database.execute(
            "SELECT image FROM versions WHERE repository = ? AND version = ?",
            (repository, version),
        ).fetchone()
        return None if row is None else str(row[0])

    def _name(
        self, database: sqlite3.Connection, repository: str, image: str, version: str, creator: str
    ) -> None:
        database.execute(
            "REPLACE INTO versions (repository, version, image, created, created_by) "
            "VALUES (?,?,?,?,?)",
            (repository, version, image, self._clock(), creator),
        )
        database.execute("UPDATE images SET last_version = ? WHERE id = ?", (version, image))

    def resolve(self, repository: Repository, reference: str) -> Image | None:
        """The available image of a version, or of a digest."""
        with self._transaction() as database:
            if ":" in reference:
                condition = "digest = ?"
            else:
                condition = "id = (SELECT image FROM versions WHERE repository = i.repository"
                condition += " AND version = ?)"
            found = self._images(
                database,
                f"repository = ? AND state = 'AVAILABLE' AND {condition}",
                (repository.id, reference),
            )
            return found[0] if found else None

    def image(self, ocid: str) -> Image | None:
        """The image of an OCID, in any state."""
        with self._transaction() as database:
            return self._image(database, ocid)

    def images(self, repository: str | None = None) -> list[Image]:
        """All images, or those of a repository's OCID; in any state, oldest first."""
        with self._transaction() as database:
            if repository is None:
                return self._images(database, "TRUE", ())
            return self._images(database, "repository = ?", (repository,))

    def _images(
        self, database: sqlite3.Connection, condition: str, values: tuple[str, ...]
    ) -> list[Image]:
        rows = database.execute(
            f"SELECT * FROM images AS i WHERE {condition} ORDER BY created, id",  # noqa: S608 - written above
            values,
        ).fetchall()
        repositories = {
            row[0]: _repository(row) for row in database.execute("SELECT * FROM repositories")
        }
        versions: dict[str, list[Version]] = {}
        one = rows[0][0] if len(rows) == 1 else None
        for image, *version in database.execute(
            "SELECT image, version, created, created_by FROM versions "
            "WHERE ? IS NULL OR image = ? ORDER BY number",
            (one, one),
        ):
            versions.setdefault(image, []).append(Version(*version))
        images = []
        for row in rows:
            fields: list[Any] = [row[0], repositories[row[1]], *row[2:5], json.loads(row[5])]
            fields += [*row[6:], tuple(versions.get(row[0], ()))]
            images.append(Image(*fields))
        return images

    def _image(self, database: sqlite3.Connection, ocid: str) -> Image | None:
        found = self._images(database, "id = ?", (ocid,))
        return found[0] if found else None

    def delete_image(self, ocid: str, etag: str | None = None) -> None:
        """Take an image's versions away, and mark it deleted.

        Raises:
            Changed: it has another etag.
        """
        with self._transaction() as database:
            _unchanged(self._image(database, ocid), etag)
            database.execute("DELETE FROM versions WHERE image = ?", (ocid,))
            database.execute("UPDATE images SET state = 'DELETED' WHERE id = ?", (ocid,))

    def restore_image(self, ocid: str, version: str, creator: str, etag: str | None = None) -> bool:
        """Make a deleted image available again, with a version; False: it is not deleted.

        Raises:
            Changed: it has another etag.
            Immutable: the version names another image and may not move.
        """
        with self._transaction() as database:
            image = self._image(database, ocid)
            _unchanged(image, etag)
            if image is None or image.state != "DELETED":
                return False
            repository = image.repository
            if repository.immutable and self._named(database, repository.id, version):
                raise Immutable
            database.execute("UPDATE images SET state = 'AVAILABLE' WHERE id = ?", (ocid,))
            self._name(database, repository.id, ocid, version, creator)
        return True

    def remove_version(self, ocid: str, version: str, etag: str | None = None) -> bool:
        """Take one version away from an image; False: it has none of that name.

        Raises:
            Changed: the image has another etag.
        """
        with self._transaction() as database:
            _unchanged(self._image(database, ocid), etag)
            return bool(
                database.execute(
                    "DELETE FROM versions WHERE image = ? AND version = ?", (ocid, version)
                ).rowcount
            )

    def versions(self, repository: Repository) -> list[str]:
        """The versions of a repository, in order."""
        with self._transaction() as database:
            rows = database.execute(
                "SELECT version FROM versions WHERE repository = ? ORDER BY version",
                (repository.id,),
            )
            return [row[0] for row in rows]

    def pulled(self, ocid: str) -> None:
        """Count that an image was pulled."""
        with self._transaction() as database:
            database.execute(
                "UPDATE images SET pulls = pulls + 1, pulled = ? WHERE id = ?",
                (self._clock(), ocid),
            )

    def close(self) -> None:
        """Close the file. Idempotent."""
        with self._lock:
            self._database.close()


def _unchanged(held: Image | Repository | None, etag: str | None) -> None:
    if etag is not None and held is not None and held.etag != etag:
        raise Changed


def _repository(row: Sequence[Any]) -> Repository:
    ocid, name, folder, compartment, immutable, public, details, *times = row
    return Repository(
        *(ocid, name, folder, compartment, bool(immutable), bool(public)),
        json.loads(details),
        *times,
    )
