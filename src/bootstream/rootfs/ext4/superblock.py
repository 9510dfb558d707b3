"""Superblock, group descriptors, and the two inodes that keep the file system's own blocks.

Kernel documentation, "ext4 Data Structures and Algorithms", sections "Super Block",
"Block Group Descriptors", "Journal (jbd2)", "Special inodes". Which features are on, and
why, is in ``docs/decisions/ext4-writer.md``.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from bootstream.rootfs.ext4.layout import DESCRIPTOR_SIZE, INODE_SIZE, Geometry
from bootstream.rootfs.nodes import S_IFREG

RESIZE_INODE = 7
JOURNAL_INODE = 8
BLOCK_UNINIT, INODE_UNINIT, TABLE_ZEROED = 2, 1, 4

_COMPAT_JOURNAL, _COMPAT_XATTR, _COMPAT_RESIZE, _COMPAT_DIR_INDEX = 0x4, 0x8, 0x10, 0x20
_INCOMPAT = 0x2 | 0x40 | 0x200
"""filetype, extents, flex_bg"""
_RO_COMPAT = 0x1 | 0x2 | 0x8 | 0x10 | 0x20 | 0x40
"""sparse_super, large_file, huge_file, gdt_csum (uninit_bg), dir_nlink, extra_isize"""
_DEFAULT_XATTR_ACL = 0x4 | 0x8
_UNSIGNED_HASH = 2
_GROUPS_PER_FLEX_LOG = 4
_FIRST_INODE = 11
_DESCRIPTOR = struct.Struct("<IIIHHHHIHHHH")
assert _DESCRIPTOR.size == DESCRIPTOR_SIZE


@dataclass(frozen=True, slots=True)
class Volume:
    """The numbers that superblock and descriptors are made of; blocks unless it says bytes.

    ``overhead`` are the blocks that can never hold files; ``journal`` is the journal's
    inode's ``i_block`` and its size in bytes, None without a journal.
    """

    geometry: Geometry
    blocks: int
    inodes_per_group: int
    free_blocks: int
    free_inodes: int
    overhead: int
    uuid: bytes
    hash_seed: bytes
    label: bytes
    journal: tuple[bytes, int] | None

    @property
    def groups(self) -> int:
        """How many block groups there are."""
        return self.geometry.groups(self.blocks)

    @property
    def descriptor_blocks(self) -> int:
        """Blocks that the group descriptors take."""
        return -(-self.groups * DESCRIPTOR_SIZE // self.geometry.block_size)

    @property
    def reserved_descriptors(self) -> int:
        """Blocks behind the descriptors that are kept for more of them."""
        return self.geometry.head - 1 - self.descriptor_blocks


@dataclass(slots=True)
class Group:
    """One group's descriptor."""

    block_bitmap: int
    inode_bitmap: int
    inode_table: int
    free_blocks: int
    free_inodes: int
    directories: int
    unused_inodes: int
    flags: int


