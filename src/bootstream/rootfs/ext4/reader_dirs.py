"""Directory entries: linear blocks, hashed trees read as linear ones, inline directories.

A hashed directory is made so that linear readers need not know: its inner nodes lie
behind entries without an inode. So does the checksum at a block's end.

Source: the kernel's ext4 documentation, "Directory Entries": "Linear (Classic) Directories",
"Hash Tree Directories", "Inline Directories".
"""

from __future__ import annotations

import struct

from bootstream.rootfs.ext4.reader_layout import (
    INCOMPAT_FILETYPE,
    ROOT_INODE,
    Superblock,
    corrupt,
)

_ENTRY = struct.Struct("<IHBB")
_SELF = (b".", b"..")


class DirectoryParser:
    """Collects the entries of one directory, block by block.

    Args:
        superblock: of the file system.
        object: how errors name the directory.
    """

    def __init__(self, superblock: Superblock, object: str) -> None:
        self.entries: dict[bytes, int] = {}
        self._super = superblock
        self._object = object

    def add(self, data: bytes | memoryview) -> None:
        """Add what one block, or one part of an inline directory, holds.

        Raises:
            Corrupt: entries that go over the block's edge, names that cannot be, or twice.
        """
        end = len(data)
        at = 0
        entries = self.entries
        unpack = _ENTRY.unpack_from
        while at < end:
            if at + 8 > end:
                raise corrupt("an entry goes over its block's edge", self._object)
            inode, length, size, kind = unpack(data, at)
            if length >= 65532 or length & 3:
                length = self._long(length)
            # Where entries have no file type, its byte is the length's upper one: see below.
            if length < 12 or length & 3 or at + length > end or size > length - 8:
                raise corrupt("an entry goes over its block's edge", self._object)
            if inode:
                name = bytes(data[at + 8 : at + 8 + size])
                if name not in _SELF:
                    self._insist_on_sound(name, inode, kind)
                    entries[name] = inode
            at += length

    def _long(self, length: int) -> int:
        """Decode an entry's length where blocks have 64 KiB, whose size 16 bits cannot say."""
        if self._super.block_size < 65536:
            return length
        if length in (0, 65535):
            return 65536
        return length & 65532 | (length & 3) << 16

    def _insist_on_sound(self, name: bytes, inode: int, kind: int) -> None:
        if not name or b"/" in name or b"\0" in name or name in self.entries:
            raise corrupt("a name is empty, impossible or there twice", self._object)
        if kind > 7 and not self._super.incompat & INCOMPAT_FILETYPE:
            raise corrupt("a name is too long", self._object)
        if inode > self._super.inodes or (inode < self._super.first_inode and inode != ROOT_INODE):
            raise corrupt("a name leads to an inode that cannot be", self._object)
