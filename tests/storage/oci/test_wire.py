"""The connection's reading of HTTP, part sizes, TLS: each by itself."""

from __future__ import annotations

import contextlib
import datetime
import gc
import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.storage.oci.helpers import KEY, ScriptedServer, StubPrincipal, provider_for, reply
from tests.storage.oci.memorybucket import MemoryBucket

from bootstream.errors import Unavailable
from bootstream.storage.oci import OCIBucketStorageProvider, connection
from bootstream.storage.oci.connection import (
    Connection,
    Head,
    TimeLimits,
    WireError,
    parse_head,
)
from bootstream.storage.oci.failures import (
    Place,
    error_for,
    http_time,
    parse_refusal,
    retry_after,
)
from bootstream.storage.oci.listing import parse_time
from bootstream.storage.oci.pool import Pool
from bootstream.storage.oci.upload import MAX_OBJECT, MAX_PARTS, part_bytes

LIMITS = TimeLimits(1, 1, 1)


def test_lines_that_repeat() -> None:
    """What a line meant once it means again; lines that are none are refused each time."""
    for _ in range(2):
        head = parse_head(b"HTTP/1.1 200 OK\r\nETag: A\r\netag: b\r\nx:1", method="GET")
        assert head.headers == {"etag": "b", "x": "1"}
        with pytest.raises(WireError, match="none"):
            parse_head(b"HTTP/1.1 200 OK\r\nETag : A", method="GET")
    for number in range(2000):
        head = parse_head(b"HTTP/1.1 200 OK\r\nx-%d: %d" % (number, number), method="GET")
        assert head.headers == {f"x-{number}": str(number)}
    assert len(connection._lines) <= 256
    long = b"x" * 5000
    assert parse_head(b"HTTP/1.1 200 OK\r\nlong: " + long, method="GET").headers["long"]
    assert all(len(line) < 200 for line in connection._lines)


@contextlib.contextmanager
def _sent(data: bytes) -> Iterator[Connection]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sender = threading.Thread(target=_send, args=(theirs, data))
        sender.start()
        connection = Connection(ours, LIMITS)
        try:
            yield connection
        finally:
            connection.close()
            sender.join()


def _send(sock: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)


def test_head() -> None:
    """Status, fields in lower case, and what the body's length is."""
    head = parse_head(
        b"HTTP/1.1 206 Partial Content\r\nETag:  e \r\nContent-Length: 12\r\nX:", method="GET"
    )
    assert head == Head(206, {"etag": "e", "content-length": "12", "x": ""}, 12, keep=True)
    assert parse_head(b"HTTP/1.1 200 OK\r\ncontent-length: 7", method="HEAD").length == 0
    assert parse_head(b"HTTP/1.1 204 x\r\nconnection: Close", method="GET").keep is False
    assert parse_head(b"HTTP/1.0 200", method="GET") == Head(200, {}, None, keep=False)
    assert parse_head(b"HTTP/1.1 200 \r\nTransfer-Encoding: chunked", method="GET").length == -1


@pytest.mark.parametrize(
    "data",
    [
        b"", b"HTTP/2 200", b"HTTP/1.1 2000", b"HTTP/1.1  200", b"HTTP/1.1 200\r\n: x",
        b"HTTP/1.1 200\r\nno colon", b"HTTP/1.1 200\r\n folded: x", b"HTTP/1.1 200\r\na : x",
        b"HTTP/1.1 200\r\ncontent-length: +5", b"HTTP/1.1 200\r\ncontent-length: 5, 5",
        b"HTTP/1.1 200\r\ncontent-length: " + b"9" * 30,
        b"HTTP/1.1 200\r\ncontent-length: 5\r\ntransfer-encoding: chunked",
        "HTTP/1.1 200\r\ncontent-length: ٣".encode(),
    ],
)  # fmt: skip
def test_bad_heads(data: bytes) -> None:
    """What could be read in two ways is not read at all."""
    with pytest.raises(WireError):
        parse_head(data, method="GET")


