"""Limits: slots in the order of arrival, never held in vain; bandwidth that holds on average."""

from __future__ import annotations

import io
import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootstream.errors import Cancelled, InvalidInput, ObjectNotFound
from bootstream.storage.limit import LimitStorageProvider
from bootstream.storage.local import LocalStorageProvider
from bootstream.storage.memory import MemoryStorageProvider
from bootstream.storage.objects import copy_object
from bootstream.storage.protocol import ObjectInfo, StorageProvider
from bootstream.testing.storage import PatternSource, StorageConformance, content


class TestLimit(StorageConformance):
    """The suite through one slot and a wide pipe."""

    component_bytes: ClassVar[int] = 255
    objects_as_folders: ClassVar[bool] = False
    stream_size: ClassVar[int] = 32 << 20
    key_count: ClassVar[int] = 300

    @pytest.fixture
    def provider(self, tmp_path: Path) -> StorageProvider:
        return _limited(LocalStorageProvider(tmp_path / "store"))

    @pytest.fixture
    def lost(self, tmp_path: Path) -> StorageProvider:
        (tmp_path / "file").write_bytes(b"no folder")
        return _limited(LocalStorageProvider(tmp_path / "file"))


def _limited(inner: StorageProvider) -> StorageProvider:
    return LimitStorageProvider(inner, concurrency=1, upload=1e12, download=1e12)


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds


class CountingStorage(MemoryStorageProvider):
    """Counts how many are inside at once, and lets them in and out one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = 0
        self.most = 0
        self.entered: list[str] = []
        self.changed = threading.Condition()
        self.may_leave = 0

    def copy_object(self, source: str, target: str) -> None:
        """Stay inside until one may leave."""
        del source
        with self.changed:
            self.inside += 1
            self.most = max(self.most, self.inside)
            self.entered.append(target)
            self.changed.notify_all()
            assert self.changed.wait_for(lambda: self.may_leave > 0, 20)
            self.may_leave -= 1
            self.inside -= 1

    def wait_entered(self, count: int) -> None:
        """Wait until so many were let in."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.entered) >= count, 20)

    def let_out(self) -> None:
        """Let one leave."""
        with self.changed:
            self.may_leave += 1
            self.changed.notify_all()


@pytest.mark.parametrize("slots", [1, 3])
def test_slots_in_order_of_arrival(slots: int) -> None:
    """Never more inside than slots, and those who wait come in as they came."""
    inner = CountingStorage()
    store = LimitStorageProvider(inner, concurrency=slots)
    waiting = store._slots._waiting
    with ThreadPoolExecutor(8) as pool:
        calls = []
        for number in range(8):
            calls.append(pool.submit(store.copy_object, "x", str(number)))
            if number < slots:
                inner.wait_entered(number + 1)
            else:
                while len(waiting) < number + 1 - slots:
                    threading.Event().wait(0.001)
        for number in range(8):
            inner.wait_entered(min(slots + number, 8))
            inner.let_out()
        for call in calls:
            call.result()
    assert inner.most == slots
    assert inner.entered == [str(number) for number in range(8)]


def test_copy_between_objects_of_one_slot() -> None:
    """An upload whose source is a download of the same store comes to an end."""
    store = LimitStorageProvider(MemoryStorageProvider(), concurrency=1)
    store.open_object("a").put(b"x" * 3_000_000)
    assert copy_object(store.open_object("a"), store.open_object("b")) == 3_000_000

    class Nested:
        def write(self, data: memoryview, /) -> None:
            store.open_object("c").put(data)

    store.open_object("b").write_to(Nested())
    assert content(store, "c")
    for info in store.list_objects():
        assert store.open_object(info.path).exists()


def test_slot_comes_back_after_errors() -> None:
    """Whatever ends an operation, its slot is free again."""
    store = LimitStorageProvider(MemoryStorageProvider(), concurrency=1)
    for _ in range(3):
        for call in (
            lambda: store.open_object("missing").stat(),
            lambda: store.copy_object("missing", "b"),
            lambda: store.open_object("a").read_from(
                PatternSource(100, fail_at=0, error=OSError("mine"))
            ),
        ):
            with pytest.raises((ObjectNotFound, OSError)):
                call()
    assert store.open_object("a").put(b"")


