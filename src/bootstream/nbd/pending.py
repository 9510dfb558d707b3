"""Requests that wait for their replies, and the replies decoded; the client's side.

Source: proto.md, "Simple reply message", "Structured reply chunk message".
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import MutableMapping
from dataclasses import dataclass, field

from bootstream.block.device import Extent
from bootstream.nbd.greeting import Agreement
from bootstream.nbd.protocol import (
    CHUNK_DONE,
    CHUNK_IS_ERROR,
    MAX_STRING,
    REQUEST_MAGIC,
    SIMPLE_REPLY_MAGIC,
    STATE_HOLE,
    STATE_ZERO,
    STRUCTURED_REPLY_MAGIC,
    Chunk,
    Command,
    Errno,
    ProtocolError,
)
from bootstream.nbd.requests import HEADER
from bootstream.nbd.stream import Stream

_MAX_ERROR = 6 + MAX_STRING + 8
_MAX_STATUS = 16 << 20
_ZEROS = bytes(64 << 10)


@dataclass(slots=True)
class Pending:
    """One request: what was sent, and what its replies have said so far."""

    command: Command
    flags: int
    offset: int
    length: int
    payload: memoryview | bytes = b""
    buffer: memoryview | None = None
    error: int = 0
    message: str = ""
    extents: list[Extent] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)

    def header(self, cookie: int) -> bytes:
        """Encode the request's header."""
        return HEADER.pack(
            REQUEST_MAGIC, self.flags, self.command, cookie, self.offset, self.length
        )

    def place(self, offset: int, length: int) -> memoryview:
        """Return the part of the buffer that a content chunk fills, and note it as filled."""
        if self.buffer is None or not length or offset < self.offset:
            raise ProtocolError("a content chunk that nobody asked for")
        end = offset + length
        at = bisect_right(self.starts, offset)
        if (
            end > self.offset + self.length
            or (at and self.ends[at - 1] > offset)
            or (at < len(self.starts) and self.starts[at] < end)
        ):
            raise ProtocolError("content chunks overlap or reach outside the request")
        if at and self.ends[at - 1] == offset:
            self.ends[at - 1] = end
        else:
            self.starts.insert(at, offset)
            self.ends.insert(at, end)
        start = offset - self.offset
        return self.buffer[start : start + length]

    def finish(self) -> None:
        """Check that a successful reply was complete."""
        if self.error:
            return
        if self.buffer is not None and self.length:
            filled = sum(self.ends) - sum(self.starts)
            if filled != self.length:
                raise ProtocolError("the server ended a read before all of it was sent")
        if self.command == Command.BLOCK_STATUS and not self.extents:
            raise ProtocolError("the server sent no block status")

    def fail(self, error: int, message: str = "") -> None:
        """Note an error; the first one counts."""
        if not self.error:
            self.error = error or Errno.EIO
            self.message = message


def receive(
    stream: Stream, under_way: MutableMapping[int, Pending], agreement: Agreement
) -> Pending | None:
    """Receive one message; return the request that it ended, removed from ``under_way``.

    Raises:
        ProtocolError: it is not a reply to any of the requests.
    """
    magic = int.from_bytes(stream.exactly(4), "big")
    if magic == SIMPLE_REPLY_MAGIC:
        error, cookie = struct.unpack(">IQ", stream.exactly(12))
        request = _find(under_way, cookie)
        if error:
            request.fail(error)
        elif request.buffer is not None:
            if agreement.structured:
                raise ProtocolError("a simple reply to a read, though structured ones are due")
            stream.into(request.place(request.offset, request.length))
        done = True
    elif magic == STRUCTURED_REPLY_MAGIC and agreement.structured:
        flags, kind, cookie, length = struct.unpack(">HHQI", stream.exactly(16))
        request = _find(under_way, cookie)
        _chunk(stream, request, kind, length, agreement)
        done = bool(flags & CHUNK_DONE)
        if kind == Chunk.NONE and not done:
            raise ProtocolError("a chunk of no kind that is not the last one")
    else:
        raise ProtocolError(f"bad reply magic {magic:#x}")
    if not done:
        return None
    del under_way[cookie]
    request.finish()
    return request


def _find(under_way: MutableMapping[int, Pending], cookie: int) -> Pending:
    request = under_way.get(cookie)
    if request is None:
        raise ProtocolError("a reply to a request that was not sent")
    return request


def _chunk(stream: Stream, request: Pending, kind: int, length: int, agreement: Agreement) -> None:
    """Receive the payload of one chunk."""
    if kind == Chunk.NONE and length == 0:
        return
    if kind == Chunk.OFFSET_DATA and length > 8:
        offset = int.from_bytes(stream.exactly(8), "big")
        stream.into(request.place(offset, length - 8))
    elif kind == Chunk.OFFSET_HOLE and length == 12:
        offset, size = struct.unpack(">QI", stream.exactly(12))
        target = request.place(offset, size)
        for at in range(0, size, len(_ZEROS)):
            target[at : at + len(_ZEROS)] = _ZEROS[: size - at]
    elif kind == Chunk.BLOCK_STATUS and request.command == Command.BLOCK_STATUS:
        _status(stream, request, length, agreement)
    elif kind & CHUNK_IS_ERROR and 6 <= length <= _MAX_ERROR:
        payload = stream.exactly(length)
        error, size = struct.unpack_from(">IH", payload)
        if size > length - 6:
            raise ProtocolError("an error chunk with a message longer than itself")
        request.fail(error, payload[6 : 6 + size].decode("utf-8", "replace"))
    else:
        raise ProtocolError(f"bad chunk of type {kind} and {length} bytes")


def _status(stream: Stream, request: Pending, length: int, agreement: Agreement) -> None:
    """Receive the descriptors of one metadata context."""
    if length < 12 or length % 8 != 4 or length > _MAX_STATUS or request.extents:
        raise ProtocolError("bad block status")
    if int.from_bytes(stream.exactly(4), "big") != agreement.allocation:
        raise ProtocolError("block status of a context that nobody asked for")
    room = request.length
    for size, state in struct.iter_unpack(">II", stream.exactly(length - 4)):
        if not size or not room:
            raise ProtocolError("block status of no bytes, or outside the request")
        # The last descriptor may describe more than was asked for, of the same kind.
        known = min(size, room)
        room -= known
        request.extents.append(Extent(known, bool(state & STATE_HOLE), bool(state & STATE_ZERO)))
