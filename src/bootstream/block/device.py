"""The device interface: a fixed number of bytes that can be read, and perhaps written.

A device is small on purpose: cache and overlay are devices around a device, and
the NBD server checks every range once (``0 <= offset``, ``0 < length``,
``offset + length <= size``, writable), so devices never do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

ZEROS = memoryview(bytes(16 << 20))
"""Zeros to read from, as many as the largest chunk has; never written, so they take no memory."""


class Extent(NamedTuple):
    """A run of bytes of one kind. ``zero`` reads as zeros; ``hole`` is not allocated."""

    length: int
    hole: bool
    zero: bool


def merge_extents(extents: Iterable[Extent]) -> list[Extent]:
    """Join neighbours of one kind and drop empty ones; the order stays."""
    merged: list[Extent] = []
    for extent in extents:
        if not extent.length:
            continue
        if merged and merged[-1][1:] == extent[1:]:
            merged[-1] = extent._replace(length=merged[-1].length + extent.length)
        else:
            merged.append(extent)
    return merged


def copy_views(views: Iterable[memoryview], buffer: memoryview) -> None:
    """Fill ``buffer`` with views that are exactly as long together."""
    position = 0
    for view in views:
        end = position + len(view)
        buffer[position:end] = view
        position = end


class Device(Protocol):
    """A block device. All methods may be called from several threads at once.

    Errors are the package's own; the server turns them into errno values.
    """

    @property
    def size(self) -> int:
        """The size in bytes, fixed for the device's life."""
        ...

    @property
    def writable(self) -> bool:
        """Whether write, zero and trim may be called."""
        ...

    def read_views(self, offset: int, length: int) -> Sequence[memoryview]:
        """Return the range as views, in order, without copying where possible.

        This is the read that the wire uses: the views of a warm device lie in the
        cache's mapping and go to ``sendmsg`` as they are. They stay valid until the
        caller drops them.
        """
        ...

    def read_warm(self, offset: int, length: int) -> Sequence[memoryview] | None:
        """Return what ``read_views`` would, or None if that would wait for storage.

        The server answers warm requests where it parsed them, and hands the others to
        a worker. A disk of this host counts as warm.
        """
        ...

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer`` from ``offset``."""
        ...

    def write(self, data: memoryview, offset: int) -> None:
        """Write ``data`` at ``offset``; durable only after ``flush``."""
        ...

    def zero(self, offset: int, length: int, *, may_trim: bool) -> None:
        """Make the range read as zeros; ``may_trim`` allows it to become a hole."""
        ...

    def trim(self, offset: int, length: int) -> None:
        """The contents are no longer needed; the range then reads as zeros here."""
        ...

    def flush(self) -> None:
        """Return once every write that returned before is durable."""
        ...

    def extents(self, offset: int, length: int) -> list[Extent]:
        """Describe exactly the range, in order, neighbours of one kind merged."""
        ...

    def prefetch(self, offset: int, length: int) -> None:
        """Advice that the range will be read soon (NBD CACHE); may do nothing."""
        ...

    def close(self) -> None:
        """Release what it holds; idempotent. Views handed out stay valid."""
        ...
