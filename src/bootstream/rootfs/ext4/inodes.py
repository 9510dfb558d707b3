"""Inodes as bytes. Kernel documentation, "ext4 Data Structures and Algorithms", "Inode Table"."""

from __future__ import annotations

import struct

from bootstream.rootfs.ext4.extents import EMPTY, one_extent
from bootstream.rootfs.ext4.layout import INODE_SIZE
from bootstream.rootfs.nodes import (
    S_IFBLK,
    S_IFCHR,
    S_IFDIR,
    S_IFLNK,
    S_IFMT,
    S_IFREG,
    Directory,
    Extents,
    Node,
)

EXTENTS_FLAG = 0x80000
INDEX_FLAG = 0x1000
FAST_SYMLINK = 60
_EXTRA = 32
_INODE = struct.Struct("<HHIIIIIHHIII60sIIIIHHHHHHHHIIIIIII96s")
assert _INODE.size == INODE_SIZE
_NANO = 10**9
_EARLIEST = -(1 << 31) * _NANO
_LATEST = ((1 << 34) - (1 << 31)) * _NANO - 1
NO_XATTRS = bytes(96)


def pack_time(nanoseconds: int) -> tuple[int, int]:
    """Return a time's two words: seconds, and two more bits of them with the nanoseconds.

    Times outside 1901-12-13 to 2446-05-10 become the nearest that ext4 can hold.
    """
    seconds, rest = divmod(min(max(nanoseconds, _EARLIEST), _LATEST), _NANO)
    low = seconds & 0xFFFFFFFF
    signed = low - (1 << 32) if low >> 31 else low
    return low, (seconds - signed) >> 32 & 3 | rest << 2


def pack_device(major: int, minor: int) -> bytes:
    """Return ``i_block`` of a device: the old form where both fit a byte, else the new one."""
    if major < 256 and minor < 256:
        return struct.pack("<I56x", major << 8 | minor)
    new = (minor & 0xFF) | major << 8 | (minor & ~0xFF) << 12
    return struct.pack("<II52x", 0, new)


def data_blocks(node: Node) -> int:
    """Return how many blocks an inode's data and extent tree take."""
    if isinstance(node, Directory):
        return sum(node.runs[1::3])
    if isinstance(node.detail, Extents):
        return sum(node.detail.runs[1::3]) + len(node.detail.tree)
    return node.count


def pack_node(
    node: Node,
    *,
    block_size: int,
    links: int,
    root: bytes | None,
    extra_blocks: int,
    flags: int,
    xattr_block: int,
    xattrs: bytes,
) -> bytes:
    """Return a node's 256 bytes.

    Args:
        links: the link count.
        root: the extent tree's root where the node itself does not say (directories).
        extra_blocks: blocks besides the data: attributes, a directory's tree.
        flags: besides that for extents.
        xattr_block: the block with its attributes, or 0.
        xattrs: the 96 bytes behind its fields.
    """
    kind = node.mode & S_IFMT
    block, more = EMPTY, 0
    if kind in (S_IFREG, S_IFDIR):
        more = EXTENTS_FLAG
        if root is not None:
            block = root
        elif node.count:
            block = one_extent(node.block, node.count)
        elif isinstance(node.detail, Extents):
            block = node.detail.root
    elif kind == S_IFLNK:
        assert isinstance(node.detail, bytes)
        if node.count:
            block, more = one_extent(node.block, node.count), EXTENTS_FLAG
        else:
            block = node.detail.ljust(60, b"\0")
    elif kind in (S_IFCHR, S_IFBLK):
        assert isinstance(node.detail, tuple)
        block = pack_device(*node.detail)
    else:
        block = bytes(60)
    return pack_inode(
        mode=node.mode,
        uid=node.uid,
        gid=node.gid,
        size=node.size,
        mtime=node.mtime,
        atime=node.mtime if node.atime is None else node.atime,
        links=links,
        sectors=(data_blocks(node) + extra_blocks) * (block_size // 512),
        flags=flags | more,
        block=block,
        xattr_block=xattr_block,
        xattrs=xattrs,
    )


def pack_inode(
    *,
    mode: int,
    size: int,
    links: int,
    sectors: int,
    flags: int,
    block: bytes,
    uid: int = 0,
    gid: int = 0,
    mtime: int = 0,
    atime: int = 0,
    xattr_block: int = 0,
    xattrs: bytes = NO_XATTRS,
) -> bytes:
    """Return an inode; times in nanoseconds, change and creation as the modification."""
    seconds, extra = pack_time(mtime)
    access, access_extra = (seconds, extra) if atime == mtime else pack_time(atime)
    return _INODE.pack(
        mode,
        uid & 0xFFFF,
        size & 0xFFFFFFFF,
        access,
        seconds,
        seconds,
        0,
        gid & 0xFFFF,
        links,
        sectors & 0xFFFFFFFF,
        flags,
        0,
        block,
        0,
        xattr_block,
        size >> 32,
        0,
        sectors >> 32,
        0,
        uid >> 16,
        gid >> 16,
        0,
        0,
        _EXTRA,
        0,
        extra,
        extra,
        access_extra,
        seconds,
        extra,
        0,
        0,
        xattrs,
    )
