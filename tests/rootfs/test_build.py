"""The build as a whole: sizes, options, limits, extra files, repeatability, stopping."""

from __future__ import annotations

import hashlib
import io
import os
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bootstream.errors import (
    BootstreamError,
    Cancelled,
    Corrupt,
    InvalidInput,
    NotFound,
    StorageFull,
)
from bootstream.progress import NO_PROGRESS, NoProgress
from bootstream.rootfs import Ext4Options, ExtraFile, build_ext4
from bootstream.testing.images import CAP_NET_BIND_SERVICE, LayerBuilder

Tree = dict[bytes, tuple[object, ...]]
ReadTree = Callable[[Path], Tree]
Make = Callable[..., Path]
MIB = 1 << 20


def field(image: Path, name: str) -> str:
    said = subprocess.run(
        ["dumpe2fs", "-h", str(image)], capture_output=True, text=True, check=True, timeout=20
    ).stdout
    match = re.search(rf"^{name}:\s*(.*)$", said, re.MULTILINE)
    assert match is not None, said
    return match[1]


# -- sizes and options ------------------------------------------------------------------------


def test_size_is_automatic_and_stable(make: Make) -> None:
    """512 MiB are free at least; a somewhat larger image has the same size."""
    small = make(LayerBuilder().file("f", b"x" * 10_000))
    size = small.stat().st_size
    free = int(field(small, "Free blocks")) * 4096
    assert size % (256 * MIB) == 0
    assert free >= 512 * MIB
    assert make(LayerBuilder().file("f", b"x" * 1_000_000)).stat().st_size == size
    assert small.stat().st_blocks * 512 < 3 * MIB  # sparse
    assert int(field(make(LayerBuilder(), free=MIB), "Free blocks")) * 4096 >= MIB


@pytest.mark.parametrize("block_size", [1024, 2048, 4096])
def test_too_small_a_size_names_the_one_needed(make: Make, block_size: int) -> None:
    """And the size that it names is enough, and not much too large."""
    layer = LayerBuilder()
    for number in range(300):
        layer.file(f"d/{number}", b"x" * 9000)
    with pytest.raises(InvalidInput, match="too small") as caught:
        make(layer, size=MIB, block_size=block_size)
    assert caught.value.object == "size"
    needed = int(re.findall(r"needs (\d+)", str(caught.value))[0])
    assert needed < 8 * MIB
    image = make(layer, size=needed, block_size=block_size)
    assert image.stat().st_size == needed
    with pytest.raises(InvalidInput, match="too small"):
        make(layer, size=needed - 256 * 1024, block_size=block_size)
    for size in (0, 1, 512, 65536, 70_000):
        with pytest.raises(InvalidInput):
            make(layer, size=size, block_size=block_size)


def test_the_size_needed_is_never_below_the_one_given(make: Make) -> None:
    """Not even where a larger file system would get a journal, and a smaller one none."""
    layer = LayerBuilder().file("f", b"x" * 2_500_000)
    with pytest.raises(InvalidInput, match="too small") as caught:
        make(layer, size=4_600_000, block_size=2048)
    needed = int(re.findall(r"needs (\d+)", str(caught.value))[0])
    assert needed > 4_600_000
    make(layer, size=needed, block_size=2048)


@pytest.mark.parametrize("extra", [0, 1, 1000, 4096 * 17, 128 * MIB + 4096, 130 * MIB])
def test_odd_sizes(make: Make, extra: int) -> None:
    """The file has exactly the size asked for, whatever whole groups come of it."""
    size = 128 * MIB + extra
    assert make(LayerBuilder().file("f", b"x"), size=size).stat().st_size == size


def test_large_size(make: Make) -> None:
    """300 GiB need more room for descriptors; nothing is written for it."""
    image = make(LayerBuilder().file("f", b"x"), size=300 << 30, inode_ratio=1 << 20)
    assert image.stat().st_size == 300 << 30
    assert image.stat().st_blocks * 512 < 32 * MIB


def test_inodes(make: Make) -> None:
    """As many as asked for at least; always enough for the image; never more than groups hold."""
    assert int(field(make(LayerBuilder(), inodes=100_000), "Inode count")) >= 100_000
    dense = int(field(make(LayerBuilder(), inode_ratio=4096), "Inode count"))
    assert dense >= int(field(make(LayerBuilder()), "Inode count")) * 4
    many = LayerBuilder()
    for number in range(3000):
        many.file(f"f{number}")
    image = make(many, inodes=10, size=16 * MIB)
    assert int(field(image, "Free inodes")) >= 0
    assert int(field(make(many, size=16 * MIB), "Free inodes")) >= 300


