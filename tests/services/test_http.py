"""What every request to a service goes through: tokens, limits, problems, figures, an end."""

from __future__ import annotations

import hashlib
import hmac
import json
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import urllib3
import uvicorn
from tests.services.fuzz import fuzz

from bootstream.client import TemplateManagerClient
from bootstream.errors import InvalidInput, PermissionDenied
from bootstream.services import server
from bootstream.services.settings import ListenSettings
from bootstream.testing.registry import DockerRegistry
from bootstream.testing.services import ServiceProcess

UNKNOWN = "00000000-0000-4000-8000-000000000000"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """A manager that nobody breaks."""
    with ServiceProcess("template-manager", tmp_path_factory.mktemp("service")) as process:
        yield process


def ask(service: ServiceProcess, method: str, path: str, **more: Any) -> urllib3.BaseHTTPResponse:
    """Send a request as it stands."""
    with urllib3.PoolManager() as pool:
        return pool.request(method, service.url + path, retries=False, timeout=10, **more)


def connect(service: ServiceProcess) -> socket.socket:
    """A bare connection."""
    parts = urlsplit(service.url)
    return socket.create_connection((parts.hostname, parts.port), timeout=25)


@pytest.mark.parametrize(
    ("body", "where"),
    [
        (b"{", "body.1"),
        (b"[]", "body"),
        (b"{}", "body"),
        (b'{"image": "a/b:1", "surprise": 1}', "body.surprise"),
        (b'{"image": "a/b:1", "size": 1, "free": 1}', "body"),
        (b'{"image": "a/b:1", "size": "9"}', "body.size"),
        (b'{"image": "a/b:1", "build_id": "x"}', "body.build_id"),
        (b'{"image": "a/b:1", "tags": ["-"]}', "body.tags.0"),
        (b'{"image": "a/b:1", "level": 99}', "body.level"),
    ],
)
def test_wrong_bodies(service: ServiceProcess, body: bytes, where: str) -> None:
    """A body that is not as described is a problem that says where."""
    answer = ask(
        service,
        "POST",
        "/v1/templates/app/builds",
        body=body,
        headers={"Content-Type": "application/json", "X-Request-ID": "mine.1"},
    )
    assert answer.status == 422
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.headers["X-Request-ID"] == "mine.1"
    problem = answer.json()
    assert problem["kind"] == "InvalidInput"
    assert problem["request_id"] == "mine.1"
    assert problem["errors"][0]["where"] == where


def test_paths_and_methods(service: ServiceProcess) -> None:
    """What does not exist is a problem document too."""
    for method, path, status in (
        ("GET", "/nothing", 404),
        ("PATCH", "/health", 405),
        ("GET", "/v1/templates/UPPER", 422),
        ("GET", f"/v1/templates/app/builds/{UNKNOWN}", 404),
        ("GET", f"/v1/templates/app/builds/{UNKNOWN}/log", 404),
        ("GET", "/v1/templates/app/builds/..%2f..%2fx", 404),
        ("GET", "/v1/builds?cursor=9_x", 422),
    ):
        answer = ask(service, method, path)
        assert answer.status == status, path
        assert answer.json()["status"] == status


def test_large_bodies(service: ServiceProcess) -> None:
    """A body over the limit is refused by its length, or once too much of it came."""
    answer = ask(
        service, "POST", "/v1/templates/app/builds", body=b"x", headers={"Content-Length": "9" * 15}
    )
    assert answer.status == 413
    with connect(service) as sock:
        sock.sendall(
            b"POST /v1/templates/app/builds HTTP/1.1\r\nHost: localhost\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        for _ in range(18):
            sock.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
        assert sock.recv(12) == b"HTTP/1.1 413"


def test_large_heads(service: ServiceProcess) -> None:
    """A head without an end is refused."""
    with connect(service) as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 200_000)
        assert sock.recv(12) == b"HTTP/1.1 400"


def test_foreign_hosts(service: ServiceProcess) -> None:
    """Without tokens, a web page whose name leads here is not answered."""
    answer = ask(service, "GET", "/v1/templates", headers={"Host": "evil.example"})
    assert answer.status == 400
    assert ask(service, "GET", "/v1/templates", headers={"Host": "localhost:1"}).status == 200


