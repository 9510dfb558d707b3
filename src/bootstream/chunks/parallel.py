"""Work on all cores with results in order and bounded memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from bootstream.errors import InvalidInput

Item = TypeVar("Item")
Result = TypeVar("Result")


def usable_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0))


def io_threads() -> int:
    """How many threads to read a store with: enough to wait for answers on few cores."""
    return max(4, usable_cores())


def check_threads(threads: int | None, default: int) -> int:
    """Return the number of threads to use; raises InvalidInput for one that is none."""
    if threads is None:
        return default
    if not 1 <= threads <= 1024:
        raise InvalidInput(
            f"{threads} is not a number of threads",
            operation="start work",
            remedy="choose 1 to 1024, or none for all cores",
        )
    return threads


def in_order(
    function: Callable[[Item], Result], items: Iterable[Item], *, threads: int, ahead: int
) -> Generator[Result, None, None]:
    """Yield ``function(item)`` for every item, in the order of the items.

    Args:
        function: runs in ``threads`` threads.
        items: are taken, in the caller's thread, only as far as ``ahead`` allows.
        threads: how many run at once.
        ahead: how many items may be begun or finished beyond the one that is waited for.

    Close it (``contextlib.closing``) when leaving early: work not begun is dropped, and no
    thread is left. The first error of ``function`` or ``items`` in order is raised.
    """
    pool = ThreadPoolExecutor(threads, "chunks")
    try:
        waiting: deque[Future[Result]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
