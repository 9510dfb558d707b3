"""One file of the node cache: slots for chunks of one pack (docs/formats/cache.md).

Whoever holds a ``Segment`` may read and fill it, whatever becomes of the file's
name meanwhile. The descriptor is closed only when the last holder lets go, so that
a late fill can never write into another file that got the same number.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import mmap
import os
import struct
import sys
import tempfile
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bootstream.block.disk import allocate, write_all

_log = logging.getLogger(__name__)

Data = bytes | memoryview

MAGIC = b"BSNODE01"
PAGE = 4096
DIGEST = 32
ABSENT, PRESENT, UNVERIFIED = 0, 1, 2
NEW = ".new"
_ATTEMPTS = 16

_HEADER = struct.Struct("<8sIIQ16s32s")
_CRC = struct.Struct("<I")
_BOOT_ID = slice(24, 40)
_AGED = bytes([ABSENT, UNVERIFIED, UNVERIFIED]) + bytes(253)
_MMAP_OPTIONS: dict[str, Any] = {"trackfd": False} if sys.version_info >= (3, 13) else {}


def _round(number: int) -> int:
    return -(-number // PAGE) * PAGE


class Layout(NamedTuple):
    """What all segments of one pack have in common. Sizes in bytes."""

    key: bytes
    chunk_size: int
    slots: int
    boot_id: bytes

    @property
    def digests(self) -> int:
        """Offset of the hashes."""
        return PAGE + _round(self.slots)

    @property
    def data(self) -> int:
        """Offset of the chunks."""
        return self.digests + _round(self.slots * DIGEST)

    @property
    def size(self) -> int:
        """Size of the file."""
        return self.data + self.slots * self.chunk_size

    def header(self, number: int, boot_id: bytes) -> bytes:
        """The header's bytes, with their checksum."""
        fields = _HEADER.pack(MAGIC, self.chunk_size, self.slots, number, boot_id, self.key)
        return fields + _CRC.pack(zlib.crc32(fields))


class Damaged(Exception):
    """The file is not the segment that it should be; never leaves this module."""


class Segment:
    """An open, pinned and mapped segment. Safe to use from several threads and processes.

    ``used_ns`` is when a chunk was last found or put here, in nanoseconds since the epoch;
    ``seen_ns`` and ``idle`` are the cache's notes on that.
    """

    __slots__ = (
        "_checked",
        "_data",
        "_descriptor",
        "_digests",
        "_layout",
        "_states",
        "idle",
        "path",
        "seen_ns",
        "used_ns",
    )

    def __init__(self, descriptor: int, path: Path, layout: Layout) -> None:
        self._descriptor = descriptor  # first: __del__ closes it whatever follows
        self._layout = layout
        self._checked = bytearray(layout.slots)
        self.path = path
        self.used_ns = time.time_ns()
        self.seen_ns = 0
        self.idle = 0
        mapping = mmap.mmap(
            descriptor, layout.size, mmap.MAP_SHARED, mmap.PROT_READ, **_MMAP_OPTIONS
        )
        whole = memoryview(mapping)
        self._states = whole[PAGE : PAGE + layout.slots]
        self._digests = whole[layout.digests : layout.digests + layout.slots * DIGEST]
        self._data = whole[layout.data :]

    def __del__(self) -> None:
        os.close(self._descriptor)

    def find(self, slot: int, digest: bytes, length: int) -> memoryview | None:
        """Return the chunk in ``slot`` if it is present with this sha256, else None.

        It is hashed when this segment gives it out for the first time; OSError where the
        disk cannot read it.
        """
        state = self._states[slot]
        if state == ABSENT or self._digests[slot * DIGEST : (slot + 1) * DIGEST] != digest:
            return None
        if not (state == PRESENT and self._checked[slot]):
            if not self._holds(slot, digest, length):
                self._set_state(slot, ABSENT)
                if state == PRESENT:
                    _log.warning("a chunk in %s is damaged: it is fetched again", self.path)
                return None
            if state != PRESENT:
                self._set_state(slot, PRESENT)
            self._checked[slot] = 1
        start = slot * self._layout.chunk_size
        self.used_ns = time.time_ns()
        return self._data[start : start + length]

    def _holds(self, slot: int, digest: bytes, length: int) -> bool:
        """Tell whether a slot's bytes have this sha256. Raises OSError.

        Not by the mapping: what a disk cannot read is a signal there, that ends the process.
        """
        at = self._layout.data + slot * self._layout.chunk_size
        return hashlib.sha256(os.pread(self._descriptor, length, at)).digest() == digest

    def _set_state(self, slot: int, state: int) -> None:
        os.pwrite(self._descriptor, bytes([state]), PAGE + slot)

    def fill(self, slot: int, digest: bytes, data: bytes | memoryview) -> memoryview | None:
        """Put a verified chunk into ``slot`` and return its view there.

        None if the slot is taken by other bytes. Raises OSError; the slot is absent then.
        """
        length = len(data)
        found = self.find(slot, digest, length)
        if found is not None:
            return found
        layout = self._layout
        start = slot * layout.chunk_size
        if self._states[slot] == ABSENT:
            allocate(self._descriptor, layout.data + start, length)
            write_all(self._descriptor, [data], layout.data + start)
        elif not self._holds(slot, digest, length):
            return None
        # Else the bytes are right, and it is their sha256 that was damaged.
        write_all(self._descriptor, [digest], layout.digests + slot * DIGEST)
        self._set_state(slot, PRESENT)
        self._checked[slot] = 1
        self.used_ns = time.time_ns()
        return self._data[start : start + length]

    def fill_run(self, slot: int, digests: Sequence[bytes], data: Sequence[Data]) -> bool:
        """Put verified chunks into neighbouring slots, by as few calls as one takes.

        All but the last are as long as a slot. False, with nothing done, if any of the slots
        is taken; then they go one by one. Raises OSError; the slots are absent then.
        """
        count = len(data)
        if self._states[slot : slot + count] != bytes(count):
            return False
        layout = self._layout
        start = layout.data + slot * layout.chunk_size
        allocate(self._descriptor, start, sum(map(len, data)))
        write_all(self._descriptor, list(data), start)
        write_all(self._descriptor, [b"".join(digests)], layout.digests + slot * DIGEST)
        write_all(self._descriptor, [bytes([PRESENT]) * count], PAGE + slot)
        self._checked[slot : slot + count] = b"\1" * count
        self.used_ns = time.time_ns()
        return True

    def view(self, slot: int, length: int) -> memoryview:
        """Return a slot's bytes, which were found or filled before."""
        start = slot * self._layout.chunk_size
        return self._data[start : start + length]

    def stamp(self) -> None:
        """Tell every process when the segment was last in use."""
        with contextlib.suppress(OSError):
            os.utime(self._descriptor, ns=(self.used_ns, self.used_ns))

    def release(self) -> None:
        """Let evictors have it; views of it stay valid."""
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)