def test_label_and_journal(make: Make) -> None:
    """Both are as asked for."""
    image = make(LayerBuilder(), label="räksmörgås")
    assert field(image, "Filesystem volume name") == "räksmörgås"
    assert "has_journal" in field(image, "Filesystem features")
    assert "has_journal" not in field(make(LayerBuilder(), journal=False), "Filesystem features")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"size": 1 << 30, "free": 1}, "size"),
        ({"inodes": 5, "inode_ratio": 4096}, "inodes"),
        ({"block_size": 512}, "block_size"),
        ({"block_size": 65536}, "block_size"),
        ({"label": "x" * 17}, "label"),
        ({"free": -1}, "free"),
        ({"inode_ratio": 1}, "inode_ratio"),
        ({"extra_files": (ExtraFile(Path("/dev/null"), "/x", 0o10000),)}, "extra_files"),
    ],
)
def test_senseless_options_are_named(
    tmp_path: Path, options: dict[str, object], named: str
) -> None:
    """Before anything is written."""
    with pytest.raises(InvalidInput) as caught:
        build_ext4([], tmp_path / "i", Ext4Options(**options), NO_PROGRESS, seed="")  # type: ignore[arg-type]  # wrong ones on purpose
    assert caught.value.object == named
    assert not (tmp_path / "i").exists()


# -- extra files ------------------------------------------------------------------------------


def test_extra_files(make: Make, read_tree: ReadTree, tmp_path: Path) -> None:
    """Above every layer, with parents made, over what is there, links in the path followed."""
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(b"#!/bin/sh\n")
    large.write_bytes(b"l" * 300_000)
    layer = LayerBuilder().folder("usr/sbin").link("sbin", "usr/sbin").file("usr/sbin/init", b"old")
    image = make(
        layer,
        extra_files=(
            ExtraFile(small, "/sbin/init", 0o4755, 1, 2),
            ExtraFile(large, "/opt/new/large", 0o600),
            ExtraFile(Path(os.devnull), "/empty", 0o644),
        ),
    )
    tree = read_tree(image)
    assert tree[b"/usr/sbin/init"][:3] == (0o104755, 1, 2)
    assert tree[b"/usr/sbin/init"][4:6] == (0, b"#!/bin/sh\n")
    assert tree[b"/opt/new/large"][5] == b"l" * 300_000
    assert tree[b"/opt/new"][0] == 0o040755
    assert tree[b"/empty"][5] == b""


@pytest.mark.parametrize("target", ["/", "", "/../x", "/usr", "/d/", "/f/x"])
def test_extra_files_that_cannot_be(make: Make, tmp_path: Path, target: str) -> None:
    """The target is named; a source that is missing too."""
    layer = LayerBuilder().folder("usr").file("f")
    source = tmp_path / "source"
    source.write_bytes(b"x")
    with pytest.raises(InvalidInput) as caught:
        make(layer, extra_files=(ExtraFile(source, target, 0o644),))
    assert caught.value.object == target
    with pytest.raises(NotFound, match="nowhere"):
        make(layer, extra_files=(ExtraFile(tmp_path / "nowhere", "/x", 0o644),))
    assert not (tmp_path / "image").exists()


# -- limits, damage, stopping --------------------------------------------------------------------


@pytest.mark.parametrize("limit", ["max_content", "max_entries", "max_path", "max_depth"])
def test_limits_name_their_option(make: Make, limit: str) -> None:
    """A bomb ends early, with the option that would let it pass."""
    layer = LayerBuilder()
    for number in range(50):
        layer.file(f"a/b/c/d/{number}", b"x" * 1000)
    with pytest.raises(InvalidInput) as caught:
        make(layer, **{limit: 3})
    assert limit in str(caught.value.remedy)


