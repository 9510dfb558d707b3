"""The chunked device: what is fetched, how often, and what happens when that fails."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from tests.block.helpers import ARTIFACT, CHUNK, WatchedReader, store_image

from bootstream.block.cache import NodeCache
from bootstream.block.chunked import ChunkedDevice
from bootstream.block.readahead import FIRST_WINDOW, LARGEST_PIECE
from bootstream.chunks.fetch import ChunkReader
from bootstream.errors import Corrupt, Unavailable
from bootstream.storage.memory import MemoryStorageProvider
from bootstream.testing.device import read_all

COUNT = 512
CONTENTS = random.Random(4).randbytes(COUNT * CHUNK)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> ChunkReader:
    """An image without zeros, in a store in memory."""
    return store_image(CONTENTS, tmp_path_factory.mktemp("image"))


@pytest.fixture
def reader(stored: ChunkReader) -> WatchedReader:
    """A reader of it that is watched."""
    return WatchedReader(stored)


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[NodeCache]:
    """A new cache."""
    with closing(NodeCache(tmp_path / "cache", 256 << 20)) as cache:
        yield cache


@pytest.fixture
def device(reader: WatchedReader, cache: NodeCache) -> Iterator[ChunkedDevice]:
    """The device under test."""
    with closing(ChunkedDevice(reader, cache, store="memory")) as device:
        yield device


def read(device: ChunkedDevice, chunk: int, count: int = 1) -> bytes:
    """Read whole chunks."""
    return b"".join(device.read_views(chunk * CHUNK, count * CHUNK))


def settle(device: ChunkedDevice) -> None:
    """Wait until nothing is prefetched any more."""
    assert device.wait_for_prefetch(20)


def test_one_fetch_for_many_readers(device: ChunkedDevice, reader: WatchedReader) -> None:
    """However many readers miss a chunk at once, it is fetched once."""
    reader.gate.clear()
    with ThreadPoolExecutor(8) as pool:
        results = [pool.submit(read, device, 7) for _ in range(8)]
        assert reader.begun.acquire(timeout=10)
        reader.gate.set()
        assert all(r.result(20) == CONTENTS[7 * CHUNK : 8 * CHUNK] for r in results)
    assert reader.fetched == [7]


def test_overlapping_readers(device: ChunkedDevice, reader: WatchedReader) -> None:
    """Readers of overlapping ranges wait for each other's chunks, never for each other."""
    source = random.Random(5)
    start = threading.Barrier(6)

    def work(seed: int) -> None:
        del seed
        start.wait()
        for _ in range(40):
            first = source.randrange(COUNT - 12)
            assert read(device, first, 12) == CONTENTS[first * CHUNK : (first + 12) * CHUNK]

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    settle(device)
    assert len(reader.fetched) == len(set(reader.fetched))


def test_neighbours_are_one_fetch(device: ChunkedDevice, reader: WatchedReader) -> None:
    """Chunks that miss together are fetched together, around those that are there."""
    read(device, 20)
    read(device, 16, 10)
    assert reader.calls == [[20], [16, 17, 18, 19, 21, 22, 23, 24, 25]]


def test_failure_reaches_all_and_stays_with_none(
    device: ChunkedDevice, reader: WatchedReader
) -> None:
    """All who wait for a fetch get its error; the next read fetches afresh."""
    reader.gate.clear()
    reader.failure = Unavailable("no network")
    with ThreadPoolExecutor(4) as pool:
        results: list[Future[bytes]] = [pool.submit(read, device, 3)]
        assert reader.begun.acquire(timeout=10)
        results += [pool.submit(read, device, 3) for _ in range(3)]
        reader.gate.set()
        for result in results:
            with pytest.raises(Unavailable, match="no network"):
                result.result(20)
    with pytest.raises(Unavailable):
        read(device, 3)
    reader.failure = None
    assert read(device, 3) == CONTENTS[3 * CHUNK : 4 * CHUNK]


