"""What each wrapper adds: renaming, failing."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from bootstream.errors import (
    BootstreamError,
    InvalidInput,
    ObjectNotFound,
    PermissionDenied,
    StorageFull,
    Throttled,
    Unavailable,
)
from bootstream.storage.faults import (
    READS,
    WRITES,
    Cuts,
    Delays,
    Fails,
    Fault,
    FaultStorageProvider,
    Fills,
    Flips,
)
from bootstream.storage.local import LocalStorageProvider
from bootstream.storage.memory import MemoryStorageProvider
from bootstream.storage.objects import ObjectReader, read_exact
from bootstream.storage.prefix import PrefixStorageProvider
from bootstream.storage.protocol import ObjectInfo
from bootstream.testing.storage import PatternSource, content, paths


@pytest.fixture
def inner() -> MemoryStorageProvider:
    return MemoryStorageProvider()


@pytest.fixture
def faulty(inner: MemoryStorageProvider) -> FaultStorageProvider:
    return FaultStorageProvider(inner, sleep=lambda _seconds: None)


# -- prefix ----------------------------------------------------------------------------------


def test_prefix_is_added_and_taken_away(inner: MemoryStorageProvider) -> None:
    """Below it, names are short; above, they are whole."""
    inner.open_object("team/other").put(b"")
    inner.open_object("team/ab/x").put(b"not ours")
    store = PrefixStorageProvider(inner, "team/a/")
    target = store.open_object("x")
    target.put(b"1")
    assert target.path == "x"
    assert paths(store) == ["x"]
    assert paths(inner) == ["team/a/x", "team/ab/x", "team/other"]
    with pytest.raises(ObjectNotFound, match="team/a/missing"):
        store.open_object("missing").stat()
    for name in ("", "/x", "../ab/x", "."):
        with pytest.raises(InvalidInput):
            store.open_object(name)
    with pytest.raises(InvalidInput):
        store.delete_objects_with_prefix("")
    with pytest.raises(InvalidInput):
        PrefixStorageProvider(inner, "../up")
    assert paths(PrefixStorageProvider(inner, "")) == paths(inner)


def test_identity_of_a_prefix(tmp_path: Path) -> None:
    """Stores of the same objects have the same identity, others have others."""
    whole = LocalStorageProvider(tmp_path)
    part = PrefixStorageProvider(whole, "a/b/")
    assert part.details().identity == LocalStorageProvider(tmp_path / "a/b").details().identity
    assert part.details().identity != whole.details().identity
    same = PrefixStorageProvider(PrefixStorageProvider(whole, "a"), "b")
    assert same.details().identity == part.details().identity
    assert PrefixStorageProvider(whole, "").details().identity == whole.details().identity


# -- faults ----------------------------------------------------------------------------------


def outcomes(seed: int) -> list[str]:
    """What many reads meet."""
    inner = MemoryStorageProvider()
    inner.open_object("object").put(bytes(1000))
    store = FaultStorageProvider(
        inner,
        Fault(Fails(Throttled), operations=READS, probability=0.2),
        Fault(Cuts(), probability=0.2),
        Fault(Flips(), probability=0.2),
        seed=seed,
    )
    found = []
    for _ in range(200):
        buffer = bytearray(1000)
        try:
            store.open_object("object").read_at(buffer, 0)
        except BootstreamError as error:
            found.append(type(error).__name__)
        else:
            found.append(buffer.hex() if any(buffer) else "good")
    return found


def test_seed_decides() -> None:
    """The same seed brings the same faults, another one others; all kinds happen."""
    assert outcomes(1) == outcomes(1) != outcomes(2)
    kinds = outcomes(1)
    assert kinds.count("Throttled") in range(20, 60)
    assert kinds.count("Unavailable") in range(15, 60)
    assert kinds.count("good") in range(70, 140)
    flipped = [kind for kind in kinds if len(kind) == 2000]
    assert all(bytes.fromhex(kind).count(0) == 999 for kind in flipped)
    assert len(set(flipped)) > 10


def test_which_operations_and_how_often(
    inner: MemoryStorageProvider, faulty: FaultStorageProvider
) -> None:
    """By operation and path, after some, for some."""
    inner.open_object("a/x.pack").put(b"x")
    faulty.add(Fault(Fails(), operations=frozenset({"stat"}), paths="*.pack", skip=1, count=2))
    target = faulty.open_object("a/x.pack")
    results = []
    for _ in range(5):
        try:
            target.stat()
            results.append(True)
        except Unavailable:
            results.append(False)
        target.read_at(bytearray(1), 0)
        with pytest.raises(ObjectNotFound):
            faulty.open_object("a/x.index").stat()
    assert results == [True, False, False, True, True]


def test_failing_before_and_after(
    inner: MemoryStorageProvider, faulty: FaultStorageProvider
) -> None:
    """Before, nothing was done; after, everything was."""
    faulty.add(Fault(Fails(PermissionDenied), operations=WRITES, count=1))
    faulty.add(Fault(Fails(Unavailable, after=True), operations=WRITES, count=1))
    with pytest.raises(PermissionDenied) as raised:
        faulty.open_object("a").put(b"1")
    assert raised.value.object == "a"
    assert paths(inner) == []
    with pytest.raises(Unavailable):
        faulty.open_object("a").put(b"1")
    assert paths(inner) == ["a"]


def test_cut_reads_raise(inner: MemoryStorageProvider, faulty: FaultStorageProvider) -> None:
    """Never a short count; and what came before the cut has arrived."""
    inner.open_object("object").put(b"0123456789")
    target = faulty.open_object("object")
    faulty.add(Fault(Cuts(at=4)))
    buffer = bytearray(10)
    with pytest.raises(Unavailable):
        target.read_at(buffer, 0)
    assert bytes(buffer) == b"0123" + bytes(6)
    sink = io.BytesIO()
    with pytest.raises(Unavailable):
        target.write_to(sink)
    assert sink.getvalue() == b"0123"
    read_exact(target, memoryview(buffer)[:4], 3)
    assert bytes(buffer[:4]) == b"3456", "what is shorter than the cut is whole"
    faulty.clear()
    faulty.add(Fault(Cuts()))
    for name in ("object", "empty"):
        inner.open_object("empty").put(b"")
        with pytest.raises(Unavailable):
            faulty.open_object(name).write_to(io.BytesIO())
    with pytest.raises(Unavailable):
        paths(faulty)


def test_flipped_bit(inner: MemoryStorageProvider, faulty: FaultStorageProvider) -> None:
    """One bit, in the reader's copy alone."""
    inner.open_object("object").put(bytes(3 << 20))
    faulty.add(Fault(Flips()))
    sink = io.BytesIO()
    faulty.open_object("object").write_to(sink)
    assert sum(byte.bit_count() for byte in sink.getvalue() if byte) == 1
    assert len(sink.getvalue()) == 3 << 20
    assert content(inner, "object") == bytes(3 << 20)


