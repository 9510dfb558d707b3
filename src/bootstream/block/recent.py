"""The chunks that arrived last, in memory: for devices without a cache, or whose cache is full."""

from __future__ import annotations

import threading
from collections import OrderedDict


class RecentChunks:
    """At most ``limit`` bytes of chunks, least recently used ones go first. Thread safe."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._size = 0
        self._views: OrderedDict[int, memoryview] = OrderedDict()

    def get(self, chunk: int) -> memoryview | None:
        """Return the chunk's view, if it is still here."""
        with self._lock:
            view = self._views.get(chunk)
            if view is not None:
                self._views.move_to_end(chunk)
            return view

    def put(self, chunk: int, data: bytes | memoryview) -> memoryview:
        """Keep a copy of ``data`` for a while, and return its view."""
        view = memoryview(bytes(data))
        with self._lock:
            old = self._views.pop(chunk, None)
            self._size += len(view) - (0 if old is None else len(old))
            self._views[chunk] = view
            while self._size > self._limit and len(self._views) > 1:
                self._size -= len(self._views.popitem(last=False)[1])
        return view

    def clear(self) -> None:
        """Forget all of them."""
        with self._lock:
            self._views.clear()
            self._size = 0
