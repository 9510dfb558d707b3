"""Framing and checking of requests, as bytes."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootstream.nbd.protocol import (
    MAX_PAYLOAD,
    REQUEST_MAGIC,
    Command,
    CommandFlag,
    Errno,
    ProtocolError,
)
from bootstream.nbd.requests import HEADER, RequestReader, refusal

Event = tuple[int, int, int, int, int, bytes | None]


def request(
    command: int, *, flags: int = 0, cookie: int = 1, offset: int = 0, length: int = 0
) -> bytes:
    return HEADER.pack(REQUEST_MAGIC, flags, command, cookie, offset, length)


def write(data: bytes, **fields: int) -> bytes:
    return request(Command.WRITE, length=len(data), **fields) + data


def write_random(size: int) -> bytes:
    return write(random.Random(size).randbytes(size))


def feed(reader: RequestReader, data: bytes, step: int | None = None) -> list[Event]:
    """What comes out when ``data`` comes in pieces of at most ``step`` bytes."""
    found: list[Event] = []
    while data:
        space = reader.space()
        assert len(space) > 0
        count = min(len(space), len(data), step or len(data))
        space[:count] = data[:count]
        data = data[count:]
        reader.received(count)
        for *head, payload in reader.requests():
            found.append((*head, None if payload is None else bytes(payload)))  # type: ignore[arg-type]
    return found


def test_a_batch() -> None:
    """Several requests in one piece come out together, payloads as they are."""
    data = request(0, cookie=5, offset=7, length=9) + write(b"abc", cookie=6) + request(3)
    assert feed(RequestReader(), data) == [
        (0, 0, 5, 7, 9, None),
        (1, 0, 6, 0, 3, b"abc"),
        (3, 0, 1, 0, 0, None),
    ]


def test_leftover_of_the_handshake_comes_first() -> None:
    """A client need not wait for the reply to GO."""
    reader = RequestReader(request(0, length=4) + request(2)[:10])
    assert [r[0] for r in reader.requests()] == [0]
    assert [r[0] for r in feed(reader, request(2)[10:])] == [2]
    assert reader.idle


requests_ = st.lists(
    st.one_of(
        st.builds(request, st.integers(2, 9), cookie=st.integers(0, 2**64 - 1)),
        st.builds(request, st.just(0), offset=st.integers(0, 2**64 - 1), length=st.just(77)),
        st.builds(write, st.binary(max_size=300), flags=st.integers(0, 65535)),
        st.integers(1, 3_000_000),
    ),
    max_size=6,
)


@given(requests_, st.integers(1, 200))
def test_splits_make_no_difference(sent: list[bytes | int], pieces_wanted: int) -> None:
    """However the bytes are cut, the same requests come out; a number is a long WRITE."""
    data = b"".join(write_random(s) if isinstance(s, int) else s for s in sent)
    step = max(1, len(data) // pieces_wanted)
    whole, pieces = RequestReader(), RequestReader()
    assert feed(pieces, data, step) == feed(whole, data)
    assert pieces.idle
    assert whole.idle


@given(st.binary(max_size=500), st.integers(1, 60))
def test_garbage_raises_nothing_else(garbage: bytes, step: int) -> None:
    """Only the protocol's own error."""
    try:
        feed(RequestReader(), request(0) + garbage, step)
    except ProtocolError:
        pass


def test_large_payloads() -> None:
    """The largest payload fits, before and after small requests."""
    data = random.Random(1).randbytes(MAX_PAYLOAD)
    reader = RequestReader()
    stream = request(0) + write(data) + request(3) + write(data[:100])
    events = feed(reader, stream, 1 << 20)
    assert [e[0] for e in events] == [0, 1, 3, 1]
    assert events[1][5] == data
    assert events[3][5] == data[:100]


def test_a_payload_beyond_the_limit_is_dropped() -> None:
    """It is reported without its bytes, and the next request is found."""
    reader = RequestReader()
    header = request(Command.WRITE, length=MAX_PAYLOAD + 1)
    assert feed(reader, header) == [(1, 0, 1, 0, MAX_PAYLOAD + 1, None)]
    assert not reader.idle
    for _ in range(32):
        assert feed(reader, bytes(1 << 20)) == []
    assert feed(reader, b"\0" + request(3)) == [(3, 0, 1, 0, 0, None)]
    assert reader.idle


