"""The index of an artifact, used as it lies in memory; the format is docs/formats/index.md.

An index may have millions of chunks, so nothing here makes an object for each of
them. The columns are ``memoryview`` casts into the one buffer that was read; a
look-up takes one number out of each. What is checked over the whole index on
loading is checked by ``min`` and ``max`` over a column, which run in C. Beside the
buffer one byte a chunk is kept, zero or not, because ``bytes.find`` over it finds
the end of a run at memory speed.
"""

from __future__ import annotations

import hashlib
import itertools
import operator
import struct
import sys
from array import array
from collections.abc import Sequence
from typing import NamedTuple, cast
from uuid import UUID

from bootstream.chunks.names import artifact_path, pack_path, validate_artifact, validate_build_id
from bootstream.errors import Corrupt, InvalidInput

MAGIC = b"\x89bsidx\r\n"
VERSION = 1
RAW_FORM = 1
HEADER = struct.Struct("<8sHHIQIII28x")
PACK_ENTRY = struct.Struct("<16sBB64s14x")
CHECKSUM_SIZE = hashlib.sha256().digest_size
DIGEST_SIZE = hashlib.sha256().digest_size
ENTRY_SIZE = 8 + 4 + 4 + 2 + DIGEST_SIZE

MIN_CHUNK_SIZE = 4 << 10
MAX_CHUNK_SIZE = 16 << 20
MAX_CHUNKS = 1 << 28
MAX_PACKS = 65_534
MAX_OFFSET = 1 << 62
MAX_INDEX_SIZE = 2 << 30

Numbers = Sequence[int]


class Pack(NamedTuple):
    """An object that holds chunks: a build's frames, or a raw artifact itself."""

    build_id: str
    artifact: str
    raw: bool

    @property
    def path(self) -> str:
        """The object's path in the store."""
        return (artifact_path if self.raw else pack_path)(self.build_id, self.artifact)


class ChunkRef(NamedTuple):
    """Where a chunk is stored.

    ``pack`` is a number of the index's ``packs``, ``ordinal`` the frame's number in
    that pack, ``offset`` and ``length`` are stored bytes, ``sha256`` is the digest (32
    bytes) of the chunk's own.
    """

    pack: int
    ordinal: int
    offset: int
    length: int
    sha256: bytes


def frame_bound(chunk_size: int) -> int:
    """The most bytes that the frame of a chunk may take."""
    return chunk_size + (chunk_size >> 8) + 64


def valid_chunk_size(chunk_size: int) -> bool:
    """Tell whether it is a power of two within the format's limits."""
    return MIN_CHUNK_SIZE <= chunk_size <= MAX_CHUNK_SIZE and chunk_size.bit_count() == 1


def little_endian(view: memoryview, code: str, *, byteorder: str = sys.byteorder) -> Numbers:
    """Return little-endian numbers of the ``array`` type ``code`` that ``view`` holds.

    No copy on a little-endian host; a swapped copy on another.
    """
    if byteorder == "little":
        return cast("Numbers", view.cast(code))  # type: ignore[call-overload]  # any native code
    numbers = array(code)
    numbers.frombytes(view)
    numbers.byteswap()
    return memoryview(numbers)


