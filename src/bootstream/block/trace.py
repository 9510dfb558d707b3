"""Traces: which chunks a boot touched first, in which order and when (docs/formats/trace.md).

A boot reads a few percent of an image, and nearly the same ones each time. A trace of one
boot, replayed at the start of the next one, turns many small requests that a guest waits for
into few large ones that nobody waits for.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from bootstream.errors import Corrupt, InvalidInput

VERSION = 1
MAX_SIZE = 8 << 20
"""Bytes of a stored trace; larger ones are refused."""
MOST_TOUCHES = 250_000
"""Of a trace. What comes later is left out: a boot needs a few thousand."""
MAX_CHUNKS = 1 << 28
_MAX_NUMBER = 1 << 32
_FIRST_WINDOW = 16
_LARGEST_WINDOW = 512


@dataclass(frozen=True, slots=True)
class Touch:
    """Neighbouring chunks that were first touched one after another.

    ``milliseconds`` count from the first touch of all.
    """

    milliseconds: int
    first: int
    count: int


@dataclass(frozen=True, slots=True)
class Trace:
    """First touches of an artifact's chunks, in order; each chunk at most once.

    ``index_sha256`` (hex) names the contents that it belongs to, ``boots`` how many boots it
    was made of.
    """

    index_sha256: str
    chunk_size: int
    touches: tuple[Touch, ...]
    boots: int = 1

    def chunks(self) -> Iterator[int]:
        """Yield the chunks in their order."""
        for touch in self.touches:
            yield from range(touch.first, touch.first + touch.count)

    def arranged(self) -> list[int]:
        """Return the chunks as they are best fetched: soon those that are wanted soon.

        In windows that double in size, each in the image's order: so neighbours that were
        touched at different moments come by one request, and still nothing comes much later
        than what is wanted at the same time.
        """
        chunks = list(self.chunks())
        start, size = 0, _FIRST_WINDOW
        while start < len(chunks):
            chunks[start : start + size] = sorted(chunks[start : start + size])
            start += size
            size = min(size * 2, _LARGEST_WINDOW)
        return chunks

    @property
    def chunk_count(self) -> int:
        """How many chunks there are."""
        return sum(touch.count for touch in self.touches)

    @property
    def end(self) -> int:
        """The number after the highest chunk's; 0 if there is none."""
        return max((touch.first + touch.count for touch in self.touches), default=0)

    @property
    def seconds(self) -> float:
        """From the first touch to the last one."""
        return self.touches[-1].milliseconds / 1000 if self.touches else 0.0

    def encode(self) -> bytes:
        """Return what is stored."""
        return json.dumps(
            {
                "version": VERSION,
                "index_sha256": self.index_sha256,
                "chunk_size": self.chunk_size,
                "boots": self.boots,
                "touches": [[t.milliseconds, t.first, t.count] for t in self.touches],
            },
            separators=(",", ":"),
        ).encode()

    @classmethod
    def decode(cls, data: bytes | memoryview, *, name: str) -> Trace:
        """Read what was stored; ``name`` is for errors.

        Raises:
            Corrupt: it is no trace.
            InvalidInput: a newer version wrote it.
        """
        if len(data) > MAX_SIZE:
            raise _corrupt("it is larger than a trace can be", name)
        try:
            value = json.loads(bytes(data))
            version = value["version"]
            if type(version) is int and version > VERSION:
                raise InvalidInput(
                    f"it has version {version}, which is newer than this program",
                    operation="read trace",
                    object=name,
                    remedy="upgrade bootstream",
                )
            digest, size, boots = value["index_sha256"], value["chunk_size"], value["boots"]
            entries = value["touches"]
            if type(entries) is not list or len(entries) > MOST_TOUCHES:
                raise ValueError("no list of touches")  # noqa: TRY301 - as any other damage
            touches = tuple(map(_touch, entries))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise _corrupt("it is not a trace", name) from error
        numbers = type(size) is int and size > 0 and type(boots) is int and boots > 0
        named = isinstance(digest, str) and _SHA256.fullmatch(digest) is not None
        if type(version) is not int or version != VERSION or not named or not numbers:
            raise _corrupt("its head is not that of a trace", name)
        if _overlap(touches):
            raise _corrupt("a chunk is in it twice", name)
        if any(a.milliseconds > b.milliseconds for a, b in pairwise(touches)):
            raise _corrupt("its touches are not in order", name)
        return cls(digest, size, touches, boots)


