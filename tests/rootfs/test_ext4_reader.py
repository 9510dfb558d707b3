"""The reader against images of mkfs.ext4: every layout of blocks, inodes and directories.

What is compared with is the tree that an image was made of. What mkfs.ext4 could only
copy as root (owners, devices, attributes) debugfs puts in afterwards.
"""

from __future__ import annotations

import io
import os
import random
import re
import stat
import struct
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from bootstream.errors import Corrupt, InvalidInput, NotFound
from bootstream.rootfs.ext4 import Ext4FileSystem

EPOCH = 1_700_000_000
LAYOUTS = [
    "",
    "-b 1024",
    "-b 2048",
    "-b 65536 -O ^has_journal",
    "-I 128 -O ^metadata_csum",
    "-I 512",
    "-O ^extent,^64bit",
    "-b 1024 -O ^extent,^64bit",
    "-O ^64bit",
    "-O ^dir_index,^filetype",
    "-O ^flex_bg,^resize_inode,meta_bg",
    "-b 1024 -g 1024 -O ^flex_bg,^resize_inode,meta_bg",
    "-b 1024 -g 1024 -O ^resize_inode,meta_bg,sparse_super2",
    "-O inline_data",
    "-b 1024 -I 1024 -O inline_data,ea_inode",
    "-O bigalloc,^resize_inode",
    "-b 1024 -O bigalloc,^resize_inode",
    "-O quota,project,encrypt,casefold,verity,mmp,large_dir,metadata_csum_seed",
    "-t ext2",
    "-t ext3",
    "-t ext2 -r 0",
]


class Image:
    """An image file, opened; it counts what is read of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path.open("rb", buffering=0)
        self.reads = self.bytes = 0
        self.system = Ext4FileSystem(self.read_at, path.stat().st_size)

    def read_at(self, buffer: memoryview, offset: int) -> None:
        self.reads += 1
        self.bytes += len(buffer)
        assert os.preadv(self.file.fileno(), [buffer], offset) == len(buffer)


@pytest.fixture
def opened(request: pytest.FixtureRequest) -> Callable[[Path], Image]:
    """Open an image, and close it at the end."""

    def make(path: Path) -> Image:
        image = Image(path)
        request.addfinalizer(image.file.close)
        return image

    return make


def run(*command: str | Path, stdin: str | None = None) -> str:
    result = subprocess.run(
        command, input=stdin, capture_output=True, text=True, check=False, timeout=25
    )
    assert result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"
    return result.stdout


def make_image(path: Path, tree: Path | None, options: str = "", size: str = "24M") -> Path:
    copy = ["-d", str(tree)] if tree is not None else []
    run("mkfs.ext4", "-q", "-F", *options.split(), *copy, path, size)
    return path


def debugfs(image: Path, *commands: str) -> str:
    """Run commands in debugfs; one that it complains about fails the test."""
    result = subprocess.run(
        ["debugfs", "-w", "-f", "-", image],
        input="\n".join(commands) + "\n",
        capture_output=True,
        text=True,
        check=True,
        timeout=25,
    )
    complaints = [line for line in result.stderr.splitlines() if not line.startswith("debugfs 1")]
    assert not complaints, complaints
    return result.stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree of everything that any user can make."""
    rng = random.Random(7)
    root = tmp_path_factory.mktemp("tree")
    for number in range(60):
        folder = root / "many" / str(number % 5)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"file {number}").write_bytes(rng.randbytes(rng.choice([0, 1, 59, 100, 5000])))
    (root / "odd").mkdir()
    (root / "odd" / ("n" * 255)).write_text("long name\n")
    Path(os.fsdecode(bytes(root / "odd") + b"/not utf-8 \xff\xfe")).write_bytes(b"\xff")
    (root / "odd" / "line\nbreak").write_text("x")
    (root / "big").write_bytes(rng.randbytes(2_000_000))
    (root / "empty").write_bytes(b"")
    with (root / "sparse").open("wb") as file:
        # It ends with a whole block of data: mke2fs 1.47.0 loses a hole at the end, and a tail of
        # few bytes, where there is inline data.
        for block in (3, 70, 71, 900, 1500, 1999):
            file.seek(block * 4096)
            file.write(rng.randbytes(4096))
    os.symlink("big", root / "short")
    os.symlink("x/" * 29 + "y", root / "fifty-nine")
    os.symlink("x/" * 30, root / "sixty")
    os.symlink("y/" * 400 + "z", root / "long")
    os.link(root / "big", root / "many" / "hard")
    os.mkfifo(root / "fifo", 0o640)
    (root / "setuid").write_text("#!/bin/sh\n")
    (root / "setuid").chmod(0o4755)
    (root / "sticky").mkdir()
    (root / "sticky").chmod(0o1777)
    deep = root
    for number in range(40):
        deep = deep / f"d{number}"
    deep.mkdir(parents=True)
    (deep / "bottom").write_text("here\n")
    for path in sorted(root.rglob("*"), reverse=True):
        os.utime(path, (EPOCH, EPOCH), follow_symlinks=False)
    return root


