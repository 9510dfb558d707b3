"""One object of an OCI bucket."""

from __future__ import annotations

import hashlib
import mmap
import re
from base64 import b64encode
from os import PathLike
from typing import TYPE_CHECKING

from bootstream.errors import (
    InvalidInput,
    ObjectNotFound,
    PreconditionFailed,
    Unavailable,
)
from bootstream.storage.metadata import validate_metadata
from bootstream.storage.objects import too_large
from bootstream.storage.oci.client import Client, Request, metadata_lines
from bootstream.storage.oci.connection import Connection, Head
from bootstream.storage.oci.download import download, read_range
from bootstream.storage.oci.failures import http_time
from bootstream.storage.oci.ranges import fetch, total_of
from bootstream.storage.oci.upload import PARALLEL_SAFE, Uploader, put_bytes
from bootstream.storage.protocol import (
    Metadata,
    ObjectStat,
    ReadableBuffer,
    Sink,
    Source,
    WritableBuffer,
)
from bootstream.storage.resume import Checkpoint

if TYPE_CHECKING:
    from concurrent.futures import Executor

_ETAG = re.compile(r"[!#-)+-~]+")  # visible characters, no quotes, no asterisk, no lists
_META = "opc-meta-"
_MAX_OBJECT = 10 << 40


