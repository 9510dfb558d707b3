"""What happens to a device, noted for traces and reports: first touches, waits, requests."""

from __future__ import annotations

import threading
import time
from array import array
from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import NamedTuple

from bootstream.block.trace import MOST_TOUCHES, Trace, fold

MOST_CHUNKS = 1 << 20
"""First touches that are kept; 9 bytes each. Later ones are counted only."""
_MOST_EVENTS = 50_000
LONG_WAIT = 0.010
"""Seconds from which on a wait is noted by itself."""


class Origin(IntEnum):
    """Where a chunk came from that a reader touched."""

    CACHE = 0
    """It was here already, from an earlier time, or is zeros, which are nowhere."""
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
        # A byte a chunk each: 160 KiB for 10 GiB in chunks of 64 KiB.
        self._touched = bytearray(chunk_count)
        self._origins = bytearray(chunk_count)
        self._moments = array("f")
        self._chunks = array("I")
        self._on_first: Callable[[], None] | None = None
        self.began = clock()
        self.waits: list[Waited] = []
        self.requests: list[Requested] = []
        self.left_out = False
        """Whether there was more than is kept."""

    def on_first_touch(self, call: Callable[[], None]) -> None:
        """Call back once, soon: when a reader first touches a chunk, in the reader's thread."""
        with self._lock:
            if not self._chunks:
                self._on_first = call
                return
        call()

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
                if touched[chunk]:
                    continue
                touched[chunk] = 1
                if len(self._chunks) < MOST_CHUNKS:
                    self._moments.append(now)
                    self._chunks.append(chunk)
                else:
                    self.left_out = True
            call, self._on_first = self._on_first, None
        if call is not None:
            call()

    def wait(self, began: float, chunk: int, count: int) -> None:
        """A reader waited since ``began``, by the clock."""
        now = self._clock()
        if now - began < LONG_WAIT:
            return
        with self._lock:
            if len(self.waits) < _MOST_EVENTS:
                self.waits.append(Waited(began - self.began, now - began, chunk, count))
            else:
                self.left_out = True

    def request(self, began: float, chunk: int, count: int, size: int, *, prefetch: bool) -> None:
        """A fetch ended that had begun at ``began``."""
        duration = self._clock() - began
        with self._lock:
            if len(self.requests) < _MOST_EVENTS:
                self.requests.append(
                    Requested(began - self.began, duration, chunk, count, size, prefetch)
                )
            else:
                self.left_out = True

    # -- looking ------------------------------------------------------------------------------

    @property
    def seconds(self) -> float:
        """How long it has been recording."""
        return self._clock() - self.began

    @property
    def touches(self) -> list[Touched]:
        """First touches in their order; where from is said as it is known now."""
        return list(self._touches())

    def _touches(self) -> Iterator[Touched]:
        with self._lock:
            moments, chunks = self._moments[:], self._chunks[:]
        for moment, chunk in zip(moments, chunks, strict=True):
            yield Touched(moment, chunk, Origin(self._origins[chunk]))

    @property
    def touched(self) -> bytes:
        """One byte a chunk: 1 if a reader touched it, also if its touch was left out."""
        return bytes(self._touched)

    @property
    def origins(self) -> bytes:
        """One byte a chunk: the ``Origin`` it had when it last came from the store."""
        return bytes(self._origins)

    @property
    def wasted(self) -> int:
        """How many chunks were prefetched and not touched so far."""
        prefetched = self._origins.translate(_PREFETCHED)
        return (int.from_bytes(prefetched) & ~int.from_bytes(self._touched)).bit_count()

    def trace(
        self, index_sha256: str, chunk_size: int, is_zero: Callable[[int], bool], *, seconds: float
    ) -> Trace:
        """Return the trace of the first ``seconds`` after the first touch, without zeros.

        A trace that would be too long is cut short.
        """
        wanted = []
        start: float | None = None
        for touch in self._touches():
            start = touch.seconds if start is None else start
            if touch.seconds - start <= seconds and not is_zero(touch.chunk):
                wanted.append((max(0, int((touch.seconds - start) * 1000)), touch.chunk))
        return Trace(index_sha256, chunk_size, fold(wanted)[:MOST_TOUCHES])


_PREFETCHED = bytes(number == Origin.PREFETCH for number in range(256))
