"""Where an artifact's chunks live: zeros, this build's own, and each ancestor's."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from bootstream.chunks.index import Index


@dataclass(frozen=True, slots=True)
class Part:
    """Chunks of one home.

    ``chunks`` and ``size`` (bytes) are of the artifact and add up to it over all parts;
    ``distinct`` are places in packs, ``stored_size`` the bytes that they take there.
    ``build_id`` is None for zeros.
    """

    kind: Literal["zero", "own", "ancestor"]
    build_id: str | None
    chunks: int
    distinct: int
    size: int
    stored_size: int


def summarise(index: Index, build_id: str) -> list[Part]:
    """Sum up an index: zeros first, then the build's own, then ancestors as they are named.

    The first two are always there, if only with zeros as counts.
    """
    chunks = Counter(index.kinds())
    distinct = Counter(index.pack_numbers)
    stored: Counter[int] = Counter()
    for number, length in zip(index.pack_numbers, index.lengths, strict=True):
        stored[number] += length
    # the last chunk may be short, and counts as what it is
    missing = index.chunk_count * index.chunk_size - index.size
    last = index.kinds()[-1] if index.chunk_count else 0
    sizes = {kind: count * index.chunk_size for kind, count in chunks.items()}
    sizes[last] = sizes.get(last, 0) - missing
    parts: dict[str | None, Part] = {None: Part("zero", None, chunks[0], 0, sizes.get(0, 0), 0)}
    parts[build_id] = Part("own", build_id, 0, 0, 0, 0)
    for number, pack in enumerate(index.packs):
        before = parts.get(pack.build_id) or Part("ancestor", pack.build_id, 0, 0, 0, 0)
        parts[pack.build_id] = Part(
            before.kind,
            pack.build_id,
            before.chunks + chunks[1 + number],
            before.distinct + distinct[number],
            before.size + sizes.get(1 + number, 0),
            before.stored_size + stored[number],
        )
    return list(parts.values())
