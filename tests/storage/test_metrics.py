"""Metrics: what is counted, by what name, and that nothing else changes."""

from __future__ import annotations

import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import pytest

from bootstream.errors import ObjectNotFound, Throttled
from bootstream.storage.faults import Fails, Fault, FaultStorageProvider
from bootstream.storage.memory import MemoryStorageProvider
from bootstream.storage.metrics import Metrics, MetricsStorageProvider
from bootstream.storage.protocol import StorageProvider
from bootstream.testing.storage import StorageConformance


class TestMetrics(StorageConformance):
    """The suite through counters."""

    in_memory: ClassVar[bool] = True
    has_bucket: ClassVar[bool] = False
    stream_size: ClassVar[int] = 32 << 20
    key_count: ClassVar[int] = 500

    @pytest.fixture
    def provider(self) -> StorageProvider:
        return MetricsStorageProvider(MemoryStorageProvider())


def test_counts(tmp_path: Path) -> None:
    """Calls, bytes and errors of every operation, as plain values."""
    file = tmp_path / "file"
    file.write_bytes(bytes(5))
    store = MetricsStorageProvider(MemoryStorageProvider())
    target = store.open_object("a")
    target.put(b"123")
    target.put(memoryview(b"12345678").cast("I"))
    target.read_from(io.BytesIO(b"12"))
    target.write_from_file_system(file)
    target.read_at(bytearray(10), 2)
    target.write_to(io.BytesIO())
    target.stat()
    assert target.size() == 5
    assert target.exists()
    store.copy_object("a", "b")
    assert len(list(store.list_objects())) == 2
    store.details()
    store.open_object("b").delete()
    for _ in range(2):
        with pytest.raises(ObjectNotFound):
            store.open_object("missing").stat()
    found = json.loads(json.dumps(store.snapshot()))
    assert {name: (entry["calls"], entry["bytes"]) for name, entry in found.items()} == {
        "put": (2, 11),
        "read_from": (2, 7),
        "read_at": (1, 3),
        "write_to": (1, 5),
        "stat": (5, 0),
        "copy": (1, 0),
        "list": (1, 0),
        "details": (1, 0),
        "delete": (1, 0),
    }
    assert found["stat"]["errors"] == {"ObjectNotFound": 2}
    assert found["put"]["errors"] == {}
    for entry in found.values():
        assert sum(count for _, count in entry["latency"]) == entry["calls"]


def test_times_fall_into_doubling_buckets() -> None:
    """A bucket's bound is above the time, and at most twice it."""
    now = 0.0
    metrics = Metrics(clock=lambda: now)
    for seconds in (0.0, 0.0000015, 0.003, 0.003, 2.0, 1e9):
        now += seconds
        metrics.record("op", now - seconds, 0, None)
    entry = metrics.snapshot()["op"]
    assert entry["latency"] == [
        [1e-6, 1],
        [2e-6, 1],
        [0.004096, 2],
        [2.097152, 1],
        [4294.967296, 1],
    ]
    assert entry["seconds"] == pytest.approx(1e9 + 2.0060015)


def test_callers_time_is_not_the_listings() -> None:
    """Whoever takes long over each object does not make the store slow; leaving early counts."""
    now = 0.0
    store = MetricsStorageProvider(MemoryStorageProvider(), Metrics(clock=lambda: now))
    for number in range(3):
        store.open_object(str(number)).put(b"")
    for _ in store.list_objects():
        now += 10.0
    listing = store.list_objects()
    next(listing)
    listing.close()  # type: ignore[attr-defined]  # it is a generator
    entry = store.snapshot()["list"]
    assert (entry["calls"], entry["seconds"]) == (2, 0.0)


def test_many_threads_and_one_counter() -> None:
    """Nothing is lost between threads, nor between providers that share one."""
    metrics = Metrics()
    stores = [
        MetricsStorageProvider(
            FaultStorageProvider(MemoryStorageProvider(), Fault(Fails(Throttled), skip=500)),
            metrics,
        )
        for _ in range(2)
    ]

    def work(number: int) -> None:
        try:
            stores[number % 2].open_object("a").put(b"12345")
        except Throttled:
            return

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(2000)))
    entry = metrics.snapshot()["put"]
    assert entry["calls"] == 2000
    assert entry["errors"] == {"Throttled": 1000}
    assert entry["bytes"] == 5000
