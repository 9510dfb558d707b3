"""Threads that wait for a device, so that a connection does not.

Every connection has its own, started when there is work and gone when there was none for a
while. They are not shared, because a worker also sends its reply: a client that does not
read would hold the workers of everybody else.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from bootstream.nbd.failures import log

_IDLE = 5.0


class Workers:
    """Runs tasks in a bounded number of threads, for a bounded amount of work at a time.

    Args:
        name: of the threads.
        threads: how many at most.
        tasks: how many tasks may be under way or waiting.
        cost: how much these may cost together; one task alone may cost more.
    """

    def __init__(self, name: str, *, threads: int, tasks: int, cost: int) -> None:
        self._name = name
        self._max_threads = threads
        self._max_tasks = tasks
        self._max_cost = cost
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._room = threading.Condition(self._lock)
        self._queue: deque[tuple[Callable[[], None], int]] = deque()
        self._threads = 0
        self._idle = 0
        self._tasks = 0
        self._cost = 0

    def has_room(self, cost: int) -> bool:
        """Whether :meth:`submit` would return at once."""
        with self._lock:
            return self._fits(cost)

    def submit(self, task: Callable[[], None], cost: int) -> None:
        """Wait for room, then have ``task`` run by a thread. What it raises is logged."""
        with self._lock:
            while not self._fits(cost):
                self._room.wait()
            self._tasks += 1
            self._cost += cost
            self._queue.append((task, cost))
            if self._idle >= len(self._queue) or self._threads >= self._max_threads:
                self._work.notify()
                return
            self._threads += 1
        try:
            threading.Thread(target=self._run, name=self._name, daemon=True).start()
        except RuntimeError:  # the host has no thread left: others do it, or nobody can
            with self._lock:
                self._threads -= 1
                if self._threads:
                    return
                self._queue.remove((task, cost))
                self._tasks -= 1
                self._cost -= cost
            task()

    def drain(self) -> None:
        """Wait until everything that was submitted is done."""
        with self._lock:
            while self._tasks:
                self._room.wait()

    def close(self) -> None:
        """Let the threads go; nothing may be submitted afterwards."""
        with self._lock:
            self._max_threads = 0
            self._work.notify_all()

    def _fits(self, cost: int) -> bool:
        return not self._tasks or (
            self._tasks < self._max_tasks and self._cost + cost <= self._max_cost
        )

    def _run(self) -> None:
        while True:
            with self._lock:
                while not self._queue:
                    self._idle += 1
                    told = self._max_threads and self._work.wait(_IDLE)
                    self._idle -= 1
                    if not told and not self._queue:
                        self._threads -= 1
                        return
                task, cost = self._queue.popleft()
            try:
                task()
            except Exception:  # noqa: BLE001 - the thread and its accounts live on
                log.exception("a request was lost")
            finally:
                del task  # and with it whatever it holds
                with self._lock:
                    self._tasks -= 1
                    self._cost -= cost
                    self._room.notify_all()
