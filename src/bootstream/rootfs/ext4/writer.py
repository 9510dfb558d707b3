"""An ext4 image from a tree in memory whose file data are in place already.

The order of work is that of the layout (``layout.py``): while layers are read, file data
go to their blocks and every layer's directories get theirs; when the tree is complete
come directories' contents, attributes, inodes, and last what depends on everything:
bitmaps, descriptors, superblock. Nothing here knows the day, the machine or the user.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from uuid import UUID

from bootstream.errors import InvalidInput
from bootstream.rootfs.ext4 import directories, xattrs
from bootstream.rootfs.ext4.bitmaps import Bitmap
from bootstream.rootfs.ext4.extents import add_run, build
from bootstream.rootfs.ext4.filedata import FileData
from bootstream.rootfs.ext4.inodes import EXTENTS_FLAG, INDEX_FLAG, pack_inode, pack_node
from bootstream.rootfs.ext4.layout import INODE_SIZE, Allocator, Geometry
from bootstream.rootfs.ext4.namehash import HASH_SEED, hasher
from bootstream.rootfs.ext4.output import Output
from bootstream.rootfs.ext4.plan import Plan, make_plan
from bootstream.rootfs.ext4.superblock import (
    BLOCK_UNINIT,
    INODE_UNINIT,
    JOURNAL_INODE,
    REGULAR_OWN,
    RESIZE_INODE,
    TABLE_ZEROED,
    Group,
    Volume,
    pack_descriptors,
    pack_journal_superblock,
    pack_superblock,
    resize_blocks,
    resize_inode_size,
)
from bootstream.rootfs.nodes import S_IFMT, Directory, Extents, Node, Xattrs
from bootstream.rootfs.options import Ext4Options
from bootstream.rootfs.tree import FIRST_INODE, ROOT_INODE, Tree

_MAX_DIRECTORY_LINKS = 65000
_SHARED = 1024
"""Inodes that may share one attribute block; the kernel's own limit."""
_BATCH = 1024
_LOST_AND_FOUND_BLOCKS = 16384


@dataclass(slots=True)
class _Inode:
    """What an inode says besides what its node does."""

    links: int
    root: bytes | None = None
    extra: int = 0
    flags: int = 0


