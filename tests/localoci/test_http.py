"""The HTTP server: framing, order, limits, and what becomes of connections."""

from __future__ import annotations

import base64
import hashlib
import http.client
import socket
import ssl
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bootstream.errors import InvalidInput
from bootstream.localoci.errors import ApiError, Disconnect
from bootstream.localoci.http import Body, BytesSource, Request, Response, json_response
from bootstream.localoci.httpserver import HttpServer
from bootstream.localoci.wire import Wire

if TYPE_CHECKING:
    from collections.abc import Iterator


def echo(request: Request) -> Response:
    """Tell what came."""
    if request.raw_path == "/unread":
        raise ApiError(412, "IfMatchFailed", "no")
    if request.raw_path == "/cut":
        return Response(200, {}, b"x" * 100, cut_after=10)
    if request.raw_path == "/gone":
        raise Disconnect
    if request.raw_path == "/fails":
        raise RuntimeError("a defect")
    if request.raw_path == "/pieces":
        return Response(200, {}, iter([b"one", b"", b"two"]))
    data = request.body.read_all()
    return json_response([request.method, request.target, len(data), sum(data)])


@pytest.fixture(scope="module")
def server() -> Iterator[HttpServer]:
    """A server of the handler above."""
    server = HttpServer(echo, idle=10.0)
    server.start()
    yield server
    server.close()


def talk(server: HttpServer, data: bytes) -> bytes:
    """Send bytes, end our side, and take everything that comes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        result = b""
        while part := connection.recv(65536):
            result += part
        return result


def test_pipelined_requests_are_answered_in_order(server: HttpServer) -> None:
    """Three requests in one packet, with bodies of both kinds, have three answers in order."""
    answer = talk(
        server,
        b"PUT /1 HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nabc"
        b"PUT /2 HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        b"2;note=1\r\nab\r\n1\r\nc\r\n0\r\ntrailer: 1\r\n\r\n"
        b"\r\nGET /3 HTTP/1.1\r\nhost: x\r\n\r\n",
    )
    assert answer.count(b"HTTP/1.1 200 OK") == 3
    first, second, third = (answer.find(b'"/%d"' % number) for number in (1, 2, 3))
    assert 0 < first < second < third
    assert answer.count(b",3,294]") == 2


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /\r\n\r\n", 400),
        (b"get / HTTP/1.1\r\nhost: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost : x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: x\r\n folded\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: x\r\na: b\0c\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: x\nb: c\r\n\r\n", 400),
        (b"PUT / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab", 400),
        (b"PUT / HTTP/1.1\r\nhost: x\r\ncontent-length: +1\r\n\r\na", 400),
        (b"PUT / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n"
         b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"PUT / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip\r\n\r\n", 501),
        (b"PUT / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n-1\r\n", 400),
        (b"PUT / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1\r\nab\r\n", 400),
        (b"GET / HTTP/2.0\r\nhost: x\r\n\r\n", 505),
        (b"GET / HTTP/1.1\r\nhost: x\r\nbig: " + b"x" * 70000 + b"\r\n\r\n", 431),
    ],
)  # fmt: skip
def test_broken_messages_are_refused(server: HttpServer, head: bytes, status: int) -> None:
    """What two readers might understand differently is refused, and nothing follows it."""
    answer = talk(server, head + b"GET /next HTTP/1.1\r\nhost: x\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 %d" % status)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"opc-request-id: " in answer
    assert b'"code":' in answer


def test_continue_is_sent_when_the_body_is_wanted(server: HttpServer) -> None:
    """A client that waits gets its 100 when the handler reads, and then the answer."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(
            b"PUT /1 HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\nexpect: 100-continue\r\n\r\n"
        )
        assert connection.recv(1024) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"abc")
        assert b'["PUT","/1",3,294]' in connection.recv(1024)