class Bomb(io.RawIOBase):
    """An endless member of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self._first = True

    def read(self, size: int = -1) -> bytes:
        if self._first:
            self._first = False
            import tarfile  # noqa: PLC0415 - one test's

            info = tarfile.TarInfo("bomb")
            info.size = 1 << 40
            return info.tobuf(tarfile.GNU_FORMAT)
        return bytes(size)


def test_a_bomb_of_zeros_takes_no_room(tmp_path: Path) -> None:
    """64 MiB of an endless file are read, none are written, and nothing is left."""
    image = tmp_path / "image"
    with pytest.raises(InvalidInput, match="unpack to over"):
        build_ext4([Bomb], image, Ext4Options(max_content=64 * MIB), NO_PROGRESS, seed="")
    assert not image.exists()


class Stream(io.BytesIO):
    """Short reads, as a decompressor gives them; remembers that it was closed."""

    ended = False

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(min(size or 0, 777))
        self.ended = self.ended or not data
        return data


def test_streams_are_read_to_the_end_and_closed(tmp_path: Path, read_tree: ReadTree) -> None:
    """Also behind the end mark, where the digest is checked; and closed after an error."""
    data = LayerBuilder().file("a", b"1" * 100_000).file("b", b"2").finish()
    stream = Stream(data + bytes(10_000))
    build_ext4([lambda: stream], tmp_path / "i", Ext4Options(), NO_PROGRESS, seed="")
    assert stream.ended
    assert stream.closed
    assert read_tree(tmp_path / "i")[b"/a"][5] == b"1" * 100_000
    broken = Stream(data[:50_000])
    with pytest.raises(Corrupt, match="layer 1 of 1"):
        build_ext4([lambda: broken], tmp_path / "i", Ext4Options(), NO_PROGRESS, seed="")
    assert broken.closed
    assert not (tmp_path / "i").exists()


class Failing(io.BytesIO):
    def read(self, size: int | None = -1) -> bytes:
        raise Corrupt("its digest is another", object="sha256:1")


def test_errors_of_a_stream_pass(tmp_path: Path) -> None:
    """As they are: the layer knows best."""
    with pytest.raises(Corrupt, match="digest") as caught:
        build_ext4([Failing], tmp_path / "i", Ext4Options(), NO_PROGRESS, seed="")
    assert caught.value.object == "sha256:1"


class Stopping(NoProgress):
    """Counts, and stops after so many calls."""

    def __init__(self, after: int) -> None:
        self.after = after
        self.total = 0
        self.calls = 0

    def advance(self, name: str, amount: int) -> None:
        assert name == "rootfs"
        self.calls += 1
        self.total += amount
        if self.calls > self.after:
            raise Cancelled("asked to")


def test_stopping_at_every_step(make: Make, tmp_path: Path) -> None:
    """Whenever it is cancelled, nothing is left; progress adds up to the bytes read."""
    layer = LayerBuilder().file("f", b"x" * 3_000_000)
    everything = Stopping(1 << 30)
    make(layer, progress=everything)
    assert everything.total == len(layer.finish())
    (tmp_path / "image").unlink()
    for after in range(everything.calls):
        with pytest.raises(Cancelled):
            make(layer, progress=Stopping(after))
        assert not (tmp_path / "image").exists()


def test_destination_that_cannot_be(tmp_path: Path) -> None:
    """A missing folder, a folder in its place."""
    with pytest.raises(NotFound):
        build_ext4([], tmp_path / "no" / "i", Ext4Options(), NO_PROGRESS, seed="")
    with pytest.raises(InvalidInput):
        build_ext4([], tmp_path, Ext4Options(), NO_PROGRESS, seed="")


def test_a_full_disk_is_storage_full(tmp_path: Path) -> None:
    """And a device that was named as the destination stays where it is."""
    full = tmp_path / "full"
    full.symlink_to("/dev/full")
    layer = LayerBuilder().file("f", b"x" * 100_000).finish()
    with pytest.raises(StorageFull) as caught:
        build_ext4([lambda: io.BytesIO(layer)], full, Ext4Options(), NO_PROGRESS, seed="")
    assert str(full) in str(caught.value)
    assert full.is_char_device()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_damaged_layers_make_an_image_or_an_error(seed: int) -> None:
    """Whatever bytes arrive, e2fsck likes the result, or there is none."""
    chance = random.Random(seed)
    layer = (
        LayerBuilder()
        .folder("d", xattrs={"user.x": b"1"})
        .file("d/f", b"x" * 3000)
        .link("d/l", "f")
        .link("d/h", "d/f", hard=True)
        .device("d/n", 1, 3)
        .sparse("s", 90_000, [(4096, b"a"), (40_000 // 512 * 512, b"b")], form="gnu")
        .whiteout("d/h")
        .opaque("d")
    )
    data = bytearray(layer.finish())
    for _ in range(chance.randint(1, 5)):
        at = chance.randrange(len(data) // 512) * 512 + chance.choice([0, 2, 100, 124, 156, 157])
        data[at] = chance.choice(b"0123456789\0./LSKxg\xff")
    for start in range(0, len(data) - 511, 512):
        if data[start + 257 : start + 262] == b"ustar":
            data[start + 148 : start + 156] = b" " * 8
            data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "image"
        options = Ext4Options(size=4 * MIB)
        opener = lambda: io.BytesIO(bytes(data))  # noqa: E731 - shorter than a name
        try:
            build_ext4([opener, opener], image, options, NO_PROGRESS, seed="")
        except BootstreamError:
            assert not image.exists()
        else:
            said = subprocess.run(["e2fsck", "-fn", str(image)], capture_output=True, check=False)
            assert said.returncode == 0, said.stdout


# -- the same bytes --------------------------------------------------------------------------------

REPEAT = """
import hashlib, io, os, sys, time
from pathlib import Path
os.umask(int(sys.argv[3], 8))
time.time = lambda: 4e9
from bootstream.progress import NO_PROGRESS
from bootstream.rootfs import Ext4Options, ExtraFile, build_ext4
layers = [lambda p=p: open(p, "rb") for p in sys.argv[4:]]
options = Ext4Options(extra_files=(ExtraFile(Path(sys.argv[2]), "/x/y", 0o755),), label="l")
build_ext4(layers, Path(sys.argv[1]), options, NO_PROGRESS, seed="seed")
print(hashlib.file_digest(open(sys.argv[1], "rb"), "sha256").hexdigest())
"""


def test_same_bytes_whatever_the_process(tmp_path: Path) -> None:
    """Another time zone, user mask, hash seed, clock, locale, folder: one digest."""
    one, two = LayerBuilder(), LayerBuilder()
    for number in range(600):
        one.file(f"d/{number}", b"%d" % number, xattrs={"user.b": b"1", "user.a": b"2"})
    one.file("big", random.Random(1).randbytes(200_000), xattrs={"user.c": b"v" * 300})
    two.whiteout("d/5").file("d/new", b"n").opaque("nothing").link("big2", "big", hard=True)
    paths = []
    for name, layer in (("1", one), ("2", two)):
        (tmp_path / name).write_bytes(layer.finish())
        paths.append(str(tmp_path / name))
    source = tmp_path / "source"
    source.write_bytes(b"extra")
    digests = set()
    for number, (zone, mask, seed, locale) in enumerate(
        [
            ("UTC", "022", "0", "C"),
            ("Asia/Tokyo", "077", "1", "C.UTF-8"),
            ("America/New_York", "000", "random", "POSIX"),
        ]
    ):
        environment = os.environ | {"TZ": zone, "PYTHONHASHSEED": seed, "LC_ALL": locale}
        os.utime(source, (number * 1000, number * 1000))
        target = tmp_path / f"image {number}"
        said = subprocess.run(
            [sys.executable, "-c", REPEAT, str(target), str(source), mask, *paths],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=25,
        )
        digests.add(said.stdout)
    assert len(digests) == 1


def test_another_seed_or_option_is_another_file_system(make: Make) -> None:
    """UUIDs follow from the seed and the options, and are valid ones."""
    layer = LayerBuilder().file("f")
    uuids = {
        field(make(layer, **arguments), "Filesystem UUID")
        for arguments in ({"seed": "1"}, {"seed": "2"}, {"label": "x"}, {"free": 5 * MIB})
    }
    assert len(uuids) == 4
    assert all(uuid[14] == "4" for uuid in uuids)


def chunks(image: Path) -> list[bytes]:
    found = []
    with image.open("rb") as file:
        while data := file.read(65536):
            if data.count(0) != len(data):
                found.append(hashlib.sha256(data).digest())
    return found


def test_a_change_above_leaves_what_is_below(make: Make) -> None:
    """One file more in the top layer: under two hundredths of the chunks are new."""
    chance = random.Random(3)
    base = LayerBuilder(parents=True)
    for number in range(1500):
        base.file(
            f"usr/d{number % 60}/f{number}",
            chance.randbytes(chance.randrange(30_000)),
            xattrs={"security.capability": CAP_NET_BIND_SERVICE} if number % 50 == 0 else {},
        )
    for number in range(20):
        base.file(f"usr/lib/l{number}", chance.randbytes(chance.randrange(2_000_000)))
    before = chunks(make(base, LayerBuilder().file("app/main", b"1"), seed="1"))
    changed = LayerBuilder().file("app/main", b"22" * 9000).file("usr/d7/more", b"m")
    after = chunks(make(base, changed, seed="2"))
    new = len(set(after) - set(before))
    assert new / len(after) < 0.02, (new, len(after))


def test_large_directories_are_shared(make: Make) -> None:
    """Indexed directories keep their order when another layer changes."""
    base = LayerBuilder(parents=True)
    for number in range(8000):
        base.fifo(f"large/a name of some length, number {number}")
    before = chunks(make(base, LayerBuilder().file("top", b"1"), seed="1"))
    after = chunks(make(base, LayerBuilder().file("top", b"2"), seed="2"))
    assert len(set(after) - set(before)) <= 8, "the superblocks, descriptors and the file"