class Index:
    """Where every chunk of one artifact is. Immutable, so safe to use from many threads.

    The columns are open to code that works on the whole index: ``positions`` by chunk
    (0 for zeros, else 1 + entry), the others by entry; ``digests`` has 32 bytes each.

    Attributes:
        name: what errors call it, e.g. the object's path.
        size: the artifact's size in bytes.
        chunk_size: bytes of every chunk but perhaps the last.
        chunk_count: how many chunks there are, zeros included.
        entry_count: how many places in packs it names.
        raw: whether it is the index of an artifact of the raw form.
        packs: the objects that entries are in, by number.
        digest: the hex sha256 of the index object itself.
    """

    __slots__ = (
        "_data_map",
        "chunk_count",
        "chunk_size",
        "digest",
        "digests",
        "entry_count",
        "lengths",
        "name",
        "offsets",
        "ordinals",
        "pack_numbers",
        "packs",
        "positions",
        "raw",
        "size",
    )

    def __init__(self, data: bytes | bytearray | memoryview, *, name: str) -> None:
        view = memoryview(data).cast("B")
        self.name = name
        self.digest = _check_seal(view, name)
        (_, _, flags, chunk_size, size, chunks, entries, packs) = HEADER.unpack_from(view)
        self.size: int = size
        self.chunk_size: int = chunk_size
        self.chunk_count: int = chunks
        self.entry_count: int = entries
        self.raw = bool(flags & RAW_FORM)
        self._check_header(view, flags, packs)
        at = HEADER.size
        columns: list[memoryview] = []
        for width in (8 * entries, 4 * chunks, 4 * entries, 4 * entries, 2 * entries, 32 * entries):
            columns.append(view[at : at + width])
            at += width
        self.offsets = little_endian(columns[0], "Q")
        self.positions = little_endian(columns[1], "I")
        self.ordinals = little_endian(columns[2], "I")
        self.lengths = little_endian(columns[3], "I")
        self.pack_numbers = little_endian(columns[4], "H")
        self.digests = columns[5]
        self.packs = tuple(
            self._pack(view, at + number * PACK_ENTRY.size) for number in range(packs)
        )
        self._check_columns()
        self._data_map = bytes(map(bool, self.positions))
        if self.raw:
            self._check_identity()

    @classmethod
    def parse(cls, data: bytes | bytearray | memoryview, *, name: str) -> Index:
        """Read an index that lies in ``data``, which must not change afterwards.

        Raises:
            InvalidInput: a version that this program does not know yet.
            Corrupt: anything else that is not as the format says.
        """
        return cls(data, name=name)

    # -- what it says ---------------------------------------------------------------------

    def lookup(self, chunk: int) -> ChunkRef | None:
        """Return where the chunk is stored, None for zeros. ``0 <= chunk < chunk_count``."""
        position = self.positions[chunk]
        if position == 0:
            return None
        return self.entry(position - 1)

    def entry(self, number: int) -> ChunkRef:
        """Return an entry by its number. ``0 <= number < entry_count``."""
        return ChunkRef(
            self.pack_numbers[number],
            self.ordinals[number],
            self.offsets[number],
            self.lengths[number],
            bytes(self.digests[number * DIGEST_SIZE : (number + 1) * DIGEST_SIZE]),
        )

    def chunk_length(self, chunk: int) -> int:
        """Return the chunk's own bytes: ``chunk_size``, or less for the last."""
        return min(self.chunk_size, self.size - chunk * self.chunk_size)

    def is_zero(self, chunk: int) -> bool:
        """Tell whether the chunk is all zeros and stored nowhere."""
        return not self._data_map[chunk]

    def run(self, chunk: int, limit: int) -> tuple[int, bool]:
        """Measure the run of chunks of one kind, zeros or not, that begins at ``chunk``.

        Args:
            chunk: the first; must exist.
            limit: at most so many are looked at, at least 1.

        Returns:
            How many chunks, at most ``limit`` and at most to the end; and whether zeros.
        """
        kind = self._data_map[chunk]
        end = min(chunk + limit, self.chunk_count)
        found = self._data_map.find(1 - kind, chunk, end)
        return (end if found < 0 else found) - chunk, not kind

    def kinds(self) -> bytes | array[int]:
        """Return one value a chunk: 0 for zeros, else 1 + the pack's number."""
        values = array("H", [0])
        values.extend(map((1).__add__, self.pack_numbers))
        chosen = map(values.__getitem__, self.positions)
        return bytes(chosen) if len(self.packs) < 255 else array("H", chosen)

    # -- what is checked on loading -------------------------------------------------------

    def _corrupt(self, message: str) -> Corrupt:
        return corrupt_index(message, self.name)

    def _check_header(self, view: memoryview, flags: int, packs: int) -> None:
        if flags & ~RAW_FORM:
            raise self._corrupt(f"unknown flags {flags:#x}")
        if any(view[36 : HEADER.size]):
            raise self._corrupt("the header's unused bytes are not zeros")
        if not valid_chunk_size(self.chunk_size):
            raise self._corrupt(f"{self.chunk_size} is not a chunk size")
        if self.chunk_count > MAX_CHUNKS or self.chunk_count != -(-self.size // self.chunk_size):
            raise self._corrupt(f"{self.chunk_count} chunks do not make {self.size} bytes")
        if self.entry_count > self.chunk_count or packs > MAX_PACKS:
            raise self._corrupt(f"{self.entry_count} entries in {packs} packs are too many")
        if self.raw and packs != 1:
            raise self._corrupt(f"the raw form names one object, not {packs}")
        expected = HEADER.size + 4 * self.chunk_count + ENTRY_SIZE * self.entry_count
        expected += PACK_ENTRY.size * packs + CHECKSUM_SIZE
        if len(view) != expected:
            raise self._corrupt(f"it has {len(view)} bytes where its header says {expected}")

    def _pack(self, view: memoryview, at: int) -> Pack:
        identity, raw, length, name = PACK_ENTRY.unpack_from(view, at)
        if (
            raw > 1
            or length > len(name)
            or any(name[length:])
            or any(view[at + 82 : at + PACK_ENTRY.size])
        ):
            raise self._corrupt("an entry of its pack table is malformed")
        try:
            return Pack(
                validate_build_id(str(UUID(bytes=identity))),
                validate_artifact(name[:length].decode("ascii")),
                raw == 1,
            )
        except (UnicodeDecodeError, InvalidInput) as error:
            raise self._corrupt("its pack table has a name that is none") from error

    def _check_columns(self) -> None:
        if len(set(self.packs)) != len(self.packs):
            raise self._corrupt("a pack stands in its table twice")
        if max(self.positions, default=0) > self.entry_count:
            raise self._corrupt("a chunk has an entry that does not exist")
        if not self.entry_count:
            return
        if max(self.pack_numbers) >= len(self.packs):
            raise self._corrupt("an entry is in a pack that does not exist")
        if max(self.ordinals) >= MAX_CHUNKS or max(self.offsets) >= MAX_OFFSET:
            raise self._corrupt("an entry lies beyond the format's limits")
        if min(self.lengths) < 1 or max(self.lengths) > frame_bound(self.chunk_size):
            raise self._corrupt("an entry has a length that no frame can have")

    def _check_identity(self) -> None:
        """Check the raw form: every entry is its chunk's own place in the raw object."""
        own = itertools.compress(itertools.count(), self._data_map)
        places = map(self.chunk_size.__mul__, self.ordinals)
        sound = (
            self.packs[0].raw
            and sum(self._data_map) == self.entry_count
            and all(map(operator.eq, filter(None, self.positions), itertools.count(1)))
            and all(map(operator.eq, self.ordinals, own))
            and all(map(operator.eq, self.offsets, places))
        )
        if not sound:
            raise self._corrupt("the raw form has a chunk that is not at its own place")


def corrupt_index(message: str, name: str) -> Corrupt:
    """Make the error for a damaged index."""
    return Corrupt(
        message,
        operation="read index",
        object=name,
        remedy="delete the build and make it again; 'bootstream verify' names all that is damaged",
    )


def _check_seal(view: memoryview, name: str) -> str:
    """Check what all versions share, then the version; return the digest of the whole."""
    if len(view) < HEADER.size + CHECKSUM_SIZE or len(view) > MAX_INDEX_SIZE:
        raise corrupt_index(f"{len(view)} bytes are no index", name)
    if view[:8] != MAGIC:
        raise corrupt_index("it is not an index", name)
    state = hashlib.sha256(view[:-CHECKSUM_SIZE])
    if state.digest() != view[-CHECKSUM_SIZE:]:
        raise corrupt_index("its checksum does not fit its bytes", name)
    version = int.from_bytes(view[8:10], "little")
    if version > VERSION:
        raise InvalidInput(
            f"the index has version {version}; this program reads up to {VERSION}",
            operation="read index",
            object=name,
            remedy="upgrade bootstream on this host",
        )
    if version < 1:
        raise corrupt_index(f"there is no version {version}", name)
    state.update(view[-CHECKSUM_SIZE:])
    return state.hexdigest()
