"""HTTP/1.1 messages on one connection: RFC 9112 sections 2 to 7 and RFC 9110 section 10.1.1.

Reads are strict, because what two readers understand differently is how requests are smuggled:
one length, digits only, never beside a transfer coding; no folded lines, no space before the
colon. Memory is bounded: 64 KiB of head, and bodies are handed on as they come.
"""

from __future__ import annotations

import functools
import os
import re
import socket
import time
from http import HTTPStatus
from typing import TYPE_CHECKING

from bootstream.localoci.errors import ApiError, Disconnect
from bootstream.localoci.http import Body, BytesSource, FileRange, Request, Response
from bootstream.localoci.memo import LONG

if TYPE_CHECKING:
    from bootstream.localoci.http import Source

HEAD_LIMIT = 64 << 10  # bytes of a request line and its headers
HEAD_SECONDS = 30.0  # from a head's first byte to its last
LINE_LIMIT = 4096  # bytes of a chunk's size line
SMALL = 16 << 10  # a range that is copied into the head's packet, rather than sent by sendfile

_FIELD = re.compile(r"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")
_START = re.compile(r"([A-Z]{1,32}) ([!-~\x80-\xff]+) HTTP/(\d)\.(\d)")
_TLS = b"\x16"  # a handshake: RFC 8446 section 5.1
_REASONS = {status.value: status.phrase for status in HTTPStatus}


