"""The overlay's file: header, and slots with a layer's map and data (docs/formats/overlay.md).

``OverlayFile`` knows where things are and whether they are whole; what the states
mean, and when they change, is the overlay's own business.
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
import tempfile
import threading
import zlib
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from bootstream.block.disk import allocate, data_ranges, disk_error, punch_hole, write_all
from bootstream.block.overlay_header import (
    BLOCK,
    HEADER_SIZE,
    MAGIC,
    MAX_LAYERS,
    NEWEST_VERSION,
    PAGE_SIZE,
    PAGE_STATES,
    Committed,
    Header,
    LayerEntry,
    page_count,
)
from bootstream.block.overlay_states import States
from bootstream.errors import BootstreamError, Conflict, Corrupt, InvalidInput

BASE, WRITTEN, ZERO = 0, 1, 2

_PAGE = struct.Struct("<IIQ")
_CRC = struct.Struct("<I")
_EMPTY = bytes(PAGE_SIZE)
_LOOK, _LOOKS = 1 << 20, 64
_OPERATION = "open overlay"


class LayerFile:
    """One layer's place in an overlay file. Not thread safe, but for ``descriptor``.

    ``data`` is the offset of block 0's bytes in the file, ``states`` has one byte a block.
    """

    def __init__(self, descriptor: int, header: Header, entry: LayerEntry, name: str) -> None:
        self.descriptor = descriptor
        self.identity = entry.identity
        self.slot = entry.slot
        self.committed: Committed | None = entry.committed
        self.data = header.data + entry.slot * header.stride
        self.states = States(max(1, header.blocks))
        self.name = name
        shift = entry.slot * header.stride
        self._maps = (header.map_a + shift, header.map_b + shift)
        self._pages_size = page_count(header.size) * PAGE_SIZE

    @property
    def entry(self) -> LayerEntry:
        """What the header says of it."""
        return LayerEntry(self.identity, self.slot, self.committed)

    def damaged(self, what: str) -> Corrupt:
        """Make the error for a damaged file."""
        return _damaged(what, self.name)

    def snapshot(self, number: int) -> bytes:
        """Return map page ``number`` as it is to be written."""
        states = self.states[number * PAGE_STATES : (number + 1) * PAGE_STATES]
        body = _PAGE.pack(0, 0, number)[4:] + states.ljust(PAGE_STATES, b"\0")
        return _CRC.pack(zlib.crc32(body, zlib.crc32(self.identity))) + body

    def write_pages(self, pages: Mapping[int, bytes], *, copy: int) -> None:
        """Write snapshots into map A (``copy`` 0) or B (1). Raises OSError."""
        for number, page in pages.items():
            write_all(self.descriptor, [page], self._maps[copy] + number * PAGE_SIZE)

    def clear(self) -> None:
        """Empty both maps and reserve their room, for a new layer. Raises OSError."""
        start, length = self._maps[0], 2 * self._pages_size
        with suppress(OSError):  # what is left is overwritten, at the price of the writing
            punch_hole(self.descriptor, start, length)
        for begin, end in list(data_ranges(self.descriptor, start, start + length)):
            for at in range(begin, end, PAGE_SIZE):
                write_all(self.descriptor, [_EMPTY[: end - at]], at)
        allocate(self.descriptor, start, length)

    def read_map(self) -> None:
        """Fill ``states``, and bring both maps together where they differ."""
        first, second = self._pages(self._maps[0]), self._pages(self._maps[1])
        repairs: tuple[dict[int, bytes], dict[int, bytes]] = ({}, {})
        for number in sorted(first.keys() | second.keys()):
            a, b = first.get(number, _EMPTY), second.get(number, _EMPTY)
            chosen = self._choose(number, a, b)
            if chosen != _EMPTY:
                self._take(number, chosen[_PAGE.size :])
            for page, repaired in ((a, repairs[0]), (b, repairs[1])):
                if page != chosen:
                    repaired[number] = chosen
        if any(repairs):
            os.fdatasync(self.descriptor)  # the copy that counts, before the other is touched
            for copy, pages in enumerate(repairs):
                self.write_pages(pages, copy=copy)
            os.fdatasync(self.descriptor)

    def _choose(self, number: int, a: bytes, b: bytes) -> bytes:
        """Return the copy of a map page that counts; raises Corrupt."""
        if self._is_whole(number, a):
            return a
        if self._is_whole(number, b):
            return b
        if _EMPTY in (a, b):
            return _EMPTY
        raise self.damaged(f"both copies of page {number} of its map are damaged")

    def _pages(self, base: int) -> dict[int, bytes]:
        """Read the pages of one map that are not in a hole."""
        pages = {}
        for start, stop in data_ranges(self.descriptor, base, base + self._pages_size):
            first = (start - base) // PAGE_SIZE
            for number in range(first, -(-(stop - base) // PAGE_SIZE)):
                page = os.pread(self.descriptor, PAGE_SIZE, base + number * PAGE_SIZE)
                if page != _EMPTY:
                    pages[number] = page
        return pages

    def _is_whole(self, number: int, page: bytes) -> bool:
        crc, zeros, found = _PAGE.unpack_from(page)
        expected = zlib.crc32(page[4:], zlib.crc32(self.identity))
        return bool(crc == expected and zeros == 0 and found == number)

    def _take(self, number: int, states: bytes) -> None:
        start = number * PAGE_STATES
        count = min(PAGE_STATES, len(self.states) - start)
        if max(states) > ZERO or any(states[count:]):
            raise self.damaged(f"page {number} of its map holds what is no state")
        self.states[start : start + count] = states[:count]


class OverlayFile:
    """An open overlay file, held by this process alone.

    ``descriptor`` is open for reading and writing, ``layers`` are those of the chain, bottom
    first. One thread at a time changes the chain; any may give a slot back: those in
    ``unused`` are free, but have their room still.
    """

    def __init__(self, descriptor: int, header: Header, name: str, *, kept: bool) -> None:
        self.descriptor = descriptor
        self.name = name
        self._header = header
        self._kept = kept
        self._lock = threading.Lock()
        self.unused: deque[int] = deque()
        self._free = set(range(MAX_LAYERS)) - {entry.slot for entry in header.chain}
        self.layers = [self._layer(entry) for entry in header.chain]

    def _layer(self, entry: LayerEntry) -> LayerFile:
        return LayerFile(self.descriptor, self._header, entry, self.name)

    @classmethod
    def anonymous(cls, size: int, folder: Path | None) -> OverlayFile:
        """Make one without a name, which is gone when it is closed. Raises as ``open``."""
        name = f"overlay in {folder or tempfile.gettempdir()}"
        try:
            if folder is not None:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder, prefix="overlay-") as file:
                descriptor = os.dup(file.fileno())
        except OSError as error:
            raise disk_error(error, "make overlay", name) from error
        header = Header.make(size, "")
        overlay = cls(descriptor, header, name, kept=False)
        try:
            os.ftruncate(descriptor, header.file_size)
        except OSError as error:
            os.close(descriptor)
            raise disk_error(error, "make overlay", name) from error
        return overlay

    @classmethod
    def open(cls, path: Path, size: int, base_digest: str) -> OverlayFile:
        """Open the overlay at ``path``, or make one if there is none.

        Raises:
            Conflict: another process, or another device of this one, has it.
            InvalidInput: it is no overlay, or of another base, size or version.
            Corrupt: it is damaged.
            StorageFull, PermissionDenied, Unavailable: of the disk.
        """
        if len(base_digest.encode()) > 128:
            raise InvalidInput("the base's digest is too long", operation=_OPERATION)
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
            descriptor = os.open(path, flags, 0o600)
        except IsADirectoryError as error:
            raise InvalidInput("it is a folder", operation=_OPERATION, object=str(path)) from error
        except OSError as error:
            raise disk_error(error, _OPERATION, str(path)) from error
        try:
            return cls._open(descriptor, path, size, base_digest)
        except OSError as error:
            os.close(descriptor)
            raise disk_error(error, _OPERATION, str(path)) from error
        except BaseException:
            os.close(descriptor)
            raise

    @classmethod
    def _open(cls, descriptor: int, path: Path, size: int, base_digest: str) -> OverlayFile:
        name = str(path)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise InvalidInput("it is not a file", operation=_OPERATION, object=name)
        _lock(descriptor, path)
        if _is_empty(descriptor):
            header = Header.make(size, base_digest)
            overlay = cls(descriptor, header, name, kept=True)
            overlay._write_first()
            _sync_folder(path.parent)
            return overlay
        header, mend = _read_header(descriptor, name)
        _check(header, size, base_digest, path)
        overlay = cls(descriptor, header, name, kept=True)
        if os.fstat(descriptor).st_size < header.file_size:
            raise _damaged("it was cut short", name)
        if mend:
            overlay._write_header()
        for layer in overlay.layers:
            layer.read_map()
        for slot in overlay._free:  # what a merge had left when the process was killed
            overlay._give_room_back(slot)
        return overlay

    def _write_first(self) -> None:
        """Lay the file out. The header comes last: without it, it is made again."""
        header = self._header
        os.ftruncate(self.descriptor, header.file_size)
        allocate(self.descriptor, header.map_a, 2 * (header.map_b - header.map_a))
        os.fsync(self.descriptor)
        write_all(self.descriptor, [header.to_bytes() * 2], 0)
        os.fsync(self.descriptor)

    # The chain

    def new_layer(self) -> LayerFile:
        """Prepare an empty layer in a free slot; it is in no chain yet.

        Raises OSError of the disk, and Conflict if there are too many layers.
        """
        self.reclaim()
        if not self._free:
            raise Conflict(
                f"it has {MAX_LAYERS} layers, of commits that never came to their end",
                operation="freeze overlay",
                object=self.name,
                remedy="free room on the disk it lies on, and commit again",
            )
        with self._lock:
            slot = min(self._free)
            layer = self._layer(LayerEntry(os.urandom(16), slot))
            end = self._header.end_of(slot)
            if os.fstat(self.descriptor).st_size < end:
                os.ftruncate(self.descriptor, end)
            layer.clear()
            self._free.discard(slot)
        return layer

    def write_chain(self, layers: Sequence[LayerFile]) -> None:
        """Make ``layers`` the chain, durably; all of them must be durable. Raises OSError."""
        before = self._header
        self._header = replace(
            before,
            version=NEWEST_VERSION,
            generation=before.generation + 1,
            chain=tuple(layer.entry for layer in layers),
        )
        try:
            if self._kept:
                self._write_header()
        except OSError:
            self._header = before
            raise
        self.layers = list(layers)

    def _write_header(self) -> None:
        """Write one copy, and the other only when the first is durable."""
        data = self._header.to_bytes()
        for at in (0, HEADER_SIZE):
            os.fdatasync(self.descriptor)
            write_all(self.descriptor, [data], at)
        os.fdatasync(self.descriptor)

    def release(self, slot: int) -> None:
        """Take a slot back that no chain and no reader uses any more.

        Takes no lock, for finalizers call it wherever the interpreter happens to be; the
        room goes with the next ``reclaim``.
        """
        self.unused.append(slot)

    def reclaim(self) -> None:
        """Give back the room of slots that were released."""
        with self._lock:
            while self.unused and self.descriptor >= 0:
                slot = self.unused.popleft()
                self._give_room_back(slot)
                self._free.add(slot)

    def _give_room_back(self, slot: int) -> None:
        header = self._header
        start = slot * header.stride + header.map_a
        size = os.fstat(self.descriptor).st_size
        if start >= size:
            return
        with suppress(OSError):  # room that cannot be given back is used again by the next one
            if slot and header.end_of(slot) >= size:  # the last one: all before it stay
                os.ftruncate(self.descriptor, slot * header.stride)
            else:
                punch_hole(self.descriptor, start, min(size, header.end_of(slot)) - start)

    def close(self) -> None:
        """Let the file go; idempotent."""
        with self._lock:
            descriptor, self.descriptor = self.descriptor, -1
            if descriptor >= 0:
                os.close(descriptor)


def read_base(path: Path) -> tuple[str, int, Committed | None]:
    """Return which base the overlay at ``path`` is of, without opening it for use.

    Returns:
        The base's digest, the device's size, and the build that it was committed as last.

    Raises:
        InvalidInput: it is no overlay, or a newer one.
        Corrupt: it is damaged.
        PermissionDenied, Unavailable: of the disk.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise disk_error(error, _OPERATION, str(path)) from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise InvalidInput("it is not a file", operation=_OPERATION, object=str(path))
        header, _ = _read_header(descriptor, str(path))
    except OSError as error:
        raise disk_error(error, _OPERATION, str(path)) from error
    finally:
        os.close(descriptor)
    _check(header, header.size, header.base_digest, path)
    marks = [entry.committed for entry in header.chain if entry.committed is not None]
    return header.base_digest, header.size, marks[-1] if marks else None


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise Conflict(
            "the overlay is in use",
            operation=_OPERATION,
            object=str(path),
            remedy="end the process that serves it, or name another file; to commit it while "
            "it is served, name the server's socket",
        ) from error


