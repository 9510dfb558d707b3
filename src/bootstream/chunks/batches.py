"""Cutting the work on a whole artifact into steps of about equal size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from bootstream.chunks.index import Index

_STEP = 16 << 20


class Step(NamedTuple):
    """Chunks that are stored, and the span of the artifact in bytes that they complete."""

    chunks: list[int]
    span: int


def steps(index: Index, *, distinct: bool) -> Iterator[Step]:
    """Yield every chunk that is stored, in order, some MiB at a time.

    The spans add up to the artifact's size. ``distinct`` names each place in a pack once,
    by its first chunk.
    """
    most = max(1, _STEP // index.chunk_size)
    seen = bytearray(index.entry_count if distinct else 0)
    chunks: list[int] = []
    begin = position = 0
    while position < index.chunk_count:
        length, zero = index.run(position, most)
        if not zero:
            for chunk in range(position, position + length):
                entry = index.positions[chunk] - 1
                if distinct:
                    if seen[entry]:
                        continue
                    seen[entry] = 1
                chunks.append(chunk)
        position += length
        if len(chunks) >= most:
            end = min(position * index.chunk_size, index.size)
            yield Step(chunks, end - begin)
            chunks, begin = [], end
    if begin < index.size:
        yield Step(chunks, index.size - begin)
