"""What the package writes, read by the package: layers in, the same files out."""

from __future__ import annotations

import io
import os
import random
import stat
from pathlib import Path
from typing import Any

import pytest

from bootstream.progress import NO_PROGRESS
from bootstream.rootfs import Ext4Options, build_ext4
from bootstream.rootfs.ext4 import Ext4FileSystem
from bootstream.testing.images import CAP_NET_BIND_SERVICE, EPOCH, LayerBuilder


def build(path: Path, *layers: LayerBuilder, **options: Any) -> Ext4FileSystem:
    """Build an image and open it."""
    build_ext4(
        [lambda layer=layer: io.BytesIO(layer.finish()) for layer in layers],  # type: ignore[misc]
        path,
        Ext4Options(**options),
        NO_PROGRESS,
        seed="test",
    )

    def read_at(buffer: memoryview, offset: int) -> None:
        with path.open("rb", buffering=0) as file:
            assert os.preadv(file.fileno(), [buffer], offset) == len(buffer)

    return Ext4FileSystem(read_at, path.stat().st_size)


def contents(system: Ext4FileSystem, path: bytes) -> bytes:
    with system.open(path) as file:
        return file.read()


@pytest.mark.parametrize("block_size", [1024, 2048, 4096])
def test_everything_that_a_layer_holds(tmp_path: Path, block_size: int) -> None:
    """Types, owners, modes, times, links, devices, attributes and contents."""
    rng = random.Random(1)
    big = rng.randbytes(3_000_000)
    xattrs = {"security.capability": CAP_NET_BIND_SERVICE, "user.note": b"\xff\0kept"}
    layer = LayerBuilder()
    layer.folder("etc", 0o750, uid=7, gid=100_000)
    layer.file("etc/passwd", b"root\n", 0o4711, uid=70_000, mtime=1.25, xattrs=xattrs)
    layer.file("etc/again-later", b"x").link("etc/hard", "etc/passwd", hard=True)
    layer.link("short", "etc/passwd").link("long", "./" * 100 + "etc/passwd")
    layer.device("null", 1, 3, mode=0o666).device("wide", 259, 70_000, block=True).fifo("pipe")
    layer.file("big", big).file("empty").file(b"not utf-8 \xff", b"1")
    layer.file("implied/parents/file", b"here", mtime=EPOCH + 5)
    for number in range(1500):
        layer.file(f"many/a name that is somewhat long, number {number}", b"%d" % number)
    system = build(tmp_path / "image", layer, block_size=block_size)
    status = system.stat(b"/etc/passwd")
    assert (status.mode, status.uid, status.links) == (stat.S_IFREG | 0o4711, 70_000, 2)
    assert status.mtime_ns == 1_250_000_000
    assert system.stat(b"/etc/hard").inode == status.inode
    assert system.xattrs(b"/etc/passwd") == xattrs
    folder = system.stat(b"/etc")
    assert (folder.mode, folder.uid, folder.gid) == (stat.S_IFDIR | 0o750, 7, 100_000)
    assert contents(system, b"/short") == contents(system, b"/long") == b"root\n"
    assert system.stat(b"/null").rdev == os.makedev(1, 3)
    assert system.stat(b"/wide").rdev == os.makedev(259, 70_000)
    assert stat.S_ISFIFO(system.stat(b"/pipe").mode)
    assert contents(system, b"/big") == big
    assert contents(system, b"/empty") == b""
    assert contents(system, b"not utf-8 \xff") == b"1"
    assert system.stat(b"/implied/parents/file").mtime_ns == (EPOCH + 5) * 10**9
    assert len(system.listdir(b"/many")) == 1500
    for number in range(0, 1500, 77):
        path = b"/many/a name that is somewhat long, number %d" % number
        assert contents(system, path) == b"%d" % number


@pytest.mark.parametrize("form", ["1.0", "0.1", "0.0", "gnu"])
def test_sparse_members(tmp_path: Path, form: Any) -> None:
    """Every form of a sparse member keeps its data in place, and its holes as holes."""
    rng = random.Random(2)
    pieces = [(number * 65_536 + 512, rng.randbytes(2048)) for number in range(60)]
    size = 60 * 65_536 + 100
    expected = bytearray(size)
    for offset, data in pieces:
        expected[offset : offset + len(data)] = data
    layer = LayerBuilder().sparse("disk", size, pieces, form=form).file("after", b"it")
    system = build(tmp_path / "image", layer)
    assert contents(system, b"/disk") == expected
    assert contents(system, b"/after") == b"it"


def test_layers_on_layers(tmp_path: Path) -> None:
    """Whiteouts and opaque folders hide what is below, and are not seen themselves."""
    lower = LayerBuilder().file("a/gone", b"1").file("a/kept", b"2").file("b/old", b"3")
    lower.file("file-then-folder", b"4").file("folder-then-file/x", b"5")
    upper = LayerBuilder().whiteout("a/gone").opaque("b").file("b/new", b"6")
    upper.folder("file-then-folder").file("file-then-folder/y", b"7").whiteout("folder-then-file")
    upper.file("folder-then-file", b"8")
    system = build(tmp_path / "image", lower, upper)
    assert [path for path in system.walk() if not path.startswith(b"/lost+found")] == [
        b"/a", b"/a/kept", b"/b", b"/b/new", b"/file-then-folder", b"/file-then-folder/y",
        b"/folder-then-file",
    ]  # fmt: skip
