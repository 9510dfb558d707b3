"""Extent trees: which logical blocks of a file lie where.

Kernel documentation, "ext4 Data Structures and Algorithms", section "Extent Tree". The
root holds four entries in the inode; further levels are blocks full of entries.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Sequence

MAX_LENGTH = 32768
_HEADER = struct.Struct("<HHHHI")
_LEAF = struct.Struct("<IHHI")
_INDEX = struct.Struct("<IIHH")
_MAGIC = 0xF30A
_ROOT_ENTRIES = 4
_ONE = struct.Struct("<HHHHIIHHI36x")
EMPTY = _HEADER.pack(_MAGIC, 0, _ROOT_ENTRIES, 0, 0) + bytes(48)


def one_extent(block: int, count: int) -> bytes:
    """Return the root for a file in one run of at most 32768 blocks."""
    return _ONE.pack(_MAGIC, 1, _ROOT_ENTRIES, 0, 0, 0, count, 0, block)


def add_run(runs: array[int], logical: int, count: int, block: int) -> None:
    """Append a run, joined to the last one where both go on."""
    if runs:
        last_logical, last_count, last_block = runs[-3:]
        if last_logical + last_count == logical and last_block + last_count == block:
            runs[-2] = last_count + count
            return
    runs.extend((logical, count, block))


def build(
    runs: Sequence[int],
    block_size: int,
    allocate: Callable[[], int],
    write: Callable[[int, bytes], None],
) -> tuple[bytes, tuple[int, ...]]:
    """Return the root of a tree over ``runs`` and the blocks that the tree itself takes.

    Args:
        runs: flat triples of logical block, length, physical block, ascending.
        block_size: of the file system.
        allocate: returns a block for a part of the tree.
        write: puts such a part into its block.
    """
    entries: list[tuple[int, bytes]] = []
    for index in range(0, len(runs), 3):
        logical, count, block = runs[index : index + 3]
        while count:
            length = min(count, MAX_LENGTH)
            entries.append((logical, _LEAF.pack(logical, length, 0, block)))
            logical += length
            block += length
            count -= length
    room = (block_size - _HEADER.size) // 12
    depth = 0
    blocks: list[int] = []
    while len(entries) > _ROOT_ENTRIES:
        above = []
        for start in range(0, len(entries), room):
            part = entries[start : start + room]
            data = _HEADER.pack(_MAGIC, len(part), room, depth, 0) + b"".join(e for _, e in part)
            block = allocate()
            write(block, data)
            blocks.append(block)
            above.append((part[0][0], _INDEX.pack(part[0][0], block, 0, 0)))
        entries = above
        depth += 1
    root = _HEADER.pack(_MAGIC, len(entries), _ROOT_ENTRIES, depth, 0)
    return (root + b"".join(e for _, e in entries)).ljust(60, b"\0"), tuple(blocks)
