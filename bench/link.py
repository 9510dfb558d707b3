"""A link between a client and a server on one machine: so many bytes a second, so far away.

All connections share the link's bandwidth, each way by itself; every byte arrives half of the
round trip after it was sent. It is a process of its own, so that its work counts as nobody's.

    with Link("127.0.0.1:8000", rate=100_000_000, latency=0.03) as link: link.port
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections import deque

_PIECE = 64 << 10
_IN_FLIGHT = 16 << 20  # of one connection, one way: more than any of the links here can hold


class Link:
    """A running link to ``target``, ``HOST:PORT``.

    Args:
        target: whom it leads to.
        rate: bytes a second, each way.
        latency: of a round trip, in seconds.
    """

    def __init__(self, target: str, *, rate: float, latency: float) -> None:
        self._command = [sys.executable, __file__, target, str(rate), str(latency)]

    def __enter__(self) -> Link:
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


class _Way:
    """One direction of the link: tells when what is sent now has left it."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._lock = threading.Lock()
        self._free = 0.0

    def send(self, size: int) -> float:
        with self._lock:
            self._free = max(self._free, time.monotonic()) + size / self._rate
            return self._free


class _Flow:
    """What is on its way from one socket to another."""

    def __init__(self, source: socket.socket, sink: socket.socket, way: _Way, delay: float) -> None:
        self._source, self._sink, self._way, self._delay = source, sink, way, delay
        self._flying: deque[tuple[float, bytes]] = deque()
        self._size = 0
        self._changed = threading.Condition()
        for target in (self._read, self._write):
            threading.Thread(target=target, daemon=True).start()

    def _read(self) -> None:
        data = b"-"
        while data:
            try:
                data = self._source.recv(_PIECE)
            except OSError:
                data = b""
            arrives = self._way.send(len(data)) + self._delay
            with self._changed:
                self._flying.append((arrives, data))
                self._size += len(data)
                self._changed.notify_all()
                while self._size > _IN_FLIGHT:
                    self._changed.wait()

    def _write(self) -> None:
        while True:
            with self._changed:
                while not self._flying:
                    self._changed.wait()
                arrives, data = self._flying.popleft()
            wait = arrives - time.monotonic()
            if wait > 0:
                time.sleep(wait)
            with contextlib.suppress(OSError):
                if data:
                    self._sink.sendall(data)
                else:
                    self._sink.shutdown(socket.SHUT_WR)
            if not data:
                return
            with self._changed:
                self._size -= len(data)
                self._changed.notify_all()


def main() -> None:
    """Be the link until killed."""
    host, _, port = sys.argv[1].rpartition(":")
    rate, latency = float(sys.argv[2]), float(sys.argv[3])
    there, back = _Way(rate), _Way(rate)
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            client, _ = listener.accept()
            server = socket.create_connection((host, int(port)))
            for sock in (client, server):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _Flow(client, server, there, latency / 2)
            _Flow(server, client, back, latency / 2)


if __name__ == "__main__":
    main()
