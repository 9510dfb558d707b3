"""Multipart uploads that never finished: listed and aborted in S3's own words.

obstore has no operation for them. These few requests are signed here (AWS Signature Version
4, "Authenticating Requests (AWS Signature Version 4)" of the S3 API reference): GET with
``uploads`` (ListMultipartUploads), DELETE with ``uploadId`` (AbortMultipartUpload).
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote, unquote_plus, urlsplit
from xml.etree import ElementTree as Xml

import urllib3

from bootstream.errors import Unavailable
from bootstream.storage.objectstore_errors import Answer

_MAX_ANSWER = 8 << 20
_EMPTY = hashlib.sha256(b"").hexdigest()
_UNRESERVED = "-._~"
_SECOND = timedelta(seconds=1)  # the service's clock is told in whole ones


@dataclass(frozen=True, slots=True)
class Keys:
    """What requests are signed with."""

    access_key: str
    secret_key: str
    session_token: str | None = None

    def __repr__(self) -> str:
        return f"Keys({self.access_key!r})"


@dataclass(frozen=True, slots=True)
class _Upload:
    key: str
    upload_id: str
    initiated: datetime


class UploadCollector:
    """Finds and aborts uploads of one bucket.

    Args:
        base: the URL that names are appended to, without a slash at its end.
        bucket: the first component of the path; empty where the host names the bucket.
        region: signed with.
        keys: give the keys of this moment, or None where there are none.
        ca_file: PEM certificates to trust.
    """

    def __init__(
        self,
        base: str,
        bucket: str,
        region: str,
        keys: Callable[[], Keys | None],
        ca_file: str | None = None,
    ) -> None:
        parts = urlsplit(base)
        self._origin = f"{parts.scheme}://{parts.netloc}"
        self._host = parts.netloc
        self._root = parts.path.rstrip("/") + (
            f"/{quote(bucket, safe=_UNRESERVED)}" if bucket else ""
        )
        self._region = region
        self._keys = keys
        self._ca_file = ca_file

    def collect(
        self,
        older_than: timedelta,
        *,
        dry_run: bool,
        error: Callable[[Answer, str], Exception],
    ) -> int:
        """Abort what began longer ago, by the service's clock; return how many there were."""
        keys = self._keys()
        if keys is None:
            return 0
        with urllib3.PoolManager(
            retries=False,
            timeout=urllib3.Timeout(connect=10, read=60),
            ca_certs=self._ca_file,
        ) as pool:
            session = _Session(self, pool, keys, error)
            stale = [
                upload
                for upload, now in session.uploads()
                if now + _SECOND - upload.initiated >= older_than
            ]
            for upload in stale:
                if not dry_run:
                    session.abort(upload)
        return len(stale)

    def request(
        self, pool: urllib3.PoolManager, keys: Keys, method: str, key: str, query: dict[str, str]
    ) -> urllib3.BaseHTTPResponse:
        """Send one signed request without a body."""
        path = self._root + (f"/{quote(key, safe=_UNRESERVED + '/')}" if key else "") or "/"
        line = "&".join(
            f"{quote(name, safe=_UNRESERVED)}={quote(value, safe=_UNRESERVED)}"
            for name, value in sorted(query.items())
        )
        headers = signed_headers(
            keys, self._region, method, self._host, path, line, datetime.now(UTC)
        )
        return pool.request(
            method, f"{self._origin}{path}?{line}", headers=headers, redirect=False,
            preload_content=False,
        )  # fmt: skip


