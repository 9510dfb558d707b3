"""The cache of indexes: what it gives is what the manifest names, or comes from the store."""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.block.helpers import ARTIFACT, BUILD, CHUNK, largest_file, store_image

from bootstream.block.indexes import IndexCache
from bootstream.chunks.index import Index
from bootstream.chunks.names import index_path
from bootstream.errors import Corrupt, ObjectNotFound
from bootstream.storage.memory import MemoryStorageProvider

LIMIT = 1 << 20


class Store:
    """A store with one index, and what a manifest says of it."""

    def __init__(self, folder: Path, seed: int = 1) -> None:
        self.storage = MemoryStorageProvider()
        contents = random.Random(seed).randbytes(4 * CHUNK)
        self.index = store_image(contents, folder, storage=self.storage).index
        self.size = self.storage.open_object(index_path(BUILD, ARTIFACT)).size()

    def load(self, cache: IndexCache) -> Index:
        """Load it by way of the cache."""
        return cache.load(self.storage, BUILD, ARTIFACT, sha256=self.index.digest, size=self.size)

    def empty(self) -> None:
        """Take it away: what is loaded now comes from the cache."""
        self.storage.open_object(index_path(BUILD, ARTIFACT)).delete()


def test_once_is_enough(tmp_path: Path) -> None:
    """The second time nobody asks the store; the file is private."""
    store = Store(tmp_path)
    cache = IndexCache(tmp_path / "a" / "indexes", LIMIT)
    assert store.load(cache).digest == store.index.digest
    store.empty()
    again = store.load(IndexCache(tmp_path / "a" / "indexes", LIMIT))
    assert again.digest == store.index.digest
    assert again.name == store.index.name
    (path,) = (tmp_path / "a" / "indexes").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "damage",
    [
        lambda path, data: path.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:]),
        lambda path, data: path.write_bytes(data[:-1]),
        lambda path, data: path.write_bytes(b""),
        lambda path, data: (path.unlink(), path.mkdir()),
    ],
    ids=["flipped", "short", "empty", "folder"],
)
def test_damage_is_replaced(tmp_path: Path, damage: Callable[[Path, bytes], object]) -> None:
    """A file that is not the index is none; the store's takes its place where it can."""
    store = Store(tmp_path)
    cache = IndexCache(tmp_path / "indexes", LIMIT)
    store.load(cache)
    (path,) = (tmp_path / "indexes").iterdir()
    damage(path, path.read_bytes())
    assert store.load(cache).digest == store.index.digest
    if path.is_file():
        store.empty()
        assert store.load(cache).digest == store.index.digest


def test_another_sound_index_is_not_taken(tmp_path: Path) -> None:
    """A file with the right name and the bytes of another index is not used."""
    store, other = Store(tmp_path), Store(tmp_path, seed=2)
    cache = IndexCache(tmp_path / "indexes", LIMIT)
    store.load(cache)
    (path,) = (tmp_path / "indexes").iterdir()
    path.write_bytes(bytes(_object(other.storage)))
    assert store.load(cache).digest == store.index.digest


def _object(storage: MemoryStorageProvider) -> bytes:
    target = storage.open_object(index_path(BUILD, ARTIFACT))
    buffer = bytearray(target.size())
    target.read_at(buffer, 0)
    return bytes(buffer)


def test_what_the_store_gives_wrongly_is_not_kept(tmp_path: Path) -> None:
    """An index that is not the manifest's raises, and leaves nothing."""
    store = Store(tmp_path)
    cache = IndexCache(tmp_path / "indexes", LIMIT)
    with pytest.raises(Corrupt):
        cache.load(store.storage, BUILD, ARTIFACT, sha256="0" * 64, size=store.size)
    store.empty()
    with pytest.raises(ObjectNotFound):
        store.load(cache)
    assert not (tmp_path / "indexes").exists()


def test_bounded(tmp_path: Path) -> None:
    """The one used longest ago goes; leftovers of killed writers go; a large one is not kept."""
    folder = tmp_path / "indexes"
    stores = [Store(tmp_path, seed) for seed in range(4)]
    cache = IndexCache(folder, 2 * stores[0].size + 10)
    for age, store in enumerate(stores[:2]):
        store.load(cache)
        os.utime(folder / f"{store.index.digest}.index", (1000 - age, 1000 - age))
    (folder / "old.new").write_bytes(b"x")
    os.utime(folder / "old.new", (1000, 1000))
    (folder / "young.new").write_bytes(b"x")
    stores[1].load(cache)  # used again: the other one is the oldest now
    stores[2].load(cache)
    kept = {f"{store.index.digest}.index" for store in stores[1:3]}
    assert {path.name for path in folder.iterdir()} == kept | {"young.new"}
    tiny = IndexCache(tmp_path / "tiny", stores[3].size)
    assert stores[3].load(tiny).digest == stores[3].index.digest
    assert not (tmp_path / "tiny").exists()


def test_full_disk(tmp_path: Path) -> None:
    """What cannot be kept is used all the same, and nothing is left of it."""
    store = Store(tmp_path)
    with largest_file(10):
        assert store.load(IndexCache(tmp_path / "indexes", LIMIT)).digest == store.index.digest
    assert list((tmp_path / "indexes").iterdir()) == []
    (tmp_path / "file").write_bytes(b"")
    assert store.load(IndexCache(tmp_path / "file", LIMIT)).digest == store.index.digest
