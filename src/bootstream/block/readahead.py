"""Fetching ahead of readers that read in order, and on request.

A device tells of every request that touches chunks it had not touched before. A request
that begins where an earlier one ended continues its stream; from the fourth on, the chunks
behind it are fetched ahead, 256 KiB at first and twice as much each time, up to 4 MiB.
Random reads continue no stream, so they cost no byte more than they ask for.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable

from bootstream.errors import BootstreamError

_log = logging.getLogger(__name__)

FIRST_WINDOW = 256 << 10
LARGEST_WINDOW = 4 << 20
_STREAMS = 16
_EVIDENCE = 3
_THREADS = 2
_MOST_JOBS = 64
_PATIENCE_SECONDS = 0.1
_JOIN_SECONDS = 10.0


class _Stream:
    """A reader that reads in order. All numbers are chunks."""

    __slots__ = ("frontier", "run", "window")

    def __init__(self, window: int) -> None:
        self.run = 0
        self.window = window
        self.frontier = 0


class ReadAhead:
    """A few threads that bring chunks before they are asked for. Thread safe.

    Args:
        fetch: brings what misses of chunks ``[start, stop)``; may raise BootstreamError.
        wait_until_quiet: returns, after so many seconds at most, when no reader waits.
        chunk_size, chunk_count: of the device.
    """

    def __init__(
        self,
        fetch: Callable[[int, int], None],
        wait_until_quiet: Callable[[float], None],
        *,
        chunk_size: int,
        chunk_count: int,
    ) -> None:
        self._fetch = fetch
        self._wait_until_quiet = wait_until_quiet
        self._count = chunk_count
        self._first_window = max(1, FIRST_WINDOW // chunk_size)
        self._largest_window = max(1, LARGEST_WINDOW // chunk_size)
        self._condition = threading.Condition()
        self._streams: OrderedDict[int, _Stream] = OrderedDict()
        self._jobs: deque[tuple[int, int]] = deque()
        self._threads: list[threading.Thread] = []
        self._busy = 0
        self._closed = False

    def note(self, first: int, last: int) -> None:
        """A request touched these chunks, at least one of them for the first time."""
        after = last + 1
        with self._condition:
            stream = self._streams.pop(first, None)
            if stream is None and last > first:  # the chunk that two requests share
                stream = self._streams.pop(first + 1, None)
            if stream is None and after in self._streams:
                return  # a chunk that was read before, perhaps in smaller pieces
            if stream is None:
                stream = _Stream(self._first_window)
                if len(self._streams) >= _STREAMS:
                    self._streams.popitem(last=False)
            else:
                stream.run += 1
            self._streams[after] = stream
            if stream.run < _EVIDENCE or stream.frontier - after > stream.window // 2:
                return
            start = max(stream.frontier, after)
            stream.frontier = min(start + stream.window, self._count)
            stream.window = min(stream.window * 2, self._largest_window)
            self._request(start, stream.frontier)

    def request(self, start: int, stop: int) -> None:
        """Bring chunks ``[start, stop)`` soon; dropped when too much is asked for already."""
        with self._condition:
            self._request(start, stop)

    def _request(self, start: int, stop: int) -> None:
        if start >= stop or self._closed or len(self._jobs) >= _MOST_JOBS:
            return
        self._jobs.append((start, stop))
        if len(self._threads) < min(_THREADS, len(self._jobs) + self._busy):
            thread = threading.Thread(target=self._work, name="bootstream-prefetch", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._condition.notify_all()

    def _work(self) -> None:
        while True:
            with self._condition:
                while not self._jobs and not self._closed:
                    self._condition.wait()
                if self._closed:
                    return
                start, stop = self._jobs.popleft()
                piece = min(stop, start + self._largest_window)
                if piece < stop:
                    self._jobs.appendleft((piece, stop))
                self._busy += 1
            try:
                self._wait_until_quiet(_PATIENCE_SECONDS)
                self._fetch(start, piece)
            except BootstreamError as error:
                _log.debug("prefetch: %s", error)
                with self._condition:
                    self._jobs.clear()
            finally:
                with self._condition:
                    self._busy -= 1
                    self._condition.notify_all()

    def wait_until_idle(self, timeout: float) -> bool:
        """Return True once nothing is left to do, False after ``timeout`` seconds."""
        with self._condition:
            return self._condition.wait_for(lambda: not self._jobs and not self._busy, timeout)

    def close(self) -> None:
        """Stop; a fetch that is under way is waited for, for some seconds. Idempotent."""
        with self._condition:
            self._closed = True
            self._jobs.clear()
            self._condition.notify_all()
        for thread in self._threads:
            thread.join(_JOIN_SECONDS)
