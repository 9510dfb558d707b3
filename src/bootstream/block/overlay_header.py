"""The overlay file's header: what is where, and which layers belong together.

The format is docs/formats/overlay.md. Version 1 is a file that was never frozen; the
first freeze makes it version 2, which adds the chain of layers.
"""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

BLOCK = 4096
PAGE_STATES = 4080
PAGE_SIZE = 16 + PAGE_STATES
HEADER_SIZE = 4096
MAGIC = b"BSOVRLAY"
NEWEST_VERSION = 2
MAX_LAYERS = 16
"""So many layers a chain may have; it has two, but for commits that failed."""

_MAP = 2 * HEADER_SIZE
_ALIGNMENT = 1 << 20
_FIELDS = struct.Struct("<8sIIQQQQ16sI128s")
_CHAIN = struct.Struct("<QI")
_CHAIN_AT = 200
_LAYER = struct.Struct("<16sII16s32s56x")
_LAYERS_AT = 256
_COMMITTED = 1
_CRC = struct.Struct("<I")


class Committed(NamedTuple):
    """The build that a layer, with all below it, is equal to; and its index's hex sha256."""

    build_id: str
    index_sha256: str


class LayerEntry(NamedTuple):
    """A layer of a chain: its random id (16 bytes), and the slot that it lies in."""

    identity: bytes
    slot: int
    committed: Committed | None = None


@dataclass(frozen=True, slots=True)
class Header:
    """The fields of a header; sizes and offsets in bytes.

    ``map_a``, ``map_b`` and ``data`` are those of slot 0; every further slot lies ``stride``
    bytes after the one before. ``chain`` has the layers, bottom first; the last is written to.
    """

    version: int
    block_size: int
    size: int
    map_a: int
    map_b: int
    data: int
    identity: bytes
    base_digest: str
    generation: int
    chain: tuple[LayerEntry, ...]

    @classmethod
    def make(cls, size: int, base_digest: str) -> Header:
        """The header of a new overlay over a base of ``size`` bytes."""
        map_size = page_count(size) * PAGE_SIZE
        end = _MAP + 2 * map_size
        identity = os.urandom(16)
        return cls(
            version=1,
            block_size=BLOCK,
            size=size,
            map_a=_MAP,
            map_b=_MAP + map_size,
            data=_align(end),
            identity=identity,
            base_digest=base_digest,
            generation=0,
            chain=(LayerEntry(identity, 0),),
        )

    @property
    def blocks(self) -> int:
        """How many blocks the device has."""
        return -(-self.size // BLOCK)

    @property
    def stride(self) -> int:
        """The distance between two slots in bytes."""
        return _align(self.data + self.blocks * BLOCK)

    def end_of(self, slot: int) -> int:
        """Where the slot ends in the file."""
        return slot * self.stride + self.data + self.blocks * BLOCK

    @property
    def file_size(self) -> int:
        """The size in bytes that the file has at least, most of it perhaps a hole."""
        return self.end_of(max(layer.slot for layer in self.chain))

    def to_bytes(self) -> bytes:
        """The header's 4096 bytes."""
        digest = self.base_digest.encode()
        fields = bytearray(HEADER_SIZE - _CRC.size)
        _FIELDS.pack_into(
            fields,
            0,
            MAGIC,
            self.version,
            self.block_size,
            self.size,
            self.map_a,
            self.map_b,
            self.data,
            self.identity,
            len(digest),
            digest,
        )
        if self.version > 1:
            _CHAIN.pack_into(fields, _CHAIN_AT, self.generation, len(self.chain))
            for number, layer in enumerate(self.chain):
                _pack_layer(fields, _LAYERS_AT + number * _LAYER.size, layer)
        return bytes(fields) + _CRC.pack(zlib.crc32(fields))

    @classmethod
    def parse(cls, data: bytes) -> Header | None:
        """Return the header in ``data``, None if it is not whole.

        Of a version that is not known only the fields of version 1 are read.
        """
        if len(data) != HEADER_SIZE or not data.startswith(MAGIC):
            return None
        if _CRC.pack(zlib.crc32(data[: -_CRC.size])) != data[-_CRC.size :]:
            return None
        _, version, block_size, size, map_a, map_b, start, identity, length, text = (
            _FIELDS.unpack_from(data)
        )
        try:
            digest = text[:length].decode()
        except UnicodeDecodeError:
            return None
        generation = 0
        chain: tuple[LayerEntry, ...] = (LayerEntry(identity, 0),)
        if version == NEWEST_VERSION:
            generation, count = _CHAIN.unpack_from(data, _CHAIN_AT)
            if not 1 <= count <= MAX_LAYERS:
                return None
            chain = tuple(
                _unpack_layer(data, _LAYERS_AT + number * _LAYER.size) for number in range(count)
            )
            slots = {layer.slot for layer in chain}
            if len(slots) != count or max(slots) >= MAX_LAYERS:
                return None
        return cls(
            version, block_size, size, map_a, map_b, start, identity, digest, generation, chain
        )


def page_count(size: int) -> int:
    """How many map pages a device of ``size`` bytes has."""
    blocks = -(-size // BLOCK)
    return -(-blocks // PAGE_STATES)


def _align(offset: int) -> int:
    return -(-offset // _ALIGNMENT) * _ALIGNMENT


def _pack_layer(fields: bytearray, at: int, layer: LayerEntry) -> None:
    flags, build, digest = 0, b"", b""
    if layer.committed is not None:
        flags = _COMMITTED
        build = UUID(layer.committed.build_id).bytes
        digest = bytes.fromhex(layer.committed.index_sha256)
    _LAYER.pack_into(fields, at, layer.identity, layer.slot, flags, build, digest)


def _unpack_layer(data: bytes, at: int) -> LayerEntry:
    identity, slot, flags, build, digest = _LAYER.unpack_from(data, at)
    committed = Committed(str(UUID(bytes=build)), digest.hex()) if flags & _COMMITTED else None
    return LayerEntry(identity, slot, committed)