class OCIBucketStorageObjectProvider:
    """One object, which need not exist yet. Thread safe."""

    __slots__ = ("_client", "_executor", "_parallel", "_part_size", "_path", "_target")

    def __init__(
        self, client: Client, path: str, executor: Executor, parallel: int, part_size: int | None
    ) -> None:
        self._client = client
        self._path = path
        self._executor = executor
        self._parallel = parallel
        self._part_size = part_size
        self._target = ""

    @property
    def path(self) -> str:
        """The object's path."""
        return self._path

    def _url(self) -> str:
        if not self._target:
            self._target = self._client.object_target(self._path)
        return self._target

    # -- writing ------------------------------------------------------------------------------

    def write_from_file_system(
        self, path: str | PathLike[str], *, metadata: Metadata | None = None
    ) -> None:
        """Upload a local file, in parallel parts where it is large; see the protocol."""
        self._uploader(metadata).file(path)

    def read_from(self, source: Source, *, metadata: Metadata | None = None) -> int:
        """Upload everything ``source`` has, in parallel parts; see the protocol."""
        return self._uploader(metadata).stream(source)

    def resume_from(
        self, source: Source, size: int, *, metadata: Metadata | None, checkpoint: Checkpoint
    ) -> int:
        """Upload, without the parts that are there; see ``bootstream.storage.resume``."""
        return self._uploader(metadata).resume(source, size, checkpoint)

    def _uploader(self, metadata: Metadata | None) -> Uploader:
        return Uploader(
            self._client,
            self._path,
            validate_metadata(metadata),
            self._executor,
            min(self._parallel, PARALLEL_SAFE),
            self._part_size,
            sleep=self._client.sleep,
        )

    def put(
        self,
        data: ReadableBuffer,
        *,
        if_none_match: bool = False,
        if_match: str | None = None,
        metadata: Metadata | None = None,
    ) -> str:
        """Write at once, by one PutObject; see the protocol."""
        lines = metadata_lines(validate_metadata(metadata))
        if if_none_match:
            lines += b"if-none-match: *\r\n"
        if if_match is not None:
            if _ETAG.fullmatch(if_match) is None:
                raise PreconditionFailed(
                    "no version of it has this etag", operation="write object", object=self._path
                )
            lines += f"if-match: {if_match}\r\n".encode("latin-1")
        conditional = if_none_match or if_match is not None
        try:
            return put_bytes(
                self._client,
                Request("PUT", self._url(), "write object", self._path, headers=lines),
                memoryview(data).cast("B"),
                conditional=conditional,
            )
        except ObjectNotFound as error:
            if if_match is None:
                raise
            raise PreconditionFailed(
                "it is gone",
                operation="write object",
                object=self._path,
                request_id=error.request_id,
            ) from error

    def delete(self) -> None:
        """Delete it. Deleting what is not there succeeds."""
        request = Request("DELETE", self._url(), "delete object", self._path, success=(204, 200))
        try:
            self._client.call(request)
        except ObjectNotFound:
            return

    # -- reading ------------------------------------------------------------------------------

    def write_to(self, sink: Sink) -> int:
        """Download all of it in order, in parallel pieces; see the protocol."""
        return download(self._client, self._url(), self._path, sink, self._executor, self._parallel)

    def get(self, limit: int) -> tuple[bytes, str]:
        """Read a small object whole, by one request; return its content and etag."""
        # Its pages are taken when something comes, and given back: most objects are far smaller.
        buffer = memoryview(mmap.mmap(-1, limit + 1))
        piece = fetch(self._client, self._url(), self._path, buffer, 0)
        if not piece.count:  # nothing can be asked for of an empty object, not even its etag
            found = self.stat()
            if found.size:
                raise Unavailable(
                    "it changed while it was read", operation="read object", object=self._path
                )
            return b"", found.etag
        size = piece.count if piece.total is None else piece.total
        if size > limit:
            raise too_large(size, limit, self._path)
        data = bytes(buffer[: piece.count])
        if piece.md5 is not None and "-" not in piece.md5:
            digest = hashlib.md5(data, usedforsecurity=False).digest()
            if b64encode(digest).decode() != piece.md5:
                raise Unavailable(
                    "its bytes are damaged on their way", operation="read object", object=self._path
                )
        return data, piece.etag

    def read_at(self, buffer: WritableBuffer, offset: int) -> int:
        """Fill ``buffer`` from ``offset``, by one request or, where it is large, several."""
        if offset < 0:
            raise InvalidInput("negative offset", operation="read object", object=self._path)
        view = memoryview(buffer).cast("B")
        if not len(view) or offset >= _MAX_OBJECT:
            size = self.stat().size
            if len(view) and offset < size:
                raise Unavailable(
                    "it is larger than objects can be",
                    operation="read object",
                    object=self._path,
                    transient=False,
                )
            return 0
        return read_range(
            self._client, self._url(), self._path, view, offset, self._executor, self._parallel
        )

    def stat(self) -> ObjectStat:
        """Return what is known of it: one HEAD, and where that finds nothing, why."""
        request = Request("HEAD", self._url(), "stat object", self._path, success=(200, 404))
        answer = self._client.call(request)
        if answer.status == 200:
            return self._stat(request, answer.headers, answer.headers.get("content-length", ""))
        # An answer to HEAD has no body to tell a missing object from a missing bucket.
        request = Request(
            "GET",
            self._url(),
            "stat object",
            self._path,
            headers=b"range: bytes=0-0\r\n",
            success=(200, 206, 416),
        )
        head = self._client.exchange(request, _peek)
        if head.status == 416:
            return self._stat(request, head.headers, "0")
        total = total_of(head)
        return self._stat(request, head.headers, "" if total is None else str(total))

    def _stat(self, request: Request, headers: dict[str, str], size: str) -> ObjectStat:
        etag = headers.get("etag")
        modified = http_time(headers.get("last-modified"))
        if modified is None or not etag or not size.isdecimal():
            raise Unavailable(
                "the answer does not describe an object",
                operation=request.operation,
                object=self._path,
                request_id=headers.get("opc-request-id"),
            )
        metadata = {
            name.removeprefix(_META): value
            for name, value in headers.items()
            if name.startswith(_META)
        }
        return ObjectStat(int(size), etag, modified, metadata)

    def size(self) -> int:
        """Return the size in bytes."""
        return self.stat().size

    def exists(self) -> bool:
        """Tell whether it exists."""
        try:
            self.stat()
        except ObjectNotFound:
            return False
        return True


def _peek(connection: Connection, head: Head) -> Head:
    connection.receive_body(head, 1 << 16)
    return head
