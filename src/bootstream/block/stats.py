"""What a device did since it was opened, as figures and events for reports.

The form is docs/formats/stats.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from bootstream.block.chunked import ChunkedDevice
from bootstream.block.recorder import Origin, Touched
from bootstream.chunks.index import Index, valid_chunk_size
from bootstream.errors import Corrupt

MOST_EVENTS = 50_000
"""Of each kind, in a snapshot."""
_MOST_SIZE = 1 << 52
_MOST_MILLISECONDS = 1e12
PERCENTILES = (50, 90, 99)

COUNTERS = (
    "touched_chunks",
    "touched_bytes",
    "cache_hits",
    "prefetch_hits",
    "demanded",
    "fetched_bytes",
    "demanded_bytes",
    "prefetched_bytes",
    "stored_bytes",
    "wasted_chunks",
    "wasted_bytes",
    "requests",
    "prefetches",
    "hedges",
    "waits",
    "wait_ms",
    *(f"wait_p{percent}_ms" for percent in PERCENTILES),
    "wait_max_ms",
)


class TouchRun(NamedTuple):
    """Neighbouring chunks that were touched one after another, of one origin."""

    at: float
    first: int
    chunks: int
    origin: Origin


class LongWait(NamedTuple):
    """A read that waited ``took``, for ``chunks`` from ``first`` on."""

    at: float
    took: float
    first: int
    chunks: int


class Request(NamedTuple):
    """A request that brought ``chunks``, the lowest of them ``first``, of ``size`` bytes."""

    at: float
    took: float
    first: int
    chunks: int
    size: int
    prefetch: bool


@dataclass(frozen=True, slots=True)
class DeviceStats:
    """Figures and events of one device. Times are milliseconds since it was opened.

    ``counters`` has the keys of ``COUNTERS``; ``complete`` tells whether no event was left out.
    """

    size: int
    chunk_size: int
    milliseconds: float
    counters: Mapping[str, float]
    touches: tuple[TouchRun, ...]
    waits: tuple[LongWait, ...]
    requests: tuple[Request, ...]
    complete: bool

    @property
    def chunk_count(self) -> int:
        """How many chunks the device has."""
        return -(-self.size // self.chunk_size)

    def to_json(self) -> dict[str, Any]:
        """Return what is stored, of plain values."""
        return {
            "size": self.size,
            "chunk_size": self.chunk_size,
            "ms": self.milliseconds,
            "counters": dict(self.counters),
            "touches": [[*run[:3], int(run.origin)] for run in self.touches],
            "waits": [list(wait) for wait in self.waits],
            "requests": [[*request[:5], int(request.prefetch)] for request in self.requests],
            "complete": self.complete,
        }

    @classmethod
    def from_json(cls, value: object, *, name: str) -> DeviceStats:
        """Read what was stored; ``name`` is for errors. Raises Corrupt."""
        try:
            return _from_json(value)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise Corrupt(
                "these are no figures of a device", operation="read statistics", object=name
            ) from error


def _from_json(value: Any) -> DeviceStats:
    if not isinstance(value, dict):
        raise TypeError("an object was expected")
    size, chunk_size = _whole(value["size"], _MOST_SIZE), _whole(value["chunk_size"], _MOST_SIZE)
    if not valid_chunk_size(chunk_size) or not size:
        raise ValueError("no size")
    count = -(-size // chunk_size)

    def place(first: object, chunks: object) -> tuple[int, int]:
        return _whole(first, count - 1), _whole(chunks, count)

    return DeviceStats(
        size,
        chunk_size,
        _time(value["ms"]),
        {key: _number(value["counters"][key]) for key in COUNTERS},
        tuple(
            TouchRun(_time(at), *place(first, chunks), Origin(origin))
            for at, first, chunks, origin in _events(value["touches"])
        ),
        tuple(
            LongWait(_time(at), _time(took), *place(first, chunks))
            for at, took, first, chunks in _events(value["waits"])
        ),
        tuple(
            Request(
                _time(at), _time(took), *place(first, chunks), _whole(size, _MOST_SIZE), bool(ahead)
            )
            for at, took, first, chunks, size, ahead in _events(value["requests"])
        ),
        value["complete"] is True,
    )


def _events(value: object) -> list[Any]:
    if not isinstance(value, list) or len(value) > MOST_EVENTS:
        raise ValueError("no list of events")
    return value


def _number(value: object, most: float = float(_MOST_SIZE)) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise ValueError("no number")
    return value


def _whole(value: object, most: int) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError("no whole number")
    return value


def _time(value: object) -> float:
    return _number(value, _MOST_MILLISECONDS)


def snapshot(device: ChunkedDevice, *, events: int = MOST_EVENTS) -> DeviceStats:
    """Return what a device did so far, with at most so many events of each kind."""
    index, recorder = device.index, device.recorder
    runs = _runs(touch for touch in recorder.touches if not index.is_zero(touch.chunk))
    waits = [
        LongWait(_ms(wait.seconds), _ms(wait.duration), wait.chunk, wait.chunks)
        for wait in recorder.waits[:events]
    ]
    requests = [
        Request(
            _ms(request.seconds),
            _ms(request.duration),
            request.chunk,
            request.chunks,
            request.size,
            request.prefetch,
        )
        for request in recorder.requests[:events]
    ]
    cut = max(len(runs), len(recorder.waits), len(recorder.requests)) > events
    return DeviceStats(
        index.size,
        index.chunk_size,
        _ms(recorder.seconds),
        _counters(device),
        tuple(runs[:events]),
        tuple(waits),
        tuple(sorted(requests)),
        complete=not cut and not recorder.left_out,
    )


def _ms(seconds: float) -> float:
    return round(max(0.0, seconds) * 1000, 1)


def _runs(touches: Iterable[Touched]) -> list[TouchRun]:
    runs: list[TouchRun] = []
    for touch in touches:
        at = _ms(touch.seconds)
        last = runs[-1] if runs else None
        if (
            last is not None
            and (last.first + last.chunks, last.origin) == (touch.chunk, touch.origin)
            and at <= last.at + 1
        ):
            runs[-1] = last._replace(chunks=last.chunks + 1)
        else:
            runs.append(TouchRun(at, touch.chunk, 1, touch.origin))
    return runs


def _counters(device: ChunkedDevice) -> dict[str, float]:
    """Count. Sets of chunks are numbers with a byte a chunk, 0 or 1, the last chunk lowest."""
    index, recorder, counters = device.index, device.recorder, device.counters
    origins = recorder.origins
    touched = int.from_bytes(recorder.touched) & int.from_bytes(_stored(index))
    prefetched, demanded = (
        int.from_bytes(origins.translate(bytes(n == origin for n in range(256))))
        for origin in (Origin.PREFETCH, Origin.DEMAND)
    )
    wasted = prefetched & ~touched
    return {
        "touched_chunks": touched.bit_count(),
        "touched_bytes": _bytes(touched, index),
        "cache_hits": (touched & ~prefetched & ~demanded).bit_count(),
        "prefetch_hits": (touched & prefetched).bit_count(),
        "demanded": (touched & demanded).bit_count(),
        "fetched_bytes": counters.demanded_bytes + counters.prefetched_bytes,
        "demanded_bytes": counters.demanded_bytes,
        "prefetched_bytes": counters.prefetched_bytes,
        "stored_bytes": device.received,
        "wasted_chunks": wasted.bit_count(),
        "wasted_bytes": _bytes(wasted, index),
        "requests": counters.requests,
        "prefetches": counters.prefetches,
        "hedges": counters.hedges,
        "waits": counters.waits,
        "wait_ms": _ms(counters.wait_seconds),
        **{f"wait_p{p}_ms": _ms(counters.wait_percentile(p)) for p in PERCENTILES},
        "wait_max_ms": _ms(counters.longest_wait),
    }


def _stored(index: Index) -> bytes:
    """Return a byte a chunk: 1 unless it is zeros."""
    kinds = index.kinds()
    if isinstance(kinds, bytes):
        return kinds.translate(bytes([0, *[1] * 255]))
    return bytes(map(bool, kinds))


def _bytes(chunks: int, index: Index) -> int:
    size = chunks.bit_count() * index.chunk_size
    if chunks & 1:
        size -= index.chunk_size - index.chunk_length(index.chunk_count - 1)
    return size
