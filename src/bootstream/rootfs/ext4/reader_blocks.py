"""From a file's blocks to the image's: extent trees and the older block maps.

A map is three sorted arrays, one entry a run of blocks that lie together in the file
and in the image. What no run covers reads as zeros: holes, and extents that are
allocated but not initialised. Trees from outside may share nodes, run in circles or
overlap, so every tree block is visited once at most and runs must ascend: the work is
bounded by the image's size, the depth by the format.

Source: the kernel's ext4 documentation, "The Contents of inode.i_block": "Direct/Indirect
Block Addressing", "Extent Tree".
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

from bootstream.rootfs.ext4.reader_layout import (
    FLAG_EXTENTS,
    Inode,
    Source,
    Superblock,
    corrupt,
)

_EXTENT_MAGIC = 0xF30A
_MAX_DEPTH = 5
_UNINITIALISED = 32768
_HEADER = struct.Struct("<HHHHI")
_DIRECT = 12


class Run(NamedTuple):
    """``blocks`` of a file in a row; ``physical`` is None where they read as zeros."""

    physical: int | None
    blocks: int


class BlockMap:
    """Where a file's blocks are."""

    def __init__(self) -> None:
        self._logical = array("Q")
        self._physical = array("Q")
        self._count = array("Q")

    def append(self, logical: int, physical: int, count: int) -> None:
        """Add a run after all others; it joins the last one if it continues it."""
        if self._logical:
            last = self._count[-1]
            if self._logical[-1] + last == logical and self._physical[-1] + last == physical:
                self._count[-1] = last + count
                return
        self._logical.append(logical)
        self._physical.append(physical)
        self._count.append(count)

    def runs(self, first: int, count: int) -> Iterator[Run]:
        """Yield the runs that make up ``count`` blocks from ``first``, in order, without gaps."""
        end = first + count
        number = max(0, bisect_right(self._logical, first) - 1)
        while first < end:
            if number == len(self._logical) or self._logical[number] >= end:
                yield Run(None, end - first)
                return
            start = self._logical[number]
            stop = start + self._count[number]
            if first < start:
                yield Run(None, start - first)
                first = start
            if first < stop:
                length = min(stop, end) - first
                yield Run(self._physical[number] + first - start, length)
                first += length
            number += 1


def map_blocks(source: Source, superblock: Superblock, inode: Inode) -> BlockMap:
    """Return the map of an inode that has blocks of its own.

    Raises:
        Corrupt: a tree that cannot be.
    """
    mapper = _Mapper(source, superblock, inode)
    if inode.flags & FLAG_EXTENTS:
        mapper.extents(inode.block, None)
    else:
        mapper.block_map()
    return mapper.map


class _Mapper:
    """Walks one inode's tree."""

    def __init__(self, source: Source, superblock: Superblock, inode: Inode) -> None:
        self.map = BlockMap()
        self._source = source
        self._super = superblock
        self._inode = inode
        self._visited: set[int] = set()
        self._next = 0

    def _read(self, block: int) -> bytes:
        """Return a block of the tree."""
        self._insist_inside(block, 1)
        if block in self._visited:
            raise corrupt("its block tree runs in a circle", self._inode.object)
        self._visited.add(block)
        size = self._super.block_size
        return self._source.read(block * size, size)

    def _insist_inside(self, block: int, count: int) -> None:
        if not self._super.first_data_block < block <= self._super.blocks - count:
            raise corrupt("its blocks lie outside the image", self._inode.object)

    # -- extents ---------------------------------------------------------------------------

    def extents(self, node: bytes, expected: int | None) -> None:
        """Walk a node of the tree, whose depth is ``expected``, or any for the root."""
        magic, entries, most, depth, _generation = _HEADER.unpack_from(node)
        if (
            magic != _EXTENT_MAGIC
            or not entries <= most <= len(node) // 12 - 1
            or depth > _MAX_DEPTH
            or expected not in (None, depth)
        ):
            raise corrupt("its extent tree is damaged", self._inode.object)
        body = node[12 : 12 * (1 + entries)]
        if depth:
            for _logical, low, high, _unused in struct.iter_unpack("<IIHH", body):
                self.extents(self._read(low | high << 32), depth - 1)
            return
        for logical, length, high, low in struct.iter_unpack("<IHHI", body):
            self._extent(logical, length, low | high << 32)

    def _extent(self, logical: int, length: int, physical: int) -> None:
        count = length if length <= _UNINITIALISED else length - _UNINITIALISED
        if not count or logical < self._next:
            raise corrupt("its extents overlap or are empty", self._inode.object)
        self._insist_inside(physical, count)
        self._next = logical + count
        if length <= _UNINITIALISED:
            self.map.append(logical, physical, count)

    # -- direct and indirect blocks --------------------------------------------------------

    def block_map(self) -> None:
        """Walk the twelve direct pointers and the three trees; stop at the file's end."""
        size = self._super.block_size
        end = -(-self._inode.status.size // size)
        pointers = struct.unpack("<15I", self._inode.block)
        self._data(pointers[:_DIRECT], 0, end)
        start, per_block = _DIRECT, size // 4
        for level, pointer in enumerate(pointers[_DIRECT:]):
            if pointer and start < end:
                self._indirect(pointer, level, start, end)
            start += per_block ** (level + 1)
        if end > start:
            raise corrupt("the size is more than its block map can hold", self._inode.object)

    def _indirect(self, block: int, level: int, start: int, end: int) -> None:
        """Walk a block of pointers whose first one stands for block ``start`` of the file."""
        pointers = array("I", self._read(block))
        if _SWAP:
            pointers.byteswap()
        if not level:
            self._data(pointers, start, end)
            return
        span = len(pointers) ** level
        for number, pointer in enumerate(pointers):
            at = start + number * span
            if at >= end:
                return
            if pointer:
                self._indirect(pointer, level - 1, at, end)

    def _data(self, pointers: array[int] | tuple[int, ...], start: int, end: int) -> None:
        for number, pointer in enumerate(pointers[: max(0, end - start)]):
            if pointer:
                self._insist_inside(pointer, 1)
                self.map.append(start + number, pointer, 1)


_SWAP = struct.pack("=H", 1) != struct.pack("<H", 1)
