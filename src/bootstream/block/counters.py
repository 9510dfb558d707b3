"""What a device's chunks cost: how much was fetched, for whom, and how long readers waited."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field

_FINEST = 1e-5
_STEPS = 8
_BUCKETS = 26 * _STEPS
"""Waits are counted by length, eight classes to a factor of two, from 10 µs to 11 minutes."""


@dataclass(slots=True)
class Counters:
    """Counts of one device since it was opened. Thread safe; bytes are of decoded chunks.

    ``requests`` are fetches that readers waited for, ``prefetches`` those that nobody did when
    they began; ``hedges`` were asked for twice. ``waits`` are reads that had to wait for a
    chunk, however short.
    """

    requests: int = 0
    prefetches: int = 0
    hedges: int = 0
    demanded_bytes: int = 0
    prefetched_bytes: int = 0
    chunks: int = 0
    waits: int = 0
    wait_seconds: float = 0.0
    longest_wait: float = 0.0
    _lengths: list[int] = field(default_factory=lambda: [0] * _BUCKETS, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def fetched(self, chunks: int, size: int, *, prefetched: bool) -> None:
        """Count a request that brought ``chunks`` of ``size`` bytes together."""
        with self._lock:
            self.chunks += chunks
            if prefetched:
                self.prefetches += 1
                self.prefetched_bytes += size
            else:
                self.requests += 1
                self.demanded_bytes += size

    def waited(self, seconds: float) -> None:
        """Count a reader that waited."""
        bucket = int(_STEPS * math.log2(max(seconds, _FINEST) / _FINEST))
        with self._lock:
            self.waits += 1
            self.wait_seconds += seconds
            self.longest_wait = max(self.longest_wait, seconds)
            self._lengths[min(bucket, _BUCKETS - 1)] += 1

    def wait_percentile(self, percent: float) -> float:
        """Return the seconds within which ``percent`` of the waits ended, 0 if nobody waited.

        It is rounded up, by a tenth at most; never beyond the longest wait.
        """
        with self._lock:
            wanted = math.ceil(self.waits * percent / 100)
            count = 0
            for bucket, waits in enumerate(self._lengths):
                count += waits
                if waits and count >= wanted:
                    return min(self.longest_wait, _FINEST * 2 ** ((bucket + 1) / _STEPS))
            return 0.0

    def average(self, chunks: int) -> int:
        """Return about how many bytes so many chunks have."""
        with self._lock:
            if not self.chunks:
                return 0
            return (self.demanded_bytes + self.prefetched_bytes) * chunks // self.chunks
