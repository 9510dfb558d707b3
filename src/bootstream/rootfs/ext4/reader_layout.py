"""Superblock, group descriptors and inodes of ext2, ext3 and ext4, as values.

Source: the Linux kernel's "ext4 Data Structures and Algorithms" (Documentation/filesystems/ext4):
"Super Block", "Block Group Descriptors", "Layout: Meta Block Groups", "Index Nodes". All numbers
on disk are little-endian. Everything read here comes from outside: whatever is used as an
offset, a count or a divisor is checked first, and what fails is ``Corrupt``.
"""

from __future__ import annotations

import os
import stat
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar
from uuid import UUID

from bootstream.errors import Corrupt, InvalidInput

ReadAt = Callable[[memoryview, int], None]
Key = TypeVar("Key")
Value = TypeVar("Value")

OPERATION = "read ext4"
ROOT_INODE = 2

# "Super Block", s_feature_incompat: what a reader must know.
INCOMPAT_FILETYPE = 0x2
INCOMPAT_RECOVER = 0x4
INCOMPAT_META_BG = 0x10
INCOMPAT_64BIT = 0x80
INCOMPAT_EA_INODE = 0x400
INCOMPAT_LARGEDIR = 0x4000
_INCOMPAT = {
    0x1: "compression",
    INCOMPAT_FILETYPE: "filetype",
    INCOMPAT_RECOVER: "needs_recovery",
    0x8: "journal_dev",
    INCOMPAT_META_BG: "meta_bg",
    0x40: "extent",
    INCOMPAT_64BIT: "64bit",
    0x100: "mmp",
    0x200: "flex_bg",
    INCOMPAT_EA_INODE: "ea_inode",
    0x1000: "dirdata",
    0x2000: "metadata_csum_seed",
    INCOMPAT_LARGEDIR: "large_dir",
    0x8000: "inline_data",
    0x10000: "encrypt",
    0x20000: "casefold",
}
_UNREADABLE = {"compression", "journal_dev", "dirdata"}
_COMPAT_SPARSE_SUPER2 = 0x200
_RO_COMPAT_SPARSE_SUPER = 0x1

# "Index Nodes", i_flags.
FLAG_ENCRYPT = 0x800
FLAG_EXTENTS = 0x80000
FLAG_EA_INODE = 0x200000
FLAG_INLINE_DATA = 0x10000000

_SUPERBLOCK_OFFSET, _SUPERBLOCK_SIZE = 1024, 1024
_MAGIC = 0xEF53
_OS_HURD = 1
_PAGE = 16 << 10
_PAGES = 512
_INODE = struct.Struct("<HHIiiiIHHIII60sIIIIHHHHHH")
_KINDS = {
    stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO,
    stat.S_IFSOCK,
}  # fmt: skip


def corrupt(message: str, object: str | None = None) -> Corrupt:
    """Return the error for damage in what ``object`` names."""
    return Corrupt(
        message,
        operation=OPERATION,
        object=object,
        remedy="the image is damaged: 'e2fsck -fn IMAGE' says how",
    )


