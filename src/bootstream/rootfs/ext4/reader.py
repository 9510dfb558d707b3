"""Read ext2, ext3 and ext4 images lazily, without mounting them and without trusting them.

Only what is looked at is read: superblock, the descriptors of the groups that are
visited, pages of inode tables, directories, and file data straight into the caller's
buffer. Sound metadata is believed; checksums are not computed, since the layers below
vouch for the bytes of a published image. Everything else is checked before it is used,
so that any image whatever gives an answer or ``Corrupt``:

- ranges lie inside the image before they are read, sizes are bounded before memory is taken;
- block trees are walked once (``reader_blocks``), entries ascend (``reader_dirs``);
- a directory has one name. The first path on which one is met stays its only one, so
  walks end, however the directories of a crafted image are tied together;
- a path follows forty symbolic links at most, and ``..`` at the root is the root.

The journal is not replayed; ``needs_recovery`` tells whether it should have been.

Source: the Linux kernel's "ext4 Data Structures and Algorithms"; each part names its sections.
"""

from __future__ import annotations

import stat
from collections import deque
from collections.abc import Iterator

from bootstream.errors import InvalidInput, NotFound
from bootstream.rootfs.ext4.reader_blocks import BlockMap, map_blocks
from bootstream.rootfs.ext4.reader_dirs import DirectoryParser
from bootstream.rootfs.ext4.reader_files import Ext4File
from bootstream.rootfs.ext4.reader_layout import (
    FLAG_EA_INODE,
    FLAG_ENCRYPT,
    FLAG_EXTENTS,
    FLAG_INLINE_DATA,
    INCOMPAT_EA_INODE,
    INCOMPAT_RECOVER,
    OPERATION,
    ROOT_INODE,
    Cache,
    Inode,
    InodeTable,
    ReadAt,
    Source,
    Status,
    Superblock,
    corrupt,
)
from bootstream.rootfs.ext4.reader_xattrs import inline_rest, read_xattrs

__all__ = ["Ext4File", "Ext4FileSystem", "Status"]

_MAX_LINKS = 40
_MAX_PATH = 64 << 10
_PIECE = 1 << 20
_ENTRIES_HELD = 200_000


