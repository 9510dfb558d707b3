"""One layer of an overlay: copy-on-write of blocks over a device that never changes.

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
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

from bootstream.block.device import ZEROS, Device, Extent, copy_views, merge_extents
from bootstream.block.disk import disk_error, punch_hole, write_all, zero_range
from bootstream.block.overlay_file import BASE, WRITTEN, ZERO, LayerFile
from bootstream.block.overlay_header import BLOCK, PAGE_STATES

_SHIFT = BLOCK.bit_length() - 1
_MASK = BLOCK - 1
_REGION_SHIFT = 8
_STRIPES = 64
_OTHERS = [re.compile(rb"[^\x00]"), re.compile(rb"[^\x01]"), re.compile(rb"[^\x02]")]
_PIECE = len(ZEROS)
_MERGE = (16 << 20) >> _SHIFT


class Layer:
    """Blocks over ``base``, kept in ``file``. Safe to use from several threads.

    ``base`` may be changed, to a device with the same contents. A layer that is not the top
    of its chain is not written to, but for the merge of one that hides what is changed.
    """

    def __init__(self, base: Device | Layer, file: LayerFile, size: int) -> None:
        self.size = size
        self.base = base
        self.file = file
        self.states = file.states
        self.unsynced = False
        self._descriptor = file.descriptor
        self._data = file.data
        self._dirty = bytearray(-(-len(self.states) // PAGE_STATES))
        self._locks = [threading.Lock() for _ in range(_STRIPES)]

    @property
    def untouched(self) -> bool:
        """Whether every block is as in the base."""
        return _OTHERS[BASE].search(self.states) is None

    # Reading

    def read_warm(self, offset: int, length: int) -> Sequence[memoryview] | None:
        """Return the range's views, or None if the base would have to wait."""
        first = offset >> _SHIFT
        last = (offset + length - 1) >> _SHIFT
        state = self.states[first]
        if first == last or _OTHERS[state].search(self.states, first, last + 1) is None:
            if state == BASE:
                return self.base.read_warm(offset, length)
            return self._own(state, offset, length)
        views: list[memoryview] = []
        for state, start, size in self.runs(offset, length):
            found = (
                self.base.read_warm(start, size) if state == BASE else self._own(state, start, size)
            )
            if found is None:
                return None
            views += found
        return views

    def read_views(self, offset: int, length: int) -> Sequence[memoryview]:
        """Return the range's views: the base's own, and fresh ones of what was written."""
        views: list[memoryview] = []
        for state, start, size in self.runs(offset, length):
            if state == BASE:
                views += self.base.read_views(start, size)
            else:
                views += self._own(state, start, size)
        return views

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer``; written blocks are read straight into it."""
        for state, start, size in self.runs(offset, len(buffer)):
            part = buffer[start - offset : start - offset + size]
            if state == BASE:
                self.base.read_into(part, start)
            elif state == ZERO:
                copy_views(self._own(state, start, size), part)
            else:
                self._pread(part, start)

    def runs(self, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        """Yield state, offset and length of each run of blocks in one state."""
        states = self.states
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
                raise disk_error(error, "read overlay", self.file.name) from error
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
                raise disk_error(error, "read overlay", self.file.name) from error
            if not count:
                raise self.file.damaged("it was cut short while it was in use")
            done += count

    # Writing

    def write(self, data: memoryview, offset: int) -> None:
        """Write; a block that is not written yet is completed from what it reads as."""
        length = len(data)
        first = offset >> _SHIFT
        last = (offset + length - 1) >> _SHIFT
        states = self.states
        try:
            if first == last:
                if states[first] == WRITTEN:
                    if os.pwrite(self._descriptor, data, self._data + offset) != length:
                        write_all(self._descriptor, [data], self._data + offset)
                    self.unsynced = True
                    return
                if length == BLOCK:
                    with self._locks[(first >> _REGION_SHIFT) % _STRIPES]:
                        if os.pwrite(self._descriptor, data, self._data + offset) != length:
                            write_all(self._descriptor, [data], self._data + offset)
                        states[first] = WRITTEN
                    self._dirty[first // PAGE_STATES] = 1
                    self.unsynced = True
                    return
            self._write(data, offset, first, last)
        except OSError as error:
            self.unsynced = True
            raise disk_error(error, "write overlay", self.file.name) from error

    def _write(self, data: memoryview, offset: int, first: int, last: int) -> None:
        """The general case: several blocks, or a part of one. Raises OSError."""
        states = self.states
        end = offset + len(data)
        start = first << _SHIFT
        stop = min((last + 1) << _SHIFT, self.size)
        if _OTHERS[WRITTEN].search(states, first, last + 1) is None:
            write_all(self._descriptor, [data], self._data + offset)
            self.unsynced = True
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
        self.unsynced = True

    def _from_base(self, offset: int, length: int) -> bytes:
        return b"".join(self.base.read_views(offset, length))

    def _set(self, first: int, last: int, state: int) -> None:
        """Change states, then say so: flush clears what it was told before it looks."""
        count = last - first + 1
        self.states[first : last + 1] = bytes([state]) * count
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
        stop = len(self.states) if end == self.size else end >> _SHIFT
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
            raise disk_error(error, "zero overlay", self.file.name) from error
        finally:
            self.unsynced = True
        self._write_zeros(stop << _SHIFT, end)

    def _write_zeros(self, start: int, end: int) -> None:
        """Write zeros over ``[start, end)``, a part of one or two blocks; may be empty."""
        if start < end:
            self.write(ZEROS[: end - start], start)

    def _punch(self, first: int, stop: int) -> None:
        """Give back the room of what was written; where that fails, the state alone does."""
        if not self.states.has(WRITTEN, first, stop):
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

    def flush(self, sync: Callable[[], None]) -> None:
        """One flush, in the order that docs/formats/overlay.md gives; one thread at a time.

        ``sync`` makes durable what was written to the file. Raises OSError, and what it does.
        """
        if not self.unsynced:
            return
        self.unsynced = False
        pages = {}
        number = self._dirty.find(1)
        while number >= 0:
            self._dirty[number] = 0
            pages[number] = self.file.snapshot(number)
            number = self._dirty.find(1, number + 1)
        sync()
        if pages:
            self.file.write_pages(pages, copy=0)
            sync()
            self.file.write_pages(pages, copy=1)

    # The rest of a device

    def extents(self, offset: int, length: int) -> list[Extent]:
        """Describe the range: the base's extents where nothing was written."""
        found: list[Extent] = []
        for state, start, size in self.runs(offset, length):
            if state == BASE:
                found += self.base.extents(start, size)
            else:
                found.append(Extent(size, hole=state == ZERO, zero=state == ZERO))
        return merge_extents(found)

    def prefetch(self, offset: int, length: int) -> None:
        """Pass the advice to the base, for what is still its own."""
        for state, start, size in self.runs(offset, length):
            if state == BASE:
                self.base.prefetch(start, size)

    # Merging

    def absorb(self, upper: Layer, *, pause: Callable[[], None]) -> None:
        """Take over everything of the layer above, which hides every block that changes here.

        ``pause`` is called every few MiB. Raises OSError.
        """
        blocks = len(self.states)
        first = copied = 0
        while first < blocks:
            found = _OTHERS[BASE].search(upper.states, first)
            if found is None:
                break
            first = found.start()
            state = upper.states[first]
            last = min(blocks, first + _MERGE)
            other = _OTHERS[state].search(upper.states, first, last)
            stop = last if other is None else other.start()
            with self._locked(first, stop - 1):
                if state == ZERO:
                    self._punch(first, stop)
                else:
                    self._copy(upper, first << _SHIFT, (stop - first) << _SHIFT)
                self._set(first, stop - 1, state)
            self.unsynced = True
            copied += stop - first if state == WRITTEN else 0
            if copied >= _MERGE:
                pause()
                copied = 0
            first = stop

    def _copy(self, upper: Layer, offset: int, length: int) -> None:
        """Copy data of the layer above within the file; in the kernel where it can."""
        end = offset + length
        while offset < end:
            count = 0
            with suppress(OSError):
                count = os.copy_file_range(
                    self._descriptor,
                    self._descriptor,
                    end - offset,
                    upper._data + offset,
                    self._data + offset,
                )
            if not count:
                data = os.pread(self._descriptor, min(_PIECE, end - offset), upper._data + offset)
                if not data:
                    raise self.file.damaged("it was cut short while it was in use")
                write_all(self._descriptor, [data], self._data + offset)
                count = len(data)
            offset += count

    def detach(self) -> None:
        """Use the file no more; reads and writes fail from here on."""
        self._descriptor = -1