class Cache(Generic[Key, Value]):
    """Least recently used values, up to a total weight; safe to use from several threads."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._weight = 0
        self._values: OrderedDict[Key, tuple[Value, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Key) -> Value | None:
        """Return a value that is still held."""
        with self._lock:
            found = self._values.get(key)
            if found is None:
                return None
            self._values.move_to_end(key)
            return found[0]

    def put(self, key: Key, value: Value, weight: int = 1) -> None:
        """Hold a value; the newest is held whatever it weighs."""
        with self._lock:
            if key in self._values:
                return
            self._values[key] = (value, weight)
            self._weight += weight
            while self._weight > self._limit and len(self._values) > 1:
                _, (_, lighter) = self._values.popitem(last=False)
                self._weight -= lighter


class Source:
    """The image's bytes: every range is checked against its size, small reads are cached.

    Args:
        read_at: fills a buffer from an offset; called with ranges inside ``size`` only, and
            from as many threads as use the file system.
        size: of the image, in bytes.
    """

    def __init__(self, read_at: ReadAt, size: int) -> None:
        self.size = size
        self._read_at = read_at
        self._pages: Cache[int, bytes] = Cache(_PAGES)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer`` straight from the image."""
        if offset < 0 or offset + len(buffer) > self.size:
            raise corrupt(f"{len(buffer)} bytes at {offset} lie outside the image")
        self._read_at(buffer, offset)

    def read(self, offset: int, length: int) -> bytes:
        """Return metadata, at most a block of it; neighbours are fetched and kept with it."""
        first, within = divmod(offset, _PAGE)
        if within + length <= _PAGE:
            page = self._page(first)
            if within + length <= len(page):
                return page[within : within + length]
        data = bytearray(length)
        self.read_into(memoryview(data), offset)
        return bytes(data)

    def _page(self, number: int) -> bytes:
        page = self._pages.get(number)
        if page is None:
            data = bytearray(max(0, min(_PAGE, self.size - number * _PAGE)))
            if data:
                self._read_at(memoryview(data), number * _PAGE)
            page = bytes(data)
            self._pages.put(number, page)
        return page