def compare(system: Ext4FileSystem, tree: Path) -> None:
    """Everything of the tree is in the image, and nothing else but lost+found."""
    paths = [path for path in system.walk() if path != b"/lost+found"]
    root = os.fsencode(tree)
    expected = [os.fsencode(path)[len(root) :] for path in tree.rglob("*")]
    assert sorted(paths) == sorted(expected)
    for path in paths:
        ours, theirs = system.stat(path, follow=False), os.lstat(root + path)
        assert (ours.mode, ours.links) == (theirs.st_mode, theirs.st_nlink), path
        assert ours.mtime_ns == EPOCH * 10**9, path
        if stat.S_ISLNK(ours.mode):
            assert system.readlink(path) == os.readlink(root + path)
        elif stat.S_ISDIR(ours.mode):
            assert sorted(set(system.listdir(path))) == sorted(os.listdir(root + path))
        elif stat.S_ISREG(ours.mode):
            assert ours.size == theirs.st_size
            with system.open(path) as file, open(root + path, "rb") as original:
                assert file.read() == original.read(), path


@pytest.mark.parametrize("options", LAYOUTS)
def test_layouts(options: str, tree: Path, tmp_path: Path, opened: Callable[[Path], Image]) -> None:
    """Every layout that mkfs.ext4 makes gives back the tree."""
    system = opened(make_image(tmp_path / "image", tree, options, "40M")).system
    compare(system, tree)
    assert not system.needs_recovery


def test_hashed_directory(tmp_path: Path, opened: Callable[[Path], Image]) -> None:
    """A directory of thousands, indexed by e2fsck as the kernel does it."""
    (tmp_path / "tree" / "d").mkdir(parents=True)
    names = {f"a rather long name of a file, number {number}" for number in range(3000)}
    for name in names:
        (tmp_path / "tree" / "d" / name).touch()
    for options in ("-b 1024", "-b 4096 -O ^metadata_csum"):
        path = make_image(tmp_path / "image", tmp_path / "tree", options)
        subprocess.run(["e2fsck", "-fyD", path], check=False, capture_output=True, timeout=25)
        assert re.search("Flags: 0x8?1000", debugfs(path, "stat /d")), "it has no index"
        image = opened(path)
        assert {name.decode() for name in image.system.listdir(b"/d")} == names
        assert image.system.stat(b"/d/" + max(names).encode()).size == 0
        assert len(list(image.system.walk())) == 3002


