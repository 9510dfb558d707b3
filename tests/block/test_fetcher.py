"""Fetching: order, merging, second requests, and how much is under way."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from bootstream.block.fetcher import Deliver, Fetcher
from bootstream.block.flights import Urgency
from bootstream.block.hedge import Hedge
from bootstream.block.pace import LEAST, MOST, Pace
from bootstream.block.readahead import ReadAhead
from bootstream.block.recorder import Recorder
from bootstream.errors import Corrupt, Unavailable


class Store:
    """Chunks whose fetches wait until the test lets them go, in whatever order it likes."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.lock = threading.Condition()
        self.open: set[int] = set()
        self.failing: dict[int, BaseException] = {}
        self.everything = False

    def plan(self, chunks: Iterable[int]) -> list[list[int]]:
        """Neighbours together."""
        groups: list[list[int]] = []
        for chunk in chunks:
            if groups and groups[-1][-1] == chunk - 1:
                groups[-1].append(chunk)
            else:
                groups.append([chunk])
        return groups

    def fetch(self, chunks: Sequence[int], deliver: Deliver) -> None:
        """Wait until the call is let go, then deliver or fail."""
        with self.lock:
            number = len(self.calls)
            self.calls.append(list(chunks))
            self.lock.notify_all()
            assert self.lock.wait_for(lambda: self.everything or number in self.open, 20)
        if number in self.failing:
            raise self.failing[number]
        for chunk in chunks:
            deliver(chunk, bytes([chunk % 251]) * 16)

    def wait_for(self, count: int) -> None:
        """Return once so many fetches have begun."""
        with self.lock:
            assert self.lock.wait_for(lambda: len(self.calls) >= count, 20)

    def let_go(self, *numbers: int) -> None:
        """Let calls go on, all of them where none is named."""
        with self.lock:
            self.open.update(numbers)
            self.everything = not numbers or self.everything
            self.lock.notify_all()


class Kept:
    """What arrived."""

    def __init__(self) -> None:
        self.views: dict[int, memoryview] = {}

    def keep(self, arrived: Sequence[tuple[int, bytes | memoryview]]) -> list[memoryview]:
        """Keep it."""
        return [self.views.setdefault(chunk, memoryview(bytes(data))) for chunk, data in arrived]

    def missing(self, chunks: Sequence[int]) -> list[int]:
        """Whatever is not here."""
        return [chunk for chunk in sorted(chunks) if chunk not in self.views]


def fetching(store: Store, patience: float = 0.0) -> Fetcher:
    """Return a fetcher from the store into nothing but memory."""
    kept = Kept()
    return Fetcher(
        store,
        kept.views.get,
        kept.keep,
        kept.missing,
        piece=8,
        recorder=Recorder(4096),
        patience=patience,
    )


def waiting(fetcher: Fetcher, chunk: int) -> int:
    """Return how many readers wait for a chunk."""
    flight = fetcher._flights.get(chunk)
    return 0 if flight is None else len(flight.waits)


@pytest.fixture
def store() -> Store:
    """A store with a gate."""
    return Store()


@pytest.fixture
def fetcher(store: Store) -> Iterator[Fetcher]:
    """A fetcher of it."""
    with closing(fetching(store)) as fetcher:
        yield fetcher
        store.let_go()


def test_readers_overtake_prefetches(store: Store, fetcher: Fetcher) -> None:
    """However much is to be prefetched, a reader's chunks are asked for at once."""
    fetcher.ahead(range(1000, 2000), Urgency.BACKGROUND)
    store.wait_for(LEAST)
    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(fetcher.get, [5])
        store.wait_for(LEAST + 1)
        assert store.calls[LEAST] == [5]
        store.let_go(LEAST)
        assert bytes(reader.result(20)[5]) == bytes([5]) * 16
    assert len(store.calls) == LEAST + 1


