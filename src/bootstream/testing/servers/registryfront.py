"""A registry that forgets tags: what stands in for the clouds' own, before docker-registry.

docker-registry checks and keeps blobs and manifests, and is asked for manifests by digest
alone. Which digest a tag names is kept here, so that a tag can be taken away as the clouds
do. Everything is in memory on its way: this is for tests.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import threading
from collections.abc import Mapping
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit


class Refused(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, body: object, **headers: str) -> None:
        super().__init__(f"{status} {body}")
        self.status = status
        self.body = body
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


def registry_error(status: int, code: str, message: str, **headers: str) -> Refused:
    """Return an error as the OCI distribution specification has it."""
    return Refused(status, {"errors": [{"code": code, "message": message}]}, **headers)


class Request:
    """What came."""

    def __init__(self, handler: BaseHTTPRequestHandler) -> None:
        self.method = handler.command
        self.target = handler.path
        parts = urlsplit(handler.path)
        self.path = unquote(parts.path)
        self.raw_path = parts.path
        self.query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        self.headers = handler.headers
        length = int(handler.headers.get("Content-Length") or 0)
        self.body = handler.rfile.read(length) if length else b""
        if handler.headers.get("Transfer-Encoding") == "chunked":
            self.body = _chunked(handler)

    @property
    def form(self) -> dict[str, str]:
        """The fields of a form."""
        return {name: values[0] for name, values in parse_qs(self.body.decode()).items()}

    def json(self) -> Any:
        """The document that was sent."""
        return json.loads(self.body)


def _chunked(handler: BaseHTTPRequestHandler) -> bytes:
    data = b""
    while size := int(handler.rfile.readline().strip(), 16):
        data += handler.rfile.read(size)
        handler.rfile.readline()
    handler.rfile.readline()
    return data


Reply = tuple[int, Mapping[str, str], bytes]


def json_reply(document: object, status: int = 200, **headers: str) -> Reply:
    """Return a document as an answer."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return status, {"Content-Type": "application/json", **named}, json.dumps(document).encode()


class RegistryFront:
    """The server; subclasses add a cloud's own. Serves while the context lasts.

    Attributes:
        host: ``127.0.0.1:PORT``.
        requests: method and path of everything that came.
        tags: repository to tag to digest.
    """

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.requests: list[tuple[str, str]] = []
        self.tags: dict[str, dict[str, str]] = {}
        self.lock = threading.RLock()
        front = self

        class Handler(BaseHTTPRequestHandler):
            """Answers one connection."""

            protocol_version = "HTTP/1.1"

            def handle_one(self) -> None:
                """Answer one request."""
                request = Request(self)
                front.requests.append((request.method, request.path))
                try:
                    status, headers, body = front.answer(request)
                except Refused as error:
                    status, headers, body = json_reply(error.body, error.status)
                    headers = {**headers, **error.headers}
                self.send_response_only(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                if "Content-Length" not in headers:
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if request.method != "HEAD":
                    self.wfile.write(body)

            def __getattr__(self, name: str) -> Any:
                """Every method is answered alike."""
                if name.startswith("do_"):
                    return self.handle_one
                raise AttributeError(name)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self.host = f"127.0.0.1:{self._server.server_port}"

    @property
    def url(self) -> str:
        """Where it is asked."""
        return f"http://{self.host}"

    # -- what a cloud adds --------------------------------------------------------------------

    def authorize(self, request: Request, repository: str | None) -> None:
        """Raise ``Refused`` for who may not."""

    def check_repository(self, repository: str) -> None:
        """Raise ``Refused`` where there is no such repository to push to."""

    def api(self, request: Request) -> Reply:
        """Answer what is not below ``/v2/``."""
        raise Refused(404, {"message": request.path})

    def set_tag(self, repository: str, tag: str, digest: str, manifest: bytes, kind: str) -> None:
        """Give a manifest a tag; raise ``Refused`` where that cannot be."""
        del manifest, kind
        with self.lock:
            self.tags.setdefault(repository, {})[tag] = digest

    def find_tag(self, repository: str, tag: str) -> str | None:
        """Return what a tag names."""
        with self.lock:
            return self.tags.get(repository, {}).get(tag)

    def list_tags(self, repository: str) -> list[str]:
        """Return the tags of a repository."""
        with self.lock:
            if repository not in self.tags:
                raise registry_error(404, "NAME_UNKNOWN", "no such repository")
            return sorted(self.tags[repository])

    # -- the registry's protocol --------------------------------------------------------------

    def answer(self, request: Request) -> Reply:
        """Answer a request."""
        if not request.path.startswith("/v2/"):
            return self.api(request)
        rest = request.path.removeprefix("/v2/")
        for mark in ("/manifests/", "/blobs/", "/tags/"):
            repository, found, name = rest.rpartition(mark)
            if mark == "/blobs/":
                repository, found, name = rest.partition(mark)
            if found:
                self.authorize(request, repository)
                if mark == "/manifests/":
                    return self._manifest(request, repository, name)
                if mark == "/tags/":
                    tags = self.list_tags(repository)
                    return json_reply({"name": repository, "tags": tags})
                if request.method == "POST":
                    self.check_repository(repository)
                return self.forward(request, request.target)
        self.authorize(request, None)
        return self.forward(request, request.target)

    def _manifest(self, request: Request, repository: str, name: str) -> Reply:
        digest: str | None = name
        if request.method == "PUT":
            self.check_repository(repository)
            digest = f"sha256:{hashlib.sha256(request.body).hexdigest()}"
            if ":" not in name:
                kind = request.headers.get("Content-Type", "")
                reply = self.forward(request, f"/v2/{repository}/manifests/{digest}")
                if reply[0] == 201:
                    self.set_tag(repository, name, digest, request.body, kind)
                return reply
        elif ":" not in name:
            digest = self.find_tag(repository, name)
            if digest is None:
                raise registry_error(404, "MANIFEST_UNKNOWN", "no such manifest")
        assert digest is not None
        reply = self.forward(request, f"/v2/{repository}/manifests/{digest}")
        if request.method == "DELETE" and reply[0] == 202:
            with self.lock:
                tags = self.tags.get(repository, {})
                for tag in [tag for tag, named in tags.items() if named == digest]:
                    del tags[tag]
        return reply

    def delete_manifest(self, repository: str, digest: str) -> int:
        """Delete a manifest from docker-registry; return the status."""
        connection = http.client.HTTPConnection(self.upstream, timeout=20)
        with closing(connection):
            connection.request("DELETE", f"/v2/{repository}/manifests/{digest}")
            answer = connection.getresponse()
            answer.read()
            return answer.status

    def forward(self, request: Request, target: str) -> Reply:
        """Have docker-registry answer."""
        connection = http.client.HTTPConnection(self.upstream, timeout=20)
        kept = {
            name: value
            for name, value in request.headers.items()
            if name.lower() not in ("content-length", "transfer-encoding", *self.kept_back)
        }
        with closing(connection):
            connection.request(request.method, target, body=request.body or None, headers=kept)
            answer = connection.getresponse()
            data = answer.read()
            headers = {
                name: value
                for name, value in answer.getheaders()
                if name.lower() not in ("date", "connection", "transfer-encoding")
            }
            return answer.status, headers, data

    kept_back: tuple[str, ...] = ("authorization",)
    """Headers that docker-registry does not see."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
