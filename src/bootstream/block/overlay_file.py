"""The overlay's file: header, map, places (docs/formats/overlay.md).

``OverlayFile`` knows where things are and whether they are whole; what the states
mean, and when they change, is the overlay's own business.
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bootstream.block.disk import allocate, data_ranges, disk_error, write_all
from bootstream.errors import BootstreamError, Conflict, Corrupt, InvalidInput

BLOCK = 4096
PAGE_STATES = 4080
BASE, WRITTEN, ZERO = 0, 1, 2

_MAGIC = b"BSOVRLAY"
_VERSION = 1
_HEADER_SIZE = 4096
_MAP = 2 * _HEADER_SIZE
_DATA_ALIGNMENT = 1 << 20
_FIELDS = struct.Struct("<8sIIQQQQ16sI128s")
_PAGE = struct.Struct("<IIQ")
_PAGE_SIZE = _PAGE.size + PAGE_STATES
_CRC = struct.Struct("<I")
_EMPTY = bytes(_PAGE_SIZE)
_LOOK, _LOOKS = 1 << 20, 64
_OPERATION = "open overlay"


@dataclass(frozen=True, slots=True)
class Header:
    """The fields of a header; sizes and offsets in bytes."""

    version: int
    block_size: int
    size: int
    map_a: int
    map_b: int
    data: int
    identity: bytes
    base_digest: str

    @classmethod
    def make(cls, size: int, base_digest: str) -> Header:
        """The header of a new overlay over a base of ``size`` bytes."""
        map_size = _page_count(size) * _PAGE_SIZE
        end = _MAP + 2 * map_size
        return cls(
            version=_VERSION,
            block_size=BLOCK,
            size=size,
            map_a=_MAP,
            map_b=_MAP + map_size,
            data=-(-end // _DATA_ALIGNMENT) * _DATA_ALIGNMENT,
            identity=os.urandom(16),
            base_digest=base_digest,
        )

    def to_bytes(self) -> bytes:
        """The header's 4096 bytes."""
        digest = self.base_digest.encode()
        fields = _FIELDS.pack(
            _MAGIC,
            self.version,
            self.block_size,
            self.size,
            self.map_a,
            self.map_b,
            self.data,
            self.identity,
            len(digest),
            digest,
        ).ljust(_HEADER_SIZE - _CRC.size, b"\0")
        return fields + _CRC.pack(zlib.crc32(fields))

    @classmethod
    def parse(cls, data: bytes) -> Header | None:
        """Return the header in ``data``, None if it is not whole."""
        if len(data) != _HEADER_SIZE or data[:8] != _MAGIC:
            return None
        if _CRC.pack(zlib.crc32(data[: -_CRC.size])) != data[-_CRC.size :]:
            return None
        _, version, block_size, size, map_a, map_b, start, identity, length, text = (
            _FIELDS.unpack_from(data)
        )
        try:
            digest = text[:length].decode()
        except UnicodeDecodeError:
            return None
        return cls(version, block_size, size, map_a, map_b, start, identity, digest)


