"""One HTTP request and its redirects; errors of the network mapped to our own.

urllib3 moves the bytes; its retries and redirects are off. An ``Authorization``
header goes to the origin (scheme, host, port) that it was meant for and is dropped
on the way to any other. Time limits are for connecting and for a silence, never for
a whole transfer.
"""

from __future__ import annotations

import ipaddress
import json
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from types import TracebackType
from urllib.parse import urljoin

import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    LocationParseError,
    LocationValueError,
    NameResolutionError,
    NewConnectionError,
    ReadTimeoutError,
    SSLError,
)
from urllib3.util import parse_url

from bootstream.errors import (
    BootstreamError,
    Corrupt,
    ImageNotFound,
    InvalidInput,
    PermissionDenied,
    Throttled,
    Unavailable,
)

CONNECT_SECONDS = 4.0
SILENCE_SECONDS = 20.0
MAX_REDIRECTS = 8
MAX_ERROR_BODY = 64 << 10
_PIECE = 256 << 10
_TRANSIENT = frozenset({408, 425, 500, 502, 503, 504})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True, slots=True)
class Origin:
    """Whom a request goes to."""

    scheme: str
    host: str
    port: int

    @classmethod
    def of(cls, url: str) -> Origin:
        """Return the origin of an absolute http or https URL. Raises ValueError for others."""
        try:
            parts = parse_url(url)
        except LocationParseError as error:
            raise ValueError("it is not a URL") from error
        if parts.scheme not in ("http", "https") or not parts.host or parts.auth:
            raise ValueError("it is not a plain http or https URL")
        port = parts.port or (443 if parts.scheme == "https" else 80)
        return cls(parts.scheme, parts.host.lower(), port)

    @property
    def is_loopback(self) -> bool:
        """Whether it is this host by number or as ``localhost``."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Tell whether a host name or address, brackets allowed, is this host itself."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Answer:
    """A response whose body was not read yet; a context manager that lets it go."""

    def __init__(self, response: urllib3.BaseHTTPResponse, url: str, operation: str) -> None:
        self.status = response.status
        self.url = url
        self._response = response
        self._operation = operation
        self._at_end = False

    def header(self, name: str) -> str | None:
        """Return a header, several joined by a comma."""
        return self._response.headers.get(name)

    def headers(self, name: str) -> list[str]:
        """Return every header of a name."""
        return list(self._response.headers.getlist(name))

    @property
    def origin(self) -> Origin:
        """Who answered, after redirects."""
        return Origin.of(self.url)

    def read(self, size: int) -> bytes:
        """Return 1 to ``size`` bytes of the body, none at its end; Unavailable if cut off."""
        try:
            data: bytes = self._response.read(size, decode_content=False)
        except (HTTPError, OSError) as error:
            raise network_error(error, self.url, self._operation) from error
        self._at_end = not data
        return data

    def read_all(self, limit: int) -> bytes:
        """Return the whole body. Raises Corrupt if it is larger than ``limit`` bytes."""
        parts: list[bytes] = []
        size = 0
        while data := self.read(_PIECE):
            size += len(data)
            if size > limit:
                raise Corrupt(
                    f"the answer is larger than {limit} bytes",
                    operation=self._operation,
                    object=host_of(self.url),
                )
            parts.append(data)
        return b"".join(parts)

    def drain(self) -> None:
        """Read what little an error says, so that the connection can be used again."""
        try:
            self.read_all(MAX_ERROR_BODY)
        except BootstreamError:
            self.close()

    def close(self) -> None:
        """Let the response go; a connection with an unread body is closed."""
        self._response.close()

    def __enter__(self) -> Answer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None or not self._at_end:
            self._response.close()
        self._response.release_conn()


class Transport:
    """Pooled connections to registries and whatever they point to. Thread safe.

    Args:
        ca_file: certificates (PEM) to trust beside the system's.
    """

    def __init__(self, *, ca_file: str | None = None) -> None:
        self._ca_file = ca_file
        self._lock = threading.Lock()
        self._pools: dict[str, urllib3.PoolManager] = {}

    def get(
        self,
        url: str,
        *,
        headers: Mapping[str, str],
        authorization: str | None,
        operation: str,
        allow_downgrade: bool = False,
    ) -> Answer:
        """Send a GET and follow redirects; any status is an answer.

        Args:
            url: where to.
            headers: without Authorization.
            authorization: for the origin of ``url`` and no other.
            operation: for errors.
            allow_downgrade: follow a redirect from https to http; for content that is
                verified by its digest.

        Raises:
            Unavailable: the network or TLS failed.
        """
        home = Origin.of(url)
        for _ in range(MAX_REDIRECTS):
            sent = dict(headers)
            if authorization is not None and Origin.of(url) == home:
                sent["Authorization"] = authorization
            answer = self.send("GET", url, headers=sent, operation=operation)
            location = answer.header("Location")
            if answer.status not in _REDIRECTS or not location:
                return answer
            with answer:
                answer.drain()
            url = _redirected(url, location, operation, allow_downgrade=allow_downgrade)
        raise Unavailable(
            "it redirects too often", operation=operation, object=host_of(url), transient=False
        )

    def send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        operation: str,
        body: bytes | None = None,
    ) -> Answer:
        """Send one request, follow nothing. Raises Unavailable if there is no answer."""
        sent = {"User-Agent": "bootstream", "Accept-Encoding": "identity", **headers}
        pool = self._pool(Origin.of(url).scheme)
        try:
            response = pool.urlopen(
                method,
                url,
                body=body,
                headers=sent,
                redirect=False,
                retries=False,
                preload_content=False,
                decode_content=False,
            )
        except (HTTPError, OSError) as error:
            raise network_error(error, url, operation) from error
        return Answer(response, url, operation)

    def close(self) -> None:
        """Close idle connections."""
        with self._lock:
            for pool in self._pools.values():
                pool.clear()

    def _pool(self, scheme: str) -> urllib3.PoolManager:
        with self._lock:
            if scheme not in self._pools:
                context = self._context() if scheme == "https" else None
                self._pools[scheme] = urllib3.PoolManager(
                    num_pools=16,
                    maxsize=8,
                    timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=SILENCE_SECONDS),
                    retries=False,
                    ssl_context=context,
                )
            return self._pools[scheme]

    def _context(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        if self._ca_file is not None:
            try:
                context.load_verify_locations(cafile=self._ca_file)
            except (OSError, ValueError) as error:
                raise InvalidInput(
                    "it has no certificates that can be read",
                    operation="read certificates",
                    object=self._ca_file,
                    remedy="give a file in PEM form",
                ) from error
        return context


def _redirected(url: str, location: str, operation: str, *, allow_downgrade: bool) -> str:
    try:
        target = urljoin(url, location)
        origin = Origin.of(target)
    except ValueError as error:
        raise Unavailable(
            "it redirects to something else than an http or https URL",
            operation=operation,
            object=host_of(url),
            transient=False,
        ) from error
    if Origin.of(url).scheme == "https" and origin.scheme == "http" and not allow_downgrade:
        raise Unavailable(
            f"it redirects from https to http ({origin.host}), which is not followed",
            operation=operation,
            object=host_of(url),
            transient=False,
        )
    return target


# -- errors -------------------------------------------------------------------------------


class NotTls(Unavailable):
    """The other side does not speak TLS; some registries of this host speak http."""

    transient = False


def host_of(url: str) -> str:
    """Return host and port of a URL, for people; the query may be a secret."""
    try:
        parts = parse_url(url)
    except LocationParseError:
        return "an unreadable URL"
    return f"{parts.host}:{parts.port}" if parts.port else f"{parts.host}"


def network_error(error: Exception, url: str, operation: str) -> BootstreamError:
    """Map what urllib3 or a socket raised."""
    where = host_of(url)
    cause = error
    if isinstance(error, SSLError) and error.args and isinstance(error.args[0], Exception):
        cause = error.args[0]
    if isinstance(cause, (ssl.SSLError, SSLError)):
        return _tls_error(cause, where, operation)
    if isinstance(error, NameResolutionError):
        reason = error.__cause__
        known = isinstance(reason, socket.gaierror) and reason.errno == socket.EAI_NONAME
        return Unavailable(
            f"the name of the host {where} does not resolve",
            operation=operation,
            object=where,
            transient=not known,
            remedy="check the registry's name and this host's resolver",
        )
    if isinstance(error, ConnectTimeoutError):
        problem = f"it did not take a connection within {CONNECT_SECONDS:g} s"
    elif isinstance(error, NewConnectionError):
        problem = f"no connection: {_reason(error)}"
    elif isinstance(error, (ReadTimeoutError, TimeoutError)):
        problem = f"it kept silent for {SILENCE_SECONDS:g} s"
    elif isinstance(error, (LocationParseError, LocationValueError)):
        return InvalidInput("it is not a URL", operation=operation, object=where)
    else:
        problem = f"the connection broke: {_reason(error)}"
    return Unavailable(problem, operation=operation, object=where)


def _reason(error: Exception) -> str:
    """The innermost cause's own words."""
    inner: BaseException = error
    while inner.__cause__ is not None or inner.__context__ is not None:
        inner = inner.__cause__ or inner.__context__ or inner
    if isinstance(inner, OSError) and inner.strerror:
        return inner.strerror
    return type(inner).__name__ if not str(inner) else str(inner)[:200]


