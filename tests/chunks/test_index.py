"""The index format: as the document has it, and refused when it is anything else."""

from __future__ import annotations

import resource
import struct
import subprocess
import sys
from array import array
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.chunks.helpers import CHUNK, NAME, build_id, chunk_of, naive_entries, publish, seal

from bootstream.chunks.digests import DigestTable, GrowingDigests
from bootstream.chunks.index import Index, Pack, little_endian
from bootstream.chunks.names import index_path
from bootstream.chunks.reader import load_index
from bootstream.chunks.report import summarise
from bootstream.errors import Corrupt, InvalidInput, ObjectNotFound
from bootstream.storage.memory import MemoryStorageProvider

CONTENT = b"".join(
    [chunk_of(1), bytes(CHUNK), chunk_of(2), chunk_of(1), bytes(2 * CHUNK), chunk_of(3)[:100]]
)
PATH = index_path(build_id(1), NAME)


@pytest.fixture
def stored(tmp_path: Path) -> bytes:
    """The bytes of the index of CONTENT."""
    storage = MemoryStorageProvider()
    publish(storage, tmp_path, CONTENT)
    return storage.contents[PATH][0]


def test_what_it_says(stored: bytes) -> None:
    """Look-ups agree with the document, read one number at a time."""
    index = Index.parse(stored, name=PATH)
    assert (index.size, index.chunk_size, index.chunk_count) == (len(CONTENT), CHUNK, 7)
    assert index.packs == (Pack(build_id(1), NAME, raw=False),)
    assert index.entry_count == 3
    assert [index.is_zero(chunk) for chunk in range(7)] == [0, 1, 0, 0, 1, 1, 0]
    for chunk, entry in enumerate(naive_entries(stored)):
        ref = index.lookup(chunk)
        if entry is None:
            assert ref is None
        else:
            assert ref is not None
            assert (ref.offset, ref.ordinal, ref.length, ref.pack, ref.sha256) == entry
    assert index.lookup(0) == index.lookup(3)
    assert [index.chunk_length(chunk) for chunk in (0, 5, 6)] == [CHUNK, CHUNK, 100]
    assert index.kinds() == bytes([1, 0, 1, 1, 0, 0, 1])


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(1, 50), st.data())
@settings(max_examples=60, deadline=None)
def test_runs(
    tmp_path_factory: pytest.TempPathFactory, kinds: list[bool], limit: int, data: st.DataObject
) -> None:
    """A run ends where the kind changes, at the limit, or at the end."""
    content = b"".join(chunk_of(1) if kind else bytes(CHUNK) for kind in kinds)
    _, index = publish(MemoryStorageProvider(), tmp_path_factory.mktemp("run"), content)
    start = data.draw(st.integers(0, len(kinds) - 1))
    expected = 0
    for kind in kinds[start : start + limit]:
        if kind != kinds[start]:
            break
        expected += 1
    assert index.run(start, limit) == (expected, not kinds[start])


def test_every_flipped_bit_of_a_byte_is_found(stored: bytes) -> None:
    """No byte can change without the checksum, or what stands before it, noticing."""
    for position in range(len(stored)):
        changed = bytearray(stored)
        changed[position] ^= 1 << position % 8
        with pytest.raises(Corrupt):
            Index.parse(changed, name=PATH)


def test_every_truncation_is_found(stored: bytes) -> None:
    """Nor can it end early, or late."""
    for length in range(len(stored)):
        with pytest.raises(Corrupt):
            Index.parse(stored[:length], name=PATH)
    with pytest.raises(Corrupt):
        Index.parse(stored + b"\0", name=PATH)


def test_a_newer_version_asks_for_an_upgrade(stored: bytes) -> None:
    """A sound index of a later version is not damage."""
    changed = bytearray(stored)
    changed[8:10] = (2).to_bytes(2, "little")
    with pytest.raises(InvalidInput, match="version 2") as caught:
        Index.parse(seal(changed), name=PATH)
    assert "upgrade" in str(caught.value.remedy)


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (8, b"\0\0"),  # version 0
        (10, b"\2\0"),  # a flag that does not exist
        (10, b"\1\0"),  # the raw form, with a pack of frames
        (12, (4097).to_bytes(4, "little")),  # a chunk size that is none
        (12, (2048).to_bytes(4, "little")),
        (12, (1 << 25).to_bytes(4, "little")),
        (16, (1 << 63).to_bytes(8, "little")),  # more bytes than chunks
        (24, b"\xff\xff\xff\xff"),  # more chunks than bytes
        (28, b"\xff\xff\xff\xff"),  # more entries than chunks
        (28, b"\0\0\0\0"),
        (32, b"\xff\xff\xff\xff"),  # more packs than the table
        (36, b"\1"),  # not zeros
        (64 + 7, b"\x40"),  # an offset of 2^62
        (64 + 24, b"\4\0\0\0"),  # a chunk with entry 4 of 3
        (64 + 24 + 28 + 3, b"\x10"),  # an ordinal of 2^28
        (64 + 24 + 28 + 12, b"\0\0\0\0"),  # no bytes
        (64 + 24 + 28 + 12, (4096 + 16 + 65).to_bytes(4, "little")),  # one too many
        (64 + 24 + 28 + 24, b"\1\0"),  # pack 1 of 1
        (-32 - 96 + 16, b"\2"),  # neither raw nor frames
        (-32 - 96 + 17, b"\0"),  # no name
        (-32 - 96 + 17, b"\x41"),  # a name that is too long
        (-32 - 96 + 18, b"\xff"),  # not ASCII
        (-32 - 96 + 18, b"/"),  # a path
        (-32 - 96 + 90, b"x"),  # not zeros
    ],
)
def test_limits(stored: bytes, offset: int, value: bytes) -> None:
    """A number beyond its limit is damage also where the checksum fits."""
    changed = bytearray(stored)
    changed[offset : offset + len(value) if offset + len(value) else None] = value
    with pytest.raises(Corrupt) as caught:
        Index.parse(seal(changed), name=PATH)
    assert caught.value.object == PATH


