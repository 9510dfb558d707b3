"""What is fuzzed of devices: both ends of NBD, and the overlay's file."""

from __future__ import annotations

import socket
import tempfile
import threading
from collections.abc import Sequence
from contextlib import closing
from functools import cache
from pathlib import Path

from bootstream.testing.fuzz import Target

# Layers are imported where they are fuzzed: one that is broken breaks its own target alone.
# ruff: noqa: PLC0415

_SIZE = 64 << 10


# -- the server's end of NBD -------------------------------------------------------------------


def _option(number: int, data: bytes = b"") -> bytes:
    return b"IHAVEOPT" + number.to_bytes(4, "big") + len(data).to_bytes(4, "big") + data


def _request(command: int, offset: int, length: int, data: bytes = b"", flags: int = 0) -> bytes:
    head = b"\x25\x60\x95\x13" + flags.to_bytes(2, "big") + command.to_bytes(2, "big")
    return head + bytes(8) + offset.to_bytes(8, "big") + length.to_bytes(4, "big") + data


def _nbd_samples() -> Sequence[bytes]:
    name = b"\0\0\0\4disk"
    context = b"\0\0\0\x0fbase:allocation"
    requests = (
        _request(0, 0, 4096) + _request(1, 512, 5, b"hello", 1) + _request(3, 0, 0)
        + _request(4, 0, 512) + _request(6, 0, 4096) + _request(7, 0, 512) + _request(2, 0, 0)
    )  # fmt: skip
    start = b"\0\0\0\3"
    return [
        start + _option(3) + _option(8) + _option(10, name + b"\0\0\0\1" + context)
        + _option(7, name + b"\0\1\0\3") + requests,
        start + _option(9, name + b"\0\0\0\0") + _option(6, b"\0\0\0\0\0\0")
        + _option(1, b"disk") + requests,
        start + _option(5) + _option(77, b"unknown") + _option(2),
    ]  # fmt: skip


def _run_nbd(data: bytes) -> None:
    """Feed what a client sends to both halves of the server's protocol, in two pieces."""
    from bootstream.nbd.handshake import Handshake, Offer
    from bootstream.nbd.protocol import Phase
    from bootstream.nbd.requests import RequestReader

    handshake = Handshake({"disk": Offer(1 << 30, writable=True)}, default="disk")
    handshake.greeting()
    for piece in (data[: len(data) // 2], data[len(data) // 2 :]):
        handshake.receive(piece)
        while handshake.phase not in (Phase.TRANSMISSION, Phase.CLOSED):
            if handshake.step() is None:
                break
    if handshake.phase is not Phase.TRANSMISSION:
        return
    reader = RequestReader()
    rest = memoryview(handshake.leftover())
    while True:
        for request in reader.requests():
            if request[5] is not None and len(request[5]) > len(data):
                raise AssertionError("a payload that nobody sent")
        if not rest:
            return
        space = reader.space()
        count = min(len(space), len(rest))
        space[:count] = rest[:count]
        rest = rest[count:]
        reader.received(count)


def _nbd_errors() -> tuple[type[Exception], ...]:
    from bootstream.nbd.protocol import ProtocolError

    return (ProtocolError,)


# -- the client's end --------------------------------------------------------------------------


def _talk(sock: socket.socket) -> None:
    """Do what a client does on a connected socket, and always the same."""
    from bootstream.nbd.client import Client
    from bootstream.nbd.greeting import negotiate
    from bootstream.nbd.stream import Stream, mapped

    with mapped("connect to", "fuzzed"):
        stream = Stream(sock)
        try:
            client = Client(stream, negotiate(stream, "disk", name="fuzzed"), name="fuzzed")
        except BaseException:
            stream.close()
            raise
    with client:
        size = min(client.size, _SIZE)
        client.read_into(memoryview(bytearray(min(size, 8192))), 0)
        client.extents(0, size)
        client.write(memoryview(b"written"), 512)
        client.zero(4096, 4096, may_trim=True)
        client.flush()
        client.read_views(500, 100)


@cache
def _client_samples() -> Sequence[bytes]:
    """What a real server says to the client, recorded on the way."""
    from bootstream.nbd.export import Export
    from bootstream.nbd.server import Server
    from bootstream.testing.memory_device import MemoryDevice

    with tempfile.TemporaryDirectory() as folder:
        device = MemoryDevice(bytes(4096) + b"data" * 1024 + bytes(_SIZE - 8192))
        server = Server({"disk": Export(device)}, default="disk")
        path = str(Path(folder) / "s")
        server.listen_unix(path)
        server.start()
        try:
            return [_record(path)]
        finally:
            server.close()


def _record(path: str) -> bytes:
    said = bytearray()
    ours, theirs = socket.socketpair()
    with socket.socket(socket.AF_UNIX) as upstream, theirs:
        upstream.connect(path)

        def forward() -> None:
            while data := theirs.recv(1 << 16):
                upstream.sendall(data)
            upstream.shutdown(socket.SHUT_WR)

        def back() -> None:
            while data := upstream.recv(1 << 16):
                said.extend(data)
                theirs.sendall(data)

        threads = [threading.Thread(target=forward), threading.Thread(target=back)]
        for thread in threads:
            thread.start()
        with ours:
            _talk(ours)
        for thread in threads:
            thread.join()
    return bytes(said)


def _run_client(data: bytes) -> None:
    """Play back what a server said, whatever the client says."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        # All of it waits in the socket's buffer, and so does what the client sends.
        theirs.setblocking(False)
        sent = 0
        while sent < len(data):
            try:
                sent += theirs.send(data[sent:])
            except BlockingIOError:
                break
        theirs.shutdown(socket.SHUT_WR)
        ours.settimeout(10)
        _talk(ours)


# -- the overlay's file ------------------------------------------------------------------------

_DIGEST = "ab" * 32


@cache
def _overlay_samples() -> Sequence[bytes]:
    from bootstream.block.overlay import Overlay
    from bootstream.testing.memory_device import MemoryDevice

    samples = []
    with tempfile.TemporaryDirectory() as folder:
        for number in (0, 1):
            path = Path(folder) / f"overlay{number}"
            with closing(Overlay(MemoryDevice(_SIZE), path, base_digest=_DIGEST)) as overlay:
                if number:
                    overlay.write(memoryview(b"x" * 5000), 100)
                    overlay.zero(32768, 8192, may_trim=True)
                    overlay.flush()
            samples.append(path.read_bytes())
    return samples


def _run_overlay(data: bytes) -> None:
    from bootstream.block.overlay import Overlay
    from bootstream.testing.memory_device import MemoryDevice

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "overlay"
        path.write_bytes(data)
        with closing(Overlay(MemoryDevice(_SIZE), path, base_digest=_DIGEST)) as overlay:
            if sum(map(len, overlay.read_views(0, _SIZE))) != _SIZE:
                raise AssertionError("a read of another length")
            if sum(extent.length for extent in overlay.extents(0, _SIZE)) != _SIZE:
                raise AssertionError("extents of another length")
            overlay.write(memoryview(b"y" * 100), 60_000)
            overlay.flush()


DEVICE_TARGETS: dict[str, Target] = {
    "nbd": Target(_nbd_samples, _run_nbd, allowed=_nbd_errors()),
    "client": Target(_client_samples, _run_client),
    "overlay": Target(_overlay_samples, _run_overlay),
}