def test_full_disk(
    inner: MemoryStorageProvider, faulty: FaultStorageProvider, tmp_path: Path
) -> None:
    """The write with the n-th byte fails and leaves nothing, as all after it do."""
    (tmp_path / "file").write_bytes(bytes(500))
    faulty.add(Fault(Fills(at=10_000_000), operations=WRITES))
    faulty.open_object("a").read_from(PatternSource(9_999_000))
    faulty.open_object("b").put(bytes(500))
    faulty.open_object("c").write_from_file_system(tmp_path / "file")
    for write in (
        lambda: faulty.open_object("d").put(b"x"),
        lambda: faulty.open_object("d").read_from(PatternSource(5_000_000)),
        lambda: faulty.open_object("d").write_from_file_system(tmp_path / "file"),
    ):
        with pytest.raises(StorageFull):
            write()
    assert paths(inner) == ["a", "b", "c"]
    assert faulty.struck == 3


def test_delays(inner: MemoryStorageProvider) -> None:
    """As long as asked for, jitter included."""
    slept: list[float] = []
    store = FaultStorageProvider(inner, Fault(Delays(0.5, jitter=0.25)), sleep=slept.append)
    for _ in range(50):
        store.details()
    assert all(0.5 <= wait <= 0.75 for wait in slept)
    assert max(slept) - min(slept) > 0.1


def test_listing_is_an_iterator(faulty: FaultStorageProvider) -> None:
    """Trouble comes where a listing is read, as it does from a cloud."""
    faulty.add(Fault(Fails()))
    listing: Iterator[ObjectInfo] = faulty.list_objects()
    with pytest.raises(Unavailable):
        next(listing)


def test_object_reader_rewinds(inner: MemoryStorageProvider) -> None:
    """It is a source like a file."""
    inner.open_object("a").put(b"0123456789")
    reader = ObjectReader(inner.open_object("a"))
    assert (reader.read(4), reader.tell()) == (b"0123", 4)
    reader.seek(2)
    assert (reader.read(100), reader.read(1)) == (b"23456789", b"")
