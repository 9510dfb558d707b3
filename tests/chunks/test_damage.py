"""Damage in the store: found on every way out, named, and never handed on."""

from __future__ import annotations

from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.chunks.helpers import (
    CHUNK,
    NAME,
    WatchedStorage,
    build_id,
    chunk_of,
    naive_entries,
    publish,
    read_back,
    seal,
)

from bootstream.chunks.index import Index
from bootstream.chunks.names import artifact_path, index_path, pack_path
from bootstream.chunks.reader import ChunkReader, export_artifact, load_index, verify_artifact
from bootstream.errors import BootstreamError, Corrupt, InvalidInput, ObjectNotFound, Unavailable
from bootstream.storage.memory import MemoryStorageProvider
from bootstream.storage.protocol import WritableBuffer

CONTENT = b"".join([chunk_of(1), bytes(CHUNK), chunk_of(2), chunk_of(1), chunk_of(3)[:100]])
PACK = pack_path(build_id(1), NAME)
INDEX = index_path(build_id(1), NAME)


def replace(storage: MemoryStorageProvider, path: str, data: bytes) -> None:
    """Change an object in the store."""
    with storage.lock:
        storage.replace(path, data)


@pytest.fixture
def storage() -> WatchedStorage:
    """An empty store."""
    return WatchedStorage()


@pytest.mark.parametrize("form", ["chunked", "raw"])
def test_every_byte_of_a_pack(storage: WatchedStorage, tmp_path: Path, form: str) -> None:
    """A changed byte anywhere in a pack is Corrupt on reading, and verify names the chunk."""
    _, index = publish(storage, tmp_path, CONTENT, form=form)
    path = PACK if form == "chunked" else artifact_path(build_id(1), NAME)
    sound = storage.contents[path][0]
    for position in range(0, len(sound), 1 if form == "chunked" else 61):
        changed = bytearray(sound)
        changed[position] ^= 0xFF
        replace(storage, path, bytes(changed))
        problems = verify_artifact(storage, index, NAME, threads=1).problems
        assert len(problems) == 1
        if form == "raw" and CHUNK <= position < 2 * CHUNK:
            # the index says zeros, so nobody reads it; verify sees it all the same
            assert "is not zeros from byte 4096" in problems[0]
            continue
        assert path in problems[0]
        with pytest.raises(Corrupt) as caught:
            read_back(storage, index)
        assert caught.value.object == path
        assert "chunk " in caught.value.message
        assert f"{build_id(1)}/{NAME}" in caught.value.message
    replace(storage, path, sound)
    assert verify_artifact(storage, index, NAME).problems == []


def test_every_byte_of_an_index_in_the_store(storage: WatchedStorage, tmp_path: Path) -> None:
    """The same for the index, also when its own checksum was made to fit."""
    summary, _ = publish(storage, tmp_path, CONTENT)
    sound = storage.contents[INDEX][0]
    for position in range(len(sound) - 32):
        changed = bytearray(sound)
        changed[position] ^= 1
        for data in (bytes(changed), seal(changed)):
            replace(storage, INDEX, data)
            with pytest.raises((Corrupt, InvalidInput)):
                load_index(
                    storage, build_id(1), NAME,
                    sha256=summary.index_sha256, size=summary.index_size,
                )  # fmt: skip


def test_truncated_packs(storage: WatchedStorage, tmp_path: Path) -> None:
    """A pack that ends early, or goes on, is a problem that verify names."""
    _, index = publish(storage, tmp_path, CONTENT)
    sound = storage.contents[PACK][0]
    for length in range(len(sound)):
        replace(storage, PACK, sound[:length])
        with pytest.raises(Corrupt, match="ends before"):
            read_back(storage, index)
        assert verify_artifact(storage, index, NAME, threads=1).problems
    replace(storage, PACK, sound + b"more")
    assert read_back(storage, index) == CONTENT
    (problem,) = verify_artifact(storage, index, NAME).problems
    assert f"has {len(sound) + 4} bytes where" in problem


def test_a_missing_pack(storage: WatchedStorage, tmp_path: Path) -> None:
    """Reading says that it is missing; verify names it once, and checks the rest."""
    _, parent = publish(storage, tmp_path, b"".join(map(chunk_of, range(300))))
    content = b"".join(map(chunk_of, range(100, 500)))
    _, index = publish(storage, tmp_path, content, number=2, parent=parent)
    storage.open_object(PACK).delete()
    with pytest.raises(ObjectNotFound):
        read_back(storage, index)
    report = verify_artifact(storage, index, NAME)
    assert report.problems == [f"{PACK} is missing, which {index.name} reads from"]
    assert report.chunks == 200


