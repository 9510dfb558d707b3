"""Asking a server that runs for something: JSON lines over a unix socket beside the export's.

The server greets with a line. The client sends one request, a JSON object in one line, and reads
lines until the connection ends. Each is an object with one key: ``phase``, ``advance``, ``done``
and ``log`` are progress; the last line has ``result`` or ``error``. A client that goes away
cancels what it asked for. The socket's mode is 0600. The words are in
docs/formats/overlay.md, "Control socket".
"""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from bootstream import errors
from bootstream.errors import (
    BootstreamError,
    Cancelled,
    InvalidInput,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from bootstream.nbd.listen import UnixListener, listen_unix
from bootstream.progress import Progress

SUFFIX = ".ctl"
"""What the control socket's name adds to that of the export."""

GREETING = "bootstream/control"
"""The only key of the server's first line; its value is the version."""

_MOST_BYTES = 1 << 20
_CONNECTIONS = 8
_REQUEST_SECONDS = 10.0
_GREETING_SECONDS = 10.0
_LOOK = 64

Handler = Callable[[Mapping[str, Any], Progress], Mapping[str, Any]]


class ControlServer:
    """Answers requests, each in a thread of its own, a few at a time.

    Args:
        path: of the socket.
        handlers: by the request's ``op``; each gets the request, and progress that goes to the
            client, and returns the result. Errors of the package go to the client too.

    Raises:
        InvalidInput, NotFound, AlreadyExists, PermissionDenied: as ``listen_unix``.
    """

    def __init__(self, path: str | os.PathLike[str], handlers: Mapping[str, Handler]) -> None:
        self._handlers = handlers
        self._listener: UnixListener = listen_unix(path)
        self._closing = False
        self._lock = threading.Lock()
        self._open: dict[socket.socket, threading.Thread] = {}
        self._thread = threading.Thread(target=self._accept, name="control")
        self._thread.start()

    @property
    def path(self) -> str:
        """The socket's absolute path."""
        return self._listener.path

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.socket.accept()
            except OSError:
                return  # it was closed
            thread = threading.Thread(target=self._serve, args=(connection,), name="control")
            with self._lock:
                taken = len(self._open) < _CONNECTIONS and not self._closing
                if taken:
                    self._open[connection] = thread
            if not taken:
                connection.close()
                continue
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with suppress(OSError), connection:
                _send(connection, {GREETING: 1})
                _send(connection, self._answer(connection))
        finally:
            with self._lock:
                self._open.pop(connection, None)

    def _answer(self, connection: socket.socket) -> dict[str, Any]:
        try:
            request = _read_request(connection)
            handler = self._handlers.get(str(request.get("op")))
            if handler is None:
                known = ", ".join(sorted(self._handlers))
                raise InvalidInput(
                    f"unknown operation {request.get('op')!r:.40}; there are: {known}",
                    operation="control",
                )
            return {"result": dict(handler(request, _Remote(connection, self)))}
        except BootstreamError as error:
            return {"error": error_to_json(error)}

    def check(self) -> None:
        """Raise Cancelled once the server is being closed."""
        if self._closing:
            raise Cancelled("the server ends")

    def close(self) -> None:
        """Cancel what runs, wait for it, and remove the socket; idempotent."""
        with self._lock:
            self._closing = True
            connections = dict(self._open)
        with suppress(OSError):
            self._listener.socket.shutdown(socket.SHUT_RDWR)
        self._listener.socket.close()
        self._listener.remove()
        self._thread.join()
        for connection, thread in connections.items():
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RD)  # who waits for a request ends
            with suppress(RuntimeError):  # not started
                thread.join()


class _Remote:
    """Progress that a client hears of; its end is the work's end."""

    def __init__(self, connection: socket.socket, server: ControlServer) -> None:
        self._connection = connection
        self._server = server
        self._lock = threading.Lock()

    def _tell(self, **line: object) -> None:
        self._server.check()
        try:
            with self._lock:
                _send(self._connection, line)
        except OSError as error:
            raise Cancelled("whoever asked for it has gone") from error

    def phase(self, name: str, total: int | None = None, unit: str = "B") -> None:
        """Pass it on."""
        self._tell(phase=[name, total, unit])

    def advance(self, name: str, amount: int) -> None:
        """Pass it on. Raises Cancelled when nobody listens, or the server is closed."""
        self._tell(advance=[name, amount])

    def done(self, name: str) -> None:
        """Pass it on."""
        self._tell(done=name)

    def log(self, message: str) -> None:
        """Pass it on."""
        self._tell(log=message)


