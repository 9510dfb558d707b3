"""Checking a whole artifact: everything that its index names is fetched and compared."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise

from bootstream.chunks.batches import Step, steps
from bootstream.chunks.fetch import REQUEST_SIZE, ChunkReader
from bootstream.chunks.index import Index, Pack
from bootstream.chunks.names import index_path
from bootstream.chunks.parallel import check_threads, in_order, io_threads
from bootstream.errors import Corrupt, ObjectNotFound
from bootstream.progress import NO_PROGRESS, Progress
from bootstream.storage.protocol import StorageProvider

_MOST_PROBLEMS = 100


@dataclass(slots=True)
class VerifyReport:
    """What a check found: how many distinct chunks were fetched; what is wrong, if anything."""

    chunks: int = 0
    problems: list[str] = field(default_factory=list)


def verify_artifact(
    storage: StorageProvider,
    index: Index,
    name: str,
    *,
    threads: int | None = None,
    progress: Progress = NO_PROGRESS,
) -> VerifyReport:
    """Fetch every distinct chunk of an artifact and check it; damage is collected.

    Also checked: that the build's own pack has exactly the frames that the index names, and
    that a raw object has the artifact's size, and zeros where the index says so.

    Args:
        storage: where the packs are.
        index: of the artifact, as ``load_index`` gives it.
        name: the artifact's name, also the name of the phase of ``progress``.
        threads: how many fetch at once; None chooses.
        progress: hears of bytes of the artifact.

    Raises:
        Unavailable, Throttled, PermissionDenied, BucketNotFound: of the storage.
    """
    check = _Check(storage, index)
    workers = check_threads(threads, io_threads())
    progress.phase(name, index.size)
    check.packs()
    spans = in_order(check.step, steps(index, distinct=True), threads=workers, ahead=2 * workers)
    with closing(spans):
        for span in spans:
            progress.advance(name, span)
    if index.raw:
        zeros = in_order(check.zeros, _zero_ranges(index), threads=workers, ahead=2 * workers)
        with closing(zeros):
            for _ in zeros:
                progress.advance(name, 0)
    progress.done(name)
    return check.report()


class _Check:
    """The state that the threads of one check share."""

    def __init__(self, storage: StorageProvider, index: Index) -> None:
        self._storage = storage
        self._index = index
        self._reader = ChunkReader(storage, index)
        self._lock = threading.Lock()
        self._missing: set[Pack] = set()
        self._report = VerifyReport()
        self._untold = 0

    def report(self) -> VerifyReport:
        """Return what was found."""
        self._report.problems.sort()
        if self._untold:
            self._report.problems.append(f"and {self._untold} more of {self._index.name}")
        return self._report

    def _tell(self, problem: str) -> None:
        with self._lock:
            if len(self._report.problems) < _MOST_PROBLEMS:
                self._report.problems.append(problem)
            else:
                self._untold += 1

    def _is_missing(self, pack: Pack) -> bool:
        return pack in self._missing

    def _miss(self, pack: Pack) -> None:
        """Name a missing object once, however many chunks were in it."""
        with self._lock:
            if pack in self._missing:
                return
            self._missing.add(pack)
        self._tell(f"{pack.path} is missing, which {self._index.name} reads from")

    def packs(self) -> None:
        """Check that every pack is there, and that the entries in it make sense together."""
        entries = [array("I") for _ in self._index.packs]
        for entry, number in enumerate(self._index.pack_numbers):
            entries[number].append(entry)
        for pack, members in zip(self._index.packs, entries, strict=True):
            self._check_places(pack, members)
            try:
                size = self._storage.open_object(pack.path).size()
            except ObjectNotFound:
                self._miss(pack)
                continue
            expected = self._expected_size(pack, members)
            if expected is not None and size != expected:
                self._tell(f"{pack.path} has {size} bytes where {self._index.name} says {expected}")

    def _is_own(self, pack: Pack) -> bool:
        return index_path(pack.build_id, pack.artifact) == self._index.name

    def _expected_size(self, pack: Pack, members: array[int]) -> int | None:
        """The size of the artifact's own object; None for an ancestor's: we see a part of it."""
        if not self._is_own(pack):
            return None
        if pack.raw:
            return self._index.size
        return sum(map(self._index.lengths.__getitem__, members))

    def _check_places(self, pack: Pack, members: array[int]) -> None:
        """Check ordinals against offsets: caches go by the ordinal, requests by the offset."""
        index = self._index
        offsets, ordinals = index.offsets, index.ordinals
        if any(offsets[a] > offsets[b] for a, b in pairwise(members)):
            members = array("I", sorted(members, key=offsets.__getitem__))
        if pack.raw:
            sound = all(offsets[e] == ordinals[e] * index.chunk_size for e in members)
        else:
            sound = all(
                offsets[a] + index.lengths[a] <= offsets[b] and ordinals[a] < ordinals[b]
                for a, b in pairwise(members)
            )
        if sound and self._is_own(pack) and not pack.raw:
            # no gaps: then ordinals are 0 to n - 1, as many as there are frames
            sound = not members or (
                offsets[members[0]] == 0 and ordinals[members[-1]] == len(members) - 1
            )
        if not sound:
            self._tell(f"{index.name} has frames of {pack.path} in places that contradict")

    def step(self, step: Step) -> int:
        """Fetch and check the chunks of a step; return its span."""
        self._reader.check(step.chunks, self._count, self._damaged, skip=self._is_missing)
        return step.span

    def _count(self, chunk: int, data: bytes | memoryview) -> None:
        del chunk, data
        with self._lock:
            self._report.chunks += 1

    def _damaged(self, pack: Pack, error: Corrupt | ObjectNotFound) -> None:
        if isinstance(error, ObjectNotFound):
            self._miss(pack)
        else:
            self._tell(str(error))

    def zeros(self, place: tuple[int, int]) -> None:
        """Check that a range of a raw object is zeros."""
        offset, length = place
        pack = self._index.packs[0]
        if self._is_missing(pack):
            return
        buffer = bytearray(length)
        count = self._storage.open_object(pack.path).read_at(buffer, offset)
        if buffer.count(0, 0, count) != count:
            self._tell(f"{pack.path} is not zeros from byte {offset} on, as its index says")


def _zero_ranges(index: Index) -> Iterator[tuple[int, int]]:
    """Yield the ranges of bytes that are zeros, a request at a time."""
    most = max(1, REQUEST_SIZE // index.chunk_size)
    position = 0
    while position < index.chunk_count:
        length, zero = index.run(position, most)
        if zero:
            start = position * index.chunk_size
            yield start, min(length * index.chunk_size, index.size - start)
        position += length
