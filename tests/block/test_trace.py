"""Traces: their form, merging, what a device records, and what a replay brings."""

from __future__ import annotations

import json
import random
import threading
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.block.helpers import CHUNK, WatchedReader, store_image

from bootstream.block.chunked import ChunkedDevice
from bootstream.block.counters import Counters
from bootstream.block.recorder import Origin, Recorder
from bootstream.block.trace import (
    MAX_SIZE,
    MOST_TOUCHES,
    Touch,
    Trace,
    extend,
    fold,
    merge,
)
from bootstream.errors import BootstreamError, Corrupt, InvalidInput

DIGEST = "ab" * 32
COUNT = 256


def trace_of(*chunks: int, boots: int = 1, step: int = 0) -> Trace:
    """A trace of chunks in this order, ``step`` milliseconds apart."""
    return Trace(DIGEST, CHUNK, fold((n * step, c) for n, c in enumerate(chunks)), boots)


chunk_lists = st.lists(st.integers(0, 300), unique=True, max_size=40)


@given(chunk_lists, st.integers(1, 9), st.integers(0, 3))
def test_what_is_encoded_is_decoded(chunks: list[int], boots: int, step: int) -> None:
    """A round trip keeps everything, the order first of all."""
    trace = trace_of(*chunks, boots=boots, step=step)
    assert Trace.decode(trace.encode(), name="t") == trace
    assert list(trace.chunks()) == chunks
    assert trace.chunk_count == len(chunks)
    assert trace.end == max(chunks, default=-1) + 1


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)
KEYS = ["version", "index_sha256", "chunk_size", "boots", "touches"]


@given(
    st.binary(max_size=60)
    | json_values.map(lambda value: json.dumps(value).encode())
    | st.fixed_dictionaries(
        {key: json_values | st.just(good) for key, good in zip(
            KEYS, [1, DIGEST, CHUNK, 1, [[0, 0, 1]]], strict=True)}
    ).map(lambda value: json.dumps(value).encode())
)  # fmt: skip
def test_junk_is_corrupt(data: bytes) -> None:
    """Whatever it is, it is read, or refused by an error of ours."""
    try:
        trace = Trace.decode(data, name="t")
    except (Corrupt, InvalidInput):
        return
    assert Trace.decode(trace.encode(), name="t") == trace


@given(chunk_lists, st.data())
def test_damage_is_corrupt(chunks: list[int], data: st.DataObject) -> None:
    """A byte that changed, or an end that lacks, never raises anything else."""
    encoded = bytearray(trace_of(*chunks, step=2).encode())
    at = data.draw(st.integers(0, len(encoded) - 1))
    encoded[at] = data.draw(st.integers(0, 255))
    for damaged in (bytes(encoded), bytes(encoded[:at])):
        with suppress(Corrupt, InvalidInput):
            Trace.decode(damaged, name="t")


@pytest.mark.parametrize(
    "changes",
    [
        {"touches": [[0, 0, 2], [1, 1, 1]]},
        {"touches": [[5, 0, 1], [4, 1, 1]]},
        {"touches": [[0, 0, 0]]},
        {"touches": [[0, -1, 1]]},
        {"touches": [[0, 0, 1 << 60]]},
        {"touches": [[0, 0, True]]},
        {"touches": [[0, 0]]},
        {"touches": {"0": 1}},
        {"touches": [[0, n, 1] for n in range(MOST_TOUCHES + 1)]},
        {"index_sha256": "xy" * 32},
        {"index_sha256": 5},
        {"chunk_size": 0},
        {"chunk_size": 1.5},
        {"boots": 0},
        {"version": 0},
        {"version": True},
        {"version": "1"},
    ],
)
def test_what_cannot_be(changes: dict[str, object]) -> None:
    """Each of these alone makes it no trace."""
    value = json.loads(trace_of(1, 2).encode()) | changes
    with pytest.raises(Corrupt):
        Trace.decode(json.dumps(value).encode(), name="t")


def test_a_newer_version_is_not_damage() -> None:
    """Whoever reads it is told to upgrade; unknown keys are no reason."""
    value = json.loads(trace_of(1).encode())
    with pytest.raises(InvalidInput, match="newer"):
        Trace.decode(json.dumps(value | {"version": 2}).encode(), name="t")
    assert Trace.decode(json.dumps(value | {"more": [1]}).encode(), name="t") == trace_of(1)
    with pytest.raises(Corrupt, match="larger"):
        Trace.decode(b" " * (MAX_SIZE + 1), name="t")


@given(st.lists(chunk_lists, min_size=1, max_size=5))
def test_merging_keeps_what_most_boots_touch(boots: list[list[int]]) -> None:
    """More than half, each chunk once; one trace alone stays as it is."""
    merged = merge([trace_of(*chunks, step=1) for chunks in boots])
    kept = list(merged.chunks())
    assert len(kept) == len(set(kept))
    for chunk in set().union(*boots):
        count = sum(chunk in chunks for chunks in boots)
        assert (chunk in kept) == (count > len(boots) / 2)
    assert merged.boots == len(boots)
    assert Trace.decode(merged.encode(), name="t") == merged


