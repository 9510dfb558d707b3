"""The server, met by raw sockets and by a device that a test holds in its hand."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.nbd.raw import RawClient, wait_for

from bootstream.errors import (
    InvalidInput,
    StorageFull,
    Unavailable,
)
from bootstream.nbd.protocol import (
    REQUEST_MAGIC,
    Command,
    CommandFlag,
    Errno,
)
from bootstream.nbd.requests import HEADER
from bootstream.nbd.server import Export, Limits, Server
from bootstream.testing.memory_device import MemoryDevice

Serve = Callable[..., Path]
MIB = 1 << 20
SIZE = MIB


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start servers on sockets of their own; close them all at the end."""
    with ExitStack() as stack:

        def start(device: MemoryDevice, **limits: int | float) -> Path:
            server = stack.enter_context(
                Server(
                    {"disk": Export(device)},
                    default="disk",
                    limits=Limits(**limits),  # type: ignore[arg-type]
                )
            )
            path = tmp_path / f"s{len(os.listdir(tmp_path))}"
            server.listen_unix(path)
            server.start()
            return path

        yield start


@pytest.fixture
def device() -> MemoryDevice:
    return MemoryDevice(os.urandom(SIZE))


def test_cold_reads_do_not_hold_up_warm_ones(serve: Serve, device: MemoryDevice) -> None:
    """Replies come out of order: what is warm, first."""
    device.cold_from = SIZE // 2
    device.gate.clear()
    with RawClient(serve(device)) as client:
        client.send(Command.READ, 1, SIZE - 4096, 4096)
        assert device.waiting.acquire(timeout=10)
        client.send(Command.READ, 2, 0, 4096)
        assert client.reply() == (2, 0, bytes(device.data[:4096]))
        client.write(3, 8192, b"written meanwhile")
        assert client.reply() == (3, 0, b"")
        device.gate.set()
        assert client.reply() == (1, 0, bytes(device.data[-4096:]))


def test_cold_reads_wait_together(serve: Serve, device: MemoryDevice) -> None:
    """Several are under way at once, up to the number of workers."""
    device.cold_from = 0
    device.gate.clear()
    with RawClient(serve(device, workers=4)) as client:
        for cookie in range(6):
            client.send(Command.READ, cookie, cookie * 512, 512)
        for _ in range(4):
            assert device.waiting.acquire(timeout=10)
        assert not device.waiting.acquire(blocking=False)
        device.gate.set()
        found = {cookie: data for cookie, _, data in (client.reply() for _ in range(6))}
        assert found == {n: bytes(device.data[n * 512 : n * 512 + 512]) for n in range(6)}


@pytest.mark.parametrize("limits", [{"requests": 3}, {"request_bytes": 3 * 4096}])
def test_what_is_under_way_is_bounded(
    serve: Serve, device: MemoryDevice, limits: dict[str, int]
) -> None:
    """Beyond the limit requests are not read, so a warm one waits too; then all is answered."""
    device.cold_from = 4096
    device.gate.clear()
    with RawClient(serve(device, **limits)) as client:
        client.send(Command.READ, 0, 0, 4096)
        for cookie in range(1, 9):
            client.send(Command.READ, cookie, cookie * 4096, 4096)
        client.send(Command.READ, 9, 0, 4096)
        assert client.reply()[0] == 0, "what is ready is sent before waiting for room"
        for _ in range(3):
            assert device.waiting.acquire(timeout=10)
        reads = [call for call in device.calls if call[0] == "read_warm"]
        assert len(reads) <= 5, "one more than fits was looked at"
        device.gate.set()
        found = {cookie: data for cookie, _, data in (client.reply() for _ in range(9))}
        assert found[9] == bytes(device.data[:4096])
        assert found[8] == bytes(device.data[8 * 4096 : 9 * 4096])


def test_a_read_larger_than_the_limit_is_served(serve: Serve, device: MemoryDevice) -> None:
    """One request alone may cost more than the limit."""
    device.cold_from = 0
    with RawClient(serve(device, request_bytes=4096)) as client:
        client.send(Command.READ, 1, 0, SIZE, CommandFlag.DF)
        assert client.reply() == (1, 0, bytes(device.data))


