"""What a device's chunks cost: how much was fetched, for whom, and how long readers waited."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field


@dataclass(slots=True)
class Counters:
    """Counts of one device since it was opened. Thread safe; bytes are of decoded chunks.

    ``hits`` are look-ups of chunks that were here already when a reader first touched them;
    ``requests`` are fetches that readers waited for, ``prefetches`` those that nobody did;
    ``hedges`` were asked for twice.
    """

    requests: int = 0
    prefetches: int = 0
    hedges: int = 0
    demanded_bytes: int = 0
    prefetched_bytes: int = 0
    chunks: int = 0
    hits: int = 0
    waits: int = 0
    wait_seconds: float = 0.0
    longest_wait: float = 0.0
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
        with self._lock:
            self.waits += 1
            self.wait_seconds += seconds
            self.longest_wait = max(self.longest_wait, seconds)

    def average(self, chunks: int) -> int:
        """Return about how many bytes so many chunks have."""
        with self._lock:
            if not self.chunks:
                return 0
            return (self.demanded_bytes + self.prefetched_bytes) * chunks // self.chunks