_SHA256 = re.compile(r"[0-9a-f]{64}")


def _touch(entry: Any) -> Touch:
    if type(entry) is not list or not all(type(number) is int for number in entry):
        raise ValueError("no touch")
    milliseconds, first, count = entry
    if not (0 <= milliseconds < _MAX_NUMBER and first >= 0 and count > 0):
        raise ValueError("no touch")
    if first + count > MAX_CHUNKS:
        raise ValueError("no chunk")
    return Touch(milliseconds, first, count)


def _overlap(touches: Sequence[Touch]) -> bool:
    end = 0
    for touch in sorted(touches, key=lambda touch: touch.first):
        if touch.first < end:
            return True
        end = touch.first + touch.count
    return False


def _corrupt(what: str, name: str) -> Corrupt:
    return Corrupt(
        what,
        operation="read trace",
        object=name,
        remedy="remove it with 'bootstream trace rm'; the next boot records another",
    )


def fold(touches: Iterable[tuple[int, int]]) -> tuple[Touch, ...]:
    """Make touches of ``(milliseconds, chunk)`` in order, neighbours of one moment together.

    A moment before the one before it, as of threads that overtook each other, becomes that.
    """
    folded: list[Touch] = []
    for moment, chunk in touches:
        last = folded[-1] if folded else None
        milliseconds = moment if last is None else max(moment, last.milliseconds)
        if (
            last is not None
            and chunk == last.first + last.count
            and milliseconds == last.milliseconds
        ):
            folded[-1] = Touch(last.milliseconds, last.first, last.count + 1)
        else:
            folded.append(Touch(milliseconds, chunk, 1))
    return tuple(folded)


def merge(traces: Sequence[Trace], *, share: float = 0.5) -> Trace:
    """Return what more than ``share`` of all boots touched, by the middle of their moments.

    A trace that was merged before counts as one moment, with the weight of all its boots.

    Raises:
        InvalidInput: there is none, or they are not of the same contents.
    """
    if not traces:
        raise InvalidInput("there is nothing to merge", operation="merge traces")
    first = traces[0]
    for trace in traces:
        if (trace.index_sha256, trace.chunk_size) != (first.index_sha256, first.chunk_size):
            raise InvalidInput(
                "the traces are not of the same build",
                operation="merge traces",
                remedy="merge traces of one build's artifact only",
            )
    boots = sum(trace.boots for trace in traces)
    weight: dict[int, int] = {}
    moments: dict[int, list[int]] = {}
    for trace in traces:
        for touch in trace.touches:
            for chunk in range(touch.first, touch.first + touch.count):
                weight[chunk] = weight.get(chunk, 0) + trace.boots
                moments.setdefault(chunk, []).append(touch.milliseconds)
    kept = sorted(
        (int(statistics.median(moments[chunk])), chunk)
        for chunk, count in weight.items()
        if count > share * boots or (len(traces) == 1)
    )
    return Trace(first.index_sha256, first.chunk_size, fold(kept)[:MOST_TOUCHES], boots)


def extend(trace: Trace, chunks: Iterable[int]) -> Trace:
    """Return a trace with ``chunks`` behind all others, without those that are in it already."""
    known = set(trace.chunks())
    end = trace.touches[-1].milliseconds if trace.touches else 0
    more = [(end, chunk) for chunk in dict.fromkeys(chunks) if chunk not in known]
    touches = (*trace.touches, *fold(more))
    return Trace(trace.index_sha256, trace.chunk_size, touches[:MOST_TOUCHES], trace.boots)
