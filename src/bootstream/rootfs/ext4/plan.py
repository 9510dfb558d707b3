"""How large a file system is, how many inodes it has, and where its tables go.

Data come first, so this is decided last, when it is known how much they take. Sizes that
nobody asked for are rounded up to 256 MiB: a few blocks more change no geometry.
"""

from __future__ import annotations

from dataclasses import dataclass

from bootstream.errors import InvalidInput
from bootstream.rootfs.ext4.layout import INODE_SIZE, MAX_BLOCKS, Allocator, Geometry
from bootstream.rootfs.ext4.superblock import journal_blocks
from bootstream.rootfs.options import Ext4Options

DEFAULT_FREE = 512 << 20
DEFAULT_RATIO = 16384
ROUNDING = 256 << 20
_INODE_STEP = 256
"""Inodes of a group come in such steps: a table is then a multiple of 64 KiB."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Where the file system's own blocks go; all in blocks but ``inodes_per_group``.

    ``tables``, ``block_bitmaps``, ``inode_bitmaps`` by group; ``journal`` in runs.
    """

    blocks: int
    inodes_per_group: int
    tables: tuple[int, ...]
    block_bitmaps: tuple[int, ...]
    inode_bitmaps: tuple[int, ...]
    resize_block: int
    journal: tuple[tuple[int, int], ...]
    allocator: Allocator


def make_plan(
    options: Ext4Options, geometry: Geometry, allocator: Allocator, freed: int, used_inodes: int
) -> Plan:
    """Return the plan for what ``allocator`` handed out so far.

    Args:
        freed: blocks below ``allocator.next`` that are free again.
        used_inodes: the highest inode number in use.

    Raises:
        InvalidInput: ``options.size`` is too small; the message names the size needed.
    """
    if options.size is not None:
        wanted = min(options.size // geometry.block_size, MAX_BLOCKS)
        plan = None
        if wanted > geometry.first_block + geometry.head:
            plan = _try(options, geometry, allocator, geometry.usable(wanted), used_inodes)
        if plan is not None:
            return plan
        needed = _smallest(options, geometry, allocator, used_inodes, above=wanted, free=0, freed=0)
        size = needed.blocks * geometry.block_size
        raise InvalidInput(
            f"{options.size} bytes are too small: the image needs {size}",
            operation="make ext4: option",
            object="size",
            remedy=f"give a size of {-(-size // (1 << 20))}M or more, or none",
        )
    free = DEFAULT_FREE if options.free is None else options.free
    blocks = -(-free // geometry.block_size)
    plan = _smallest(options, geometry, allocator, used_inodes, above=0, free=blocks, freed=freed)
    step = ROUNDING // geometry.block_size
    rounded = _try(
        options, geometry, allocator, geometry.usable(-(-plan.blocks // step) * step), used_inodes
    )
    return plan if rounded is None else rounded


def _smallest(
    options: Ext4Options,
    geometry: Geometry,
    allocator: Allocator,
    used_inodes: int,
    *,
    above: int,
    free: int,
    freed: int,
) -> Plan:
    """Return the plan for the smallest size over ``above`` that leaves ``free`` blocks free."""
    most = min(geometry.most_blocks, MAX_BLOCKS)
    step = geometry.align
    low = max(allocator.next, above) // step
    high = low + 1
    while (
        plan := _leaves(options, geometry, allocator, used_inodes, high * step, free, freed)
    ) is None:
        if high * step > most:
            raise InvalidInput(
                f"over {geometry.most_blocks * geometry.block_size >> 30} GiB do not fit "
                f"blocks of {geometry.block_size} bytes",
                operation="make ext4: option",
                object="block_size",
                remedy="give the size, or use --block-size 4096",
            )
        low = high
        high += max(1, (high * step - allocator.next) // (4 * step))
    while high - low > 1:
        middle = (low + high) // 2
        found = _leaves(options, geometry, allocator, used_inodes, middle * step, free, freed)
        if found is None:
            low = middle
        else:
            high, plan = middle, found
    return plan


def _leaves(
    options: Ext4Options,
    geometry: Geometry,
    allocator: Allocator,
    used_inodes: int,
    blocks: int,
    free: int,
    freed: int,
) -> Plan | None:
    """Return the plan for a size, None if it does not leave ``free`` blocks."""
    if geometry.usable(blocks) != blocks:
        return None
    plan = _try(options, geometry, allocator, blocks, used_inodes)
    if plan is None:
        return None
    inside = freed + sum(count for _, count in plan.allocator.free)
    backups = sum(
        geometry.group_start(group) >= plan.allocator.next
        for group in geometry.backups(geometry.groups(blocks))
    )
    left = blocks - plan.allocator.next - backups * geometry.head + inside
    return plan if left >= free else None


def _try(
    options: Ext4Options, geometry: Geometry, allocator: Allocator, blocks: int, used_inodes: int
) -> Plan | None:
    """Return the plan for a size of ``blocks``, None if it is too small."""
    groups = geometry.groups(blocks)
    per_group = _inodes_per_group(options, geometry, blocks, groups, used_inodes)
    if per_group is None or blocks <= allocator.next:
        return None
    table_blocks = per_group * INODE_SIZE // geometry.block_size
    if groups * (table_blocks + 2) > blocks - allocator.next:
        return None
    trial = allocator.copy()
    trial.align()
    tables = tuple(trial.take(table_blocks) for _ in range(groups))
    block_bitmaps = tuple(trial.take(1) for _ in range(groups))
    inode_bitmaps = tuple(trial.take(1) for _ in range(groups))
    resize_block = trial.take(1)
    trial.align()
    size = journal_blocks(blocks) if options.journal else 0
    journal = tuple(trial.take_runs(size))
    if trial.next > blocks:
        return None
    return Plan(
        blocks,
        per_group,
        tables,
        block_bitmaps,
        inode_bitmaps,
        resize_block,
        journal,
        trial,
    )


def _inodes_per_group(
    options: Ext4Options, geometry: Geometry, blocks: int, groups: int, used_inodes: int
) -> int | None:
    if options.inodes is not None:
        wanted = max(options.inodes, used_inodes)
    else:
        ratio = options.inode_ratio or DEFAULT_RATIO
        wanted = max(blocks * geometry.block_size // ratio, used_inodes + used_inodes // 10 + 16)
    per_group = -(-wanted // groups)
    per_group = -(-per_group // _INODE_STEP) * _INODE_STEP
    return per_group if per_group <= geometry.group_blocks else None
