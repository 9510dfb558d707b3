"""What was worked out once and holds on: bounded, for many threads.

Clients repeat themselves. One that signs once a second sends the same header a thousand times,
and reads the same object; whatever follows from the request's bytes alone need not be worked out
again. What also depends on the time, on faults or on policies is judged anew each time.
"""

from __future__ import annotations

import contextlib
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")

LONG = 8192  # letters of a text that is too long to be kept


class Memo(Generic[K, V]):
    """A dictionary that drops its oldest entries. Thread safe.

    Args:
        limit: how many entries it holds.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._values: dict[K, V] = {}

    def get(self, key: K) -> V | None:
        """The value that was kept, or None."""
        return self._values.get(key)

    def keep(self, key: K, value: V) -> None:
        """Keep a value; the oldest one goes if there are too many."""
        values = self._values
        while len(values) >= self._limit:
            # Another thread may take the oldest first, or add one between the two steps.
            with contextlib.suppress(KeyError, StopIteration, RuntimeError):
                del values[next(iter(values))]
        values[key] = value

    def drop(self, key: K) -> None:
        """Forget one. Idempotent."""
        self._values.pop(key, None)

    def clear(self) -> None:
        """Forget all."""
        self._values.clear()
