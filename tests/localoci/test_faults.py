"""Faults: each does on the wire what it says, for the requests it names, as often as it says."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bootstream.localoci.errors import ApiError
from bootstream.localoci.faults import EFFECTS, Faults, Rule
from bootstream.localoci.federation import Federation
from bootstream.localoci.http import FileRange, Request, Response
from bootstream.localoci.httpserver import HttpServer
from bootstream.localoci.keys import Identity
from bootstream.localoci.metadata import Metadata
from bootstream.localoci.operations import Operation, operation_of
from bootstream.localoci.policies import PolicyFile
from bootstream.localoci.services import Clock, Services
from bootstream.localoci.tokens import Tokens

DATA = bytes(range(256)) * 1024
OBJECT = "/n/local/b/bucket/o/name"


class Server:
    """The real server and its faults, before a storage that has one object."""

    def __init__(self, folder: Path) -> None:
        clock = Clock()
        identity = Identity(folder, region="us-ashburn-1", namespace="local", clock=clock)
        tokens = Tokens(identity.token_key, clock=clock, lifetime=600)
        self.slept: list[float] = []
        self.faults = Faults(self.slept.append)
        self.closed = self.puts = 0
        self.put = b""
        self._path = folder / "object"
        self._path.write_bytes(DATA)
        services = Services(
            identity=identity,
            tokens=tokens,
            metadata=Metadata(identity),
            federation=Federation(identity, tokens, clock),
            policies=PolicyFile(folder),
            faults=self.faults,
            clock=clock,
        )
        self.http = HttpServer(services.around(self.storage))
        self.http.start()

    def storage(self, request: Request) -> Response:
        """Give the object, or count a PUT."""
        if request.method == "PUT":
            self.put = request.content()
            self.puts += 1
            return Response(200, {"etag": "x"})
        if request.path.endswith("missing"):
            raise ApiError(404, "ObjectNotFound", "missing")
        file = self._path.open("rb")

        def close() -> None:
            file.close()
            self.closed += 1

        return Response(200, {}, FileRange(file.fileno(), 0, len(DATA), close))

    def ask(
        self, method: str = "GET", path: str = OBJECT, body: bytes | None = None, **headers: str
    ) -> tuple[int, bytes, http.client.HTTPMessage]:
        """Ask once, on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.http.port, timeout=10)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(method, path, body, named)
            response = connection.getresponse()
            return response.status, response.read(), response.headers
        finally:
            connection.close()

    def administer(self, method: str, page: str, document: Any = None) -> tuple[int, Any]:
        """Ask a page of the administration."""
        body = None if document is None else json.dumps(document).encode()
        status, text, _ = self.ask(method, page, body, content_type="application/json")
        return status, json.loads(text)

    def add(self, effect: str, **fields: Any) -> int:
        """Put a rule into force over HTTP."""
        status, value = self.administer("POST", "/_local/faults", {"effect": effect, **fields})
        assert status == 200, value
        number: int = value["ids"][0]
        return number


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("faults"))
    yield server
    server.http.close()


@pytest.fixture
def server(shared: Server) -> Iterator[Server]:
    shared.faults.clear()
    shared.slept.clear()
    shared.closed = shared.puts = 0
    yield shared
    assert not shared.faults._chosen


def test_without_faults(server: Server) -> None:
    """All is well."""
    assert server.ask()[:2] == (200, DATA)


def test_status(server: Server) -> None:
    """A throttled request says how long to wait, and nothing takes effect."""
    server.add("status", status=429, retry_after=7, count=1)
    status, body, headers = server.ask("PUT", OBJECT, b"data")
    assert (status, headers["retry-after"]) == (429, "7")
    assert json.loads(body)["code"] == "TooManyRequests"
    assert server.puts == 0
    assert server.ask("PUT", OBJECT, b"data")[0] == 200


