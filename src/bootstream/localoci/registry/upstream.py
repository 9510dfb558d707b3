"""Requests to the real registry, over a unix socket; bodies pass in pieces, never whole.

Connections are kept for the next request. One that the registry closed meanwhile is seen when
a request without a body fails on it at once, and that request is made again on a new one; one
with a body always has a connection of its own that was just used or is new.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bootstream.localoci.errors import ApiError

if TYPE_CHECKING:
    from bootstream.localoci.http import Body

PIECE = 256 << 10  # bytes that pass at a time
_KEPT = 16  # connections
_SECONDS = 300.0  # without a byte: a large blob is checked after its last byte
_DROPPED = 64 << 10  # bytes of an answer that nobody wants, which are read to keep a connection


class _Connection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("registry", timeout=_SECONDS, blocksize=PIECE)
        self._path = str(path)

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Answer:
    """What the registry answered; an iterator of the body's pieces. One thread at a time.

    ``headers`` have lower-case names. Its connection is kept when the body was read to its
    end, and closed by ``close`` otherwise.
    """

    def __init__(
        self, upstream: Upstream, connection: _Connection, answer: http.client.HTTPResponse
    ) -> None:
        self.status = answer.status
        self.headers = {name.lower(): value for name, value in answer.getheaders()}
        self._upstream = upstream
        self._connection: _Connection | None = connection
        self._answer = answer
        if answer.isclosed():
            self._keep()

    @property
    def length(self) -> int | None:
        """Bytes of the body, where the registry says it."""
        text = self.headers.get("content-length", "")
        return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._connection is None:
            raise StopIteration
        try:
            data = self._answer.read(PIECE)
        except (OSError, http.client.HTTPException):
            self.close()
            raise
        if not data:
            self._keep()
            raise StopIteration
        return data

    def read_all(self, limit: int) -> bytes:
        """The whole body.

        Raises:
            ApiError: 502, it is over ``limit`` bytes.
        """
        data = b"".join(self._up_to(limit))
        if len(data) > limit:
            raise _bad("its answer is too long")
        return data

    def _up_to(self, limit: int) -> Iterator[bytes]:
        size = 0
        for piece in self:
            yield piece
            size += len(piece)
            if size > limit:
                self.close()
                return

    def _keep(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._answer.close()
            self._upstream.keep(connection)

    def close(self) -> None:
        """Give the rest of the body up. Idempotent."""
        if self._connection is not None and (self.length or _DROPPED) < _DROPPED:
            try:
                self._answer.read()
            except (OSError, http.client.HTTPException):
                pass
            else:
                self._keep()
        connection, self._connection = self._connection, None
        if connection is not None:
            self._answer.close()
            connection.close()

    def __del__(self) -> None:
        self.close()


class Upstream:
    """The real registry. Thread safe.

    Args:
        path: its socket.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._kept: list[_Connection] = []
        self._closed = False

    def keep(self, connection: _Connection) -> None:
        """Take a connection back for another request."""
        with self._lock:
            if not self._closed and connection.sock is not None and len(self._kept) < _KEPT:
                self._kept.append(connection)
                return
        connection.close()

    def request(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str] | None = None,
        body: Body | bytes | None = None,
    ) -> Answer:
        """Make a request; ``body`` is sent as it comes, with its length or in chunks.

        Raises:
            ApiError: 502, the registry does not answer.
            ApiError, Disconnect: what the body raises; the registry then sees half a request.
        """
        with self._lock:
            kept = self._kept.pop() if self._kept and body is None else None
        if kept is not None:
            try:
                return self._ask(kept, method, target, headers or {}, None)
            except (OSError, http.client.HTTPException):
                pass  # it was closed meanwhile
        try:
            return self._ask(_Connection(self._path), method, target, headers or {}, body)
        except (OSError, http.client.HTTPException) as error:
            raise _bad(str(error) or type(error).__name__) from error

    def _ask(
        self,
        connection: _Connection,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: Body | bytes | None,
    ) -> Answer:
        try:
            connection.putrequest(method, target, skip_accept_encoding=True)
            for name, value in headers.items():
                connection.putheader(name, value)
            chunked = not isinstance(body, bytes | None) and body.length is None
            if chunked:
                connection.putheader("Transfer-Encoding", "chunked")
            elif body is not None or method not in {"GET", "HEAD"}:
                length = len(body or b"") if isinstance(body, bytes | None) else body.length
                connection.putheader("Content-Length", str(length))
            connection.endheaders()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                # It may answer before the body's end, and says why.
                _send(connection, body, chunked=chunked)
            return Answer(self, connection, connection.getresponse())
        except BaseException:
            connection.close()
            raise

    def close(self) -> None:
        """Close what is kept. Idempotent."""
        with self._lock:
            self._closed = True
            kept, self._kept = self._kept, []
        for connection in kept:
            connection.close()


def _send(connection: _Connection, body: Body | bytes | None, *, chunked: bool) -> None:
    if isinstance(body, bytes | None):
        if body:
            connection.send(body)
        return
    space = bytearray(PIECE)
    buffer = memoryview(space)
    while count := body.readinto(buffer):
        piece = buffer[:count]
        if chunked:
            connection.send(b"%x\r\n%b\r\n" % (count, bytes(piece)))
        else:
            connection.send(piece)
    if chunked:
        connection.send(b"0\r\n\r\n")


def _bad(reason: str) -> ApiError:
    return ApiError(502, "BadGateway", f"the registry behind does not answer: {reason}")