def test_outage(device: ChunkedDevice, reader: WatchedReader) -> None:
    """During an outage what is warm is served; afterwards all is."""
    read(device, 0, 4)
    reader.failure = Unavailable("no network")
    assert read(device, 0, 4) == CONTENTS[: 4 * CHUNK]
    assert device.read_warm(2 * CHUNK, CHUNK) is not None
    assert device.read_warm(3 * CHUNK, 2 * CHUNK) is None
    with pytest.raises(Unavailable):
        read(device, 3, 2)
    device.prefetch(0, device.size)
    settle(device)
    reader.failure = None
    assert read_all(device) == CONTENTS


def test_failed_prefetch_is_not_the_readers(device: ChunkedDevice, reader: WatchedReader) -> None:
    """A reader that waited for a prefetch which failed fetches for itself."""
    reader.gate.clear()
    reader.failure = Unavailable("no network")
    device.prefetch(9 * CHUNK, CHUNK)
    assert reader.begun.acquire(timeout=10)
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(read, device, 9)

        class Once(Unavailable):
            pass

        # the prefetch, which is at the gate, fails; the reader's own fetch does not
        original = reader.fetch

        def fetch(chunks: list[int], deliver: object) -> None:
            reader.failure = None
            original(chunks, deliver)  # type: ignore[arg-type]

        reader.fetch = fetch  # type: ignore[assignment,method-assign]
        reader.gate.set()
        assert result.result(20) == CONTENTS[9 * CHUNK : 10 * CHUNK]


