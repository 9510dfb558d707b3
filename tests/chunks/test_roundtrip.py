"""Write, load, fetch: what comes out is what went in, whatever it was made of."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.chunks.helpers import (
    CHUNK,
    NAME,
    WatchedStorage,
    build_id,
    chunk_of,
    publish,
    read_back,
)

from bootstream.chunks.index import Index
from bootstream.chunks.names import artifact_path, index_path, pack_path
from bootstream.chunks.reader import ChunkReader, export_artifact, load_index, verify_artifact
from bootstream.chunks.report import summarise
from bootstream.chunks.writer import write_artifact
from bootstream.errors import InvalidInput
from bootstream.storage.memory import MemoryStorageProvider
from bootstream.storage.protocol import StorageProvider

images = st.builds(
    lambda seeds, tail: (
        b"".join(chunk_of(s) if s else bytes(CHUNK) for s in seeds)
        + chunk_of(tail)[: tail * 97 % CHUNK]
    ),
    st.lists(st.integers(0, 12), max_size=30),
    st.integers(0, 60),
)


def check(storage: StorageProvider, folder: Path, index: Index, content: bytes) -> None:
    """Everything that reads an artifact agrees with ``content``."""
    assert read_back(storage, index) == content
    assert read_back(storage, index, request_size=1, gap=0) == content
    target = folder / "exported"
    target.write_bytes(b"what was there before" * 10_000)
    export_artifact(storage, index, NAME, target)
    assert target.read_bytes() == content
    report = verify_artifact(storage, index, NAME)
    assert report.problems == []
    assert report.chunks == index.entry_count
    for chunk in range(index.chunk_count):
        piece = content[chunk * index.chunk_size : (chunk + 1) * index.chunk_size]
        assert index.is_zero(chunk) == (not any(piece))
        assert index.chunk_length(chunk) == len(piece)


@given(st.lists(images, min_size=1, max_size=4), st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_generations(
    tmp_path_factory: pytest.TempPathFactory, generations: list[bytes], threads: int
) -> None:
    """Each build has the one before as its parent; all are read through their own index."""
    folder = tmp_path_factory.mktemp("generations")
    storage = MemoryStorageProvider()
    parent: Index | None = None
    made: list[tuple[Index, bytes]] = []
    for number, content in enumerate(generations, 1):
        summary, index = publish(
            storage, folder, content, number=number, parent=parent, threads=threads
        )
        known = {content[i : i + CHUNK] for i in range(0, len(content), CHUNK)}
        held = set() if parent is None else chunks_of(made[-1][1])
        new = {piece for piece in known if any(piece)} - held
        assert summary.new_chunks == len(new)
        assert summary.size == len(content)
        assert index.chunk_count == (
            summary.zero_chunks
            + summary.parent_chunks
            + summary.duplicate_chunks
            + summary.new_chunks
        )
        own = pack_path(build_id(number), NAME)
        assert (own in storage.contents) == bool(new)
        assert summary.stored_bytes == (len(storage.contents[own][0]) if new else 0)
        made.append((index, content))
        parent = index
    for number, (index, content) in enumerate(made, 1):
        check(storage, folder, index, content)
        parts = summarise(index, build_id(number))
        assert [part.kind for part in parts[:2]] == ["zero", "own"]
        assert sum(part.size for part in parts) == len(content)
        assert sum(part.chunks for part in parts) == index.chunk_count
        assert sum(part.distinct for part in parts) == index.entry_count


def chunks_of(content: bytes) -> set[bytes]:
    """The distinct chunks of an image."""
    return {content[i : i + CHUNK] for i in range(0, len(content), CHUNK)}


@given(images)
@settings(max_examples=25, deadline=None)
def test_the_raw_form(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """The object is the artifact; the index finds every chunk in it."""
    folder = tmp_path_factory.mktemp("raw")
    storage = MemoryStorageProvider()
    summary, index = publish(storage, folder, content, form="raw")
    assert storage.contents[artifact_path(build_id(1), NAME)][0] == content
    assert summary.form == "raw"
    assert summary.stored_bytes == len(content)
    assert index.raw
    check(storage, folder, index, content)
    # and a child in the chunked form reads from the raw object
    after = content + chunk_of(99)
    _, child = publish(storage, folder, after, number=2, parent=index)
    check(storage, folder, child, after)


def test_nothing_at_all(tmp_path: Path) -> None:
    """An artifact of no bytes has an index, and no pack."""
    storage = MemoryStorageProvider()
    summary, index = publish(storage, tmp_path, b"")
    assert list(storage.contents) == [index_path(build_id(1), NAME)]
    assert (summary.size, index.chunk_count, index.packs) == (0, 0, ())
    check(storage, tmp_path, index, b"")
    assert [part.size for part in summarise(index, build_id(1))] == [0, 0]


def test_holes_and_zeros_are_the_same(tmp_path: Path) -> None:
    """A sparse file and the same file without holes make the same objects."""
    content = bytearray(3 << 20)
    content[5000:5003] = b"one"
    content[(1 << 20) + 70_000 : (1 << 20) + 70_003] = b"two"
    sparse = tmp_path / "sparse"
    with sparse.open("wb") as file:
        file.truncate(len(content))
        for place in (5000, (1 << 20) + 70_000):
            file.seek(place)
            file.write(content[place : place + 3])
    assert sparse.stat().st_blocks * 512 < len(content)
    stores = []
    for source in (sparse, None):
        storage = MemoryStorageProvider()
        if source is None:
            publish(storage, tmp_path, bytes(content))
        else:
            write_artifact(
                source, build_id=build_id(1), artifact=NAME, storage=storage, chunk_size=CHUNK
            )
        stores.append({path: data for path, (data, _) in storage.contents.items()})
    assert stores[0] == stores[1]


@given(
    st.integers(0, 1 << 20),
    st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(1, 40_000)), max_size=5),
    st.sampled_from([4096, 16384, 65536, 1 << 20]),
)
@settings(max_examples=60, deadline=None)
def test_data_anywhere_between_holes(
    tmp_path_factory: pytest.TempPathFactory,
    size: int,
    places: list[tuple[int, int]],
    chunk_size: int,
) -> None:
    """Data may begin and end anywhere in a chunk, whatever the file system's block is."""
    folder = tmp_path_factory.mktemp("holes")
    path = folder / "sparse"
    content = bytearray(size)
    with path.open("wb") as file:
        file.truncate(size)
        for start, length in places:
            data = b"x" * max(0, min(length, size - start))
            content[start : start + len(data)] = data
            file.seek(start)
            file.write(data)
    storage = MemoryStorageProvider()
    write_artifact(
        path, build_id=build_id(1), artifact=NAME, storage=storage, chunk_size=chunk_size
    )
    check(storage, folder, load_index(storage, build_id(1), NAME), bytes(content))