def _is_empty(descriptor: int) -> bool:
    """Tell whether nothing was ever written: new, or its making was cut short."""
    size = os.fstat(descriptor).st_size
    looked = 0
    for start, stop in data_ranges(descriptor, 0, size):
        for at in range(start, stop, _LOOK):
            # Some file systems report room that was only reserved as data.
            if looked >= _LOOKS or any(os.pread(descriptor, min(_LOOK, stop - at), at)):
                return False
            looked += 1
    return True


def _read_header(descriptor: int, name: str) -> tuple[Header, bool]:
    """Return the newest header that is whole, and whether a copy of it is missing."""
    copies = [os.pread(descriptor, HEADER_SIZE, at) for at in (0, HEADER_SIZE)]
    headers = [header for header in map(Header.parse, copies) if header is not None]
    if headers:
        newest = max(headers, key=lambda header: header.generation)
        return newest, newest.version == NEWEST_VERSION and copies[0] != copies[1]
    if not any(copy.startswith(MAGIC) for copy in copies):
        raise InvalidInput(
            "the file is not an overlay",
            operation=_OPERATION,
            object=name,
            remedy="name a new file, or one that an overlay was kept in",
        )
    raise _damaged("both copies of its header are damaged", name)


def _check(header: Header, size: int, base_digest: str, path: Path) -> None:
    """Refuse an overlay of another kind or another base."""
    expected = Header.make(size, base_digest)
    problem: BootstreamError | None = None
    if not 1 <= header.version <= NEWEST_VERSION or header.block_size != BLOCK:
        problem = InvalidInput(
            f"it has version {header.version}, this program knows up to {NEWEST_VERSION}",
            remedy="serve it with the version of bootstream that made it",
        )
    elif (header.base_digest, header.size) != (base_digest, size):
        problem = InvalidInput(
            f"it belongs to another base: index sha256:{header.base_digest}, {header.size} bytes",
            remedy="serve the build that it was made for, or name a new file",
        )
    elif (header.map_a, header.map_b, header.data) != (
        expected.map_a,
        expected.map_b,
        expected.data,
    ):
        problem = _damaged("its header names impossible places", str(path))
    if problem is not None:
        problem.operation, problem.object = _OPERATION, str(path)
        raise problem


def _damaged(what: str, name: str) -> Corrupt:
    return Corrupt(
        what,
        operation=_OPERATION,
        object=name,
        remedy="restore the file from a copy, or delete it and lose what was written",
    )


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
