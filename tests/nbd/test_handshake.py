"""The server's handshake, as bytes: no sockets."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootstream.nbd.handshake import Handshake, Offer
from bootstream.nbd.protocol import (
    IHAVEOPT,
    MAX_OPTION,
    MAX_OPTIONS,
    MAX_SKIP,
    NBDMAGIC,
    OPTION_REPLY_MAGIC,
    TRANSITIONS,
    ExportFlag,
    Info,
    Option,
    OptionReply,
    Phase,
    ProtocolError,
)

OFFERS = {
    "disk": Offer(1 << 40, writable=True, description="the disk"),
    "cd": Offer(123, writable=False),
}
NO_ZEROES = struct.pack(">I", 3)
STRUCTURED = (Option.STRUCTURED_REPLY, b"")


def option(number: int, data: bytes = b"") -> bytes:
    return struct.pack(">QII", IHAVEOPT, number, len(data)) + data


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack(">I", len(raw)) + raw


def info(name: str | bytes, *wanted: int) -> bytes:
    return string(name) + struct.pack(f">H{len(wanted)}H", len(wanted), *wanted)


def meta(name: str, *queries: str | bytes) -> bytes:
    return string(name) + struct.pack(">I", len(queries)) + b"".join(map(string, queries))


def run(handshake: Handshake, data: bytes) -> bytes:
    handshake.receive(data)
    said = b""
    while (reply := handshake.step()) is not None:
        said += reply
    return said


def started() -> Handshake:
    handshake = Handshake(OFFERS, default="disk")
    assert run(handshake, NO_ZEROES) == b""
    return handshake


def replies_of(said: bytes) -> list[tuple[int, int, bytes]]:
    """Option, kind, data of each reply; nothing may be left over."""
    found = []
    while said:
        magic, number, kind, length = struct.unpack_from(">QIII", said)
        assert magic == OPTION_REPLY_MAGIC
        assert len(said) >= 20 + length
        found.append((number, kind, said[20 : 20 + length]))
        said = said[20 + length :]
    return found


def ask(*options: tuple[int, bytes], handshake: Handshake | None = None) -> list[tuple[int, bytes]]:
    """Kind and data of the replies to the last of the options."""
    handshake = handshake or started()
    last: list[tuple[int, bytes]] = []
    for number, data in options:
        found = replies_of(run(handshake, option(number, data)))
        assert {n for n, _, _ in found} == {number}
        last = [(kind, reply) for _, kind, reply in found]
    return last


def test_greeting() -> None:
    """Newstyle, fixed, and able to do without 124 zeros."""
    greeting = Handshake(OFFERS, default="disk").greeting()
    assert greeting == struct.pack(">QQH", NBDMAGIC, IHAVEOPT, 3)


@pytest.mark.parametrize("flags", [4, 1 << 31, 0xFFFFFFFF])
def test_unknown_client_flags_end_it(flags: int) -> None:
    """The server MUST drop the connection."""
    with pytest.raises(ProtocolError):
        run(Handshake(OFFERS, default="disk"), struct.pack(">I", flags))


@pytest.mark.parametrize(("flags", "zeros"), [(0, 124), (1, 124), (2, 0), (3, 0)])
def test_export_name(flags: int, zeros: int) -> None:
    """Size, flags, and the zeros, unless the client does without them."""
    handshake = Handshake(OFFERS, default="disk")
    said = run(handshake, struct.pack(">I", flags) + option(Option.EXPORT_NAME, b"cd") + b"rest")
    size, export_flags = struct.unpack_from(">QH", said)
    assert (size, len(said)) == (123, 10 + zeros)
    assert not any(said[10:])
    assert export_flags & ExportFlag.READ_ONLY
    assert handshake.phase is Phase.TRANSMISSION
    assert (handshake.export, handshake.leftover()) == ("cd", b"rest")


@pytest.mark.parametrize("name", [b"nope", b"\xff", b"x" * 5000, b"x" * (MAX_OPTION + 1)])
def test_export_name_that_is_not_there_ends_it(name: bytes) -> None:
    """There is no way to say no."""
    with pytest.raises(ProtocolError):
        run(started(), option(Option.EXPORT_NAME, name))


def test_go_gives_what_was_asked_for() -> None:
    """EXPORT always, the rest on request, ACK last; the empty name is the default's."""
    handshake = started()
    said = ask((Option.GO, info("", 1, 2, 3, 77)), handshake=handshake)
    assert [kind for kind, _ in said] == [OptionReply.INFO] * 4 + [OptionReply.ACK]
    kinds = {int.from_bytes(data[:2], "big"): data[2:] for kind, data in said[:-1]}
    size, flags = struct.unpack(">QH", kinds[Info.EXPORT])
    assert size == 1 << 40
    assert flags == 0b1101_0110_1101, "no DF without structured replies"
    assert kinds[Info.NAME] == b"disk"
    assert kinds[Info.DESCRIPTION] == b"the disk"
    assert struct.unpack(">III", kinds[Info.BLOCK_SIZE]) == (1, 4096, 32 << 20)
    assert (handshake.phase, handshake.export) == (Phase.TRANSMISSION, "disk")
    assert not handshake.allocation