def _parse_or_refuse(data: bytes) -> None:
    try:
        index = Index.parse(data, name="mutant")
    except (Corrupt, InvalidInput):
        return
    for chunk in range(index.chunk_count):
        ref = index.lookup(chunk)
        assert (ref is None) == index.is_zero(chunk)
        assert ref is None or ref.pack < len(index.packs)
    assert len(index.kinds()) == index.chunk_count


@given(st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=6), st.booleans())
@settings(max_examples=300, deadline=None)
def test_mutants(changes: list[tuple[int, int]], raw: bool) -> None:
    """Any bytes, with a checksum that fits, parse or are refused; nothing else is raised."""
    data = bytearray(_SAMPLES[raw])
    for position, value in changes:
        data[position % len(data)] = value
    _parse_or_refuse(seal(data))


@given(st.binary(max_size=300))
@settings(max_examples=100, deadline=None)
def test_anything_at_all(data: bytes) -> None:
    """The same of bytes that never were an index."""
    _parse_or_refuse(data)
    _parse_or_refuse(seal(b"\x89bsidx\r\n\1\0" + data + bytes(32)))


def _samples(folder: Path) -> dict[bool, bytes]:
    storage = MemoryStorageProvider()
    found = {}
    for raw in (False, True):
        publish(storage, folder, CONTENT, form="raw" if raw else "chunked")
        found[raw] = storage.contents[PATH][0]
    return found


_SAMPLES: dict[bool, bytes] = {}


@pytest.fixture(autouse=True, scope="module")
def _make_samples(tmp_path_factory: pytest.TempPathFactory) -> None:
    _SAMPLES.update(_samples(tmp_path_factory.mktemp("samples")))


def test_the_raw_form_is_in_its_own_places() -> None:
    """In the raw form an entry anywhere else is damage."""
    index = Index.parse(_SAMPLES[True], name=PATH)
    assert index.raw
    assert index.packs == (Pack(build_id(1), NAME, raw=True),)
    assert [r.ordinal if (r := index.lookup(c)) else None for c in range(7)] == [
        0, None, 2, 3, None, None, 6,
    ]  # fmt: skip
    for column in (64, 64 + 32, 64 + 32 + 28):  # offset, position, ordinal
        changed = bytearray(_SAMPLES[True])
        changed[column] ^= 1
        with pytest.raises(Corrupt):
            Index.parse(seal(changed), name=PATH)


def test_a_pack_stands_in_the_table_once(tmp_path: Path) -> None:
    """Two equal packs in the table are damage."""
    storage = MemoryStorageProvider()
    _, parent = publish(storage, tmp_path, CONTENT)
    publish(storage, tmp_path, CONTENT + chunk_of(9), number=2, parent=parent)
    data = bytearray(storage.contents[index_path(build_id(2), NAME)][0])
    data[-32 - 96 : -32] = data[-32 - 192 : -32 - 96]
    with pytest.raises(Corrupt, match="twice"):
        Index.parse(seal(data), name=PATH)


def test_columns_on_a_big_endian_host() -> None:
    """There the columns are swapped copies."""
    swapped = array("I", [1, 2, 1 << 24])
    swapped.byteswap()
    column = little_endian(memoryview(swapped.tobytes()), "I", byteorder="big")
    assert list(column) == [1, 2, 1 << 24]


def test_load_checks_what_the_manifest_says(tmp_path: Path) -> None:
    """Size and digest of the index are compared; the load is one request."""
    storage = MemoryStorageProvider()
    summary, index = publish(storage, tmp_path, CONTENT)
    digest, size = summary.index_sha256, summary.index_size
    assert index.digest == digest
    assert load_index(storage, build_id(1), NAME).digest == digest
    with pytest.raises(Corrupt, match="not the index"):
        load_index(storage, build_id(1), NAME, sha256="0" * 64, size=size)
    for wrong in (size - 1, size + 1, 0, 1 << 40):
        with pytest.raises(Corrupt):
            load_index(storage, build_id(1), NAME, sha256=digest, size=wrong)
    with pytest.raises(ObjectNotFound):
        load_index(storage, build_id(2), NAME, sha256=digest, size=size)


