"""Who reads in order, and how far ahead of such readers to fetch.

A device tells of every request that touches chunks it had not touched before. A request
near the end of an earlier one continues its stream, also where a client's connections
overtake each other by a little. From the fourth on, the chunks behind it are fetched ahead:
never more than the stream has read already, so that one that ends wastes no more than it
used. Random reads continue no stream, so they cost no byte more than they ask for.
"""

from __future__ import annotations

import threading

FIRST_WINDOW = 256 << 10
LARGEST_PIECE = 2 << 20
"""Bytes that one request brings ahead, at most."""
LARGEST_WINDOW = 64 << 20
_STREAMS = 16
_EVIDENCE = 3
_SLACK = 2 << 20


class _Stream:
    """A reader that reads in order. All numbers are chunks."""

    __slots__ = ("end", "frontier", "run", "start")

    def __init__(self, start: int, end: int) -> None:
        self.start = start
        self.end = end
        self.run = 0
        self.frontier = 0


class ReadAhead:
    """The streams of one device. Thread safe.

    Args:
        chunk_size, chunk_count: of the device.
    """

    def __init__(self, *, chunk_size: int, chunk_count: int) -> None:
        self._count = chunk_count
        self._first = max(1, FIRST_WINDOW // chunk_size)
        self._largest = max(1, LARGEST_WINDOW // chunk_size)
        self._piece = max(1, LARGEST_PIECE // chunk_size)
        self._slack = max(1, _SLACK // chunk_size)
        self._lock = threading.Lock()
        self._streams: list[_Stream] = []

    def note(self, first: int, last: int, pace: int) -> tuple[int, int] | None:
        """A request touched these chunks, at least one of them for the first time.

        Args:
            first, last: of them.
            pace: how many requests are worth having under way.

        Returns:
            The chunks ``[start, stop)`` to fetch ahead now, or None.
        """
        with self._lock:
            stream = self._find(first, last)
            if stream is None:
                self._streams.append(_Stream(first, last + 1))
                if len(self._streams) > _STREAMS:
                    del self._streams[0]
                return None
            self._streams.remove(stream)
            self._streams.append(stream)
            if first < stream.start:
                stream.start = first
                return None
            if last < stream.end:  # one that was overtaken, or a chunk in smaller pieces
                return None
            stream.run += 1
            stream.end = max(stream.end, last + 1)
            if stream.run < _EVIDENCE:
                return None
            window = max(
                self._first, min(stream.end - stream.start, self._largest, pace * self._piece)
            )
            start = max(stream.frontier, stream.end)
            stop = min(stream.end + window, self._count)
            # Not by single chunks: half a window at a time, or what one request brings.
            if stop - start < min(window // 2, self._piece) and stop < self._count:
                return None
            if start >= stop:
                return None
            stream.frontier = stop
            return start, stop

    def _find(self, first: int, last: int) -> _Stream | None:
        """Return the stream that a request belongs to, the nearest one of several."""
        best: _Stream | None = None
        distance = 0
        for stream in self._streams:
            gap = first - stream.end
            if stream.run >= _EVIDENCE:
                slack = min(self._slack, stream.end - stream.start)
                belongs = -slack <= gap <= slack
            else:
                # the next one, one that begins in the chunk where the last one ended, one
                # that was overtaken
                belongs = -1 <= gap <= 0 or last + 1 == stream.start
            if belongs and (best is None or abs(gap) < distance):
                best, distance = stream, abs(gap)
        return best
