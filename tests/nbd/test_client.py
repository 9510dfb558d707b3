"""Our client, against our server, servers that we did not write, and servers that lie."""

from __future__ import annotations

import os
import random
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bootstream.block.device import Extent
from bootstream.errors import (
    BootstreamError,
    Corrupt,
    InvalidInput,
    NotFound,
    PermissionDenied,
    StorageFull,
    Unavailable,
)
from bootstream.nbd.client import Client, connect
from bootstream.nbd.protocol import (
    IHAVEOPT,
    NBDMAGIC,
    OPTION_REPLY_MAGIC,
    SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY_MAGIC,
    Chunk,
    Option,
    OptionReply,
)
from bootstream.nbd.server import Export, Server
from bootstream.nbd.uri import Address, parse_uri
from bootstream.testing.memory_device import MemoryDevice

MIB = 1 << 20


def image() -> bytes:
    noise = random.Random(3).randbytes(3 * MIB)
    return noise + bytes(2 * MIB) + noise[:77777]


@contextmanager
def program(command: list[str], path: Path) -> Iterator[str]:
    """A server in the foreground, once it has written its pid, for then it listens."""
    ready = path.with_name("pid")
    option = f"--pidfile={ready}" if command[0] == "nbdkit" else f"--pid-file={ready}"
    with subprocess.Popen([command[0], option, *command[1:]]) as process:
        try:
            deadline = time.monotonic() + 10
            while not (ready.exists() and path.exists()) and time.monotonic() < deadline:
                threading.Event().wait(0.01)
            yield f"nbd+unix:///?socket={path}"
        finally:
            process.terminate()


@contextmanager
def ours(folder: Path, device: MemoryDevice) -> Iterator[str]:
    with Server({"disk": Export(device)}, default="disk") as server:
        uri = server.listen_unix(folder / "s")
        server.start()
        yield uri


