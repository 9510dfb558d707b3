"""A store in memory: for tests, and for programs that embed the library."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from os import PathLike
from pathlib import Path

from bootstream.errors import AlreadyExists, InvalidInput, ObjectNotFound, PreconditionFailed
from bootstream.storage.metadata import validate_metadata
from bootstream.storage.objects import too_large
from bootstream.storage.oserrors import source_error
from bootstream.storage.paths import normalize_prefix, validate_copy, validate_path
from bootstream.storage.protocol import (
    Metadata,
    ObjectInfo,
    ObjectStat,
    ReadableBuffer,
    Sink,
    Source,
    StorageDetails,
    WritableBuffer,
)

_PIECE = 1 << 20


class MemoryStorageProvider:
    """Objects in a dictionary. Safe to use from several threads."""

    _serial = itertools.count(1)

    def __init__(self) -> None:
        self._identity = f"memory://{os.getpid()}/{next(self._serial)}"
        self.lock = threading.Lock()
        self.contents: dict[str, tuple[bytes, ObjectStat]] = {}
        self._writes = itertools.count(1)

    def open_object(self, path: str) -> MemoryStorageObject:
        """Return a handle; touches nothing."""
        return MemoryStorageObject(self, validate_path(path))

    def list_objects(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield everything that is below ``prefix`` now, in UTF-8 byte order."""
        wanted = normalize_prefix(prefix)
        with self.lock:
            found = [
                ObjectInfo(path, stat.size, stat.etag, stat.last_modified)
                for path, (_, stat) in self.contents.items()
                if path.startswith(wanted)
            ]
        return iter(sorted(found, key=lambda info: info.path.encode()))

    def copy_object(self, source: str, target: str) -> None:
        """Copy an object; see the protocol."""
        validate_copy(source, target)
        with self.lock:
            entry = self.contents.get(source)
            if entry is None:
                raise ObjectNotFound("it does not exist", operation="copy object", object=source)
            self.replace(target, entry[0], entry[1].metadata)

    def delete_objects_with_prefix(self, prefix: str) -> int:
        """Delete everything below ``prefix``; return how many objects went."""
        wanted = normalize_prefix(prefix)
        if not wanted:
            raise InvalidInput("an empty prefix would delete the whole store", operation="delete")
        with self.lock:
            doomed = [path for path in self.contents if path.startswith(wanted)]
            for path in doomed:
                del self.contents[path]
        return len(doomed)

    def signed_upload_url(self, path: str, ttl: timedelta) -> str:
        """Memory has no URLs: raises InvalidInput."""
        del ttl
        raise InvalidInput("a store in memory has no URLs", operation="sign URL", object=path)

    def collect_uploads(self, older_than: timedelta, *, dry_run: bool = False) -> int:
        """Nothing is ever left here."""
        del older_than, dry_run
        return 0

    def details(self) -> StorageDetails:
        """Describe the store."""
        return StorageDetails("memory", self._identity, datetime.now(UTC))

    def replace(self, path: str, data: bytes, metadata: Metadata | None = None) -> str:
        """Store ``data``; the caller holds the lock. Returns the new etag."""
        etag = str(next(self._writes))
        self.contents[path] = data, ObjectStat(len(data), etag, datetime.now(UTC), metadata or {})
        return etag


class MemoryStorageObject:
    """One entry of the dictionary, which need not exist yet."""

    def __init__(self, provider: MemoryStorageProvider, path: str) -> None:
        self._provider = provider
        self._path = path

    @property
    def path(self) -> str:
        """The object's path."""
        return self._path

    def _get(self) -> tuple[bytes, ObjectStat]:
        with self._provider.lock:
            entry = self._provider.contents.get(self._path)
        if entry is None:
            raise ObjectNotFound("it does not exist", operation="read object", object=self._path)
        return entry

    def write_from_file_system(
        self, path: str | PathLike[str], *, metadata: Metadata | None = None
    ) -> None:
        """Upload a local file."""
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise source_error(error, path) from error
        self.put(data, metadata=metadata)

    def read_from(self, source: Source, *, metadata: Metadata | None = None) -> int:
        """Upload everything ``source`` has."""
        validate_metadata(metadata)
        pieces = []
        while piece := bytes(source.read(_PIECE)):
            pieces.append(piece)
        data = b"".join(pieces)
        self.put(data, metadata=metadata)
        return len(data)

    def write_to(self, sink: Sink) -> int:
        """Download all of it in order."""
        data, _ = self._get()
        for start in range(0, len(data), _PIECE):
            sink.write(memoryview(data)[start : start + _PIECE])
        return len(data)

    def read_at(self, buffer: WritableBuffer, offset: int) -> int:
        """Fill ``buffer`` from ``offset``; short only at the end."""
        if offset < 0:
            raise InvalidInput("negative offset", operation="read object", object=self._path)
        data, _ = self._get()
        view = memoryview(buffer).cast("B")
        piece = memoryview(data)[offset : offset + len(view)]
        view[: len(piece)] = piece
        return len(piece)

    def get(self, limit: int) -> tuple[bytes, str]:
        """Read a small object whole; return its content and etag."""
        data, status = self._get()
        if len(data) > limit:
            raise too_large(len(data), limit, self._path)
        return data, status.etag

    def put(
        self,
        data: ReadableBuffer,
        *,
        if_none_match: bool = False,
        if_match: str | None = None,
        metadata: Metadata | None = None,
    ) -> str:
        """Write at once; see the protocol."""
        content = bytes(data)
        kept = validate_metadata(metadata)
        with self._provider.lock:
            entry = self._provider.contents.get(self._path)
            if if_none_match and entry is not None:
                raise AlreadyExists("it exists", operation="create object", object=self._path)
            if if_match is not None and (entry is None or entry[1].etag != if_match):
                raise PreconditionFailed(
                    "it is not the version that was expected",
                    operation="replace object",
                    object=self._path,
                )
            return self._provider.replace(self._path, content, kept)

    def stat(self) -> ObjectStat:
        """Return what is known of it."""
        return self._get()[1]

    def size(self) -> int:
        """Return the size in bytes."""
        return self.stat().size

    def exists(self) -> bool:
        """Tell whether it exists."""
        with self._provider.lock:
            return self._path in self._provider.contents

    def delete(self) -> None:
        """Delete it; what is not there is fine."""
        with self._provider.lock:
            self._provider.contents.pop(self._path, None)
