"""File data on the way to their blocks.

Small files go one after the other into arenas of 256 KiB; a file of 64 KiB or more
begins on a 64 KiB border of its own, so that its chunks are the same wherever it lies, in
this image's next build or in another image. Zeros over 32 KiB become holes.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator

from bootstream.rootfs.ext4.extents import MAX_LENGTH, add_run, build
from bootstream.rootfs.ext4.layout import ALIGNMENT, Allocator
from bootstream.rootfs.ext4.output import Output
from bootstream.rootfs.nodes import Extents, Node

ARENA = 1 << 18
HOLE = 1 << 15
PIECE = 1 << 20
_ZEROS = bytes(PIECE)


class FileData:
    """Puts the data of files, in the order in which they come, to their final place."""

    def __init__(self, allocator: Allocator, output: Output, block_size: int) -> None:
        self._allocator = allocator
        self._output = output
        self._block_size = block_size
        self._arena = 0
        self._arena_left = 0
        self._hole = HOLE // block_size
        self._heads = bytes(self._hole)

    def small(self, node: Node, data: bytes) -> None:
        """Store a file of less than ``ALIGNMENT`` bytes, or a symlink's target, in one run."""
        node.count = count = -(-len(data) // self._block_size)
        if count > self._arena_left:
            self._new_arena()
        node.block = self._arena
        self._arena += count
        self._arena_left -= count
        self._output.append(node.block, data)

    def small_block(self) -> int:
        """Return one block among the small files, for a part of a tree or attributes."""
        if not self._arena_left:
            self._new_arena()
        self._arena += 1
        self._arena_left -= 1
        return self._arena - 1

    def large(self, node: Node, pieces: Iterator[tuple[int, bytes]]) -> None:
        """Store a file from pieces: logical offset on a block's border, data.

        Only the last piece before a gap, or the file's end, may end inside a block. What
        lies between pieces are holes.
        """
        self._allocator.align()
        block_size = self._block_size
        runs: array[int] = array("Q")
        for offset, data in pieces:
            logical = offset // block_size
            for start, stop in self._runs_of_data(data):
                count = -(-(stop - start) // block_size)
                part = data if stop - start == len(data) else memoryview(data)[start:stop]
                self._store(runs, logical + start // block_size, count, part)
        self._allocator.align()
        if not runs:
            return
        if len(runs) == 3 and runs[0] == 0 and runs[1] <= MAX_LENGTH:
            node.count, node.block = runs[1], runs[2]
            return
        root, tree = build(runs, block_size, self.small_block, self._output.write)
        node.detail = Extents(runs, root, tree)

    def end_layer(self) -> None:
        """Leave the rest of the arena; go on at a border."""
        self._allocator.free.append((self._arena, self._arena_left))
        self._arena_left = 0
        self._allocator.align()

    def _new_arena(self) -> None:
        if self._arena_left:
            self._allocator.free.append((self._arena, self._arena_left))
        self._allocator.align()
        count = ARENA // self._block_size
        self._arena = self._allocator.take(count)
        self._arena_left = count

    def _store(self, runs: array[int], logical: int, count: int, data: bytes | memoryview) -> None:
        at = 0
        for block, length in self._allocator.take_runs(count):
            size = length * self._block_size
            whole = at == 0 and length == count
            self._output.write(block, data if whole else memoryview(data)[at : at + size])
            add_run(runs, logical, length, block)
            logical += length
            at += size

    def _runs_of_data(self, data: bytes) -> Iterator[tuple[int, int]]:
        """Yield the parts of ``data`` that are no hole, from block border to block border.

        The first byte of every block is a sample taken in one step; only where enough
        samples in a row are zero are blocks compared.
        """
        block_size = self._block_size
        if self._heads not in data[::block_size]:
            yield 0, len(data)
            return
        heads = data[::block_size]
        start = 0
        block = heads.find(self._heads)
        while block >= 0:
            first = block
            while block < len(heads) and not heads[block] and self._is_zero(data, block):
                block += 1
            if block - first >= self._hole:
                if first * block_size > start:
                    yield start, first * block_size
                start = min(block * block_size, len(data))
            block = heads.find(self._heads, max(block, first + 1))
        if start < len(data):
            yield start, len(data)

    def _is_zero(self, data: bytes, block: int) -> bool:
        part = data[block * self._block_size : (block + 1) * self._block_size]
        return part == _ZEROS[: len(part)]


def whole_pieces(read: Callable[[int], bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield a plain file's pieces."""
    offset = 0
    while data := read(PIECE):
        yield offset, data
        offset += len(data)


def sparse_pieces(
    read: Callable[[int], bytes], parts: array[int], block_size: int
) -> Iterator[tuple[int, bytes]]:
    """Yield a sparse file's pieces, from block border to block border.

    Args:
        read: the stored content, part after part.
        parts: flat pairs of offset and length, ascending; read in full.
        block_size: of the file system.
    """
    start = 0
    held = bytearray()
    for index in range(0, len(parts), 2):
        offset, length = parts[index], parts[index + 1]
        if not length:
            continue
        end = start + len(held)
        if held and offset // block_size > (end - 1) // block_size:
            yield start, bytes(held)
            held = bytearray()
        if not held:
            start = offset - offset % block_size
            end = start
        held += bytes(offset - end)
        while length:
            data = read(min(length, PIECE))
            held += data
            length -= len(data)
            if len(held) >= PIECE:
                whole = len(held) - len(held) % block_size
                yield start, bytes(held[:whole])
                start += whole
                del held[:whole]
    if held:
        yield start, bytes(held)


SMALL = ALIGNMENT
"""Bytes from which on a file gets a border of its own."""
