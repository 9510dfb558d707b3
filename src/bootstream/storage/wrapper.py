"""What every wrapper of a store has in common: it hands each call on, unchanged.

A wrapper is a store around another one. It derives from these two classes and overrides only
what it intercepts; what it says nothing about reaches the store within as it was asked for.
Where the operations of objects are intercepted, ``wrap`` says with what.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from os import PathLike

from bootstream.storage.protocol import (
    Metadata,
    ObjectInfo,
    ObjectStat,
    ReadableBuffer,
    Sink,
    Source,
    StorageDetails,
    StorageObject,
    StorageProvider,
    WritableBuffer,
)
from bootstream.storage.resume import Checkpoint, upload


class ProviderWrapper:
    """``inner`` as it is. As safe to use from several threads as ``inner``.

    Args:
        inner: the store that is wrapped.
    """

    def __init__(self, inner: StorageProvider) -> None:
        self._inner = inner

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._inner!r})"

    def wrap(self, inner: StorageObject) -> StorageObject:
        """Return the handle that callers get for a handle of ``inner``."""
        return inner

    def open_object(self, path: str) -> StorageObject:
        """Return a handle; touches nothing."""
        return self.wrap(self._inner.open_object(path))

    def list_objects(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield everything below ``prefix``; see the protocol."""
        return self._inner.list_objects(prefix)

    def copy_object(self, source: str, target: str) -> None:
        """Copy an object within the store; see the protocol."""
        self._inner.copy_object(source, target)

    def delete_objects_with_prefix(self, prefix: str) -> int:
        """Delete everything below ``prefix``; return how many objects went."""
        return self._inner.delete_objects_with_prefix(prefix)

    def signed_upload_url(self, path: str, ttl: timedelta) -> str:
        """Return a URL for uploading ``path``; see the protocol."""
        return self._inner.signed_upload_url(path, ttl)

    def collect_uploads(self, older_than: timedelta, *, dry_run: bool = False) -> int:
        """Remove what unfinished uploads left; return how many there were."""
        return self._inner.collect_uploads(older_than, dry_run=dry_run)

    def details(self) -> StorageDetails:
        """Describe the store."""
        return self._inner.details()


class ObjectWrapper:
    """One object of ``inner`` as it is.

    Args:
        inner: the handle that is wrapped.
    """

    __slots__ = ("_inner",)

    def __init__(self, inner: StorageObject) -> None:
        self._inner = inner

    @property
    def path(self) -> str:
        """The object's path below the provider's root."""
        return self._inner.path

    def write_from_file_system(
        self, path: str | PathLike[str], *, metadata: Metadata | None = None
    ) -> None:
        """Upload a local file; see the protocol."""
        self._inner.write_from_file_system(path, metadata=metadata)

    def read_from(self, source: Source, *, metadata: Metadata | None = None) -> int:
        """Upload everything ``source`` has; return the count of bytes."""
        return self._inner.read_from(source, metadata=metadata)

    def resume_from(
        self, source: Source, size: int, *, metadata: Metadata | None, checkpoint: Checkpoint
    ) -> int:
        """Upload, going on with what is there; see ``bootstream.storage.resume``."""
        return upload(self._inner, source, size, metadata=metadata, checkpoint=checkpoint)

    def write_to(self, sink: Sink) -> int:
        """Download all of it in order; return the count of bytes."""
        return self._inner.write_to(sink)

    def read_at(self, buffer: WritableBuffer, offset: int) -> int:
        """Fill ``buffer`` from ``offset``; return how many bytes it got."""
        return self._inner.read_at(buffer, offset)

    def get(self, limit: int) -> tuple[bytes, str]:
        """Read a small object whole; return its content and etag."""
        return self._inner.get(limit)

    def put(
        self,
        data: ReadableBuffer,
        *,
        if_none_match: bool = False,
        if_match: str | None = None,
        metadata: Metadata | None = None,
    ) -> str:
        """Write a small object at once; return its etag."""
        return self._inner.put(
            data, if_none_match=if_none_match, if_match=if_match, metadata=metadata
        )

    def stat(self) -> ObjectStat:
        """Return what is known of it."""
        return self._inner.stat()

    def size(self) -> int:
        """Return the size in bytes."""
        return self._inner.size()

    def exists(self) -> bool:
        """Tell whether it exists."""
        return self._inner.exists()

    def delete(self) -> None:
        """Delete it; what is not there is fine."""
        self._inner.delete()