def open_segment(path: Path, number: int, layout: Layout, *, create: bool) -> Segment | None:
    """Open and pin the segment at ``path``; None if there is none and ``create`` is false.

    What is not a segment of this layout is removed. Raises OSError.
    """
    for _ in range(_ATTEMPTS):
        try:
            return _open(path, number, layout)
        except FileNotFoundError:
            if not create:
                return None
            _make(path, number, layout)
        except Damaged:
            path.unlink(missing_ok=True)
    raise OSError(errno.EBUSY, "others remove it as fast as it is made", str(path))


def _open(path: Path, number: int, layout: Layout) -> Segment:
    """Open and pin. Raises FileNotFoundError when it went meanwhile, and Damaged."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise Damaged from error
        raise
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        _check(descriptor, path, number, layout)
    except BaseException:
        os.close(descriptor)
        raise
    segment = Segment(descriptor, path, layout)
    segment.stamp()
    return segment


def _check(descriptor: int, path: Path, number: int, layout: Layout) -> None:
    """Compare the header with what it must be, and age the states after a reboot."""
    status = os.fstat(descriptor)
    if not os.path.samestat(status, path.lstat()):
        raise FileNotFoundError(errno.ENOENT, "evicted, and made again")
    size = status.st_size
    expected = layout.header(number, layout.boot_id)
    found = os.pread(descriptor, len(expected), 0)
    if size == layout.size and found == expected:
        return
    if size != layout.size or found != layout.header(number, found[_BOOT_ID].ljust(16, b"\0")):
        raise Damaged
    states = os.pread(descriptor, layout.slots, PAGE)
    write_all(descriptor, [states.translate(_AGED)], PAGE)
    write_all(descriptor, [expected], 0)


def _make(path: Path, number: int, layout: Layout) -> None:
    """Make an empty segment at ``path``, unless somebody else is first. Raises OSError."""
    for folder in (path.parent.parent.parent, path.parent.parent, path.parent):
        folder.mkdir(mode=0o700, exist_ok=True)
    try:
        descriptor, name = tempfile.mkstemp(suffix=NEW, dir=path.parent)
    except FileNotFoundError:
        return  # an evictor took the empty folder; the caller comes again
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        os.ftruncate(descriptor, layout.size)
        allocate(descriptor, 0, layout.data)
        write_all(descriptor, [layout.header(number, layout.boot_id)], 0)
        os.link(name, path)
    except (FileExistsError, FileNotFoundError):
        pass  # made by another process, or cleared away: the caller looks again
    finally:
        os.close(descriptor)
        Path(name).unlink(missing_ok=True)
