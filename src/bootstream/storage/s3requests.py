"""Requests of S3's XML API that obstore has no operation for: signed and sent here.

They are few: those about multipart uploads (``s3uploads``, ``s3multipart``). Amazon and what
speaks like it sign them by AWS Signature Version 4 ("Authenticating Requests (AWS Signature
Version 4)" of the S3 API reference); Google's XML API has the same requests ("XML API
multipart uploads" of its documentation) and takes a bearer token.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from urllib.parse import quote, unquote, urlsplit
from xml.etree import ElementTree as Xml

from bootstream.errors import Unavailable
from bootstream.proxies import NO_PROXIES, Proxies
from bootstream.storage.objectstore_errors import Answer
from bootstream.storage.protocol import ReadableBuffer

if TYPE_CHECKING:
    import urllib3

_MAX_ANSWER = 8 << 20
_EMPTY = hashlib.sha256(b"").hexdigest()
_UNRESERVED = "-._~"
_FIELDS = ("Code", "Message", "RequestId")


@dataclass(frozen=True, slots=True)
class Keys:
    """What requests are signed with."""

    access_key: str
    secret_key: str
    session_token: str | None = None

    def __repr__(self) -> str:
        return f"Keys({self.access_key!r})"


class Unsigned(NamedTuple):
    """What a signature is about. ``path`` and ``query`` are encoded, the query sorted by name.

    ``headers`` have lower-case names; ``digest`` is the body's sha256 in hexadecimal.
    """

    method: str
    host: str
    path: str
    query: str
    headers: Mapping[str, str] = MappingProxyType({})
    digest: str = _EMPTY


class Signer(Protocol):
    """Signs requests."""

    def __call__(self, request: Unsigned, /) -> dict[str, str] | None:
        """Return all headers to send, or None where there is nothing to sign with."""
        ...


class Reply(NamedTuple):
    """A success."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def date(self) -> datetime:
        """The service's clock, or this host's where it tells none."""
        try:
            return parsedate_to_datetime(self.headers.get("Date", "")).astimezone(UTC)
        except (TypeError, ValueError):
            return datetime.now(UTC)


class XmlBucket:
    """One bucket, as the XML API has it. Safe to use from several threads.

    Args:
        base: the URL that names are appended to, without a slash at its end.
        bucket: the first component of the path; empty where the host names the bucket.
        signer: signs.
        error: makes an error of a refusal, the operation and the object.
        meta: what headers of metadata begin with.
        ca_file: PEM certificates to trust.
        proxies: the proxies of this process.
    """

    def __init__(
        self,
        base: str,
        bucket: str,
        signer: Signer,
        error: Callable[[Answer, str, str], Exception],
        *,
        meta: str = "x-amz-meta-",
        ca_file: str | None = None,
        proxies: Proxies = NO_PROXIES,
    ) -> None:
        parts = urlsplit(base)
        self.meta = meta
        self._origin = f"{parts.scheme}://{parts.netloc}"
        self._host = parts.netloc
        self._root = parts.path.rstrip("/") + (
            f"/{quote(bucket, safe=_UNRESERVED)}" if bucket else ""
        )
        self._signer = signer
        self._error = error
        self._ca_file = ca_file
        self._proxies = proxies

    def can_sign(self) -> bool:
        """Tell whether there is anything to sign with; may ask for a token."""
        return self._signer(Unsigned("GET", self._host, "/", "")) is not None

    @contextmanager
    def session(self, connections: int = 1) -> Iterator[XmlSession]:
        """Yield what sends requests, with so many connections that are kept."""
        with http_pool(self._origin, self._ca_file, self._proxies, connections) as pool:
            yield XmlSession(self, pool)

    def send(
        self, pool: Any, method: str, key: str, query: Mapping[str, str], *, operation: str,
        headers: Mapping[str, str], body: ReadableBuffer, fine: tuple[int, ...],
    ) -> Reply:  # fmt: skip
        """Send one signed request; see ``XmlSession.send``."""
        import urllib3  # noqa: PLC0415 - not needed for most

        path = self._root + (f"/{quote(key, safe=_UNRESERVED + '/')}" if key else "") or "/"
        line = "&".join(
            f"{quote(name, safe=_UNRESERVED)}={quote(value, safe=_UNRESERVED)}"
            for name, value in sorted(query.items())
        )
        digest = hashlib.sha256(body).hexdigest() if len(body) else _EMPTY
        signed = self._signer(Unsigned(method, self._host, path, line, headers, digest))
        try:
            answer = pool.request(
                method,
                f"{self._origin}{path}?{line}",
                headers={} if signed is None else signed,
                body=body if len(body) else None,
                redirect=False,
                preload_content=False,
            )
            try:
                data = answer.read(_MAX_ANSWER + 1)
            finally:
                answer.release_conn()
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Unavailable(
                f"the storage cannot be reached ({type(error).__name__})",
                operation=operation,
                object=key or None,
            ) from error
        if answer.status not in fine:
            raise self._error(_answer(answer.status, data), operation, key)
        return Reply(answer.status, answer.headers, data)


