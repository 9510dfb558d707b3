"""Counters do not lie: what a device says that it fetched is what its storage was asked for."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from tests.block.helpers import ARTIFACT, BUILD, CHUNK, store_image

from bootstream.block.cache import NodeCache
from bootstream.block.chunked import ChunkedDevice
from bootstream.block.stats import snapshot
from bootstream.chunks.fetch import ChunkReader
from bootstream.chunks.names import pack_path
from bootstream.errors import Corrupt
from bootstream.storage.memory import MemoryStorageProvider
from bootstream.storage.metrics import MetricsStorageProvider

CHUNKS = 400
IMAGE = b"".join(
    bytes(CHUNK) if number % 9 == 0 else random.Random(number).randbytes(CHUNK // 2) * 2
    for number in range(CHUNKS)
)


class Metered:
    """A device whose storage counts."""

    def __init__(self, folder: Path, cache: NodeCache | None) -> None:
        self.memory = MemoryStorageProvider()
        index = store_image(IMAGE, folder, storage=self.memory).index
        self.storage = MetricsStorageProvider(self.memory)
        self.device = ChunkedDevice(ChunkReader(self.storage, index), cache, store="memory")

    def read(self, chunk: int, count: int = 1) -> None:
        """Read chunks, and compare them."""
        views = self.device.read_views(chunk * CHUNK, count * CHUNK)
        assert b"".join(views) == IMAGE[chunk * CHUNK : (chunk + count) * CHUNK]

    def check(self) -> dict[str, float]:
        """Compare the figures with the storage's; return them."""
        assert self.device.wait_for_prefetch(20)
        counters = dict(snapshot(self.device).counters)
        seen = self.storage.snapshot().get("read_at", {"calls": 0, "bytes": 0})
        assert counters["stored_bytes"] == seen["bytes"]
        assert counters["requests"] + counters["prefetches"] == seen["calls"]
        return counters


@contextmanager
def metered(folder: Path, *, cached: bool = True) -> Iterator[Metered]:
    """A device with a cache of its own."""
    with closing(NodeCache(folder / "cache", 64 << 20)) as cache:
        one = Metered(folder, cache if cached else None)
        with closing(one.device):
            yield one


def test_in_order(tmp_path: Path) -> None:
    """With all that is read ahead, the whole is fetched once."""
    with metered(tmp_path) as one:
        for chunk in range(CHUNKS):
            one.read(chunk)
        counters = one.check()
        stored = sum(not one.device.index.is_zero(chunk) for chunk in range(CHUNKS))
        assert counters["fetched_bytes"] == stored * CHUNK
        assert counters["touched_chunks"] == stored
        assert counters["prefetches"] > 0
        for chunk in range(CHUNKS):
            one.read(chunk)
        again = one.check()
        assert {key for key in again if again[key] != counters[key]} == set()


@pytest.mark.parametrize("cached", [True, False])
def test_at_random(tmp_path: Path, cached: bool) -> None:
    """Also gaps that a request reads across are counted, and nothing is counted that is zeros."""
    places = random.Random(3)
    with metered(tmp_path, cached=cached) as one:
        for _ in range(150):
            count = places.choice([1, 1, 2, 5])
            one.read(places.randrange(CHUNKS - count), count)
        counters = one.check()
        assert counters["touched_bytes"] <= counters["fetched_bytes"] + counters["wasted_bytes"]


def test_a_replayed_trace(tmp_path: Path) -> None:
    """What is fetched for a trace counts as prefetched; what nobody reads of it as wasted."""
    (tmp_path / "a").mkdir()
    with metered(tmp_path / "a") as one:
        for chunk in range(0, CHUNKS, 2):
            one.read(chunk)
        trace = one.device.trace()
        one.check()
    (tmp_path / "b").mkdir()
    with metered(tmp_path / "b") as one:
        one.device.replay(trace)
        counters = one.check()
        assert counters["requests"] == 0
        assert counters["wasted_bytes"] == counters["fetched_bytes"] > 0
        for chunk in range(0, CHUNKS, 4):
            one.read(chunk)
        counters = one.check()
        assert (counters["requests"], counters["waits"]) == (0, 0)
        assert counters["wasted_bytes"] < counters["fetched_bytes"]


def test_what_was_fetched_in_vain(tmp_path: Path) -> None:
    """A chunk that is damaged in the store was fetched twice, and both count; no contents do."""
    with metered(tmp_path) as one:
        target = one.memory.open_object(pack_path(BUILD, ARTIFACT))
        data = bytearray(target.size())
        target.read_at(data, 0)
        ref = one.device.index.lookup(1)
        assert ref is not None
        data[ref.offset + ref.length // 2] ^= 1
        target.put(bytes(data))
        with pytest.raises(Corrupt):
            one.read(1)
        counters = dict(snapshot(one.device).counters)
        assert counters["stored_bytes"] == 2 * ref.length
        assert counters["stored_bytes"] == one.storage.snapshot()["read_at"]["bytes"]
        assert counters["fetched_bytes"] == 0