def test_slow_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who does not finish a head is hung up on; who sends nothing, too."""

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    monkeypatch.setattr(server, "HEAD_SECONDS", 0.3)
    sock = server.listen(ListenSettings(port=0))
    address = sock.getsockname()
    config = uvicorn.Config(app, http=server._Protocol, lifespan="off", log_config=None)
    running = server._Server(config, on_ready=lambda: None, on_stop=lambda: None)
    monkeypatch.setattr(running, "capture_signals", nullcontext)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [sock]})
    thread.start()
    try:
        for begun in (b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: "):
            with socket.create_connection(address, timeout=10) as client:
                client.sendall(begun)
                assert client.recv(100) == b""
        with socket.create_connection(address, timeout=10) as client:
            for _ in range(2):  # the timer of one request does not end the next
                client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                assert b"200 OK" in client.recv(1000)
            client.sendall(b"GET / HT")
            while client.recv(1000):
                pass
    finally:
        running.should_exit = True
        thread.join()
        sock.close()


def test_tokens(folder: Path) -> None:
    """Each scope lets in what it names; changes of the file count at once."""
    tokens = folder / "tokens.json"
    process = ServiceProcess("template-manager", folder, options=["--tokens", str(tokens)])

    def make(name: str, *scopes: str, more: tuple[str, ...] = ()) -> str:
        options = [part for scope in scopes for part in ("--scope", scope)]
        return process.cli.ok("token", name, "--file", tokens, *options, *more)

    reader = make("reader", "templates:read")
    writer = make("writer", "templates:read", "templates:write")
    expired = make("expired", "*", more=("--expires", "1ms"))
    assert tokens.stat().st_mode & 0o777 == 0o600
    assert reader not in tokens.read_text()
    with process:
        for token in (None, "wrong", expired):
            with (
                TemplateManagerClient(process.url, token=token) as client,
                pytest.raises(PermissionDenied),
            ):
                list(client.builds())
        with TemplateManagerClient(process.url, token=reader) as client:
            assert list(client.builds()) == []
            with pytest.raises(PermissionDenied, match="templates:write"):
                client.start_build("app", image="example.com/a:1")
        with TemplateManagerClient(process.url, token=writer) as client:
            with pytest.raises(InvalidInput):
                client.start_build("app", image="127.0.0.1/a:1")
            with pytest.raises(PermissionDenied, match="templates:delete"):
                client.delete("app", UNKNOWN)
        assert ask(process, "GET", "/health").status == 200
        denied = ask(process, "GET", "/metrics")
        assert (denied.status, denied.headers["WWW-Authenticate"]) == (
            401,
            'Bearer realm="bootstream"',
        )
        late = make("late", "*")
        document = json.loads(tokens.read_text())
        document["tokens"] = [each for each in document["tokens"] if each["name"] == "late"]
        tokens.write_text(json.dumps(document))
        deadline = time.monotonic() + 10
        while ask(process, "GET", "/metrics", headers=bearer(late)).status != 200:
            assert time.monotonic() < deadline
        assert ask(process, "GET", "/v1/builds", headers=bearer(reader)).status == 401
        tokens.write_text("{")  # the last good ones stay in force
        while "tokens stay as they were" not in process.said():
            assert ask(process, "GET", "/metrics", headers=bearer(late)).status == 200
            assert time.monotonic() < deadline
        for token in (reader, writer, late, expired):
            assert token not in process.said()


def bearer(token: str) -> dict[str, str]:
    """The header that shows a token."""
    return {"Authorization": f"Bearer {token}"}


def test_tls(folder: Path) -> None:
    """With a certificate the service speaks https, and the client trusts who it is told to."""
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")),
            *("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
    )
    environment = {
        "BOOTSTREAM_TLS_CERT_FILE": str(folder / "cert.pem"),
        "BOOTSTREAM_TLS_KEY_FILE": str(folder / "key.pem"),
    }
    with ServiceProcess("template-manager", folder, environment=environment) as process:
        assert process.url.startswith("https://127.0.0.1:")
        with TemplateManagerClient(process.url, ca_file=str(folder / "cert.pem")) as client:
            assert list(client.templates()) == []
        context = ssl.create_default_context()
        with connect(process) as sock, pytest.raises(ssl.SSLCertVerificationError):
            context.wrap_socket(sock, server_hostname="127.0.0.1")


class Receiver:
    """A server for webhooks, which fails at first."""

    def __init__(self, failures: int) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.event = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.got.append((dict(self.headers), body))
                failed = len(receiver.got) <= failures
                self.send_response(503 if failed else 204)
                self.end_headers()
                if not failed:
                    receiver.event.set()

            def log_message(self, *_arguments: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def close(self) -> None:
        """End it."""
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def test_webhooks(folder: Path, registry: DockerRegistry) -> None:
    """Who asked is told how a build ended, signed; after trouble it is tried again."""
    receiver = Receiver(failures=1)
    secret = folder / "secret"
    secret.write_text("0123456789abcdef0123\n")
    environment = {
        "BOOTSTREAM_ALLOWED_HOSTS": f"{registry.host},{receiver.host}",
        "BOOTSTREAM_WEBHOOK_SECRET_FILE": str(secret),
    }
    try:
        process = ServiceProcess("template-manager", folder, environment=environment)
        with process, TemplateManagerClient(process.url) as client:
            for url in ("http://example.com/", "https://10.0.0.1/", "https://u:p@example.com/"):
                with pytest.raises(InvalidInput):
                    client.start_build("app", image="example.com/a:1", webhook=url)
            build = client.start_build(
                "app",
                image=f"{registry.host}/test/app:1",
                plain_http=True,
                webhook=f"http://{receiver.host}/hook?x=1",
            )
            client.wait("app", build.build_id)
            assert receiver.event.wait(15)
            while client.get_build("app", build.build_id).document["webhook"] == "waiting":
                pass
            assert client.get_build("app", build.build_id).document["webhook"] == "delivered"
    finally:
        receiver.close()
    assert len(receiver.got) == 2
    headers, body = receiver.got[-1]
    document = json.loads(body)
    assert (document["build_id"], document["state"]) == (build.build_id, "published")
    when, _, given = headers["X-Bootstream-Signature"].partition(",v1=")
    text = when.removeprefix("t=").encode() + b"." + body
    assert hmac.new(b"0123456789abcdef0123", text, hashlib.sha256).hexdigest() == given
    assert headers["X-Bootstream-Delivery"] == f"{build.build_id}.published"


def test_redirects_to_private_places(folder: Path, registry: DockerRegistry) -> None:
    """A host that may be asked does not lead to one that may not."""
    asked = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.set()
            self.send_response(307)
            self.send_header("Location", f"http://{registry.host}{self.path}")
            self.end_headers()

        do_HEAD = do_GET  # noqa: N815 - as the library has it

        def log_message(self, *_arguments: object) -> None:
            pass

    front = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=front.serve_forever)
    thread.start()
    host = f"127.0.0.1:{front.server_port}"
    try:
        process = ServiceProcess(
            "template-manager", folder, environment={"BOOTSTREAM_ALLOWED_HOSTS": host}
        )
        with process, TemplateManagerClient(process.url) as client:
            build = client.start_build("app", image=f"{host}/test/app:1", plain_http=True)
            ended = client.wait("app", build.build_id)
            assert ended.state == "failed"
            assert ended.error is not None
            assert "not a public one" in ended.error
            assert asked.is_set()
    finally:
        front.shutdown()
        front.server_close()
        thread.join()


def test_stop_ends_streams(folder: Path, registry: DockerRegistry) -> None:
    """SIGTERM ends the service at once, though somebody follows a log."""
    environment = {"BOOTSTREAM_ALLOWED_HOSTS": registry.host, "BOOTSTREAM_UPLOAD_RATE": "4M"}
    process = ServiceProcess("template-manager", folder, environment=environment)
    with process, TemplateManagerClient(process.url) as client:
        build = client.start_build("app", image=f"{registry.host}/test/big:1", plain_http=True)
        events = client.events("app", build.build_id)
        next(events)
        began = time.monotonic()
        process.stop()
        assert time.monotonic() - began < 10
        process.start()
    assert '"message": "GET' in process.said()
    for line in process.said().splitlines():
        assert "time" in json.loads(line)


def test_metrics_and_notify(folder: Path) -> None:
    """Figures are Prometheus's; systemd hears that it is ready, and that it ends."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(folder / "notify"))
        notified.settimeout(10)
        environment = {"NOTIFY_SOCKET": str(folder / "notify")}
        with ServiceProcess("template-manager", folder, environment=environment) as process:
            assert notified.recv(1000).startswith(b"READY=1\n")
            deadline = time.monotonic() + 10
            while ask(process, "GET", "/ready").status != 200:
                assert time.monotonic() < deadline
            page = ask(process, "GET", "/metrics").data.decode()
            assert 'bootstream_builds{state="queued"} 0.0' in page
            assert 'route="/ready"' in page
            assert "process_resident_memory_bytes" in page
        assert notified.recv(1000) == b"STOPPING=1"


def test_store_away(folder: Path) -> None:
    """A service whose store is away lives, and is not ready."""
    store = folder / "file"
    store.write_bytes(b"")
    environment = {"LOCAL_TEMPLATE_STORAGE_BASE_PATH": str(store / "below")}
    with ServiceProcess("template-manager", folder, environment=environment) as process:
        assert ask(process, "GET", "/health").status == 200
        answer = ask(process, "GET", "/ready")
        assert answer.status == 503
        assert answer.json()["checks"]["store"] != "ok"


@pytest.mark.timeout(90)
def test_schemathesis(service: ServiceProcess, folder: Path) -> None:
    """Requests made from the description: no answer that is not described, and no 5xx."""
    fuzz(service, folder, seconds=8)