def test_merging_orders_by_the_median() -> None:
    """One odd boot does not move a chunk; a merged trace weighs as much as its boots."""
    slow = Trace(DIGEST, CHUNK, (Touch(900, 2, 1), Touch(950, 1, 1)))
    merged = merge([trace_of(1, 2, step=10), trace_of(1, 2, step=10), slow])
    assert list(merged.chunks()) == [1, 2]
    assert list(merge([merged, trace_of(9), trace_of(9)]).chunks()) == [1, 2]
    assert list(merge([merged, trace_of(9), trace_of(1)], share=0.9).chunks()) == []
    with pytest.raises(InvalidInput):
        merge([])
    with pytest.raises(InvalidInput, match="same build"):
        merge([trace_of(1), Trace("cd" * 32, CHUNK, ())])


@given(chunk_lists, chunk_lists)
def test_extending_adds_behind(before: list[int], more: list[int]) -> None:
    """What is there keeps its place; the rest follows in its own order."""
    extended = extend(trace_of(*before, step=3), more)
    expected = [*before, *(chunk for chunk in more if chunk not in before)]
    assert list(extended.chunks()) == expected
    assert Trace.decode(extended.encode(), name="t") == extended


# -- devices ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, WatchedReader]:
    """256 chunks; every eighth is zeros."""
    noise = random.Random(5)
    contents = b"".join(
        bytes(CHUNK) if n % 8 == 7 else noise.randbytes(CHUNK) for n in range(COUNT)
    )
    return contents, WatchedReader(store_image(contents, tmp_path_factory.mktemp("image")))


def scattered(seed: int, count: int) -> list[int]:
    """Chunks of a boot: here a few, there a few."""
    noise = random.Random(seed)
    found: list[int] = []
    while len(found) < count:
        start = noise.randrange(COUNT - 3)
        found += [c for c in range(start, start + noise.randrange(1, 4)) if c not in found]
    return found


def boot(device: ChunkedDevice, chunks: list[int], contents: bytes) -> None:
    """Read part of each chunk, in order."""
    for chunk in chunks:
        offset = chunk * CHUNK + 100
        data = bytearray(4096)
        device.read_into(memoryview(data), offset)
        assert data == contents[offset : offset + 4096]


def test_a_trace_is_what_was_read(image: tuple[bytes, WatchedReader]) -> None:
    """The chunks in the order of their first reads, without zeros, and nothing read ahead."""
    contents, reader = image
    chunks = scattered(1, 40)
    device = ChunkedDevice(reader, None, store="s")
    try:
        boot(device, chunks, contents)
        boot(device, chunks[::-1], contents)
        trace = device.trace()
        assert list(trace.chunks()) == [chunk for chunk in chunks if chunk % 8 != 7]
        assert (trace.index_sha256, trace.chunk_size) == (reader.index.digest, CHUNK)
        assert Trace.decode(trace.encode(), name="t") == trace
        assert device.trace(seconds=-1).chunk_count == 0
    finally:
        device.close()


def test_a_replay_brings_just_that_in_few_requests(image: tuple[bytes, WatchedReader]) -> None:
    """All that was traced comes, once, by fewer requests; the second boot asks for nothing."""
    contents, reader = image
    chunks = scattered(2, 60)
    cold = ChunkedDevice(reader, None, store="s")
    try:
        boot(cold, chunks, contents)
        trace = cold.trace()
        assert cold.counters.waits > 20
        asked = cold.counters.requests + cold.counters.prefetches
    finally:
        cold.close()
    reader.calls.clear()
    warm = ChunkedDevice(reader, None, store="s")
    try:
        warm.replay(trace)
        assert warm.wait_for_prefetch(20)
        assert sorted(reader.fetched) == sorted(trace.chunks())
        assert len(reader.calls) < asked / 2
        boot(warm, chunks, contents)
        assert (warm.counters.waits, warm.counters.requests) == (0, 0)
        assert warm.recorder.wasted == 0
        assert {t.origin for t in warm.recorder.touches if t.chunk % 8 != 7} == {Origin.PREFETCH}
        with pytest.raises(InvalidInput, match="other contents"):
            warm.replay(trace_of(1))
    finally:
        warm.close()