def test_a_client_that_does_not_read_is_not_read(serve: Serve) -> None:
    """Its requests stop being taken; others go on; it gets everything in the end."""
    device = MemoryDevice(os.urandom(SIZE))
    path = serve(device, send_buffer=4096)
    with RawClient(path) as slow, RawClient(path) as other:
        slow.socket.settimeout(0.5)
        sent = 0
        try:
            while sent < 2000:
                slow.send(Command.READ, sent, 0, 32768)
                sent += 1
        except TimeoutError:
            pass
        looked_at = len(device.calls)
        assert looked_at < 2000
        other.send(Command.READ, 7, 0, 512)
        assert other.reply() == (7, 0, bytes(device.data[:512]))
        slow.socket.settimeout(10)
        for cookie in range(min(sent, 50)):
            assert slow.reply()[0] == cookie


@pytest.mark.parametrize("large", [True, False])
def test_a_batch_does_not_pile_up(serve: Serve, device: MemoryDevice, large: bool) -> None:
    """Replies are sent as they grow, however many requests came at once."""
    command, length = (Command.READ, SIZE // 2) if large else (Command.BLOCK_STATUS, SIZE)
    device.data[:] = (b"x" * 4096 + bytes(4096)) * (SIZE // 8192)
    with RawClient(serve(device, send_buffer=4096)) as client:
        header = HEADER.pack(REQUEST_MAGIC, CommandFlag.DF * large, command, 1, 0, length)
        client.socket.sendall(header * 2000)
        for _ in range(4):
            assert client.reply()[:2] == (1, 0)
        asked = sum(1 for name, _, _ in device.calls if name in ("read_warm", "extents"))
        assert asked < 1900
        client.socket.shutdown(socket.SHUT_RDWR)


def test_failures_are_errors_and_the_connection_lives(
    serve: Serve, device: MemoryDevice, caplog: pytest.LogCaptureFixture
) -> None:
    """Each failure of the device has its errno; the cause is in the log; recovery works."""
    with RawClient(serve(device)) as client:
        for failure, errno in (
            (Unavailable("the bucket is gone", operation="read", object="b/7"), Errno.EIO),
            (StorageFull("no room", operation="write", object="f"), Errno.ENOSPC),
            (InvalidInput("no"), Errno.EINVAL),
            (OSError(28, "no space"), Errno.ENOSPC),
            (OSError(1, "denied"), Errno.EIO),
            (ZeroDivisionError("a bug"), Errno.EIO),
        ):
            device.failure = failure
            for cold in (None, 0):
                device.cold_from = cold
                client.send(Command.READ, 1, 0, 512)
                cookie, error, text = client.reply()
                assert (cookie, error) == (1, errno)
                assert text.decode() == str(failure)
            client.write(2, 0, b"x" * 512)
            assert client.reply()[:2] == (2, errno)
            client.send(Command.FLUSH, 3)
            assert client.reply()[:2] == (3, errno)
            client.send(Command.BLOCK_STATUS, 4, 0, 512)
            assert client.reply()[:2] == (4, errno)
        device.failure = device.cold_from = None
        client.send(Command.READ, 5, 0, 512)
        assert client.reply() == (5, 0, bytes(device.data[:512]))
    said = [record.getMessage() for record in caplog.records]
    assert "READ of 512 bytes at 0 of 'disk' failed: read b/7: the bucket is gone" in said
    assert len(said) <= 11, "a broken device does not flood the log"


def test_failures_in_simple_replies(serve: Serve, device: MemoryDevice) -> None:
    """Without structured replies the errno is all there is."""
    with RawClient(serve(device), structured=False) as client:
        device.failure = Unavailable("gone")
        client.send(Command.READ, 1, 0, 512)
        assert client.reply() == (1, Errno.EIO, b"")
        device.failure = None
        client.send(Command.READ, 2, 0, 512)
        assert client.reply(512) == (2, 0, bytes(device.data[:512]))
        client.send(Command.BLOCK_STATUS, 3, 0, 512)
        assert client.reply() == (3, Errno.EINVAL, b"")
        client.send(Command.READ, 4, 0, 0)
        assert client.reply() == (4, 0, b"")


def test_a_device_that_reads_too_little_shifts_nothing(
    serve: Serve, device: MemoryDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its reply would be taken for the start of the next one."""
    with RawClient(serve(device)) as client:
        monkeypatch.setattr(
            device, "_views", lambda _offset, length: [memoryview(bytes(length))[1:]]
        )
        for cold in (None, 0):
            device.cold_from = cold
            client.send(Command.READ, 1, 0, 512)
            assert client.reply()[:2] == (1, Errno.EIO)
            client.send(Command.READ, 1, 0, SIZE)
            assert client.reply()[:2] == (1, Errno.EIO)


def test_writes_and_durability(serve: Serve, device: MemoryDevice) -> None:
    """FLUSH and FUA are answered after the device's flush, and cover what was answered."""
    with RawClient(serve(device)) as client:
        client.write(1, 100, b"one")
        assert client.reply() == (1, 0, b"")
        assert device.flushed[100:103] != b"one"
        client.send(Command.FLUSH, 2)
        assert client.reply() == (2, 0, b"")
        assert device.flushed[100:103] == b"one"
        client.write(3, 200, b"two", CommandFlag.FUA)
        assert client.reply() == (3, 0, b"")
        assert device.flushed[200:203] == b"two"
        client.send(Command.WRITE_ZEROES, 4, 100, 3, CommandFlag.FUA | CommandFlag.NO_HOLE)
        assert client.reply() == (4, 0, b"")
        assert device.flushed[100:103] == b"\0\0\0"
        assert ("zero", 100, 3) in device.calls
        client.send(Command.WRITE_ZEROES, 5, 0, 50, CommandFlag.FAST_ZERO)
        assert client.reply() == (5, 0, b"")
        fast_and_full = CommandFlag.FAST_ZERO | CommandFlag.NO_HOLE
        client.send(Command.WRITE_ZEROES, 6, 0, 50, fast_and_full)
        assert client.reply()[:2] == (6, Errno.ENOTSUP)
        client.send(Command.TRIM, 7, 0, SIZE, CommandFlag.FUA)
        assert client.reply() == (7, 0, b"")
        assert not any(device.flushed)
        client.send(Command.CACHE, 8, 0, SIZE)
        assert client.reply() == (8, 0, b"")
        assert ("prefetch", 0, SIZE) in device.calls
        for command in (Command.WRITE, Command.TRIM, Command.WRITE_ZEROES, Command.CACHE):
            client.send(command, 9, 0, 0)
            assert client.reply() == (9, 0, b""), "no bytes are no error"
        client.send(Command.READ, 10, 0, 0)
        assert client.reply() == (10, 0, b"")


def test_a_write_beyond_the_limit_is_refused_and_consumed(
    serve: Serve, device: MemoryDevice
) -> None:
    """Its payload is not taken for requests."""
    with RawClient(serve(device)) as client:
        client.write(1, 0, bytes((32 << 20) + 1))
        assert client.reply()[:2] in ((1, Errno.EINVAL), (1, Errno.ENOSPC))
        client.send(Command.READ, 2, 0, 512)
        assert client.reply() == (2, 0, bytes(device.data[:512]))


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        bytes(28),
        HEADER.pack(REQUEST_MAGIC + 1, 0, 0, 0, 0, 0),
        HEADER.pack(REQUEST_MAGIC, 0, Command.DISC, 0, 0, 0) + b"more",
    ],
)
def test_garbage_costs_its_own_connection(
    serve: Serve, device: MemoryDevice, garbage: bytes
) -> None:
    """What came before is answered; the connection ends; others go on."""
    path = serve(device)
    with RawClient(path) as other, RawClient(path) as client:
        header = HEADER.pack(REQUEST_MAGIC, 0, Command.READ, 1, 0, 512)
        client.socket.sendall(header + garbage)
        assert client.reply() == (1, 0, bytes(device.data[:512]))
        assert client.at_end()
        other.send(Command.READ, 2, 0, 512)
        assert other.reply()[:2] == (2, 0)


def test_garbage_in_the_handshake(serve: Serve, device: MemoryDevice) -> None:
    """Neither bad flags nor bad options are answered."""
    path = serve(device)
    with RawClient(path, go=False) as client:
        client.socket.sendall(b"\0" * 16)
        assert client.at_end()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(path))
        sock.sendall(b"\xff" * 4)
        while sock.recv(100):
            pass


