"""Where things lie in an image, and who hands out the blocks.

The layout follows the kernel's documentation "ext4 Data Structures and Algorithms"
(sections "Layout", "Flexible Block Groups", "Super Block"). With ``flex_bg`` a group's
bitmaps and inode table may lie anywhere, which is what lets a writer that does not know
the number of files put their data down first::

    | superblock, descriptors, room for more | data of layer 1 | directories of layer 1 |
    | data of layer 2 | ... | inode tables | bitmaps | journal | free |

The first part, and its backups at the start of groups 1, 3, 5, 7, 9, 25, 27..., is always
64 KiB (more only for huge file systems), so that data begin on a 64 KiB border, and a
backup never moves the data behind it off that border.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

ALIGNMENT = 1 << 16
"""Bytes; layers, large files and tables begin on such borders, so that chunks repeat."""
DESCRIPTOR_SIZE = 32
INODE_SIZE = 256
MAX_BLOCKS = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Geometry:
    """What follows from the block size alone.

    ``head`` are the blocks of superblock, descriptors and room for more descriptors.
    """

    block_size: int
    head: int

    @classmethod
    def of(cls, block_size: int, size: int | None) -> Geometry:
        """Return the geometry for a block size, with room for ``size`` bytes of groups."""
        align = ALIGNMENT // block_size
        geometry = cls(block_size, align - (1 if block_size == 1024 else 0))
        while size is not None and geometry.most_blocks < min(size // block_size, MAX_BLOCKS):
            geometry = cls(block_size, geometry.head + align)
        return geometry

    @property
    def first_block(self) -> int:
        """The block with the superblock: block 0 is the boot sector where blocks are 1 KiB."""
        return 1 if self.block_size == 1024 else 0

    @property
    def group_blocks(self) -> int:
        """Blocks of a group: as many as one bitmap block has bits."""
        return self.block_size * 8

    @property
    def align(self) -> int:
        """``ALIGNMENT`` in blocks."""
        return ALIGNMENT // self.block_size

    @property
    def most_blocks(self) -> int:
        """Blocks that the descriptors in ``head`` can describe."""
        groups = (self.head - 1) * (self.block_size // DESCRIPTOR_SIZE)
        return groups * self.group_blocks + self.first_block

    def groups(self, blocks: int) -> int:
        """Return how many groups ``blocks`` make."""
        return -(-(blocks - self.first_block) // self.group_blocks)

    def group_start(self, group: int) -> int:
        """Return a group's first block."""
        return self.first_block + group * self.group_blocks

    def group_of(self, block: int) -> int:
        """Return the group that a block is in."""
        return (block - self.first_block) // self.group_blocks

    def backups(self, groups: int) -> list[int]:
        """Return the groups that have a copy of the superblock (``sparse_super``), 0 not among."""
        found = {1}
        for base in (3, 5, 7):
            power = base
            while power < groups:
                found.add(power)
                power *= base
        return sorted(group for group in found if group < groups)

    def usable(self, blocks: int) -> int:
        """Return ``blocks`` without a last group that could hold nothing but its backup."""
        last = self.groups(blocks) - 1
        start = self.group_start(last)
        overhead = self.head if last in self.backups(last + 1) or last == 0 else 0
        if last and blocks - start < overhead + 64:
            return start
        return blocks


@dataclass(slots=True)
class Allocator:
    """Hands out blocks upwards, around the backups; what it leaves out stays free.

    Attributes:
        next: the lowest block not handed out yet.
        free: runs below ``next`` that are not in use: start and count.
    """

    geometry: Geometry
    next: int = 0
    free: list[tuple[int, int]] = field(default_factory=list)
    _backups: Iterator[int] = field(init=False)
    _limit: int = 0

    def __post_init__(self) -> None:
        geometry = self.geometry
        most = geometry.groups(MAX_BLOCKS)
        self._backups = iter(geometry.backups(most))
        self.next = geometry.first_block + geometry.head
        self._limit = geometry.group_start(next(self._backups))

    def copy(self) -> Allocator:
        """Return one that goes on from here by itself, to try something out."""
        other = Allocator(self.geometry)
        while other._limit < self._limit:
            other._pass_backup()
        other.next = self.next
        other.free = []
        return other

    def take(self, count: int) -> int:
        """Return the first of ``count`` blocks in one run."""
        while self.next + count > self._limit:
            self._leave(self._limit - self.next)
            self._pass_backup()
        start = self.next
        self.next = start + count
        return start

    def take_runs(self, count: int) -> list[tuple[int, int]]:
        """Return ``count`` blocks as runs, split only by backups."""
        runs = []
        while count:
            if self.next == self._limit:
                self._pass_backup()
            length = min(count, self._limit - self.next)
            runs.append((self.next, length))
            self.next += length
            count -= length
        return runs

    def align(self) -> None:
        """Go on at the next 64 KiB border."""
        self._leave(-self.next % self.geometry.align)
        if self.next == self._limit:
            self._pass_backup()

    def _leave(self, count: int) -> None:
        if count:
            self.free.append((self.next, count))
            self.next += count

    def _pass_backup(self) -> None:
        self.next = self._limit + self.geometry.head
        self._limit = self.geometry.group_start(next(self._backups, 1 << 40))