def test_info_changes_nothing() -> None:
    """INFO is GO without going."""
    handshake = started()
    assert len(ask((Option.INFO, info("cd")), handshake=handshake)) == 2
    assert handshake.phase is Phase.OPTION
    [first, last] = ask(STRUCTURED, (Option.INFO, info("cd")), handshake=handshake)
    assert int.from_bytes(first[1][10:12], "big") & ExportFlag.SEND_DF
    assert last == (OptionReply.ACK, b"")


@pytest.mark.parametrize(
    ("number", "data", "error"),
    [
        (Option.GO, info("nope"), OptionReply.ERR_UNKNOWN),
        (Option.INFO, info("nope"), OptionReply.ERR_UNKNOWN),
        (Option.GO, info(b"\xff"), OptionReply.ERR_INVALID),
        (Option.GO, info("x" * 4097), OptionReply.ERR_TOO_BIG),
        (Option.GO, b"", OptionReply.ERR_INVALID),
        (Option.GO, info("cd")[:-1], OptionReply.ERR_INVALID),
        (Option.GO, info("cd") + b"x", OptionReply.ERR_INVALID),
        (Option.GO, struct.pack(">I", 0xFFFFFFFF) + b"cd", OptionReply.ERR_INVALID),
        (Option.GO, string("cd") + b"\xff\xff\0\0", OptionReply.ERR_INVALID),
        (Option.LIST, b"x", OptionReply.ERR_INVALID),
        (Option.STARTTLS, b"", OptionReply.ERR_UNSUP),
        (Option.STARTTLS, b"x", OptionReply.ERR_INVALID),
        (Option.STRUCTURED_REPLY, b"x", OptionReply.ERR_INVALID),
        (Option.EXTENDED_HEADERS, b"", OptionReply.ERR_UNSUP),
        (4, b"", OptionReply.ERR_UNSUP),
        (12345, b"data", OptionReply.ERR_UNSUP),
        (Option.LIST, bytes(MAX_OPTION + 1), OptionReply.ERR_TOO_BIG),
        (99, bytes(1 << 20), OptionReply.ERR_TOO_BIG),
        (Option.LIST_META_CONTEXT, meta("cd"), OptionReply.ERR_INVALID),
        (Option.SET_META_CONTEXT, meta("cd", "base:allocation"), OptionReply.ERR_INVALID),
    ],
)
def test_refused_options_leave_it_alive(number: int, data: bytes, error: OptionReply) -> None:
    """One error reply, the data consumed, and the next option works."""
    handshake = started()
    [(kind, text)] = ask((number, data), handshake=handshake)
    assert kind == error
    text.decode()
    assert len(ask((Option.LIST, b""), handshake=handshake)) == 3


def test_list() -> None:
    """Every name with its description."""
    said = ask((Option.LIST, b""))
    assert said == [
        (OptionReply.SERVER, string("disk") + b"the disk"),
        (OptionReply.SERVER, string("cd")),
        (OptionReply.ACK, b""),
    ]


def test_abort() -> None:
    """Acknowledged, then closed."""
    handshake = started()
    assert ask((Option.ABORT, b"bye"), handshake=handshake) == [(OptionReply.ACK, b"")]
    assert handshake.phase is Phase.CLOSED


CONTEXT = b"base:allocation"
ACK = (OptionReply.ACK, b"")