def test_a_promised_length_allocates_nothing() -> None:
    """Memory follows the bytes that come, not the ones that were announced."""
    reader = RequestReader()
    feed(reader, request(Command.WRITE, length=0xFFFFFFFF))
    assert len(reader.space()) <= 1 << 20


def check(
    command: int,
    flags: int = 0,
    offset: int = 0,
    length: int = 512,
    *,
    writable: bool = True,
    structured: bool = True,
    allocation: bool = True,
) -> int:
    refused = refusal(
        command,
        flags,
        offset,
        length,
        size=1 << 30,
        writable=writable,
        structured=structured,
        allocation=allocation,
    )
    return 0 if refused is None else refused[0]


END = 1 << 30


@pytest.mark.parametrize("command", [c for c in Command if c != Command.DISC])
def test_the_plain_case_is_allowed(command: Command) -> None:
    """Up to the last byte, FUA on everything."""
    assert check(command, 0, END - 512) == 0
    assert check(command, CommandFlag.FUA) == 0


@pytest.mark.parametrize(
    ("command", "error"),
    [
        (Command.READ, Errno.EINVAL),
        (Command.WRITE, Errno.ENOSPC),
        (Command.WRITE_ZEROES, Errno.ENOSPC),
        (Command.TRIM, Errno.EINVAL),
        (Command.CACHE, Errno.EINVAL),
        (Command.BLOCK_STATUS, Errno.EINVAL),
    ],
)
def test_past_the_end(command: Command, error: Errno) -> None:
    """Refused, also where the sum overflows 64 bits."""
    assert check(command, 0, END - 511) == error
    assert check(command, 0, 2**64 - 1, 2**32 - 1) == error


def test_flags() -> None:
    """What is not documented for a command is EINVAL."""
    allowed = {
        Command.READ: {CommandFlag.FUA, CommandFlag.DF},
        Command.WRITE_ZEROES: {CommandFlag.FUA, CommandFlag.NO_HOLE, CommandFlag.FAST_ZERO},
        Command.BLOCK_STATUS: {CommandFlag.FUA, CommandFlag.REQ_ONE},
    }
    for command in Command:
        if command == Command.DISC:
            continue
        for bit in range(16):
            fine = (1 << bit) in allowed.get(command, {CommandFlag.FUA})
            assert check(command, 1 << bit) == (0 if fine else Errno.EINVAL), (command, bit)
    assert check(Command.READ, CommandFlag.DF, structured=False) == Errno.EINVAL
    assert check(Command.READ, CommandFlag.FUA, writable=False) == Errno.EINVAL


def test_read_only() -> None:
    """EPERM comes before everything else that is wrong."""
    for command in (Command.WRITE, Command.TRIM, Command.WRITE_ZEROES):
        assert check(command, 0xFFFF, END, writable=False) == Errno.EPERM
    assert check(Command.FLUSH, writable=False) == 0


def test_lengths() -> None:
    """32 MiB for what carries data; more than that for what does not."""
    assert check(Command.READ, length=MAX_PAYLOAD) == 0
    assert check(Command.READ, length=MAX_PAYLOAD + 1) == Errno.EINVAL
    assert check(Command.READ, CommandFlag.DF, length=MAX_PAYLOAD + 1) == Errno.EOVERFLOW
    assert check(Command.WRITE, length=MAX_PAYLOAD + 1) == Errno.EINVAL
    assert check(Command.WRITE_ZEROES, length=1 << 30) == 0
    assert check(Command.BLOCK_STATUS, length=1 << 30) == 0
    assert check(Command.BLOCK_STATUS, length=0) == Errno.EINVAL
    assert check(Command.BLOCK_STATUS, allocation=False) == Errno.EINVAL
    assert check(Command.READ, length=0) == 0


@given(st.integers(8, 65535))
def test_unknown_commands(command: int) -> None:
    """EINVAL, and no payload is expected."""
    assert check(command) == Errno.EINVAL
    assert struct.calcsize(HEADER.format) == 28
