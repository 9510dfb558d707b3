"""The figure of fragmentation, and plans that lower it, on indexes made up."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from bootstream.chunks.build import IndexBuilder
from bootstream.chunks.fetch import REQUEST_SIZE
from bootstream.chunks.fragmentation import measure, plan
from bootstream.chunks.index import Index, Pack

CHUNK = 64 << 10
IDS = [f"11111111-1111-4111-8111-{number:012}" for number in range(40)]


def parse(builder: IndexBuilder) -> Index:
    """The finished index."""
    pieces = builder.finish()
    return Index.parse(b"".join(iter(lambda: bytes(pieces.read(1 << 20)), b"")), name="index")


def history(seed: int, chunks: int, builds: int, *, repeats: bool, frame: int) -> Index:
    """An index after some commits of random chunks; a frame takes up to ``frame`` bytes."""
    source = random.Random(seed)
    size = chunks * CHUNK
    contents = [0 if source.random() < 0.2 else chunk + 1 for chunk in range(chunks)]
    index: Index | None = None
    for build in range(builds):
        builder = IndexBuilder(Pack(IDS[build], "a", raw=False), size, CHUNK, index)
        for chunk in range(chunks):
            if build and source.random() < 0.1:
                fresh = source.randrange(1, 9) if repeats else chunk + 1 + build * chunks
                contents[chunk] = fresh
            if not contents[chunk]:
                builder.add_zeros(1)
                continue
            digest = contents[chunk].to_bytes(32, "little")
            if not builder.refer(digest):
                builder.store(source.randrange(1, frame), digest)
        index = parse(builder)
    assert index is not None
    return index


def compacted(index: Index, rewrite: set[int]) -> Index:
    """What compacting makes of it, by the writer's own means."""
    own = Pack(IDS[-1], "a", raw=False)
    builder = IndexBuilder(own, index.size, CHUNK, index, rewrite=rewrite)
    for chunk in range(index.chunk_count):
        ref = index.lookup(chunk)
        if ref is None or index.positions[chunk] - 1 not in rewrite:
            builder.inherit(chunk, 1)
        elif not builder.refer(ref.sha256):
            builder.store(ref.length, ref.sha256)
    return parse(builder)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    chunks=st.integers(1, 300),
    builds=st.integers(1, 12),
    budget=st.floats(1, 6),
    frame=st.sampled_from([2000, CHUNK]),
)
def test_budget_is_kept(seed: int, chunks: int, builds: int, budget: float, frame: int) -> None:
    """Where no chunk is repeated, every budget is reached, and 1 is what a first build has."""
    index = history(seed, chunks, builds, repeats=False, frame=frame)
    before = measure(index)
    assert before.requests >= before.ideal
    rewrite = plan(index, budget)
    if before.figure <= budget:
        assert not rewrite
    after = measure(compacted(index, rewrite))
    assert after.ideal == before.ideal
    assert after.figure <= budget
    assert measure(history(seed, chunks, 1, repeats=False, frame=frame)).figure == 1


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1 << 30), builds=st.integers(2, 12), budget=st.floats(1, 3))
def test_repeated_chunks(seed: int, builds: int, budget: float) -> None:
    """With chunks that stand in many places a plan never makes it worse, and always ends."""
    index = history(seed, 200, builds, repeats=True, frame=CHUNK)
    rewrite = plan(index, budget)
    assert measure(compacted(index, rewrite)).figure <= max(budget, measure(index).figure)


def test_a_smaller_budget_costs_more() -> None:
    """Bytes that are stored anew grow as the budget shrinks, and all is the most."""
    index = history(5, 600, 12, repeats=False, frame=CHUNK)
    costs = [
        sum(index.lengths[entry] for entry in plan(index, budget))
        for budget in (99.0, 6.0, 4.0, 2.0, 1.5, 1.0)
    ]
    assert costs[0] == 0
    assert costs == sorted(costs)
    assert costs[-1] <= sum(index.lengths)
    assert index.size > 8 * REQUEST_SIZE


def test_nothing_to_read() -> None:
    """An image of zeros, or of nothing, has the figure 1."""
    for size in (0, 10 * CHUNK):
        builder = IndexBuilder(Pack(IDS[0], "a", raw=False), size, CHUNK, None)
        builder.add_zeros(size // CHUNK)
        assert measure(parse(builder)).figure == 1