def test_a_silent_client_is_hung_up_on(serve: Serve, device: MemoryDevice) -> None:
    """The handshake has a time limit."""
    with RawClient(serve(device, handshake_timeout=0.05), go=False) as client:
        assert client.at_end()


def test_clients_that_vanish(serve: Serve, device: MemoryDevice) -> None:
    """In every state, also with cold reads under way; nothing stays behind."""
    device.cold_from = SIZE // 2
    path = serve(device)
    with RawClient(path) as witness:
        threads = threading.active_count()
        for _ in range(5):
            device.gate.clear()
            with RawClient(path) as client:
                client.write(1, 0, b"half")
                client.send(Command.READ, 2, SIZE - 4096, 4096)
                assert device.waiting.acquire(timeout=10)
                client.socket.sendall(HEADER.pack(REQUEST_MAGIC, 0, Command.WRITE, 3, 0, 99)[:-3])
            with RawClient(path) as client:
                client.socket.sendall(
                    HEADER.pack(REQUEST_MAGIC, 0, Command.WRITE, 3, 0, 99) + b"part"
                )
            with RawClient(path, go=False):
                pass
            device.gate.set()
        witness.send(Command.READ, 9, 0, 4096)
        assert witness.reply()[:2] == (9, 0)
        wait_for(lambda: threading.active_count() <= threads)
    assert b"part" not in device.data[:99]


