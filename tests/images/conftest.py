"""Fixtures: a small image, a registry with it, and a proxy that misbehaves on demand."""

from __future__ import annotations

import base64
import http.client
import json
import random
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
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
        self.calls: list[str] = []
        self.behave: Callable[[ProxyHandler], object] = ProxyHandler.forward
        self.upstream = upstream
        proxy = self

        class Handler(ProxyHandler):
            def do_GET(self) -> None:
                proxy.requests.append((self.path, self.headers))
                proxy.calls.append(f"{self.command} {self.path}")
                self.upstream = proxy.upstream
                proxy.behave(self)

            do_HEAD = do_POST = do_PATCH = do_PUT = do_DELETE = do_GET  # noqa: N815 - names of the base class

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
    extra: Mapping[str, str] = {}
    location_host = ""

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
        hide: tuple[str, ...] = (),
        body: bytes | None = None,
    ) -> None:
        """Pass it on; cut the body after ``limit`` bytes, or wait there for ``pause``.

        ``body`` is sent instead of the request's own.
        """
        connection = http.client.HTTPConnection(host or self.upstream, timeout=20)
        kept = {k: v for k, v in self.headers.items() if k.lower() not in ("host", *without)}
        sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if body is not None:
            sent, kept["Content-Length"] = body, str(len(body))
        # Behind this proxy the registry calls itself by the proxy's name, as it would for real.
        kept["Host"] = self.headers["Host"]
        with closing(connection):  # the registry may hang up first
            connection.request(self.command, self.path, body=sent, headers=kept)
            answer = connection.getresponse()
            received = answer.read()
        if change is not None:
            received = change(received)
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name == "Location" and self.location_host:
                self.send_header(name, value.replace(self.headers["Host"], self.location_host))
            elif name.lower() not in ("date", "server", "connection", *hide):
                self.send_header(name, value)
        for name, value in self.extra.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        try:
            self.wfile.write(received[:limit])
            if pause is not None:
                self.wfile.flush()
                pause.wait(25)
        except OSError:
            pass

    def forward_only(self) -> None:
        """Pass it on, and keep the answer."""
        connection = http.client.HTTPConnection(self.upstream, timeout=20)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with closing(connection):
            connection.request(self.command, self.path, body=body, headers=dict(self.headers))
            connection.getresponse().read()

    def cut(self, size: int) -> None:
        """Pass on what is sent up to ``size`` bytes of it, then break both connections."""
        host, _, port = self.upstream.partition(":")
        with socket.create_connection((host, int(port)), timeout=20) as upstream:
            head = f"{self.command} {self.path} HTTP/1.1\r\n"
            head += "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
            upstream.sendall(head.encode() + b"\r\n" + self.rfile.read(size))
        self.reset()

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def reset(self) -> None:
        """End the connection without an answer."""
        self.close_connection = True
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
