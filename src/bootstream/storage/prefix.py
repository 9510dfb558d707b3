"""A store that is a part of another: every name gets a prefix, and nobody above sees it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

from bootstream.errors import InvalidInput
from bootstream.storage.paths import normalize_prefix, validate_path
from bootstream.storage.protocol import (
    ObjectInfo,
    StorageDetails,
    StorageObject,
    StorageProvider,
)
from bootstream.storage.wrapper import ObjectWrapper, ProviderWrapper


class PrefixStorageProvider(ProviderWrapper):
    """What lies below ``prefix`` in ``inner``, as a store of its own.

    Paths, listings and ``StorageObject.path`` are without the prefix; errors name objects
    with it, as they are called in the bucket. An empty prefix of this store is refused for
    deletion as any other is. ``collect_uploads`` is about the whole of ``inner``.

    Args:
        inner: the store around this one.
        prefix: whole components, with or without the ``/`` at the end; "" for everything.

    Raises:
        InvalidInput: this can be no prefix.
    """

    def __init__(self, inner: StorageProvider, prefix: str) -> None:
        super().__init__(inner)
        self._prefix = normalize_prefix(prefix)

    def __repr__(self) -> str:
        return f"PrefixStorageProvider({self._inner!r}, {self._prefix!r})"

    def open_object(self, path: str) -> StorageObject:
        """Return a handle; touches nothing."""
        # Judged alone first: with a prefix before it, "" or "/x" could pass for another path.
        return _PrefixObject(self._inner.open_object(self._prefix + validate_path(path)), path)

    def list_objects(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield everything below ``prefix``; see the protocol."""
        found = self._inner.list_objects(self._prefix + normalize_prefix(prefix))
        return (replace(info, path=info.path.removeprefix(self._prefix)) for info in found)

    def copy_object(self, source: str, target: str) -> None:
        """Copy an object within the prefix; see the protocol."""
        self._inner.copy_object(
            self._prefix + validate_path(source), self._prefix + validate_path(target)
        )

    def delete_objects_with_prefix(self, prefix: str) -> int:
        """Delete everything below ``prefix``; return how many objects went."""
        wanted = normalize_prefix(prefix)
        if not wanted:
            raise InvalidInput("an empty prefix would delete the whole store", operation="delete")
        return self._inner.delete_objects_with_prefix(self._prefix + wanted)

    def signed_upload_url(self, path: str, ttl: timedelta) -> str:
        """Return a URL for uploading ``path``; see the protocol."""
        return self._inner.signed_upload_url(self._prefix + validate_path(path), ttl)

    def details(self) -> StorageDetails:
        """Describe the store; its identity ends with the prefix."""
        details = self._inner.details()
        if not self._prefix:
            return details
        return replace(details, identity=f"{details.identity}/{self._prefix.removesuffix('/')}")


class _PrefixObject(ObjectWrapper):
    """An object of the store around, under its shorter name."""

    __slots__ = ("_path",)

    def __init__(self, inner: StorageObject, path: str) -> None:
        super().__init__(inner)
        self._path = path

    @property
    def path(self) -> str:
        return self._path