@pytest.mark.parametrize("options", ["-b 1024", "-b 1024 -O ^extent,^64bit", "-b 4096"])
def test_fragmented_and_sparse(
    options: str, tmp_path: Path, opened: Callable[[Path], Image]
) -> None:
    """Trees of several levels: thousands of extents, and all three indirections."""
    rng = random.Random(3)
    source = tmp_path / "tree" / "file"
    source.parent.mkdir()
    with source.open("wb") as file:
        for number in range(3000):
            file.seek(number * 8192 + 4096)
            file.write(rng.randbytes(4096 if number % 3 else 100))
        file.seek(90 << 20)
        file.write(b"the end")
    image = opened(make_image(tmp_path / "image", source.parent, options, "64M"))
    with image.system.open(b"/file") as ours, source.open("rb") as theirs:
        assert ours.read() == theirs.read()
        for _ in range(200):
            offset = rng.randrange(source.stat().st_size)
            length = rng.choice([1, 5, 4096, 20_000])
            ours.seek(offset)
            theirs.seek(offset)
            assert ours.read(length) == theirs.read(length)
    where = image.system.extents(b"/file")
    places = [
        int(block) for block in debugfs(image.path, "blocks /file").split() if block.isdigit()
    ]
    size = image.system.block_size
    ours_in_blocks = [
        b for at, length in where for b in range(at // size, -(-(at + length) // size))
    ]
    # debugfs also lists the blocks of the tree itself
    assert [block for block in places if block in set(ours_in_blocks)] == ours_in_blocks
    assert len(places) - len(ours_in_blocks) < 100


def test_extents_are_the_contents(tmp_path: Path, opened: Callable[[Path], Image]) -> None:
    """The bytes at these places, one after the other; nothing for a file inside its inode."""
    tree = tmp_path / "tree"
    tree.mkdir()
    contents = random.Random(6).randbytes(1_234_567)
    (tree / "file").write_bytes(contents)
    (tree / "tiny").write_bytes(b"inside")
    (tree / "empty").touch()
    (tree / "link").symlink_to("file")
    image = opened(make_image(tmp_path / "image", tree, "-O inline_data -I 256"))
    for path in (b"/file", b"/link"):
        read = b""
        for offset, length in image.system.extents(path):
            piece = bytearray(length)
            image.read_at(memoryview(piece), offset)
            read += piece
        assert read == contents
    assert image.system.extents(b"/tiny") == []
    assert image.system.extents(b"/empty") == []
    with pytest.raises(InvalidInput):
        image.system.extents(b"/")
    with pytest.raises(NotFound):
        image.system.extents(b"/none")


def test_unwritten_extents_are_zeros(tmp_path: Path, opened: Callable[[Path], Image]) -> None:
    """What was allocated but never written reads as zeros, whatever the blocks hold."""
    path = make_image(tmp_path / "image", None)
    (tmp_path / "data").write_bytes(b"\xaa" * 1_000_000)
    debugfs(path, f"write {tmp_path / 'data'} old", "rm old")
    (tmp_path / "start").write_bytes(b"start")
    debugfs(path, f"write {tmp_path / 'start'} f", "fallocate f 1 300", "sif f size 1000000")
    with opened(path).system.open(b"f") as file:
        assert file.read() == b"start".ljust(1_000_000, b"\0")


def test_owners_devices_times(tmp_path: Path, opened: Callable[[Path], Image]) -> None:
    """Owners of 32 bits, device numbers of both forms, times before 1970 and after 2038."""
    path = make_image(tmp_path / "image", None, "-I 256")
    (tmp_path / "f").write_text("x")
    debugfs(
        path,
        f"write {tmp_path / 'f'} f",
        "sif f uid 4294967294",
        "sif f gid 100000",
        "sif f mode 0102755",
        "sif f mtime @-86400",
        "mknod small c 5 1",
        "mknod wide b 259 60000",
        "mknod pipe p",
        f"write {tmp_path / 'f'} late",
        "sif late mtime @4294967296",
        "sif late mtime_extra 0x1d6f3455",
        "sif late atime @8000000000",
    )
    system = opened(path).system
    status = system.stat(b"/f")
    assert (status.uid, status.gid, status.mode) == (4294967294, 100_000, 0o102755)
    assert status.mtime_ns == -86400 * 10**9
    small, wide = system.stat(b"/small"), system.stat(b"/wide")
    assert (stat.S_ISCHR(small.mode), small.rdev) == (True, os.makedev(5, 1))
    assert (stat.S_ISBLK(wide.mode), wide.rdev) == (True, os.makedev(259, 60000))
    assert stat.S_ISFIFO(system.stat(b"/pipe").mode)
    late = system.stat(b"/late")
    assert late.mtime_ns == 4294967296 * 10**9 + (0x1D6F3455 >> 2)
    assert late.atime_ns // 10**9 == 8_000_000_000


ACL_ON_DISK = bytes.fromhex("01000000 01000700 02000600e8030000 04000500 10000700 20000400")
ACL_SEEN = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", *entry)
    for entry in [
        (1, 7, 0xFFFFFFFF),
        (2, 6, 1000),
        (4, 5, 0xFFFFFFFF),
        (16, 7, 0xFFFFFFFF),
        (32, 4, 0xFFFFFFFF),
    ]
)


