"""Inodes and directories while the tree is in memory: as small as Python lets them be."""

from __future__ import annotations

from array import array
from dataclasses import dataclass

S_IFIFO = 0o010000
S_IFCHR = 0o020000
S_IFDIR = 0o040000
S_IFBLK = 0o060000
S_IFREG = 0o100000
S_IFLNK = 0o120000
S_IFMT = 0o170000

Xattrs = tuple[tuple[int, bytes, bytes], ...]
"""Name index, rest of the name, value: sorted as an ext4 xattr block wants them."""


@dataclass(slots=True)
class Extents:
    """A file whose blocks do not lie in one run.

    ``runs`` are flat triples of logical block, length and physical block, ascending;
    ``root`` is what the inode holds; ``tree`` are the blocks of the extent tree itself.
    """

    runs: array[int]
    root: bytes
    tree: tuple[int, ...]


class Node:
    """One inode. ``number`` is given on first appearance and never given twice.

    Attributes:
        mode: kind and permission bits.
        links: names that it has (directories: not counted here).
        block, count: its run of data blocks, where it has one; else both 0.
        detail: Extents of a file in several runs, a symlink's target, a device's numbers.
    """

    __slots__ = (
        "atime",
        "block",
        "count",
        "detail",
        "gid",
        "links",
        "mode",
        "mtime",
        "number",
        "size",
        "uid",
        "xattrs",
    )

    def __init__(self, number: int, mode: int, uid: int, gid: int, mtime: int) -> None:
        self.number = number
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.mtime = mtime
        self.atime: int | None = None
        self.size = 0
        self.links = 0
        self.block = 0
        self.count = 0
        self.detail: Extents | bytes | tuple[int, int] | None = None
        self.xattrs: Xattrs = ()


class Directory(Node):
    """A directory and its names.

    Attributes:
        children: by name, in order of first appearance.
        depth: directories above it.
        room: bytes that the names take on disk, each entry rounded up to four.
        fresh: names that the layer now being read has set.
        seen: the layer that last set or dropped a name, 0 for none.
        cleared: the last layer whose reading hid what lower ones had here.
        runs: flat triples of logical block, length, physical block given to it so far.
    """

    __slots__ = ("children", "cleared", "depth", "fresh", "room", "runs", "seen")

    def __init__(self, number: int, mode: int, uid: int, gid: int, mtime: int, depth: int) -> None:
        super().__init__(number, S_IFDIR | (mode & 0o7777), uid, gid, mtime)
        self.children: dict[bytes, Node] = {}
        self.depth = depth
        self.room = 0
        self.fresh: set[bytes] = set()
        self.seen = -1
        self.cleared = -1
        self.runs: tuple[int, ...] = ()
