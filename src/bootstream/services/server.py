"""Runs an application as a service: sockets, TLS, time limits, readiness, an orderly end.

uvicorn moves the bytes, over h11, which bounds what a head may have (64 KiB). A client that does
not finish its head in time is hung up on; bodies have a time limit and a size of their own, in
``middleware``. SIGTERM ends it: no new connections, what is being answered is answered, streams
end.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from bootstream.errors import AlreadyExists, InvalidInput, PermissionDenied
from bootstream.services.settings import ListenSettings

HEAD_SECONDS = 10.0
KEEP_ALIVE_SECONDS = 30
STOP_SECONDS = 20
_BACKLOG = 1024


class _Protocol(H11Protocol):
    """HTTP/1.1 with a time limit for a request's head."""

    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_head()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_head()
        super().connection_lost(exc)

    def _watch_head(self) -> None:
        """Let the timer run exactly while a head was begun, or never was, and is not whole."""
        waiting = self.conn.their_state is h11.IDLE and self.timeout_keep_alive_task is None
        if not waiting:
            self._forget_head()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self._hang_up)

    def _forget_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _hang_up(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            self.transport.close()


class _Server(uvicorn.Server):
    """uvicorn's server, which ends with success on SIGTERM, and says when it is ready."""

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        on_ready: Callable[[], None],
        on_stop: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._on_ready = on_ready
        self._on_stop = on_stop

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self._on_ready()

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Take SIGTERM, SIGINT and SIGHUP as the regular end."""
        signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        before = {each: signal.signal(each, self.handle_exit) for each in signals}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - as it has it
        """Begin the end; a second signal makes it a hard one."""
        self.force_exit = self.should_exit
        self.should_exit = True
        self._on_stop()


def listen(settings: ListenSettings) -> socket.socket:
    """Return the socket that the service will accept from.

    Raises:
        InvalidInput: nobody may listen there in this way, or there is no such address.
        AlreadyExists: somebody listens there.
        PermissionDenied: this user may not.
    """
    settings.check()
    where = f"{settings.host}:{settings.port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, protocol)
    except OSError as error:
        raise InvalidInput(
            error.strerror or str(error), operation="listen", object=where
        ) from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        if isinstance(error, PermissionError):
            raise PermissionDenied(
                error.strerror or str(error), operation="listen", object=where
            ) from error
        raise AlreadyExists(
            error.strerror or str(error),
            operation="listen",
            object=where,
            remedy="another process listens there; BOOTSTREAM_LISTEN_PORT names another port",
        ) from error
    return sock


def run(
    app: ASGIApp,
    sock: socket.socket,
    settings: ListenSettings,
    *,
    on_ready: Callable[[str], None],
    on_stop: Callable[[], None],
) -> None:
    """Serve until SIGTERM or Ctrl-C; in the main thread.

    Args:
        app: the application.
        sock: listening.
        settings: for TLS.
        on_ready: called with the service's URL when it answers.
        on_stop: called, in a signal handler, when it was asked to end: streams are to stop.
    """
    more: dict[str, Any] = {}
    if settings.certificate is not None and settings.key is not None:
        check_certificate(settings.certificate, settings.key)
        more = {"ssl_certfile": settings.certificate, "ssl_keyfile": settings.key}
    config = uvicorn.Config(
        app,
        http=_Protocol,
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=True,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=STOP_SECONDS,
        **more,
    )
    host, port = sock.getsockname()[:2]
    name = f"[{host}]" if ":" in host else host
    url = f"{'https' if more else 'http'}://{name}:{port}"

    def ready() -> None:
        on_ready(url)
        notify("READY=1", f"STATUS=answers at {url}")

    def stop() -> None:
        on_stop()
        notify("STOPPING=1")

    _Server(config, on_ready=ready, on_stop=stop).run(sockets=[sock])


def check_certificate(certificate: Path, key: Path) -> None:
    """Raise InvalidInput unless the two can be used, before anything listens."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise InvalidInput(
            f"certificate and key cannot be used: {error.strerror or error}",
            operation="start service",
            object=str(certificate),
        ) from error


def notify(*lines: str) -> None:
    """Tell systemd, if it is there; sd_notify(3). Trouble is no trouble."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path or path[0] not in "/@":
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect("\0" + path[1:] if path[0] == "@" else path)
        sock.send("\n".join(lines).encode())
