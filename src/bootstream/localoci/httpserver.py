"""The HTTP server: a thread to a connection, requests of a connection in order.

Every answer but a foreign one has an ``opc-request-id``, and the client's own id where it sent
one. A body that the handler did not read is read and dropped when that is cheap; otherwise the
connection ends after the answer, in a way that lets the client read the answer first.
"""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import logging
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from email.utils import formatdate
from typing import TYPE_CHECKING

from bootstream.errors import InvalidInput
from bootstream.localoci.errors import ApiError, Disconnect
from bootstream.localoci.http import Request, Response, error_response
from bootstream.localoci.wire import Wire

if TYPE_CHECKING:
    from bootstream.localoci.http import Handler

log = logging.getLogger(__name__)

DROPPED = 1 << 20  # bytes of an unread body that are dropped to keep a connection
LINGER_SECONDS = 2.0
LINGER_BYTES = 64 << 20


class HttpServer:
    """Serves one handler on a loopback address.

    Args:
        handler: called from many threads; raises ApiError for errors.
        host: a loopback address.
        port: 0 takes a free one.
        idle: seconds that a connection may wait for its next bytes, or for its client to take
            some.
        connections: how many there may be at once; more are answered 503.
        clock: seconds of the epoch, for the header ``Date``.

    Raises:
        InvalidInput: the address is not a loopback address.
        OSError: the port is taken.
    """

    def __init__(
        self,
        handler: Handler,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        idle: float = 60.0,
        connections: int = 1024,
        clock: Callable[[], float] = time.time,
    ) -> None:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
        if not address.is_loopback:
            raise InvalidInput(
                "the local OCI serves this machine only",
                operation="listen on",
                object=host,
                remedy="use 127.0.0.1, and a tunnel to reach it from elsewhere",
            )
        self._handler = handler
        self._idle = idle
        self._limit = connections
        self._open: dict[Wire, bool] = {}  # connection -> waits for a request
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._closing = False
        self._ids = itertools.count(1)
        self._prefix = f"local-1:{os.urandom(8).hex().upper()}"
        self._clock = clock
        self._date = (-1, "")
        family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
        self._socket = socket.create_server((str(address), port), family=family, backlog=512)
        self.port: int = self._socket.getsockname()[1]
        shown = f"[{address}]" if address.version == 6 else str(address)
        self.url = f"http://{shown}:{self.port}"
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Accept connections, in a thread; returns at once."""
        self._thread = threading.Thread(target=self._accept, name="localoci-accept", daemon=True)
        self._thread.start()

    def close(self, grace: float = 5.0) -> None:
        """Stop: requests in work may take ``grace`` seconds more. Idempotent."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
            waiting = [wire for wire, idle in self._open.items() if idle]
        with contextlib.suppress(OSError):  # wakes accept; it may not listen any more
            self._socket.shutdown(socket.SHUT_RDWR)
        if self._thread is not None:
            self._thread.join()
        self._socket.close()
        for wire in waiting:
            _shut(wire, socket.SHUT_RD)
        with self._changed:
            if self._changed.wait_for(lambda: not self._open, grace):
                return
            late = list(self._open)
        for wire in late:
            _shut(wire, socket.SHUT_RDWR)
        with self._changed:
            self._changed.wait_for(lambda: not self._open, grace)

    def _accept(self) -> None:
        limit = struct.pack("ll", int(self._idle), int(self._idle % 1 * 1e6))
        while True:
            try:
                connection, address = self._socket.accept()
            except OSError as error:
                if self._closing:
                    return
                log.warning("accept: %s", error)
                time.sleep(0.05)  # out of descriptors, mostly: some will be closed
                continue
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
            wire = Wire(connection)
            with self._lock:
                full = len(self._open) >= self._limit
                if self._closing:
                    connection.close()
                    return
                self._open[wire] = False
            threading.Thread(
                target=self._serve, args=(wire, str(address[0]), full), daemon=True
            ).start()

    def _serve(self, wire: Wire, client: str, full: bool) -> None:
        try:
            while wire.keep and self._next(wire, client, full) and not full:
                pass
        except Disconnect as error:
            if error.reset:
                never = struct.pack("ii", 1, 0)
                wire.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, never)
        except OSError as error:
            log.debug("connection: %s", error)
        finally:
            wire.connection.close()
            with self._changed:
                del self._open[wire]
                self._changed.notify_all()

    def _next(self, wire: Wire, client: str, full: bool) -> bool:
        """Serve one request; whether there may be another."""
        first = b""
        if not wire.buffer:
            self._open[wire] = True
            if self._closing:
                return False
            try:
                first = wire.receive()
            except TimeoutError:
                return False
            if not first:
                return False
            self._open[wire] = False
        name = f"{self._prefix}{next(self._ids):016X}"
        request: Request | None = None
        try:
            request = wire.request(wire.head(first), client)
            request.id = name
            response = _too_many(request) if full else self._handler(request)
        except ApiError as error:
            response = error_response(error)
            if request is None:
                wire.keep = False
        except Disconnect:
            raise
        except Exception:  # whatever a handler lets through is a 500, and the server lives on
            log.exception("%s %s", request and request.method, request and request.raw_path)
            response = error_response(
                ApiError(500, "InternalServerError", "the server failed; its log says why")
            )
        self._answer(wire, request, response, name)
        return not self._closing

    def _answer(self, wire: Wire, request: Request | None, response: Response, name: str) -> None:
        try:
            unread = self._settle(wire, request, response, name)
        finally:
            response.close()
        if unread or request is None:
            _linger(wire)

    def _settle(self, wire: Wire, request: Request | None, response: Response, name: str) -> bool:
        """Send the answer; whether some of the request's body is still to come."""
        headers = response.headers
        if not response.foreign:
            headers["opc-request-id"] = name
        unread = request is not None and not request.body.ended
        if unread and request is not None:
            unread = not self._dropped(wire, request)
        if unread or self._closing:
            wire.keep = False
        own = request.headers.get("opc-client-request-id") if request is not None else None
        if own and not response.foreign:
            headers["opc-client-request-id"] = own
        method = request.method if request is not None else "GET"
        wire.respond(response, method, self._now())
        return unread

    def _dropped(self, wire: Wire, request: Request) -> bool:
        """Read what is left of a body, where it is little and already on its way."""
        body = request.body
        if wire.owes_continue or body.length is None or body.length - body.received > DROPPED:
            return False
        buffer = memoryview(bytearray(65536))
        try:
            while body.readinto(buffer):
                pass
        except ApiError:
            return body.ended
        return True

    def _now(self) -> str:
        second = int(self._clock())
        if self._date[0] != second:
            self._date = (second, formatdate(second, usegmt=True))
        return self._date[1]


def _too_many(request: Request) -> Response:
    log.warning("too many connections: %s refused", request.client)
    error = ApiError(503, "ServiceUnavailable", "too many connections")
    return error_response(error)


def _shut(wire: Wire, how: int) -> None:
    with contextlib.suppress(OSError):  # it ended by itself
        wire.connection.shutdown(how)


def _linger(wire: Wire) -> None:
    """Let the client read the answer, rather than a reset, although it is still sending."""
    deadline = time.monotonic() + LINGER_SECONDS
    wire.connection.shutdown(socket.SHUT_WR)
    wire.connection.settimeout(0.5)
    taken = 0
    while taken < LINGER_BYTES and time.monotonic() < deadline:
        data = wire.connection.recv(65536)
        if not data:
            return
        taken += len(data)