def _tls_error(error: Exception, where: str, operation: str) -> BootstreamError:
    text = str(error)
    if isinstance(error, ssl.SSLCertVerificationError) or "CERTIFICATE_VERIFY_FAILED" in text:
        detail = getattr(error, "verify_message", "") or text[:200]
        return Unavailable(
            f"its certificate is not trusted: {detail}",
            operation=operation,
            object=where,
            transient=False,
            remedy="give the certificate of its authority with --ca FILE",
        )
    marks = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "UNKNOWN_PROTOCOL")
    upper = text.upper().replace(" ", "_")
    if any(mark in upper for mark in marks) or isinstance(error, ssl.SSLEOFError):
        return NotTls(
            "it does not speak https",
            operation=operation,
            object=where,
            remedy="if it is meant to speak http, say --plain-http",
        )
    return Unavailable(
        f"TLS failed: {text[:200]}", operation=operation, object=where, transient=False
    )


def status_error(answer: Answer, *, operation: str, object: str) -> BootstreamError:
    """Map an answer that is not a success; reads what its body says."""
    said = _said(answer)
    detail = f": {said}" if said else ""
    status = answer.status
    where = host_of(answer.url)
    request = answer.header("x-request-id")
    if status in (401, 403):
        return PermissionDenied(
            f"{where} refused it ({status}){detail}",
            operation=operation,
            object=object,
            request_id=request,
            remedy=f"check the name, and log in: docker login {where}, or skopeo login {where}",
        )
    if status == 404:
        return ImageNotFound(
            f"{where} has no such image{detail}",
            operation=operation,
            object=object,
            request_id=request,
            remedy="check name and tag; some registries say this of images that need a login",
        )
    if status == 429:
        return Throttled(
            f"{where} allows no more requests now{detail}",
            operation=operation,
            object=object,
            request_id=request,
            retry_after=retry_after(answer.header("Retry-After")),
            remedy="try again later, or log in for a higher limit",
        )
    if status in _TRANSIENT or status >= 500:
        return Unavailable(
            f"{where} answered {status}{detail}",
            operation=operation,
            object=object,
            request_id=request,
            transient=status in _TRANSIENT,
            retry_after=retry_after(answer.header("Retry-After")),
        )
    return InvalidInput(
        f"{where} answered {status}{detail}",
        operation=operation,
        object=object,
        request_id=request,
    )


def retry_after(value: str | None) -> float | None:
    """Return the seconds of a Retry-After header (RFC 9110, 10.2.3); None if it has none."""
    if not value:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return min(float(value[:9]), 1e6) or None
    try:
        when = parsedate_to_datetime(value)
    except (TypeError, ValueError):
        return None
    return max(0.0, when.timestamp() - time.time()) or None


def _said(answer: Answer) -> str:
    """Return the first error of a registry's JSON body, or a line of text, printable."""
    try:
        data = answer.read_all(MAX_ERROR_BODY)
        kind = answer.header("Content-Type") or "text/plain"
        if kind.startswith("text/plain") and not data.startswith(b"{"):
            text = data[:400].decode("utf-8", "replace").strip()
        else:
            first = json.loads(data)["errors"][0]
            text = str(first.get("message") or first.get("code") or "")
    except (BootstreamError, ValueError, KeyError, IndexError, TypeError, AttributeError):
        return ""
    except RecursionError:
        return ""
    return "".join(c if c.isprintable() else "?" for c in text.rstrip("."))[:200]