def test_random_reads_fetch_nothing_more(device: ChunkedDevice, reader: WatchedReader) -> None:
    """Random reads cost no chunk that was not asked for."""
    source = random.Random(6)
    touched = set()
    for _ in range(150):
        offset = source.randrange(device.size - 4096)
        device.read_views(offset, 4096)
        touched |= {offset // CHUNK, (offset + 4095) // CHUNK}
    settle(device)
    assert set(reader.fetched) == touched


@pytest.mark.parametrize("size", [4096, 5000, CHUNK, 3 * CHUNK])
def test_sequential_reads_are_met(device: ChunkedDevice, reader: WatchedReader, size: int) -> None:
    """A reader in order finds its chunks fetched ahead, in growing pieces, up to a bound."""
    misses = 0
    for offset in range(0, device.size - size, size):
        if device.read_warm(offset, size) is None:
            misses += 1
            device.read_views(offset, size)
        settle(device)
        done = -(-(offset + size) // CHUNK) * CHUNK
        ahead = max(reader.fetched) * CHUNK - done
        assert ahead <= max(done, FIRST_WINDOW)
    assert misses <= 4
    assert max(map(len, reader.calls)) * CHUNK > LARGEST_PIECE // 4
    assert max(map(len, reader.calls)) * CHUNK <= LARGEST_PIECE
    assert len(reader.fetched) == len(set(reader.fetched))


def test_prefetch(device: ChunkedDevice, reader: WatchedReader) -> None:
    """What was prefetched is warm."""
    device.prefetch(10 * CHUNK + 5, 30 * CHUNK)
    settle(device)
    assert sorted(reader.fetched) == list(range(10, 41))
    assert device.read_warm(10 * CHUNK, 31 * CHUNK) is not None


def test_zeros_are_never_fetched(tmp_path: Path, cache: NodeCache) -> None:
    """Chunks of zeros are warm from the start, and holes."""
    contents = bytes(64 * CHUNK) + CONTENTS[: 2 * CHUNK] + bytes(70 * CHUNK + 100)
    reader = WatchedReader(store_image(contents, tmp_path))
    with closing(ChunkedDevice(reader, cache, store="other")) as device:
        warm = device.read_warm(0, 64 * CHUNK)
        assert warm is not None
        assert not any(b"".join(warm))
        device.prefetch(0, device.size)
        settle(device)
        assert read_all(device) == contents
        assert sorted(set(reader.fetched)) == [64, 65]
        kinds = [(e.length, e.zero) for e in device.extents(0, device.size)]
        assert kinds == [(64 * CHUNK, True), (2 * CHUNK, False), (70 * CHUNK + 100, True)]


def test_restart_is_warm(stored: ChunkReader, cache: NodeCache) -> None:
    """Another device over the same cache fetches nothing."""
    with closing(ChunkedDevice(stored, cache, store="memory")) as device:
        assert read_all(device) == CONTENTS
    again = WatchedReader(stored)
    with closing(ChunkedDevice(again, cache, store="memory")) as device:
        assert read_all(device) == CONTENTS
        settle(device)
    assert again.calls == []
    with closing(ChunkedDevice(again, cache, store="another")) as device:
        read(device, 0)
    assert again.calls == [[0]]


def test_builds_share_their_parents_chunks(tmp_path: Path, cache: NodeCache) -> None:
    """What a parent's export cached, a child's export finds."""
    storage = MemoryStorageProvider()
    contents = CONTENTS[: 20 * CHUNK]
    parent = store_image(contents, tmp_path, storage=storage)
    changed = contents[: 5 * CHUNK] + b"new" + contents[5 * CHUNK + 3 :]
    child = WatchedReader(
        store_image(
            changed,
            tmp_path,
            storage=storage,
            build_id="22222222-2222-4222-8222-222222222222",
            parent=parent.index,
        )
    )
    with closing(ChunkedDevice(parent, cache, store="memory")) as device:
        read_all(device)
    with closing(ChunkedDevice(child, cache, store="memory")) as device:
        assert read_all(device) == changed
        settle(device)
    assert child.fetched == [5]


def test_damaged_chunk(tmp_path: Path, cache: NodeCache) -> None:
    """A damaged chunk is Corrupt for its readers only, and never cached."""
    storage = MemoryStorageProvider()
    reader = store_image(CONTENTS[: 40 * CHUNK], tmp_path, storage=storage)
    ref = reader.index.lookup(30)
    assert ref is not None
    path = reader.index.packs[0].path
    good, status = storage.contents[path]
    bad = bytearray(good)
    bad[ref.offset + ref.length // 2] ^= 1
    storage.contents[path] = (bytes(bad), status)
    with closing(ChunkedDevice(reader, cache, store="memory")) as device:
        assert read(device, 29) == CONTENTS[29 * CHUNK : 30 * CHUNK]
        with pytest.raises(Corrupt) as caught:
            read(device, 28, 4)
        assert ARTIFACT in str(caught.value)
        assert read(device, 31) == CONTENTS[31 * CHUNK : 32 * CHUNK]
        storage.contents[path] = (good, status)
        assert read(device, 28, 4) == CONTENTS[28 * CHUNK : 32 * CHUNK]


def test_uncached_memory_is_bounded(reader: WatchedReader) -> None:
    """Without a cache, chunks stay for a while, and not for ever."""
    with closing(ChunkedDevice(reader, None, store="memory")) as device:
        device._recent._limit = 8 * CHUNK
        for chunk in (3, 90, 3, 90):
            assert read(device, chunk) == CONTENTS[chunk * CHUNK : (chunk + 1) * CHUNK]
        assert reader.fetched == [3, 90]
        assert device.read_warm(3 * CHUNK, CHUNK) is not None
        assert read(device, 100, 40) == CONTENTS[100 * CHUNK : 140 * CHUNK]
        assert device._recent._size <= 8 * CHUNK
        assert device.read_warm(3 * CHUNK, CHUNK) is None


def test_full_cache_serves(reader: WatchedReader, tmp_path: Path) -> None:
    """A cache that takes nothing changes nothing for readers."""
    with (
        closing(NodeCache(tmp_path / "none", 0)) as cache,
        closing(ChunkedDevice(reader, cache, store="memory")) as device,
    ):
        assert read_all(device) == CONTENTS
        assert read(device, COUNT - 1) == CONTENTS[-CHUNK:]


def test_tables_are_emptied_and_filled_again(device: ChunkedDevice, cache: NodeCache) -> None:
    """The cache may empty a device's table at any time; reads go on, warm."""
    expected = read(device, 0, 8)
    cache.tidy()
    assert not device._views
    views = device.read_warm(0, 8 * CHUNK)
    assert views is not None
    assert b"".join(views) == expected