def test_lost_answer(server: Server) -> None:
    """With ``late`` the request takes effect, and the answer is another."""
    server.add("status", status=500, late=True)
    assert server.ask("PUT", OBJECT, b"data")[0] == 500
    assert server.puts == 1
    assert server.ask()[0] == 500
    assert server.closed == 1


@pytest.mark.parametrize(
    ("effect", "status", "code"),
    [("expired", 401, "NotAuthenticated"), ("stray", 404, "BucketNotFound")],
)
def test_named_answers(server: Server, effect: str, status: int, code: str) -> None:
    """As the cloud itself answers."""
    server.add(effect)
    found, body, _ = server.ask()
    assert (found, json.loads(body)["code"]) == (status, code)


@pytest.mark.parametrize("status", [200, 502])
def test_html(server: Server, status: int) -> None:
    """A proxy answers in its own language, sometimes with 200."""
    server.add("html", status=status)
    found, body, headers = server.ask(opc_client_request_id="mine")
    assert (found, headers["content-type"]) == (status, "text/html")
    assert body.startswith(b"<!DOCTYPE")
    assert not [name for name in headers if name.lower().startswith("opc-")]
    server.faults.clear()
    assert server.ask(opc_client_request_id="mine")[2]["opc-client-request-id"] == "mine"


@pytest.mark.parametrize("late", [False, True])
def test_reset(server: Server, late: bool) -> None:
    """The connection is gone instead of an answer."""
    server.add("reset", late=late)
    with pytest.raises(ConnectionResetError):
        server.ask("PUT", OBJECT, b"data")
    assert server.puts == late


@pytest.mark.parametrize("effect", ["cut", "reset"])
def test_within_the_body(server: Server, effect: str) -> None:
    """The body ends before its promised length."""
    server.add(effect, after=100_000)
    expected = http.client.IncompleteRead if effect == "cut" else ConnectionResetError
    with pytest.raises(expected) as caught:
        server.ask()
    if isinstance(caught.value, http.client.IncompleteRead):
        assert caught.value.partial == DATA[:100_000]
    assert server.closed == 1


@pytest.mark.parametrize(("effect", "expected"), [("short", DATA[:-1]), ("long", DATA + b"\0")])
def test_lengths(server: Server, effect: str, expected: bytes) -> None:
    """A byte less or more, under a length that agrees."""
    server.add(effect)
    status, body, headers = server.ask()
    assert (status, body) == (200, expected)
    assert int(headers["content-length"]) == len(expected)


@pytest.mark.parametrize("at", [0, 65535, 65536, len(DATA) - 1, len(DATA) * 2])
def test_flipped_bit(server: Server, at: int) -> None:
    """One bit, at its place; past the end, the last byte's."""
    server.add("flip", after=at)
    body = server.ask()[1]
    wrong = [number for number in range(len(DATA)) if body[number] != DATA[number]]
    assert wrong == [min(at, len(DATA) - 1)]
    assert body[wrong[0]] ^ DATA[wrong[0]] == 1


def test_latency_stall_and_bandwidth(server: Server) -> None:
    """They wait as long as they say, and spoil nothing."""
    server.add("latency", seconds=2.5)
    server.add("stall", after=1000, seconds=9)
    server.add("bandwidth", rate=len(DATA))
    assert server.ask()[1] == DATA
    assert server.slept[0] == 2.5
    assert server.slept.count(9) == 1
    assert sum(server.slept) == pytest.approx(2.5 + 9 + 1)


@pytest.mark.parametrize("at", [0, 1, 100_000, len(DATA) - 1])
def test_flipped_upload(server: Server, at: int) -> None:
    """What arrives is not what was sent, in one bit."""
    server.add("flip", upload=True, after=at)
    assert server.ask("PUT", OBJECT, DATA)[0] == 200
    wrong = [number for number in range(len(DATA)) if server.put[number] != DATA[number]]
    assert wrong == [at]


