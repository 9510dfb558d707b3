"""One fetch for each chunk, however many readers wait for it.

Whoever misses chunks claims those that nobody fetches yet and fetches them, all in
one call; for the others it waits until their own fetch delivers them. It fetches
before it waits, so two readers never wait for each other.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

from bootstream.errors import Unavailable

Data = bytes | memoryview
Deliver = Callable[[int, Data], None]


class _Flight:
    """A chunk on its way. ``view`` or ``error`` is set before ``landed``."""

    __slots__ = ("demand", "error", "landed", "view")

    def __init__(self, *, demand: bool) -> None:
        self.demand = demand
        self.landed = threading.Event()
        self.view: memoryview | None = None
        self.error: BaseException | None = None


class Fetches:
    """Chunks on their way, by number. Safe to use from several threads.

    Args:
        find: returns a chunk that has arrived earlier, without waiting, or None.
        fetch: brings chunks, calling its second argument for each.
        keep: stores what arrived where ``find`` finds it, and returns its view.
    """

    def __init__(
        self,
        find: Callable[[int], memoryview | None],
        fetch: Callable[[Sequence[int], Deliver], None],
        keep: Callable[[int, Data], memoryview],
    ) -> None:
        self._find = find
        self._fetch = fetch
        self._keep = keep
        self._lock = threading.Lock()
        self._flights: dict[int, _Flight] = {}
        self._quiet = threading.Condition()
        self._demands = 0

    def get(self, chunks: Iterable[int], *, demand: bool) -> dict[int, memoryview]:
        """Return the views of all ``chunks`` (ascending); ``demand``: a reader waits for them.

        Raises what the fetch raised, for those too that only waited for it. Nothing of a
        failure stays: the next call tries afresh. A reader never fails because a
        prefetch did, it fetches again itself.
        """
        if not demand:
            return self._get(chunks, demand=False)
        with self._quiet:
            self._demands += 1
        try:
            return self._get(chunks, demand=True)
        finally:
            with self._quiet:
                self._demands -= 1
                if not self._demands:
                    self._quiet.notify_all()

    def wait_until_quiet(self, timeout: float) -> None:
        """Return when no reader waits for a chunk, or after ``timeout`` seconds."""
        with self._quiet:
            self._quiet.wait_for(lambda: not self._demands, timeout)

    def _get(self, chunks: Iterable[int], *, demand: bool) -> dict[int, memoryview]:
        mine: dict[int, _Flight] = {}
        others: dict[int, _Flight] = {}
        with self._lock:
            for chunk in chunks:
                flight = self._flights.get(chunk)
                if flight is None:
                    flight = mine[chunk] = self._flights[chunk] = _Flight(demand=demand)
                else:
                    others[chunk] = flight
        views = self._fly(mine)
        for chunk, flight in others.items():
            flight.landed.wait()
            if flight.view is not None:
                views[chunk] = flight.view
            elif demand and not (flight.demand and isinstance(flight.error, Exception)):
                views.update(self._get([chunk], demand=True))
            else:
                assert flight.error is not None
                raise flight.error
        return views

    def _fly(self, mine: dict[int, _Flight]) -> dict[int, memoryview]:
        """Bring the claimed chunks; whatever happens, nobody waits for them afterwards."""
        views: dict[int, memoryview] = {}

        def land(chunk: int, view: memoryview) -> None:
            views[chunk] = view
            flight = mine[chunk]
            flight.view = view
            with self._lock:
                self._flights.pop(chunk, None)
            flight.landed.set()

        def deliver(chunk: int, data: Data) -> None:
            land(chunk, self._keep(chunk, data))

        error: BaseException = Unavailable("the chunk was not delivered", operation="fetch chunk")
        try:
            for chunk in mine:  # it may have landed between the caller's look and the claim
                view = self._find(chunk)
                if view is not None:
                    land(chunk, view)
            missing = [chunk for chunk in mine if chunk not in views]
            if missing:
                self._fetch(missing, deliver)
        except BaseException as caught:
            error = caught
            raise
        finally:
            for chunk, flight in mine.items():
                if flight.view is None:
                    flight.error = error
                    with self._lock:
                        self._flights.pop(chunk, None)
                    flight.landed.set()
        if len(views) < len(mine):
            raise error
        return views


class RecentChunks:
    """The chunks that arrived last, in memory, at most ``limit`` bytes of them.

    For devices without a cache, or whose cache is full. Thread safe.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._size = 0
        self._views: OrderedDict[int, memoryview] = OrderedDict()

    def get(self, chunk: int) -> memoryview | None:
        """Return the chunk's view, if it is still here."""
        with self._lock:
            view = self._views.get(chunk)
            if view is not None:
                self._views.move_to_end(chunk)
            return view

    def put(self, chunk: int, data: Data) -> memoryview:
        """Keep a copy of ``data`` for a while, and return its view."""
        view = memoryview(bytes(data))
        with self._lock:
            old = self._views.pop(chunk, None)
            self._size += len(view) - (0 if old is None else len(old))
            self._views[chunk] = view
            while self._size > self._limit and len(self._views) > 1:
                self._size -= len(self._views.popitem(last=False)[1])
        return view

    def clear(self) -> None:
        """Forget all of them."""
        with self._lock:
            self._views.clear()
            self._size = 0
