"""The states of an overlay's blocks: a byte each, in memory that is taken when it is written to.

An overlay over 10 GiB has 2.5 MiB of states, and a host has hundreds of overlays, few of whose
blocks are ever written: a ``bytearray`` would take all of it at once.
"""

from __future__ import annotations

import mmap


class States(mmap.mmap):
    """A byte a block, all zeros at first. Indexed, sliced and searched as a ``bytearray``.

    Args:
        count: of blocks, at least 1.
    """

    def __new__(cls, count: int) -> States:
        """Take the room, not the memory."""
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        return super().__new__(cls, -1, count, flags=flags)

    def has(self, state: int, first: int, stop: int) -> bool:
        """Tell whether a block of ``[first, stop)`` is in this state."""
        return self.find(bytes([state]), first, stop) >= 0