class Ext4Writer:
    """Writes one image.

    Args:
        output: where to.
        options: checked already.
        identity: 16 bytes or more; the UUID comes from the first 16.
        tick: called every now and then while the metadata are written; may raise.
    """

    def __init__(
        self, output: Output, options: Ext4Options, identity: bytes, tick: Callable[[], None]
    ) -> None:
        self._output = output
        self._options = options
        self._tick = tick
        self._geometry = Geometry.of(options.block_size, options.size)
        self._allocator = Allocator(self._geometry)
        self._freed: list[tuple[int, int]] = []
        self.uuid = UUID(bytes=identity[:16], version=4)
        self.data = FileData(self._allocator, output, options.block_size)

    # -- while layers are read --------------------------------------------------------------

    def release(self, node: Node) -> None:
        """Take back the blocks of an inode that lost its last name."""
        if isinstance(node, Directory):
            runs: Iterable[int] = node.runs
        elif isinstance(node.detail, Extents):
            runs = node.detail.runs
            self._freed.extend((block, 1) for block in node.detail.tree)
        elif node.count:
            self._freed.append((node.block, node.count))
            return
        else:
            return
        flat = list(runs)
        self._freed.extend((flat[i + 2], flat[i + 1]) for i in range(0, len(flat), 3))

    def end_layer(self, tree: Tree) -> None:
        """Give the directories that a layer touched the blocks that they need by now."""
        self.data.end_layer()
        for directory in tree.touched:
            if directory.links:
                self._grow(directory, directories.blocks_wanted(directory.room, self._block_size))
        self._allocator.align()
        self._output.flush()

    @property
    def _block_size(self) -> int:
        return self._options.block_size

    def _grow(self, directory: Directory, blocks: int) -> None:
        there = sum(directory.runs[1::3])
        if blocks <= there:
            return
        runs = array("Q", directory.runs)
        for block, count in self._allocator.take_runs(blocks - there):
            add_run(runs, there, count, block)
            there += count
        directory.runs = tuple(runs)

    # -- the end ------------------------------------------------------------------------------

    def finish(self, tree: Tree) -> tuple[Volume, int, int]:
        """Write everything but file data; return the volume, inodes used and names.

        Raises:
            InvalidInput: ``size`` is too small, or something does not fit ext4.
        """
        nodes, extra, names = self._directories(tree)
        blocks_of = self._attribute_blocks(nodes)
        self._allocator.align()
        self._output.flush()
        freed = sum(count for _, count in self._freed + self._allocator.free)
        plan = make_plan(self._options, self._geometry, self._allocator, freed, len(nodes) - 1)
        self._output.resize(max(plan.blocks * self._block_size, self._options.size or 0))
        volume, groups = self._volume(plan, nodes)
        self._inode_tables(plan, nodes, extra, blocks_of)
        self._own_inodes(plan, volume)
        for block, count in _joined(self._freed):
            self._output.clear(block, count)
        self._descriptors(volume, groups)
        used = sum(node is not None for node in nodes) + FIRST_INODE - 2
        return volume, used, names

    def _directories(self, tree: Tree) -> tuple[list[Node | None], dict[int, _Inode], int]:
        """Write directories' blocks; return nodes by number, what to add to some, names."""
        nodes: list[Node | None] = [None] * tree.next_inode
        extra: dict[int, _Inode] = {}
        name_hash = hasher(HASH_SEED)
        names = 0
        for count, (directory, parent) in enumerate(tree.directories()):
            if count % _BATCH == 0:
                self._tick()
            nodes[directory.number] = directory
            kinds = directories.FILE_TYPES
            entries = []
            below = 0
            for name, child in directory.children.items():
                entries.append((name, child.number, kinds[child.mode & S_IFMT]))
                if isinstance(child, Directory):
                    below += 1
                else:
                    nodes[child.number] = child
            names += len(entries)
            blocks, indexed = directories.pack_directory(
                directory.number, parent.number, entries, self._block_size, name_hash
            )
            if directory is tree.lost_and_found:
                empty = directories.empty_block(self._block_size)
                while not indexed and len(blocks) * self._block_size < _LOST_AND_FOUND_BLOCKS:
                    blocks.append(empty)
            links = 2 + below
            inode = _Inode(1 if links > _MAX_DIRECTORY_LINKS else links)
            inode.flags = INDEX_FLAG if indexed else 0
            self._place_directory(directory, blocks, inode)
            extra[directory.number] = inode
        return nodes, extra, names

    def _place_directory(self, directory: Directory, blocks: list[bytes], inode: _Inode) -> None:
        self._grow(directory, len(blocks))
        runs: array[int] = array("Q")
        at = 0
        for index in range(0, len(directory.runs), 3):
            _, count, block = directory.runs[index : index + 3]
            used = min(count, len(blocks) - at)
            if used:
                self._output.append(block, b"".join(blocks[at : at + used]))
                add_run(runs, at, used, block)
                at += used
            if used < count:
                self._freed.append((block + used, count - used))
        directory.runs = tuple(runs)
        directory.size = len(blocks) * self._block_size
        inode.root, tree = build(
            runs, self._block_size, lambda: self._allocator.take(1), self._output.append
        )
        inode.extra = len(tree)

    def _attribute_blocks(self, nodes: list[Node | None]) -> dict[int, int]:
        """Write attributes that do not fit inodes; return their block by inode number."""
        sharing: dict[Xattrs, list[int]] = {}
        for node in nodes:
            if node is not None and node.xattrs and xattrs.in_inode(node.xattrs) is None:
                sharing.setdefault(node.xattrs, []).append(node.number)
        blocks: dict[int, int] = {}
        for attributes, numbers in sharing.items():
            for first in range(0, len(numbers), _SHARED):
                part = numbers[first : first + _SHARED]
                block = self._allocator.take(1)
                data = xattrs.in_block(attributes, self._block_size, len(part))
                self._output.append(block, data)
                blocks.update(dict.fromkeys(part, block))
        return blocks

    def _inode_tables(
        self,
        plan: Plan,
        nodes: list[Node | None],
        extra: dict[int, _Inode],
        blocks_of: dict[int, int],
    ) -> None:
        empty = bytes(INODE_SIZE)
        per_block = self._block_size // INODE_SIZE
        for first in range(1, len(nodes), _BATCH):
            self._tick()
            for group_first in _split(
                first, min(first + _BATCH, len(nodes)), plan.inodes_per_group
            ):
                parts = [
                    empty if node is None else self._pack(node, extra, blocks_of)
                    for node in (nodes[number] for number in group_first)
                ]
                group, index = divmod(group_first.start - 1, plan.inodes_per_group)
                data = b"".join(parts)
                self._output.write_bytes(
                    (plan.tables[group] + index // per_block) * self._block_size
                    + index % per_block * INODE_SIZE,
                    data,
                )

    def _pack(self, node: Node, extra: dict[int, _Inode], blocks_of: dict[int, int]) -> bytes:
        more = extra.get(node.number)
        block = blocks_of.get(node.number, 0)
        return pack_node(
            node,
            block_size=self._block_size,
            links=node.links if more is None else more.links,
            root=None if more is None else more.root,
            extra_blocks=(0 if more is None else more.extra) + bool(block),
            flags=0 if more is None else more.flags,
            xattr_block=block,
            xattrs=xattrs.NOTHING if block else xattrs.in_inode(node.xattrs) or xattrs.NOTHING,
        )

    def _volume(self, plan: Plan, nodes: list[Node | None]) -> tuple[Volume, list[Group]]:
        geometry, blocks = self._geometry, plan.blocks
        groups = geometry.groups(blocks)
        allocator = plan.allocator
        bitmap = Bitmap(geometry, blocks, allocator.next)
        bitmap.use(geometry.first_block, allocator.next - geometry.first_block)
        for block, count in [*self._freed, *self._allocator.free, *allocator.free]:
            bitmap.release(block, count)
        has_resize = geometry.head - 1 > -(-groups * 32 // self._block_size)
        if not has_resize:
            bitmap.release(plan.resize_block, 1)
        backups = set(geometry.backups(groups))
        for group in backups:
            bitmap.use(geometry.group_start(group), geometry.head)
        found = []
        table = plan.inodes_per_group
        for group in range(groups):
            numbers = range(group * table + 1, min((group + 1) * table + 1, len(nodes)))
            data, free = bitmap.group(group)
            overhead = geometry.head if group in backups or group == 0 else 0
            lazy = group != groups - 1 and geometry.group_start(group) >= allocator.next
            bits, used, folders = _inode_bits(nodes, numbers, table, self._block_size)
            flags = TABLE_ZEROED
            if lazy:
                assert free == geometry.group_blocks - overhead
                flags |= BLOCK_UNINIT
            else:
                self._output.append(plan.block_bitmaps[group], data)
            if used:
                self._output.append(plan.inode_bitmaps[group], bits)
            else:
                flags |= INODE_UNINIT
            found.append(
                Group(
                    plan.block_bitmaps[group],
                    plan.inode_bitmaps[group],
                    plan.tables[group],
                    free,
                    table - used,
                    folders,
                    table - len(numbers),
                    flags,
                )
            )
        self._output.flush()
        journal = None
        journal_size = sum(count for _, count in plan.journal)
        if journal_size:
            runs: array[int] = array("Q")
            for block, count in plan.journal:
                add_run(runs, sum(runs[1::3]), count, block)
            root, _ = build(runs, self._block_size, _no_block, self._output.write)
            journal = root, journal_size * self._block_size
        overhead = (
            groups * (table * INODE_SIZE // self._block_size + 2)
            + (1 + len(backups)) * geometry.head
            + journal_size
        )
        volume = Volume(
            geometry=geometry,
            blocks=blocks,
            inodes_per_group=table,
            free_blocks=sum(group.free_blocks for group in found),
            free_inodes=sum(group.free_inodes for group in found),
            overhead=overhead + (geometry.first_block),
            uuid=self.uuid.bytes,
            hash_seed=HASH_SEED,
            label=self._options.label.encode(),
            journal=journal,
        )
        return volume, found

    def _own_inodes(self, plan: Plan, volume: Volume) -> None:
        """Write the journal and the resize inode."""
        sectors = self._block_size // 512
        if volume.journal is not None:
            root, size = volume.journal
            first = plan.journal[0][0]
            count = size // self._block_size
            self._output.write(first, pack_journal_superblock(self._block_size, count))
            self._inode(
                plan,
                JOURNAL_INODE,
                pack_inode(
                    mode=REGULAR_OWN,
                    size=size,
                    links=1,
                    sectors=count * sectors,
                    flags=EXTENTS_FLAG,
                    block=root,
                ),
            )
        if volume.reserved_descriptors:
            blocks, counted = resize_blocks(volume, plan.resize_block)
            for block, data in blocks.items():
                self._output.write(block, data)
            self._inode(
                plan,
                RESIZE_INODE,
                pack_inode(
                    mode=REGULAR_OWN,
                    size=resize_inode_size(self._block_size),
                    links=1,
                    sectors=counted * sectors,
                    flags=0,
                    block=bytes(52) + plan.resize_block.to_bytes(4, "little") + bytes(4),
                ),
            )

    def _inode(self, plan: Plan, number: int, data: bytes) -> None:
        offset = plan.tables[0] * self._block_size + (number - 1) * INODE_SIZE
        self._output.write_bytes(offset, data)

    def _descriptors(self, volume: Volume, groups: list[Group]) -> None:
        geometry = self._geometry
        data = pack_descriptors(groups, volume.uuid)
        for group in [0, *geometry.backups(volume.groups)]:
            start = geometry.group_start(group)
            offset = 1024 if group == 0 else start * self._block_size
            self._output.write_bytes(offset, pack_superblock(volume, group))
            self._output.write(start + 1, data)


def _inode_bits(
    nodes: list[Node | None], numbers: range, per_group: int, block_size: int
) -> tuple[bytes, int, int]:
    """Return a group's inode bitmap, its inodes in use, and directories among them."""
    bits = used = folders = 0
    text = []
    for number in numbers:
        node = nodes[number]
        there = number < FIRST_INODE or node is not None
        text.append("1" if there else "0")
        used += there
        folders += isinstance(node, Directory)
    if text:
        bits = int("".join(reversed(text)), 2)
    data = bits.to_bytes(per_group // 8, "little")
    return data + b"\xff" * (block_size - len(data)), used, folders


def _split(start: int, stop: int, per_group: int) -> Iterable[range]:
    """Cut inode numbers where groups end."""
    while start < stop:
        end = min(stop, ((start - 1) // per_group + 1) * per_group + 1)
        yield range(start, end)
        start = end


def _joined(runs: list[tuple[int, int]]) -> Iterable[tuple[int, int]]:
    """Join runs of blocks that touch, in ascending order."""
    start = stop = 0
    for block, count in sorted(runs):
        if block != stop:
            if stop > start:
                yield start, stop - start
            start = block
        stop = block + count
    if stop > start:
        yield start, stop - start


def _no_block() -> int:
    raise InvalidInput(
        "the journal does not fit the inode",
        operation="make ext4",
        remedy="give another size",
    )


assert ROOT_INODE < FIRST_INODE
