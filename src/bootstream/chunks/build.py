"""Making an index: columns that grow chunk by chunk, in order; docs/formats/index.md."""

from __future__ import annotations

import hashlib
import sys
from array import array
from bisect import bisect_right
from collections.abc import Container
from itertools import accumulate
from uuid import UUID

from bootstream.chunks.digests import DigestTable, GrowingDigests
from bootstream.chunks.index import (
    DIGEST_SIZE,
    HEADER,
    MAGIC,
    MAX_CHUNKS,
    MAX_INDEX_SIZE,
    MAX_PACKS,
    PACK_ENTRY,
    RAW_FORM,
    VERSION,
    Index,
    Pack,
    valid_chunk_size,
)
from bootstream.errors import InvalidInput


class IndexBuilder:
    """An index while it grows. One thread adds; any thread may ask ``known`` meanwhile.

    Args:
        own: the pack, or raw object, that new chunks go to.
        size: the artifact's size in bytes.
        chunk_size: in bytes.
        parent: an index with the same chunk size, whose chunks are referred to.
        rewrite: numbers of entries of the parent that are not.
    """

    def __init__(
        self,
        own: Pack,
        size: int,
        chunk_size: int,
        parent: Index | None,
        *,
        rewrite: Container[int] = (),
    ) -> None:
        _check_limits(own, size, chunk_size)
        self.own = own
        self._rewrite = rewrite
        self._size = size
        self.chunk_size = chunk_size
        # The table has room for what a parent names and one more; a history with more packs
        # than that begins anew.
        self._parent = parent if parent is not None and len(parent.packs) < MAX_PACKS else None
        self._parent_digests = DigestTable(b"" if self._parent is None else self._parent.digests)
        self._digests = GrowingDigests()
        self._offsets = array("Q")
        self._positions = array("I")
        self._ordinals = array("I")
        self._lengths = array("I")
        self._pack_numbers = array("H")
        self._packs: dict[Pack, int] = {}
        self._inherited = array("I")
        if own.raw:
            self._packs[own] = 0
        self.stored_bytes = 0
        self.zero_chunks = 0
        self.parent_chunks = 0
        self.duplicate_chunks = 0
        self.new_chunks = 0

    @property
    def chunk_count(self) -> int:
        """How many chunks were added."""
        return len(self._positions)

    def known(self, digest: bytes) -> bool:
        """Tell whether the chunk needs no frame; a no may come too early, a yes is final."""
        if self._digests.find(digest) >= 0:
            return True
        number = self._parent_digests.find(digest)
        return number >= 0 and number not in self._rewrite

    def add_zeros(self, count: int) -> None:
        """Add ``count`` chunks of zeros."""
        self._positions.frombytes(bytes(4 * count))
        self.zero_chunks += count

    def refer(self, digest: bytes) -> bool:
        """Add a chunk that this image or the parent has; False, and nothing, if neither has."""
        number = self._digests.find(digest)
        if number >= 0:
            own = self._pack_numbers[number] == self._packs.get(self.own, -1)
            self.duplicate_chunks += own
            self.parent_chunks += not own
            self._positions.append(1 + number)
            return True
        if self._parent is None:
            return False
        found = self._parent_digests.find(digest)
        if found < 0 or found in self._rewrite:
            return False
        self._add_entry(self._parent, found)
        self.parent_chunks += 1
        return True

    def inherit(self, first: int, count: int) -> None:
        """Add ``count`` chunks as the parent has them from ``first`` on.

        Raises InvalidInput where there is no parent that can be referred to.
        """
        parent = self._parent
        if parent is None:
            raise InvalidInput(
                "there is no parent to refer to, or its history has too many packs",
                operation="write artifact",
                object=self.own.artifact,
                remedy="store every chunk anew ('bootstream flatten')",
            )
        places = self._inherited
        if not places:
            places.frombytes(bytes(4 * parent.entry_count))
        for position in parent.positions[first : first + count]:
            if not position:
                self._positions.append(0)
                self.zero_chunks += 1
                continue
            place = places[position - 1]
            if place:
                self._positions.append(place)
            else:
                digest = parent.digests[(position - 1) * DIGEST_SIZE : position * DIGEST_SIZE]
                known = self._digests.find(bytes(digest))
                if known >= 0:
                    self._positions.append(1 + known)
                else:
                    self._add_entry(parent, position - 1)
                places[position - 1] = self._positions[-1]
            self.parent_chunks += 1

    def _add_entry(self, parent: Index, number: int) -> None:
        ref = parent.entry(number)
        self._add(parent.packs[ref.pack], ref.ordinal, ref.offset, ref.length, ref.sha256)

    def store(self, length: int, digest: bytes) -> None:
        """Add a chunk whose frame follows in the own pack and takes ``length`` bytes."""
        self._add(self.own, self.new_chunks, self.stored_bytes, length, digest)
        self.stored_bytes += length
        self.new_chunks += 1

    def place(self, digest: bytes, length: int) -> None:
        """Add a chunk of the raw form, which is where it is in the artifact."""
        chunk = self.chunk_count
        self._add(self.own, chunk, chunk * self.chunk_size, length, digest)
        self.new_chunks += 1

    def _add(self, pack: Pack, ordinal: int, offset: int, length: int, digest: bytes) -> None:
        number = self._digests.append(digest)
        self._pack_numbers.append(self._packs.setdefault(pack, len(self._packs)))
        self._ordinals.append(ordinal)
        self._offsets.append(offset)
        self._lengths.append(length)
        self._positions.append(1 + number)

    # -- the finished index ---------------------------------------------------------------

    def finish(self) -> IndexPieces:
        """Return the index object; nothing may be added afterwards.

        Raises:
            InvalidInput: it is larger than the format allows.
        """
        columns = [self._offsets, self._positions, self._ordinals]
        columns += [self._lengths, self._pack_numbers]
        if sys.byteorder != "little":
            for column in columns:
                column.byteswap()
        header = HEADER.pack(
            MAGIC,
            VERSION,
            RAW_FORM if self.own.raw else 0,
            self.chunk_size,
            self._size,
            self.chunk_count,
            len(self._lengths),
            len(self._packs),
        )
        table = b"".join(_pack_entry(pack) for pack in self._packs)
        parts = [memoryview(header)]
        parts += [memoryview(column).cast("B") for column in columns]
        parts += [memoryview(self._digests.column), memoryview(table)]
        return IndexPieces(parts, self.own)