@dataclass(frozen=True, slots=True)
class Superblock:
    """What reading needs of the superblock; "Super Block"."""

    inodes: int
    blocks: int
    block_size: int
    first_data_block: int
    blocks_per_group: int
    inodes_per_group: int
    inode_size: int
    first_inode: int
    compat: int
    incompat: int
    ro_compat: int
    descriptor_size: int
    first_meta_group: int
    backup_groups: tuple[int, int]
    wide_owners: bool
    uuid: UUID
    label: bytes

    @classmethod
    def read(cls, source: Source) -> Superblock:
        """Read and check it.

        Raises:
            InvalidInput: no ext2, ext3 or ext4, or one with features that hide its contents.
            Corrupt: numbers that cannot be.
        """
        if source.size < _SUPERBLOCK_OFFSET + _SUPERBLOCK_SIZE:
            raise _no_file_system("the image is too small for a file system")
        data = source.read(_SUPERBLOCK_OFFSET, _SUPERBLOCK_SIZE)

        def u16(offset: int) -> int:
            return int.from_bytes(data[offset : offset + 2], "little")

        def u32(offset: int) -> int:
            return int.from_bytes(data[offset : offset + 4], "little")

        if u16(0x38) != _MAGIC:
            raise _no_file_system("the image holds no ext2, ext3 or ext4 file system")
        dynamic = u32(0x4C) >= 1
        incompat = u32(0x60) if dynamic else 0
        _refuse_unreadable(incompat)
        wide = bool(incompat & INCOMPAT_64BIT)
        found = cls(
            inodes=u32(0x0),
            blocks=u32(0x4) | (u32(0x150) << 32 if wide else 0),
            block_size=1024 << min(u32(0x18), 16),
            first_data_block=u32(0x14),
            blocks_per_group=u32(0x20),
            inodes_per_group=u32(0x28),
            inode_size=u16(0x58) if dynamic else 128,
            first_inode=u32(0x54) if dynamic else 11,
            compat=u32(0x5C) if dynamic else 0,
            incompat=incompat,
            ro_compat=u32(0x64) if dynamic else 0,
            descriptor_size=u16(0xFE) if wide else 32,
            first_meta_group=u32(0x104),
            backup_groups=(u32(0x24C), u32(0x250)),
            wide_owners=u32(0x48) != _OS_HURD,
            uuid=UUID(bytes=data[0x68:0x78]),
            label=data[0x78:0x88].partition(b"\0")[0],
        )
        found._check(source.size)
        return found

    def _check(self, size: int) -> None:
        if self.block_size > 65536:
            raise corrupt("the block size cannot be", "superblock")
        powers = (self.inode_size, 128, self.block_size), (self.descriptor_size, 32, 1024)
        for value, least, most in powers:
            if not least <= value <= min(most, self.block_size) or value & (value - 1):
                raise corrupt(f"a record of {value} bytes cannot be", "superblock")
        if not self.blocks_per_group or not self.inodes_per_group:
            raise corrupt("groups of nothing cannot be", "superblock")
        if self.first_data_block >= self.blocks or self.first_inode < ROOT_INODE:
            raise corrupt("the first block or inode cannot be", "superblock")
        if self.groups * self.inodes_per_group < self.inodes:
            raise corrupt("it counts more inodes than its groups can hold", "superblock")
        if self.blocks * self.block_size > size:
            raise corrupt(
                f"it has {self.blocks * self.block_size} bytes, the image {size}: "
                "the end is missing",
                "file system",
            )

    @property
    def groups(self) -> int:
        """How many block groups there are."""
        return -(-(self.blocks - self.first_data_block) // self.blocks_per_group)

    def has_superblock(self, group: int) -> bool:
        """Tell whether a group opens with a copy; "Layout", sparse_super and sparse_super2."""
        if group == 0:
            return True
        if self.compat & _COMPAT_SPARSE_SUPER2:
            return group in self.backup_groups
        if group == 1 or not self.ro_compat & _RO_COMPAT_SPARSE_SUPER:
            return True
        return any(_is_power(group, base) for base in (3, 5, 7))

    def descriptor_offset(self, group: int) -> int:
        """Where a group's descriptor is, in bytes; "Layout: Meta Block Groups"."""
        per_block = self.block_size // self.descriptor_size
        table, within = divmod(group, per_block)
        if not self.incompat & INCOMPAT_META_BG or table < self.first_meta_group:
            # After the superblock, which is in block 1 where blocks have 1 KiB, else in block 0.
            block = _SUPERBLOCK_OFFSET // self.block_size + 1 + table
        else:
            first = table * per_block
            block = self.first_data_block + first * self.blocks_per_group
            block += self.has_superblock(first)
            # 1 KiB blocks counted from 0 (bigalloc): the superblock is in block 1.
            if first == 0 and self.block_size == 1024 and self.first_data_block == 0:
                block += 1
        return block * self.block_size + within * self.descriptor_size

    def features(self) -> list[str]:
        """The names of the incompatible features, as e2fsprogs has them."""
        return [name for bit, name in _INCOMPAT.items() if self.incompat & bit]


def _no_file_system(message: str) -> InvalidInput:
    return InvalidInput(
        message, operation=OPERATION, object="superblock", remedy="is it a root file system?"
    )


def _refuse_unreadable(incompat: int) -> None:
    names = [name for bit, name in _INCOMPAT.items() if incompat & bit and name in _UNREADABLE]
    names += [f"{1 << n:#x}" for n in range(32) if incompat >> n & 1 and 1 << n not in _INCOMPAT]
    if names:
        raise InvalidInput(
            f"the file system has features that cannot be read: {', '.join(names)}",
            operation=OPERATION,
            object="superblock",
            remedy="make the image without them, see mkfs.ext4 -O",
        )


def _is_power(number: int, base: int) -> bool:
    while number % base == 0:
        number //= base
    return number == 1


class Status(NamedTuple):
    """What stat says. Times are nanoseconds since 1970, ``rdev`` is as ``os.makedev`` has it."""

    inode: int
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    atime_ns: int
    ctime_ns: int
    rdev: int
    links: int


class Inode(NamedTuple):
    """One inode; "Index Nodes". ``block`` is i_block, ``body`` what lies behind its fields."""

    status: Status
    flags: int
    block: bytes
    sectors: int
    xattr_block: int
    body: bytes

    @property
    def object(self) -> str:
        """How errors name it."""
        return f"inode {self.status.inode}"


class InodeTable:
    """Finds and decodes inodes."""

    def __init__(self, source: Source, superblock: Superblock) -> None:
        self._source = source
        self._super = superblock
        self._tables: Cache[int, int] = Cache(4096)
        self._inodes: Cache[int, Inode] = Cache(4096)

    def read(self, number: int) -> Inode:
        """Return an inode in use.

        Raises:
            Corrupt: there is no such inode, it is free, or its fields cannot be.
        """
        found = self._inodes.get(number)
        if found is None:
            found = self._decode(number, self._raw(number))
            self._inodes.put(number, found)
        return found

    def _raw(self, number: int) -> bytes:
        if not 1 <= number <= self._super.inodes:
            raise corrupt("there is no such inode", f"inode {number}")
        group, within = divmod(number - 1, self._super.inodes_per_group)
        table = self._tables.get(group)
        if table is None:
            table = self._table(group)
            self._tables.put(group, table)
        size = self._super.inode_size
        offset = table * self._super.block_size + within * size
        if offset + size > self._source.size:
            raise corrupt("the inode lies outside the image", f"inode {number}")
        return self._source.read(offset, size)

    def _table(self, group: int) -> int:
        """Return the first block of a group's inode table; "Block Group Descriptors"."""
        size = self._super.descriptor_size
        offset = self._super.descriptor_offset(group)
        if offset + size > self._source.size:
            raise corrupt("the descriptor lies outside the image", f"group {group}")
        data = self._source.read(offset, size)
        table = int.from_bytes(data[0x8:0xC], "little")
        if size >= 64:
            table |= int.from_bytes(data[0x28:0x2C], "little") << 32
        if not self._super.first_data_block < table < self._super.blocks:
            raise corrupt("the inode table lies outside the image", f"group {group}")
        return table

    def _decode(self, number: int, data: bytes) -> Inode:
        (
            mode, uid, size, atime, ctime, mtime, _dtime, gid, links, sectors, flags, _osd1,
            block, _generation, acl, size_high, _fragment, sectors_high, acl_high, uid_high,
            gid_high, _checksum, _reserved,
        ) = _INODE.unpack_from(data)  # fmt: skip
        name = f"inode {number}"
        kind = stat.S_IFMT(mode)
        # "Index Nodes": inodes below the first ordinary one, the root aside, are not for names;
        # those that hold xattr values have their own flag and a mode of a plain file.
        if kind not in _KINDS or not links:
            raise corrupt("a name leads to an inode that is not in use", name)
        if kind == stat.S_IFREG or (
            kind == stat.S_IFDIR and self._super.incompat & INCOMPAT_LARGEDIR
        ):
            size |= size_high << 32
        if size >= 1 << 63:
            raise corrupt("the size cannot be", name)
        if self._super.wide_owners:
            uid |= uid_high << 16
            gid |= gid_high << 16
        extra = self._extra_size(data, name)
        rdev = 0
        if kind in (stat.S_IFCHR, stat.S_IFBLK):
            rdev = _device(block)
        status = Status(
            number,
            mode,
            uid,
            gid,
            size,
            _time(data, mtime, 0x88, extra),
            _time(data, atime, 0x8C, extra),
            _time(data, ctime, 0x84, extra),
            rdev,
            links,
        )
        wide_blocks = sectors | sectors_high << 32
        body = data[128 + extra :] if len(data) > 128 else b""
        return Inode(status, flags, block, wide_blocks, acl | acl_high << 32, body)

    @staticmethod
    def _extra_size(data: bytes, name: str) -> int:
        """Return i_extra_isize, the size of the fields after the first 128 bytes."""
        if len(data) < 132:
            return 0
        extra = int.from_bytes(data[0x80:0x82], "little")
        if extra % 4 or 128 + extra > len(data):
            raise corrupt("the size of its fields cannot be", name)
        return extra


def _device(block: bytes) -> int:
    """Decode a device number, of the old 16 bit or the new 32 bit form; "Index Nodes"."""
    old, new = struct.unpack_from("<II", block)
    if old:
        return os.makedev(old >> 8 & 0xFF, old & 0xFF)
    return os.makedev(new >> 8 & 0xFFF, new & 0xFF | new >> 12 & 0xFFF00)


def _time(data: bytes, seconds: int, offset: int, extra: int) -> int:
    """Add the epoch bits and nanoseconds at ``offset``; "Inode Timestamps"."""
    if offset + 4 > 128 + extra:
        return seconds * 1_000_000_000
    more = int.from_bytes(data[offset : offset + 4], "little")
    return (seconds + ((more & 3) << 32)) * 1_000_000_000 + min(more >> 2, 999_999_999)
