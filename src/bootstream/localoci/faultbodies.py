"""Bodies that faults spoil: pieces of an answer, and what a client uploads.

An answer's body is an iterator of pieces around another; an upload's is a source around
another, which the handler reads without knowing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from bootstream.localoci.http import FileRange

if TYPE_CHECKING:
    from bootstream.localoci.errors import Disconnect
    from bootstream.localoci.http import Source

    Sleep = Callable[[float], None]

_PIECE = 65536


class Pieces:
    """A body piece by piece. What it holds is closed at its end, or with the object."""

    def __init__(self, body: bytes | FileRange | Iterator[bytes]) -> None:
        self._body = body
        self._sent = 0

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        body = self._body
        if isinstance(body, bytes):
            data = body[self._sent : self._sent + _PIECE]
        elif isinstance(body, FileRange):
            size = min(_PIECE, body.length - self._sent)
            data = os.pread(body.descriptor, size, body.offset + self._sent) if size else b""
        else:
            return next(body)
        self._sent += len(data)
        if not data:
            self.close()
            raise StopIteration
        return data

    def close(self) -> None:
        """Close the file, if it is one. Idempotent."""
        body, self._body = self._body, b""
        if isinstance(body, FileRange):
            body.close()

    def __del__(self) -> None:
        self.close()


def first(pieces: Iterator[bytes], size: int) -> Iterator[bytes]:
    """Give so many bytes, and no more."""
    for piece in pieces:
        yield piece[:size]
        size -= len(piece)
        if size <= 0:
            return


def then(pieces: Iterator[bytes], last: bytes) -> Iterator[bytes]:
    """Give something more at the end."""
    yield from pieces
    yield last


def cut(pieces: Pieces, after: int, error: Disconnect) -> Iterator[bytes]:
    """Give so many bytes, then break."""
    if after:
        yield from first(pieces, after)
    pieces.close()
    raise error


def flipped(pieces: Iterator[bytes], at: int) -> Iterator[bytes]:
    """Flip the lowest bit of one byte."""
    position = 0
    for piece in pieces:
        if position <= at < position + len(piece):
            changed = bytearray(piece)
            changed[at - position] ^= 1
            yield bytes(changed)
        else:
            yield piece
        position += len(piece)


def stalled(
    pieces: Iterator[bytes], after: int, seconds: float, sleep: Callable[[float], None]
) -> Iterator[bytes]:
    """Give nothing for a while after so many bytes."""
    position, stalled = 0, False
    for piece in pieces:
        if not stalled and position + len(piece) > after:
            yield piece[: after - position]
            sleep(seconds)
            yield piece[after - position :]
            stalled = True
        else:
            yield piece
        position += len(piece)


def paced(pieces: Iterator[bytes], rate: int, sleep: Callable[[float], None]) -> Iterator[bytes]:
    """Give so many bytes a second."""
    step = max(1, min(_PIECE, rate // 20))
    for piece in pieces:
        for start in range(0, len(piece), step):
            part = piece[start : start + step]
            yield part
            sleep(len(part) / rate)


class Upload:
    """An upload that is spoiled while it is read.

    Args:
        source: the bytes as the client sends them.
        after: how many of them come first.
        at: called once, when they have come; waits, or raises.
        flip: flip the lowest bit of the byte that follows.
    """

    def __init__(
        self, source: Source, after: int, at: Callable[[], None], *, flip: bool = False
    ) -> None:
        self._source = source
        self._after = after
        self._at = at
        self._flip = flip
        self._position = 0

    def readinto(self, buffer: memoryview) -> int:
        """Read up to ``len(buffer)`` bytes, as the source does, but for the fault."""
        if self._position < self._after:
            buffer = buffer[: self._after - self._position]
        elif self._position == self._after:
            self._at()
        count = self._source.readinto(buffer)
        if self._flip and count and self._position == self._after:
            buffer[0] ^= 1
        self._position += count
        return count


class PacedUpload:
    """An upload that is read at so many bytes a second.

    Args:
        source: the bytes as the client sends them.
        rate: bytes a second.
        sleep: waits so many seconds.
    """

    def __init__(self, source: Source, rate: int, sleep: Sleep) -> None:
        self._source = source
        self._rate = rate
        self._step = max(1, min(_PIECE, rate // 20))
        self._sleep = sleep

    def readinto(self, buffer: memoryview) -> int:
        """Read up to ``len(buffer)`` bytes, few at a time."""
        count = self._source.readinto(buffer[: self._step])
        self._sleep(count / self._rate)
        return count
