"""The life of a server: where it listens, how it ends."""

from __future__ import annotations

import os
import socket
import stat
import threading
from pathlib import Path

import pytest
from tests.nbd.raw import RawClient, wait_for

from bootstream.errors import (
    AlreadyExists,
    InvalidInput,
    NotFound,
    StorageFull,
)
from bootstream.nbd.protocol import (
    Command,
)
from bootstream.nbd.server import Export, Limits, Server
from bootstream.testing.memory_device import MemoryDevice

SIZE = 1 << 20


@pytest.fixture
def device() -> MemoryDevice:
    return MemoryDevice(os.urandom(SIZE))


def test_close_answers_what_is_under_way(tmp_path: Path, device: MemoryDevice) -> None:
    """A read that waits is finished and sent, writes are flushed, the socket is gone."""
    device.cold_from = SIZE // 2
    device.gate.clear()
    server = Server({"disk": Export(device)}, default="disk")
    path = tmp_path / "s"
    server.listen_unix(path)
    server.start()
    with RawClient(path) as client, RawClient(path, go=False) as other:
        client.write(1, 0, b"written")
        assert client.reply()[:2] == (1, 0)
        client.send(Command.READ, 2, SIZE - 512, 512)
        assert device.waiting.acquire(timeout=10)
        closers = [threading.Thread(target=server.close) for _ in range(2)]
        for closer in closers:
            closer.start()
        assert other.at_end()
        assert not path.exists()
        device.gate.set()
        assert client.reply() == (2, 0, bytes(device.data[-512:]))
        assert client.at_end()
        for closer in closers:
            closer.join(10)
            assert not closer.is_alive()
    assert device.flushed[:7] == b"written"
    server.close()
    wait_for(lambda: not any(t.name.startswith("nbd-") for t in threading.enumerate()))


def test_close_does_not_wait_for_ever(tmp_path: Path, device: MemoryDevice) -> None:
    """Neither for a client that does not read nor for a device that does not answer."""
    device.cold_from = SIZE // 2
    device.gate.clear()
    server = Server({"disk": Export(device)}, default="disk", limits=Limits(send_buffer=4096))
    path = tmp_path / "s"
    server.listen_unix(path)
    server.start()
    with RawClient(path) as deaf, RawClient(path) as client:
        for cookie in range(4):
            deaf.send(Command.READ, cookie, 0, SIZE // 2)
        client.send(Command.READ, 1, SIZE - 512, 512)
        assert device.waiting.acquire(timeout=10)
        closer = threading.Thread(target=lambda: server.close(timeout=0.1))
        device.writable = False
        closer.start()
        closer.join(10)
        assert not closer.is_alive()
        device.gate.set()
    wait_for(lambda: not any(t.name.startswith("nbd-") for t in threading.enumerate()))


def test_a_failed_flush_at_the_end_is_raised(tmp_path: Path, device: MemoryDevice) -> None:
    """Whoever closes learns that not everything is durable; the socket is gone all the same."""
    server = Server({"disk": Export(device)}, default="disk")
    server.listen_unix(str(tmp_path / "s"))
    server.start()
    device.failure = StorageFull("no room", operation="flush", object="overlay")
    with pytest.raises(StorageFull):
        server.close()
    assert not (tmp_path / "s").exists()


def test_socket_is_private_from_the_start(tmp_path: Path, device: MemoryDevice) -> None:
    """0600, whatever the umask."""
    before = os.umask(0)
    try:
        with Server({"disk": Export(device)}, default="disk") as server:
            uri = server.listen_unix(str(tmp_path / "a b?"))
            assert stat.S_IMODE((tmp_path / "a b?").stat().st_mode) == 0o600
            assert uri == f"nbd+unix:///?socket={tmp_path}/a%20b%3F"
    finally:
        os.umask(before)


def test_dead_sockets_are_replaced_live_ones_are_not(tmp_path: Path, device: MemoryDevice) -> None:
    """A name that nobody listens on is in nobody's way; files are never removed."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with Server({"disk": Export(device)}, default="disk") as server:
        server.listen_unix(path)
        second = Server({"disk": Export(device)}, default="disk")
        with second, pytest.raises(AlreadyExists):
            second.listen_unix(str(path))
        assert path.exists(), "the second one took nothing with it"
        server.start()
        with RawClient(path):
            pass
    file = tmp_path / "file"
    file.write_text("precious")
    third = Server({"disk": Export(device)}, default="disk")
    with third, pytest.raises(AlreadyExists):
        third.listen_unix(str(file))
    assert file.read_text() == "precious"


def test_a_socket_that_was_replaced_is_left_alone(tmp_path: Path, device: MemoryDevice) -> None:
    """Close removes the name only while it is its own."""
    path = tmp_path / "s"
    with Server({"disk": Export(device)}, default="disk") as server:
        server.listen_unix(path)
        path.unlink()
        path.write_text("somebody else's")
    assert path.read_text() == "somebody else's"


def test_one_of_many_wins_a_dead_socket(tmp_path: Path, device: MemoryDevice) -> None:
    """However many servers find a dead socket at once, one listens and all others say so."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    servers = [Server({"disk": Export(device)}, default="disk") for _ in range(8)]
    outcomes: list[bool] = []
    barrier = threading.Barrier(len(servers))

    def listen(server: Server) -> None:
        barrier.wait()
        try:
            server.listen_unix(path)
            server.start()
            outcomes.append(True)
        except AlreadyExists:
            outcomes.append(False)

    threads = [threading.Thread(target=listen, args=(server,)) for server in servers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == [False] * 7 + [True]
    with RawClient(path):
        pass
    for server in servers:
        server.close()


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("", InvalidInput),
        ("a\0b", InvalidInput),
        ("x" * 108, InvalidInput),
        ("no/folder", NotFound),
        ("file/socket", InvalidInput),
        ("folder", AlreadyExists),
    ],
)
def test_impossible_paths(
    tmp_path: Path, path: str, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is an error of the package that says why."""
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    server = Server({"disk": Export(MemoryDevice(512))}, default="disk")
    with server, pytest.raises(kind):
        server.listen_unix(path)


def test_tcp(device: MemoryDevice) -> None:
    """Loopback only, a free port on request, and an occupied one is named."""
    with Server({"disk": Export(device)}, default="disk") as server:
        uri = server.listen_tcp("127.0.0.1", 0)
        port = int(uri.removeprefix("nbd://127.0.0.1:").rstrip("/"))
        server.start()
        assert server.listen_tcp("localhost", 0).startswith("nbd://127.0.0.1:")
        assert server.listen_tcp("::1", 0).startswith("nbd://[::1]:")
        with socket.create_connection(("127.0.0.1", port), 10) as sock:
            assert sock.recv(8) == b"NBDMAGIC"
        with pytest.raises(AlreadyExists):
            server.listen_tcp("127.0.0.1", port)
        for host in ("0.0.0.0", "192.0.2.1", "::", "example.com", ""):
            with pytest.raises(InvalidInput, match=r"TLS"):
                server.listen_tcp(host, 0)
        with pytest.raises(InvalidInput):
            server.listen_tcp("127.0.0.1", 65536)


def test_exports_have_names(device: MemoryDevice) -> None:
    """The empty name is for the default, which must be one of them."""
    for exports, default in (({"": Export(device)}, ""), ({"x" * 4097: Export(device)}, "x")):
        with pytest.raises(InvalidInput):
            Server(exports, default=default)
    with pytest.raises(InvalidInput):
        Server({"disk": Export(device)}, default="other")
