"""Connections through an HTTP proxy: ``CONNECT``, RFC 9110, section 9.3.6.

The proxy is asked to pass bytes on to the endpoint; TLS is between us and the endpoint, and
what is asked of it stays unseen. A proxy may itself be spoken to by TLS, so that the user and
password for it are; then one TLS runs within the other.
"""

from __future__ import annotations

import socket
import ssl
from typing import cast
from urllib.parse import urlsplit

from bootstream.proxies import proxy_authorization, without_credentials
from bootstream.storage.oci.connection import Connection, Socket, TimeLimits, WireError


class Refused(Exception):
    """A proxy answered, and passes nothing on. ``status`` is its answer's; 0: it was none."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Tunnel:
    """The way through one proxy. Thread safe.

    Args:
        proxy: ``http://`` or ``https://[user:password@]host:port``.
        tls: how a proxy of https is spoken to.
        limits: time limits of connecting and of the proxy's answer.
    """

    def __init__(self, proxy: str, tls: ssl.SSLContext, limits: TimeLimits) -> None:
        parts = urlsplit(proxy)
        self.name = without_credentials(proxy)
        self._host = parts.hostname or ""
        self._address = (self._host, parts.port or 0)
        self._authorization = proxy_authorization(proxy)
        self._tls = tls if parts.scheme == "https" else None
        self._limits = limits

    def __repr__(self) -> str:
        return f"Tunnel({self.name!r})"

    def open(self, host: str, port: int) -> Socket:
        """Return a socket whose other end is ``host``; raises Refused and OSError."""
        sock: Socket = socket.create_connection(self._address, self._limits.connect)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if self._tls is not None:
                sock = self._tls.wrap_socket(sock, server_hostname=self._host)
            self._ask(sock, f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
            sock.settimeout(self._limits.connect)
        except BaseException:
            sock.close()
            raise
        return sock

    def _ask(self, sock: Socket, target: str) -> None:
        lines = [f"CONNECT {target} HTTP/1.1", f"host: {target}", "user-agent: bootstream"]
        if self._authorization is not None:
            lines.append(f"proxy-authorization: {self._authorization}")
        connection = Connection(sock, self._limits)
        connection.send("".join(f"{line}\r\n" for line in [*lines, ""]).encode("latin-1"))
        try:
            head = connection.receive_head("CONNECT")
        except WireError as error:
            raise Refused(str(error)) from error
        if not 200 <= head.status < 300:
            raise Refused(f"it answers {head.status}", head.status)
        if not connection.clean:
            raise Refused("it sends more than an answer")


def wrap(sock: Socket, context: ssl.SSLContext, host: str) -> Socket:
    """Return TLS to ``host`` over a socket, which may be TLS to a proxy; raises OSError."""
    if not isinstance(sock, ssl.SSLSocket):
        return context.wrap_socket(sock, server_hostname=host)
    from urllib3.util.ssltransport import SSLTransport  # noqa: PLC0415 - hardly ever needed

    # It has what is used of a socket here, but for pending().
    return cast("Socket", SSLTransport(sock, context, server_hostname=host))