class Wire:
    """One connection's bytes, in both directions. One thread at a time.

    Args:
        connection: a blocking socket that has SO_RCVTIMEO and SO_SNDTIMEO set.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.buffer = bytearray()
        self.keep = True  # whether another request may follow
        self.modern = True  # whether the client speaks 1.1, and knows chunks
        self.owes_continue = False  # the client waits for a 100 before it sends its body

    def receive(self) -> bytes:
        """The next bytes that come; b"" at the end of the connection.

        Raises:
            TimeoutError: none came in time.
            OSError: the connection is broken.
        """
        try:
            return self.connection.recv(65536)
        except BlockingIOError:
            raise TimeoutError from None

    def more(self) -> None:
        """Wait for bytes within a message; they go to the buffer."""
        try:
            data = self.receive()
        except TimeoutError:
            self.keep = False
            raise ApiError(408, "RequestTimeout", "the request did not come in time") from None
        except OSError:
            data = b""
        if not data:
            raise Disconnect("the connection ended within a message")
        self.buffer += data

    def head(self, first: bytes) -> bytes:
        """The next request's line and headers, without the empty line.

        ``first`` are bytes that came already, or b"" where the buffer holds some.

        Raises:
            ApiError: 431, it is over 64 KiB; 408, it came too slowly.
        """
        buffer = self.buffer
        buffer += first
        deadline = time.monotonic() + HEAD_SECONDS
        while True:
            while buffer.startswith(b"\r\n"):  # RFC 9112 section 2.2
                del buffer[:2]
            end = buffer.find(b"\r\n\r\n", 0, HEAD_LIMIT + 4)
            if end >= 0:
                head = bytes(buffer[:end])
                del buffer[: end + 4]
                return head
            if buffer[:1] == _TLS:  # it waits for our part, and then asks without TLS
                raise _broken("the server speaks HTTP without TLS")
            if len(buffer) > HEAD_LIMIT:
                raise ApiError(431, "RequestHeaderFieldsTooLarge", "the headers are over 64 KiB")
            if time.monotonic() > deadline:
                raise ApiError(408, "RequestTimeout", "the headers came too slowly")
            self.more()

    def request(self, head: bytes, client: str) -> Request:
        """Make a request of its head.

        Raises:
            ApiError: 400 and the like; the connection cannot be used further.
        """
        lines = head.decode("latin-1").split("\r\n")
        first = lines.pop(0)
        method, target, minor = (_known_start if len(first) <= LONG else _start)(first)
        headers: dict[str, str] = {}
        for line in lines:
            name, value = (_known_field if len(line) <= LONG else _field)(line)
            if name in headers:
                if name == "content-length" and headers[name] != value:
                    raise _broken("there are two lengths")
                if name == "host":
                    raise _broken("there are two hosts")
                if name != "content-length":
                    value = f"{headers[name]}, {value}"
            headers[name] = value
        self.modern = minor != "0"
        self.keep = self.modern and "close" not in headers.get("connection", "").lower()
        if self.modern and "host" not in headers:
            raise _broken("there is no host")
        if not target.startswith("/"):
            target = _origin_form(target)
        self.owes_continue = self.modern and headers.get("expect", "").lower() == "100-continue"
        return Request(method, target, headers, self._body(headers), client)

    def _body(self, headers: dict[str, str]) -> Body:
        coding = headers.get("transfer-encoding")
        length = headers.get("content-length")
        if coding is not None:
            if length is not None:
                raise _broken("there are a length and a transfer coding")
            if coding.lower() != "chunked":
                raise ApiError(501, "NotImplemented", "the only transfer coding is chunked")
            return Body(_Chunked(self), None)
        if length is None or length == "0":
            return Body(_NOTHING, 0)
        if not (length.isascii() and length.isdigit() and len(length) < 20):
            raise _broken("the length is not a number")
        return Body(_Sized(self, int(length)), int(length))

    def ask_for_body(self) -> None:
        """Send the 100 that the client waits for, once."""
        if self.owes_continue:
            self.owes_continue = False
            self._send(b"HTTP/1.1 100 Continue\r\n\r\n")

    def body_into(self, buffer: memoryview) -> int:
        """Read a body's bytes; at least one.

        Raises:
            Disconnect: the connection ended.
            ApiError: 408, none came in time.
        """
        if not self.buffer:
            self.ask_for_body()
            if len(buffer) >= 65536:
                return self._straight_into(buffer)
            self.more()
        count = min(len(buffer), len(self.buffer))
        buffer[:count] = self.buffer[:count]
        del self.buffer[:count]
        return count

    def _straight_into(self, buffer: memoryview) -> int:
        try:
            count = self.connection.recv_into(buffer)
        except BlockingIOError:
            self.keep = False
            raise ApiError(408, "RequestTimeout", "the body did not come in time") from None
        except OSError:
            count = 0
        if not count:
            raise Disconnect("the connection ended within a body")
        return count

    def line(self) -> bytes:
        """A line of the body's framing, without its end."""
        while (end := self.buffer.find(b"\r\n", 0, LINE_LIMIT + 2)) < 0:
            if len(self.buffer) > LINE_LIMIT:
                raise _broken("a chunk's line is too long")
            self.ask_for_body()
            self.more()
        line = bytes(self.buffer[:end])
        del self.buffer[: end + 2]
        return line

    def respond(self, response: Response, method: str, date: str) -> None:
        """Send a response whole; closes what its body holds.

        Raises:
            Disconnect: the connection cannot be used further.
        """
        try:
            self._respond(response, method, date)
        except OSError:
            raise Disconnect("the client went away") from None
        finally:
            response.close()

    def _respond(self, response: Response, method: str, date: str) -> None:
        body = response.body
        status = response.status
        lines = [f"HTTP/1.1 {status} {_REASONS.get(status, '')}\r\ndate: {date}\r\n"]
        lines += [f"{name}: {value}\r\n" for name, value in response.headers.items()]
        bare = method == "HEAD" or status in {204, 304}
        if isinstance(body, FileRange):
            length: int | None = body.length
        else:
            length = len(body) if isinstance(body, bytes) else None
        if response.length is not None and (bare or length is None):
            length = response.length  # of HEAD, or of a body whose pieces are not chunks
        if status not in {204, 304}:
            if length is not None:
                lines.append(f"content-length: {length}\r\n")
            elif self.modern:
                lines.append("transfer-encoding: chunked\r\n")
        lines.append("\r\n" if self.keep else "connection: close\r\n\r\n")
        head = "".join(lines).encode("latin-1", "replace")
        cut = response.cut_after
        if bare:
            self._send(head)
        elif isinstance(body, bytes):
            self._send(head + (body if cut is None else body[:cut]))
        elif isinstance(body, FileRange):
            self._send_range(head, body, body.length if cut is None else min(cut, body.length))
        else:
            chunked = self.modern and length is None
            self._send(head)
            for piece in body:
                if piece:
                    self._send(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            if chunked:
                self._send(b"0\r\n\r\n")
        if cut is not None and not bare:
            raise Disconnect("cut on purpose")

    def _send(self, data: bytes, flags: int = 0) -> None:
        sent = self.connection.send(data, flags)
        if sent < len(data):
            view = memoryview(data)
            while sent < len(data):
                sent += self.connection.send(view[sent:], flags)

    def _send_range(self, head: bytes, body: FileRange, length: int) -> None:
        if length <= SMALL:
            data = os.pread(body.descriptor, length, body.offset)
            if len(data) < length:
                raise Disconnect("the file is shorter than its object")
            self._send(head + data)
            return
        self._send(head, socket.MSG_MORE)
        out, offset, end = self.connection.fileno(), body.offset, body.offset + length
        while offset < end:
            count = os.sendfile(out, body.descriptor, offset, end - offset)
            if not count:
                raise Disconnect("the file is shorter than its object")
            offset += count


class _Sized:
    """A body of a known length."""

    def __init__(self, wire: Wire, length: int) -> None:
        self._wire = wire
        self._left = length

    def readinto(self, buffer: memoryview) -> int:
        if not self._left:
            return 0
        count = self._wire.body_into(buffer[: self._left])
        self._left -= count
        return count


class _Chunked:
    """A body in chunks: RFC 9112 section 7.1."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._left = 0  # of this chunk
        self._ended = False

    def readinto(self, buffer: memoryview) -> int:
        if self._ended:
            return 0
        wire = self._wire
        if not self._left:
            size = wire.line().partition(b";")[0].strip(b" \t")
            if not re.fullmatch(rb"[0-9A-Fa-f]{1,15}", size):
                wire.keep = False
                raise _broken("a chunk's size is not a number")
            self._left = int(size, 16)
            if not self._left:
                self._trailers()
                return 0
        count = wire.body_into(buffer[: self._left])
        self._left -= count
        if not self._left and wire.line():
            wire.keep = False
            raise _broken("a chunk is longer than its size")
        return count

    def _trailers(self) -> None:
        total = 0
        while line := self._wire.line():
            total += len(line)
            if total > HEAD_LIMIT:
                raise _broken("the trailers are over 64 KiB")
        self._ended = True


_NOTHING: Source = BytesSource(b"")


def _start(line: str) -> tuple[str, str, str]:
    """A request line's method, target and minor version."""
    start = _START.fullmatch(line)
    if start is None:
        raise _broken("the request line is malformed")
    method, target, major, minor = start.groups()
    if major != "1":
        raise ApiError(505, "HTTPVersionNotSupported", "the server speaks HTTP/1.1")
    return method, target, minor


def _field(line: str) -> tuple[str, str]:
    """A header's name, in lower case, and its value."""
    field = _FIELD.fullmatch(line)
    if field is None:
        raise _broken("a header is malformed")
    return field[1].lower(), field[2].rstrip(" \t")


# A text that comes back is the same object each time, which has its hash already.
_known_start = functools.lru_cache(1024)(_start)
_known_field = functools.lru_cache(1024)(_field)


def _broken(message: str) -> ApiError:
    return ApiError(400, "BadRequest", message)


def _origin_form(target: str) -> str:
    """``/path`` of ``http://host/path`` (RFC 9112 section 3.2.2)."""
    scheme, separator, rest = target.partition("://")
    if not separator or scheme.lower() not in {"http", "https"}:
        raise _broken("the target is not a path")
    return "/" + rest.partition("/")[2]