def _page_count(size: int) -> int:
    blocks = -(-size // BLOCK)
    return -(-blocks // PAGE_STATES)


class OverlayFile:
    """An open overlay file, held by this process alone.

    ``descriptor`` is open for reading and writing, ``data`` the offset of block 0's bytes,
    ``states`` one byte a block. Not thread safe, but for ``descriptor``.
    """

    def __init__(self, descriptor: int, header: Header, states: bytearray, name: str) -> None:
        self.descriptor = descriptor
        self.data = header.data
        self.states = states
        self.name = name
        self._header = header

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
        overlay = cls(descriptor, header, bytearray(-(-size // BLOCK)), name)
        try:
            os.ftruncate(descriptor, overlay.file_size)
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
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise InvalidInput("it is not a file", operation=_OPERATION, object=str(path))
        _lock(descriptor, path)
        if _is_empty(descriptor):
            header = Header.make(size, base_digest)
            overlay = cls(descriptor, header, bytearray(-(-size // BLOCK)), str(path))
            overlay._write_first()
            _sync_folder(path.parent)
            return overlay
        header = _read_header(descriptor, str(path))
        _check(header, size, base_digest, path)
        overlay = cls(descriptor, header, bytearray(-(-size // BLOCK)), str(path))
        if os.fstat(descriptor).st_size < overlay.file_size:
            raise overlay.damaged("it was cut short")
        overlay._read_map()
        return overlay

    @property
    def file_size(self) -> int:
        """The size in bytes that the file has, most of it perhaps a hole."""
        return self.data + len(self.states) * BLOCK

    def damaged(self, what: str) -> Corrupt:
        """Make the error for a damaged file."""
        return _damaged(what, self.name)

    def _write_first(self) -> None:
        """Lay the file out. The header comes last: without it, it is made again."""
        header = self._header
        os.ftruncate(self.descriptor, self.file_size)
        allocate(self.descriptor, header.map_a, 2 * (header.map_b - header.map_a))
        os.fsync(self.descriptor)
        write_all(self.descriptor, [self._header.to_bytes() * 2], 0)
        os.fsync(self.descriptor)

    # The map

    def snapshot(self, number: int) -> bytes:
        """Return map page ``number`` as it is to be written."""
        states = self.states[number * PAGE_STATES : (number + 1) * PAGE_STATES]
        body = _PAGE.pack(0, 0, number)[4:] + states.ljust(PAGE_STATES, b"\0")
        return _CRC.pack(zlib.crc32(body, zlib.crc32(self._header.identity))) + body

    def write_pages(self, pages: Mapping[int, bytes], *, copy: int) -> None:
        """Write snapshots into map A (``copy`` 0) or B (1). Raises OSError."""
        base = (self._header.map_a, self._header.map_b)[copy]
        for number, page in pages.items():
            write_all(self.descriptor, [page], base + number * _PAGE_SIZE)

    def _read_map(self) -> None:
        """Fill ``states``, and bring both maps together where they differ."""
        header = self._header
        first = self._pages(header.map_a)
        second = self._pages(header.map_b)
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
        end = base + _page_count(self._header.size) * _PAGE_SIZE
        for start, stop in data_ranges(self.descriptor, base, end):
            first = (start - base) // _PAGE_SIZE
            for number in range(first, -(-(stop - base) // _PAGE_SIZE)):
                page = os.pread(self.descriptor, _PAGE_SIZE, base + number * _PAGE_SIZE)
                if page != _EMPTY:
                    pages[number] = page
        return pages

    def _is_whole(self, number: int, page: bytes) -> bool:
        crc, zeros, found = _PAGE.unpack_from(page)
        expected = zlib.crc32(page[4:], zlib.crc32(self._header.identity))
        return bool(crc == expected and zeros == 0 and found == number)

    def _take(self, number: int, states: bytes) -> None:
        start = number * PAGE_STATES
        count = min(PAGE_STATES, len(self.states) - start)
        if max(states) > ZERO or any(states[count:]):
            raise self.damaged(f"page {number} of its map holds what is no state")
        self.states[start : start + count] = states[:count]


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise Conflict(
            "the overlay is in use",
            operation=_OPERATION,
            object=str(path),
            remedy="end the process that serves it, or name another file",
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


def _read_header(descriptor: int, name: str) -> Header:
    copies = [os.pread(descriptor, _HEADER_SIZE, at) for at in (0, _HEADER_SIZE)]
    for copy in copies:
        header = Header.parse(copy)
        if header is not None:
            return header
    if not any(copy.startswith(_MAGIC) for copy in copies):
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
    if header.version != _VERSION or header.block_size != BLOCK:
        problem = InvalidInput(
            f"it has version {header.version}, this program knows {_VERSION}",
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
