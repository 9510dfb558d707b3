"""One HTTP/1.1 connection: bytes out, a head and exactly as many bytes in as it promised.

Message syntax is RFC 9112. What is here is what a client of an object store needs, and it
is strict where a lax reader could take wrong bytes for right ones: a body has a length,
by ``content-length`` or by chunks, and ends neither before nor after it.

Bodies of known length go from the socket straight into the caller's buffer. A socket's
time limit holds for one system call, which makes it a limit on standing still, not on the
transfer; a peer that trickles is caught by a least rate besides.

Without TLS the kernel keeps the time limit (``SO_RCVTIMEO``, socket(7)). Python's own would
ask by poll before each call, which with many threads costs more than the call: every system
call is a chance to lose the interpreter to another thread.
"""

from __future__ import annotations

import contextlib
import re
import select
import socket
import ssl
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

Socket: TypeAlias = "socket.socket | ssl.SSLSocket"

MAX_HEAD = 64 << 10
_READ = 16 << 10
_TLS_PIECE = 128 << 10
_JOINED = 64 << 10
_LEAST_RATE = 1 << 10
_SMALL = 64 << 10  # a body for which it is not worth it to set another time limit
_KEPT_LINES, _KEPT_LINE = 256, 128
_LENGTH = re.compile(r"[0-9]{1,19}\Z")
_TIMEVAL = struct.Struct("@ll")  # struct timeval
_STATUS_LINE = re.compile(r"HTTP/1\.[01] ([1-5][0-9][0-9])(?: .*)?\Z", re.DOTALL)
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?\r\n\Z")


@dataclass(frozen=True, slots=True)
class TimeLimits:
    """In seconds: to connect, to the first byte of an answer, and between two steps of a body."""

    connect: float = 10.0
    first_byte: float = 60.0
    progress: float = 30.0


class WireError(Exception):
    """The exchange broke; nothing more can be said on this connection.

    Args:
        message: what happened.
        before_answer: not one byte of an answer came.
        received: bytes of the body that are in the caller's buffer, and right.
    """

    def __init__(self, message: str, *, before_answer: bool = False, received: int = 0) -> None:
        super().__init__(message)
        self.before_answer = before_answer
        self.received = received


@dataclass(frozen=True, slots=True)
class Head:
    """Status and header fields of an answer; names in lower case, the last of a name counts.

    ``length`` is the body's size in bytes: None where it ends with the connection, -1 where
    it comes in chunks.
    """

    status: int
    headers: dict[str, str]
    length: int | None
    keep: bool


def parse_head(data: bytes, *, method: str) -> Head:
    """Parse a head, without the empty line at its end; raises WireError.

    RFC 9112, sections 4 to 6. ``method`` matters, as an answer to HEAD has no body.
    """
    first, *lines = data.decode("latin-1").split("\r\n")
    match = _STATUS_LINE.match(first)
    if match is None:
        raise WireError("the answer is not HTTP/1.1")
    status = int(match[1])
    headers: dict[str, str] = {}
    for line in lines:
        name, value = _lines.get(line) or _parse_line(line)
        if name == "content-length" and headers.get(name, value) != value:
            raise WireError("the answer has two lengths")
        headers[name] = value
    keep = first.startswith("HTTP/1.1") and headers.get("connection", "").lower() != "close"
    return Head(status, headers, _body_length(status, headers, method), keep)


_lines: dict[str, tuple[str, str]] = {}
"""Lines that were parsed: a server says most of them again and again."""


def _parse_line(line: str) -> tuple[str, str]:
    name, colon, value = line.partition(":")
    name, value = name.lower(), value.strip(" \t")
    if not colon or not name or name[-1] in " \t" or name[0] in " \t":
        raise WireError("the answer has a header line that is none")
    if len(line) <= _KEPT_LINE:
        if len(_lines) >= _KEPT_LINES:
            _lines.clear()
        _lines[line] = (name, value)
    return name, value


