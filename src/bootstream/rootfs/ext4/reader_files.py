"""A regular file of an image, as Python reads files."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from bootstream.errors import InvalidInput
from bootstream.rootfs.ext4.reader_blocks import BlockMap
from bootstream.rootfs.ext4.reader_layout import Inode, Source, Superblock

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_AT_ONCE = 256 << 20
_ZEROS = memoryview(bytes(64 << 10))


class Ext4File(io.RawIOBase):
    """A regular file's contents. Holes read as zeros, data goes straight into the buffer.

    Seekable; one thread at a time.
    """

    def __init__(
        self, source: Source, superblock: Superblock, inode: Inode, contents: BlockMap | bytes
    ) -> None:
        super().__init__()
        self._source = source
        self._block_size = superblock.block_size
        self._object = inode.object
        self._size = inode.status.size
        self._contents = contents
        self._position = 0

    @property
    def size(self) -> int:
        """The file's size in bytes."""
        return self._size

    def extents(self) -> list[tuple[int, int]]:
        """Return where the contents lie in the image; see ``Ext4FileSystem.extents``."""
        found: list[tuple[int, int]] = []
        if isinstance(self._contents, bytes):
            return found
        left = self._size
        for run in self._contents.runs(0, -(-left // self._block_size)):
            length = min(run.blocks * self._block_size, left)
            if run.physical is not None:
                found.append((run.physical * self._block_size, length))
            left -= length
        return found

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position."""
        self._check_open()
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Move the position; behind the end is allowed, before the start is ``InvalidInput``."""
        self._check_open()
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}.get(whence)
        if base is None or base + offset < 0:
            raise InvalidInput("there is no such position", operation="seek", object=self._object)
        self._position = base + offset
        return self._position

    def read(self, size: int | None = -1, /) -> bytes:
        """Return up to ``size`` bytes, all that is left if negative; ``b""`` at the end.

        Raises:
            InvalidInput: so much at once that a made-up size may be the reason.
            Corrupt: damage.
        """
        self._check_open()
        left = max(0, self._size - self._position)
        length = left if size is None or size < 0 else min(size, left)
        if length > max(_AT_ONCE, self._source.size):
            raise InvalidInput(
                f"{length} bytes are too many to read at once",
                operation="read",
                object=self._object,
                remedy="read the file in pieces",
            )
        data = bytearray(length)
        self.readinto(data)
        return bytes(data)

    def readall(self) -> bytes:
        """Return all that is left; see ``read``."""
        return self.read()

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fill ``buffer``; return how many bytes, less than its length only at the end."""
        self._check_open()
        view = memoryview(buffer).cast("B")
        length = min(len(view), max(0, self._size - self._position))
        if length:
            self._fill(view[:length], self._position)
            self._position += length
        return length

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("the file is closed")

    def _fill(self, view: memoryview, offset: int) -> None:
        """Fill ``view`` with the file's bytes from ``offset``, all inside the file."""
        if isinstance(self._contents, bytes):
            view[:] = self._contents[offset : offset + len(view)]
            return
        size = self._block_size
        first, skip = divmod(offset, size)
        count = -(-(skip + len(view)) // size)
        at = 0
        for run in self._contents.runs(first, count):
            length = min(run.blocks * size - skip, len(view) - at)
            piece = view[at : at + length]
            if run.physical is None:
                _clear(piece)
            else:
                self._source.read_into(piece, run.physical * size + skip)
            at += length
            skip = 0


def _clear(view: memoryview) -> None:
    for start in range(0, len(view), len(_ZEROS)):
        piece = view[start : start + len(_ZEROS)]
        piece[:] = _ZEROS[: len(piece)]
