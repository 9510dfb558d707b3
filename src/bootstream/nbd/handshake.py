"""The server's half of the handshake: bytes in, replies out, no sockets.

Source: proto.md, "Fixed newstyle negotiation", "Option types", "Metadata querying". Use::

    handshake = Handshake(exports, default="disk")
    send(handshake.greeting())
    while handshake.phase not in (Phase.TRANSMISSION, Phase.CLOSED):
        handshake.receive(recv())
        while (reply := handshake.step()) is not None:
            send(reply)

Each step answers one option, so that what waits to be sent is one reply, however many
options a client sends without reading. :class:`Offer` is all that is known of an export
here; the device itself stays with the server.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from bootstream.nbd.protocol import (
    BASE_ALLOCATION,
    BASE_ALLOCATION_ID,
    IHAVEOPT,
    MAX_OPTION,
    MAX_OPTIONS,
    MAX_PAYLOAD,
    MAX_SKIP,
    MAX_STRING,
    NBDMAGIC,
    OPTION_REPLY_MAGIC,
    TRANSITIONS,
    ExportFlag,
    HandshakeFlag,
    Info,
    Option,
    OptionReply,
    Phase,
    ProtocolError,
)

_GREETING = struct.Struct(">QQH")
_FLAGS = struct.Struct(">I")
_OPTION = struct.Struct(">QII")
_REPLY = struct.Struct(">QIII")
_SIZE_AND_FLAGS = struct.Struct(">QH")
_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")
# A plain number, because the complement of a flag holds the known flags only.
_OURS = int(HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES)


@dataclass(frozen=True, slots=True)
class Offer:
    """What a client is told of an export: ``size`` in bytes, what may be done with it."""

    size: int
    writable: bool
    description: str = ""
    preferred_block_size: int = 4096

    def flags(self, *, structured: bool) -> ExportFlag:
        """Return the transmission flags; DF exists only with structured replies."""
        flags = ExportFlag.HAS_FLAGS | ExportFlag.CAN_MULTI_CONN | ExportFlag.SEND_CACHE
        if structured:
            flags |= ExportFlag.SEND_DF
        if not self.writable:
            return flags | ExportFlag.READ_ONLY
        return (
            flags
            | ExportFlag.SEND_FLUSH
            | ExportFlag.SEND_FUA
            | ExportFlag.SEND_TRIM
            | ExportFlag.SEND_WRITE_ZEROES
            | ExportFlag.SEND_FAST_ZERO
        )


class _Refused(Exception):
    """The option is answered with an error; the handshake goes on."""

    def __init__(self, reply: OptionReply, text: str) -> None:
        super().__init__(text)
        self.reply = reply
        self.text = text


class Handshake:
    """One handshake. Not thread safe; one connection, one thread.

    Args:
        exports: by name.
        default: the name that the empty name stands for.

    Attributes:
        phase: where it stands.
        export: once TRANSMISSION: the name of the export chosen, never the empty one.
        structured: whether structured replies were negotiated.
        allocation: once TRANSMISSION: whether base:allocation was selected for ``export``.
    """

    def __init__(self, exports: Mapping[str, Offer], *, default: str) -> None:
        self._exports = exports
        self._default = default
        self.phase = Phase.FLAGS
        self.export = ""
        self.structured = False
        self._selected_for: str | None = None
        self._no_zeroes = False
        self._buffer = bytearray()
        self._option = 0
        self._length = 0
        self._options = 0

    @property
    def allocation(self) -> bool:
        """Whether base:allocation was selected, and for the export that was chosen."""
        return self._selected_for is not None and self._selected_for == self.export

    def greeting(self) -> bytes:
        """Return what the server says first."""
        return _GREETING.pack(NBDMAGIC, IHAVEOPT, _OURS)

    def receive(self, data: bytes | memoryview) -> None:
        """Take what came in; call :meth:`step` until it returns None before the next."""
        self._buffer += data

    def step(self) -> bytes | None:
        """Go on by one message; return the reply (perhaps empty), None where more is needed.

        Raises:
            ProtocolError: the client broke the framing, or chose with EXPORT_NAME what is
                not there; the connection must be closed.
        """
        return _STEPS[self.phase](self)

    def leftover(self) -> bytes:
        """Return, once TRANSMISSION, what was received beyond the handshake."""
        data = bytes(self._buffer)
        self._buffer.clear()
        return data

    # -- phases ---------------------------------------------------------------------------

    def _go(self, phase: Phase) -> None:
        if phase not in TRANSITIONS[self.phase]:
            raise AssertionError(f"no way from {self.phase} to {phase}")
        self.phase = phase

    def _take(self, size: int) -> bytes | None:
        if len(self._buffer) < size:
            return None
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def _client_flags(self) -> bytes | None:
        data = self._take(_FLAGS.size)
        if data is None:
            return None
        (flags,) = _FLAGS.unpack(data)
        if flags & ~_OURS:
            raise ProtocolError(f"unknown client flags {flags:#x}")
        self._no_zeroes = bool(flags & HandshakeFlag.NO_ZEROES)
        self._go(Phase.OPTION)
        return b""

    def _header(self) -> bytes | None:
        data = self._take(_OPTION.size)
        if data is None:
            return None
        magic, self._option, self._length = _OPTION.unpack(data)
        if magic != IHAVEOPT:
            raise ProtocolError(f"bad option magic {magic:#x}")
        self._options += 1
        if self._options > MAX_OPTIONS or self._length > MAX_SKIP:
            raise ProtocolError(f"option {self._option} of {self._length} bytes is beyond limits")
        self._go(Phase.DATA if self._length <= MAX_OPTION else Phase.SKIP)
        return b""

    def _skip(self) -> bytes | None:
        dropped = min(self._length, len(self._buffer))
        del self._buffer[:dropped]
        self._length -= dropped
        if self._length:
            return None
        if self._option == Option.EXPORT_NAME:
            raise ProtocolError("the export name is too long")
        self._go(Phase.OPTION)
        text = f"more than {MAX_OPTION} bytes of option data"
        return self._reply(OptionReply.ERR_TOO_BIG, text.encode())

    def _data(self) -> bytes | None:
        data = self._take(self._length)
        if data is None:
            return None
        handle = _HANDLERS.get(self._option)
        if handle is None:
            self._go(Phase.OPTION)
            return self._reply(OptionReply.ERR_UNSUP, b"this option is not supported")
        try:
            reply = handle(self, data)
        except _Refused as refused:
            reply = self._reply(refused.reply, refused.text.encode()[:MAX_STRING])
        if self.phase is Phase.DATA:
            self._go(Phase.OPTION)
        return reply

    def _reply(self, kind: OptionReply, data: bytes = b"") -> bytes:
        return _REPLY.pack(OPTION_REPLY_MAGIC, self._option, kind, len(data)) + data

    # -- options --------------------------------------------------------------------------

    def _resolve(self, name: bytes) -> tuple[str, Offer]:
        if len(name) > MAX_STRING:
            raise _Refused(OptionReply.ERR_TOO_BIG, "the export name is too long")
        try:
            text = name.decode() or self._default
        except UnicodeDecodeError:
            raise _Refused(OptionReply.ERR_INVALID, "the export name is not UTF-8") from None
        offer = self._exports.get(text)
        if offer is None:
            raise _Refused(OptionReply.ERR_UNKNOWN, f"there is no export named {text!r}")
        return text, offer

    def _export_name(self, data: bytes) -> bytes:
        # "It does not support the return of error messages": the session ends instead.
        try:
            name, offer = self._resolve(data)
        except _Refused as refused:
            raise ProtocolError(f"EXPORT_NAME: {refused.text}") from None
        self.export = name
        self._go(Phase.TRANSMISSION)
        reply = _SIZE_AND_FLAGS.pack(offer.size, offer.flags(structured=self.structured))
        return reply if self._no_zeroes else reply + bytes(124)

    def _abort(self, data: bytes) -> bytes:
        del data  # a client that leaves is let go, whatever it says
        self._go(Phase.CLOSED)
        return self._reply(OptionReply.ACK)

    def _list(self, data: bytes) -> bytes:
        _insist_empty(data)
        replies = []
        for name, offer in self._exports.items():
            raw = name.encode()
            described = offer.description.encode()[:MAX_STRING].decode("utf-8", "ignore").encode()
            replies.append(self._reply(OptionReply.SERVER, _U32.pack(len(raw)) + raw + described))
        replies.append(self._reply(OptionReply.ACK))
        return b"".join(replies)

    def _starttls(self, data: bytes) -> bytes:
        _insist_empty(data)
        raise _Refused(OptionReply.ERR_UNSUP, "this server has no TLS")

    def _structured_reply(self, data: bytes) -> bytes:
        _insist_empty(data)
        self.structured = True
        return self._reply(OptionReply.ACK)

    def _info(self, data: bytes) -> bytes:
        fields = _Fields(data)
        name = fields.string(len(data))
        wanted = [fields.u16() for _ in range(fields.u16())]
        fields.end()
        text, offer = self._resolve(name)
        flags = offer.flags(structured=self.structured)
        infos = [_U16.pack(Info.EXPORT) + _SIZE_AND_FLAGS.pack(offer.size, flags)]
        if Info.NAME in wanted:
            infos.append(_U16.pack(Info.NAME) + text.encode())
        if Info.DESCRIPTION in wanted and offer.description:
            described = offer.description.encode()[:MAX_STRING].decode("utf-8", "ignore")
            infos.append(_U16.pack(Info.DESCRIPTION) + described.encode())
        if Info.BLOCK_SIZE in wanted:
            sizes = (1, offer.preferred_block_size, MAX_PAYLOAD)
            infos.append(struct.pack(">HIII", Info.BLOCK_SIZE, *sizes))
        if self._option == Option.GO:
            self.export = text
            self._go(Phase.TRANSMISSION)
        replies = [self._reply(OptionReply.INFO, info) for info in infos]
        return b"".join([*replies, self._reply(OptionReply.ACK)])

    def _meta_context(self, data: bytes) -> bytes:
        setting = self._option == Option.SET_META_CONTEXT
        if setting:
            # "replaces all previously-set contexts", an attempt that fails too.
            self._selected_for = None
        if not self.structured:
            raise _Refused(OptionReply.ERR_INVALID, "negotiate structured replies first")
        fields = _Fields(data)
        name = fields.string(len(data))
        queries = list(fields.strings(fields.u32()))
        fields.end()
        text, _ = self._resolve(name)
        # Every query is looked at, so that a bad one after a good one is refused too.
        selected = [_selects(query, listing=not setting) for query in queries]
        found = any(selected) if queries else not setting
        reply = self._reply(OptionReply.ACK)
        if not found:
            return reply
        if setting:
            self._selected_for = text
        context = _U32.pack(BASE_ALLOCATION_ID if setting else 0) + BASE_ALLOCATION.encode()
        return self._reply(OptionReply.META_CONTEXT, context) + reply


def _selects(query: bytes, *, listing: bool) -> bool:
    """Whether a query means base:allocation; ``base:`` is a wildcard where it lists only."""
    if len(query) > MAX_STRING:
        raise _Refused(OptionReply.ERR_TOO_BIG, "a metadata query is too long")
    try:
        text = query.decode()
    except UnicodeDecodeError:
        raise _Refused(OptionReply.ERR_INVALID, "a metadata query is not UTF-8") from None
    if ":" not in text:
        raise _Refused(OptionReply.ERR_INVALID, f"the metadata query {text!r} has no namespace")
    return text == BASE_ALLOCATION or (listing and text == "base:")


def _insist_empty(data: bytes) -> None:
    if data:
        raise _Refused(OptionReply.ERR_INVALID, "this option takes no data")


class _Fields:
    """Reads the fields of an option's data; whatever does not fit is ERR_INVALID."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def _take(self, size: int) -> bytes:
        field = self._data[self._at : self._at + size]
        if len(field) < size:
            raise _Refused(OptionReply.ERR_INVALID, "the option's data is too short")
        self._at += size
        return field

    def u16(self) -> int:
        return int.from_bytes(self._take(2), "big")

    def u32(self) -> int:
        return int.from_bytes(self._take(4), "big")

    def string(self, limit: int) -> bytes:
        return self._take(min(self.u32(), limit + 1))

    def strings(self, count: int) -> Iterable[bytes]:
        # ``count`` is as the client says; each string takes four bytes at least, so that a
        # false one runs into the end of the data.
        for _ in range(count):
            yield self.string(len(self._data))

    def end(self) -> None:
        if self._at != len(self._data):
            raise _Refused(OptionReply.ERR_INVALID, "the option's data is too long")


_STEPS: dict[Phase, Callable[[Handshake], bytes | None]] = {
    Phase.FLAGS: Handshake._client_flags,
    Phase.OPTION: Handshake._header,
    Phase.DATA: Handshake._data,
    Phase.SKIP: Handshake._skip,
    Phase.TRANSMISSION: lambda _: None,
    Phase.CLOSED: lambda _: None,
}
_HANDLERS: dict[int, Callable[[Handshake, bytes], bytes]] = {
    Option.EXPORT_NAME: Handshake._export_name,
    Option.ABORT: Handshake._abort,
    Option.LIST: Handshake._list,
    Option.STARTTLS: Handshake._starttls,
    Option.INFO: Handshake._info,
    Option.GO: Handshake._info,
    Option.STRUCTURED_REPLY: Handshake._structured_reply,
    Option.LIST_META_CONTEXT: Handshake._meta_context,
    Option.SET_META_CONTEXT: Handshake._meta_context,
}