def test_a_pack_that_goes_missing_meanwhile(storage: WatchedStorage, tmp_path: Path) -> None:
    """Also when it goes after verify began."""
    _, index = publish(storage, tmp_path, b"".join(map(chunk_of, range(10))))

    def vanish(path: str, buffer: WritableBuffer, offset: int, count: int) -> int:
        raise ObjectNotFound("it is gone", operation="read object", object=path)

    storage.on_read = vanish
    report = verify_artifact(storage, index, NAME)
    assert report.problems == [f"{PACK} is missing, which {index.name} reads from"]


def test_problems_are_bounded(storage: WatchedStorage, tmp_path: Path) -> None:
    """However much is damaged, the list stays short, and says how much it leaves out."""
    _, index = publish(storage, tmp_path, b"".join(map(chunk_of, range(250))))
    size = len(storage.contents[PACK][0])
    replace(storage, PACK, bytes(size))
    report = verify_artifact(storage, index, NAME)
    assert len(report.problems) == 101
    assert report.problems[-1] == f"and 150 more of {index.name}"
    assert report.chunks == 0


def test_trouble_with_the_store_is_no_damage(storage: WatchedStorage, tmp_path: Path) -> None:
    """What the storage cannot answer is raised as it is, by every reader."""
    _, index = publish(storage, tmp_path, CONTENT)

    def refuse(path: str, buffer: WritableBuffer, offset: int, count: int) -> int:
        raise Unavailable("no answer", operation="read object", object=path)

    storage.on_read = refuse
    for read in (
        lambda: read_back(storage, index),
        lambda: verify_artifact(storage, index, NAME),
        lambda: export_artifact(storage, index, NAME, tmp_path / "target"),
    ):
        with pytest.raises(Unavailable, match="no answer"):
            read()


