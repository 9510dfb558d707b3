"""Chunks on their way, and who waits for them: the books of ``Fetcher``, which holds the lock."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from enum import IntEnum


class Urgency(IntEnum):
    """Who waits for a job."""

    DEMAND = 0
    AHEAD = 1
    BACKGROUND = 2


class Wait:
    """A reader, until all of its chunks are here or one of them cannot come."""

    __slots__ = ("_ready", "error", "missing", "views")

    def __init__(self, missing: int) -> None:
        self.missing = missing
        self.views: dict[int, memoryview] = {}
        self.error: BaseException | None = None
        self._ready = threading.Lock()
        self._ready.acquire()

    def wake(self) -> None:
        """Let the reader go on. At most once, under the fetcher's lock."""
        self._ready.release()

    def wait(self, timeout: float | None) -> bool:
        """Return True once woken, False after ``timeout`` seconds."""
        return self._ready.acquire(timeout=-1 if timeout is None else timeout)


class Flight:
    """A chunk on its way: which jobs bring it, none before it is planned, and who waits for it."""

    __slots__ = ("jobs", "waits")

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.waits: list[Wait] = []


class Job:
    """Chunks that are fetched together."""

    __slots__ = ("chunks", "hedged", "started", "urgency")

    def __init__(self, chunks: list[int], urgency: Urgency) -> None:
        self.chunks = chunks
        self.urgency = urgency
        self.started = 0.0
        self.hedged = False


class Flights:
    """Which chunks are on their way. The caller holds one lock around every call.

    Args:
        promote: is told of jobs that nobody waited for, and now somebody does.
    """

    def __init__(self, promote: Callable[[Job], None]) -> None:
        self._promote = promote
        self._flights: dict[int, Flight] = {}

    def __contains__(self, chunk: int) -> bool:
        return chunk in self._flights

    def __len__(self) -> int:
        return len(self._flights)

    def get(self, chunk: int) -> Flight | None:
        """Return how the chunk comes, or None if it does not."""
        return self._flights.get(chunk)

    def claim(self, chunks: Iterable[int], wait: Wait | None) -> list[int]:
        """Note who waits for chunks; return those that nobody fetches yet, now claimed."""
        new = []
        for chunk in chunks:
            flight = self._flights.get(chunk)
            if flight is None:
                flight = self._flights[chunk] = Flight()
                new.append(chunk)
            elif wait is not None and flight.jobs:
                self._promote(flight.jobs[0])
            if wait is not None:
                flight.waits.append(wait)
        return new

    def assign(self, job: Job) -> None:
        """The job brings chunks that were claimed; it is demand if a reader came meanwhile."""
        for chunk in job.chunks:
            flight = self._flights[chunk]
            flight.jobs = [job]
            if flight.waits:
                job.urgency = Urgency.DEMAND

    def repeat(self, job: Job) -> Job:
        """Return another job for what a late one has not brought yet."""
        job.hedged = True
        again = Job([c for c in job.chunks if c in self._flights], Urgency.DEMAND)
        again.hedged = True
        for chunk in again.chunks:
            self._flights[chunk].jobs.append(again)
        return again

    def join(self, job: Job, other: Job) -> None:
        """Let ``job`` bring the chunks of another one as well."""
        job.chunks += other.chunks
        for chunk in other.chunks:
            flight = self._flights.get(chunk)
            if flight is not None and other in flight.jobs:
                flight.jobs[flight.jobs.index(other)] = job

    def late(self, chunks: Iterable[int]) -> list[Job]:
        """Return the jobs under way that bring ``chunks`` and were not repeated yet."""
        late: list[Job] = []
        for chunk in chunks:
            flight = self._flights.get(chunk)
            job = flight.jobs[0] if flight is not None and flight.jobs else None
            if job is not None and job.started and not job.hedged and job not in late:
                late.append(job)
        return late

    def land(self, chunk: int, view: memoryview) -> None:
        """The chunk is here: whoever waits for nothing else goes on."""
        flight = self._flights.pop(chunk, None)
        if flight is None:
            return
        for wait in flight.waits:
            wait.views[chunk] = view
            wait.missing -= 1
            if not wait.missing and wait.error is None:
                wait.wake()

    def fail(self, job: Job, error: BaseException, *, retry: bool) -> Job | None:
        """What did not land of a job fails with it, unless another one brings it still.

        Returns:
            A job for what readers wait for though it was only to be prefetched: they do not
            fail with a prefetch. Only with ``retry``.
        """
        again, lost = [], []
        for chunk in job.chunks:
            flight = self._flights.get(chunk)
            if flight is None or job not in flight.jobs:  # here, or on its way anew
                continue
            flight.jobs.remove(job)
            if flight.jobs:
                continue
            if flight.waits and job.urgency is not Urgency.DEMAND and retry:
                again.append(chunk)
            else:
                lost.append(chunk)
        self.give_up(lost, error)
        if not again:
            return None
        renewed = Job(again, Urgency.DEMAND)
        self.assign(renewed)
        return renewed

    def give_up(self, chunks: Iterable[int], error: BaseException) -> None:
        """These chunks do not come: all who wait for them get the error."""
        for chunk in chunks:
            for wait in self._flights.pop(chunk).waits:
                if wait.error is None and wait.missing:
                    wait.error = error
                    wait.wake()