def test_nothing_is_read_ahead_of_what_a_trace_covers(
    image: tuple[bytes, WatchedReader],
) -> None:
    """In order through a traced part: no byte more. Behind its end read-ahead begins anew."""
    contents, reader = image
    device = ChunkedDevice(reader, None, store="s")
    try:
        device.replay(Trace(reader.index.digest, CHUNK, (Touch(0, 0, 64),)))
        assert device.wait_for_prefetch(20)
        boot(device, list(range(64)), contents)
        assert device.wait_for_prefetch(20)
        assert device.recorder.wasted == 0
        assert device.counters.requests == 0
        boot(device, list(range(64, 90)), contents)
        assert device.recorder.origins.count(Origin.PREFETCH, 64) > 0
    finally:
        device.close()


def test_an_arranged_trace_is_the_same_chunks() -> None:
    """Windows are sorted, one after the other; what is first comes soon."""
    chunks = random.Random(3).sample(range(5000), 2000)
    arranged = trace_of(*chunks).arranged()
    assert sorted(arranged) == sorted(chunks)
    assert arranged[:16] == sorted(chunks[:16])
    assert arranged[16:48] == sorted(chunks[16:48])
    assert arranged[-400:] != chunks[-400:]


def test_origins_and_waste(image: tuple[bytes, WatchedReader]) -> None:
    """A demanded chunk is demand although it is touched before it comes; waste is counted."""
    contents, reader = image
    device = ChunkedDevice(reader, None, store="s")
    try:
        device.replay(Trace(reader.index.digest, CHUNK, (Touch(0, 64, 4),)))
        assert device.wait_for_prefetch(20)
        assert device.recorder.wasted == 4
        boot(device, [3, 65, 7], contents)
        origins = {touch.chunk: touch.origin for touch in device.recorder.touches}
        assert origins == {3: Origin.DEMAND, 65: Origin.PREFETCH, 7: Origin.CACHE}
        assert device.recorder.wasted == 3
    finally:
        device.close()


def test_the_first_touch_calls_once() -> None:
    """Before it, at it, and never again; whoever comes later is called at once."""
    recorder = Recorder(16)
    calls: list[str] = []
    recorder.on_first_touch(lambda: calls.append("first"))
    assert calls == []
    recorder.touch(3, 4)
    recorder.touch(5, 5)
    recorder.on_first_touch(lambda: calls.append("late"))
    assert calls == ["first", "late"]


def test_touches_of_many_threads_are_one_each() -> None:
    """Every chunk once, the moments never going back in the trace."""
    recorder = Recorder(512)

    def touch() -> None:
        for chunk in range(512):
            recorder.touch(chunk, min(511, chunk + 1))

    threads = [threading.Thread(target=touch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    trace = recorder.trace(DIGEST, CHUNK, lambda _chunk: False, seconds=60)
    assert sorted(trace.chunks()) == list(range(512))
    assert Trace.decode(trace.encode(), name="t") == trace


def test_the_recorder_takes_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is beyond the bound is left out, and said to be; touched chunks count still."""
    monkeypatch.setattr("bootstream.block.recorder.MOST_CHUNKS", 4)
    monkeypatch.setattr("bootstream.block.recorder._MOST_EVENTS", 1)
    now = 0.0
    recorder = Recorder(16, clock=lambda: now)
    recorder.touch(0, 3)
    before = recorder.left_out
    recorder.touch(4, 9)
    assert (before, recorder.left_out) == (False, True)
    assert len(recorder.touches) == 4
    assert sum(recorder.touched) == 10
    now = 1.0
    for chunk in range(3):
        recorder.wait(0.0, chunk, 1)
        recorder.request(0.0, chunk, 1, CHUNK, prefetch=False)
    recorder.wait(0.995, 5, 1)
    assert (len(recorder.waits), len(recorder.requests)) == (1, 1)


@given(st.lists(st.floats(0, 500), min_size=1, max_size=60), st.sampled_from([50, 90, 99, 100]))
def test_percentiles_of_waits(waits: list[float], percent: int) -> None:
    """Never less than the exact one, and not more than a tenth above it."""
    counters = Counters()
    for seconds in waits:
        counters.waited(seconds)
    exact = sorted(waits)[-(-len(waits) * percent // 100) - 1]
    assert exact * 0.999 <= counters.wait_percentile(percent) <= max(exact * 1.0906, 1.1e-5)
    assert counters.waits == len(waits)
    assert Counters().wait_percentile(50) == 0


def test_errors_name_the_trace() -> None:
    """What is damaged says which object it is and how to be rid of it."""
    with pytest.raises(BootstreamError) as caught:
        Trace.decode(b"{", name="b/rootfs.ext4.trace")
    assert caught.value.object == "b/rootfs.ext4.trace"
    assert "trace rm" in str(caught.value.remedy)


def test_folding_joins_neighbours_of_one_moment() -> None:
    """Neither neighbours of other moments, nor others of the same; moments never go back."""
    assert fold([(0, 1), (0, 2), (1, 3), (1, 5), (0, 6)]) == (
        Touch(0, 1, 2),
        Touch(1, 3, 1),
        Touch(1, 5, 2),
    )
