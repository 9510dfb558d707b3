"""Finding a chunk's entry by its sha256 without a Python object per chunk.

Open addressing over an array of entry numbers; the digests themselves stay in the
column where they lie anyway. A dictionary with a million digests takes some 200 MB,
this takes 4 to 16 bytes an entry. The hash is Python's own, which is keyed anew in
every process: no index can be made that fills one corner of the table.
"""

from __future__ import annotations

import struct
from array import array

from bootstream.chunks.index import DIGEST_SIZE

_FIRST_SLOTS = 1 << 10


class DigestTable:
    """Entry numbers by digest. One thread appends; any thread may find meanwhile.

    Args:
        digests: a column of digests, which the table then looks into.
    """

    def __init__(self, digests: bytes | bytearray | memoryview = b"") -> None:
        self._column = digests
        self._count = len(digests) // DIGEST_SIZE
        self._slots = self._filled(self._count)

    def find(self, digest: bytes) -> int:
        """Return the number of the entry with this digest, -1 where there is none.

        Beside an append it may still miss what is being appended, but never errs otherwise.
        """
        slots = self._slots
        mask = len(slots) - 1
        slot = hash(digest) & mask
        while number := slots[slot]:
            if self._column[(number - 1) * DIGEST_SIZE : number * DIGEST_SIZE] == digest:
                return number - 1
            slot = (slot + 1) & mask
        return -1

    def _filled(self, room: int) -> array[int]:
        """Make a table of everything in the column, at most half full with ``room`` entries."""
        size = _FIRST_SLOTS
        while size < 2 * room:
            size *= 2
        slots = array("I", bytes(4 * size))
        mask = size - 1
        column = self._column
        for number, (digest,) in enumerate(struct.iter_unpack(f"{DIGEST_SIZE}s", column), 1):
            slot = hash(digest) & mask
            while other := slots[slot]:
                if column[(other - 1) * DIGEST_SIZE : other * DIGEST_SIZE] == digest:
                    break
                slot = (slot + 1) & mask
            else:
                slots[slot] = number
        return slots


class GrowingDigests(DigestTable):
    """A digest column that is being written, and the table of it."""

    def __init__(self) -> None:
        self.column = bytearray()
        super().__init__(self.column)

    def append(self, digest: bytes) -> int:
        """Add a digest; return its number. One that is there already is found by its first."""
        if 2 * (self._count + 1) > len(self._slots):
            self._grow()
        self.column += digest  # before its slot: whoever finds the slot finds the digest
        self._count += 1
        mask = len(self._slots) - 1
        slot = hash(digest) & mask
        while other := self._slots[slot]:
            if self.column[(other - 1) * DIGEST_SIZE : other * DIGEST_SIZE] == digest:
                break
            slot = (slot + 1) & mask
        else:
            self._slots[slot] = self._count
        return self._count - 1

    def _grow(self) -> None:
        # iter_unpack holds the column, which cannot grow meanwhile: only this thread appends
        self._slots = self._filled(2 * self._count)
