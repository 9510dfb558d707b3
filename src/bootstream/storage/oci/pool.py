"""Connections to one endpoint that are kept open between requests.

The last one that was given back is taken first, so that what is not needed grows old and
is closed. A connection that the server closed meanwhile is seen before it is used: it is
readable while nothing was asked.
"""

from __future__ import annotations

import os
import socket
import ssl
import threading
import time
import weakref
from urllib.parse import urlsplit

from bootstream.errors import InvalidInput
from bootstream.proxies import NO_PROXIES, Proxies, is_loopback
from bootstream.storage.oci.connection import Connection, Socket, TimeLimits
from bootstream.storage.oci.tunnel import Tunnel, wrap

_LONGEST_IDLE = 45.0


class Pool:
    """Connections to ``endpoint``. Thread safe.

    Args:
        endpoint: ``https://host[:port]``, or ``http://`` for a loopback address.
        ca_file: certificates to trust instead of the system's.
        keep: how many idle connections stay open.
        limits: time limits of every connection.
        proxies: the proxies of this process; the endpoint may be behind one.

    Raises:
        InvalidInput: the endpoint, its proxy or the file of certificates is none.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        ca_file: str | os.PathLike[str] | None = None,
        keep: int = 32,
        limits: TimeLimits | None = None,
        proxies: Proxies = NO_PROXIES,
    ) -> None:
        parts = urlsplit(endpoint)
        try:
            port = parts.port
        except ValueError:
            port = -1
        name = parts.hostname or ""
        extra = parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc
        if parts.scheme not in ("http", "https") or not name or extra or port == -1:
            raise InvalidInput(
                "the endpoint is not of the form https://host[:port]",
                operation="open store",
                object=parts.hostname or None,
                remedy="set OCI_OBJECT_STORAGE_ENDPOINT, or leave it unset to use OCI_REGION",
            )
        if parts.scheme == "http" and not is_loopback(name):
            raise InvalidInput(
                "plain http is for loopback addresses only",
                operation="open store",
                object=endpoint,
                remedy="use https://",
            )
        self.host = parts.netloc
        self.url = f"{parts.scheme}://{parts.netloc}"
        self._address = (name, port or (443 if parts.scheme == "https" else 80))
        self._tls = _tls_context(ca_file) if parts.scheme == "https" else None
        self._limits = limits or TimeLimits()
        proxy = None if self._tls is None else proxies.for_url(self.url)
        self.tunnel = (
            None
            if proxy is None or self._tls is None
            else Tunnel(proxy, _tls_context(ca_file), self._limits)
        )
        self._keep = keep
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._idle: list[Connection] = []
        self._finalizer = weakref.finalize(self, _close_all, self._idle)

    def take(self, *, fresh: bool = False) -> Connection:
        """Return an idle connection, or a new one.

        Raises:
            OSError: there is none to be had.
            Refused: the proxy on the way gives none.
        """
        if self._pid != os.getpid():
            # After a fork the parent's connections are not ours to talk on, only to close.
            with self._lock:
                _close_all(self._idle)
                self._pid = os.getpid()
        while not fresh:
            with self._lock:
                if not self._idle:
                    break
                connection = self._idle.pop()
            if time.monotonic() - connection.idle_since < _LONGEST_IDLE and connection.quiet:
                connection.reused = True
                return connection
            connection.close()
        return self._connect()

    def give_back(self, connection: Connection) -> None:
        """Keep a connection whose last answer was read to its end."""
        connection.idle_since = time.monotonic()
        with self._lock:
            if len(self._idle) < self._keep and self._finalizer.alive:
                self._idle.append(connection)
                return
        connection.close()

    def close(self) -> None:
        """Close what is idle, and from now on whatever is given back."""
        self._finalizer()

    def _connect(self) -> Connection:
        sock: Socket
        if self.tunnel is not None:
            sock = self.tunnel.open(*self._address)
        else:
            sock = socket.create_connection(self._address, self._limits.connect)
        try:
            if self.tunnel is None:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if self._tls is not None:
                sock = wrap(sock, self._tls, self._address[0])
        except BaseException:
            sock.close()
            raise
        return Connection(sock, self._limits)


def _close_all(connections: list[Connection]) -> None:
    while connections:
        connections.pop().close()


def _tls_context(ca_file: str | os.PathLike[str] | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise InvalidInput(
            f"the certificates cannot be read: {error.strerror or error}",
            operation="open store",
            object=os.fspath(ca_file) if ca_file else None,
            remedy="name a file of PEM certificates",
        ) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context
