"""A layer as a stream of tar bytes, decoded and hashed beside the thread that reads it.

Three things cost time: decompression, the sha256 of what comes out, and whatever
the reader does with it. zlib, zstd and hashlib release the interpreter lock, so
each gets a thread of its own::

    blob ──▶ decoder thread ──▶ channel ──▶ read()
                   └──────────▶ channel ──▶ hash thread ──▶ diff id, compared at the end

Both channels are bounded in bytes, so a slow reader stops the decoder and memory
does not grow with the layer. The threads hold the channels, never the stream: a
stream that is dropped without ``close`` ends them too.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType

from bootstream.errors import Corrupt
from bootstream.images.compression import RawReader, decompress
from bootstream.images.digest import new_hash, split_digest

__all__ = ["DecodedLayer", "RawReader"]

_CHANNEL_BYTES = 4 << 20


class _Channel:
    """A queue of pieces, bounded in bytes, from one thread to another. None is the end."""

    def __init__(self) -> None:
        self._pieces: deque[bytes | None] = deque()
        self._bytes = 0
        self._changed = threading.Condition(threading.Lock())
        self._closed = False

    def put(self, piece: bytes | None) -> bool:
        """Wait for room and add; False once nobody reads any more."""
        with self._changed:
            while self._bytes >= _CHANNEL_BYTES and not self._closed:
                self._changed.wait()
            if self._closed:
                return False
            self._pieces.append(piece)
            self._bytes += len(piece) if piece is not None else 0
            self._changed.notify_all()
            return True

    def get(self) -> bytes | None:
        """Wait for the next piece; None at the end, and once closed."""
        with self._changed:
            while not self._pieces and not self._closed:
                self._changed.wait()
            if self._closed:
                return None
            piece = self._pieces.popleft()
            self._bytes -= len(piece) if piece is not None else 0
            self._changed.notify_all()
            return piece

    def close(self) -> None:
        """Nobody reads or writes any more: wake whoever waits."""
        with self._changed:
            self._closed = True
            self._pieces.clear()
            self._changed.notify_all()


class _Pipeline:
    """What the threads share: channels, the outcome, and the blob they own."""

    def __init__(self, blob: RawReader, diff_id: str, name: str) -> None:
        self.blob = blob
        self.name = name
        self.output = _Channel()
        self.hashing = _Channel()
        self.hash = new_hash(diff_id)
        self.error: BaseException | None = None

    def decode(self) -> None:
        """Decode the blob into both channels."""
        try:
            for piece in decompress(self.blob.read, name=self.name):
                if not (self.hashing.put(piece) and self.output.put(piece)):
                    return
        except BaseException as error:  # noqa: BLE001 - raised again in the reading thread
            self.error = error
        finally:
            self.hashing.put(None)
            self.output.put(None)

    def digest(self) -> None:
        """Hash what the decoder yields."""
        while (piece := self.hashing.get()) is not None:
            self.hash.update(piece)

    def close(self) -> None:
        """End both threads."""
        self.output.close()
        self.hashing.close()


class DecodedLayer:
    """The ``LayerStream`` of a compressed or plain blob.

    Args:
        blob: at its start; closed with the stream.
        diff_id: the digest that the decoded bytes must have.
        name: for errors.
        damaged: called before a wrong diff id is raised; returns what to do about it.
    """

    def __init__(
        self, blob: RawReader, *, diff_id: str, name: str, damaged: Callable[[], str]
    ) -> None:
        self._pipeline = pipeline = _Pipeline(blob, diff_id, name)
        self._diff_id = diff_id
        self._damaged = damaged
        self._rest = memoryview(b"")
        self._ended = False
        self._failure: BaseException | None = None
        self._closed = False
        self._threads = [
            threading.Thread(target=target, name=f"layer-{what}", daemon=True)
            for what, target in (("decode", pipeline.decode), ("hash", pipeline.digest))
        ]
        for thread in self._threads:
            thread.start()

    def read(self, size: int, /) -> bytes:
        """Return 1 to ``size`` bytes, or none at the end; see ``LayerStream``."""
        if self._closed:
            raise ValueError("read from a closed layer")
        if size <= 0:
            return b""
        if not self._rest:
            if self._failure is not None:
                raise self._failure
            if self._ended:
                return b""
            piece = self._pipeline.output.get()
            if piece is None:
                self._ended = True
                self._failure = self._outcome()
                if self._failure is not None:
                    raise self._failure
                return b""
            if len(piece) <= size:
                return piece
            self._rest = memoryview(piece)
        data = bytes(self._rest[:size])
        self._rest = self._rest[size:]
        return data

    def _outcome(self) -> BaseException | None:
        """At the end: what went wrong in the threads, or a digest that differs."""
        for thread in self._threads:
            thread.join()
        error = self._pipeline.error
        if error is not None:
            if isinstance(error, Corrupt) and error.remedy is None:
                error.remedy = self._damaged()
            return error
        found = f"{split_digest(self._diff_id)[0]}:{self._pipeline.hash.hexdigest()}"
        if found == self._diff_id:
            return None
        return Corrupt(
            f"its contents have the diff id {found}, not {self._diff_id} as the image says",
            operation="read",
            object=self._pipeline.name,
            remedy=self._damaged(),
        )

    def close(self) -> None:
        """End the threads and close the blob; idempotent."""
        if not self._closed:
            self._closed = True
            self._pipeline.close()
            for thread in self._threads:
                thread.join()
            self._pipeline.blob.close()

    def __enter__(self) -> DecodedLayer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        pipeline: _Pipeline | None = getattr(self, "_pipeline", None)
        if pipeline is not None and not self._closed:
            pipeline.close()
