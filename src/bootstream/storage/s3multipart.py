"""An upload in parts by the XML API, which another run can go on with.

obstore uploads in parts, too, but tells nobody which upload it is, so that all of it is lost
with the process. Here it is CreateMultipartUpload, UploadPart, ListParts and
CompleteMultipartUpload of the S3 API reference; Google's XML API has the same.

A part that is listed is taken for sent where its size is that of the bytes that would be sent
and its etag their md5. An etag that is no md5 (objects encrypted with keys of KMS have such)
is never the same, so there every part is sent again, and nothing is wrong. A token is
``PART-SIZE ID``, since parts of another size would not be the same parts.

A part that fails is sent again here, some times: nobody above has its bytes.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar
from xml.sax.saxutils import escape

from bootstream.errors import (
    BootstreamError,
    BucketNotFound,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from bootstream.storage.objectstore_parts import PartSource, in_order
from bootstream.storage.protocol import Source
from bootstream.storage.resume import Checkpoint
from bootstream.storage.s3requests import Reply, XmlSession, parse_xml, refusal

T = TypeVar("T")

_OPERATION = "write object"
_ATTEMPTS = 5
_LONGEST_WAIT = 30.0
_PAGES = 10_000


@dataclass(frozen=True, slots=True)
class Layout:
    """How an object is cut: bytes of a part, and how many there can be."""

    part_size: int
    max_parts: int


class PartUpload:
    """One upload.

    Args:
        session: requests to the bucket, over as many connections as ``parallel``.
        key: the object's name.
        metadata: valid metadata of the object.
        layout: how it is cut.
        parallel: parts that are sent at once; so many are in memory, and one more.
        checkpoint: where the upload is written down.
        sleep: waits so many seconds.
    """

    def __init__(
        self,
        session: XmlSession,
        key: str,
        metadata: Mapping[str, str],
        layout: Layout,
        parallel: int,
        checkpoint: Checkpoint,
        *,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._session = session
        self._key = key
        self._metadata = metadata
        self._layout = layout
        self._parallel = parallel
        self._checkpoint = checkpoint
        self._sleep = sleep
        self._there: Mapping[int, tuple[int, str]] = {}

    def send(self, source: Source) -> tuple[int, str]:
        """Upload everything ``source`` has; return the count of bytes, and the object's etag."""
        parts = PartSource(source, self._layout.part_size, self._layout.max_parts)
        upload = self._begin()
        try:
            calls = self._calls(parts, upload)
            etags = list(in_order(calls, self._parallel, self._parallel))
            etag = self._complete(upload, etags)
        except BaseException as error:
            self._end(upload, error)
            if parts.failure is not None:
                raise parts.failure from None
            raise
        self._checkpoint.forget()
        return parts.count, etag

    def _calls(self, parts: PartSource, upload: str) -> Iterator[Callable[[], str]]:
        for number, data in enumerate(parts.parts(parts.take()), 1):
            yield partial(self._part, upload, number, data)
            data = b""  # noqa: PLW2901 - it is freed while the next one is read

    def _part(self, upload: str, number: int, data: bytes) -> str:
        size, etag = self._there.get(number, (-1, ""))
        if size == len(data) and etag == hashlib.md5(data, usedforsecurity=False).hexdigest():
            self._checkpoint.found(size)
            return etag
        query = {"uploadId": upload, "partNumber": str(number)}

        def send() -> str:
            etag = _etag(self._send("PUT", query, body=data).headers.get("etag"))
            if not etag:
                raise Unavailable(
                    "the answer does not say what was written",
                    operation=_OPERATION,
                    object=self._key,
                )
            return etag

        return self._patiently(send)

    # -- beginning and ending -----------------------------------------------------------------

    def _begin(self) -> str:
        """Return the upload to send parts to: one that was broken off, or a new one."""
        stale = self._checkpoint.outdated()
        token = self._checkpoint.recorded()
        size, _, upload = (token or "").partition(" ")
        if token is not None and (size != str(self._layout.part_size) or not upload):
            stale, upload = token, ""
        if stale is not None:
            self._abort(stale.partition(" ")[2])
        if upload:
            try:
                self._there = self._patiently(lambda: self._list(upload))
            except BucketNotFound:
                raise
            except (NotFound, PermissionDenied):  # it is gone, or nobody may see what it has
                self._checkpoint.forget()
            else:
                return upload
        self._there = {}
        upload = self._patiently(self._create)
        self._checkpoint.record(f"{self._layout.part_size} {upload}")
        return upload

    def _create(self) -> str:
        meta = self._session.bucket.meta
        headers = {f"{meta}{name}": value for name, value in self._metadata.items()}
        headers["content-type"] = "application/octet-stream"
        reply = self._send("POST", {"uploads": ""}, headers=headers)
        upload: str = parse_xml(reply.body, _OPERATION).findtext("UploadId", "")
        if not upload:
            raise Unavailable("the answer names no upload", operation=_OPERATION, object=self._key)
        return upload

    def _list(self, upload: str) -> dict[int, tuple[int, str]]:
        found: dict[int, tuple[int, str]] = {}
        query = {"uploadId": upload}
        for _ in range(_PAGES):
            root = parse_xml(self._send("GET", query).body, _OPERATION)
            for item in root.findall("Part"):
                number, size = item.findtext("PartNumber", ""), item.findtext("Size", "")
                if number.isdecimal() and size.isdecimal():
                    found[int(number)] = int(size), _etag(item.findtext("ETag"))
            following = root.findtext("NextPartNumberMarker", "")
            if root.findtext("IsTruncated", "") != "true":
                break
            if following == query.get("part-number-marker"):
                break
            query["part-number-marker"] = following
        return found

    def _complete(self, upload: str, etags: list[str]) -> str:
        items = "".join(
            f'<Part><PartNumber>{number}</PartNumber><ETag>"{escape(etag)}"</ETag></Part>'
            for number, etag in enumerate(etags, 1)
        )
        body = f"<CompleteMultipartUpload>{items}</CompleteMultipartUpload>".encode()
        unknown = False

        def complete() -> str:
            nonlocal unknown
            try:
                reply = self._send("POST", {"uploadId": upload}, body=body)
            except NotFound:
                # The answer to an attempt before this one may have been lost.
                if unknown and self._is_complete(etags):
                    return _combined(etags)
                raise
            except BootstreamError:
                unknown = True
                raise
            return _etag(parse_xml(reply.body, _OPERATION).findtext("ETag"))

        try:
            return self._patiently(complete)
        except BucketNotFound:
            raise
        except NotFound as error:
            raise Unavailable(
                "the upload was aborted by somebody else",
                operation=_OPERATION,
                object=self._key,
                request_id=error.request_id,
            ) from error

    def _is_complete(self, etags: list[str]) -> bool:
        try:
            found = self._session.send("HEAD", self._key, {}, operation=_OPERATION)
        except BootstreamError:
            return False
        return bool(etags) and _etag(found.headers.get("etag")) == _combined(etags)

    def _end(self, upload: str, error: BaseException) -> None:
        """Abort an upload that failed, unless another run is to go on with it."""
        if self._checkpoint.keep:
            return
        if self._abort(upload):
            self._checkpoint.forget()
        else:
            error.add_note("its parts could not be removed; collecting uploads removes them")

    def _abort(self, upload: str) -> bool:
        try:
            self._session.send(
                "DELETE", self._key, {"uploadId": upload},
                operation="abort upload", fine=(200, 204, 404),
            )  # fmt: skip
        except BootstreamError:
            return False
        return True

    # -- requests -----------------------------------------------------------------------------

    def _send(
        self,
        method: str,
        query: Mapping[str, str],
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> Reply:
        reply = self._session.send(
            method, self._key, query, operation=_OPERATION, headers=headers, body=body
        )
        failed = refusal(reply.body) if method == "POST" else None
        if failed is not None:
            raise Unavailable(
                f"the storage says {failed.code}", operation=_OPERATION, object=self._key,
                request_id=failed.request_id,
            )  # fmt: skip
        return reply

    def _patiently(self, call: Callable[[], T]) -> T:
        """Return what ``call`` returns; some times again after transient errors."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return call()
            except BootstreamError as error:
                if attempt == _ATTEMPTS or not error.transient:
                    raise
                wait = random.uniform(0, 0.1 * 2**attempt)  # noqa: S311 - no secret
                self._sleep(wait + min(error.retry_after or 0.0, _LONGEST_WAIT))
        raise AssertionError  # not reached


def _etag(text: str | None) -> str:
    return (text or "").strip().strip('"')


def _combined(etags: list[str]) -> str:
    """Return the etag of an object of these parts: the md5 of their md5s, and their count."""
    try:
        digests = b"".join(bytes.fromhex(etag) for etag in etags)
    except ValueError:
        return ""
    return f"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(etags)}"
