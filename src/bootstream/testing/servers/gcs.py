"""A stand-in for Google Cloud Storage's XML API: moto, with Google's dialect in front.

Google's XML API is S3's but for the names of headers and for its preconditions, which name
generations ("XML API" and "Request preconditions" of its documentation). The proxy translates
the names, gives every write a generation of its own, and refuses what does not match:

- ``x-goog-meta-*`` and ``x-goog-copy-source`` are S3's ``x-amz-`` headers of that name;
- ``x-goog-if-generation-match: 0`` wants no object, another number wants that generation;
  otherwise the answer is 412;
- ``x-goog-generation`` is in every answer about an object that exists.

Requests about one bucket's objects are answered one after the other, but for parts of uploads.
"""

from __future__ import annotations

import http.client
import threading
from contextlib import AbstractContextManager, ExitStack, nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, quote, unquote, urlsplit

from bootstream.testing.servers.s3 import REGION, Moto

_MAX_BODY = 64 << 20
_PASSED = frozenset(
    {"content-type", "range", "if-match", "if-none-match", "content-length", "cache-control"}
)
_PREFIXES = (("x-goog-meta-", "x-amz-meta-"), ("x-goog-copy-source", "x-amz-copy-source"))
_DROPPED = frozenset({"connection", "transfer-encoding", "content-length", "date", "server"})
_NOBODY = f"AWS4-HMAC-SHA256 Credential=a/20200101/{REGION}/s3/aws4_request"
_FAILED = (
    b"<?xml version='1.0' encoding='UTF-8'?><Error><Code>PreconditionFailed</Code>"
    b"<Message>At least one of the pre-conditions you specified did not hold.</Message></Error>"
)


class GoogleServer:
    """The stand-in, running while the context lasts.

    Attributes:
        url: what a client takes for Google's endpoint.
    """

    def __init__(self, folder: Path) -> None:
        self._moto = Moto(folder)
        self._stack = ExitStack()
        self.url = ""

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self._moto)
            proxy = stack.enter_context(_Proxy(self._moto))
            self.url = proxy.url
            self._stack = stack.pop_all()
        return self

    def create_bucket(self, name: str) -> str:
        """Create a bucket; return its name."""
        return self._moto.create_bucket(name)

    def close(self) -> None:
        """End both processes."""
        self._stack.close()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class _Server(ThreadingHTTPServer):
    """Waits for its threads when it is closed, and takes many connections at once."""

    daemon_threads = False
    request_queue_size = 64


class _Proxy:
    """Translates, and keeps the generations."""

    def __init__(self, moto: Moto) -> None:
        self._host = urlsplit(moto.url).netloc
        self.lock = threading.RLock()
        self.generations: dict[str, int] = {}
        self._last = 1_000
        self._closing = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            """Answers the requests of one connection."""

            protocol_version = "HTTP/1.1"
            timeout = 10

            def handle_any(self) -> None:
                """Answer one request, whatever its method."""
                outer.answer(self)

            do_GET = handle_any  # noqa: N815 - names of the standard library's
            do_HEAD = handle_any  # noqa: N815
            do_PUT = handle_any  # noqa: N815
            do_POST = handle_any  # noqa: N815
            do_DELETE = handle_any  # noqa: N815

            def setup(self) -> None:
                """Open a connection of one's own to what is behind."""
                super().setup()
                outer.connections.add(self.connection)
                self.upstream = http.client.HTTPConnection(outer._host, timeout=20)

            def finish(self) -> None:
                """Close it."""
                self.upstream.close()
                outer.connections.discard(self.connection)
                super().finish()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self.connections: set[object] = set()
        self._server = _Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        for connection in list(self.connections):  # idle ones would be waited for
            _shut(connection)
        self._server.server_close()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        length = int(handler.headers.get("Content-Length") or 0)
        if length > _MAX_BODY:
            raise ValueError("a body is larger than any part")
        body = handler.rfile.read(length)
        parts = urlsplit(handler.path)
        query = parse_qs(parts.query, keep_blank_values=True)
        key = unquote(parts.path)
        guard: AbstractContextManager[object] = self.lock
        if "partNumber" in query or "list-type" in query:
            guard = nullcontext()
        with guard:
            status, headers, data = self._perform(handler, key, query, body)
        handler.send_response(status)
        for name, value in headers:
            handler.send_header(name, value)
        if not any(name.lower() == "content-length" for name, _ in headers):
            handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(data)

    def _perform(
        self,
        handler: BaseHTTPRequestHandler,
        key: str,
        query: dict[str, list[str]],
        body: bytes,
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        wanted = handler.headers.get("x-goog-if-generation-match")
        if wanted is not None and int(wanted) != self.generations.get(key, 0):
            return 412, [("Content-Type", "application/xml")], _FAILED
        status, headers, data = self._forward(handler, body)
        is_object = key.count("/") > 1
        writes = handler.command == "PUT" and not query
        completes = handler.command == "POST" and "uploadId" in query
        if is_object and status < 300:
            if writes or completes:
                self._last += 1
                self.generations[key] = self._last
            elif handler.command == "DELETE" and not query:
                self.generations.pop(key, None)
        if is_object and key in self.generations:
            headers.append(("x-goog-generation", str(self.generations[key])))
        return status, headers, data

    def _forward(
        self, handler: BaseHTTPRequestHandler, body: bytes
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        headers = {"Authorization": _NOBODY}
        for name, value in handler.headers.items():
            lower = name.lower()
            if lower in _PASSED:
                headers[lower] = value
            for ours, theirs in _PREFIXES:
                if lower.startswith(ours):
                    headers[theirs + lower.removeprefix(ours)] = value
        upstream: http.client.HTTPConnection = handler.upstream  # type: ignore[attr-defined]  # set up above
        # Google's clients encode more than moto decodes: "-" in the bucket, "/" in the name.
        parts = urlsplit(handler.path)
        path = quote(unquote(parts.path), safe="/-._~")
        target = f"{path}?{parts.query}" if parts.query else path
        upstream.request(handler.command, target, body, headers)
        answer = upstream.getresponse()
        data = answer.read()
        kept = [
            (name.lower().replace("x-amz-meta-", "x-goog-meta-"), value)
            for name, value in answer.getheaders()
            if name.lower() not in _DROPPED
        ]
        if handler.command == "HEAD":
            kept.append(("Content-Length", answer.headers.get("Content-Length", "0")))
        return answer.status, kept, data


def _shut(connection: object) -> None:
    import socket  # noqa: PLC0415 - needed here alone

    if isinstance(connection, socket.socket):
        try:
            connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            return
