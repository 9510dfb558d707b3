"""Fixtures: a small image, a registry with it, and a proxy that misbehaves on demand."""

from __future__ import annotations

import base64
import http.client
import json
import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from bootstream.testing.images import LayerBuilder, write_layout
from bootstream.testing.registry import DockerRegistry


class Proxy:
    """Stands before a registry; ``behave`` decides what becomes of each request."""

    def __init__(self, upstream: str) -> None:
        self.requests: list[tuple[str, Message]] = []
        self.behave: Callable[[ProxyHandler], object] = ProxyHandler.forward
        self.upstream = upstream
        proxy = self

        class Handler(ProxyHandler):
            def do_GET(self) -> None:
                proxy.requests.append((self.path, self.headers))
                self.upstream = proxy.upstream
                proxy.behave(self)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.host = f"127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def blob_requests(self) -> list[Message]:
        return [headers for path, headers in self.requests if "/blobs/" in path]

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class ProxyHandler(BaseHTTPRequestHandler):
    """One request; its methods are the ways to answer it."""

    upstream = ""

    def log_message(self, *_: object) -> None:
        pass

    def forward(
        self,
        *,
        limit: int | None = None,
        without: tuple[str, ...] = (),
        change: Callable[[bytes], bytes] | None = None,
        host: str | None = None,
        pause: threading.Event | None = None,
    ) -> None:
        """Pass it on; cut the body after ``limit`` bytes, or wait there for ``pause``."""
        connection = http.client.HTTPConnection(host or self.upstream, timeout=20)
        kept = {k: v for k, v in self.headers.items() if k.lower() not in ("host", *without)}
        connection.request("GET", self.path, headers=kept)
        answer = connection.getresponse()
        body = answer.read()
        if change is not None:
            body = change(body)
        connection.close()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("date", "server", "connection"):
                self.send_header(name, value)
        self.end_headers()
        try:
            self.wfile.write(body[:limit])
            if pause is not None:
                self.wfile.flush()
                pause.wait(25)
        except OSError:
            pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def reset(self) -> None:
        """End the connection without an answer."""
        self.connection.shutdown(socket.SHUT_RDWR)


def sample_layers() -> list[bytes]:
    """A layer of some MiB that does not compress, and a small one."""
    noise = random.Random(5).randbytes(3 << 20)
    return [
        LayerBuilder().file("noise", noise).finish(),
        LayerBuilder().file("etc/name", b"small\n").finish(),
    ]


@pytest.fixture(scope="session")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OCI layout with the sample image, tag ``x``."""
    folder = tmp_path_factory.mktemp("image") / "layout"
    write_layout(folder, sample_layers(), tag="x")
    return folder


@pytest.fixture(scope="session")
def registry(layout: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    """A registry that anybody may read, with ``team/app:1``."""
    with DockerRegistry(tmp_path_factory.mktemp("registry")) as server:
        server.push(f"oci:{layout}:x", "team/app:1")
        yield server


@pytest.fixture
def start_proxy() -> Iterator[Callable[[str], Proxy]]:
    with ExitStack() as stack:

        def start(upstream: str) -> Proxy:
            proxy = Proxy(upstream)
            stack.callback(proxy.close)
            return proxy

        yield start


@pytest.fixture
def proxy(registry: DockerRegistry, start_proxy: Callable[[str], Proxy]) -> Proxy:
    """A proxy before the registry that anybody may read."""
    return start_proxy(registry.host)


@pytest.fixture
def auth_file(tmp_path: Path) -> Callable[..., Path]:
    """Write a credential file with one entry and return its path."""

    def write(host: str, user: str, password: str) -> Path:
        encoded = base64.b64encode(f"{user}:{password}".encode()).decode()
        path = tmp_path / "auth.json"
        path.write_text(json.dumps({"auths": {host: {"auth": encoded}}}))
        return path

    return write
