"""The bytes of one layer, read ahead of whoever parses them.

Inflating and hashing a layer happen outside the interpreter lock, so a thread that
reads one megabyte at a time keeps a few pieces ready while the tree is built from the
ones before. The pieces in flight are bounded; the parser's own thread sees every error.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

PIECE = 1 << 20
AHEAD = 4


class ByteStream(Protocol):
    """A layer's uncompressed bytes; ``bootstream.images`` has the real one."""

    def read(self, size: int, /) -> bytes:
        """Return at most ``size`` bytes, none at the end."""
        ...

    def close(self) -> None:
        """Release what it holds; may be called again."""
        ...


class Source:
    """Buffered reading of one stream, from one thread, by exact amounts.

    Args:
        open_stream: called at once; the stream is closed by ``close``.
        on_piece: told the size of every piece that arrived; may raise, e.g. Cancelled.
    """

    def __init__(
        self, open_stream: Callable[[], ByteStream], on_piece: Callable[[int], None]
    ) -> None:
        self._on_piece = on_piece
        self._buffer = b""
        self._position = 0
        self._ended = False
        self._stream = open_stream()
        self._ahead = _ReadAhead(self._stream)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop reading ahead and close the stream."""
        self._ahead.stop()
        self._stream.close()

    def take(self, size: int) -> bytes:
        """Return the next ``size`` bytes, fewer only at the end of the stream.

        The result is allocated in full: the caller bounds ``size``.
        """
        end = self._position + size
        if end <= len(self._buffer):
            data = self._buffer[self._position : end]
            self._position = end
            return data
        parts = [self._buffer[self._position :]]
        missing = end - len(self._buffer)
        while missing > 0 and self._refill():
            part = self._buffer[:missing]
            self._position = len(part)
            missing -= len(part)
            parts.append(part)
        return b"".join(parts)

    def skip(self, size: int) -> int:
        """Pass over ``size`` bytes; return how many there were before the end."""
        wanted = size
        while size > 0:
            there = len(self._buffer) - self._position
            if there >= size:
                self._position += size
                return wanted
            size -= there
            if not self._refill():
                return wanted - size
        return wanted

    def drain(self) -> None:
        """Read to the end, where the stream checks its digest."""
        while self._refill():
            pass

    def _refill(self) -> bool:
        self._buffer = b""
        self._position = 0
        if self._ended:
            return False
        piece = self._ahead.get()
        if not piece:
            self._ended = True
            return False
        self._on_piece(len(piece))
        self._buffer = piece
        return True


class _ReadAhead:
    """A thread that keeps up to ``AHEAD`` pieces of a stream ready."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._ready: deque[bytes | BaseException] = deque()
        self._changed = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="layer-read-ahead", daemon=True)
        self._thread.start()

    def get(self) -> bytes:
        """Return the next piece, none at the end. Raises what reading raised."""
        with self._changed:
            while not self._ready:
                self._changed.wait()
            item = self._ready.popleft()
            self._changed.notify_all()
        if isinstance(item, BaseException):
            raise item
        return item

    def stop(self) -> None:
        """End the thread; returns when it is gone."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while True:
            item: bytes | BaseException
            try:
                item = self._stream.read(PIECE)
            except BaseException as error:  # noqa: BLE001 - raised again by the thread that reads
                item = error
            with self._changed:
                while len(self._ready) >= AHEAD and not self._stopped:
                    self._changed.wait()
                if self._stopped:
                    return
                self._ready.append(item)
                self._changed.notify_all()
            if not isinstance(item, bytes) or not item:
                return