@contextmanager
def started(kind: str, folder: Path) -> Iterator[str]:
    """A server of the given kind on a writable copy of the image."""
    file, path = folder / "image", folder / "socket"
    file.write_bytes(image())
    size = -(-len(image()) // 512) * 512
    os.truncate(file, size)
    with_path = {
        "nbdkit": ["nbdkit", "-f", "-U", str(path), "file", str(file)],
        "nbdkit-no-sr": ["nbdkit", "-f", "--no-sr", "-U", str(path), "file", str(file)],
        "nbdkit-oldish": ["nbdkit", "-f", "--mask-handshake=0", "-U", str(path), "file", str(file)],
        "nbdkit-blocks": [
            *["nbdkit", "-f", "--filter=blocksize-policy", "-U", str(path), "file", str(file)],
            *["blocksize-minimum=512", "blocksize-error-policy=error"],
        ],
        "qemu-nbd": ["qemu-nbd", "-f", "raw", "-t", "-k", str(path), str(file)],
    }
    if kind == "ours":
        with ours(folder, MemoryDevice(file.read_bytes())) as uri:
            yield uri
        return
    with program(with_path[kind], path) as uri:
        yield uri


SERVERS = ("ours", "nbdkit", "nbdkit-no-sr", "nbdkit-oldish", "nbdkit-blocks", "qemu-nbd")


@pytest.mark.parametrize("kind", SERVERS)
def test_every_server(kind: str, tmp_path: Path) -> None:
    """Reads of any alignment, extents, writes, zeroes, trims, flushes."""
    with started(kind, tmp_path) as uri, connect(uri) as client:
        model = bytearray(client.size)
        model[: len(image())] = image()
        assert client.writable
        for offset, length in ((0, 1), (511, 4097), (3 * MIB - 9, MIB), (0, client.size)):
            [view] = client.read_views(offset, length)
            assert view == model[offset : offset + length]
        extents = client.extents(0, client.size)
        assert sum(e.length for e in extents) == client.size
        at = 0
        for extent in extents:
            assert not (extent.zero and any(model[at : at + extent.length]))
            at += extent.length
        new = random.Random(4).randbytes(3 * MIB)
        for start, data in ((512, new), (4 * MIB, new[: MIB // 2])):
            client.write(memoryview(data), start)
            model[start : start + len(data)] = data
        client.zero(MIB, 3 * MIB, may_trim=True)
        client.zero(MIB // 2, 1024, may_trim=False)
        model[MIB : 4 * MIB] = bytes(3 * MIB)
        model[MIB // 2 : MIB // 2 + 1024] = bytes(1024)
        client.flush()
        client.prefetch(0, client.size)
        assert client.read_warm(0, 1) is None
        assert client.read_views(0, client.size)[0] == model
        client.trim(4 * MIB, MIB)
        with pytest.raises(InvalidInput):
            client.read_into(memoryview(bytearray(512)), client.size)
        assert client.read_views(0, 4 * MIB)[0] == model[: 4 * MIB], "it goes on after an error"


def test_blocks_are_respected(tmp_path: Path) -> None:
    """Where the server insists on blocks, reads are widened and partial writes refused."""
    with started("nbdkit-blocks", tmp_path) as uri, connect(uri) as client:
        assert client.read_views(5, 10)[0] == image()[5:15]
        with pytest.raises(InvalidInput, match="512"):
            client.write(memoryview(b"x"), 0)


def test_threads_share_a_client(tmp_path: Path) -> None:
    """Each gets its own bytes."""
    device = MemoryDevice(image())
    device.cold_from = MIB
    wrong: list[int] = []
    with ours(tmp_path, device) as uri, connect(uri) as client:

        def work(seed: int) -> None:
            chance = random.Random(seed)
            for _ in range(50):
                offset = chance.randrange(client.size - 5000)
                if client.read_views(offset, 5000)[0] != device.data[offset : offset + 5000]:
                    wrong.append(offset)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_errors_of_the_device(tmp_path: Path) -> None:
    """Each has its class and says why; the connection lives on."""
    device = MemoryDevice(image())
    with ours(tmp_path, device) as uri, connect(uri) as client:
        for failure, kind in (
            (Unavailable("the network is down"), Unavailable),
            (StorageFull("no room"), StorageFull),
            (Corrupt("bad hash"), Unavailable),
        ):
            device.failure = failure
            with pytest.raises(kind, match=str(failure)):
                client.write(memoryview(b"x" * (3 * MIB)), 0)
            with pytest.raises(kind, match=str(failure)):
                client.read_views(0, 100)
            device.failure = None
            assert client.read_views(0, 100)[0] == device.data[:100]
    with pytest.raises(Unavailable):
        client.read_views(0, 1)
    client.close()


def test_read_only(tmp_path: Path) -> None:
    """Refused before anything is sent."""
    with ours(tmp_path, MemoryDevice(image(), writable=False)) as uri, connect(uri) as client:
        assert not client.writable
        with pytest.raises(InvalidInput):
            client.write(memoryview(b"x"), 0)
        client.flush()


def test_nobody_there(tmp_path: Path) -> None:
    """What is missing is said: the socket, the server, the export."""
    with ours(tmp_path, MemoryDevice(512)) as uri, pytest.raises(NotFound, match="'nope'"):
        connect(uri.replace("///", "///nope"))
    with pytest.raises(NotFound):
        connect(uri)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead"))
    with pytest.raises(Unavailable):
        connect(f"nbd+unix:///?socket={tmp_path / 'dead'}")


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("nbd://h/", Address("", host="h")),
        ("nbd://127.0.0.1:1/a/b", Address("a/b", host="127.0.0.1", port=1)),
        ("nbd://[::1]:5/x%20y", Address("x y", host="::1", port=5)),
        ("nbd+unix:///?socket=/run/s", Address("", path="/run/s")),
        ("nbd+unix:///d%C3%A9?socket=/a%20b%3F", Address("dé", path="/a b?")),
    ],
)
def test_uris(uri: str, address: Address) -> None:
    """Parsed, and written the way they parse."""
    assert parse_uri(uri) == address
    assert parse_uri(str(address)) == address


@pytest.mark.parametrize(
    "uri",
    [
        *("", "x", "http://h/", "nbds://h/", "nbd:///x", "nbd://h:99999/", "nbd://h:x/"),
        *("nbd://u@h/", "nbd://h/#f", "nbd+unix:///", "nbd+unix://h/?socket=/s", "nbd://[::1/"),
        *("nbd+unix:///?socket=/s&tls=1", "nbd://h/%ff", "nbd+unix:///?socket=a%00b", "nbd://h/?q"),
    ],
)
def test_bad_uris(uri: str) -> None:
    """Refused with the reason."""
    with pytest.raises(InvalidInput):
        parse_uri(uri)


# -- servers that lie ----------------------------------------------------------------------


def option_reply(option: int, kind: int, data: bytes = b"") -> bytes:
    return struct.pack(">QIII", OPTION_REPLY_MAGIC, option, kind, len(data)) + data


GREETING = struct.pack(">QQH", NBDMAGIC, IHAVEOPT, 3)
HELLO = (
    GREETING
    + option_reply(Option.STRUCTURED_REPLY, OptionReply.ACK)
    + option_reply(
        Option.SET_META_CONTEXT, OptionReply.META_CONTEXT, b"\0\0\0\7" + b"base:allocation"
    )
    + option_reply(Option.SET_META_CONTEXT, OptionReply.ACK)
    + option_reply(Option.GO, OptionReply.INFO, struct.pack(">HQH", 0, 1 << 30, 1))
    + option_reply(Option.GO, OptionReply.ACK)
)


def chunk(kind: int, payload: bytes, *, flags: int = 1, cookie: int = 1) -> bytes:
    head = struct.pack(">IHHQI", STRUCTURED_REPLY_MAGIC, flags, kind, cookie, len(payload))
    return head + payload


@contextmanager
def liar(folder: Path, said: bytes) -> Iterator[str]:
    """A server that says what it has to say, whatever it is asked, and hangs up."""
    path = folder / f"l{len(os.listdir(folder))}"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen(1)

        def serve() -> None:
            sock, _ = listening.accept()
            with sock:
                try:
                    sock.sendall(said)
                    sock.shutdown(socket.SHUT_WR)
                    while sock.recv(65536):
                        pass
                except OSError:
                    pass

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"nbd+unix:///?socket={path}"
        thread.join(10)
    path.unlink()


def read(client: Client) -> object:
    return client.read_views(0, 512)


def status(client: Client) -> object:
    return client.extents(0, 4096)


DATA_512 = chunk(Chunk.OFFSET_DATA, bytes(8 + 512), flags=0)


@pytest.mark.parametrize(
    ("said", "call"),
    [
        (struct.pack(">IIQ", SIMPLE_REPLY_MAGIC, 0, 1) + bytes(512), read),
        (struct.pack(">IIQ", SIMPLE_REPLY_MAGIC, 0, 2) + bytes(512), read),
        (struct.pack(">IIQ", 0x12345678, 0, 1) + bytes(512), read),
        (chunk(Chunk.OFFSET_DATA, bytes(8 + 513)), read),
        (chunk(Chunk.OFFSET_DATA, bytes(8)), read),
        (chunk(Chunk.OFFSET_DATA, struct.pack(">Q", 1 << 40) + bytes(10)), read),
        (DATA_512 + chunk(Chunk.OFFSET_HOLE, struct.pack(">QI", 511, 1)), read),
        (chunk(Chunk.OFFSET_HOLE, struct.pack(">QI", 0, 0)), read),
        (chunk(Chunk.OFFSET_HOLE, struct.pack(">QI", 0, 0xFFFFFFFF)), read),
        (chunk(Chunk.NONE, b""), read),
        (chunk(Chunk.NONE, b"", flags=0), read),
        (chunk(Chunk.NONE, b"x"), read),
        (chunk(Chunk.OFFSET_DATA, bytes(8 + 100)), read),
        (chunk(Chunk.ERROR, struct.pack(">IH", 5, 100)), read),
        (chunk(Chunk.BLOCK_STATUS, struct.pack(">III", 7, 512, 0)), read),
        (chunk(77, b""), read),
        (struct.pack(">IHHQI", STRUCTURED_REPLY_MAGIC, 1, 0x8001, 1, 0xFFFFFFFF), read),
        (chunk(Chunk.BLOCK_STATUS, struct.pack(">III", 8, 512, 0)), status),
        (chunk(Chunk.BLOCK_STATUS, struct.pack(">III", 7, 0, 0)), status),
        (chunk(Chunk.BLOCK_STATUS, struct.pack(">I", 7)), status),
        (chunk(Chunk.BLOCK_STATUS, struct.pack(">IIIII", 7, 4096, 0, 1, 0)), status),
        (chunk(Chunk.NONE, b""), status),
        (chunk(Chunk.OFFSET_DATA, bytes(8 + 10)), status),
    ],
)
def test_lies_are_found(said: bytes, call: Callable[[Client], object], tmp_path: Path) -> None:
    """Corrupt, and the connection is not used any more."""
    with liar(tmp_path, HELLO + said) as uri, connect(uri, timeout=10) as client:
        with pytest.raises(Corrupt):
            call(client)
        with pytest.raises(Unavailable):
            call(client)


def test_legal_oddities_are_understood(tmp_path: Path) -> None:
    """Chunks in any order, a last chunk of no kind, unknown errors, a status that says more."""
    parts = (
        chunk(Chunk.OFFSET_HOLE, struct.pack(">QI", 256, 256), flags=0)
        + chunk(Chunk.OFFSET_DATA, struct.pack(">Q", 0) + b"x" * 256, flags=0)
        + chunk(Chunk.NONE, b"")
        + chunk(0x8055, struct.pack(">IH", 5, 3) + b"whymore", flags=0, cookie=2)
        + chunk(Chunk.NONE, b"", cookie=2)
        + chunk(Chunk.ERROR_OFFSET, struct.pack(">IHQ", 28, 0, 7), cookie=3)
        + chunk(Chunk.BLOCK_STATUS, struct.pack(">III", 7, 1 << 20, 3), cookie=4)
    )
    with liar(tmp_path, HELLO + parts) as uri, connect(uri, timeout=10) as client:
        assert client.read_views(0, 512)[0] == b"x" * 256 + bytes(256)
        with pytest.raises(Unavailable, match="why"):
            read(client)
        with pytest.raises(StorageFull):
            read(client)
        assert status(client) == [Extent(4096, hole=True, zero=True)]
        with pytest.raises(Unavailable, match="hung up"):
            read(client)


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (b"", Unavailable),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", Corrupt),
        (GREETING, Unavailable),
        (GREETING + struct.pack(">QIII", OPTION_REPLY_MAGIC, 8, 1, 1 << 31), Corrupt),
        (GREETING + option_reply(3, 1), Corrupt),
        (HELLO[:-20] + option_reply(7, OptionReply.ERR_TLS_REQD), InvalidInput),
        (HELLO[:-20] + option_reply(7, OptionReply.ERR_POLICY, b"no"), PermissionDenied),
        (HELLO[:-20] + option_reply(7, OptionReply.ERR_UNKNOWN), NotFound),
        (HELLO[:-20] + option_reply(7, OptionReply.ERR_SHUTDOWN), Unavailable),
        (HELLO[:-20] + option_reply(7, OptionReply.ERR_UNSUP), NotFound),
        (HELLO[:-52] + option_reply(7, OptionReply.ACK), Corrupt),
    ],
)
def test_handshakes_that_fail(said: bytes, kind: type[Exception], tmp_path: Path) -> None:
    """Each in its own way."""
    with liar(tmp_path, said) as uri, pytest.raises(kind):
        connect(uri, timeout=10)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_garbage_raises_the_packages_errors(data: st.DataObject, tmp_path: Path) -> None:
    """A mutated conversation never raises anything else, and never hangs."""
    whole = HELLO + DATA_512 + chunk(Chunk.NONE, b"")
    said = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        said[data.draw(st.integers(0, len(said) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(said)))
    with liar(tmp_path, bytes(said[: cut if cut % 3 else len(said)])) as uri:
        try:
            with connect(uri, timeout=10) as client:
                client.read_into(memoryview(bytearray(512)), 0)
        except BootstreamError:
            pass
