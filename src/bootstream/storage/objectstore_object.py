"""One object of a bucket through obstore; ``objectstore`` has the theory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any

from bootstream.errors import (
    AlreadyExists,
    BootstreamError,
    Conflict,
    InvalidInput,
    ObjectNotFound,
    PreconditionFailed,
    Throttled,
    Unavailable,
)
from bootstream.storage.metadata import validate_metadata
from bootstream.storage.objects import ObjectReader, too_large
from bootstream.storage.objectstore import BucketProvider, plain_etag
from bootstream.storage.objectstore_errors import parse
from bootstream.storage.objectstore_parts import PartSource, hand_over, part_size
from bootstream.storage.objectstore_reading import Ranges
from bootstream.storage.oserrors import source_error
from bootstream.storage.protocol import (
    Metadata,
    ObjectStat,
    ReadableBuffer,
    Sink,
    Source,
    WritableBuffer,
)
from bootstream.storage.resume import Checkpoint
from bootstream.storage.s3multipart import Layout, PartUpload

_FAR = 1 << 62
_AT_ONCE = 4
_ATTRIBUTES = frozenset(
    {
        "Content-Disposition",
        "Content-Encoding",
        "Content-Language",
        "Content-Type",
        "Cache-Control",
        "Storage-Class",
    }
)


class BucketObject:
    """One object, which need not exist yet. Safe to use from several threads."""

    __slots__ = ("_obstore", "_path", "_provider", "_store")

    def __init__(self, provider: BucketProvider, path: str) -> None:
        self._provider = provider
        self._path = path
        self._obstore = provider.engine.obstore
        self._store = provider.engine.once

    @property
    def path(self) -> str:
        """The object's path."""
        return self._path

    # -- writing ------------------------------------------------------------------------------

    def write_from_file_system(
        self, path: str | PathLike[str], *, metadata: Metadata | None = None
    ) -> None:
        """Upload a local file; see the protocol."""
        kept = validate_metadata(metadata)
        try:
            file = Path(path).open("rb", buffering=0)  # noqa: SIM115 - closed below
        except OSError as error:
            raise source_error(error, path) from error
        with file:
            try:
                self._upload(file, kept, os.fstat(file.fileno()).st_size)
            except OSError as error:  # the storage's own were mapped
                raise source_error(error, path) from error

    def read_from(self, source: Source, *, metadata: Metadata | None = None) -> int:
        """Upload everything ``source`` has; see the protocol.

        Up to 10,000 parts of 8 MiB, about 78 GiB; a file, whose size is known, can be larger.
        """
        return self._upload(source, validate_metadata(metadata), None)

    def resume_from(
        self, source: Source, size: int, *, metadata: Metadata | None, checkpoint: Checkpoint
    ) -> int:
        """Upload, without the parts that are there; see ``bootstream.storage.resume``.

        Where this host has nothing to sign such requests with, it is an upload as any other.
        """
        traits, engine = self._provider.traits, self._provider.engine
        length = part_size(size, traits.max_parts)
        requests = self._provider.xml_requests() if size > length else None
        if requests is None:
            return self.read_from(source, metadata=metadata)
        kept = validate_metadata(metadata)
        parallel = min(_AT_ONCE, engine.parallel)
        layout = Layout(length, traits.max_parts)
        with requests.session(parallel) as session:
            upload = PartUpload(session, self._path, kept, layout, parallel, checkpoint)
            count, etag = upload.send(source)
        self._check_upload(etag, count)
        return count

    def _upload(self, source: Source, metadata: Metadata, size: int | None) -> int:
        length = part_size(size, self._provider.traits.max_parts)
        parts = PartSource(source, length, self._provider.traits.max_parts)
        first = parts.take()
        if len(first) < length:
            self._put(first, metadata, None)
            return parts.count
        rest = parts.parts(first)
        del first  # it would stay until the end

        def upload(pieces: Iterator[bytes]) -> Any:
            return self._obstore.put(
                self._provider.engine.parts,
                self._path,
                pieces,
                attributes=self._attributes(metadata),
                use_multipart=True,
                chunk_size=length,
                max_concurrency=min(_AT_ONCE, self._provider.engine.parallel),
            )

        try:
            with self._provider.mapped("write object", self._path):
                result = hand_over(rest, upload)
        except BaseException:
            if parts.failure is not None:
                raise parts.failure from None
            raise
        self._check_upload(plain_etag(result["e_tag"]), parts.count)
        return parts.count

    def _check_upload(self, etag: str, count: int) -> None:
        """Compare sizes: parts are checked in transit, that all of them are there is not."""
        stat = self.stat()
        if stat.size != count and (not etag or stat.etag == etag):
            raise Unavailable(
                f"it has {stat.size} bytes after an upload of {count}",
                operation="write object",
                object=self._path,
            )

    def put(
        self,
        data: ReadableBuffer,
        *,
        if_none_match: bool = False,
        if_match: str | None = None,
        metadata: Metadata | None = None,
    ) -> str:
        """Write at once; see the protocol."""
        kept = validate_metadata(metadata)
        content = memoryview(data).cast("B")
        if if_match is not None:
            return self._replace(content, kept, if_match, if_none_match=if_none_match)
        if not if_none_match:
            return self._put(content, kept, None)
        self._provider.require_conditions(self._path)
        try:
            return self._put(content, kept, "create")
        except Conflict as error:
            raise self._provider.conflict(error, self._path, create=True) from error

    def _replace(
        self, content: ReadableBuffer, metadata: Metadata, if_match: str, *, if_none_match: bool
    ) -> str:
        self._provider.require_conditions(self._path)
        if if_none_match and self.exists():
            raise AlreadyExists("it exists", operation="create object", object=self._path)
        if if_none_match or not _is_etag(if_match):
            raise self._not_expected()
        version = self._version(if_match) if self._provider.traits.versions else None
        if version is None and self._provider.traits.versions:
            raise InvalidInput(
                "this storage gives its objects no generations, which a condition could name",
                operation="replace object",
                object=self._path,
                remedy="use Google's own storage, or another that has them",
            )
        mode = {"e_tag": self._provider.condition(if_match)}
        if version is not None:
            mode["version"] = version
        try:
            return self._put(content, metadata, mode)
        except (Conflict, ObjectNotFound) as error:
            raise self._provider.conflict(error, self._path, create=False) from error

    def _version(self, etag: str) -> str | None:
        """Return the version that has this etag now; raises PreconditionFailed if none."""
        try:
            meta = self._head().meta
        except ObjectNotFound:
            raise self._not_expected() from None
        if plain_etag(meta["e_tag"]) != etag:
            raise self._not_expected()
        version: str | None = meta["version"]
        return version

    def _not_expected(self) -> BootstreamError:
        return PreconditionFailed(
            "it is not the version that was expected",
            operation="replace object",
            object=self._path,
        )

    def _put(
        self, content: ReadableBuffer, metadata: Metadata, mode: str | dict[str, str] | None
    ) -> str:
        with self._provider.mapped("write object", self._path):
            try:
                result = self._obstore.put(
                    self._store,
                    self._path,
                    content,
                    attributes=self._attributes(metadata),
                    use_multipart=False,
                    mode=mode,
                )
            except self._obstore.exceptions.BaseError as error:
                answer = parse(error)
                if mode is None or not self._provider.lost_race(answer):
                    raise
                # Throttled, not Unavailable: that nothing was written is certain.
                raise Throttled(
                    "it met another write of the same object",
                    operation="write object",
                    object=self._path,
                    request_id=answer.request_id,
                ) from None
        return plain_etag(result["e_tag"]) or self.stat().etag

    def _attributes(self, metadata: Metadata) -> dict[str, str] | None:
        dash = self._provider.traits.metadata_dash
        return {key.replace("-", dash): value for key, value in metadata.items()} or None

    def copy_through_here(self, target: BucketObject, stat: ObjectStat) -> None:
        """Copy an object that is too large for a copy request of the cloud."""
        target._upload(ObjectReader(self), stat.metadata, stat.size)

    # -- reading ------------------------------------------------------------------------------

    def write_to(self, sink: Sink) -> int:
        """Download all of it, some ranges ahead; into a file, each at its place."""
        return Ranges(self._provider, self._path, self.stat).download(sink)

    def get(self, limit: int) -> tuple[bytes, str]:
        """Read a small object whole, by one request; return its content and etag."""
        with self._provider.mapped("read object", self._path):
            result = self._obstore.get(self._store, self._path)
            meta = result.meta
            if meta["size"] > limit:
                raise too_large(meta["size"], limit, self._path)
            data = bytes(result.bytes())
        if len(data) != meta["size"]:
            raise Unavailable(
                f"the body ends after {len(data)} of {meta['size']} bytes",
                operation="read object",
                object=self._path,
            )
        return data, plain_etag(meta["e_tag"])

    def read_at(self, buffer: WritableBuffer, offset: int) -> int:
        """Fill ``buffer`` from ``offset``; short only at the end.

        More than 8 MiB come in parallel ranges.
        """
        if offset < 0:
            raise InvalidInput("negative offset", operation="read object", object=self._path)
        view = memoryview(buffer).cast("B")
        if not len(view) or offset >= _FAR:
            self.stat()
            return 0
        return Ranges(self._provider, self._path, self.stat).fill(view, offset)

    # -- everything else ----------------------------------------------------------------------

    def _head(self) -> Any:
        with self._provider.mapped("stat object", self._path):
            return self._obstore.get(self._store, self._path, options={"head": True})

    def stat(self) -> ObjectStat:
        """Return what is known of it."""
        result = self._head()
        meta = result.meta
        dash = self._provider.traits.metadata_dash
        metadata = {
            key.lower().replace(dash, "-"): value
            for key, value in result.attributes.items()
            if key not in _ATTRIBUTES
        }
        return ObjectStat(meta["size"], plain_etag(meta["e_tag"]), meta["last_modified"], metadata)

    def size(self) -> int:
        """Return the size in bytes."""
        return self.stat().size

    def exists(self) -> bool:
        """Tell whether it exists."""
        try:
            self._head()
        except ObjectNotFound:
            return False
        return True

    def delete(self) -> None:
        """Delete it; what is not there is fine."""
        self._provider.delete_one(self._path)


def _is_etag(text: str) -> bool:
    """Tell whether some object could have this etag; ``*`` has another meaning in a header."""
    return text not in ("", "*") and all("!" <= c <= "~" and c not in '",' for c in text)
