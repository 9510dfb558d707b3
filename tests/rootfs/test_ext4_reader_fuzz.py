"""The reader on images that were tampered with: an answer or an error, soon, in little memory."""

from __future__ import annotations

import random
import struct
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bootstream.errors import BootstreamError, Corrupt, InvalidInput, NotFound
from bootstream.rootfs.ext4 import Ext4FileSystem
from bootstream.testing.fuzz_targets import TARGETS

EXT4 = TARGETS["ext4"]
SUPERBLOCK = 1024


def attempt(data: bytes) -> None:
    """Look at everything; the first refusal, if there is one, is of a kind that is promised."""
    refusal = None
    try:
        EXT4.run(data)
    except BootstreamError as error:
        refusal = error
    assert refusal is None or isinstance(refusal, (Corrupt, InvalidInput, NotFound)), refusal
    assert str(refusal).isprintable()


def system_of(data: bytes | bytearray) -> Ext4FileSystem:
    def read_at(buffer: memoryview, offset: int) -> None:
        assert 0 <= offset <= offset + len(buffer) <= len(data)
        buffer[:] = data[offset : offset + len(buffer)]

    return Ext4FileSystem(read_at, len(data))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.integers(0, 3),
    st.lists(
        st.tuples(st.integers(0, SUPERBLOCK - 1), st.binary(min_size=1, max_size=8)),
        min_size=1,
        max_size=4,
    ),
)
def test_superblocks(number: int, changes: list[tuple[int, bytes]]) -> None:
    """Whatever the superblock says."""
    data = bytearray(EXT4.samples()[number])
    for offset, piece in changes:
        data[SUPERBLOCK + offset : SUPERBLOCK + offset + len(piece)] = piece
    attempt(bytes(data))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 3), st.data())
def test_metadata(number: int, data: st.DataObject) -> None:
    """Whatever bytes change where something is written."""
    image = bytearray(EXT4.samples()[number])
    busy = [at for at in range(0, len(image), 32) if any(image[at : at + 32])]
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.sampled_from(busy)) + data.draw(st.integers(0, 31))
        piece = data.draw(st.binary(min_size=1, max_size=4))
        image[at : at + len(piece)] = piece
    attempt(bytes(image))


@given(st.binary(max_size=4096))
def test_anything_after_a_magic_number(tail: bytes) -> None:
    """No file system at all behind a superblock's magic number."""
    data = bytearray(8192)
    data[SUPERBLOCK : SUPERBLOCK + len(tail)] = tail
    data[SUPERBLOCK + 0x38 : SUPERBLOCK + 0x3A] = b"\x53\xef"
    attempt(bytes(data))


def root_of(data: bytearray) -> int:
    """Where the root's inode is: after the first group's descriptor's table, second in it."""
    block_size = 1024 << struct.unpack_from("<I", data, SUPERBLOCK + 0x18)[0]
    inode_size = struct.unpack_from("<H", data, SUPERBLOCK + 0x58)[0]
    descriptors = (SUPERBLOCK // block_size + 1) * block_size
    table = struct.unpack_from("<I", data, descriptors + 8)[0]
    return int(table * block_size + inode_size)


def test_sizes_are_not_believed() -> None:
    """A root of terabytes, in extents that all lead to one block, costs neither time nor memory."""
    data = bytearray(EXT4.samples()[3])
    root = root_of(data)
    struct.pack_into("<I", data, root + 4, 0xFFFFF000)
    struct.pack_into("<I", data, root + 0x6C, 0xFFFF)
    block = struct.unpack_from("<I", data, root + 0x28 + 20)[0]
    extents = b"".join(struct.pack("<IHHI", number * 32768, 32768, 0, block) for number in range(4))
    data[root + 0x28 : root + 0x64] = struct.pack("<HHHHI", 0xF30A, 4, 4, 0, 0) + extents
    tracemalloc.start()
    with pytest.raises(Corrupt):
        system_of(data).listdir(b"/")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


def test_trees_in_circles() -> None:
    """A block of pointers that points at itself, on every level, is found out."""
    data = bytearray(EXT4.samples()[1])
    rng = random.Random(5)
    root = root_of(data)
    block = rng.randrange(400, 800)
    struct.pack_into("<15I", data, root + 0x28, *[0] * 12, block, block, block)
    struct.pack_into("<I", data, root + 4, 512 << 10)
    struct.pack_into("<256I", data, block * 1024, *[block] * 256)
    with pytest.raises(Corrupt):
        system_of(data).listdir(b"/")


def test_big_reads_are_refused() -> None:
    """A file that claims terabytes is read in pieces, not at once."""
    data = bytearray(EXT4.samples()[3])
    system = system_of(data)
    inode = system.stat(b"/holes").inode
    at = root_of(data) + (inode - 2) * 256
    struct.pack_into("<I", data, at + 0x6C, 0x1000)
    with system_of(data).open(b"/holes") as file:
        assert file.size > 1 << 43
        with pytest.raises(InvalidInput, match="at once"):
            file.read()
        assert file.read(4) == b"data"
        file.seek(1 << 43)
        assert file.read(100) == bytes(100)