class IndexPieces:
    """A finished index object, as a ``Source`` for its upload that can go back.

    Attributes:
        size: of the object, in bytes.
        sha256: of the object, in hex.
    """

    def __init__(self, parts: list[memoryview], own: Pack) -> None:
        seal = hashlib.sha256()
        for part in parts:
            seal.update(part)
        checksum = seal.digest()
        seal.update(checksum)
        self.sha256 = seal.hexdigest()
        self._parts = [*parts, memoryview(checksum)]
        self._starts = [0, *accumulate(map(len, self._parts))]
        self._position = 0
        self.size = self._starts[-1]
        if self.size > MAX_INDEX_SIZE:
            raise _too_large(own)

    def read(self, size: int, /) -> memoryview:
        """Return the next bytes, none at the end."""
        part = bisect_right(self._starts, self._position) - 1
        if part == len(self._parts):
            return memoryview(b"")
        start = self._position - self._starts[part]
        piece = self._parts[part][start : start + size]
        self._position += len(piece)
        return piece

    def seekable(self) -> bool:
        """An index can be uploaded again from its start."""
        return True

    def tell(self) -> int:
        """Return how many bytes were read."""
        return self._position

    def seek(self, position: int, /) -> int:
        """Go to a position that ``tell`` gave."""
        self._position = position
        return position


def _pack_entry(pack: Pack) -> bytes:
    name = pack.artifact.encode("ascii")
    return PACK_ENTRY.pack(UUID(pack.build_id).bytes, pack.raw, len(name), name)


def _check_limits(own: Pack, size: int, chunk_size: int) -> None:
    if not valid_chunk_size(chunk_size):
        raise InvalidInput(
            f"{chunk_size} is not a chunk size",
            operation="write artifact",
            object=own.artifact,
            remedy="choose a power of two from 4K to 16M",
        )
    if -(-size // chunk_size) > MAX_CHUNKS:
        raise _too_large(own)


def _too_large(own: Pack) -> InvalidInput:
    return InvalidInput(
        "it has more chunks than an index can hold",
        operation="write artifact",
        object=own.artifact,
        remedy="choose a larger chunk size, and no parent with a smaller one",
    )
