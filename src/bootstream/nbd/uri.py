"""NBD URIs, as far as this package speaks the protocol.

Source: https://github.com/NetworkBlockDevice/nbd, ``doc/uri.md``: ``nbd://HOST[:PORT]/NAME``
and ``nbd+unix:///NAME?socket=PATH``; name and path are percent-encoded UTF-8.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from urllib.parse import parse_qs, quote, unquote, urlsplit

from bootstream.errors import InvalidInput
from bootstream.nbd.protocol import PORT


@dataclass(frozen=True, slots=True)
class Address:
    """Where an export is: its name, and either a socket's path or a host and port."""

    name: str
    path: str | None = None
    host: str | None = None
    port: int = PORT

    def __str__(self) -> str:
        name = quote(self.name, safe="/")
        if self.path is not None:
            return f"nbd+unix:///{name}?socket={quote(self.path, safe='/')}"
        host = f"[{self.host}]" if self.host and ":" in self.host else self.host
        return f"nbd://{host}:{self.port}/{name}"

    def connect(self, timeout: float) -> socket.socket:
        """Return a connected socket with ``timeout`` set; raises OSError."""
        if self.path is None:
            sock = socket.create_connection((self.host, self.port), timeout)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return sock
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(timeout)
            sock.connect(self.path)
        except BaseException:
            sock.close()
            raise
        return sock


def parse_uri(text: str) -> Address:
    """Parse an NBD URI.

    Raises:
        InvalidInput: it is none, or names TLS or another transport.
    """
    try:
        parts = urlsplit(text)
        query = parse_qs(parts.query, strict_parsing=bool(parts.query))
        port = parts.port
        name = unquote(parts.path.removeprefix("/"), errors="strict")
    except ValueError as error:
        raise _bad(text, str(error)) from error
    if parts.fragment or parts.username is not None:
        raise _bad(text, "it has a user name or a fragment")
    match parts.scheme:
        case "nbd":
            if query or not parts.hostname:
                raise _bad(text, "nbd: takes HOST[:PORT] and a name")
            return Address(name, host=parts.hostname, port=PORT if port is None else port)
        case "nbd+unix":
            paths = query.pop("socket", [])
            if query or parts.netloc or len(paths) != 1 or "\0" in paths[0]:
                raise _bad(text, "nbd+unix: takes a name and one socket=PATH")
            return Address(name, path=paths[0])
        case _:
            raise _bad(text, "the scheme is neither nbd nor nbd+unix")


def _bad(text: str, why: str) -> InvalidInput:
    return InvalidInput(f"not an NBD URI to be used here: {why}", operation="connect", object=text)