@pytest.mark.parametrize("effect", ["cut", "reset"])
def test_broken_upload(server: Server, effect: str) -> None:
    """The connection ends while the client sends, and nothing takes effect."""
    server.add(effect, upload=True, after=1000)
    with pytest.raises((ConnectionError, http.client.RemoteDisconnected)):
        server.ask("PUT", OBJECT, DATA * 20)
    assert server.puts == 0
    assert server.ask("GET")[:2] == (200, DATA)


def test_slow_uploads(server: Server) -> None:
    """They take their time, and arrive whole; an answer's body is not slowed."""
    server.add("stall", upload=True, seconds=9)
    server.add("bandwidth", upload=True, rate=len(DATA))
    assert server.ask("PUT", OBJECT, DATA)[0] == 200
    assert server.put == DATA
    assert server.slept.count(9) == 1
    assert sum(server.slept) == pytest.approx(10)
    server.slept.clear()
    assert server.ask()[1] == DATA
    assert server.slept == []


def test_which_requests(server: Server) -> None:
    """Operation, bucket and object choose; how often is counted."""
    number = server.add(
        "status", operation="*Object", bucket="buck*", object="na?e", skip=1, count=2
    )
    others = ("/n/local/b/other/o/name", "/n/local/b/bucket/o/names", "/n/local/b/bucket/o")
    assert [server.ask("GET", path)[0] for path in others] == [200, 200, 200]
    assert [server.ask()[0] for _ in range(5)] == [200, 503, 503, 200, 200]
    (rule,) = server.administer("GET", "/_local/faults")[1]
    assert (rule["id"], rule["seen"], rule["hits"]) == (number, 5, 2)
    assert server.administer("DELETE", f"/_local/faults/{number}")[1] == {"removed": 1}


def test_probability_has_a_seed(server: Server) -> None:
    """The same seed makes the same requests fail; another makes others."""
    runs = []
    for seed in (1, 1, 2):
        server.faults.clear()
        server.add("status", probability=0.5, seed=seed)
        runs.append([server.ask("HEAD")[0] for _ in range(24)])
    assert runs[0] == runs[1] != runs[2]
    assert {200, 503} == set(runs[0])


def test_rules_of_one_seed_differ(server: Server) -> None:
    """Two rules do not fall on the same requests."""
    for effect in ("status", "expired"):
        server.add(effect, probability=0.5)
    assert {200, 401, 503} == {server.ask("HEAD")[0] for _ in range(24)}


def test_head_has_no_body_to_spoil(server: Server) -> None:
    """Faults of bodies leave HEAD, and errors, as they are."""
    for effect in ("cut", "flip", "short", "long"):
        server.add(effect)
    assert server.ask("HEAD")[0] == 200
    assert server.ask("GET", OBJECT + "/missing")[0] == 404


def test_a_client_that_leaves_does_not_leak(server: Server) -> None:
    """The file is closed even if a slow body is never read to its end."""
    server.add("stall", after=0, seconds=1)
    connection = http.client.HTTPConnection("127.0.0.1", server.http.port, timeout=10)
    connection.request("GET", OBJECT)
    connection.close()
    deadline = time.monotonic() + 10
    while not server.closed and time.monotonic() < deadline:
        server.ask("HEAD", OBJECT + "/missing")
    assert server.closed == 1


@pytest.mark.parametrize(
    "document",
    [
        {},
        7,
        [7],
        {"effect": "none"},
        {"effect": "cut", "after": -1},
        {"effect": "cut", "after": "1"},
        {"effect": "cut", "after": True},
        {"effect": "status", "status": 99},
        {"effect": "status", "probability": 2},
        {"effect": "latency", "seconds": 1e9},
        {"effect": "bandwidth", "rate": 0},
        {"effect": "cut", "unknown": 1},
        {"effect": "html", "upload": True},
    ],
)
def test_rules_that_are_none(server: Server, document: object) -> None:
    """A wrong rule is refused with what is wrong, and none is put into force."""
    status, value = server.administer("POST", "/_local/faults", document)
    assert (status, value["code"]) == (400, "InvalidParameter")
    assert server.faults.as_json() == []