def test_no_continue_when_the_body_is_not_wanted(server: HttpServer) -> None:
    """A request that fails by its headers is answered without its body."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(
            b"PUT /unread HTTP/1.1\r\nhost: x\r\ncontent-length: 9999999999\r\n"
            b"expect: 100-continue\r\n\r\n"
        )
        answer = b""
        while part := connection.recv(1024):
            answer += part
    assert answer.startswith(b"HTTP/1.1 412")
    assert b"connection: close" in answer


def test_an_unread_body_does_not_hide_the_answer(server: HttpServer) -> None:
    """A long body that is not read ends the connection after an answer that can be read."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("PUT", "/unread", body=bytes(16 << 20))
    assert connection.getresponse().status == 412
    connection.close()
    connection.request("PUT", "/unread", body=bytes(1000))
    response = connection.getresponse()
    assert response.status == 412
    response.read()
    first = connection.sock
    connection.request("GET", "/again")
    assert connection.getresponse().status == 200
    assert connection.sock is first, "a short body is dropped, and the connection kept"
    connection.close()


def test_request_ids(server: HttpServer) -> None:
    """Every answer has an id of its own, and repeats the client's."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    seen = set()
    for target in ("/", "/unread", "/fails"):
        connection.request("GET", target, headers={"opc-client-request-id": "mine"})
        response = connection.getresponse()
        response.read()
        seen.add(response.headers["opc-request-id"])
        assert response.headers["opc-client-request-id"] == "mine"
    assert len(seen) == 3
    connection.close()


def test_a_defect_is_a_500_and_the_server_lives_on(
    server: HttpServer, caplog: pytest.LogCaptureFixture
) -> None:
    """What a handler lets through is logged, and is an error of the service's form."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("GET", "/fails")
    response = connection.getresponse()
    assert response.status == 500
    assert b"InternalServerError" in response.read()
    assert "a defect" in caplog.text
    connection.request("HEAD", "/")
    response = connection.getresponse()
    assert response.status == 200
    assert int(response.headers["content-length"]) > 0
    assert response.read() == b""
    connection.close()


def test_faults_reach_the_connection(server: HttpServer) -> None:
    """An answer can be cut in its body, or not come at all."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("GET", "/cut")
    with pytest.raises(http.client.IncompleteRead):
        connection.getresponse().read()
    connection.close()
    connection.request("GET", "/gone")
    with pytest.raises(http.client.RemoteDisconnected):
        connection.getresponse()
    connection.close()


def test_an_answer_in_pieces(server: HttpServer) -> None:
    """An iterator is sent in chunks; a client of HTTP/1.0 has it until the end."""
    assert b"\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n" in talk(
        server, b"GET /pieces HTTP/1.1\r\nhost: x\r\n\r\n"
    )
    assert talk(server, b"GET /pieces HTTP/1.0\r\n\r\n").endswith(b"\r\n\r\nonetwo")


def test_absolute_targets(server: HttpServer) -> None:
    """A target with a scheme and a host is its path."""
    answer = talk(server, b"GET http://x/a?b=c HTTP/1.1\r\nhost: x\r\n\r\n")
    assert b'"/a?b=c"' in answer


def test_a_silent_client_is_left() -> None:
    """A head that does not come ends with 408; a connection that says nothing just ends."""
    server = HttpServer(echo, idle=0.05)
    server.start()
    try:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            assert connection.recv(1024) == b""
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            connection.sendall(b"GET / HT")
            assert connection.recv(1024).startswith(b"HTTP/1.1 408")
    finally:
        server.close()


def test_close_ends_idle_connections_and_lets_requests_end() -> None:
    """Closing waits for the request in work, and not for connections that wait."""
    entered, release = threading.Event(), threading.Event()

    def slow(request: Request) -> Response:
        entered.set()
        assert release.wait(10)
        return Response(200, {}, b"done")

    server = HttpServer(slow)
    server.start()
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=10) as idle,
        socket.create_connection(("127.0.0.1", server.port), timeout=10) as busy,
    ):
        busy.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert entered.wait(10)
        closing = threading.Thread(target=server.close)
        closing.start()
        assert idle.recv(10) == b""
        release.set()
        assert busy.recv(1024).endswith(b"done")
        closing.join()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", server.port), timeout=1)
    server.close()


def test_only_loopback() -> None:
    """An address that others reach is refused."""
    with pytest.raises(InvalidInput, match="this machine only"):
        HttpServer(echo, "0.0.0.0")


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [b"GET / HTTP/1.1\r\n", b"PUT /x HTTP/1.0\r\n", b"host: x\r\n", b"\r\n", b"a: b\r\n",
             b"content-length: 5\r\n", b"transfer-encoding: chunked\r\n", b"5\r\nhello\r\n",
             b"0\r\n\r\n", b"hello", b"expect: 100-continue\r\n", b"\n", b"\0", b"\xff", b"zz\r\n"]
        )
        | st.binary(max_size=20),
        max_size=12,
    )
)  # fmt: skip
def test_no_bytes_break_the_reader(pieces: list[bytes]) -> None:
    """Whatever comes, the reader gives requests, an ApiError or a Disconnect, and ends."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(5)
        theirs.sendall(b"".join(pieces))
        theirs.shutdown(socket.SHUT_WR)
        ours.setblocking(True)
        wire = Wire(ours)
        try:
            for _ in range(len(pieces) + 2):
                first = b"" if wire.buffer else wire.receive()
                request = wire.request(wire.head(first), "")
                request.body.read_all(1 << 20)
        except (ApiError, Disconnect):
            pass


