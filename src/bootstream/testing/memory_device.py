"""A device in memory whose speed and health a test decides."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from bootstream.block.device import Extent

_BLOCK = 4096


class MemoryDevice:
    """Bytes in memory. Thread safe.

    Args:
        size: in bytes; or the contents.
        writable: whether it may be written.

    Attributes:
        gate: reads at or beyond ``cold_from`` wait until it is set; set from the start.
        cold_from: offset from which reads are not warm; None: all are.
        failure: raised by everything while it is set.
        waiting: released by every read that comes to the gate.
        flushed: the contents as of the last flush.
        calls: what was called, in order: (method, offset, length).
    """

    def __init__(self, size: int | bytes, *, writable: bool = True) -> None:
        self.data = bytearray(size)
        self.writable = writable
        self.gate = threading.Event()
        self.gate.set()
        self.waiting = threading.Semaphore(0)
        self.cold_from: int | None = None
        self.failure: Exception | None = None
        self.flushed = bytes(self.data)
        self.calls: list[tuple[str, int, int]] = []
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """The size in bytes."""
        return len(self.data)

    def read_warm(self, offset: int, length: int) -> Sequence[memoryview] | None:
        """Return a copy; None for what is cold."""
        self._check("read_warm", offset, length)
        if self.cold_from is not None and offset + length > self.cold_from:
            return None
        return self._views(offset, length)

    def read_views(self, offset: int, length: int) -> Sequence[memoryview]:
        """Return a copy, in two views where it is more than a byte; waits for the gate."""
        self._check("read_views", offset, length)
        self.waiting.release()
        self.gate.wait()
        if self.failure is not None:
            raise self.failure
        return self._views(offset, length)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer``."""
        self._check("read_into", offset, len(buffer))
        buffer[:] = self.data[offset : offset + len(buffer)]

    def write(self, data: memoryview, offset: int) -> None:
        """Write."""
        self._check("write", offset, len(data))
        with self._lock:
            self.data[offset : offset + len(data)] = data

    def zero(self, offset: int, length: int, *, may_trim: bool) -> None:
        """Write zeros."""
        self._check("zero with holes" if may_trim else "zero", offset, length)
        with self._lock:
            self.data[offset : offset + length] = bytes(length)

    def trim(self, offset: int, length: int) -> None:
        """Write zeros."""
        self._check("trim", offset, length)
        with self._lock:
            self.data[offset : offset + length] = bytes(length)

    def flush(self) -> None:
        """Note what would be durable."""
        self._check("flush", 0, 0)
        self.gate.wait()
        with self._lock:
            self.flushed = bytes(self.data)

    def extents(self, offset: int, length: int) -> list[Extent]:
        """Call blocks of zeros holes."""
        self._check("extents", offset, length)
        found: list[Extent] = []
        end = offset + length
        while offset < end:
            step = min(end, (offset // _BLOCK + 1) * _BLOCK) - offset
            zero = not any(self.data[offset : offset + step])
            before = found.pop().length if found and found[-1].zero == zero else 0
            found.append(Extent(before + step, hole=zero, zero=zero))
            offset += step
        return found

    def prefetch(self, offset: int, length: int) -> None:
        """Note it."""
        self._check("prefetch", offset, length)

    def close(self) -> None:
        """Nothing is held."""

    def _views(self, offset: int, length: int) -> Sequence[memoryview]:
        with self._lock:
            view = memoryview(bytes(self.data[offset : offset + length]))
        half = length // 2
        return [view[:half], view[half:]] if half else [view]

    def _check(self, method: str, offset: int, length: int) -> None:
        self.calls.append((method, offset, length))
        if offset < 0 or length < 0 or offset + length > len(self.data):
            raise AssertionError(f"{method} of {length} bytes at {offset} is out of range")
        if self.failure is not None:
            raise self.failure