def test_every_effect_is_a_rule() -> None:
    """The table and the parser agree, and a rule survives JSON."""
    for effect in EFFECTS:
        rule = Rule.parse({"effect": effect})
        assert Rule.parse(rule.as_json()) == rule


def test_web_pages_cannot_administer(server: Server) -> None:
    """A form that a browser sends across sites has another content type."""
    status, _, _ = server.ask(
        "POST", "/_local/faults", b'{"effect":"reset"}', content_type="text/plain"
    )
    assert status == 415
    assert server.administer("GET", "/_local/nothing")[0] == 404


def test_other_names_of_this_machine_cannot_administer(server: Server) -> None:
    """Nor does a page whose name was made to point here."""
    assert server.ask("GET", "/_local/health", host="localhost:1")[0] == 200
    for host in ("example.com", "127.0.0.1.example.com", "localhost.example.com:80"):
        assert server.ask("GET", "/_local/health", host=host)[0] == 403


def test_counts_hold_for_many_threads(server: Server) -> None:
    """A rule takes exactly as many requests as it says, whoever sends them."""
    server.add("status", count=100)

    def ask(_number: int) -> int:
        return server.ask("HEAD")[0]

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(300)))
    assert (answers.count(503), answers.count(200)) == (100, 200)


def test_requests_are_counted(server: Server) -> None:
    """By operation, until they are taken."""
    server.administer("DELETE", "/_local/requests")
    for _ in range(3):
        server.ask()
    server.ask("PUT", OBJECT, b"data")
    assert server.administer("DELETE", "/_local/requests")[1] == {"GetObject": 3, "PutObject": 1}
    assert server.administer("GET", "/_local/requests")[1] == {}


@pytest.mark.parametrize(
    ("method", "path", "operation"),
    [
        ("GET", "/n", Operation("GetNamespace")),
        ("GET", "/n/", Operation("GetNamespace")),
        ("GET", "/n/ns/b", Operation("ListBuckets")),
        ("POST", "/n/ns/b/", Operation("CreateBucket")),
        ("HEAD", "/n/ns/b/x", Operation("HeadBucket", "x")),
        ("DELETE", "/n/ns/b/x", Operation("DeleteBucket", "x")),
        ("GET", "/n/ns/b/x/o", Operation("ListObjects", "x")),
        ("GET", "/n/ns/b/x/objectversions", Operation("ListObjectVersions", "x")),
        ("PUT", "/n/ns/b/x/o/a/b%2Fc", Operation("PutObject", "x", "a/b/c")),
        ("PUT", "/n/ns/b/x/o/p/u/n/b/o/", Operation("PutObject", "x", "p/u/n/b/o/")),
        ("PUT", "/n/ns/b/x/u/a/b", Operation("UploadPart", "x", "a/b")),
        ("POST", "/n/ns/b/x/u", Operation("CreateMultipartUpload", "x")),
        ("POST", "/n/ns/b/x/u/a", Operation("CommitMultipartUpload", "x", "a")),
        ("POST", "/n/ns/b/x/actions/copyObject", Operation("CopyObject", "x")),
        ("GET", "/p/token/n/ns/b/x/o/a/b", Operation("GetObject", "x", "a/b")),
        ("GET", "/workRequests/1/errors", Operation("GetWorkRequest")),
        ("GET", "/opc/v2/instance/", Operation("Metadata")),
        ("POST", "/v1/x509", Operation("Federation")),
        ("GET", "/", Operation("Unknown")),
        ("GET", "", Operation("Unknown")),
        ("BREW", "/n/ns/b/x/o/y", Operation("Unknown", "x", "y")),
    ],
)
def test_operations(method: str, path: str, operation: Operation) -> None:
    """Operations are named as in the API's reference."""
    assert operation_of(method, path) == operation
