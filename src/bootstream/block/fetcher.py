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
from typing import Protocol

from bootstream.block.counters import Counters
from bootstream.block.flights import Flights, Job, Urgency, Wait
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
_JOIN_SECONDS = 2.0
_PAUSE_SECONDS = 0.2
_MOST_RANGES = 64
_TOGETHER = 16
"""Chunks of one request that are kept, and their readers woken, together."""


class Source(Protocol):
    """What brings chunks: ``bootstream.chunks.fetch.ChunkReader``."""

    def plan(self, chunks: Iterable[int], /) -> list[list[int]]:
        """Group ascending chunks into those that are one request each."""
        ...

    def fetch(self, chunks: Sequence[int], deliver: Deliver, /) -> None:
        """Bring chunks; deliver each, decoded and verified."""
        ...


class Fetcher:
    """Chunks of one device on their way. Safe to use from several threads.

    Args:
        source: brings them.
        find: returns a chunk that has arrived earlier, without waiting, or None.
        keep: stores what arrived where ``find`` finds it, and returns the views.
        missing: returns, ascending, those chunks that are not here and not zeros.
        piece: how many chunks to fetch ahead by one request at most.
        recorder: is told of what arrives, and of who waited.
        patience: seconds for which to go on fetching what a reader waits for, while errors are
            such as may pass.
    """

    def __init__(
        self,
        source: Source,
        find: Callable[[int], memoryview | None],
        keep: Callable[[Sequence[tuple[int, Data]]], Sequence[memoryview]],
        missing: Callable[[Sequence[int]], list[int]],
        *,
        piece: int,
        recorder: Recorder,
        patience: float = 0.0,
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
        self._flights = Flights(self._promote)
        self._demand: deque[Job] = deque()
        self._planned: deque[Job] = deque()
        self._ranges: dict[Urgency, deque[Sequence[int]]] = {
            Urgency.AHEAD: deque(),
            Urgency.BACKGROUND: deque(),
        }
        self._running = [0, 0, 0]
        self._threads: set[threading.Thread] = set()
        self._sleepers: list[threading.Lock] = []
        self._closed = False
        self._patience = patience
        self._closing = threading.Event()

    # -- asking -----------------------------------------------------------------------------

    def get(self, chunks: Sequence[int]) -> dict[int, memoryview]:
        """Return the views of all ``chunks`` (ascending), for a reader that waits.

        Raises what the fetch raised. Nothing of a failure stays: the next call tries afresh.
        """
        wait = Wait(len(chunks))
        with self._lock:
            if self._closed:
                raise Unavailable("the device is closed", operation="fetch chunk")
            new = self._flights.claim(chunks, wait)
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
            self._closing.set()
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

    def _promote(self, job: Job) -> None:
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
                self._flights.give_up(chunks, error)
            raise
        jobs = [Job(group, urgency) for group in groups]
        with self._lock:
            for chunk, view in here.items():
                self._flights.land(chunk, view)
            for job in jobs:
                self._flights.assign(job)
                (self._demand if job.urgency is Urgency.DEMAND else self._planned).append(job)
            self._call_threads(len(jobs))

    def _fail(self, job: Job, error: BaseException) -> None:
        again = self._flights.fail(job, error, retry=not self._closed)
        if again is not None:
            self._demand.append(again)
            self._call_threads(1)

    def _nothing_left(self) -> bool:
        queued = self._demand or self._planned or any(self._ranges.values())
        return not queued and not any(self._running)

    # -- waiting ------------------------------------------------------------------------------

    def _await(self, wait: Wait, chunks: list[int]) -> None:
        """Wait for a reader's chunks; ask again for those whose request takes too long."""
        patience = self._hedge.patience(self.counters.average(len(chunks)))
        while not wait.wait(patience):
            patience = None  # once
            with self._lock:
                for job in self._flights.late(chunks):
                    if not self._hedge.allowed():
                        break
                    self.counters.hedges += 1
                    self._demand.append(self._flights.repeat(job))
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
                if isinstance(job, Job):
                    job.started = time.monotonic()
                urgency = job.urgency if isinstance(job, Job) else job[1]
                self._running[urgency] += 1
            size = 0
            try:
                if isinstance(job, Job):
                    size = self._fetch(job)
                else:
                    self._expand(*job)
            except Exception:  # noqa: BLE001 - the thread lives on; nobody waits for this
                _log.exception("a prefetch failed unexpectedly")
            finally:
                with self._lock:
                    self._running[urgency] -= 1
                    if isinstance(job, Job):
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

    def _take(self) -> Job | tuple[Sequence[int], Urgency] | None:
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
            new = self._flights.claim(missing, None)
        self._start(new, urgency)

    def _merged(self) -> Job:
        """Take the first reader's job, and with it what is queued and lies next to it."""
        job = self._demand.popleft()
        while self._demand and len(job.chunks) < self._piece and not job.hedged:
            other = self._demand[0]
            near = other.chunks[0] == job.chunks[-1] + 1 and not other.hedged
            if not near or len(job.chunks) + len(other.chunks) > self._piece:
                break
            self._demand.popleft()
            self._flights.join(job, other)
        return job

    def _fetch(self, job: Job) -> int:
        """Bring a job's chunks; return how many bytes of contents came."""
        size = 0
        missing = [chunk for chunk in job.chunks if chunk in self._flights]
        prefetched = job.urgency is not Urgency.DEMAND

        arrived: list[tuple[int, Data]] = []

        def deliver(chunk: int, data: Data) -> None:
            nonlocal size
            size += len(data)
            if chunk in self._flights:  # else another request was faster
                arrived.append((chunk, data))
                if len(arrived) >= _TOGETHER:
                    land()

        def land() -> None:
            for chunk, _ in arrived:
                self._recorder.arrived(chunk, prefetched=job.urgency is not Urgency.DEMAND)
            views = self._keep(arrived)
            with self._lock:
                for (chunk, _), view in zip(arrived, views, strict=True):
                    self._flights.land(chunk, view)
            arrived.clear()

        error: BaseException = Unavailable("the chunk was not delivered", operation="fetch chunk")
        try:
            if missing:
                seconds = self._persist(job, missing, deliver, land)
                self._hedge.took(seconds, size)
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

    def _persist(
        self, job: Job, chunks: list[int], deliver: Deliver, land: Callable[[], None]
    ) -> float:
        """Fetch a job's chunks; what a reader waits for, again and again while there is hope.

        Returns how many seconds the last request took.

        A guest takes an error of its disk for the disk's end, and a store that is being
        started again is back in some seconds.
        """
        until = job.started + self._patience
        while True:
            began = time.monotonic()
            try:
                try:
                    self._source.fetch(chunks, deliver)
                finally:
                    land()
                return time.monotonic() - began
            except BootstreamError as error:
                hope = error.transient and job.urgency is Urgency.DEMAND
                if not hope or time.monotonic() >= until or self._closing.wait(_PAUSE_SECONDS):
                    raise
                _log.debug("to be fetched again: %s", error)
            chunks = [chunk for chunk in chunks if chunk in self._flights]
            if not chunks:
                return time.monotonic() - began