@given(st.lists(st.integers(0, 40)), st.integers(0, 41))
def test_digest_tables(seeds: list[int], asked: int) -> None:
    """Both tables find what a dictionary finds."""
    growing = GrowingDigests()
    expected: dict[bytes, int] = {}
    for number, seed in enumerate(seeds):
        digest = chunk_of(seed, 160)[:32]
        assert growing.append(digest) == number
        expected.setdefault(digest, number)
    wanted = chunk_of(asked, 160)[:32]
    assert growing.find(wanted) == expected.get(wanted, -1)
    assert DigestTable(growing.column).find(wanted) == expected.get(wanted, -1)


def test_a_table_that_grows() -> None:
    """Ten thousand digests are all found again, over several sizes of the table."""
    growing = GrowingDigests()
    digests = [chunk_of(seed, 160)[:32] for seed in range(10_000)]
    for digest in digests:
        growing.append(digest)
    assert [growing.find(digest) for digest in digests] == list(range(10_000))


def many_packs(count: int) -> bytes:
    """An index of ``count`` chunks, each the first frame of a pack of its own."""
    header = bytearray(64)
    header[:12] = b"\x89bsidx\r\n\1\0\0\0"
    header[12:36] = struct.pack("<IQIII", CHUNK, CHUNK * count, count, count, count)
    columns = struct.pack(f"<{count}Q", *bytes(count))
    columns += struct.pack(f"<{count}I", *range(1, count + 1))
    columns += struct.pack(f"<{count}I", *bytes(count))
    columns += struct.pack(f"<{count}I", *[10] * count)
    columns += struct.pack(f"<{count}H", *range(count))
    columns += b"".join(sha256(chunk_of(n)).digest() for n in range(count))
    table = b"".join(
        struct.pack(">QQBB64s14x", 0, n, 0, len(NAME), NAME.encode()) for n in range(count)
    )
    return seal(bytes(header) + columns + table + bytes(32))


def test_long_histories(tmp_path: Path) -> None:
    """More packs than a byte can number; and a table that is full begins anew."""
    for count in (254, 255, 300):
        index = Index.parse(many_packs(count), name=PATH)
        assert list(index.kinds()) == list(range(1, count + 1))
        assert len(summarise(index, build_id(0))) == 1 + count
    for count, held in ((65_533, 10), (65_534, 0)):
        parent = Index.parse(many_packs(count), name=PATH)
        storage = MemoryStorageProvider()
        content = b"".join(map(chunk_of, range(10)))
        summary, index = publish(storage, tmp_path, content, number=1 << 20, parent=parent)
        assert (summary.parent_chunks, summary.new_chunks) == (held, 10 - held)
        assert len(index.packs) == (held or 1)
    with pytest.raises(Corrupt, match="too many"):
        Index.parse(many_packs(65_535), name=PATH)


_LARGE = """
import resource, sys, time
from bootstream.chunks.index import Index

def memory():
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024

before, start = memory(), time.perf_counter()
with open(sys.argv[1], "rb", buffering=0) as file:
    data = bytearray(int(sys.argv[2]))
    assert file.readinto(data) == len(data)
index = Index.parse(data, name="large")
took = time.perf_counter() - start
assert index.lookup(index.chunk_count - 1).ordinal == index.chunk_count - 1
assert index.run(0, 1 << 30) == (index.chunk_count, False)
print(memory() - before, index.chunk_count, f"loaded in {took:.2f} s")
"""


def test_an_index_of_100_gib_takes_less_than_100_mb(tmp_path: Path) -> None:
    """1.6 million chunks, all of them stored, in a process of its own."""
    chunks = 100 * (1 << 30) // 65536
    path = tmp_path / "large"
    size = write_large_index(path, chunks)
    result = subprocess.run(
        [sys.executable, "-c", _LARGE, str(path), str(size)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    growth, count, *time = result.stdout.split()
    sys.stdout.write(f"{int(growth) / 1e6:.0f} MB, {' '.join(time)}\n")
    assert int(count) == chunks
    assert int(growth) < 100_000_000
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss > 80_000  # it was read


def write_large_index(path: Path, chunks: int) -> int:
    """Write the index of an artifact whose 64 KiB chunks are all stored; return its size."""
    entry = (
        b"\x89bsidx\r\n\1\0\0\0" + (65536).to_bytes(4, "little")
        + (chunks * 65536).to_bytes(8, "little") + 2 * chunks.to_bytes(4, "little")
        + b"\1\0\0\0" + bytes(28)
    )  # fmt: skip
    columns = [
        array("Q", range(0, chunks * 60_000, 60_000)),
        array("I", range(1, chunks + 1)),
        array("I", range(chunks)),
        array("I", [60_000]) * chunks,
        array("H", bytes(2 * chunks)),
    ]
    if sys.byteorder != "little":
        for column in columns:
            column.byteswap()
    body = bytearray(entry)
    for column in columns:
        body += column.tobytes()
    body += bytes(range(256)) * (chunks * 32 // 256)
    body += bytes(15) + b"\1\0\1m" + bytes(63 + 14)
    body += bytes(32)
    path.write_bytes(seal(body))
    return len(body)
