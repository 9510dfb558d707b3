"""Replies of the transmission phase, encoded.

Source: proto.md, "Simple reply message", "Structured reply chunk message", "Structured
reply types". Every function returns whole headers; the data of reads is never touched, it
goes to the socket from where it is.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from bootstream.nbd.protocol import (
    BASE_ALLOCATION_ID,
    CHUNK_DONE,
    MAX_STRING,
    SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY_MAGIC,
    Chunk,
    Errno,
)

SIMPLE = struct.Struct(">IIQ")
"""Magic, error, cookie."""
CHUNK = struct.Struct(">IHHQI")
"""Magic, chunk flags, type, cookie, length of what follows."""
DATA = struct.Struct(">IHHQIQ")
"""The same and the offset: what stands before the data of OFFSET_DATA."""
HOLE = struct.Struct(">IHHQIQI")
"""The same with offset and size: all of OFFSET_HOLE."""
_ERROR = struct.Struct(">IH")
_U32 = struct.Struct(">I")


def simple(cookie: int, error: int = 0) -> bytes:
    """Encode a simple reply; for a successful READ its data follows."""
    return SIMPLE.pack(SIMPLE_REPLY_MAGIC, error, cookie)


def data(cookie: int, offset: int, length: int, *, done: bool) -> bytes:
    """Encode what stands before ``length`` bytes of OFFSET_DATA."""
    return DATA.pack(STRUCTURED_REPLY_MAGIC, done, Chunk.OFFSET_DATA, cookie, length + 8, offset)


def hole(cookie: int, offset: int, length: int, *, done: bool) -> bytes:
    """Encode OFFSET_HOLE: ``length`` bytes of zeros."""
    return HOLE.pack(STRUCTURED_REPLY_MAGIC, done, Chunk.OFFSET_HOLE, cookie, 12, offset, length)


def none(cookie: int) -> bytes:
    """Encode NONE: done, and well."""
    return CHUNK.pack(STRUCTURED_REPLY_MAGIC, CHUNK_DONE, Chunk.NONE, cookie, 0)


def error(cookie: int, errno: Errno, text: str) -> bytes:
    """Encode ERROR as the last chunk; the text is cut at a character's boundary."""
    message = text.encode("utf-8", "replace")[:MAX_STRING].decode("utf-8", "ignore").encode()
    payload = _ERROR.pack(errno, len(message)) + message
    return (
        CHUNK.pack(STRUCTURED_REPLY_MAGIC, CHUNK_DONE, Chunk.ERROR, cookie, len(payload)) + payload
    )


def block_status(cookie: int, descriptors: Iterable[tuple[int, int]]) -> bytes:
    """Encode BLOCK_STATUS of base:allocation as the last chunk, from (length, state)."""
    flat = [number for descriptor in descriptors for number in descriptor]
    payload = struct.pack(f">I{len(flat)}I", BASE_ALLOCATION_ID, *flat)
    return (
        CHUNK.pack(STRUCTURED_REPLY_MAGIC, CHUNK_DONE, Chunk.BLOCK_STATUS, cookie, len(payload))
        + payload
    )