@pytest.mark.parametrize("options", ["-I 128 -O ^metadata_csum", "-I 256", "-I 512 -O ea_inode"])
def test_attributes(options: str, tmp_path: Path, opened: Callable[[Path], Image]) -> None:
    """In the inode, in a block, both, and in inodes of their own; ACLs as getxattr has them."""
    path = make_image(tmp_path / "image", None, f"-b 4096 {options}")
    values = {
        "user.note": b"kept",
        "security.capability": bytes.fromhex("0100000200040000000000000000000000000000"),
        "trusted.overlay.opaque": b"y",
        "user.large": bytes(range(256)) * 8,
        "user.empty": b"",
        "system.posix_acl_access": ACL_SEEN,
    }
    if "ea_inode" in options:
        values["user.huge"] = random.Random(1).randbytes(4096)
    (tmp_path / "f").write_text("x")
    commands = [f"write {tmp_path / 'f'} f", "mkdir d", "symlink link f"]
    for number, (name, value) in enumerate(values.items()):
        (tmp_path / f"v{number}").write_bytes(value)
        commands.append(f"ea_set f -f {tmp_path / f'v{number}'} {name}")
    commands.append("ea_set d user.folder yes")
    debugfs(path, *commands)
    system = opened(path).system
    assert system.xattrs(b"/f") == values
    assert system.xattrs(b"/link") == values
    assert system.xattrs(b"/link", follow=False) == {}
    assert system.xattrs(b"/d") == {"user.folder": b"yes"}
    assert system.xattrs(b"/") == {}
    assert ACL_ON_DISK in path.read_bytes(), "the form on disk is another one"


def test_attributes_copied_by_mkfs(tmp_path: Path, opened: Callable[[Path], Image]) -> None:
    """What mkfs.ext4 copies of a file is what the host's own getxattr says of it."""
    source = tmp_path / "tree" / "f"
    source.parent.mkdir()
    source.touch()
    with suppress(OSError):  # some hosts' file systems have none
        os.setxattr(source, "user.test", b"value \xff\0")
    image = opened(make_image(tmp_path / "image", source.parent))
    assert image.system.xattrs(b"/f") == {
        name: os.getxattr(source, name) for name in os.listxattr(source)
    }


# -- paths -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def links(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image whose names lead to each other."""
    tree = tmp_path_factory.mktemp("links")
    (tree / "etc").mkdir()
    (tree / "etc" / "passwd").write_text("root\n")
    (tree / "a" / "b").mkdir(parents=True)
    targets = {
        "absolute": "/etc/passwd",
        "a/b/up": "../../etc",
        "above": "../../../../../etc/passwd",
        "to-folder": "a/b",
        "loop": "loop",
        "ping": "pong",
        "pong": "./ping",
        "dangling": "nowhere/at/all",
        "chain0": "etc/passwd",
    }
    for number in range(1, 42):
        targets[f"chain{number}"] = f"chain{number - 1}"
    for name, target in targets.items():
        os.symlink(target, tree / name)
    return make_image(tmp_path_factory.mktemp("image") / "links", tree)