def test_a_reader_wakes_with_its_chunk(store: Store, fetcher: Fetcher) -> None:
    """A reader that waits for a prefetch goes on with the chunk, and nothing is asked twice."""
    fetcher.ahead(range(0, 4), Urgency.AHEAD)
    store.wait_for(1)
    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(fetcher.get, [2]), pool.submit(fetcher.get, [2, 3])]
        store.let_go()
        assert [sorted(reader.result(20)) for reader in readers] == [[2], [2, 3]]
    assert store.calls == [[0, 1, 2, 3]]


def test_what_is_queued_is_merged(store: Store, fetcher: Fetcher) -> None:
    """Neighbours that readers wait for, and nobody has begun to fetch, are one request."""
    busy = 64
    with ThreadPoolExecutor(2 * busy) as pool:
        first = [pool.submit(fetcher.get, [1000 + 2 * number]) for number in range(busy)]
        store.wait_for(busy)
        later = []
        for chunk in range(4):
            later.append(pool.submit(fetcher.get, [chunk]))
            while len(fetcher._demand) < chunk + 1:
                pass
        store.let_go()
        for reader in first + later:
            reader.result(20)
    assert [0, 1, 2, 3] in store.calls


def test_a_failed_prefetch_is_fetched_again_for_its_reader(store: Store, fetcher: Fetcher) -> None:
    """A reader waits for a prefetch that fails: its chunk alone is fetched anew."""
    store.failing[0] = Unavailable("no network")
    fetcher.ahead(range(0, 4), Urgency.AHEAD)
    store.wait_for(1)
    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(fetcher.get, [2])
        while not waiting(fetcher, 2):
            pass
        store.let_go()
        assert list(reader.result(20)) == [2]
    assert store.calls == [[0, 1, 2, 3], [2]]


def test_a_failure_is_its_readers(store: Store, fetcher: Fetcher) -> None:
    """All who wait get the error; the next one asks afresh."""
    store.failing[0] = Unavailable("no network")
    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(fetcher.get, [7]) for _ in range(2)]
        while waiting(fetcher, 7) < 2:
            pass
        store.let_go()
        for reader in readers:
            with pytest.raises(Unavailable, match="no network"):
                reader.result(20)
    assert list(fetcher.get([7])) == [7]


def test_a_straggler_is_asked_twice(store: Store, fetcher: Fetcher) -> None:
    """A request that takes far longer than its like is repeated; the faster one counts."""
    store.let_go()
    for chunk in range(100, 140, 2):
        fetcher.get([chunk])
    store.everything = False
    done = len(store.calls)
    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(fetcher.get, [3])
        store.wait_for(done + 2)
        assert store.calls[done:] == [[3], [3]]
        store.let_go(done + 1)
        assert bytes(reader.result(20)[3]) == bytes([3]) * 16
        assert fetcher.counters.hedges == 1
        store.let_go()
    assert fetcher.wait_until_idle(20)
    assert not len(fetcher._flights)


def test_a_failed_straggler_does_not_fail_its_reader(store: Store, fetcher: Fetcher) -> None:
    """While the second request is under way, the first one's failure is nobody's."""
    store.let_go()
    for chunk in range(100, 140, 2):
        fetcher.get([chunk])
    store.everything = False
    done = len(store.calls)
    store.failing[done] = Unavailable("reset")
    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(fetcher.get, [3])
        store.wait_for(done + 2)
        store.let_go(done)
        while (flight := fetcher._flights.get(3)) is not None and len(flight.jobs) > 1:
            pass
        store.let_go(done + 1)
        assert list(reader.result(20)) == [3]


def test_patience_outlives_an_outage(store: Store) -> None:
    """What may pass is asked for again while a reader waits; what cannot is raised at once."""
    with closing(fetching(store, patience=1000)) as fetcher:
        store.let_go()
        store.failing = {
            0: Unavailable("down"),
            1: Unavailable("down"),
            3: Corrupt("it is damaged"),
        }
        assert sorted(fetcher.get([4, 5])) == [4, 5]
        assert store.calls == [[4, 5]] * 3
        with pytest.raises(Corrupt):
            fetcher.get([7])
        assert len(store.calls) == 4