def printable(path: bytes) -> str:
    """Return a path as errors show it: no control characters, other bytes as hex."""
    text = path.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class Ext4FileSystem:
    """A file system image, read-only.

    Paths are bytes, from the image's root; a leading ``/`` may be missing. Methods may be
    called from several threads if ``read_at`` may.

    Args:
        read_at: fills a buffer from a byte offset of the image.
        size: the image's size in bytes.

    Raises:
        InvalidInput: no ext2, ext3 or ext4, or one with features that hide its contents.
        Corrupt: a superblock that cannot be, or an image that ends early.
    """

    def __init__(self, read_at: ReadAt, size: int) -> None:
        self._source = Source(read_at, size)
        self._super = Superblock.read(self._source)
        self._inodes = InodeTable(self._source, self._super)
        self._directories: Cache[int, dict[bytes, int]] = Cache(_ENTRIES_HELD)
        self._names: dict[int, tuple[int, bytes]] = {}

    # -- the file system ------------------------------------------------------------------

    @property
    def block_size(self) -> int:
        """The block size in bytes."""
        return self._super.block_size

    @property
    def size(self) -> int:
        """The size of the file system in bytes; the image may be longer."""
        return self._super.blocks * self._super.block_size

    @property
    def label(self) -> str:
        """The volume's name."""
        return printable(self._super.label)

    @property
    def uuid(self) -> str:
        """The volume's UUID."""
        return str(self._super.uuid)

    @property
    def features(self) -> list[str]:
        """Its incompatible features, as e2fsprogs names them."""
        return self._super.features()

    @property
    def needs_recovery(self) -> bool:
        """Whether the journal holds changes that are not in place yet, and are not seen here."""
        return bool(self._super.incompat & INCOMPAT_RECOVER)

    # -- files ----------------------------------------------------------------------------

    def stat(self, path: bytes, *, follow: bool = True) -> Status:
        """Return what the inode says.

        Raises:
            NotFound: no such path, or something on the way is not a directory.
            InvalidInput: too many symbolic links, or a path that is too long.
            Corrupt: damage on the way.
        """
        return self._resolve(path, follow=follow).status

    def listdir(self, path: bytes) -> list[bytes]:
        """Return the names in a directory, in its own order, without ``.`` and ``..``.

        Raises:
            InvalidInput: it is no directory; as ``stat`` otherwise.
        """
        inode = self._resolve(path, follow=True)
        if not stat.S_ISDIR(inode.status.mode):
            raise InvalidInput("it is not a directory", operation="list", object=printable(path))
        return list(self._directory(inode))

    def readlink(self, path: bytes) -> bytes:
        """Return where a symbolic link leads.

        Raises:
            InvalidInput: it is no symbolic link; as ``stat`` otherwise.
        """
        inode = self._resolve(path, follow=False)
        if not stat.S_ISLNK(inode.status.mode):
            raise InvalidInput(
                "it is not a symbolic link", operation="read link", object=printable(path)
            )
        return self._target(inode)

    def open(self, path: bytes) -> Ext4File:
        """Return a regular file's contents as a raw binary file; symbolic links are followed.

        Raises:
            InvalidInput: it is something else than a file; as ``stat`` otherwise.
        """
        inode = self._resolve(path, follow=True)
        if not stat.S_ISREG(inode.status.mode):
            raise InvalidInput("it is not a file", operation="open", object=printable(path))
        return self._open(inode)

    def extents(self, path: bytes) -> list[tuple[int, int]]:
        """Return where a regular file's contents lie in the image: offsets and lengths in bytes.

        In the file's order, without holes, up to its end. Nothing for contents that the
        inode itself holds. Symbolic links are followed.

        Raises:
            InvalidInput: it is something else than a file; as ``stat`` otherwise.
        """
        with self.open(path) as file:
            return file.extents()

    def xattrs(self, path: bytes, *, follow: bool = True) -> dict[str, bytes]:
        """Return extended attributes, values as ``getxattr`` gives them.

        POSIX ACLs are ``system.posix_acl_access`` and ``system.posix_acl_default``. Bytes of a
        name that are not UTF-8 are surrogate escapes.

        Raises:
            NotFound, InvalidInput, Corrupt: as ``stat``.
        """
        inode = self._resolve(path, follow=follow)
        return read_xattrs(inode, self._read_block, self._read_value)

    def walk(self) -> Iterator[bytes]:
        """Yield the absolute path of everything below the root, folders before their contents.

        Names of a folder ascend. Nothing but the way down is kept in memory.

        Raises:
            InvalidInput: folders so deep that their paths are of no use.
            Corrupt: damage, when it is met.
        """
        ways = [(b"/", self._sorted(ROOT_INODE))]
        while ways:
            prefix, children = ways[-1]
            for name, number in children:
                path = prefix + name
                if len(path) > _MAX_PATH:
                    raise InvalidInput(
                        "the path is too long", operation="walk", object=_short(path)
                    )
                yield path
                inode = self._inodes.read(number)
                if stat.S_ISDIR(inode.status.mode):
                    self._claim(inode, ways[-1][1].number, name)
                    ways.append((path + b"/", self._sorted(number)))
                    break
            else:
                ways.pop()

    def _sorted(self, number: int) -> _Children:
        return _Children(number, self._directory(self._inodes.read(number)))

    # -- paths ----------------------------------------------------------------------------

    def _resolve(self, path: bytes, *, follow: bool) -> Inode:
        """Walk down from the root."""
        if len(path) > _MAX_PATH:
            raise InvalidInput("the path is too long", operation=OPERATION, object=_short(path))
        # A slash at the end asks for a directory, through a link if there is one.
        must_be_folder = path.endswith((b"/", b"/."))
        parts = deque(path.split(b"/"))
        way = [ROOT_INODE]
        inode = self._inodes.read(ROOT_INODE)
        links = 0
        while parts:
            part = parts.popleft()
            if part in (b"", b"."):
                continue
            if not stat.S_ISDIR(inode.status.mode):
                raise _not_found(path, "something on its way is not a directory")
            if part == b"..":
                if len(way) > 1:
                    way.pop()
                inode = self._inodes.read(way[-1])
                continue
            number = self._directory(inode).get(part)
            if number is None:
                raise _not_found(path, "there is no such file or directory in the image")
            child = self._inodes.read(number)
            if stat.S_ISLNK(child.status.mode) and (parts or follow or must_be_folder):
                links += 1
                if links > _MAX_LINKS:
                    raise InvalidInput(
                        "it goes through too many symbolic links",
                        operation=OPERATION,
                        object=printable(path),
                    )
                target = self._target(child)
                if target.startswith(b"/"):
                    way = [ROOT_INODE]
                    inode = self._inodes.read(ROOT_INODE)
                parts.extendleft(reversed(target.split(b"/")))
                continue
            if stat.S_ISDIR(child.status.mode):
                self._claim(child, way[-1], part)
            way.append(number)
            inode = child
        if must_be_folder and not stat.S_ISDIR(inode.status.mode):
            raise _not_found(path, "it is not a directory")
        return inode

    def _claim(self, inode: Inode, parent: int, name: bytes) -> None:
        """Insist that a directory has one name."""
        number = inode.status.inode
        claim = (parent, name)
        if number == ROOT_INODE or self._names.setdefault(number, claim) != claim:
            raise corrupt("the directory has more than one name", inode.object)

    def _target(self, inode: Inode) -> bytes:
        """Return a symbolic link's target; "Symbolic Links"."""
        self._insist_on_plain(inode)
        size = inode.status.size
        if not 0 < size <= self._super.block_size:
            raise corrupt("the length of the symbolic link cannot be", inode.object)
        if self._is_fast(inode):
            return inode.block[:size]
        with self._open(inode) as file:
            return file.read(size)

    def _is_fast(self, inode: Inode) -> bool:
        """Tell whether the target is in i_block itself: there is no block but for attributes."""
        if inode.flags & (FLAG_EXTENTS | FLAG_INLINE_DATA) or inode.status.size >= 60:
            return False
        if self._super.incompat & INCOMPAT_EA_INODE:
            return True
        return inode.sectors == 0 or (
            inode.xattr_block != 0 and inode.sectors * 512 == self._super.block_size
        )

    # -- contents -------------------------------------------------------------------------

    def _insist_on_plain(self, inode: Inode) -> None:
        if inode.flags & FLAG_ENCRYPT:
            raise InvalidInput(
                "it is encrypted, and keys are not supported",
                operation=OPERATION,
                object=inode.object,
            )

    def _open(self, inode: Inode) -> Ext4File:
        self._insist_on_plain(inode)
        if inode.flags & FLAG_INLINE_DATA:
            data = inode.block + inline_rest(inode)
            if inode.status.size > len(data):
                raise corrupt("its inline data ends early", inode.object)
            return Ext4File(self._source, self._super, inode, data[: inode.status.size])
        return Ext4File(self._source, self._super, inode, self._map(inode))

    def _map(self, inode: Inode) -> BlockMap:
        return map_blocks(self._source, self._super, inode)

    def _directory(self, inode: Inode) -> dict[bytes, int]:
        """Return name to inode of a directory."""
        number = inode.status.inode
        found = self._directories.get(number)
        if found is None:
            found = self._read_directory(inode)
            self._directories.put(number, found, 1 + len(found))
        return found

    def _read_directory(self, inode: Inode) -> dict[bytes, int]:
        self._insist_on_plain(inode)
        parser = DirectoryParser(self._super, inode.object)
        size = inode.status.size
        if inode.flags & FLAG_INLINE_DATA:
            # The first word is the parent's inode; entries fill what is left of i_block, and
            # then the attribute, never across both.
            parser.add(inode.block[4:60])
            parser.add(inline_rest(inode))
            return parser.entries
        block_size = self._super.block_size
        if size % block_size or size > self.size:
            raise corrupt("the size of the directory cannot be", inode.object)
        per_piece = max(1, _PIECE // block_size)
        for run in self._map(inode).runs(0, size // block_size):
            if run.physical is None:
                raise corrupt("the directory has a hole", inode.object)
            for start in range(0, run.blocks, per_piece):
                blocks = min(per_piece, run.blocks - start)
                data = self._read_blocks(run.physical + start, blocks)
                for at in range(0, len(data), block_size):
                    parser.add(data[at : at + block_size])
        return parser.entries

    def _read_blocks(self, first: int, count: int) -> memoryview:
        size = self._super.block_size
        if count == 1:
            return memoryview(self._source.read(first * size, size))
        data = memoryview(bytearray(count * size))
        self._source.read_into(data, first * size)
        return data

    def _read_block(self, number: int) -> bytes:
        """Return a block of attributes."""
        if not self._super.first_data_block < number < self._super.blocks:
            raise corrupt("an attribute block lies outside the image", f"block {number}")
        size = self._super.block_size
        return self._source.read(number * size, size)

    def _read_value(self, number: int, size: int, object: str) -> bytes:
        """Return the value that an inode of its own holds; "Extended Attributes", ea_inode."""
        inode = self._inodes.read(number)
        if not inode.flags & FLAG_EA_INODE or inode.status.size != size or size > self.size:
            raise corrupt("the inode of an attribute's value is another one", object)
        with self._open(inode) as file:
            return file.read(size)


class _Children:
    """What is left to visit of a directory."""

    def __init__(self, number: int, entries: dict[bytes, int]) -> None:
        self.number = number
        self._rest = iter(sorted(entries.items()))

    def __iter__(self) -> Iterator[tuple[bytes, int]]:
        return self._rest


def _not_found(path: bytes, message: str) -> NotFound:
    return NotFound(message, operation="find", object=_short(path))


def _short(path: bytes) -> str:
    return printable(path if len(path) <= 4096 else path[:100] + b"...")