@pytest.mark.parametrize(
    "path",
    [
        b"/etc/passwd", b"etc/passwd", b"//etc///./passwd", b"/absolute", b"/a/b/up/passwd",
        b"/above", b"/../../etc/passwd", b"/to-folder/up/passwd", b"/to-folder/../../etc/passwd",
        b"/chain39", b"/a/b/../b/up/../etc/passwd",
    ],
)  # fmt: skip
def test_ways_to_one_file(path: bytes, links: Path, opened: Callable[[Path], Image]) -> None:
    """Links are followed inside the image, and never above its root."""
    with opened(links).system.open(path) as file:
        assert file.read() == b"root\n"


def test_links_end_or_are_refused(links: Path, opened: Callable[[Path], Image]) -> None:
    """Loops and chains of more than forty are errors; ``nofollow`` looks at the link itself."""
    system = opened(links).system
    for path in (b"/loop", b"/ping", b"/chain41", b"/loop/x"):
        with pytest.raises(InvalidInput, match="symbolic links"):
            system.stat(path)
    assert stat.S_ISLNK(system.stat(b"/loop", follow=False).mode)
    assert stat.S_ISLNK(system.stat(b"/to-folder", follow=False).mode)
    assert stat.S_ISDIR(system.stat(b"/to-folder/", follow=False).mode)
    assert system.readlink(b"/a/b/up") == b"../../etc"
    assert system.listdir(b"/to-folder") == [b"up"]


@pytest.mark.parametrize(
    "path", [b"/nothing", b"/etc/passwd/x", b"/etc/passwd/", b"/dangling", b"/etc/passwd/..",
             b"/" + b"n" * 300, b"/etc/pass\0wd", b"/nothing/../etc/passwd"],
)  # fmt: skip
def test_missing(path: bytes, links: Path, opened: Callable[[Path], Image]) -> None:
    """What is not there is named as it was asked for."""
    with pytest.raises(NotFound) as caught:
        opened(links).system.stat(path)
    assert caught.value.object is not None
    assert caught.value.object.isprintable()
    if path.isascii() and b"\0" not in path:
        assert caught.value.object == path.decode()


def test_wrong_kinds(links: Path, opened: Callable[[Path], Image]) -> None:
    """Folders are not read, files not listed, and a path has an end."""
    system = opened(links).system
    for call in (
        lambda: system.open(b"/etc"),
        lambda: system.listdir(b"/etc/passwd"),
        lambda: system.readlink(b"/etc"),
        lambda: system.stat(b"/a" * 100_000),
    ):
        with pytest.raises(InvalidInput):
            call()
    assert stat.S_ISDIR(system.stat(b"/").mode)
    assert system.stat(b"").inode == 2


# -- files -----------------------------------------------------------------------------------


def test_file_is_a_raw_stream(links: Path, opened: Callable[[Path], Image]) -> None:
    """It behaves as Python's own files do."""
    with opened(links).system.open(b"/etc/passwd") as file:
        assert (file.readable(), file.seekable(), file.writable(), file.size) == (
            True, True, False, 5,
        )  # fmt: skip
        assert file.read(2) == b"ro"
        assert file.tell() == 2
        assert file.seek(-1, io.SEEK_END) == 4
        assert file.read() == b"\n"
        assert file.read() == b""
        assert file.seek(100) == 100
        assert file.readinto(bytearray(3)) == 0
        assert file.seek(1) == 1
        buffer = bytearray(10)
        assert file.readinto(buffer) == 4
        assert bytes(buffer[:4]) == b"oot\n"
        file.seek(0)
        assert io.BufferedReader(file).readline() == b"root\n"
    with pytest.raises(ValueError, match="closed"):
        file.read()


def test_only_what_is_looked_at_is_read(tree: Path, tmp_path: Path) -> None:
    """One file costs some pages, not the image; a big one comes in few reads."""
    image = Image(make_image(tmp_path / "image", tree, "", "400M"))
    with image.file:
        bottom = b"".join(b"/d%d" % number for number in range(40)) + b"/bottom"
        assert image.system.open(bottom).read() == b"here\n"
        assert image.bytes < 1 << 20
        before = image.reads
        assert len(image.system.open(b"/big").read()) == 2_000_000
        assert image.reads - before < 12


