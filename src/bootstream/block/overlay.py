"""Copy-on-write: what a client writes, over a base that never changes.

Each block of 4 KiB is in one of three states, one byte each in memory: as in the base,
written here, or zeros. Runs of one state are found by a regular expression over these
bytes, at memory speed.

What makes concurrent requests safe, without a lock around reads and most writes:

- A block becomes "written" only after all of its bytes are in the file.
- The base never changes, so what completes a partial block is read before any lock.
- A block that is "written" already takes further writes without a lock: the kernel
  orders them. Every other change of a state holds the lock of the block's region, or
  completing a block could put old bytes over those of a neighbour's write.
- Flush copies the map first and syncs the data after that, so the copy never speaks of
  data that the sync did not cover.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bootstream.block.device import ZEROS, Device, Extent, copy_views, merge_extents
from bootstream.block.disk import disk_error, punch_hole, write_all, zero_range
from bootstream.block.overlay_file import (
    BASE,
    BLOCK,
    PAGE_STATES,
    WRITTEN,
    ZERO,
    OverlayFile,
)
from bootstream.errors import BootstreamError

_SHIFT = BLOCK.bit_length() - 1
_MASK = BLOCK - 1
_REGION_SHIFT = 8
_STRIPES = 64
_OTHERS = [re.compile(rb"[^\x00]"), re.compile(rb"[^\x01]"), re.compile(rb"[^\x02]")]
_PIECE = len(ZEROS)


class Overlay:
    """A writable device over ``base``. Safe to use from several threads.

    Args:
        base: read only; closed by whoever made it, after the overlay.
        path: where writes are kept, made if it is missing; None throws them away.
        base_digest: names the base's contents (the hex sha256 of its index).
        folder: where a throw-away overlay lies; None takes the system's temporary folder.

    Raises:
        Conflict: somebody has the overlay at ``path`` already.
        InvalidInput: ``path`` is no overlay, or one of another base or version.
        Corrupt: it is damaged.
        StorageFull, PermissionDenied, Unavailable: of the disk it lies on.

    A write that finds the disk full raises StorageFull and changes no block that was not
    written before; the rest of the device keeps working.
    """

    writable = True

    def __init__(
        self,
        base: Device,
        path: Path | None = None,
        *,
        base_digest: str,
        folder: Path | None = None,
    ) -> None:
        self.size = base.size
        self._base = base
        if path is None:
            self._file = OverlayFile.anonymous(base.size, folder)
        else:
            self._file = OverlayFile.open(path, base.size, base_digest)
        self._kept = path is not None
        self._descriptor = self._file.descriptor
        self._data = self._file.data
        self._states = self._file.states
        self._dirty = bytearray(-(-len(self._states) // PAGE_STATES))
        self._locks = [threading.Lock() for _ in range(_STRIPES)]
        self._unsynced = False
        self._flush_lock = threading.Lock()
        self._flushes_begun = 0
        self._flushes_done = 0
        self._lost: BootstreamError | None = None

    # Reading

    def read_warm(self, offset: int, length: int) -> Sequence[memoryview] | None:
        """Return the range's views, or None if the base would have to wait."""
        first = offset >> _SHIFT
        last = (offset + length - 1) >> _SHIFT
        state = self._states[first]
        if first == last or _OTHERS[state].search(self._states, first, last + 1) is None:
            if state == BASE:
                return self._base.read_warm(offset, length)
            return self._own(state, offset, length)
        views: list[memoryview] = []
        for state, start, size in self._runs(offset, length):
            found = (
                self._base.read_warm(start, size)
                if state == BASE
                else self._own(state, start, size)
            )
            if found is None:
                return None
            views += found
        return views

    def read_views(self, offset: int, length: int) -> Sequence[memoryview]:
        """Return the range's views: the base's own, and fresh ones of what was written."""
        views: list[memoryview] = []
        for state, start, size in self._runs(offset, length):
            if state == BASE:
                views += self._base.read_views(start, size)
            else:
                views += self._own(state, start, size)
        return views

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer``; written blocks are read straight into it."""
        for state, start, size in self._runs(offset, len(buffer)):
            part = buffer[start - offset : start - offset + size]
            if state == BASE:
                self._base.read_into(part, start)
            elif state == ZERO:
                copy_views(self._own(state, start, size), part)
            else:
                self._pread(part, start)

    def _runs(self, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        """Yield state, offset and length of each run of blocks in one state."""
        states = self._states
        end = offset + length
        stop = ((end - 1) >> _SHIFT) + 1
        while offset < end:
            first = offset >> _SHIFT
            state = states[first]
            other = _OTHERS[state].search(states, first, stop)
            until = end if other is None else other.start() << _SHIFT
            yield state, offset, until - offset
            offset = until

    def _own(self, state: int, offset: int, length: int) -> list[memoryview]:
        if state == WRITTEN:
            try:
                data = os.pread(self._descriptor, length, self._data + offset)
            except OSError as error:
                raise disk_error(error, "read overlay", self._file.name) from error
            if len(data) == length:
                return [memoryview(data)]
            buffer = memoryview(bytearray(length))
            self._pread(buffer, offset)
            return [buffer]
        if length <= _PIECE:
            return [ZEROS[:length]]
        return [ZEROS[: min(_PIECE, length - at)] for at in range(0, length, _PIECE)]

    def _pread(self, buffer: memoryview, offset: int) -> None:
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(self._descriptor, [buffer[done:]], self._data + offset + done)
            except OSError as error:
                raise disk_error(error, "read overlay", self._file.name) from error
            if not count:
                raise self._file.damaged("it was cut short while it was in use")
            done += count

    # Writing

    def write(self, data: memoryview, offset: int) -> None:
        """Write; a block that is not written yet is completed from what it reads as."""
        length = len(data)
        first = offset >> _SHIFT
        last = (offset + length - 1) >> _SHIFT
        states = self._states
        try:
            if first == last:
                if states[first] == WRITTEN:
                    if os.pwrite(self._descriptor, data, self._data + offset) != length:
                        write_all(self._descriptor, [data], self._data + offset)
                    self._unsynced = True
                    return
                if length == BLOCK:
                    with self._locks[(first >> _REGION_SHIFT) % _STRIPES]:
                        if os.pwrite(self._descriptor, data, self._data + offset) != length:
                            write_all(self._descriptor, [data], self._data + offset)
                        states[first] = WRITTEN
                    self._dirty[first // PAGE_STATES] = 1
                    self._unsynced = True
                    return
            self._write(data, offset, first, last)
        except OSError as error:
            self._unsynced = True
            raise disk_error(error, "write overlay", self._file.name) from error

    def _write(self, data: memoryview, offset: int, first: int, last: int) -> None:
        """The general case: several blocks, or a part of one. Raises OSError."""
        states = self._states
        end = offset + len(data)
        start = first << _SHIFT
        stop = min((last + 1) << _SHIFT, self.size)
        if _OTHERS[WRITTEN].search(states, first, last + 1) is None:
            write_all(self._descriptor, [data], self._data + offset)
            self._unsynced = True
            return
        head = tail = b""
        if offset > start and states[first] == BASE:
            head = self._from_base(start, offset - start)
        if end < stop and states[last] == BASE:
            tail = self._from_base(end, stop - end)
        with self._locked(first, last):
            buffers: list[bytes | memoryview] = [data]
            where = offset
            if offset > start and states[first] != WRITTEN:
                buffers.insert(0, head if states[first] == BASE else ZEROS[: offset - start])
                where = start
            if end < stop and states[last] != WRITTEN:
                buffers.append(tail if states[last] == BASE else ZEROS[: stop - end])
            write_all(self._descriptor, buffers, self._data + where)
            self._set(first, last, WRITTEN)
        self._unsynced = True

    def _from_base(self, offset: int, length: int) -> bytes:
        return b"".join(self._base.read_views(offset, length))

    def _set(self, first: int, last: int, state: int) -> None:
        """Change states, then say so: flush clears what it was told before it looks."""
        count = last - first + 1
        self._states[first : last + 1] = bytes([state]) * count
        low, high = first // PAGE_STATES, last // PAGE_STATES
        self._dirty[low : high + 1] = b"\x01" * (high - low + 1)

    @contextmanager
    def _locked(self, first: int, last: int) -> Iterator[None]:
        """Hold the locks of all regions that blocks ``first`` to ``last`` lie in."""
        low, high = first >> _REGION_SHIFT, last >> _REGION_SHIFT
        high = min(high, low + _STRIPES - 1)
        with ExitStack() as stack:
            for stripe in sorted(region % _STRIPES for region in range(low, high + 1)):
                stack.enter_context(self._locks[stripe])
            yield

    def trim(self, offset: int, length: int) -> None:
        """Give the range's room back; it reads as zeros."""
        self.zero(offset, length, may_trim=True)

    def zero(self, offset: int, length: int, *, may_trim: bool) -> None:
        """Make the range read as zeros; without ``may_trim`` it gets room of its own."""
        end = offset + length
        first = (offset + _MASK) >> _SHIFT
        stop = len(self._states) if end == self.size else end >> _SHIFT
        if first >= stop:
            self._write_zeros(offset, end)
            return
        self._write_zeros(offset, first << _SHIFT)
        try:
            with self._locked(first, stop - 1):
                if may_trim:
                    self._punch(first, stop)
                    self._set(first, stop - 1, ZERO)
                else:
                    self._allocate_zeros(first, stop)
                    self._set(first, stop - 1, WRITTEN)
        except OSError as error:
            raise disk_error(error, "zero overlay", self._file.name) from error
        finally:
            self._unsynced = True
        self._write_zeros(stop << _SHIFT, end)

    def _write_zeros(self, start: int, end: int) -> None:
        """Write zeros over ``[start, end)``, a part of one or two blocks; may be empty."""
        if start < end:
            self.write(ZEROS[: end - start], start)

    def _punch(self, first: int, stop: int) -> None:
        """Give back the room of what was written; where that fails, the state alone does."""
        if self._states.find(WRITTEN, first, stop) < 0:
            return
        try:
            where = self._data + (first << _SHIFT)
            punch_hole(self._descriptor, where, (stop - first) << _SHIFT)
        except OSError:
            return

    def _allocate_zeros(self, first: int, stop: int) -> None:
        where = self._data + (first << _SHIFT)
        length = (stop - first) << _SHIFT
        if zero_range(self._descriptor, where, length):
            return
        for at in range(0, length, _PIECE):
            write_all(self._descriptor, [ZEROS[: min(_PIECE, length - at)]], where + at)

    # Durability

    def flush(self) -> None:
        """Make durable what was written before; a throw-away overlay has nothing to keep.

        Raises Unavailable, StorageFull or PermissionDenied; what was to be made durable may
        be lost then, and every further flush says so.
        """
        if not self._kept:
            return
        begun = self._flushes_begun
        with self._flush_lock:
            if self._flushes_done > begun:
                return  # one that began after this call has covered it
            if self._lost is not None:
                raise self._lost
            self._flushes_begun += 1
            self._flush()
            self._flushes_done = self._flushes_begun

    def _flush(self) -> None:
        """One flush, in the order that docs/formats/overlay.md gives; holds the lock."""
        if not self._unsynced:
            return
        self._unsynced = False
        pages = {}
        number = self._dirty.find(1)
        while number >= 0:
            self._dirty[number] = 0
            pages[number] = self._file.snapshot(number)
            number = self._dirty.find(1, number + 1)
        try:
            os.fdatasync(self._descriptor)
            if pages:
                self._file.write_pages(pages, copy=0)
                os.fdatasync(self._descriptor)
                self._file.write_pages(pages, copy=1)
        except OSError as error:
            # The kernel drops what it could not write, and reports that only once; so no
            # later flush could promise anything.
            self._lost = disk_error(error, "flush overlay", self._file.name)
            raise self._lost from error

    # The rest of a device

    def extents(self, offset: int, length: int) -> list[Extent]:
        """Describe the range: the base's extents where nothing was written."""
        found: list[Extent] = []
        for state, start, size in self._runs(offset, length):
            if state == BASE:
                found += self._base.extents(start, size)
            else:
                found.append(Extent(size, hole=state == ZERO, zero=state == ZERO))
        return merge_extents(found)

    def prefetch(self, offset: int, length: int) -> None:
        """Pass the advice to the base, for what is still its own."""
        for state, start, size in self._runs(offset, length):
            if state == BASE:
                self._base.prefetch(start, size)

    def close(self) -> None:
        """Flush what is kept and release the file; idempotent. Raises as ``flush``."""
        if self._descriptor < 0:
            return
        try:
            self.flush()
        finally:
            with self._flush_lock:
                descriptor, self._descriptor = self._descriptor, -1
                if descriptor >= 0:
                    os.close(descriptor)
