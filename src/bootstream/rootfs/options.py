"""What a caller may choose about a root file system, and what it learns of the result."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from bootstream.errors import InvalidInput

BLOCK_SIZES = (1024, 2048, 4096)
MAX_LABEL = 16
MAX_ID = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class ExtraFile:
    """A regular file of this host to put into the image, above every layer.

    ``target`` is a path in the image; missing parents are made (0755, root). ``mode`` are
    the permission bits. The modification time is the epoch, so that the bytes repeat.
    """

    source: Path
    target: str
    mode: int
    uid: int = 0
    gid: int = 0


@dataclass(frozen=True, slots=True)
class Ext4Options:
    """How an ext4 image is made. Sizes in bytes; None means the documented default.

    Args:
        size: of the whole file system; too small a one is refused with the size needed.
        free: room left free for the guest, at least; excludes ``size``. 512 MiB if neither
            is given. The size that follows is rounded up to 256 MiB.
        inodes: how many inodes there are, at least; excludes ``inode_ratio``.
        inode_ratio: one inode for so many bytes; 16384. There are always enough for the
            image and a tenth more, unless ``inodes`` asks for fewer.
        label: of the volume, 16 bytes of UTF-8 at most.
        block_size: 1024, 2048 or 4096.
        extra_files: put in above the last layer.
        journal: whether there is a journal; its size follows ``mke2fs``.
        max_content: bytes that all layers may unpack to, headers included.
        max_entries: members that all layers may have.
        max_path: bytes of a member's path.
        max_depth: directories above a member.
    """

    size: int | None = None
    free: int | None = None
    inodes: int | None = None
    inode_ratio: int | None = None
    label: str = ""
    block_size: int = 4096
    extra_files: tuple[ExtraFile, ...] = ()
    journal: bool = True
    max_content: int = 64 << 30
    max_entries: int = 2_000_000
    max_path: int = 4096
    max_depth: int = 256

    def check(self) -> None:
        """Raise InvalidInput, with the option's name, for values that make no sense."""
        if self.size is not None and self.free is not None:
            raise _refused("size", "it excludes 'free'", "give one of the two")
        if self.inodes is not None and self.inode_ratio is not None:
            raise _refused("inodes", "it excludes 'inode_ratio'", "give one of the two")
        if self.block_size not in BLOCK_SIZES:
            raise _refused(
                "block_size",
                f"{self.block_size} is not a block size of ext4 that every kernel mounts",
                "use 1024, 2048 or 4096",
            )
        if len(self.label.encode()) > MAX_LABEL or "\0" in self.label:
            raise _refused(
                "label", f"{self.label!r} is over {MAX_LABEL} bytes", "choose a shorter one"
            )
        for name, least in (("size", 1), ("free", 0), ("inodes", 1), ("inode_ratio", 1024)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise _refused(name, f"{value} is too small", f"use {least} or more")
        for extra in self.extra_files:
            if not (0 <= extra.uid <= MAX_ID and 0 <= extra.gid <= MAX_ID):
                raise _refused("extra_files", f"{extra.target}: an owner has 32 bits", None)
            if not 0 <= extra.mode <= 0o7777:
                raise _refused(
                    "extra_files", f"{extra.target}: {extra.mode:o} is not a mode", "e.g. 0755"
                )

    def identity(self, seed: str) -> bytes:
        """Return 32 bytes that name this image; its UUID is made of them."""
        values = [
            seed,
            *(
                f"{name}={getattr(self, name)!r}"
                for name in ("size", "free", "inodes", "inode_ratio", "label", "block_size")
            ),
            f"journal={self.journal!r}",
            *(f"{e.target!r} {e.mode:o} {e.uid} {e.gid}" for e in self.extra_files),
        ]
        return hashlib.sha256("\0".join(values).encode("utf-8", "surrogateescape")).digest()


@dataclass(frozen=True, slots=True)
class Ext4Summary:
    """What was made. Sizes in bytes; ``entries`` are names in the tree, the root excluded."""

    size: int
    free: int
    blocks: int
    inodes: int
    used_inodes: int
    entries: int
    content: int
    uuid: str


def _refused(option: str, message: str, remedy: str | None) -> InvalidInput:
    return InvalidInput(message, operation="make ext4: option", object=option, remedy=remedy)