def test_no_slot_is_held_while_waiting_for_bandwidth() -> None:
    """Whoever waits for bytes lets others work, in every kind of operation."""
    time = Time()
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        time.now += seconds
        # One slot: this would wait for ever if the sleeper held it.
        assert not store.open_object("other").exists()

    store = LimitStorageProvider(
        MemoryStorageProvider(),
        concurrency=1,
        upload=1e6,
        download=1e6,
        clock=time.clock,
        sleep=sleep,
    )
    target = store.open_object("a")
    for step in (
        lambda: target.put(b"x" * 1_000_000),
        lambda: target.read_from(PatternSource(3_000_000)),
        lambda: target.write_to(io.BytesIO()),
        lambda: target.read_at(bytearray(1_000_000), 0),
    ):
        before = len(slept)
        step()
        assert len(slept) > before


@given(
    st.lists(st.integers(min_value=0, max_value=5_000_000), min_size=1, max_size=20),
    st.floats(min_value=1000, max_value=1e9),
)
def test_rate_holds_on_average(sizes: list[int], rate: float) -> None:
    """All bytes take their time, less the burst; never more than that either."""
    time = Time()
    store = LimitStorageProvider(
        MemoryStorageProvider(), upload=rate, clock=time.clock, sleep=time.sleep
    )
    for size in sizes:
        store.open_object("a").put(bytes(size))
    due = sum(sizes) / rate
    assert max(0.0, due - 0.25) - 1e-6 * due - 1e-9 <= time.now <= due + 1e-6 * due


def test_up_and_down_are_apart(tmp_path: Path) -> None:
    """Downloads cost nothing of uploads; short reads give back what they did not get."""
    time = Time()
    store = LimitStorageProvider(
        MemoryStorageProvider(), upload=100, clock=time.clock, sleep=time.sleep
    )
    file = tmp_path / "file"
    file.write_bytes(bytes(1000))
    store.open_object("a").write_from_file_system(file)
    assert time.now == pytest.approx(9.75)
    store.open_object("a").write_to(io.BytesIO())
    assert time.now == pytest.approx(9.75)
    down = LimitStorageProvider(
        MemoryStorageProvider(), download=100, clock=time.clock, sleep=time.sleep
    )
    down.open_object("a").put(bytes(1000))
    time.now = 0.0
    for _ in range(10):
        assert down.open_object("a").read_at(bytearray(20), 1000) == 0
    assert time.now == 0.0


def test_waiting_can_be_stopped() -> None:
    """An error of the sleep passes, and nothing was written."""

    def sleep(_seconds: float) -> None:
        raise Cancelled("stopped")

    inner = MemoryStorageProvider()
    store = LimitStorageProvider(inner, concurrency=1, upload=10, sleep=sleep)
    with pytest.raises(Cancelled):
        store.open_object("a").put(bytes(1000))
    with pytest.raises(Cancelled):
        store.open_object("b").read_from(PatternSource(1000))
    assert list(inner.list_objects()) == []


@pytest.mark.parametrize(
    ("name", "value"), list(itertools.product(("concurrency", "upload", "download"), (0, -1)))
)
def test_limits_that_are_none(name: str, value: int) -> None:
    """Zero would be a store that never answers."""
    with pytest.raises(InvalidInput, match=name):
        LimitStorageProvider(MemoryStorageProvider(), **{name: value})  # type: ignore[arg-type]  # one of three


def test_listing_streams() -> None:
    """The first object is there before the second is asked for."""

    class Listing(MemoryStorageProvider):
        asked = 0

        def list_objects(self, prefix: str = "") -> Iterator[ObjectInfo]:
            for info in super().list_objects(prefix):
                self.asked += 1
                yield info

    inner = Listing()
    for name in "abc":
        inner.open_object(name).put(b"")
    listing = LimitStorageProvider(inner, concurrency=1).list_objects()
    next(listing)
    assert inner.asked == 1
