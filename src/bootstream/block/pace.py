"""How much to have under way: measured, since nobody knows the way to a store beforehand.

More requests at a time help for as long as each of them waits for the same answer, and no
longer: a link that is full carries no more, and a store that is busy answers no faster. So
the number is raised while the rate of what arrives rises with it, and taken back when it
does not. Where nothing is gained it stays small, and is tried again now and then.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

LEAST = 4
MOST = 32
_BETTER = 1.08
_HOLD_ROUNDS = 8


class Pace:
    """The number of background requests to have under way. Thread safe.

    Args:
        clock: seconds, never going back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._limit = LEAST
        self._settled = LEAST
        self._settled_rate = 0.0
        self._hold = 0
        self._began: float | None = None
        self._size = 0
        self._arrived = 0

    @property
    def limit(self) -> int:
        """How many requests may be under way."""
        return self._limit

    def arrived(self, size: int, *, busy: bool) -> None:
        """Say that a request of ``size`` bytes was answered.

        Args:
            size: bytes that came.
            busy: as many were under way as are allowed, and more were waiting: only then
                does the rate tell what the number does.
        """
        with self._lock:
            if not busy:
                self._began = None
                return
            now = self._clock()
            if self._began is None:
                self._began, self._size, self._arrived = now, 0, 0
                return
            self._size += size
            self._arrived += 1
            # A round is as many answers as are under way: each of them was asked for at
            # this number, but for the first round, which begins in the middle.
            if self._arrived < self._limit or now <= self._began:
                return
            rate = self._size / (now - self._began)
            self._began, self._size, self._arrived = now, 0, 0
            self._judge(rate)

    def _judge(self, rate: float) -> None:
        if self._limit > self._settled:  # a trial ends
            if rate > self._settled_rate * _BETTER:
                self._settled, self._settled_rate = self._limit, rate
            else:
                self._limit, self._hold = self._settled, _HOLD_ROUNDS
                return
        else:
            self._settled_rate = rate
            if self._hold:
                self._hold -= 1
                return
        self._limit = min(MOST, self._settled * 2)
