"""What happens to a device, noted for traces and reports: first touches, waits, requests."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple

from bootstream.block.trace import Trace, fold

_MOST_EVENTS = 200_000
LONG_WAIT = 0.010
"""Seconds from which on a wait is noted by itself."""


class Origin(IntEnum):
    """Where a chunk came from when a reader touched it first."""

    CACHE = 0
    PREFETCH = 1
    DEMAND = 2


class Touched(NamedTuple):
    """A first touch; ``seconds`` since the recorder's start."""

    seconds: float
    chunk: int
    origin: Origin


class Waited(NamedTuple):
    """A reader that waited ``LONG_WAIT`` or longer, for ``chunks`` from ``chunk`` on."""

    seconds: float
    duration: float
    chunk: int
    chunks: int


class Requested(NamedTuple):
    """A fetch: from ``seconds`` on, of so many chunks and bytes of contents."""

    seconds: float
    duration: float
    chunk: int
    chunks: int
    size: int
    prefetch: bool


class Recorder:
    """Notes of one device. Thread safe; memory is bounded, later events are then left out.

    Args:
        chunk_count: of the device.
        clock: seconds, never going back.
    """

    def __init__(self, chunk_count: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._touched = bytearray(chunk_count)
        self._origins = bytearray(chunk_count)
        self.began = clock()
        self.touches: list[Touched] = []
        self.waits: list[Waited] = []
        self.requests: list[Requested] = []

    def arrived(self, chunk: int, *, prefetched: bool) -> None:
        """A chunk came from the store; for a reader, unless ``prefetched``."""
        self._origins[chunk] = Origin.PREFETCH if prefetched else Origin.DEMAND

    def touch(self, first: int, last: int) -> None:
        """A reader is given these chunks; those that were touched before count no more."""
        touched = self._touched
        if touched.find(0, first, last + 1) < 0:
            return
        now = self._clock() - self.began
        with self._lock:
            for chunk in range(first, last + 1):
                if not touched[chunk]:
                    touched[chunk] = 1
                    self.touches.append(Touched(now, chunk, Origin(self._origins[chunk])))

    def wait(self, began: float, chunk: int, count: int) -> None:
        """A reader waited since ``began``, by the clock."""
        now = self._clock()
        if now - began >= LONG_WAIT and len(self.waits) < _MOST_EVENTS:
            with self._lock:
                self.waits.append(Waited(began - self.began, now - began, chunk, count))

    def request(self, began: float, chunk: int, count: int, size: int, *, prefetch: bool) -> None:
        """A fetch ended that had begun at ``began``."""
        if len(self.requests) < _MOST_EVENTS:
            duration = self._clock() - began
            with self._lock:
                self.requests.append(
                    Requested(began - self.began, duration, chunk, count, size, prefetch)
                )

    @property
    def wasted(self) -> int:
        """How many chunks were prefetched and not touched so far."""
        return sum(
            origin == Origin.PREFETCH and not touched
            for origin, touched in zip(self._origins, self._touched, strict=True)
        )

    def trace(
        self, index_sha256: str, chunk_size: int, is_zero: Callable[[int], bool], *, seconds: float
    ) -> Trace:
        """Return the trace of the first ``seconds`` after the first touch, without zeros."""
        with self._lock:
            touches = list(self.touches)
        if not touches:
            return Trace(index_sha256, chunk_size, ())
        start = touches[0].seconds
        folded = fold(
            (int((touch.seconds - start) * 1000), touch.chunk)
            for touch in touches
            if touch.seconds - start <= seconds and not is_zero(touch.chunk)
        )
        return Trace(index_sha256, chunk_size, folded)
