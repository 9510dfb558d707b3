"""A server on loopback that answers what a test tells it to, byte by byte."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric import rsa

from bootstream.clouds.oci import Credentials
from bootstream.storage.oci import OCIBucketStorageProvider
from bootstream.storage.oci.connection import TimeLimits

KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)


@dataclass(frozen=True)
class Seen:
    """A request as it came."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]


Script = Callable[[Seen], bytes]


def reply(
    status: int = 200,
    body: bytes = b"",
    *,
    length: int | None = None,
    request_id: str | None = "rid-1",
    fields: dict[str, str] | None = None,
    **headers: str,
) -> bytes:
    """Render an answer; ``length`` may lie. Underscores in header names become dashes."""
    lines = [
        f"HTTP/1.1 {status} Words",
        f"Content-Length: {len(body) if length is None else length}",
    ]
    if request_id:
        lines.append(f"opc-request-id: {request_id}")
    headers = {name.replace("_", "-"): value for name, value in headers.items()} | (fields or {})
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def refusal(status: int, code: str, message: str = "words", **headers: str) -> bytes:
    """Render an error in the service's form."""
    body = f'{{"code": "{code}", "message": "{message}"}}'.encode()
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return reply(status, body, fields={"content-type": "application/json"} | headers)


@dataclass
class ScriptedServer:
    """Answers with what ``script`` returns; a None ends the connection, as does ``end``.

    The answer is sent as it is; a test that wants the connection closed after it appends
    ``CLOSE``, and one that wants silence ``STALL``.
    """

    script: Script
    seen: list[Seen] = field(default_factory=list)
    connections: int = 0

    CLOSE = b"\0close\0"
    STALL = b"\0stall\0"

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._open: list[socket.socket] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> ScriptedServer:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._open:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        for thread in self._threads:
            thread.join(10)

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._stop.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(connection)
            self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as file:
            while True:
                try:
                    request = self._read(file)
                    if request is None:
                        return
                    self.seen.append(request)
                    answer = self.script(request)
                    stall, close = answer.endswith(self.STALL), answer.endswith(self.CLOSE)
                    connection.sendall(answer.removesuffix(self.STALL).removesuffix(self.CLOSE))
                    if stall:
                        self._stop.wait(20)
                    if stall or close:
                        return
                except OSError:
                    return

    @staticmethod
    def _read(file) -> Seen | None:  # type: ignore[no-untyped-def]  # a buffered reader
        line = file.readline().decode("latin-1")
        if not line:
            return None
        method, target, _ = line.split(" ", 2)
        headers: dict[str, str] = {}
        while (line := file.readline().decode("latin-1")) not in ("\r\n", ""):
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        return Seen(method, target, headers, file.read(int(headers.get("content-length", 0))))


class StubPrincipal:
    """Credentials made up here; counts refreshes, each of which gives others."""

    name = "api_key"
    tenancy = "ocid1.tenancy.oc1..t"
    region = "us-ashburn-1"

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now = Credentials("tenancy/user/0", KEY)
        self.refreshes = 0

    def credentials(self) -> Credentials:
        return self._now

    def refresh(self, stale: Credentials) -> Credentials:
        with self._lock:
            if self._now is stale:
                self.refreshes += 1
                self._now = Credentials(f"tenancy/user/{self.refreshes}", KEY)
            return self._now


def provider_for(
    server: ScriptedServer,
    principal: StubPrincipal | None = None,
    limits: TimeLimits | None = None,
    part_size: int | None = None,
    parallel: int = 4,
    sleep: Callable[[float], object] = time.sleep,
) -> OCIBucketStorageProvider:
    """Return a provider over the scripted server, with short time limits."""
    return OCIBucketStorageProvider(
        "bucket",
        namespace="ns",
        principal=principal or StubPrincipal(),
        endpoint=server.url,
        parallel=parallel,
        part_size=part_size,
        sleep=sleep,
        limits=limits or TimeLimits(connect=5, first_byte=5, progress=5),
    )
