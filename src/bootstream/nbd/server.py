"""The NBD server: sockets that listen, a thread for each, a thread for each connection.

Several exports share a server and all of its sockets; a client chooses by name. Threads,
not an event loop: a connection's thread blocks in ``recv`` and in ``sendmsg`` and is woken
by the kernel, which costs one system call less than asking first and needs no hand-over
between threads (``docs/decisions/nbd-threads.md``).
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from os import PathLike
from types import TracebackType
from typing import Self
from urllib.parse import quote

from bootstream.errors import InvalidInput
from bootstream.nbd.connection import Connection
from bootstream.nbd.export import Export, Limits
from bootstream.nbd.failures import FailureLog, log
from bootstream.nbd.listen import UnixListener, listen_tcp, listen_unix
from bootstream.nbd.protocol import MAX_STRING

__all__ = ["Export", "Limits", "Server"]

_WAIT_AFTER_ERROR = 0.1
_WAIT_AFTER_ABORT = 2.0


class Server:
    """Serves exports over unix and loopback TCP sockets. Thread safe.

    Args:
        exports: by name; names are not empty and have at most 4096 bytes.
        default: the name that the empty export name stands for.
        limits: what clients may hold.

    Use it as a context manager, or call :meth:`close`. The devices stay the caller's.

    Raises:
        InvalidInput: a name is none, or ``default`` is not among them.
    """

    def __init__(
        self, exports: Mapping[str, Export], *, default: str, limits: Limits | None = None
    ) -> None:
        for name in exports:
            if not name or len(name.encode("utf-8", "replace")) > MAX_STRING:
                raise InvalidInput("not an export name", operation="serve", object=repr(name))
        if default not in exports:
            raise InvalidInput("there is no such export", operation="serve", object=default)
        self._exports = dict(exports)
        self._default = default
        self._limits = limits or Limits()
        self._failures = FailureLog()
        self._state = threading.Condition()
        self._unix: list[UnixListener] = []
        self._tcp: list[socket.socket] = []
        self._acceptors: list[threading.Thread] = []
        self._connections: dict[Connection, threading.Thread] = {}
        self._started = False
        self._closing = False
        self._closed = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def listen_unix(self, path: str | PathLike[str]) -> str:
        """Listen on a unix socket of mode 0600; return the URI of the default export.

        The socket of a server that died is replaced.

        Raises:
            InvalidInput: the path is too long or no path.
            NotFound: its folder is missing.
            AlreadyExists: a server listens there, or it is no socket.
            PermissionDenied: its folder may not be written to.
        """
        listener = listen_unix(path)
        self._unix.append(listener)
        self._listening(listener.socket)
        return f"nbd+unix:///?socket={quote(listener.path, safe='/')}"

    def listen_tcp(self, host: str, port: int) -> str:
        """Listen on a loopback address, port 0 for a free one; return the default's URI.

        Raises:
            InvalidInput: the address is not one of this host's loopback addresses.
            AlreadyExists: another server listens there.
        """
        sock = listen_tcp(host, port)
        self._tcp.append(sock)
        self._listening(sock)
        address, number = sock.getsockname()[:2]
        return f"nbd://[{address}]:{number}/" if ":" in address else f"nbd://{address}:{number}/"

    def start(self) -> None:
        """Accept clients, on every socket there is and on those to come; idempotent."""
        with self._state:
            if self._started or self._closing:
                return
            self._started = True
            listening = [*(listener.socket for listener in self._unix), *self._tcp]
        for sock in listening:
            self._accept_from(sock)

    def close(self, timeout: float = 10.0) -> None:
        """Stop: no new clients, no new requests, what is under way is finished and sent.

        Writable devices are then flushed, sockets closed and names removed. What takes
        longer than ``timeout`` seconds is cut off. Idempotent; a second caller waits for
        the first.

        Raises:
            BootstreamError: a device could not be flushed; everything is closed all the same.
        """
        with self._state:
            first = not self._closing
            self._closing = True
            self._state.notify_all()
            connections = list(self._connections.items())
        if not first:
            self._closed.wait()
            return
        try:
            self._stop(connections, time.monotonic() + timeout)
        finally:
            self._closed.set()

    # -- starting and stopping ------------------------------------------------------------

    def _listening(self, sock: socket.socket) -> None:
        if self._started:
            self._accept_from(sock)

    def _accept_from(self, sock: socket.socket) -> None:
        thread = threading.Thread(target=self._accept, args=(sock,), name="nbd-accept", daemon=True)
        self._acceptors.append(thread)
        thread.start()

    def _stop(
        self, connections: list[tuple[Connection, threading.Thread]], deadline: float
    ) -> None:
        # The name goes before the socket stops: whoever comes now finds nobody there,
        # not somebody who hangs up.
        for listener in self._unix:
            listener.remove()
        listening = [*(listener.socket for listener in self._unix), *self._tcp]
        for sock in listening:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)  # wakes accept
        for thread in self._acceptors:
            thread.join()
        for sock in listening:
            sock.close()
        for connection, _ in connections:
            connection.stop()
        for _, thread in connections:
            thread.join(max(0.0, deadline - time.monotonic()))
        late = [(c, thread) for c, thread in connections if thread.is_alive()]
        for connection, _ in late:
            connection.abort()
        final = time.monotonic() + _WAIT_AFTER_ABORT
        for _, thread in late:
            thread.join(max(0.0, final - time.monotonic()))
        if late:
            log.warning("%d connections did not finish in time and were cut off", len(late))
        self._flush()

    def _flush(self) -> None:
        """Flush every writable device once; the first failure is raised after the last."""
        failure: Exception | None = None
        devices = {id(export.device): export.device for export in self._exports.values()}
        for device in devices.values():
            try:
                if device.writable:
                    device.flush()
            except Exception as error:  # noqa: BLE001 - raised below, once all are flushed
                failure = failure or error
        if failure is not None:
            raise failure

    # -- clients --------------------------------------------------------------------------

    def _accept(self, listening: socket.socket) -> None:
        while self._wait_for_place():
            try:
                sock, _ = listening.accept()
            except OSError as error:
                with self._state:
                    if self._closing:
                        return
                    # No descriptors left, or the client was gone already: others go on.
                    self._failures.warn(f"a client could not be accepted: {error}")
                    self._state.wait(_WAIT_AFTER_ERROR)
                continue
            self._serve(sock)

    def _wait_for_place(self) -> bool:
        """Wait until there is a place for one more client; False once the server closes."""
        with self._state:
            if len(self._connections) >= self._limits.connections and not self._closing:
                self._failures.warn(f"all {len(self._connections)} places are taken, others wait")
            while len(self._connections) >= self._limits.connections and not self._closing:
                self._state.wait()
            return not self._closing

    def _serve(self, sock: socket.socket) -> None:
        try:
            if sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._limits.send_buffer)
        except OSError:  # it hung up already; the connection will see that too
            pass
        connection = Connection(
            sock,
            self._exports,
            default=self._default,
            limits=self._limits,
            failures=self._failures,
        )
        thread = threading.Thread(
            target=self._run, args=(connection,), name="nbd-connection", daemon=True
        )
        with self._state:
            if self._closing:
                sock.close()
                return
            self._connections[connection] = thread
            try:
                thread.start()
            except RuntimeError as error:  # the host has no thread left
                del self._connections[connection]
                sock.close()
                log.warning("a client was turned away: %s", error)

    def _run(self, connection: Connection) -> None:
        try:
            connection.run()
        finally:
            with self._state:
                self._connections.pop(connection, None)
                self._state.notify_all()
