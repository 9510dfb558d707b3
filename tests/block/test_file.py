"""Raw files as devices: what they refuse, holes, and what others do to them meanwhile."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import pytest
from tests.block.helpers import largest_file

from bootstream.block.device import Extent, merge_extents
from bootstream.block.file import FileDevice
from bootstream.errors import InvalidInput, NotFound, StorageFull, Unavailable
from bootstream.testing.device import read_all

MIB = 1 << 20


def test_what_is_no_file(tmp_path: Path) -> None:
    """What cannot be a device is refused by name, without waiting for it."""
    with pytest.raises(NotFound):
        FileDevice(tmp_path / "missing")
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo", Path("/dev/full")):
        for writable in (False, True):
            with pytest.raises(InvalidInput):
                FileDevice(path, writable=writable)


def test_holes(tmp_path: Path) -> None:
    """Extents are the file's own; trim makes holes, and zero can keep the room."""
    path = tmp_path / "image"
    with path.open("wb") as file:
        file.truncate(4 * MIB)
        file.seek(MIB)
        file.write(b"x" * MIB)
    hole, data = Extent(MIB, hole=True, zero=True), Extent(MIB, hole=False, zero=False)
    with closing(FileDevice(path, writable=True)) as device:
        assert device.extents(0, 3 * MIB) == [hole, data, hole]
        device.write(memoryview(b"y" * MIB), 2 * MIB)
        device.trim(MIB, MIB)
        device.flush()
        assert device.extents(0, 3 * MIB) == [hole._replace(length=2 * MIB), data]
        device.zero(2 * MIB, MIB, may_trim=False)
        assert read_all(device) == bytes(4 * MIB)
        room = path.stat().st_blocks * 512
        assert MIB <= room < 2 * MIB


def test_cut_short(tmp_path: Path) -> None:
    """A file that somebody cuts short is an error, not a crash."""
    path = tmp_path / "image"
    path.write_bytes(b"x" * MIB)
    with closing(FileDevice(path)) as device:
        os.truncate(path, 1000)
        with pytest.raises(Unavailable, match="cut short"):
            device.read_views(500, 1000)
        assert b"".join(device.read_views(500, 500)) == b"x" * 500


def test_full_disk(tmp_path: Path) -> None:
    """The disk's own errors are of the tree; what is there stays readable."""
    path = tmp_path / "image"
    with path.open("wb") as file:
        file.truncate(MIB)
    with closing(FileDevice(path, writable=True)) as device:
        with largest_file(8192), pytest.raises(StorageFull):
            device.write(memoryview(b"x" * 8192), 4096)
        assert read_all(device, 8192) == bytes(MIB - 8192)


def test_merge() -> None:
    """Neighbours of one kind become one, empty ones go, kinds stay apart."""
    a, b = Extent(1, hole=True, zero=True), Extent(2, hole=False, zero=True)
    merged = merge_extents([a, a, a._replace(length=0), b, b, a])
    assert merged == [a._replace(length=2), b._replace(length=4), a]
    assert merge_extents([]) == []