def test_many_connections_leave_nothing(serve: Serve, device: MemoryDevice) -> None:
    """Ten thousand connects one after the other, most of which say nothing."""
    path = str(serve(device, connections=8))
    with RawClient(Path(path)):
        before = len(os.listdir("/proc/self/fd"))
        for number in range(10_000):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(path)
                if not number % 500:
                    assert len(sock.recv(18)) == 18
        wait_for(lambda: len(os.listdir("/proc/self/fd")) <= before)
        wait_for(lambda: threading.active_count() < 10)


def test_places_are_bounded(serve: Serve, device: MemoryDevice) -> None:
    """One client more than there are places waits until one leaves."""
    path = serve(device, connections=1)
    with RawClient(path) as first, socket.socket(socket.AF_UNIX) as second:
        second.connect(str(path))
        second.settimeout(0.1)
        with pytest.raises(TimeoutError):
            second.recv(1)
        second.settimeout(10)
        first.socket.close()
        assert second.recv(1)


def test_one_extent_at_a_time_is_not_quadratic(serve: Serve) -> None:
    """With REQ_ONE the device is asked about little more than what is answered."""
    device = MemoryDevice((b"x" * 4096 + bytes(4096)) * 2048)
    device.data[8 << 20 :] = bytes(8 << 20)
    with RawClient(serve(device)) as client:
        client.send(Command.BLOCK_STATUS, 1, 0, 16 << 20, CommandFlag.REQ_ONE)
        assert client.reply() == (1, 0, struct.pack(">III", 1, 4096, 0))
        assert max(length for name, _, length in device.calls if name == "extents") <= MIB
        client.send(Command.BLOCK_STATUS, 2, 8 << 20, 8 << 20, CommandFlag.REQ_ONE)
        assert client.reply() == (2, 0, struct.pack(">III", 1, 8 << 20, 3))
        client.send(Command.BLOCK_STATUS, 3, 0, 16 << 20)
        _, _, payload = client.reply()
        lengths = struct.unpack(f">I{2048 * 2}I", payload)[1::2]
        assert sum(lengths) == 16 << 20


def test_goodbye_waits_for_replies(serve: Serve, device: MemoryDevice) -> None:
    """DISC after a read that is under way: the reply comes, then the end."""
    device.cold_from = 0
    device.gate.clear()
    with RawClient(serve(device)) as client:
        client.send(Command.READ, 1, 0, 512)
        client.send(Command.DISC, 0)
        assert device.waiting.acquire(timeout=10)
        device.gate.set()
        assert client.reply() == (1, 0, bytes(device.data[:512]))
        assert client.at_end()
