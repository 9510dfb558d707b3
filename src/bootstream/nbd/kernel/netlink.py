"""Netlink messages: bytes in, values out, no sockets.

Sources: RFC 3549, section 2.2 (the header), and Linux, ``include/uapi/linux/netlink.h`` and
``genetlink.h``. A message is a header of 16 bytes and a payload; messages lie one after the
other in a datagram, each aligned to 4 bytes. A generic netlink payload is a command, a
version, two bytes of nothing, then attributes. An attribute is a length that counts its own
header of 4 bytes, a type, and a value, aligned to 4 bytes; its value may be attributes
again. Numbers have the byte order of the machine.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

_HEADER = struct.Struct("=IHHII")
_GENERIC = struct.Struct("=BBH")
_ATTRIBUTE = struct.Struct("=HH")
_ERROR = struct.Struct("=i")

# Types of messages below those of families.
NOOP, ERROR, DONE, OVERRUN = 1, 2, 3, 4
FIRST_FAMILY = 0x10

# Flags of the header.
REQUEST, ACK = 0x01, 0x04
_CAPPED, _EXPLAINED = 0x100, 0x200
"""Of an error: the request's payload is left out; attributes follow."""

_TYPE_MASK = 0x3FFF
"""The two top bits of an attribute's type say "nested" and "big endian"."""
_EXPLANATION = 1
"""NLMSGERR_ATTR_MSG."""


class NetlinkError(Exception):
    """The bytes are not netlink messages."""


class Message(NamedTuple):
    """One message: its type (a family's number, or ERROR, DONE…), flags, sequence, payload."""

    kind: int
    flags: int
    sequence: int
    payload: bytes


class Attribute(NamedTuple):
    """One attribute, its type without the flag bits."""

    kind: int
    value: bytes


class Answer(NamedTuple):
    """A generic netlink payload: command, and attributes in their order."""

    command: int
    attributes: tuple[Attribute, ...]


class Verdict(NamedTuple):
    """What an ERROR message says: an errno, 0 for success, and the kernel's words for it."""

    errno: int
    text: str


def pack(kind: int, flags: int, sequence: int, payload: bytes) -> bytes:
    """Return a message; the sender's port is left to the kernel."""
    message = _HEADER.pack(_HEADER.size + len(payload), kind, flags, sequence, 0) + payload
    return _aligned(message)


def pack_generic(command: int, attributes: Iterable[bytes], *, version: int = 1) -> bytes:
    """Return a generic netlink payload."""
    return _GENERIC.pack(command, version, 0) + b"".join(attributes)


def attribute(kind: int, value: bytes) -> bytes:
    """Return an attribute."""
    return _aligned(_ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value)


def u8(kind: int, value: int) -> bytes:
    """Return an attribute of 8 bits."""
    return attribute(kind, struct.pack("=B", value))


def u32(kind: int, value: int) -> bytes:
    """Return an attribute of 32 bits."""
    return attribute(kind, struct.pack("=I", value))


def u64(kind: int, value: int) -> bytes:
    """Return an attribute of 64 bits."""
    return attribute(kind, struct.pack("=Q", value))


def string(kind: int, value: str) -> bytes:
    """Return an attribute of text, with the zero at its end."""
    return attribute(kind, value.encode() + b"\0")


def nested(kind: int, attributes: Iterable[bytes]) -> bytes:
    """Return an attribute of attributes, flagged as such."""
    return attribute(kind | 0x8000, b"".join(attributes))


def number(value: bytes) -> int:
    """Return the number that an attribute of 8, 16, 32 or 64 bits holds.

    Raises:
        NetlinkError: it has another length.
    """
    if len(value) not in (1, 2, 4, 8):
        raise NetlinkError(f"an attribute of {len(value)} bytes is no number")
    return int.from_bytes(value, "little" if _LITTLE else "big")


def text(value: bytes) -> str:
    """Return the text that an attribute holds, up to its zero."""
    return value.partition(b"\0")[0].decode("utf-8", "replace")


def parse(datagram: bytes) -> Iterator[Message]:
    """Yield the messages of a datagram.

    Raises:
        NetlinkError: a length does not fit.
    """
    at = 0
    while at < len(datagram):
        if len(datagram) - at < _HEADER.size:
            raise NetlinkError("a message's header is cut off")
        length, kind, flags, sequence, _port = _HEADER.unpack_from(datagram, at)
        if not _HEADER.size <= length <= len(datagram) - at:
            raise NetlinkError(f"a message of {length} bytes does not fit")
        yield Message(kind, flags, sequence, datagram[at + _HEADER.size : at + length])
        at += -(-length // 4) * 4


def parse_generic(payload: bytes) -> Answer:
    """Return command and attributes of a generic netlink payload.

    Raises:
        NetlinkError: it is none.
    """
    if len(payload) < _GENERIC.size:
        raise NetlinkError("a generic netlink header is cut off")
    command, _version, _reserved = _GENERIC.unpack_from(payload)
    return Answer(command, tuple(parse_attributes(payload[_GENERIC.size :])))


def parse_attributes(data: bytes) -> Iterator[Attribute]:
    """Yield attributes, from a payload or from the value of a nested one.

    Raises:
        NetlinkError: a length does not fit.
    """
    at = 0
    while at < len(data):
        if len(data) - at < _ATTRIBUTE.size:
            raise NetlinkError("an attribute's header is cut off")
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if not _ATTRIBUTE.size <= length <= len(data) - at:
            raise NetlinkError(f"an attribute of {length} bytes does not fit")
        yield Attribute(kind & _TYPE_MASK, data[at + _ATTRIBUTE.size : at + length])
        at += -(-length // 4) * 4


def parse_error(message: Message) -> Verdict:
    """Return what a message of type ERROR says; it follows every request that asks for ACK.

    Raises:
        NetlinkError: it is none.
    """
    payload = message.payload
    if len(payload) < _ERROR.size + _HEADER.size:
        raise NetlinkError("an error message is cut off")
    (code,) = _ERROR.unpack_from(payload)
    explanation = ""
    if message.flags & _EXPLAINED:
        length = _HEADER.unpack_from(payload, _ERROR.size)[0]
        start = _HEADER.size if message.flags & _CAPPED else -(-length // 4) * 4
        for found in parse_attributes(payload[_ERROR.size + start :]):
            if found.kind == _EXPLANATION:
                explanation = text(found.value)
    return Verdict(-code, explanation)


def _aligned(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


_LITTLE = struct.pack("=H", 1) == struct.pack("<H", 1)