def _body_length(status: int, headers: dict[str, str], method: str) -> int | None:
    if method == "HEAD" or status < 200 or status in (204, 304):
        return 0
    coding = headers.get("transfer-encoding")
    if coding is not None:
        if coding.lower() != "chunked":
            raise WireError(f"the answer has the unknown transfer coding {coding[:40]!r}")
        if "content-length" in headers:
            raise WireError("the answer has a length and comes in chunks")
        return -1
    length = headers.get("content-length")
    if length is None:
        return None
    if not _LENGTH.match(length):
        raise WireError("the answer's length is not a number")
    return int(length)


class Connection:
    """A connected socket, for one exchange at a time. Not thread safe."""

    __slots__ = (
        "_all",
        "_buffer",
        "_end",
        "_limit",
        "_limits",
        "_plain",
        "_poll",
        "_start",
        "idle_since",
        "reused",
        "sock",
    )

    def __init__(self, sock: Socket, limits: TimeLimits) -> None:
        self.sock = sock
        self.reused = False
        self.idle_since = 0.0
        self._limits = limits
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._limit = -1.0
        self._plain = type(sock) is socket.socket
        # All of what is asked for by one call, if it comes in time.
        self._all = socket.MSG_WAITALL if self._plain else 0
        if self._plain:
            sock.settimeout(None)
        self._buffer = memoryview(bytearray(_READ))
        self._start = self._end = 0

    def close(self) -> None:
        """Close the socket, whatever state it is in."""
        with contextlib.suppress(OSError):
            self.sock.close()

    @property
    def clean(self) -> bool:
        """Whether nothing was received beyond what was asked for."""
        return self._start == self._end

    @property
    def quiet(self) -> bool:
        """Whether nothing came that was not asked for, be it the end."""
        if isinstance(self.sock, ssl.SSLSocket) and self.sock.pending():
            return False
        return not self._poll.poll(0)

    def send(self, head: bytes, body: bytes | memoryview = b"") -> None:
        """Send a request; raises OSError where the other side does not take it."""
        if len(body) <= _JOINED:
            self._wait_at_most(self._limits.first_byte)
            self._send_all(memoryview(b"".join((head, body)) if len(body) else head))
        else:
            self._wait_at_most(self._limits.progress)
            self._send_all(memoryview(head))
            self._send_all(memoryview(body))

    def _wait_at_most(self, seconds: float) -> None:
        if seconds == self._limit:  # a system call each
            return
        if not self._plain:
            self.sock.settimeout(seconds)
        else:
            # No time at all would mean no limit.
            whole, part = divmod(max(1, round(seconds * 1e6)), 1_000_000)
            limit = _TIMEVAL.pack(whole, part)
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        self._limit = seconds

    def _send_all(self, data: memoryview) -> None:
        # Not sendall(): its time limit holds for all of the data, not for one step.
        send = self.sock.send
        piece = len(data) if self._plain else _TLS_PIECE
        done = 0
        try:
            while done < len(data):
                done += send(data[done : done + piece])
        except BlockingIOError as error:
            raise TimeoutError from error

    def receive_head(self, method: str) -> Head:
        """Wait for an answer and return its head; raises WireError and OSError."""
        deadline = time.monotonic() + self._limits.first_byte
        self._wait_at_most(self._limits.first_byte)
        gathered = b""
        while True:
            if self._start == self._end:
                count = self._fill()
                if not count:
                    raise WireError(
                        "the connection was closed before an answer",
                        before_answer=not gathered,
                    )
            gathered += bytes(self._buffer[self._start : self._end])
            end = gathered.find(b"\r\n\r\n")
            if end < 0:
                self._start = self._end
                if len(gathered) > MAX_HEAD:
                    raise WireError("the head of the answer is too long")
                if time.monotonic() > deadline:
                    raise TimeoutError("the head of the answer takes too long")
                continue
            self._start = self._end - (len(gathered) - end - 4)
            head = parse_head(gathered[:end], method=method)
            if head.status >= 200:
                return head
            gathered = b""  # 100 Continue and its kind: the answer is still to come

    def _fill(self) -> int:
        self._start = 0
        self._end = 0
        try:
            self._end = self.sock.recv_into(self._buffer)
        except BlockingIOError as error:
            raise TimeoutError from error
        return self._end

    def receive_into(self, view: memoryview) -> None:
        """Fill ``view`` with the next bytes of a body; raises WireError with what it got."""
        size = len(view)
        done = min(self._end - self._start, size)
        if done:
            view[:done] = self._buffer[self._start : self._start + done]
            self._start += done
        if done == size:
            return
        sock = self.sock
        limit = self._limits.progress
        mark, marked = time.monotonic(), done
        try:
            if size - done > _SMALL:
                self._wait_at_most(limit)
            while done < size:
                count = sock.recv_into(view[done:], 0, self._all)
                if not count:
                    break
                done += count
                now = time.monotonic()
                if now - mark > limit:
                    if done < size and done - marked < _LEAST_RATE * limit:
                        raise WireError("the body only trickles", received=done)
                    mark, marked = now, done
        except OSError as error:
            raise WireError(reason(error), received=done) from error
        if done < size:
            raise WireError(f"the body ends after {done} of {size} bytes", received=done)

    def receive_through(
        self, size: int, buffer: memoryview, take: Callable[[memoryview, int], None]
    ) -> None:
        """Give the next ``size`` bytes of a body to ``take``, by way of ``buffer``.

        ``take`` gets bytes and how many came before them. A small buffer stays in the
        processor's cache on the way from the socket to a file. Raises WireError with how
        many bytes were taken, and what ``take`` raises.
        """
        done = 0
        while done < size:
            view = buffer[: size - done]
            try:
                self.receive_into(view)
            except WireError as error:
                take(view[: error.received], done)
                error.received += done
                raise
            take(view, done)
            done += len(view)

    def receive_body(self, head: Head, limit: int) -> bytes:
        """Return a whole body of at most ``limit`` bytes; raises WireError and OSError."""
        if head.length == 0:
            return b""
        if head.length is None:
            return self._until_closed(limit)
        if head.length < 0:
            return self._chunks(limit)
        if head.length > limit:
            raise WireError(f"the body has {head.length} bytes where {limit} are possible")
        body = bytearray(head.length)
        self.receive_into(memoryview(body))
        return bytes(body)

    def _until_closed(self, limit: int) -> bytes:
        body = bytearray()
        self._wait_at_most(self._limits.progress)
        while self._start < self._end or self._fill():
            body += self._buffer[self._start : self._end]
            self._start = self._end
            if len(body) > limit:
                raise WireError(f"the body has more than the {limit} bytes that are possible")
        return bytes(body)

    def _chunks(self, limit: int) -> bytes:
        """RFC 9112, section 7.1; trailers are read and dropped."""
        body = bytearray()
        while True:
            match = _CHUNK_SIZE.match(self._line())
            if match is None:
                raise WireError("the body has a chunk without a size")
            size = int(match[1], 16)
            if not size:
                break
            if len(body) + size > limit:
                raise WireError(f"the body has more than the {limit} bytes that are possible")
            piece = bytearray(size)
            self.receive_into(memoryview(piece))
            body += piece
            if self._line() != b"\r\n":
                raise WireError("the body has a chunk that is longer than its size")
        for _ in range(100):
            if self._line() == b"\r\n":
                return bytes(body)
        raise WireError("the body has too many trailers")

    def _line(self) -> bytes:
        line = bytearray()
        while len(line) < _READ:
            if self._start == self._end and not self._fill():
                raise WireError("the body ends within its chunks")
            window = bytes(self._buffer[self._start : self._end])
            end = window.find(b"\n") + 1
            if end:
                line += window[:end]
                self._start += end
                return bytes(line)
            line += window
            self._start = self._end
        raise WireError("the body has a line without an end")


def reason(error: OSError) -> str:
    """Say what a socket's error means, without addresses that change from run to run."""
    if isinstance(error, (TimeoutError, BlockingIOError)):
        return "the other side stands still"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {error.reason or error}"
    return error.strerror or str(error) or type(error).__name__
