"""Any byte of a published build may be damaged: a reader hears of it, or nothing changed for it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from bootstream.chunks.reader import export_artifact, load_index
from bootstream.errors import BootstreamError, BuildNotFound, Corrupt, InvalidInput
from bootstream.storage.memory import MemoryStorageProvider
from bootstream.templates.build import ROOTFS, BuildOptions, TemplateBuilder
from bootstream.templates.manifest import read_published
from bootstream.templates.names import TemplateName
from bootstream.templates.verify import verify_build

CHUNK = 4096


@pytest.fixture
def content() -> bytes:
    """Three chunks: text, zeros, and noise that ends in the middle of a chunk."""
    rng = random.Random(5)
    return b"words that compress\n" * 200 + bytes(96) + bytes(CHUNK) + rng.randbytes(700)


@pytest.fixture
def store(content: bytes, tmp_path: Path) -> MemoryStorageProvider:
    """A store with one build of that content."""
    storage = MemoryStorageProvider()
    (tmp_path / "disk").write_bytes(content)
    builder = TemplateBuilder(storage, scratch=tmp_path / "scratch", node_id="n")
    options = BuildOptions(chunk_size=CHUNK, threads=1)
    builder.from_files({ROOTFS: tmp_path / "disk"}, TemplateName.parse("t"), options=options)
    return storage


def read_back(storage: MemoryStorageProvider, build_id: str, target: Path) -> bytes:
    """What a reader gets, who trusts the manifest."""
    entry = read_published(storage, build_id)[0].artifact(ROOTFS)
    index = load_index(storage, build_id, ROOTFS, sha256=entry.index_sha256, size=entry.index_size)
    export_artifact(storage, index, ROOTFS, target)
    return target.read_bytes()


def objects_of_build(storage: MemoryStorageProvider) -> dict[str, bytes]:
    return {
        path: data
        for path, (data, _) in storage.contents.items()
        if path.endswith(("manifest.json", ".pack", ".index"))
    }


@pytest.mark.parametrize("suffix", ["manifest.json", ".pack", ".index"])
def test_every_flipped_byte(
    store: MemoryStorageProvider, content: bytes, tmp_path: Path, suffix: str
) -> None:
    """An error of the tree, or the very same bytes; in an index always an error.

    A frame's header has a bit that decoders ignore, a manifest has texts for people.
    """
    path, sound = next(item for item in objects_of_build(store).items() if item[0].endswith(suffix))
    build_id = path.partition("/")[0]
    for position in range(len(sound)):
        damaged = bytearray(sound)
        damaged[position] ^= 1 << position % 8
        store.open_object(path).put(damaged)
        try:
            assert read_back(store, build_id, tmp_path / "copy") == content
            assert suffix != ".index", f"byte {position} was not noticed"
        except (Corrupt, InvalidInput, BuildNotFound):
            continue
    store.open_object(path).put(sound)
    assert read_back(store, build_id, tmp_path / "copy") == content


@pytest.mark.parametrize("suffix", ["manifest.json", ".pack", ".index"])
def test_every_truncation(store: MemoryStorageProvider, tmp_path: Path, suffix: str) -> None:
    """A shorter object is an error, and verify names it instead of failing."""
    path, sound = next(item for item in objects_of_build(store).items() if item[0].endswith(suffix))
    build_id = path.partition("/")[0]
    manifest = read_published(store, build_id)[0]
    for length in range(0, len(sound) - 1, 7):
        store.open_object(path).put(sound[:length])
        with pytest.raises(BootstreamError):
            read_back(store, build_id, tmp_path / "copy")
        if suffix != "manifest.json":
            assert verify_build(store, manifest, threads=1).problems
