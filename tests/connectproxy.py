"""A small HTTP proxy on loopback: CONNECT, and requests in absolute form.

Whatever name a client asks for, it is connected to one server on this machine, so that tests
can use names that are not loopback's.
"""

from __future__ import annotations

import contextlib
import re
import select
import socket
import ssl
import threading
from dataclasses import dataclass, field


@dataclass
class ConnectProxy:
    """Passes everything on to ``target``; use it as a context manager.

    ``refuse``: the status that every request is answered with instead; ``garbage``: the bytes.
    ``tls``: how the proxy itself is spoken to. ``heads``: what it was asked, in order.
    """

    target: tuple[str, int]
    refuse: int | None = None
    garbage: bytes = b""
    tls: ssl.SSLContext | None = None
    heads: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._threads: list[threading.Thread] = []
        self._open: list[socket.socket] = []
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> ConnectProxy:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in list(self._open):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in list(self._threads):
            thread.join(10)

    def url(self, user: str = "") -> str:
        """The proxy's URL, perhaps with ``user:password``."""
        scheme = "http" if self.tls is None else "https"
        return f"{scheme}://{user + '@' if user else ''}127.0.0.1:{self.port}"

    def _start(self, target, *args: object) -> None:  # type: ignore[no-untyped-def]  # any function
        thread = threading.Thread(target=target, args=args)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(client)
            self._start(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            if self.tls is not None:
                client = self.tls.wrap_socket(client, server_side=True)
                self._open.append(client)
            with client:
                self._talk(client)

    def _talk(self, client: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            data = client.recv(65536)
            if not data:
                return
            head += data
        self.heads.append(head.partition(b"\r\n\r\n")[0].decode("latin-1"))
        if self.garbage:
            client.sendall(self.garbage)
        elif self.refuse is not None:
            client.sendall(b"HTTP/1.1 %d No\r\ncontent-length: 2\r\n\r\nno" % self.refuse)
        else:
            with socket.create_connection(self.target) as server:
                self._open.append(server)
                if head.startswith(b"CONNECT "):
                    client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                else:
                    # From absolute form to origin form: RFC 9112, section 3.2.
                    server.sendall(re.sub(rb"^([A-Z]+) http://[^/ ]+", rb"\1 ", head, count=1))
                _pass_on(client, server)


def _pass_on(one: socket.socket, other: socket.socket) -> None:
    """Bytes both ways, until one side ends; by one thread, as TLS wants it."""
    ways = {one: other, other: one}
    while True:
        for source in select.select([one, other], [], [])[0]:
            data = source.recv(1 << 16)
            while isinstance(source, ssl.SSLSocket) and source.pending():
                data += source.recv(1 << 16)
            if not data:
                return
            ways[source].sendall(data)
