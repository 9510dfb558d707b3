"""Directory blocks: linear, and indexed by hash where a directory is large.

Kernel documentation, "ext4 Data Structures and Algorithms", sections "Linear (Classic)
Directories" and "Hash Tree Directories".

Names stay in the order in which they first appeared, so that a new one changes the last
block only. From three blocks on, a directory gets an index, as the kernel would give it
one (and ``e2fsck`` would offer to). Its leaves are cut by a binary trie over the hash: a
leaf that overflows is halved by the next bit. The cuts follow from the set of names
alone, and one more name changes one leaf.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable

from bootstream.errors import InvalidInput
from bootstream.rootfs.ext4.namehash import VERSION

Entry = tuple[bytes, int, int]
"""Name, inode number, file type as directory entries have it."""
LINEAR_BLOCKS = 2
DIRECTORY_TYPE = 2
FILE_TYPES = {
    0o100000: 1,
    0o040000: DIRECTORY_TYPE,
    0o020000: 3,
    0o060000: 4,
    0o010000: 5,
    0o140000: 6,
    0o120000: 7,
}
DOTS = 24
"""Bytes of the entries ``.`` and ``..``."""
_HEAD = struct.Struct("<IHBB")
_ROOT_INFO = struct.Struct("<IBBBB")
_LIMIT = struct.Struct("<HHI")
_INDEX = struct.Struct("<II")
_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")
_HASH_BITS = 32
_FULL = 0.92
"""Average fill at which leaves of equal share begin to overflow in numbers."""


def blocks_wanted(room: int, block_size: int) -> int:
    """Return how many blocks to set aside for names that take ``room`` bytes.

    Exact for one block, a close guess above: hashes are not looked at.
    """
    if room + DOTS <= block_size:
        return 1
    if room + DOTS + 264 <= LINEAR_BLOCKS * block_size:
        return LINEAR_BLOCKS
    leaves = 1
    while room > leaves * block_size * _FULL:
        leaves *= 2
    most = _root_limit(block_size)
    nodes = 0 if leaves <= most else -(-leaves // _node_limit(block_size))
    return 1 + nodes + leaves


def pack_directory(
    number: int,
    parent: int,
    entries: Iterable[Entry],
    block_size: int,
    name_hash: Callable[[bytes], int],
) -> tuple[list[bytes], bool]:
    """Return a directory's blocks, and whether they are indexed.

    Raises:
        InvalidInput: there are more names than an index of two levels holds.
    """
    entries = list(entries)
    dots = [(b".", number, DIRECTORY_TYPE), (b"..", parent, DIRECTORY_TYPE)]
    blocks = _pack(dots + entries, block_size, LINEAR_BLOCKS)
    if blocks is not None:
        return blocks, False
    return _indexed(number, parent, entries, block_size, name_hash), True


def empty_block(block_size: int) -> bytes:
    """Return a directory block without a name."""
    return _HEAD.pack(0, block_size, 0, 0).ljust(block_size, b"\0")


def _pack(entries: list[Entry], block_size: int, most: int | None) -> list[bytes] | None:
    """Return blocks with the entries one after the other; None if over ``most`` blocks."""
    blocks: list[bytes] = []
    parts: list[bytes] = []
    used = 0
    last: Entry | None = None
    head = _HEAD.pack
    for entry in entries:
        name, number, kind = entry
        length = len(name)
        size = (length + 11) & ~3
        if used + size > block_size:
            assert last is not None
            if most is not None and len(blocks) + 1 >= most:
                return None
            blocks.append(_close(parts, used, last, block_size))
            parts = []
            used = 0
        parts.append(head(number, size, length, kind) + name + _PADDING[length & 3])
        used += size
        last = entry
    if last is not None:
        blocks.append(_close(parts, used, last, block_size))
    return blocks


def _close(parts: list[bytes], used: int, last: Entry, block_size: int) -> bytes:
    """Join a block's entries; the last one reaches to the block's end."""
    name, number, kind = last
    size = block_size - used + len(parts[-1])
    parts[-1] = _HEAD.pack(number, size, len(name), kind) + name
    return b"".join(parts).ljust(block_size, b"\0")


def _indexed(
    number: int,
    parent: int,
    entries: list[Entry],
    block_size: int,
    name_hash: Callable[[bytes], int],
) -> list[bytes]:
    hashed = sorted(
        ((name_hash(entry[0]), order, entry) for order, entry in enumerate(entries)),
        key=lambda item: item[:2],
    )
    leaves: list[tuple[int, bytes]] = []
    _cut(hashed, 0, 0, block_size, leaves)
    root_limit, node_limit = _root_limit(block_size), _node_limit(block_size)
    nodes: list[bytes] = []
    if len(leaves) <= root_limit:
        above = [(start, 1 + index) for index, (start, _) in enumerate(leaves)]
    else:
        count = -(-len(leaves) // node_limit)
        if count > root_limit:
            raise InvalidInput(
                f"a directory with {len(entries)} names is too large for blocks of {block_size}",
                operation="make ext4",
                remedy="use a larger block size: --block-size 4096",
            )
        above = []
        for node in range(count):
            first = node * node_limit
            part = leaves[first : first + node_limit]
            pairs = [(start, 1 + count + first + i) for i, (start, _) in enumerate(part)]
            index = _pack_index(pairs, node_limit)
            nodes.append((_HEAD.pack(0, block_size, 0, 0) + index).ljust(block_size, b"\0"))
            above.append((part[0][0], 1 + node))
    root = (
        _HEAD.pack(number, 12, 1, DIRECTORY_TYPE)
        + b".\0\0\0"
        + _HEAD.pack(parent, block_size - 12, 2, DIRECTORY_TYPE)
        + b"..\0\0"
        + _ROOT_INFO.pack(0, VERSION, 8, 1 if nodes else 0, 0)
        + _pack_index(above, root_limit)
    )
    return [root.ljust(block_size, b"\0"), *nodes, *(data for _, data in leaves)]


def _pack_index(pairs: list[tuple[int, int]], limit: int) -> bytes:
    """Return limit, count and the entries; the first one's hash is taken for the lowest."""
    head = _LIMIT.pack(limit, len(pairs), pairs[0][1])
    return head + b"".join(_INDEX.pack(start, block) for start, block in pairs[1:])


def _cut(
    hashed: list[tuple[int, int, Entry]],
    bit: int,
    start: int,
    block_size: int,
    leaves: list[tuple[int, bytes]],
) -> None:
    """Append the leaves for names whose hashes begin with the ``bit`` bits of ``start``."""
    entries = [entry for _, _, entry in sorted(hashed, key=lambda item: item[1])]
    blocks = _pack(entries, block_size, 1)
    if blocks is not None:
        if blocks:
            leaves.append((start, blocks[0]))
        return
    if bit == _HASH_BITS - 1:  # one hash, many names: the index says that it goes on
        blocks = _pack(entries, block_size, None) or []
        leaves.extend((start | bool(index), block) for index, block in enumerate(blocks))
        return
    middle = start | 1 << (_HASH_BITS - 1 - bit)
    lower = [item for item in hashed if item[0] < middle]
    _cut(lower, bit + 1, start, block_size, leaves)
    _cut(hashed[len(lower) :], bit + 1, middle, block_size, leaves)


def _root_limit(block_size: int) -> int:
    return (block_size - DOTS - _ROOT_INFO.size) // _INDEX.size


def _node_limit(block_size: int) -> int:
    return (block_size - _HEAD.size) // _INDEX.size
