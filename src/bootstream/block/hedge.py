"""When to ask a second time: a request that takes far longer than its like is a straggler.

The second one goes to the same store, most likely by another connection to another of its
machines. Whichever comes first counts. The budget keeps a store that is slow as a whole from
being asked for everything twice.
"""

from __future__ import annotations

import threading
from collections import deque

_SAMPLES = 64
_FEWEST = 16
_FACTOR = 3.0
_LEAST_SECONDS = 0.02
_SHARE = 0.05
_BURST = 4.0
_CLASSES = (64 << 10, 1 << 20)


class Hedge:
    """Knows how long requests take, and how many may be repeated. Thread safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken: list[deque[float]] = [deque(maxlen=_SAMPLES) for _ in range(3)]
        self._budget = _BURST

    def took(self, seconds: float, size: int) -> None:
        """Say how long a request of ``size`` stored bytes took."""
        with self._lock:
            self._taken[_class(size)].append(seconds)
            self._budget = min(_BURST, self._budget + _SHARE)

    def patience(self, size: int) -> float | None:
        """Return after how many seconds to ask again; None while too little is known."""
        with self._lock:
            samples = sorted(self._taken[_class(size)])
        if len(samples) < _FEWEST:
            return None
        return max(_LEAST_SECONDS, _FACTOR * samples[len(samples) * 9 // 10])

    def allowed(self) -> bool:
        """Take one from the budget, if there is one."""
        with self._lock:
            if self._budget < 1:
                return False
            self._budget -= 1
            return True


def _class(size: int) -> int:
    return sum(size > limit for limit in _CLASSES)