def test_patience_ends_with_the_device(store: Store) -> None:
    """Closing wakes who waits for a store that is down."""
    fetcher = fetching(store, patience=1000)
    store.failing = dict.fromkeys(range(100_000), Unavailable("down"))
    store.let_go()
    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(fetcher.get, [1])
        store.wait_for(2)
        fetcher.close()
        with pytest.raises(Unavailable):
            reader.result(20)


def test_prefetches_have_no_patience(store: Store) -> None:
    """They are dropped at the first error."""
    with closing(fetching(store, patience=1000)) as fetcher:
        store.failing = dict.fromkeys(range(100), Unavailable("down"))
        store.let_go()
        fetcher.ahead(range(64), Urgency.BACKGROUND)
        assert fetcher.wait_until_idle(20)
        assert len(store.calls) <= 2 * LEAST


def test_closing_wakes_who_waits_in_the_queue(store: Store) -> None:
    """What was not begun fails when the device closes; nobody waits for ever."""
    fetcher = fetching(store)
    with ThreadPoolExecutor(65) as pool:
        readers = [pool.submit(fetcher.get, [2 * number]) for number in range(64)]
        store.wait_for(64)
        last = pool.submit(fetcher.get, [999])
        while not fetcher._demand:
            pass
        closer = threading.Thread(target=fetcher.close)
        closer.start()
        with pytest.raises(Unavailable, match="closed"):
            last.result(20)
        store.let_go()
        for reader in readers:
            reader.result(20)
        closer.join(20)
    with pytest.raises(Unavailable, match="closed"):
        fetcher.get([1])


@pytest.mark.parametrize(("bandwidth", "most"), [(1e12, MOST), (40e6, 2 * LEAST)])
def test_pace_finds_what_a_way_needs(bandwidth: float, most: int) -> None:
    """With much latency the number grows; on a link that is full it does not."""
    now = 0.0
    pace = Pace(clock=lambda: now)
    limits = set()
    for _ in range(400):
        # so many answers of 1 MB at once, after 25 ms or as fast as the link is
        together = pace.limit
        limits.add(together)
        now += max(0.025, together * 1e6 / bandwidth)
        for _ in range(together):
            pace.arrived(1_000_000, busy=True)
    assert max(limits) == most


def test_pace_asks_for_evidence() -> None:
    """Where less was asked for than allowed, nothing is learnt."""
    now = 0.0
    pace = Pace(clock=lambda: now)
    for _ in range(100):
        now += 0.01
        pace.arrived(1_000_000, busy=False)
    assert pace.limit == LEAST


def test_hedge_has_a_budget() -> None:
    """At most one request in twenty is repeated, but for a few at once."""
    hedge = Hedge()
    assert hedge.patience(4096) is None
    for _ in range(20):
        hedge.took(0.1, 4096)
    patience = hedge.patience(4096)
    assert patience is not None
    assert 0.1 < patience < 1
    assert hedge.patience(4 << 20) is None
    assert sum(hedge.allowed() for _ in range(100)) == 4
    for _ in range(100):
        hedge.took(0.1, 4096)
    assert sum(hedge.allowed() for _ in range(100)) == 4


def test_readahead_forgives_overtaking() -> None:
    """Connections that overtake each other by a little are one reader."""
    ahead = ReadAhead(chunk_size=65536, chunk_count=10_000)
    order = [0, 1, 2, 3, 5, 4, 6, 8, 9, 7, 10, 12, 11, 13]
    found = [ahead.note(4 * n, 4 * n + 3, 4) for n in order]
    ranges = [one for one in found if one is not None]
    assert ranges
    covered = [chunk for start, stop in ranges for chunk in range(start, stop)]
    assert covered == list(range(covered[0], covered[-1] + 1))


def test_readahead_never_outruns_what_was_read() -> None:
    """A stream that ends has wasted no more than it read, and at least the first window."""
    ahead = ReadAhead(chunk_size=65536, chunk_count=100_000)
    end = 0
    for number in range(2000):
        found = ahead.note(number, number, MOST)
        if found is not None:
            end = found[1]
            assert end - (number + 1) <= max(4, number + 1)
    assert end - 2000 > 900