def test_the_export_is_sparse(tmp_path: Path) -> None:
    """What is zeros takes no room on the disk."""
    storage = MemoryStorageProvider()
    content = chunk_of(1) + bytes(8 << 20) + chunk_of(2)[:9]
    _, index = publish(storage, tmp_path, content)
    target = tmp_path / "exported"
    export_artifact(storage, index, NAME, target)
    assert target.read_bytes() == content
    assert target.stat().st_blocks * 512 < 1 << 20


def test_threads_make_no_difference(tmp_path: Path) -> None:
    """The same input makes the same bytes with any number of threads, parent or not."""
    seeds = [n * n % 700 for n in range(2500)]
    content = b"".join(chunk_of(seed) for seed in seeds)
    changed = chunk_of(5000) + content[CHUNK:-CHUNK] + chunk_of(5001)[:77]
    stores = []
    for threads in (1, 2, 7, 1):
        storage = MemoryStorageProvider()
        _, parent = publish(storage, tmp_path, content, threads=threads)
        publish(storage, tmp_path, changed, number=2, parent=parent, threads=threads)
        stores.append({path: data for path, (data, _) in storage.contents.items()})
    assert all(store == stores[0] for store in stores)


def test_zstd_reads_a_pack(tmp_path: Path) -> None:
    """``zstd -d`` gives the stored chunks end to end: nothing of ours is in between."""
    storage = MemoryStorageProvider()
    content = b"".join(chunk_of(n) for n in (3, 1, 3, 2)) + bytes(CHUNK) + chunk_of(4)[:500]
    publish(storage, tmp_path, content)
    pack = storage.contents[pack_path(build_id(1), NAME)][0]
    result = subprocess.run(["zstd", "-d"], input=pack, capture_output=True, check=True)
    expected = [chunk_of(3), chunk_of(1), chunk_of(2), chunk_of(4)[:500]]
    assert result.stdout == b"".join(expected)
    listed = subprocess.run(
        ["zstd", "-lv", str(write(tmp_path / "pack.zst", pack))],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "Frames: 4\n" in listed.stdout
    assert "Check: None" in listed.stdout


def write(path: Path, data: bytes) -> Path:
    """Write a file; return its path."""
    path.write_bytes(data)
    return path


def test_incompressible_data_costs_a_few_bytes(tmp_path: Path) -> None:
    """Chunks of noise of the largest size stay within the format's bound, and come back."""
    storage = MemoryStorageProvider()
    content = random.Random(1).randbytes((16 << 20) + 5)
    summary, index = publish(storage, tmp_path, content, chunk_size=16 << 20)
    assert summary.stored_bytes < len(content) + 2000
    assert read_back(storage, index) == content


def test_neighbours_are_one_request(tmp_path: Path) -> None:
    """Wanted together and near each other means read together, in bounded pieces."""
    storage = WatchedStorage()
    content = b"".join(chunk_of(n) for n in range(200))
    _, index = publish(storage, tmp_path, content)
    storage.reads.clear()
    got: list[int] = []
    reader = ChunkReader(storage, index)
    reader.fetch(range(100), lambda chunk, data: got.append(chunk))
    assert got == list(range(100))
    assert len(storage.reads) == 1
    storage.reads.clear()
    reader.fetch([0, 3, 5], lambda chunk, data: None)
    assert len(storage.reads) == 1
    storage.reads.clear()
    ChunkReader(storage, index, gap=0).fetch([0, 3, 5], lambda chunk, data: None)
    assert len(storage.reads) == 3
    storage.reads.clear()
    ChunkReader(storage, index, request_size=1000).fetch(range(100), lambda chunk, data: None)
    assert len(storage.reads) > 10
    assert all(length <= 1000 for _, _, length in storage.reads)


def test_equal_chunks_are_fetched_once(tmp_path: Path) -> None:
    """Chunks in one place are one piece of one request, delivered to each."""
    storage = WatchedStorage()
    _, index = publish(storage, tmp_path, chunk_of(1) * 3 + chunk_of(2))
    storage.reads.clear()
    got: dict[int, bytes] = {}
    ChunkReader(storage, index).fetch([0, 1, 2, 3], lambda c, d: got.update({c: bytes(d)}))
    assert got == {0: chunk_of(1), 1: chunk_of(1), 2: chunk_of(1), 3: chunk_of(2)}
    assert len(storage.reads) == 1


def test_zeros_cannot_be_fetched(tmp_path: Path) -> None:
    """They are stored nowhere: asking for them is a mistake of the caller."""
    storage = MemoryStorageProvider()
    _, index = publish(storage, tmp_path, bytes(CHUNK))
    with pytest.raises(InvalidInput, match="chunk 0 is zeros"):
        ChunkReader(storage, index).fetch([0], lambda chunk, data: None)


def test_the_picture_names_ancestors(tmp_path: Path) -> None:
    """Parts are by build, with what they take in the store."""
    storage = MemoryStorageProvider()
    _, first = publish(storage, tmp_path, chunk_of(1) + chunk_of(2))
    _, second = publish(storage, tmp_path, chunk_of(1) + chunk_of(3), number=2, parent=first)
    content = chunk_of(3) + bytes(CHUNK) + chunk_of(1) + chunk_of(4) * 2 + chunk_of(1)[:10]
    summary, third = publish(storage, tmp_path, content, number=3, parent=second)
    parts = {part.build_id: part for part in summarise(third, build_id(3))}
    assert parts[None].chunks == 1
    assert (parts[build_id(3)].chunks, parts[build_id(3)].distinct) == (3, 2)
    assert parts[build_id(3)].size == 2 * CHUNK + 10
    assert parts[build_id(3)].stored_size == summary.stored_bytes
    assert (parts[build_id(2)].kind, parts[build_id(2)].chunks) == ("ancestor", 1)
    assert (parts[build_id(1)].kind, parts[build_id(1)].chunks) == ("ancestor", 1)
    assert len(parts) == 4