def test_too_many_connections_are_refused() -> None:
    """One connection more than there may be is answered 503; when one ends there is room again."""
    server = HttpServer(echo, connections=1)
    server.start()
    try:
        first = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        first.request("GET", "/")
        first.getresponse().read()
        second = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        second.request("GET", "/")
        response = second.getresponse()
        assert response.status == 503
        assert b"ServiceUnavailable" in response.read()
        second.close()
        first.close()
        statuses = set()
        for _ in range(1000):  # the first's thread may take a moment to see its end
            second.request("GET", "/")
            response = second.getresponse()
            response.read()
            second.close()
            statuses.add(response.status)
            if response.status == 200:
                break
        assert 200 in statuses
    finally:
        server.close()


def test_signed_bodies_are_checked_while_they_are_read() -> None:
    """A body that is not what was signed is 401 at its end, however it is read."""
    digest = base64.b64encode(hashlib.sha256(b"abc").digest()).decode()
    body = Body(BytesSource(b"abc"), 3)
    body.expect_sha256(digest)
    assert body.read_all() == b"abc"
    for data in (b"abd", b""):
        body = Body(BytesSource(data), len(data) or None)
        body.expect_sha256(digest)
        with pytest.raises(ApiError) as caught:
            body.read_all()
        assert caught.value.status == 401
    with pytest.raises(ApiError):
        Body(BytesSource(b""), 0).expect_sha256(digest)
    with pytest.raises(ApiError):
        Body(BytesSource(b"x"), 1).expect_sha256("no base64")
    with pytest.raises(Disconnect):
        Body(BytesSource(b"ab"), 3).read_all()
    with pytest.raises(ApiError) as caught:
        Body(BytesSource(b"abc"), None).read_all(2)
    assert caught.value.status == 413


def test_date_is_by_the_servers_clock() -> None:
    """A clock that is wrong shows, so that clients can tell by how much."""
    server = HttpServer(echo, clock=lambda: 86_400.0)
    server.start()
    try:
        answer = talk(server, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    finally:
        server.close()
    assert b"date: fri, 02 jan 1970 00:00:00 gmt" in answer.lower()


def test_tls_is_told_at_once(server: HttpServer) -> None:
    """A client that tries TLS first need not wait: it gets an answer that is none of TLS."""
    context = ssl.create_default_context()
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection,
        pytest.raises(ssl.SSLError, match=r"(?i)wrong.version|record layer"),
    ):
        context.wrap_socket(connection, server_hostname="localhost")
