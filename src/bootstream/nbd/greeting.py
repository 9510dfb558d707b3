"""The client's half of the handshake.

Source: proto.md, "Fixed newstyle negotiation", "Option types". Everything but the choice of
the export may be refused by a server; then the client does without.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from bootstream.errors import (
    BootstreamError,
    InvalidInput,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from bootstream.nbd.protocol import (
    BASE_ALLOCATION,
    IHAVEOPT,
    MAX_OPTION,
    MAX_PAYLOAD,
    MAX_STRING,
    NBDMAGIC,
    OPTION_REPLY_MAGIC,
    ExportFlag,
    HandshakeFlag,
    Info,
    Option,
    OptionReply,
    ProtocolError,
)
from bootstream.nbd.stream import Stream

_IS_ERROR = 1 << 31
_MAX_REPLIES = 10_000
_EXPORT = struct.Struct(">QH")


@dataclass(slots=True)
class Agreement:
    """What client and server agreed on.

    ``allocation`` is the id of the context base:allocation, None where there is none;
    block sizes are in bytes.
    """

    size: int = 0
    flags: ExportFlag = ExportFlag.HAS_FLAGS
    structured: bool = False
    allocation: int | None = None
    minimum_block: int = 1
    maximum_payload: int = MAX_PAYLOAD


def negotiate(stream: Stream, export: str, *, name: str, structured: bool = True) -> Agreement:
    """Go through the handshake and choose ``export``; ``name`` is for errors.

    Without ``structured``, neither structured replies nor metadata are asked for: the
    kernel's client knows simple replies alone.

    Raises:
        NotFound: there is no such export.
        InvalidInput: the export's name is too long, or the server wants TLS.
        PermissionDenied: the server's policy forbids it.
        Unavailable: the server refuses for another reason.
        ProtocolError, EOFError, OSError: see :func:`bootstream.nbd.stream.mapped`.
    """
    raw = export.encode()
    if len(raw) > MAX_STRING:
        raise InvalidInput("the export name is too long", operation="connect to", object=name)
    magic, style, offered = struct.unpack(">QQH", stream.exactly(18))
    if magic != NBDMAGIC or style != IHAVEOPT:
        raise ProtocolError("this is no NBD server of the newstyle protocol")
    stream.send(struct.pack(">I", offered & 3))
    agreement = Agreement()
    if offered & HandshakeFlag.FIXED_NEWSTYLE:
        if structured:
            _ask(stream, agreement, raw)
        _option(stream, Option.GO, _go(raw))
        replies = _replies(stream, Option.GO)
        error, text = replies[-1]
        if error == OptionReply.ACK:
            _learn(agreement, [data for kind, data in replies if kind == OptionReply.INFO])
            return agreement
        if error != OptionReply.ERR_UNSUP:
            raise _refused(error, text, name)
    _option(stream, Option.EXPORT_NAME, raw)
    try:
        size, flags = _EXPORT.unpack(stream.exactly(_EXPORT.size))
    except EOFError:
        raise NotFound(
            "the server hung up, so it has no such export", operation="connect to", object=name
        ) from None
    if not offered & HandshakeFlag.NO_ZEROES:
        stream.exactly(124)
    agreement.size, agreement.flags = size, ExportFlag(flags)
    return agreement


def _ask(stream: Stream, agreement: Agreement, raw: bytes) -> None:
    """Ask for structured replies, then for base:allocation."""
    _option(stream, Option.STRUCTURED_REPLY, b"")
    if _replies(stream, Option.STRUCTURED_REPLY)[-1][0] != OptionReply.ACK:
        return
    agreement.structured = True
    query = BASE_ALLOCATION.encode()
    data = struct.pack(">I", len(raw)) + raw + struct.pack(">II", 1, len(query)) + query
    _option(stream, Option.SET_META_CONTEXT, data)
    replies = _replies(stream, Option.SET_META_CONTEXT)
    if replies[-1][0] != OptionReply.ACK:
        return
    for kind, reply in replies:
        if kind == OptionReply.META_CONTEXT and reply[4:] == query:
            agreement.allocation = int.from_bytes(reply[:4], "big")


def _go(raw: bytes) -> bytes:
    return struct.pack(">I", len(raw)) + raw + struct.pack(">HH", 1, Info.BLOCK_SIZE)


def _option(stream: Stream, option: Option, data: bytes) -> None:
    stream.send(struct.pack(">QII", IHAVEOPT, option, len(data)) + data)


def _replies(stream: Stream, option: Option) -> list[tuple[int, bytes]]:
    """Return all replies to an option; the last is ACK or an error."""
    found: list[tuple[int, bytes]] = []
    while len(found) < _MAX_REPLIES:
        magic, answered, kind, length = struct.unpack(">QIII", stream.exactly(20))
        if magic != OPTION_REPLY_MAGIC or answered != option or length > MAX_OPTION:
            raise ProtocolError("bad reply to an option")
        found.append((kind, stream.exactly(length)))
        if kind == OptionReply.ACK or kind & _IS_ERROR:
            return found
    raise ProtocolError("endless replies to an option")


def _learn(agreement: Agreement, infos: list[bytes]) -> None:
    """Take over what the INFO replies to GO say."""
    known = False
    for info in infos:
        kind = int.from_bytes(info[:2], "big")
        if kind == Info.EXPORT and len(info) == 12:
            size, flags = _EXPORT.unpack(info[2:])
            agreement.size, agreement.flags = size, ExportFlag(flags)
            known = True
        elif kind == Info.BLOCK_SIZE and len(info) == 14:
            minimum, _, maximum = struct.unpack(">III", info[2:])
            if not minimum or minimum & (minimum - 1) or minimum > 64 << 10 or maximum < minimum:
                raise ProtocolError("impossible block sizes")
            agreement.minimum_block = minimum
            agreement.maximum_payload = min(MAX_PAYLOAD, maximum - maximum % minimum)
    if not known:
        raise ProtocolError("the server does not say how large the export is")
    if agreement.size >= 1 << 63:
        raise ProtocolError("impossible export size")


def _refused(error: int, text: bytes, name: str) -> BootstreamError:
    said = text[:MAX_STRING].decode("utf-8", "replace")
    kind: type[BootstreamError]
    match error:
        case OptionReply.ERR_UNKNOWN:
            kind, why = NotFound, "there is no such export"
        case OptionReply.ERR_TLS_REQD:
            kind, why = InvalidInput, "the server wants TLS, which is not spoken here"
        case OptionReply.ERR_POLICY:
            kind, why = PermissionDenied, "the server's policy forbids it"
        case _:
            kind, why = Unavailable, f"the server refuses with error {error:#x}"
    return kind(said or why, operation="connect to", object=name)