class XmlSession:
    """Requests to one bucket over connections that are kept. Safe from several threads."""

    def __init__(self, bucket: XmlBucket, pool: Any) -> None:
        self.bucket = bucket
        self._pool = pool

    def send(
        self,
        method: str,
        key: str,
        query: Mapping[str, str],
        *,
        operation: str,
        headers: Mapping[str, str] | None = None,
        body: ReadableBuffer = b"",
        fine: tuple[int, ...] = (200,),
    ) -> Reply:
        """Send one signed request and return its answer; nothing is repeated.

        Args:
            method: of HTTP.
            key: the object's name, "" for the bucket.
            query: parameters, not encoded.
            operation: for errors.
            headers: further ones, with lower-case names.
            body: sent as it is.
            fine: statuses that are no errors.

        Raises:
            BootstreamError: as the bucket's ``error`` says; Unavailable without an answer.
        """
        return self.bucket.send(
            self._pool, method, key, query,
            operation=operation, headers=headers or {}, body=body, fine=fine,
        )  # fmt: skip


@contextmanager
def http_pool(
    url: str, ca_file: str | None, proxies: Proxies, connections: int = 1
) -> Iterator[urllib3.PoolManager]:
    """Yield a pool of connections to where ``url`` is, through its proxy if it has one."""
    import urllib3  # noqa: PLC0415 - not needed for most

    options: dict[str, Any] = {
        "retries": False,
        "timeout": urllib3.Timeout(connect=10, read=60),
        "ca_certs": ca_file,
        "maxsize": connections,
    }
    proxy = proxies.for_url(url)
    if proxy is None:
        pool = urllib3.PoolManager(**options)
    else:
        parts = urlsplit(proxy)
        if parts.username is not None:
            who = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            options["proxy_headers"] = urllib3.make_headers(proxy_basic_auth=who)
        pool = urllib3.ProxyManager(proxy, **options)
    with pool:
        yield pool


def _answer(status: int, body: bytes) -> Answer:
    text = body[:4096].decode(errors="replace")
    found = {name: re.search(f"<{name}>([^<]*)</{name}>", text) for name in _FIELDS}
    code, message, request_id = (match[1] if match else "" for match in found.values())
    kind = "FileNotFoundError" if status == 404 else "GenericError"
    return Answer(kind, "", status, code, message, request_id or None)


def refusal(body: bytes) -> Answer | None:
    """Return the error that a body is, as S3 has them under status 200, too; None if it is none."""
    return _answer(500, body) if b"<Error" in body[:4096] else None


def parse_xml(body: bytes, operation: str) -> Any:
    """Return a document's root, with the names of its elements free of namespaces.

    Raises:
        Unavailable: it is not XML that such a service sends.
    """
    try:
        if len(body) > _MAX_ANSWER or b"<!DOCTYPE" in body[:1024]:
            body = b""  # nothing that S3 sends
        root = Xml.fromstring(body)  # noqa: S314 - bounded, and without a document type
        for element in root.iter():
            element.tag = element.tag.rpartition("}")[2]
    except (Xml.ParseError, ValueError) as error:
        raise Unavailable(
            f"the storage's answer cannot be read: {error}", operation=operation
        ) from error
    return root


def aws_signer(region: str, keys: Callable[[], Keys | None]) -> Signer:
    """Return what signs for ``region`` with the keys of the moment."""

    def sign(request: Unsigned) -> dict[str, str] | None:
        found = keys()
        return None if found is None else signed_headers(found, region, request, datetime.now(UTC))

    return sign


def signed_headers(keys: Keys, region: str, request: Unsigned, now: datetime) -> dict[str, str]:
    """Return the headers of a request, all of them signed, the signature among them."""
    time = now.strftime("%Y%m%dT%H%M%SZ")
    headers = {
        **request.headers,
        "host": request.host,
        "x-amz-content-sha256": request.digest,
        "x-amz-date": time,
    }
    if keys.session_token is not None:
        headers["x-amz-security-token"] = keys.session_token
    names = ";".join(sorted(headers))
    lines = "".join(f"{name}:{' '.join(headers[name].split())}\n" for name in sorted(headers))
    canonical = "\n".join(
        (request.method, request.path, request.query, lines, names, request.digest)
    )
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