def pack_superblock(volume: Volume, group: int) -> bytes:
    """Return the 1024 bytes of the superblock's copy in ``group``."""
    geometry = volume.geometry
    block_log = (geometry.block_size // 1024).bit_length() - 1
    compat = _COMPAT_XATTR | _COMPAT_DIR_INDEX
    if volume.reserved_descriptors:
        compat |= _COMPAT_RESIZE
    if volume.journal is not None:
        compat |= _COMPAT_JOURNAL
    data = bytearray(1024)
    struct.pack_into(
        "<13I6H4I2H",
        data,
        0,
        volume.groups * volume.inodes_per_group,
        volume.blocks,
        0,  # nothing is reserved for root
        volume.free_blocks,
        volume.free_inodes,
        geometry.first_block,
        block_log,
        block_log,
        geometry.group_blocks,
        geometry.group_blocks,
        volume.inodes_per_group,
        0,  # last mount
        0,  # last write
        0,
        0xFFFF,  # no check after so many mounts
        0xEF53,
        1,  # clean
        1,  # errors: continue
        0,
        0,
        0,
        0,
        1,  # revision with features
        0,
        0,
    )
    struct.pack_into(
        "<IHHIII16s16s",
        data,
        84,
        _FIRST_INODE,
        INODE_SIZE,
        group,
        compat,
        _INCOMPAT,
        _RO_COMPAT,
        volume.uuid,
        volume.label.ljust(16, b"\0"),
    )
    struct.pack_into("<H", data, 206, volume.reserved_descriptors)
    if volume.journal is not None:
        blocks, size = volume.journal
        struct.pack_into("<I", data, 224, JOURNAL_INODE)
        data[253] = 1  # the backup of the journal's inode that follows is one of blocks
        struct.pack_into("<60sII", data, 268, blocks, size >> 32, size & 0xFFFFFFFF)
    struct.pack_into("<16sB", data, 236, volume.hash_seed, 1)
    struct.pack_into("<I", data, 256, _DEFAULT_XATTR_ACL)
    struct.pack_into("<HHI", data, 348, 32, 32, _UNSIGNED_HASH)
    data[372] = _GROUPS_PER_FLEX_LOG
    struct.pack_into("<I", data, 584, volume.overhead)
    return bytes(data)


def pack_descriptors(groups: Sequence[Group], uuid: bytes) -> bytes:
    """Return the group descriptors with their checksums."""
    start = crc16(0xFFFF, uuid)
    parts = []
    for number, group in enumerate(groups):
        data = _DESCRIPTOR.pack(
            group.block_bitmap,
            group.inode_bitmap,
            group.inode_table,
            group.free_blocks,
            group.free_inodes,
            group.directories,
            group.flags,
            0,
            0,
            0,
            group.unused_inodes,
            0,
        )
        checksum = crc16(crc16(start, struct.pack("<I", number)), data[:30])
        parts.append(data[:30] + struct.pack("<H", checksum))
    return b"".join(parts)


def crc16(value: int, data: bytes) -> int:
    """Return the CRC-16 (polynomial 0x8005, reflected) that group descriptors carry."""
    for byte in data:
        value = (value >> 8) ^ _CRC16[(value ^ byte) & 0xFF]
    return value


def _crc16_entry(value: int) -> int:
    for _ in range(8):
        value = (value >> 1) ^ (0xA001 if value & 1 else 0)
    return value


_CRC16 = tuple(_crc16_entry(value) for value in range(256))


def resize_blocks(volume: Volume, double: int) -> tuple[dict[int, bytes], int]:
    """Return the blocks that keep room for descriptors, and how many the inode counts.

    The resize inode's doubly indirect block, ``double``, points to the reserved blocks of
    the first group; each of these to its like in the backups.
    """
    geometry = volume.geometry
    backups = geometry.backups(volume.groups)
    pointers = bytearray(geometry.block_size)
    blocks: dict[int, bytes] = {}
    first = geometry.first_block + 1
    for offset in range(volume.descriptor_blocks, geometry.head - 1):
        block = first + offset
        struct.pack_into("<I", pointers, offset * 4, block)
        copies = [block + group * geometry.group_blocks for group in backups]
        data = struct.pack(f"<{len(copies)}I", *copies)
        blocks[block] = data.ljust(geometry.block_size, b"\0")
    counted = 1 + len(blocks) * (1 + len(backups))
    blocks[double] = bytes(pointers)
    return blocks, counted


def resize_inode_size(block_size: int) -> int:
    """Return the size that e2fsprogs gives the resize inode, in bytes."""
    pointers = block_size // 4
    return (pointers * pointers + pointers + 12) * block_size


def journal_blocks(blocks: int) -> int:
    """Return the journal's size for a file system's, as ``mke2fs`` chooses it; 0 for none.

    ``mke2fs`` goes higher for huge file systems; 32768 always fit the inode's four extents.
    """
    for below, size in ((2048, 0), (32768, 1024), (262144, 4096), (524288, 8192)):
        if blocks < below:
            return size
    return 16384 if blocks < 4194304 else 32768


def pack_journal_superblock(block_size: int, blocks: int) -> bytes:
    """Return the first block of an empty journal, version 2 (big-endian, as all of jbd2)."""
    data = struct.pack(">12I", 0xC03B3998, 4, 0, block_size, blocks, 1, 1, 0, 0, 0, 0, 0) + bytes(
        16
    )
    return (data + struct.pack(">I", 1)).ljust(block_size, b"\0")


REGULAR_OWN = S_IFREG | 0o600
"""Mode of the inodes that keep the file system's own blocks."""