@settings(max_examples=300)
@given(st.binary(max_size=200), st.sampled_from([b"", b"HTTP/1.1 200 OK\r\n"]))
def test_any_bytes_as_a_head(data: bytes, start: bytes) -> None:
    """Either a head or a WireError."""
    with contextlib.suppress(WireError):
        head = parse_head(start + data, method="GET")
        assert 100 <= head.status < 600
        assert head.length is None or head.length >= -1


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300), st.sampled_from(["chunked", "identity", None]))
def test_any_bytes_as_a_body(data: bytes, coding: str | None) -> None:
    """A body of at most the limit, or a WireError."""
    head = Head(200, {}, -1 if coding == "chunked" else None, keep=True)
    with _sent(data) as connection, contextlib.suppress(WireError):
        assert len(connection.receive_body(head, 100)) <= 100


@settings(max_examples=50, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=40_000), max_size=4), st.booleans())
def test_chunks(pieces: list[bytes], trailers: bool) -> None:
    """Chunks are joined, extensions and trailers dropped, and what follows is the next answer."""
    data = b"".join(b"%x;a=b\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    data += b"0\r\n" + (b"a: b\r\n" if trailers else b"") + b"\r\n"
    with _sent(data + reply(204, length=0)) as connection:
        assert connection.receive_body(Head(200, {}, -1, keep=True), 1 << 20) == b"".join(pieces)
        assert connection.receive_head("GET").status == 204
        assert connection.clean


def test_answers_after_one_another() -> None:
    """Interim answers are passed over; bodies end where they should."""
    data = b"HTTP/1.1 100 Continue\r\n\r\n" + reply(200, b"x" * 50_000) + reply(206, b"y" * 10)
    with _sent(data) as connection:
        head = connection.receive_head("GET")
        assert connection.receive_body(head, 1 << 20) == b"x" * 50_000
        head = connection.receive_head("GET")
        view = memoryview(bytearray(10))
        connection.receive_into(view)
        assert (head.status, bytes(view)) == (206, b"y" * 10)
        with pytest.raises(WireError) as raised:
            connection.receive_head("GET")
        assert raised.value.before_answer


def test_body_that_ends_early_says_how_much_there_is() -> None:
    """What came is in the buffer, and counted, so that a download can go on from there."""
    with _sent(b"abc") as connection:
        view = memoryview(bytearray(10))
        with pytest.raises(WireError) as raised:
            connection.receive_into(view)
        assert raised.value.received == 3
        assert bytes(view[:3]) == b"abc"


def test_trickling_body() -> None:
    """A peer that sends a byte now and then makes no progress that counts."""
    ours, theirs = socket.socketpair()
    stop = threading.Event()

    def trickle() -> None:
        with contextlib.suppress(OSError):
            while not stop.wait(0.01):
                theirs.sendall(b"x")

    sender = threading.Thread(target=trickle)
    sender.start()
    connection = Connection(ours, TimeLimits(1, 1, 0.2))
    with pytest.raises(WireError, match="trickles") as raised:
        connection.receive_into(memoryview(bytearray(100_000)))
    stop.set()
    sender.join()
    connection.close()
    theirs.close()
    assert raised.value.received > 0


@settings(max_examples=200)
@given(st.integers(100, 599), st.binary(max_size=100), st.booleans())
def test_every_refusal_is_an_error_of_ours(status: int, body: bytes, there: bool) -> None:
    """Whatever it is: one of the tree, with the operation, the object and the id."""
    refusal = parse_refusal(status, {"opc-request-id": "rid", "retry-after": "soon"}, body)
    error = error_for(
        refusal,
        operation="read object",
        object="a",
        place=Place("b", "n", "api_key"),
        bucket_is_there=there,
    )
    assert (error.operation, error.request_id) == ("read object", "rid")
    assert "a" in (error.object or "")


@settings(max_examples=200)
@given(st.text(max_size=40) | st.from_regex(r"Mon, \d+ Jan \d+ \d+:\d+:\d+ ([A-Z]+|[+-]\d+)"))
def test_any_text_as_a_time(text: str) -> None:
    """A time with a zone, a wait that is bounded, or nothing."""
    found = http_time(text)
    assert found is None or found.tzinfo is not None
    wait = retry_after({"retry-after": text})
    assert wait is None or 0 <= wait <= 3600
    with contextlib.suppress(ValueError):
        assert parse_time(text).tzinfo is not None


# -- sizes of parts -------------------------------------------------------------------------------


@pytest.mark.parametrize("given_size", [64 << 10, 4 << 20, 1 << 30])
@pytest.mark.parametrize("size", [1, 5 << 20, (40 << 30) + 1, 1 << 40, MAX_OBJECT])
def test_parts_of_a_known_size(size: int, given_size: int) -> None:
    """As large as was asked for, unless there would be more parts than there can be."""
    part = part_bytes(1, size, given_size)
    assert part >= given_size
    assert -(-size // part) <= MAX_PARTS
    assert part == given_size or size > given_size * (MAX_PARTS - 1)
    assert part_bytes(777, size, given_size) == part


def test_parts_of_an_unknown_size() -> None:
    """They grow, so that the largest object fits into as many parts as there can be."""
    assert part_bytes(1, None, 4 << 20) == part_bytes(500, None, 4 << 20) == 4 << 20
    total = sum(part_bytes(number, None, 4 << 20) for number in range(1, MAX_PARTS + 1))
    assert total >= MAX_OBJECT


# -- TLS and connections --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a key and its own certificate, for 127.0.0.1."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(KEY.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(KEY, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "cert.pem"
    path.write_bytes(
        KEY.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + made.public_bytes(serialization.Encoding.PEM)
    )
    return path


def _serve_tls(listener: socket.socket, certificate: Path, answers: list[bytes]) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with contextlib.suppress(OSError):
        sock, _ = listener.accept()
        with sock, context.wrap_socket(sock, server_side=True) as wrapped:
            while answers:
                received = b""
                while b"\r\n\r\n" not in received:
                    received += wrapped.recv(65536)
                wrapped.sendall(answers.pop(0))


def test_tls(certificate: Path) -> None:
    """Through TLS, by the certificates that were named; others are refused, once and for all."""
    body = bytes(range(256)) * 4096
    headers = {"content-range": f"bytes 0-{len(body) - 1}/{len(body)}", "etag": "e"}
    for ca_file, trusted in ((certificate, True), (None, False)):
        answers = [reply(206, body, fields=headers), reply(206, body, fields=headers)]
        with socket.create_server(("127.0.0.1", 0)) as listener:
            server = threading.Thread(target=_serve_tls, args=(listener, certificate, answers))
            server.start()
            provider = OCIBucketStorageProvider(
                "b",
                namespace="n",
                principal=StubPrincipal(),
                endpoint=f"https://127.0.0.1:{listener.getsockname()[1]}",
                ca_file=ca_file,
            )
            buffer = bytearray(len(body))
            if trusted:
                for _ in range(2):
                    assert provider.open_object("a").read_at(buffer, 0) == len(body)
                    assert bytes(buffer) == body
                assert not answers, "both over one connection"
            else:
                with pytest.raises(Unavailable, match="certificate") as raised:
                    provider.open_object("a").read_at(buffer, 0)
                assert not raised.value.transient
            provider.close()
            server.join()


def test_forgotten_provider_leaves_nothing_open() -> None:
    """Whoever does not close it is not warned of open sockets, as there are none."""
    with ScriptedServer(MemoryBucket()) as server:
        provider = provider_for(server)
        provider.open_object("a").put(b"x")
        del provider
        gc.collect()
        assert server.connections == 1


def test_idle_connections_are_bounded_and_closed() -> None:
    """No more are kept than was said, and none when the pool is gone."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        pool = Pool(f"http://127.0.0.1:{listener.getsockname()[1]}", keep=2, limits=LIMITS)
        taken = [pool.take() for _ in range(4)]
        accepted = [listener.accept()[0] for _ in range(4)]
        for connection in taken:
            pool.give_back(connection)
        assert pool.take() is taken[1], "the last one first"
        pool.give_back(taken[1])
        accepted[1].close()
        assert pool.take() is taken[0], "one that the server closed is passed over"
        pool.close()
        pool.give_back(taken[0])
        for sock in (accepted[0], accepted[2], accepted[3]):
            assert sock.recv(1) == b""
            sock.close()