def ask(
    path: str | os.PathLike[str], request: Mapping[str, Any], progress: Progress
) -> dict[str, Any]:
    """Send a request to a running server and return its result.

    Raises:
        NotFound, PermissionDenied, Unavailable: nobody answers there.
        BootstreamError: what the server raised, as the same class.
        Cancelled: by ``progress``; the server then stops too.
    """
    where = str(Path(path).absolute())
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(where)
            connection.settimeout(_GREETING_SECONDS)
            _check_greeting(connection.recv(_LOOK, socket.MSG_PEEK), where)
            connection.settimeout(None)
            _send(connection, request)
            with connection.makefile("rb") as lines:
                lines.readline(_MOST_BYTES)
                for line in iter(lambda: lines.readline(_MOST_BYTES), b""):
                    answer = _parse(line)
                    if "result" in answer and isinstance(answer["result"], dict):
                        return answer["result"]
                    if "error" in answer:
                        raise error_from_json(answer["error"])
                    _relay(answer, progress)
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError) as error:
            raise NotFound(
                "no server listens there",
                operation="ask server",
                object=where,
                remedy="name the socket that 'bootstream serve' was given",
            ) from error
        except OSError as error:
            if isinstance(error, PermissionError):
                raise PermissionDenied(
                    "it belongs to another user", operation="ask server", object=where
                ) from error
            raise _unreachable(where, error.strerror or str(error)) from error
    raise _unreachable(where, "it broke off before the end")


def _check_greeting(start: bytes, where: str) -> None:
    """Raise NotFound where another kind of server listens, before anything is sent to it."""
    if not start.startswith(b'{"'):
        raise NotFound(
            "it is no control socket",
            operation="ask server",
            object=where,
            remedy="a server has one beside its socket, or where --control says",
        )


def _unreachable(where: str, what: str) -> Unavailable:
    return Unavailable(what, operation="ask server", object=where, transient=False)


def _relay(answer: Mapping[str, Any], progress: Progress) -> None:
    match answer:
        case {"phase": [str(name), total, str(unit)]}:
            progress.phase(name, total if isinstance(total, int) else None, unit)
        case {"advance": [str(name), int(amount)]}:
            progress.advance(name, amount)
        case {"done": str(name)}:
            progress.done(name)
        case {"log": str(message)}:
            progress.log(message)


def _send(connection: socket.socket, line: Mapping[str, Any]) -> None:
    connection.sendall(json.dumps(line).encode() + b"\n")


def _read_request(connection: socket.socket) -> dict[str, Any]:
    """Read one line, within a time limit; raises InvalidInput."""
    connection.settimeout(_REQUEST_SECONDS)
    data = bytearray()
    try:
        while not data.endswith(b"\n"):
            piece = connection.recv(1 << 16)
            if not piece or len(data) + len(piece) > _MOST_BYTES:
                break
            data += piece
    except TimeoutError:
        pass
    finally:
        connection.settimeout(None)
    if not data.endswith(b"\n"):
        raise InvalidInput("one line of JSON was expected", operation="control")
    return _parse(bytes(data))


def _parse(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InvalidInput("it is no JSON object in one line", operation="control")
    return value


def error_to_json(error: BootstreamError) -> dict[str, Any]:
    """Return what a client needs to raise the same error."""
    return {
        "kind": type(error).__name__,
        "message": error.message,
        "operation": error.operation,
        "object": error.object,
        "remedy": error.remedy,
    }


def error_from_json(value: object) -> BootstreamError:
    """Return the error that ``error_to_json`` described; an unknown kind is the base class."""
    fields = value if isinstance(value, dict) else {}
    texts = {key: str(text) for key, text in fields.items() if text is not None}
    kind = getattr(errors, texts.get("kind", ""), None)
    if not (isinstance(kind, type) and issubclass(kind, BootstreamError)):
        kind = BootstreamError
    return kind(
        texts.get("message", "it failed"),
        operation=texts.get("operation"),
        object=texts.get("object"),
        remedy=texts.get("remedy"),
    )
