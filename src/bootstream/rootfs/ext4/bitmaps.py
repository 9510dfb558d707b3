"""Which blocks are in use, as one bit a block."""

from __future__ import annotations

from bootstream.rootfs.ext4.layout import Geometry


class Bitmap:
    """Bits for the blocks from the first one up to ``end`` groups; beyond, all are free.

    Args:
        geometry: where groups begin.
        blocks: of the file system; bits behind them count as in use.
        top: blocks below this one may be marked.
    """

    def __init__(self, geometry: Geometry, blocks: int, top: int) -> None:
        self._geometry = geometry
        self._blocks = blocks
        self._bytes = geometry.block_size
        self._bits = bytearray(geometry.groups(min(top, blocks)) * self._bytes)
        self._beyond: dict[int, int] = {}

    def use(self, block: int, count: int) -> None:
        """Mark blocks as in use."""
        self._set(block, count, used=True)

    def release(self, block: int, count: int) -> None:
        """Mark blocks as free."""
        self._set(block, count, used=False)

    def group(self, group: int) -> tuple[bytes, int]:
        """Return a group's bitmap block, and how many of its blocks are free."""
        size = min(self._geometry.group_blocks, self._blocks - self._geometry.group_start(group))
        start = group * self._bytes
        data = bytearray(self._bits[start : start + self._bytes])
        if not data:
            used = self._beyond.get(group, 0)
            data = bytearray(self._bytes)
            _fill(data, 0, used, used=True)
        _fill(data, size, len(data) * 8 - size, used=True)
        return bytes(data), len(data) * 8 - int.from_bytes(data, "little").bit_count()

    def _set(self, block: int, count: int, *, used: bool) -> None:
        first = block - self._geometry.first_block
        if first >= len(self._bits) * 8:  # a backup in a group that has nothing else
            self._beyond[self._geometry.group_of(block)] = count
            return
        _fill(self._bits, first, count, used=used)


def _fill(bits: bytearray, first: int, count: int, *, used: bool) -> None:
    stop = first + count
    while first < stop and first & 7:
        _one(bits, first, used=used)
        first += 1
    while stop > first and stop & 7:
        stop -= 1
        _one(bits, stop, used=used)
    if stop > first:
        length = (stop - first) >> 3
        bits[first >> 3 : stop >> 3] = b"\xff" * length if used else bytes(length)


def _one(bits: bytearray, index: int, *, used: bool) -> None:
    if used:
        bits[index >> 3] |= 1 << (index & 7)
    else:
        bits[index >> 3] &= ~(1 << (index & 7))
