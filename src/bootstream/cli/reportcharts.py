"""The pictures of a report, as SVG that takes its colours from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TypeVar

from bootstream.block.recorder import Origin
from bootstream.block.stats import DeviceStats, LongWait, Request
from bootstream.cli.output import human_size

_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 12, 10, 40
_WIDTH = 720
_MOST_CELLS = 2048
_COLUMNS = 64
_MOST_TITLES = 400
"""Marks that say what they are when pointed at; the others are one path."""
Event = TypeVar("Event", LongWait, Request)
NAMES = {Origin.CACHE: "cache", Origin.PREFETCH: "prefetch", Origin.DEMAND: "demand"}


@dataclass(frozen=True, slots=True)
class Scale:
    """What pictures that are compared have in common. Times in milliseconds."""

    seconds: float
    wait: float
    smallest: float
    largest: float


def start_of(stats: DeviceStats) -> float:
    """Return the milliseconds of the first event: where the time axis begins."""
    firsts: list[float] = [touch.at for touch in stats.touches[:1]]
    firsts += [request.at for request in stats.requests[:1]]
    return min(firsts, default=0.0)


def scale_of(all_stats: Iterable[DeviceStats]) -> Scale:
    """Return a scale that all fit into."""
    ends, waits, sizes = [1.0], [10.0], [64.0 * 1024]
    for stats in all_stats:
        start = start_of(stats)
        ends += [touch.at - start for touch in stats.touches]
        ends += [wait.at + wait.took - start for wait in stats.waits]
        ends += [request.at + request.took - start for request in stats.requests]
        waits += [wait.took for wait in stats.waits]
        sizes += [request.size for request in stats.requests if request.size]
    return Scale(max(ends) / 1000, max(waits), min(sizes), max(sizes))


class _Plot:
    """A frame with a time axis below and another one at its left, and marks in it."""

    def __init__(self, height: int, seconds: float, label: str, about: str) -> None:
        self.height = height
        self._parts: list[str] = []
        self._about = about
        self._seconds = seconds
        for tick in _ticks(seconds):
            x = self.x(tick * 1000)
            self._parts.append(f'<path class="grid" d="M{x} {_TOP}V{height - _BOTTOM}"/>')
            self.text(x, height - _BOTTOM + 15, f"{tick:g}", "middle")
        self.text((_LEFT + _WIDTH - _RIGHT) / 2, height - 6, "seconds", "middle", "label")
        middle = (_TOP + height - _BOTTOM) / 2
        self._parts.append(
            f'<text class="label" text-anchor="middle" '
            f'transform="translate(11 {middle:g}) rotate(-90)">{escape(label)}</text>'
        )

    def x(self, milliseconds: float) -> float:
        """Return where a moment is."""
        share = min(1.0, max(0.0, milliseconds / 1000 / self._seconds))
        return round(_LEFT + share * (_WIDTH - _LEFT - _RIGHT), 1)

    def y(self, share: float) -> float:
        """Return where a value is that is so far up, from 0 to 1."""
        inside = self.height - _BOTTOM - _TOP
        return round(_TOP + (1 - min(1.0, max(0.0, share))) * inside, 1)

    def tick(self, share: float, text: str) -> None:
        """Draw a line across, with what it stands for."""
        y = self.y(share)
        self._parts.append(f'<path class="grid" d="M{_LEFT} {y}H{_WIDTH - _RIGHT}"/>')
        self.text(_LEFT - 6, y + 4, text, "end")

    def text(self, x: float, y: float, text: str, anchor: str, name: str = "tick") -> None:
        """Write."""
        self._parts.append(
            f'<text class="{name}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(text)}</text>'
        )

    def path(self, name: str, pieces: Sequence[str], title: str = "") -> None:
        """Draw a path of many pieces."""
        if pieces:
            inside = f"<title>{escape(title)}</title>" if title else ""
            self._parts.append(f'<path class="{name}" d="{"".join(pieces)}">{inside}</path>')

    def __str__(self) -> str:
        frame = (
            f'<path class="axis" d="M{_LEFT} {_TOP}V{self.height - _BOTTOM}H{_WIDTH - _RIGHT}"/>'
        )
        return _svg(self.height, self._about, [*self._parts, frame])


def _svg(height: float, about: str, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:g}" role="img" '
        f'aria-label="{escape(about)}">{"".join(parts)}</svg>'
    )


def _ticks(largest: float) -> list[float]:
    """Return round numbers from 0 up to ``largest``, ten at most."""
    step = 10.0 ** math.floor(math.log10(largest / 4))
    step *= next(m for m in (1, 2, 5, 10) if largest / (step * m) <= 8)
    return [round(n * step, 9) for n in range(int(largest / step) + 1)]


# -- the map ------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Cell:
    """What was touched of a region."""

    first: float = 0.0
    counts: tuple[int, int, int] = (0, 0, 0)


def region_of(stats: DeviceStats) -> int:
    """Return how many chunks are one region of the map."""
    return max(1, -(-stats.chunk_count // _MOST_CELLS))


def map_chart(stats: DeviceStats) -> str:
    """Draw the image row by row, its regions coloured by where what was touched came from."""
    region = region_of(stats)
    count = -(-stats.chunk_count // region)
    cells: dict[int, _Cell] = {}
    start = start_of(stats)
    for run in stats.touches:
        for chunk in range(run.first, min(run.first + run.chunks, stats.chunk_count)):
            cell = cells.setdefault(chunk // region, _Cell(run.at - start))
            counts = list(cell.counts)
            counts[run.origin] += 1
            cell.counts = (counts[0], counts[1], counts[2])
    rows = -(-count // _COLUMNS)
    side = (_WIDTH - _LEFT - _RIGHT) / _COLUMNS
    parts = []
    empty = []
    for number in range(count):
        row, column = divmod(number, _COLUMNS)
        x, y = _LEFT + column * side, _TOP + row * side
        found = cells.get(number)
        if found is None:
            empty.append(f"M{x:.1f} {y:.1f}h{side - 1:.1f}v{side - 1:.1f}h-{side - 1:.1f}z")
        else:
            parts.append(_cell(stats, number, region, found, (x, y, side)))
    labels = []
    every = max(1, -(-rows // 8))
    for row in range(0, rows, every):
        offset = row * _COLUMNS * region * stats.chunk_size
        y = _TOP + row * side + side / 2 + 4
        labels.append(
            f'<text class="tick" x="{_LEFT - 6}" y="{y:g}" text-anchor="end">'
            f"{_short(offset)}</text>"
        )
    background = f'<path class="untouched" d="{"".join(empty)}"/>' if empty else ""
    about = "map of the image: which regions were touched, and where they came from"
    return _svg(_TOP + rows * side + 6, about, [background, *parts, *labels])


def _cell(
    stats: DeviceStats, number: int, region: int, cell: _Cell, place: tuple[float, float, float]
) -> str:
    x, y, side = place
    origin = Origin(max(range(3), key=cell.counts.__getitem__))
    chunks = min(region, stats.chunk_count - number * region)
    touched = sum(cell.counts)
    begin = number * region * stats.chunk_size
    end = min(stats.size, begin + chunks * stats.chunk_size)
    said = ", ".join(f"{n} {NAMES[o]}" for o, n in zip(Origin, cell.counts, strict=True) if n)
    title = (
        f"{human_size(begin)} to {human_size(end)}: {touched} of {chunks} chunks touched "
        f"({said}), the first at {cell.first / 1000:.2f} s"
    )
    opacity = 0.45 + 0.55 * min(1.0, touched / chunks)
    return (
        f'<rect class="{NAMES[origin]}" x="{x:.1f}" y="{y:.1f}" width="{side - 1:.1f}" '
        f'height="{side - 1:.1f}" fill-opacity="{opacity:.2f}">'
        f"<title>{escape(title)}</title></rect>"
    )


def _short(size: float) -> str:
    """Return bytes for an axis: 512K, 64M, 1.5G."""
    for unit in ("", "K", "M", "G"):
        if size < 1024:
            return f"{size:.3g}{unit}" if size else "0"
        size /= 1024
    return f"{size:.3g}T"


# -- over time ----------------------------------------------------------------------------------


def touches_chart(stats: DeviceStats, scale: Scale) -> str:
    """Draw when which part of the image was touched first."""
    plot = _Plot(260, scale.seconds, "offset in the image", "first touches over time")
    for number in range(5):
        plot.tick(1 - number / 4, _short(stats.size * number / 4))
    start = start_of(stats)
    marks: dict[Origin, set[tuple[float, int]]] = {origin: set() for origin in Origin}
    for run in stats.touches:
        x = plot.x(run.at - start)
        low = plot.y(1 - run.first / stats.chunk_count)
        high = plot.y(1 - min(stats.chunk_count, run.first + run.chunks) / stats.chunk_count)
        marks[run.origin].update((x, y) for y in range(int(low), int(high) + 1))
    for origin, places in marks.items():
        pieces = [f"M{x - 1.5:.1f} {y}h3" for x, y in sorted(places)]
        plot.path(f"mark {NAMES[origin]}", pieces)
    return str(plot)


def waits_chart(stats: DeviceStats, scale: Scale) -> str:
    """Draw reads that waited 10 ms or longer: as wide and as high as they took."""
    plot = _Plot(200, scale.seconds, "milliseconds waited", "reads that waited, over time")
    top = scale.wait * 1.05
    for tick in _ticks(top):
        plot.tick(tick / top, f"{tick:g}")
    start = start_of(stats)

    def shape(wait: LongWait) -> str:
        left, right = plot.x(wait.at - start), plot.x(wait.at + wait.took - start)
        floor, y = plot.y(0), plot.y(wait.took / top)
        return f"M{left} {floor}V{y}H{max(right, left + 1.5):g}V{floor}z"

    _with_titles(plot, stats.waits, shape, lambda _: "wait", lambda wait: _said(wait, stats, start))
    if not stats.waits:
        plot.text(_WIDTH / 2, 90, "no read waited 10 ms or longer", "middle", "label")
    return str(plot)


def requests_chart(stats: DeviceStats, scale: Scale) -> str:
    """Draw requests from their beginning to their end, at the height of what they brought."""
    plot = _Plot(240, scale.seconds, "bytes brought", "requests over time, by size")
    lowest = math.floor(math.log2(scale.smallest))
    high = max(lowest + 1, math.ceil(math.log2(scale.largest)))
    low = lowest - 0.4  # the lowest bars stand clear of the axis
    for power in range(lowest, high + 1, max(1, (high - lowest) // 6)):
        plot.tick((power - low) / (high - low), _short(2.0**power))
    start = start_of(stats)

    def shape(request: Request) -> str:
        y = plot.y((math.log2(request.size) - low) / (high - low))
        left, right = plot.x(request.at - start), plot.x(request.at + request.took - start)
        return f"M{left} {y}H{max(right, left + 1.5):g}"

    _with_titles(
        plot,
        [request for request in stats.requests if request.size],
        shape,
        lambda request: f"bar {NAMES[Origin.PREFETCH if request.prefetch else Origin.DEMAND]}",
        lambda request: f"{human_size(request.size)}, {_said(request, stats, start)}",
    )
    return str(plot)


def _with_titles(
    plot: _Plot,
    events: Sequence[Event],
    shape: Callable[[Event], str],
    name: Callable[[Event], str],
    title: Callable[[Event], str],
) -> None:
    """Draw events; the longest ones say what they are."""
    long = sorted(events, key=lambda event: -event.took)[:_MOST_TITLES]
    chosen = set(map(id, long))
    rest: dict[str, list[str]] = {}
    for event in events:
        if id(event) not in chosen:
            rest.setdefault(name(event), []).append(shape(event))
    for kind, pieces in rest.items():
        plot.path(kind, pieces)
    for event in sorted(long):
        plot.path(name(event), [shape(event)], title(event))


def _said(event: LongWait | Request, stats: DeviceStats, start: float) -> str:
    offset = human_size(event.first * stats.chunk_size)
    return (
        f"{event.took:.1f} ms from {(event.at - start) / 1000:.2f} s on, "
        f"{event.chunks} chunks at {offset}"
    )
