"""Waiting for a client that is about to speak."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from bootstream.nbd.poll import Poll


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a connection."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.mark.parametrize("alone", [True, False])
def test_everything_arrives_in_order(
    pair: tuple[socket.socket, socket.socket], *, alone: bool
) -> None:
    """Looking before sleeping changes nothing of what is received."""
    ours, theirs = pair
    poll = Poll(ours)

    def echo() -> None:
        for _ in range(300):
            theirs.sendall(theirs.recv(64, socket.MSG_WAITALL))

    client = threading.Thread(target=echo)
    client.start()
    buffer = memoryview(bytearray(4096))
    for number in range(300):
        message = number.to_bytes(64, "big")
        ours.sendall(message)
        got = b""
        while len(got) < 64:
            count = poll.receive(buffer, alone=alone)
            got += bytes(buffer[:count])
        assert got == message
    client.join()


def test_the_end_is_seen(pair: tuple[socket.socket, socket.socket]) -> None:
    """A client that hangs up is 0 bytes, also while it is looked for."""
    ours, theirs = pair
    poll = Poll(ours)
    buffer = memoryview(bytearray(16))
    for _ in range(8):
        theirs.sendall(b"x")
        assert poll.receive(buffer, alone=True) == 1
    theirs.close()
    assert poll.receive(buffer, alone=True) == 0


def test_an_idle_client_is_not_looked_for(pair: tuple[socket.socket, socket.socket]) -> None:
    """After waits that were long the thread sleeps at once again."""
    ours, theirs = pair
    poll = Poll(ours)
    buffer = memoryview(bytearray(16))
    for _ in range(8):
        theirs.sendall(b"x")
        poll.receive(buffer, alone=True)
    assert poll._window > 0
    for _ in range(12):
        later = threading.Timer(0.002, theirs.sendall, [b"x"])
        later.start()
        poll.receive(buffer, alone=True)
        later.join()
    assert poll._window == 0
