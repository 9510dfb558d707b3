"""How scattered an artifact lies in its packs, as one figure, and what to do about it.

The figure is what a cold, sequential read of the whole artifact costs: the range requests that
are needed, divided by the fewest that could be. The reader is taken to ask for windows of
4 MiB of the artifact, one after the other, and to join what lies in one pack, at most 128 KiB
apart, as ``ChunkReader`` does. The fewest are those that would do if the chunks of each window
lay side by side: one, but where data does not compress. So 1.00 is a build that holds all of
itself; 3.00 one whose windows are spread over three places each.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from bootstream.chunks.fetch import GAP, REQUEST_SIZE
from bootstream.chunks.index import Index

_ROUNDS = 8


class Place(NamedTuple):
    """Where an entry is stored; the own pack of a build that is planned has the number -1."""

    pack: int
    offset: int
    length: int
    entry: int


@dataclass(frozen=True, slots=True)
class Fragmentation:
    """Range requests that a sequential read needs, and the fewest that could be."""

    requests: int
    ideal: int

    @property
    def figure(self) -> float:
        """How many times as many as need be; 1 where there is nothing to read."""
        return self.requests / self.ideal if self.ideal else 1.0


def measure(index: Index) -> Fragmentation:
    """Count the requests of a cold, sequential read."""
    return _count(_windows(index, {}))


def plan(index: Index, budget: float) -> set[int]:
    """Choose the entries to store anew, so that the figure is at most ``budget``.

    Where one request can be saved at the price of the fewest bytes comes first. What is stored
    anew lies in the new pack in the order of the artifact. Chunks that are repeated within the
    artifact stay where their first one is, so a small budget may not be reached: then all
    that helps is chosen.
    """
    moved: dict[int, Place] = {}
    best: set[int] = set()
    fewest: int | None = None
    for _ in range(_ROUNDS):
        now = _count(_windows(index, moved))
        if fewest is None or now.requests < fewest:
            best, fewest = set(moved), now.requests
        excess = now.requests - int(budget * now.ideal)
        chosen = _cheapest(index, moved, excess) if excess > 0 else set()
        if not chosen:
            break
        moved = _laid_out(index, moved.keys() | chosen)
    return best


def _windows(index: Index, moved: dict[int, Place]) -> Iterator[list[Place]]:
    """Yield, by window, the distinct places in it, in the order in which they are read."""
    step = max(1, REQUEST_SIZE // index.chunk_size)
    for first in range(0, index.chunk_count, step):
        entries = set(index.positions[first : first + step])
        entries.discard(0)
        places = []
        for position in entries:
            entry = position - 1
            place = moved.get(entry)
            if place is None:
                place = Place(
                    index.pack_numbers[entry], index.offsets[entry], index.lengths[entry], entry
                )
            places.append(place)
        places.sort()
        yield places


def _requests(places: list[Place]) -> list[list[Place]]:
    """Group the places of a window as the reader does."""
    groups: list[list[Place]] = []
    end = begin = 0
    pack = None
    for place in places:
        near = place.offset - end <= GAP
        stop = place.offset + place.length
        if place.pack != pack or not near or stop - begin > REQUEST_SIZE:
            groups.append([])
            pack, begin, end = place.pack, place.offset, stop
        groups[-1].append(place)
        end = max(end, stop)
    return groups


def _side_by_side(places: list[Place]) -> list[Place]:
    ends = accumulate(place.length for place in places)
    return [
        Place(0, end - place.length, place.length, place.entry)
        for place, end in zip(places, ends, strict=True)
    ]


def _count(windows: Iterator[list[Place]]) -> Fragmentation:
    requests = ideal = 0
    for places in windows:
        if places:
            ideal += len(_requests(_side_by_side(places)))
            requests += len(_requests(places))
    return Fragmentation(requests, ideal)


def _cheapest(index: Index, moved: dict[int, Place], excess: int) -> set[int]:
    """Choose entries of enough groups that ``excess`` requests go, cheapest first.

    In a window where nothing was moved yet, moving the two smallest groups together saves one
    request, and each further one another; where something was, each one does.
    """
    steps: list[tuple[int, int, int]] = []  # bytes, window, groups of it that are moved
    groups_of: dict[int, list[list[Place]]] = {}
    for number, places in enumerate(_windows(index, moved)):
        groups = _requests(places)
        movable = sorted((group for group in groups if group[0].pack != -1), key=_size)
        first = 1 if len(movable) < len(groups) else 2
        if len(movable) >= first:
            groups_of[number] = movable
            steps.append((sum(map(_size, movable[:first])), number, first))
    heapq.heapify(steps)
    chosen: set[int] = set()
    while steps and excess > 0:
        _, number, count = heapq.heappop(steps)
        groups = groups_of[number]
        for group in groups[:count]:
            chosen.update(place.entry for place in group)
        excess -= 1
        if count < len(groups):
            heapq.heappush(steps, (_size(groups[count]), number, count + 1))
    return chosen


def _size(group: list[Place]) -> int:
    return sum(place.length for place in group)


def _laid_out(index: Index, entries: set[int]) -> dict[int, Place]:
    """Return where the entries will lie: in a pack of their own, in the artifact's order."""
    moved: dict[int, Place] = {}
    offset = 0
    for position in index.positions:
        entry = position - 1
        if entry in entries and entry not in moved:
            moved[entry] = Place(-1, offset, index.lengths[entry], entry)
            offset += index.lengths[entry]
    return moved