class _Session:
    """The requests of one collection."""

    def __init__(
        self,
        collector: UploadCollector,
        pool: urllib3.PoolManager,
        keys: Keys,
        error: Callable[[Answer, str], Exception],
    ) -> None:
        self._collector = collector
        self._pool = pool
        self._keys = keys
        self._error = error

    def uploads(self) -> Iterator[tuple[_Upload, datetime]]:
        """Yield every upload, and the service's clock when it was listed."""
        query = {"uploads": "", "encoding-type": "url"}
        while True:
            body, date = self._send("GET", "", query, (200,))
            root = _parse(body)
            encoded = root.findtext("EncodingType") == "url"
            if not encoded and "encoding-type" in query:
                del query["encoding-type"]
                continue  # some then encode names in silence (Ceph), others do not (nanio)
            decode = unquote_plus if encoded else str
            for item in root.findall("Upload"):
                key = decode(item.findtext("Key", ""))
                began = _time(item.findtext("Initiated", ""))
                yield _Upload(key, item.findtext("UploadId", ""), began), date
            following = root.findtext("NextKeyMarker", ""), root.findtext("NextUploadIdMarker", "")
            before = query.get("key-marker"), query.get("upload-id-marker")
            if root.findtext("IsTruncated", "") != "true" or following == before:
                return
            query["key-marker"], query["upload-id-marker"] = decode(following[0]), following[1]

    def abort(self, upload: _Upload) -> None:
        """Abort an upload; one that is gone by now is fine."""
        self._send("DELETE", upload.key, {"uploadId": upload.upload_id}, (200, 204, 404))

    def _send(
        self, method: str, key: str, query: dict[str, str], fine: tuple[int, ...]
    ) -> tuple[bytes, datetime]:
        try:
            answer = self._collector.request(self._pool, self._keys, method, key, query)
            try:
                body = answer.read(_MAX_ANSWER + 1)
            finally:
                answer.release_conn()
        except urllib3.exceptions.HTTPError as error:
            raise Unavailable(
                f"the storage cannot be reached ({type(error).__name__})",
                operation="collect uploads",
                object=key or None,
            ) from error
        if answer.status not in fine:
            raise self._error(_answer(answer.status, body), key)
        try:
            date = parsedate_to_datetime(answer.headers.get("Date", "")).astimezone(UTC)
        except (TypeError, ValueError):
            date = datetime.now(UTC)
        return body, date


def _answer(status: int, body: bytes) -> Answer:
    text = body[:4096].decode(errors="replace")
    found = {name: re.search(f"<{name}>([^<]*)</{name}>", text) for name in _FIELDS}
    code, message, request_id = (match[1] if match else "" for match in found.values())
    kind = "FileNotFoundError" if status == 404 else "GenericError"
    return Answer(kind, "", status, code, message, request_id or None)


_FIELDS = ("Code", "Message", "RequestId")


def _parse(body: bytes) -> Any:
    """Return a document's root, with the names of its elements free of namespaces."""
    try:
        if len(body) > _MAX_ANSWER or b"<!DOCTYPE" in body[:1024]:
            body = b""  # nothing that S3 sends
        root = Xml.fromstring(body)  # noqa: S314 - bounded, and without a document type
        for element in root.iter():
            element.tag = element.tag.rpartition("}")[2]
    except (Xml.ParseError, ValueError) as error:
        raise Unavailable(
            f"the storage's list of uploads cannot be read: {error}", operation="collect uploads"
        ) from error
    return root


def _time(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise Unavailable(
            f"the storage's list of uploads has the time {ascii(text)[:40]}",
            operation="collect uploads",
        ) from None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def signed_headers(
    keys: Keys, region: str, method: str, host: str, path: str, query: str, now: datetime
) -> dict[str, str]:
    """Return the headers of a request without a body, the signature among them.

    ``path`` and ``query`` are encoded already, the query sorted by name.
    """
    time = now.strftime("%Y%m%dT%H%M%SZ")
    headers = {"host": host, "x-amz-content-sha256": _EMPTY, "x-amz-date": time}
    if keys.session_token is not None:
        headers["x-amz-security-token"] = keys.session_token
    names = ";".join(sorted(headers))
    lines = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
    canonical = "\n".join((method, path, query, lines, names, _EMPTY))
    scope = f"{time[:8]}/{region}/s3/aws4_request"
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    key = f"AWS4{keys.secret_key}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    text = f"AWS4-HMAC-SHA256\n{time}\n{scope}\n{digest}"
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    headers["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={keys.access_key}/{scope}, "
        f"SignedHeaders={names}, Signature={signature}"
    )
    return headers
