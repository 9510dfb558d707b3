"""Moving bytes through obstore: parallel ranges in order, and sources cut into parts."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from io import BytesIO
from queue import Full, Queue
from typing import TypeVar

from bootstream.errors import InvalidInput
from bootstream.storage.protocol import Source

T = TypeVar("T")

RANGE = 8 << 20
"""Bytes of one range request, at most."""

PART = 8 << 20
"""Bytes of one part of an upload, at least: S3 wants 5 MiB."""

_MIB = 1 << 20


def part_size(size: int | None, max_parts: int) -> int:
    """Return the bytes of a part, in whole MiB, with which ``size`` bytes fit in the parts."""
    if size is None:
        return PART
    mibs = -(-size // (max_parts * _MIB))
    return max(PART, mibs * _MIB)


class PartSource:
    """Cuts what a source has into parts, all of one length but the last.

    Attributes:
        count: bytes that were read.
        failure: what the source raised, to be told from what the storage did.
    """

    def __init__(self, source: Source, size: int, max_parts: int) -> None:
        self._source = source
        self._size = size
        self._limit = size * max_parts
        self._ended = False
        self.count = 0
        self.failure: BaseException | None = None

    def take(self) -> bytes:
        """Return the next part: shorter, or empty, only at the end."""
        part = BytesIO()  # it hands out its bytes without a copy
        length = 0
        while length < self._size and not self._ended:
            piece = memoryview(self._source.read(self._size - length)).cast("B")
            part.write(piece)
            length += len(piece)
            self._ended = not piece
        self.count += length
        return part.getvalue()

    def parts(self, first: bytes) -> Iterator[bytes]:
        """Yield ``first`` and all parts after it; remember what the source raises."""
        part = first
        del first
        while part:
            if self.count > self._limit:
                self.failure = InvalidInput(
                    f"a stream of unknown length can have {self._limit} bytes at most here",
                    operation="write object",
                    remedy="upload it from a file, whose length is known",
                )
                raise self.failure
            yield part
            part = b""  # it is freed while the next one is read
            try:
                part = self.take()
            except BaseException as error:
                self.failure = error
                raise

    @property
    def ended(self) -> bool:
        """Whether the source has no more."""
        return self._ended


def in_order(calls: Iterator[Callable[[], T]], parallel: int, ahead: int) -> Iterator[T]:
    """Yield the results of ``calls`` in their order, ``parallel`` at a time.

    At most ``ahead`` results or calls are held at once. The first error is raised when its
    turn comes, after the calls that run have ended.
    """
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(parallel, "bootstream-ranges") as pool:
        try:
            for call in calls:
                waiting.append(pool.submit(call))
                if len(waiting) >= ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def hand_over(pieces: Iterator[bytes], consume: Callable[[Iterator[bytes]], T]) -> T:
    """Return what ``consume`` makes of ``pieces``, which are made in the calling thread.

    obstore takes from an iterator in a thread of its runtime, where nothing may wait for
    obstore again. A source may well do that: an object of another bucket, for example. What
    ``pieces`` raises is raised in ``consume``, and then here.
    """
    queue: Queue[bytes | BaseException | None] = Queue(maxsize=1)

    def taken() -> Iterator[bytes]:
        while (piece := queue.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            yield piece

    with ThreadPoolExecutor(1, "bootstream-upload") as pool:
        consumer = pool.submit(consume, taken())

        def send(piece: bytes | BaseException | None) -> bool:
            while not consumer.done():
                try:
                    queue.put(piece, timeout=0.2)
                except Full:
                    continue
                return True
            return False

        try:
            for piece in pieces:
                if not send(piece):
                    break
        except BaseException as error:
            send(error)
            wait([consumer])
            raise
        send(None)
        return consumer.result()