# -- damage ----------------------------------------------------------------------------------


def opened_bytes(data: bytes | bytearray) -> Ext4FileSystem:
    def read_at(buffer: memoryview, offset: int) -> None:
        assert 0 <= offset <= offset + len(buffer) <= len(data)
        buffer[:] = data[offset : offset + len(buffer)]

    return Ext4FileSystem(read_at, len(data))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, tree: Path) -> bytes:
    folder = tmp_path_factory.mktemp("small")
    return make_image(folder / "image", tree, "-b 1024 -O ^has_journal", "16M").read_bytes()


@pytest.mark.parametrize("data", [b"", b"x" * 1000, bytes(100_000), b"\x53\xef" * 5000])
def test_no_file_system(data: bytes) -> None:
    """Anything else is refused as what it is."""
    with pytest.raises((InvalidInput, Corrupt)):
        opened_bytes(data)


def test_features_that_hide_contents(small: bytes) -> None:
    """Unknown and unreadable features are named; a journal not replayed can be told."""
    for feature in (0x1, 0x8, 0x1000, 1 << 27):
        data = bytearray(small)
        data[1024 + 0x60 : 1024 + 0x64] = struct.pack("<I", 0x2C2 | feature)
        with pytest.raises(InvalidInput, match="cannot be read"):
            opened_bytes(data)
    data = bytearray(small)
    data[1024 + 0x60] |= 0x4
    system = opened_bytes(data)
    assert system.needs_recovery
    assert system.stat(b"/big").size == 2_000_000


def test_end_is_missing(small: bytes) -> None:
    """An image that was cut off is damaged, a longer one is not."""
    with pytest.raises(Corrupt, match="end is missing"):
        opened_bytes(small[:-1024])
    assert opened_bytes(small + bytes(5000)).size == len(small)


def test_encrypted_files_are_refused(tmp_path: Path, opened: Callable[[Path], Image]) -> None:
    """Contents and names that need a key are not taken for plain ones."""
    (tmp_path / "f").write_text("secret")
    path = make_image(tmp_path / "image", None, "-O encrypt")
    debugfs(path, f"write {tmp_path / 'f'} f", "mkdir d", "sif f flags 0x80800",
            "sif d flags 0x80800")  # fmt: skip
    system = opened(path).system
    assert system.stat(b"/f").size == 6
    for call in (system.open, system.listdir):
        with pytest.raises(InvalidInput, match="encrypted"):
            call(b"/f" if call == system.open else b"/d")


def test_folders_in_a_circle(tmp_path: Path, opened: Callable[[Path], Image]) -> None:
    """A folder that is its own descendant, or has two names, ends the walk."""
    for name in ("a/b/again", "second"):
        path = make_image(tmp_path / "image", None)
        debugfs(path, "mkdir a", "mkdir a/b", f"link a {name}")
        with pytest.raises(Corrupt, match="more than one name"):
            list(opened(path).system.walk())
        system = opened(path).system
        with pytest.raises(Corrupt, match="more than one name"):
            system.stat(b"/a/b/again/b" if name.startswith("a") else b"/second/b")
            system.stat(b"/a/b")


def test_names_of_free_inodes(tmp_path: Path, opened: Callable[[Path], Image]) -> None:
    """A name whose inode is free, reserved or beyond the table is damage."""
    path = make_image(tmp_path / "image", None)
    (tmp_path / "f").write_text("x")
    debugfs(path, f"write {tmp_path / 'f'} f", "clri f")
    with pytest.raises(Corrupt):
        opened(path).system.stat(b"/f")
    for inode in (7, 4_000_000_000):
        data = bytearray(path.read_bytes())
        entry = data.index(struct.pack("<HBB", 12, 1, 1)[2:] + b"f") - 6
        data[entry : entry + 4] = struct.pack("<I", inode)
        with pytest.raises(Corrupt):
            opened_bytes(data).stat(b"/f")
