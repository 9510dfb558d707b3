"""When a request is sent again: transient trouble only, full jitter, bounded patience."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from bootstream.errors import BootstreamError

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Retry:
    """How often and how long; all times in seconds.

    ``budget`` bounds the time after which no new attempt starts; ``patience`` takes
    its place where the server itself said how long to wait.
    """

    attempts: int = 5
    base: float = 0.25
    cap: float = 4.0
    budget: float = 8.0
    patience: float = 60.0

    def delay(self, failures: int, error: BootstreamError, elapsed: float) -> float | None:
        """Return how long to wait after ``failures`` in a row; None to give up."""
        if not error.transient or failures >= self.attempts:
            return None
        limit = self.budget
        wait = random.uniform(0, min(self.cap, self.base * 2**failures))  # noqa: S311 - jitter
        if error.retry_after:
            limit = self.patience
            wait += error.retry_after
        return wait if elapsed + wait <= limit else None

    def run(self, call: Callable[[], _T], pause: Callable[[float], None]) -> _T:
        """Return what ``call`` returns, called again while that may help."""
        started = time.monotonic()
        failures = 0
        while True:
            try:
                return call()
            except BootstreamError as error:
                failures += 1
                wait = self.delay(failures, error, time.monotonic() - started)
                if wait is None:
                    raise
            pause(wait)