@pytest.mark.parametrize(
    ("number", "queries", "context_id"),
    [
        (Option.LIST_META_CONTEXT, [], 0),
        (Option.LIST_META_CONTEXT, ["base:"], 0),
        (Option.LIST_META_CONTEXT, ["x-other:thing", "base:allocation"], 0),
        (Option.LIST_META_CONTEXT, ["x-other:"], None),
        (Option.SET_META_CONTEXT, [], None),
        (Option.SET_META_CONTEXT, ["base:"], None),
        (Option.SET_META_CONTEXT, ["base:allocation", "base:allocation"], 1),
        (Option.SET_META_CONTEXT, ["qemu:dirty-bitmap:x"], None),
    ],
)
def test_meta_contexts(number: int, queries: Sequence[str], context_id: int | None) -> None:
    """The one context by name; wildcards list and never set."""
    said = ask(STRUCTURED, (number, meta("disk", *queries)))
    found = [] if context_id is None else [(OptionReply.META_CONTEXT, context_id)]
    assert [(kind, int.from_bytes(data[:4], "big")) for kind, data in said[:-1]] == found
    assert all(data[4:] == CONTEXT for _, data in said[:-1])
    assert said[-1] == ACK


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (meta("nope", "base:allocation"), OptionReply.ERR_UNKNOWN),
        (meta("disk", "nonsense"), OptionReply.ERR_INVALID),
        (meta("disk", "base:allocation", b"\xff:"), OptionReply.ERR_INVALID),
        (meta("disk", "x:" + "y" * 5000), OptionReply.ERR_TOO_BIG),
        (string("disk") + b"\xff\xff\xff\xff", OptionReply.ERR_INVALID),
        (meta("disk", "base:allocation") + b"x", OptionReply.ERR_INVALID),
        (b"", OptionReply.ERR_INVALID),
    ],
)
def test_bad_meta_contexts(data: bytes, error: OptionReply) -> None:
    """Refused, and what was selected before is gone."""
    handshake = started()
    ask(STRUCTURED, (Option.SET_META_CONTEXT, meta("disk", "base:allocation")), handshake=handshake)
    [(kind, _)] = ask((Option.SET_META_CONTEXT, data), handshake=handshake)
    assert kind == error
    ask((Option.GO, info("disk")), handshake=handshake)
    assert not handshake.allocation


@pytest.mark.parametrize(("go", "selected"), [("disk", True), ("", True), ("cd", False)])
def test_contexts_are_of_one_export(go: str, selected: bool) -> None:
    """Selecting for one export selects nothing for another; the default has two names."""
    handshake = started()
    ask(STRUCTURED, (Option.SET_META_CONTEXT, meta("disk", "base:allocation")), handshake=handshake)
    ask((Option.GO, info(go)), handshake=handshake)
    assert handshake.allocation is selected
    assert handshake.structured


def test_beyond_the_limits_it_ends() -> None:
    """Neither endless data nor endless options."""
    with pytest.raises(ProtocolError):
        run(started(), struct.pack(">QII", IHAVEOPT, 3, MAX_SKIP + 1))
    handshake = started()
    for _ in range(MAX_OPTIONS):
        run(handshake, option(12345))
    with pytest.raises(ProtocolError):
        run(handshake, option(12345))


def test_oversized_data_is_not_kept() -> None:
    """Skipped data does not stay in memory."""
    handshake = started()
    run(handshake, struct.pack(">QII", IHAVEOPT, 3, MAX_SKIP))
    for _ in range(0, MAX_SKIP, 1 << 20):
        run(handshake, bytes(1 << 20))
        assert len(handshake._buffer) == 0
    assert handshake.phase is Phase.OPTION


def test_bad_magic_ends_it() -> None:
    """There is no telling where the next option would be."""
    with pytest.raises(ProtocolError):
        run(started(), b"GET / HTTP/1.1\r\n\r\n")


def test_table_of_transitions_is_whole() -> None:
    """Every phase is in the table, the last two lead nowhere, all others are reachable."""
    assert set(TRANSITIONS) == set(Phase)
    assert not TRANSITIONS[Phase.TRANSMISSION] | TRANSITIONS[Phase.CLOSED]
    assert set().union(*TRANSITIONS.values()) == set(Phase) - {Phase.FLAGS}


options = st.lists(
    st.one_of(
        st.builds(
            option,
            st.sampled_from([2, 3, 4, 5, 6, 8, 9, 10, 11, 50]),
            st.one_of(
                st.binary(max_size=40),
                st.builds(info, st.sampled_from(["", "disk", "cd", "no"]), st.integers(0, 4)),
                st.builds(meta, st.just("disk"), st.sampled_from(["base:", "base:allocation"])),
            ),
        ),
        st.just(option(99, bytes(MAX_OPTION + 5))),
    ),
    max_size=6,
)


@given(options, st.lists(st.integers(0, 2000), max_size=20))
def test_splits_make_no_difference(sent: list[bytes], cuts: list[int]) -> None:
    """However the bytes are cut, what is said is the same."""
    stream = b"".join(sent)
    whole = started()
    expected = run(whole, stream)
    pieces = started()
    said, at = b"", 0
    for end in [*sorted(c for c in cuts if c < len(stream)), len(stream)]:
        said += run(pieces, stream[at:end])
        at = end
    assert said == expected
    assert (pieces.phase, pieces.export, pieces.structured, pieces.leftover()) == (
        whole.phase,
        whole.export,
        whole.structured,
        whole.leftover(),
    )


@given(st.lists(st.one_of(st.binary(max_size=200), options.map(b"".join)), max_size=4))
def test_garbage_raises_nothing_else(pieces: list[bytes]) -> None:
    """Only the protocol's own error, whatever comes; replies are well-formed."""
    handshake = started()
    try:
        for piece in pieces:
            replies_of(run(handshake, piece))
    except ProtocolError:
        pass