def test_what_was_wrong_on_the_way_only(storage: WatchedStorage, tmp_path: Path) -> None:
    """Bytes that arrive damaged once are fetched once more, and nobody notices."""
    _, index = publish(storage, tmp_path, CONTENT)
    storage.reads.clear()

    def damage_first(path: str, buffer: WritableBuffer, offset: int, count: int) -> int:
        if len(storage.reads) == 1:
            buffer[count // 2] ^= 0xFF
        return count

    storage.on_read = damage_first
    assert read_back(storage, index) == CONTENT
    assert len(storage.reads) == 2
    ref = index.lookup(2)
    assert ref is not None
    assert storage.reads[1][1:] == (ref.offset, ref.length)  # that chunk alone


def test_damaged_chunks_are_never_delivered(storage: WatchedStorage, tmp_path: Path) -> None:
    """What deliver got before the error is all sound."""
    _, index = publish(storage, tmp_path, b"".join(map(chunk_of, range(6))))
    pack = bytearray(storage.contents[PACK][0])
    ref = index.lookup(3)
    assert ref is not None
    pack[ref.offset + ref.length - 1] ^= 1
    replace(storage, PACK, bytes(pack))
    got: dict[int, bytes] = {}
    with pytest.raises(Corrupt, match="chunk 3 of"):
        ChunkReader(storage, index).fetch(range(6), lambda c, d: got.update({c: bytes(d)}))
    assert got == {n: chunk_of(n) for n in range(3)}


def with_frame(storage: MemoryStorageProvider, folder: Path, frame: bytes) -> Index:
    """An index of one chunk whose frame is ``frame``; the digest stays that of the chunk."""
    publish(storage, folder, chunk_of(1))
    data = bytearray(storage.contents[INDEX][0])
    at = 64 + 8 + 4 + 4
    data[at : at + 4] = len(frame).to_bytes(4, "little")
    replace(storage, PACK, frame)
    return Index.parse(seal(data), name=INDEX)


@pytest.mark.parametrize(
    "frame",
    [
        zstandard.ZstdCompressor(write_content_size=False).compress(chunk_of(1)),
        zstandard.ZstdCompressor().compress(chunk_of(1) + b"x"),
        zstandard.ZstdCompressor().compress(chunk_of(1)[:-1]),
        zstandard.ZstdCompressor().compress(bytes(1 << 30)),  # a bomb in 33 kB: cut to fit
        zstandard.ZstdCompressor().compress(chunk_of(1)) + b"x",
        zstandard.ZstdCompressor().compress(chunk_of(1)) + zstandard.ZstdCompressor().compress(b""),
        b"\x50\x2a\x4d\x18\x04\0\0\0abcd",  # a skippable frame
        zstandard.ZstdCompressor().compress(b""),
        b"\x28\xb5\x2f\xfd",
        b"x",
    ],
    ids=lambda frame: f"{len(frame)}-{frame[:9].hex()}",
)
def test_frames_of_another_kind(storage: WatchedStorage, tmp_path: Path, frame: bytes) -> None:
    """A frame that is not one frame of exactly the chunk is refused, before it is decoded."""
    index = with_frame(storage, tmp_path, frame[: CHUNK + 16 + 64])
    with pytest.raises(Corrupt):
        ChunkReader(storage, index).fetch([0], lambda chunk, data: None)
    assert verify_artifact(storage, index, NAME).problems


@given(st.lists(st.tuples(st.integers(0, 1 << 12), st.integers(0, 255)), min_size=1, max_size=5))
@settings(max_examples=150, deadline=None)
def test_mutated_frames(changes: list[tuple[int, int]]) -> None:
    """Whatever a frame was made into, it gives its chunk or Corrupt."""
    storage, index, sound = _mutable()
    frame = bytearray(sound)
    for position, value in changes:
        frame[position % len(frame)] = value
    replace(storage, PACK, bytes(frame))
    try:
        assert read_back(storage, index) == chunk_of(1)
    except Corrupt:
        pass


_MUTABLE: list[tuple[MemoryStorageProvider, Index, bytes]] = []


@pytest.fixture(autouse=True, scope="module")
def _prepare(tmp_path_factory: pytest.TempPathFactory) -> None:
    storage = MemoryStorageProvider()
    _, index = publish(storage, tmp_path_factory.mktemp("mutable"), chunk_of(1))
    _MUTABLE[:] = [(storage, index, storage.contents[PACK][0])]


def _mutable() -> tuple[MemoryStorageProvider, Index, bytes]:
    return _MUTABLE[0]


@given(st.lists(st.tuples(st.integers(0, 1 << 12), st.integers(0, 255)), max_size=4))
@settings(max_examples=150, deadline=None)
def test_mutated_indexes_never_give_wrong_bytes(changes: list[tuple[int, int]]) -> None:
    """An index made to lie reads as its own digests say, or not at all."""
    storage, _, sound = _mutable()
    replace(storage, PACK, sound)
    data = bytearray(storage.contents[INDEX][0])
    for position, value in changes:
        data[position % len(data)] = value
    try:
        mutant = Index.parse(seal(data), name=INDEX)
        content = read_back(storage, mutant)
        verify_artifact(storage, mutant, NAME, threads=1)
    except BootstreamError:
        return
    assert content in (chunk_of(1), bytes(len(content)))


def test_ordinals_that_contradict(storage: WatchedStorage, tmp_path: Path) -> None:
    """Caches go by the ordinal: one that does not fit its offset is a problem of its own."""
    publish(storage, tmp_path, chunk_of(1) + chunk_of(2))
    data = bytearray(storage.contents[INDEX][0])
    entries = naive_entries(bytes(data))
    assert len(entries) == 2
    ordinals = 64 + 2 * 8 + 2 * 4
    data[ordinals : ordinals + 8] = (
        data[ordinals + 4 : ordinals + 8] + data[ordinals : ordinals + 4]
    )
    index = Index.parse(seal(data), name=INDEX)
    (problem,) = verify_artifact(storage, index, NAME).problems
    assert "contradict" in problem


def test_the_raw_object_has_the_artifacts_size(storage: WatchedStorage, tmp_path: Path) -> None:
    """Bytes after the end, or a missing object, are problems also where all is zeros."""
    path = artifact_path(build_id(1), NAME)
    _, index = publish(storage, tmp_path, bytes(3 * CHUNK), form="raw")
    replace(storage, path, bytes(3 * CHUNK + 1))
    (problem,) = verify_artifact(storage, index, NAME).problems
    assert "has 12289 bytes where" in problem
    storage.open_object(path).delete()
    (problem,) = verify_artifact(storage, index, NAME).problems
    assert "is missing" in problem
