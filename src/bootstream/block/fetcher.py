"""Chunks on their way: each is fetched once, however many wait; readers before everybody else.

Whoever misses chunks asks for them here. What nobody fetches yet becomes jobs, each of which is
one request to the store or a few; threads take the jobs in this order:

- *demand*: a reader waits. As many at a time as there are threads; those that lie next to
  each other and are still queued become one request.
- *ahead*: a reader that reads in order will be here soon. As many at a time as ``Pace`` finds
  to be worth it.
- *background*: a prefetch that somebody asked for. As *ahead*, and only while no reader waits,
  or after some patience with those who always do.

A chunk's readers wake when it is here and verified, whatever else its request still brings.
A reader never fails because a prefetch did: its chunks are then fetched again, as demand.
A request that takes far longer than its like is asked a second time, see ``Hedge``; what
comes first counts.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from typing import Protocol

from bootstream.block.counters import Counters
from bootstream.block.hedge import Hedge
from bootstream.block.pace import Pace
from bootstream.block.recorder import Recorder
from bootstream.errors import BootstreamError, Unavailable

_log = logging.getLogger(__name__)

Data = bytes | memoryview
Deliver = Callable[[int, Data], None]

_DEMAND_THREADS = 64
_IDLE_SECONDS = 5.0
_PATIENCE_SECONDS = 0.1
_JOIN_SECONDS = 10.0
_MOST_RANGES = 64


class Source(Protocol):
    """What brings chunks: ``bootstream.chunks.fetch.ChunkReader``."""

    def plan(self, chunks: Iterable[int], /) -> list[list[int]]:
        """Group ascending chunks into those that are one request each."""
        ...

    def fetch(self, chunks: Sequence[int], deliver: Deliver, /) -> None:
        """Bring chunks; deliver each, decoded and verified."""
        ...


class Urgency(IntEnum):
    """Who waits for a job."""

    DEMAND = 0
    AHEAD = 1
    BACKGROUND = 2


class _Wait:
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


class _Flight:
    """A chunk on its way: which jobs bring it, none before it is planned, and who waits for it."""

    __slots__ = ("jobs", "waits")

    def __init__(self) -> None:
        self.jobs: list[_Job] = []
        self.waits: list[_Wait] = []


class _Job:
    """Chunks that are fetched together."""

    __slots__ = ("chunks", "hedged", "started", "urgency")

    def __init__(self, chunks: list[int], urgency: Urgency) -> None:
        self.chunks = chunks
        self.urgency = urgency
        self.started = 0.0
        self.hedged = False


class Fetcher:
    """Chunks of one device on their way. Safe to use from several threads.

    Args:
        source: brings them.
        find: returns a chunk that has arrived earlier, without waiting, or None.
        keep: stores what arrived where ``find`` finds it, and returns its view.
        missing: returns, ascending, those chunks that are not here and not zeros.
        piece: how many chunks to fetch ahead by one request at most.
        recorder: is told of what arrives, and of who waited.
    """

    def __init__(
        self,
        source: Source,
        find: Callable[[int], memoryview | None],
        keep: Callable[[int, Data], memoryview],
        missing: Callable[[Sequence[int]], list[int]],
        *,
        piece: int,
        recorder: Recorder,
    ) -> None:
        self._source = source
        self._find = find
        self._keep = keep
        self._missing = missing
        self._piece = piece
        self.counters = Counters()
        self._recorder = recorder
        self.pace = Pace()
        self._hedge = Hedge()
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._flights: dict[int, _Flight] = {}
        self._demand: deque[_Job] = deque()
        self._planned: deque[_Job] = deque()
        self._ranges: dict[Urgency, deque[Sequence[int]]] = {
            Urgency.AHEAD: deque(),
            Urgency.BACKGROUND: deque(),
        }
        self._running = [0, 0, 0]
        self._threads: set[threading.Thread] = set()
        self._sleepers: list[threading.Lock] = []
        self._closed = False

    # -- asking -----------------------------------------------------------------------------

    def get(self, chunks: Sequence[int]) -> dict[int, memoryview]:
        """Return the views of all ``chunks`` (ascending), for a reader that waits.

        Raises what the fetch raised. Nothing of a failure stays: the next call tries afresh.
        """
        wait = _Wait(len(chunks))
        with self._lock:
            if self._closed:
                raise Unavailable("the device is closed", operation="fetch chunk")
            new = self._claim(chunks, wait)
        self._start(new, Urgency.DEMAND)
        began = time.monotonic()
        self._await(wait, new)
        self.counters.waited(time.monotonic() - began)
        self._recorder.wait(began, chunks[0], len(chunks))
        if wait.error is not None:
            raise wait.error
        return wait.views

    def ahead(self, chunks: Sequence[int], urgency: Urgency) -> None:
        """Bring what misses of ``chunks`` soon, in their order; dropped when that is too much.

        A ``range`` of chunks takes no memory for each of them.
        """
        with self._lock:
            ranges = self._ranges[urgency]
            if not chunks or self._closed or len(ranges) >= _MOST_RANGES:
                return
            ranges.append(chunks)
            self._call_threads(min(self.pace.limit, -(-len(chunks) // self._piece)))

    def wait_until_idle(self, timeout: float) -> bool:
        """Return True once nothing is left to do, False after ``timeout`` seconds."""
        with self._lock:
            return self._idle.wait_for(self._nothing_left, timeout)

    def close(self) -> None:
        """Stop; a fetch that is under way is waited for, for some seconds. Idempotent."""
        with self._lock:
            self._closed = True
            for ranges in self._ranges.values():
                ranges.clear()
            for job in [*self._demand, *self._planned]:
                self._fail(job, Unavailable("the device is closed", operation="fetch chunk"))
            self._demand.clear()
            self._planned.clear()
            for waiter in self._sleepers:
                waiter.release()
            self._sleepers.clear()
            threads = list(self._threads)
        deadline = time.monotonic() + _JOIN_SECONDS
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    # -- claiming and landing; under the lock -----------------------------------------------

    def _claim(self, chunks: Iterable[int], wait: _Wait | None) -> list[int]:
        """Note who waits for chunks; return those that nobody fetches yet, now claimed."""
        new = []
        for chunk in chunks:
            flight = self._flights.get(chunk)
            if flight is None:
                flight = self._flights[chunk] = _Flight()
                new.append(chunk)
            elif wait is not None and flight.jobs:
                self._promote(flight.jobs[0])
            if wait is not None:
                flight.waits.append(wait)
        return new

    def _promote(self, job: _Job) -> None:
        """A reader waits for what was only to be prefetched, and has not been begun."""
        if job.urgency is not Urgency.DEMAND and not job.started and job in self._planned:
            self._planned.remove(job)
            job.urgency = Urgency.DEMAND
            self._demand.append(job)
            self._call_threads(1)

    def _start(self, chunks: list[int], urgency: Urgency) -> None:
        """Queue claimed chunks, but those that landed between the caller's look and the claim."""
        if not chunks:
            return
        here = {chunk: view for chunk in chunks if (view := self._find(chunk)) is not None}
        try:
            groups = self._source.plan([chunk for chunk in chunks if chunk not in here])
        except BaseException as error:
            with self._lock:
                self._give_up(chunks, error)
            raise
        jobs = [_Job(group, urgency) for group in groups]
        with self._lock:
            for chunk, view in here.items():
                self._land(chunk, view)
            for job in jobs:
                for chunk in job.chunks:
                    flight = self._flights[chunk]
                    flight.jobs = [job]
                    if urgency is not Urgency.DEMAND and flight.waits:
                        job.urgency = Urgency.DEMAND  # a reader came meanwhile
                (self._demand if job.urgency is Urgency.DEMAND else self._planned).append(job)
            self._call_threads(len(jobs))

    def _land(self, chunk: int, view: memoryview) -> None:
        flight = self._flights.pop(chunk, None)
        if flight is None:
            return
        for wait in flight.waits:
            wait.views[chunk] = view
            wait.missing -= 1
            if not wait.missing and wait.error is None:
                wait.wake()

    def _fail(self, job: _Job, error: BaseException) -> None:
        """What did not land of a job fails with it, unless another request brings it still."""
        again, lost = [], []
        for chunk in job.chunks:
            flight = self._flights.get(chunk)
            if flight is None or job not in flight.jobs:  # here, or on its way anew
                continue
            flight.jobs.remove(job)
            if flight.jobs:
                continue
            if flight.waits and job.urgency is not Urgency.DEMAND and not self._closed:
                again.append(chunk)
            else:
                lost.append(chunk)
        self._give_up(lost, error)
        if again:
            renewed = _Job(again, Urgency.DEMAND)
            for chunk in again:
                self._flights[chunk].jobs = [renewed]
            self._demand.append(renewed)
            self._call_threads(1)

    def _give_up(self, chunks: list[int], error: BaseException) -> None:
        for chunk in chunks:
            for wait in self._flights.pop(chunk).waits:
                if wait.error is None and wait.missing:
                    wait.error = error
                    wait.wake()

    def _nothing_left(self) -> bool:
        queued = self._demand or self._planned or any(self._ranges.values())
        return not queued and not any(self._running)

    # -- waiting ------------------------------------------------------------------------------

    def _await(self, wait: _Wait, chunks: list[int]) -> None:
        """Wait for a reader's chunks; ask again for those whose request takes too long."""
        patience = self._hedge.patience(self.counters.average(len(chunks)))
        while not wait.wait(patience):
            patience = None  # once
            with self._lock:
                late: list[_Job] = []
                for chunk in chunks:
                    flight = self._flights.get(chunk)
                    job = flight.jobs[0] if flight is not None and flight.jobs else None
                    if job is not None and job.started and not job.hedged and job not in late:
                        late.append(job)
                for job in late:
                    if not self._hedge.allowed():
                        break
                    job.hedged = True
                    again = _Job([c for c in job.chunks if c in self._flights], Urgency.DEMAND)
                    again.hedged = True
                    for chunk in again.chunks:
                        self._flights[chunk].jobs.append(again)
                    self.counters.hedges += 1
                    self._demand.append(again)
                    self._call_threads(1)

    # -- threads ------------------------------------------------------------------------------

    def _call_threads(self, count: int) -> None:
        """See to it that there are threads for what was queued just now."""
        while count > 0 and self._sleepers:
            self._sleepers.pop().release()
            count -= 1
        for _ in range(min(count, _DEMAND_THREADS - len(self._threads))):
            thread = threading.Thread(target=self._run, name="bootstream-fetch", daemon=True)
            self._threads.add(thread)
            try:
                thread.start()
            except RuntimeError:  # the host has no thread left: those that there are do it
                self._threads.discard(thread)
                if not self._threads:
                    raise
                return

    def _run(self) -> None:
        while True:
            with self._lock:
                job = self._take()
                if job is None:
                    self._threads.discard(threading.current_thread())
                    return
                if isinstance(job, _Job):
                    job.started = time.monotonic()
                urgency = job.urgency if isinstance(job, _Job) else job[1]
                self._running[urgency] += 1
            size = 0
            try:
                if isinstance(job, _Job):
                    size = self._fetch(job)
                else:
                    self._expand(*job)
            except Exception:  # noqa: BLE001 - the thread lives on; nobody waits for this
                _log.exception("a prefetch failed unexpectedly")
            finally:
                with self._lock:
                    self._running[urgency] -= 1
                    if isinstance(job, _Job):
                        more = bool(self._planned) or any(self._ranges.values())
                        held = self._background() + 1 >= self.pace.limit
                        if size:
                            self.pace.arrived(size, busy=more and held)
                        if more:
                            self._call_threads(self.pace.limit - self._background())
                    if self._nothing_left():
                        self._idle.notify_all()

    def _background(self) -> int:
        return self._running[Urgency.AHEAD] + self._running[Urgency.BACKGROUND]

    def _take(self) -> _Job | tuple[Sequence[int], Urgency] | None:
        """Return what to do next; None: this thread is not needed any more."""
        since = time.monotonic()
        told = True
        while not self._closed:
            if self._demand:
                return self._merged()
            seconds = _IDLE_SECONDS
            if self._background() < self.pace.limit:
                if self._planned:
                    return self._planned.popleft()
                if self._ranges[Urgency.AHEAD]:
                    return self._cut(Urgency.AHEAD)
                if self._ranges[Urgency.BACKGROUND]:
                    patience = since + _PATIENCE_SECONDS - time.monotonic()
                    if not self._running[Urgency.DEMAND] or patience <= 0:
                        return self._cut(Urgency.BACKGROUND)
                    seconds, told = patience, True
            if not told:
                return None
            told = self._sleep(seconds)
        return None

    def _sleep(self, seconds: float) -> bool:
        """Wait, without the lock, until there is work; False after so many seconds without."""
        waiter = threading.Lock()
        waiter.acquire()
        self._sleepers.append(waiter)
        self._lock.release()
        try:
            waiter.acquire(timeout=seconds)
        finally:
            self._lock.acquire()
        if waiter in self._sleepers:
            self._sleepers.remove(waiter)
            return False
        return True

    def _cut(self, urgency: Urgency) -> tuple[Sequence[int], Urgency]:
        """Take a piece of what is first."""
        ranges = self._ranges[urgency]
        chunks = ranges.popleft()
        if len(chunks) > self._piece:
            ranges.appendleft(chunks[self._piece :])
        return chunks[: self._piece], urgency

    def _expand(self, chunks: Sequence[int], urgency: Urgency) -> None:
        """Make jobs of what misses of a piece."""
        missing = self._missing(chunks)
        if not missing:
            return
        with self._lock:
            if self._closed:
                return
            new = self._claim(missing, None)
        self._start(new, urgency)

    def _merged(self) -> _Job:
        """Take the first reader's job, and with it what is queued and lies next to it."""
        job = self._demand.popleft()
        while self._demand and len(job.chunks) < self._piece and not job.hedged:
            other = self._demand[0]
            near = other.chunks[0] == job.chunks[-1] + 1 and not other.hedged
            if not near or len(job.chunks) + len(other.chunks) > self._piece:
                break
            self._demand.popleft()
            job.chunks += other.chunks
            for chunk in other.chunks:
                flight = self._flights.get(chunk)
                if flight is not None and other in flight.jobs:
                    flight.jobs[flight.jobs.index(other)] = job
        return job

    def _fetch(self, job: _Job) -> int:
        """Bring a job's chunks; return how many bytes of contents came."""
        size = 0
        missing = [chunk for chunk in job.chunks if chunk in self._flights]
        prefetched = job.urgency is not Urgency.DEMAND

        def deliver(chunk: int, data: Data) -> None:
            nonlocal size
            size += len(data)
            if chunk not in self._flights:  # another request was faster
                return
            self._recorder.arrived(chunk, prefetched=job.urgency is not Urgency.DEMAND)
            view = self._keep(chunk, data)
            with self._lock:
                self._land(chunk, view)

        error: BaseException = Unavailable("the chunk was not delivered", operation="fetch chunk")
        try:
            if missing:
                self._source.fetch(missing, deliver)
                self._hedge.took(time.monotonic() - job.started, size)
        except BootstreamError as caught:
            error = caught
            if prefetched:
                _log.debug("prefetch: %s", caught)
                with self._lock:  # what fails once is not worth the others' time
                    for ranges in self._ranges.values():
                        ranges.clear()
        except BaseException as caught:  # noqa: BLE001 - it is raised where somebody waits
            error = caught
            if prefetched:
                _log.exception("a prefetch failed unexpectedly")
        finally:
            with self._lock:
                self._fail(job, error)
            self.counters.fetched(len(missing), size, prefetched=prefetched)
            if missing:
                self._recorder.request(
                    job.started, missing[0], len(missing), size, prefetch=prefetched
                )
        return size
