"""Artifacts in a real folder, and through a store that fails and the wrapper that repeats."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.chunks.helpers import CHUNK, NAME, build_id, chunk_of, publish, read_back

from bootstream.chunks.names import index_path, pack_path
from bootstream.chunks.reader import export_artifact, verify_artifact
from bootstream.chunks.writer import write_artifact
from bootstream.errors import Cancelled, StorageFull, Unavailable
from bootstream.progress import NoProgress
from bootstream.storage.faults import READS, Cuts, Fails, Fault, FaultStorageProvider, Fills, Flips
from bootstream.storage.local import LocalStorageProvider
from bootstream.storage.memory import MemoryStorageProvider
from bootstream.storage.retry import RetryStorageProvider

CONTENT = b"".join(map(chunk_of, range(400))) + bytes(9 * CHUNK) + b"the end"


def files_in(folder: Path) -> dict[str, int]:
    """Every file below a folder, with its size."""
    return {
        str(path.relative_to(folder)): path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("form", ["chunked", "raw"])
def test_in_a_folder(tmp_path: Path, form: str) -> None:
    """Two generations in a folder: written, verified, exported; and nothing else is there."""
    root = tmp_path / "store"
    root.mkdir()
    storage = LocalStorageProvider(root)
    _, parent = publish(storage, tmp_path, CONTENT, form=form)
    after = CONTENT + chunk_of(1000)
    summary, index = publish(storage, tmp_path, after, number=2, parent=parent)
    assert (summary.parent_chunks, summary.new_chunks) == (400, 2)
    own = pack_path(build_id(1), NAME) if form == "chunked" else f"{build_id(1)}/{NAME}"
    assert set(files_in(root)) == {
        own,
        index_path(build_id(1), NAME),
        pack_path(build_id(2), NAME),
        index_path(build_id(2), NAME),
    }
    assert read_back(storage, index) == after
    assert verify_artifact(storage, index, NAME).problems == []
    target = tmp_path / "exported"
    export_artifact(storage, index, NAME, target)
    assert target.read_bytes() == after


def test_cancelled_in_a_folder(tmp_path: Path) -> None:
    """No file is left, not even a temporary one."""

    class Stopping(NoProgress):
        def advance(self, name: str, amount: int) -> None:
            raise Cancelled("stop")

    root = tmp_path / "store"
    root.mkdir()
    (tmp_path / "image").write_bytes(CONTENT)
    with pytest.raises(Cancelled):
        write_artifact(
            tmp_path / "image",
            build_id=build_id(1),
            artifact=NAME,
            storage=LocalStorageProvider(root),
            progress=Stopping(),
        )
    assert files_in(root) == {}


def test_no_room_in_the_store(tmp_path: Path) -> None:
    """A store that is full ends the work with its own error, and nothing is left."""
    inner = MemoryStorageProvider()
    storage = FaultStorageProvider(inner, Fault(Fills(at=20_000)), seed=1)
    with pytest.raises(StorageFull):
        publish(storage, tmp_path, CONTENT)
    assert inner.contents == {}


def test_hiccups_are_repeated_by_the_wrapper(tmp_path: Path) -> None:
    """Reads that fail or break off, and an index that has to be sent again, are not seen."""
    inner = MemoryStorageProvider()
    faulty = FaultStorageProvider(
        inner,
        Fault(Fails(Unavailable), operations=READS, probability=0.15),
        Fault(Cuts(), operations=READS, probability=0.15),
        Fault(Fails(Unavailable), operations=frozenset({"read_from"}), paths="*.index", count=2),
        seed=3,
    )
    storage = RetryStorageProvider(faulty, sleep=lambda seconds: None)
    _, index = publish(storage, tmp_path, CONTENT)
    assert read_back(storage, index, request_size=2000) == CONTENT
    assert verify_artifact(storage, index, NAME, threads=1).problems == []
    assert faulty.struck > 3


def test_a_bit_that_flips_on_the_way(tmp_path: Path) -> None:
    """Damage that is not in the store itself is fetched again and never seen."""
    inner = MemoryStorageProvider()
    _, index = publish(inner, tmp_path, CONTENT)
    for number in range(20):
        storage = FaultStorageProvider(
            inner, Fault(Flips(), operations=READS, count=1), seed=number
        )
        assert read_back(storage, index) == CONTENT
