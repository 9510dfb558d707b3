"""One HTTP request and its redirects.

urllib3 moves the bytes; its retries and redirects are off. An ``Authorization``
header goes to the origin (scheme, host, port) that it was meant for and is dropped
on the way to any other. Time limits are for connecting and for a silence, never for
a whole transfer.

A body that is large comes as a function that yields its pieces: it is called anew for
each attempt, and never in memory as a whole.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urljoin

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError, LocationParseError
from urllib3.util import parse_url

from bootstream.errors import BootstreamError, Corrupt, Unavailable
from bootstream.images.httperrors import (
    CONNECT_SECONDS,
    MAX_ERROR_BODY,
    SILENCE_SECONDS,
    host_of,
    network_error,
)
from bootstream.images.trust import host_folder, make_context, usual_folders
from bootstream.proxies import NO_PROXIES, Proxies, proxy_authorization, without_credentials

MAX_REDIRECTS = 8
COMMIT_SECONDS = 300.0
"""How long a registry may be silent that stores what it was sent; it may copy it meanwhile."""
_PIECE = 256 << 10
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


# urllib3 keeps the limit for connecting while a request is sent; a body may take longer.


Guard = Callable[[str, int, str], None]
"""Told host, port and the address they came out as, before anything is sent there; may raise."""


class _Guarded:
    """A connection whose peer is shown to a guard as soon as there is one."""

    host: str
    port: int

    def __init__(self, *args: Any, guard: Guard | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._guard = guard

    def _new_conn(self) -> socket.socket:
        sock: socket.socket = super()._new_conn()  # type: ignore[misc]  # of the other base
        if self._guard is not None:
            try:
                self._guard(self.host, self.port, sock.getpeername()[0])
            except BaseException:
                sock.close()
                raise
        return sock


class _Connection(_Guarded, HTTPConnection):
    def connect(self) -> None:
        super().connect()
        self.sock.settimeout(SILENCE_SECONDS)


class _TlsConnection(_Guarded, HTTPSConnection):
    def connect(self) -> None:
        super().connect()
        self.sock.settimeout(SILENCE_SECONDS)


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


class Transport:
    """Pooled connections to registries and whatever they point to. Thread safe.

    Args:
        ca_file: certificates (PEM) to trust beside the system's.
        proxies: which requests go through which proxy.
        certificate_folders: where hosts have folders of certificates; None: the usual places.
        guard: told every peer, however a name was resolved or a redirect led there. A proxy
            resolves names itself, and is not shown.
    """

    def __init__(
        self,
        *,
        ca_file: str | None = None,
        proxies: Proxies = NO_PROXIES,
        certificate_folders: Sequence[Path] | None = None,
        guard: Guard | None = None,
    ) -> None:
        self._guard = guard
        self._ca_file = ca_file
        self._proxies = proxies
        self._folders = usual_folders() if certificate_folders is None else certificate_folders
        self._lock = threading.Lock()
        self._pools: dict[tuple[str, str | None, Path | None], urllib3.PoolManager] = {}

    def get(
        self,
        url: str,
        *,
        headers: Mapping[str, str],
        authorization: str | None,
        operation: str,
        allow_downgrade: bool = False,
        method: str = "GET",
    ) -> Answer:
        """Send a GET, or a HEAD, and follow redirects; any status is an answer.

        Args:
            url: where to.
            headers: without Authorization.
            authorization: for the origin of ``url`` and no other.
            operation: for errors.
            allow_downgrade: follow a redirect from https to http; for content that is
                verified by its digest.
            method: ``GET`` or ``HEAD``.

        Raises:
            Unavailable: the network or TLS failed.
        """
        home = Origin.of(url)
        for _ in range(MAX_REDIRECTS):
            sent = dict(headers)
            if authorization is not None and Origin.of(url) == home:
                sent["Authorization"] = authorization
            answer = self.send(method, url, headers=sent, operation=operation)
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
        body: bytes | Iterable[bytes] | None = None,
        silence: float = SILENCE_SECONDS,
    ) -> Answer:
        """Send one request, follow nothing.

        Args:
            method: any.
            url: where to.
            headers: with a Content-Length where ``body`` is in pieces.
            operation: for errors.
            body: what to send; what its iteration raises is passed on.
            silence: seconds to wait for the answer to begin, and to go on.

        Raises:
            Unavailable: there is no answer.
        """
        sent = {"User-Agent": "bootstream", "Accept-Encoding": "identity", **headers}
        pool = self._pool(url)
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
                timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=silence),
            )
        except (HTTPError, OSError) as error:
            raise network_error(error, url, operation) from error
        return Answer(response, url, operation)

    def close(self) -> None:
        """Close idle connections."""
        with self._lock:
            for pool in self._pools.values():
                pool.clear()

    def _pool(self, url: str) -> urllib3.PoolManager:
        origin = Origin.of(url)
        proxy = self._proxies.for_url(url)
        folder = None
        if origin.scheme == "https":
            folder = host_folder(self._folders, origin.host, origin.port)
        key = origin.scheme, proxy, folder
        with self._lock:
            if key not in self._pools:
                self._pools[key] = self._make_pool(origin.scheme, proxy, folder)
            return self._pools[key]

    def _make_pool(
        self, scheme: str, proxy: str | None, folder: Path | None
    ) -> urllib3.PoolManager:
        context = make_context(self._ca_file, folder) if scheme == "https" else None
        pool: urllib3.PoolManager
        if proxy is None:
            pool = urllib3.PoolManager(num_pools=16, maxsize=16, ssl_context=context)
            pool.pool_classes_by_scheme = {
                "http": partial(_Pool, guard=self._guard),  # type: ignore[dict-item]  # called only
                "https": partial(_TlsPool, guard=self._guard),  # type: ignore[dict-item]
            }
        else:
            authorization = proxy_authorization(proxy)
            pool = urllib3.ProxyManager(
                without_credentials(proxy),
                num_pools=16,
                maxsize=16,
                ssl_context=context,
                proxy_headers={"Proxy-Authorization": authorization} if authorization else None,
                proxy_ssl_context=make_context(self._ca_file, None)
                if proxy.startswith("https:")
                else None,
            )
            pool.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}
        return pool


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
