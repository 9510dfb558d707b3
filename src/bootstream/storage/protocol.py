"""The storage interface: one bucket (or folder) of named, immutable-sized objects.

What every implementation promises is written here once and checked by
``bootstream.testing.storage``; what can be derived from it lives in
``bootstream.storage.objects``.

Paths are relative, ``/``-separated, valid UTF-8 of 1 to 1024 bytes, without
empty, ``.`` or ``..`` components and without control characters;
``validate_path`` is the one judge of it. A prefix is a path, or ``""`` for
everything, and always stands for whole components: ``abc`` and ``abc/`` both
mean ``abc/``, never ``abcd/…``.

Metadata is a few short strings that an object is written with, and that ``stat``
gives back; ``validate_metadata`` is the one judge of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from os import PathLike
from typing import Protocol

ReadableBuffer = bytes | bytearray | memoryview
WritableBuffer = bytearray | memoryview
Metadata = Mapping[str, str]


class Source(Protocol):
    """Where an upload's bytes come from."""

    def read(self, size: int, /) -> ReadableBuffer:
        """Return 1 to ``size`` bytes, or none at the end. Short reads are not the end."""
        ...


class Sink(Protocol):
    """Where a download's bytes go."""

    def write(self, data: memoryview, /) -> object:
        """Take all of ``data`` before returning; it is not valid afterwards."""
        ...


@dataclass(frozen=True, slots=True)
class ObjectStat:
    """What a storage knows of one object.

    ``size`` in bytes; ``etag`` is opaque and changes with every write;
    ``last_modified`` is the storage's clock, with a time zone.
    """

    size: int
    etag: str
    last_modified: datetime
    metadata: Metadata = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One line of a listing; ``path`` is relative to the provider's root."""

    path: str
    size: int
    etag: str
    last_modified: datetime


@dataclass(frozen=True, slots=True)
class StorageDetails:
    """What a provider is: for people, for cache keys, and for telling the time.

    ``identity`` names the store itself (never a secret): two providers with the
    same identity hold the same objects. ``now`` is the storage's own clock.
    """

    provider: str
    identity: str
    now: datetime
    create_only: bool = True


class StorageObject(Protocol):
    """One object, which need not exist yet. Safe to use from several threads."""

    @property
    def path(self) -> str:
        """The object's path below the provider's root."""
        ...

    def write_from_file_system(
        self, path: str | PathLike[str], *, metadata: Metadata | None = None
    ) -> None:
        """Upload a local file, replacing the object; it appears whole or not at all.

        Metadata is replaced, too, by ``metadata`` or, where that is None, by none.

        Raises:
            InvalidInput: this is no metadata, or the store cannot keep any.
        """
        ...

    def read_from(self, source: Source, *, metadata: Metadata | None = None) -> int:
        """Upload everything ``source`` has; return the count of bytes.

        The object appears only when all of it was read and stored durably. If
        ``source`` raises, that error passes and nothing is left behind. Memory use
        does not depend on the size.
        """
        ...

    def write_to(self, sink: Sink) -> int:
        """Download all of it in order; return the count of bytes.

        Raises:
            ObjectNotFound: it does not exist.
            Unavailable: it was cut short or changed on the way, after retries.
        """
        ...

    def read_at(self, buffer: WritableBuffer, offset: int) -> int:
        """Fill ``buffer`` from ``offset``; return how many bytes it got.

        The count is short only where the object ends: 0 at or past the end. A
        body cut off in transit is an error, never a short count.
        """
        ...

    def get(self, limit: int) -> tuple[bytes, str]:
        """Read a small object whole, at one moment; return its content and etag.

        By one request where the store can: ``stat`` and ``read_at`` would be three, and each is
        a round trip that somebody waits for.

        Raises:
            ObjectNotFound: it does not exist.
            Corrupt: it is larger than ``limit`` bytes.
        """
        ...

    def put(
        self,
        data: ReadableBuffer,
        *,
        if_none_match: bool = False,
        if_match: str | None = None,
        metadata: Metadata | None = None,
    ) -> str:
        """Write a small object at once, atomically and durably; return its etag.

        Args:
            data: the whole content, some MiB at most.
            if_none_match: only if no such object exists; of many at once one wins.
            if_match: only if the object now has this etag.
            metadata: kept with the object.

        Raises:
            AlreadyExists: ``if_none_match`` was asked for and it exists.
            PreconditionFailed: ``if_match`` does not hold, also when it is gone. Of a store
                that repeats requests it may be OutcomeUnknown, for who counts its writes.
        """
        ...

    def stat(self) -> ObjectStat:
        """Return what is known of it. Raises ObjectNotFound when it does not exist."""
        ...

    def size(self) -> int:
        """Return the size in bytes. Raises ObjectNotFound when it does not exist."""
        ...

    def exists(self) -> bool:
        """Tell whether it exists; trouble on the way is raised, never taken for no."""
        ...

    def delete(self) -> None:
        """Delete it. Deleting what is not there succeeds."""
        ...


class StorageProvider(Protocol):
    """One bucket or folder. Safe to use from several threads."""

    def open_object(self, path: str) -> StorageObject:
        """Return a handle; touches nothing. Raises InvalidInput for a bad path."""
        ...

    def list_objects(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield everything below ``prefix`` in UTF-8 byte order, over all pages.

        Whatever exists during the whole listing is in it. A missing prefix is empty.
        """
        ...

    def copy_object(self, source: str, target: str) -> None:
        """Copy an object within the store, metadata too, without its bytes coming here.

        ``target`` is replaced; it appears whole or not at all. May wait for work that the
        store does on its own.

        Raises:
            ObjectNotFound: ``source`` does not exist; ``target`` stays as it is.
            InvalidInput: both are the same path.
        """
        ...

    def delete_objects_with_prefix(self, prefix: str) -> int:
        """Delete everything below ``prefix``; return how many objects went.

        Idempotent. An empty prefix is InvalidInput. Objects that could not be
        deleted are all named in the error that is raised at the end.
        """
        ...

    def signed_upload_url(self, path: str, ttl: timedelta) -> str:
        """Return a URL that lets its holder upload ``path`` for ``ttl``; a secret.

        Raises InvalidInput where the storage has no such thing.
        """
        ...

    def collect_uploads(self, older_than: timedelta, *, dry_run: bool = False) -> int:
        """Remove what uploads that never finished left; return how many there were.

        An upload that is still being written, as far as the storage can tell, stays.
        """
        ...

    def details(self) -> StorageDetails:
        """Describe the store. Raises BucketNotFound when it is not there."""
        ...
