"""Exact reads from a server's socket, for the client."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from typing import cast

from bootstream.errors import Corrupt, NotFound, PermissionDenied, Unavailable
from bootstream.nbd.protocol import ProtocolError

_BUFFER = 64 << 10


class Stream:
    """A connected socket with buffered exact reads. Not thread safe.

    All methods raise EOFError where the server hung up, OSError where the line is broken.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._file = cast("BufferedReader", sock.makefile("rb", buffering=_BUFFER))

    def exactly(self, size: int) -> bytes:
        """Return the next ``size`` bytes; the caller has bounded it."""
        data = self._file.read(size)
        if len(data) < size:
            raise EOFError
        return data

    def into(self, view: memoryview) -> None:
        """Fill ``view``."""
        if self._file.readinto(view) < len(view):
            raise EOFError

    def send(self, *buffers: bytes | memoryview) -> None:
        """Send all of the buffers."""
        if len(buffers) > 1 and len(buffers[1]) < _BUFFER:
            self._socket.sendall(b"".join(buffers))
            return
        for buffer in buffers:
            self._socket.sendall(buffer)

    def detach(self) -> socket.socket:
        """Return the socket, which blocks without a limit; this stream is at its end.

        For a connection whose server waits for us: nothing may be buffered here.
        """
        self._file.close()
        self._socket.settimeout(None)
        return self._socket

    def close(self) -> None:
        """Close both; idempotent."""
        self._file.close()
        self._socket.close()


@contextmanager
def mapped(operation: str, name: str) -> Iterator[None]:
    """Turn what a socket or a server does wrong into the package's errors."""
    try:
        yield
    except ProtocolError as error:
        raise Corrupt(str(error), operation=operation, object=name) from error
    except EOFError as error:
        raise Unavailable("the server hung up", operation=operation, object=name) from error
    except FileNotFoundError as error:
        raise NotFound("there is no such socket", operation=operation, object=name) from error
    except PermissionError as error:
        raise PermissionDenied(
            error.strerror or "not allowed", operation=operation, object=name
        ) from error
    except TimeoutError as error:
        raise Unavailable(
            "the server did not answer in time", operation=operation, object=name
        ) from error
    except OSError as error:
        raise Unavailable(error.strerror or str(error), operation=operation, object=name) from error
