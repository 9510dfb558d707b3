"""The protocol by hand, for tests that break it."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path

from bootstream.nbd.protocol import (
    IHAVEOPT,
    REQUEST_MAGIC,
    SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY_MAGIC,
    Chunk,
    Command,
    Option,
)
from bootstream.nbd.requests import HEADER


class RawClient:
    """The protocol by hand, so that it can be broken."""

    def __init__(self, path: Path, *, go: bool = True, structured: bool = True) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(10)
        self.socket.connect(str(path))
        assert len(self.exactly(18)) == 18
        self.socket.sendall(struct.pack(">I", 3))
        if structured:
            assert self.option(Option.STRUCTURED_REPLY) == [1]
            query = b"base:allocation"
            data = struct.pack(">III", 0, 1, len(query)) + query
            assert self.option(Option.SET_META_CONTEXT, data) == [4, 1]
        if go:
            assert self.option(Option.GO, struct.pack(">IH", 0, 0)) == [3, 1]

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self.socket.close()

    def exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self.socket.recv(size - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data

    def option(self, number: int, data: bytes = b"") -> list[int]:
        self.socket.sendall(struct.pack(">QII", IHAVEOPT, number, len(data)) + data)
        kinds = []
        while True:
            _, _, kind, length = struct.unpack(">QIII", self.exactly(20))
            self.exactly(length)
            kinds.append(kind)
            if kind == 1 or kind >> 31:
                return kinds

    def send(
        self, command: int, cookie: int, offset: int = 0, length: int = 0, flags: int = 0
    ) -> None:
        self.socket.sendall(HEADER.pack(REQUEST_MAGIC, flags, command, cookie, offset, length))

    def write(self, cookie: int, offset: int, data: bytes, flags: int = 0) -> None:
        header = HEADER.pack(REQUEST_MAGIC, flags, Command.WRITE, cookie, offset, len(data))
        self.socket.sendall(header + data)

    def reply(self, read: int = 0) -> tuple[int, int, bytes]:
        """Cookie, error and data of the next simple reply, or of a structured one's chunk."""
        magic, word = struct.unpack(">II", self.exactly(8))
        if magic == SIMPLE_REPLY_MAGIC:
            (cookie,) = struct.unpack(">Q", self.exactly(8))
            return cookie, word, self.exactly(0 if word else read)
        assert magic == STRUCTURED_REPLY_MAGIC
        flags, kind = word >> 16, word & 0xFFFF
        assert flags == 1, "this client wants whole replies"
        cookie, length = struct.unpack(">QI", self.exactly(12))
        payload = self.exactly(length)
        if kind == Chunk.OFFSET_DATA:
            return cookie, 0, payload[8:]
        if kind == Chunk.ERROR:
            error, size = struct.unpack_from(">IH", payload)
            assert size == length - 6
            return cookie, error, payload[6:]
        return cookie, 0, payload

    def at_end(self) -> bool:
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until other threads have brought something about."""
    for _ in range(1000):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it did not happen")
