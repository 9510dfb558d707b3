"""What is in an image, asked of the kernel where it mounts, of our reader elsewhere."""

from __future__ import annotations

import os
import stat
import struct
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bootstream.errors import InvalidInput
from bootstream.rootfs.ext4.namehash import hasher
from bootstream.testing.images import CAP_NET_BIND_SERVICE, LayerBuilder

Tree = dict[bytes, tuple[object, ...]]
ReadTree = Callable[[Path], Tree]
Make = Callable[..., Path]
Mounted = Callable[[Path], AbstractContextManager[Path]]
ROOT = os.geteuid() == 0


def debugfs(image: Path, request: str) -> str:
    result = subprocess.run(
        ["debugfs", "-R", request, str(image)],
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    return result.stdout


def acl(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NONE = 2**32 - 1
NAMED_USER = acl((1, 7, NONE), (2, 6, 1234), (4, 5, NONE), (16, 7, NONE), (32, 4, NONE))


def odd(block_size: int) -> LayerBuilder:
    """As much of everything as fits blocks of this size."""
    return (
        LayerBuilder()
        .file("plain", b"content\n", mode=0o4755, uid=70_000, gid=2**32 - 2, mtime=1_600_000_000.25)
        .folder("sticky", mode=0o3777, mtime=-5.5)
        .file("late", b"", mtime=2**33)
        .file("too-late", b"", mtime=2**35)
        .file("too-early", b"", mtime=-(2**33))
        .device("null", 1, 3, mode=0o666)
        .device("wide", 259, 70_000, block=True, mode=0o660)
        .fifo("pipe", mode=0o640)
        .link("fast", "t" * 59)
        .link("slow", "t" * 60)
        .link("slowest", "t" * (block_size - 1))
        .file(b"\xff\xfe odd \x01", b"odd")
        .file("n" * 255, b"long")
        .file("caps", b"c", xattrs={"security.capability": CAP_NET_BIND_SERVICE})
        .file("many", b"m", xattrs={f"user.a{n:03}": b"v" * n for n in range(block_size // 102)})
        .file("same", b"m", xattrs={f"user.a{n:03}": b"v" * n for n in range(block_size // 102)})
        .file("acl", b"a", xattrs={"system.posix_acl_access": NAMED_USER})
        .folder("default-acl", xattrs={"system.posix_acl_default": NAMED_USER})
        .file("nul", b"x", xattrs={"user.nul": b"a\0b\n", "trusted.t": b"", "user.empty": b""})
        .file("mac", b"x", xattrs={"com.apple.quarantine": b"left out"})
    )


@pytest.mark.parametrize("block_size", [1024, 2048, 4096])
def test_everything_odd(make: Make, read_tree: ReadTree, mounted: Mounted, block_size: int) -> None:
    """Owners, modes, times, devices, links, names, attributes: on disk and to the kernel."""
    image = make(odd(block_size), block_size=block_size)
    tree = read_tree(image)
    assert tree[b"/plain"][:3] == (0o104755, 70_000, 2**32 - 2)
    assert tree[b"/plain"][4] == 1_600_000_000_250_000_000
    assert tree[b"/sticky"][4] == -5_500_000_000
    assert tree[b"/late"][4] == 2**33 * 10**9
    assert tree[b"/too-late"][4] == (2**34 - 2**31) * 10**9 - 1
    assert tree[b"/too-early"][4] == -(2**31) * 10**9
    assert tree[b"/wide"][3] == os.makedev(259, 70_000)
    assert tree[b"/slow"][5] == b"t" * 60
    assert tree[b"/acl"][6] == (("system.posix_acl_access", NAMED_USER),)
    assert not tree[b"/mac"][6]
    if not ROOT:
        return
    with mounted(image) as root:
        check_with_kernel(root, block_size)


def check_with_kernel(root: Path, block_size: int) -> None:
    status = (root / "plain").lstat()
    assert (status.st_mode, status.st_uid, status.st_gid) == (0o104755, 70_000, 2**32 - 2)
    assert status.st_mtime_ns == status.st_atime_ns == 1_600_000_000_250_000_000
    assert (root / "sticky").lstat().st_mtime_ns == -5_500_000_000
    assert (root / "sticky").lstat().st_mode == 0o043777
    assert (root / "late").lstat().st_mtime == 2**33
    assert (root / "too-late").lstat().st_mtime_ns == (2**34 - 2**31) * 10**9 - 1
    assert (root / "too-early").lstat().st_mtime == -(2**31)
    assert (root / "null").lstat().st_rdev == os.makedev(1, 3)
    assert (root / "wide").lstat().st_rdev == os.makedev(259, 70_000)
    assert stat.S_ISBLK((root / "wide").lstat().st_mode)
    assert stat.S_ISFIFO((root / "pipe").lstat().st_mode)
    assert (root / "fast").readlink() == Path("t" * 59)
    assert (root / "slow").readlink() == Path("t" * 60)
    assert (root / "slowest").readlink() == Path("t" * (block_size - 1))
    assert (Path(os.fsdecode(os.fsencode(root) + b"/\xff\xfe odd \x01"))).read_bytes() == b"odd"
    assert (root / ("n" * 255)).read_bytes() == b"long"
    assert os.getxattr(root / "caps", "security.capability") == CAP_NET_BIND_SERVICE
    for name in ("many", "same"):
        names = [f"user.a{n:03}" for n in range(block_size // 102)]
        assert sorted(os.listxattr(root / name)) == names
        assert os.getxattr(root / name, names[-1]) == b"v" * (len(names) - 1)
    assert os.getxattr(root / "acl", "system.posix_acl_access")[:12] == NAMED_USER[:12]
    assert (2, 6, 1234) in struct.iter_unpack(
        "<HHI", os.getxattr(root / "default-acl", "system.posix_acl_default")[4:]
    )
    assert os.getxattr(root / "nul", "user.nul") == b"a\0b\n"
    assert os.getxattr(root / "nul", "trusted.t") == b""


def test_large_directory_is_indexed(make: Make, read_tree: ReadTree, mounted: Mounted) -> None:
    """20,000 names over two layers, all found by the kernel; blocks of 1 KiB, two levels."""
    lower, upper = LayerBuilder(), LayerBuilder()
    for number in range(20_000):
        (lower if number % 2 else upper).link(f"d/file number {number}", str(number))
    image = make(lower, upper, block_size=1024, inodes=30_000)
    assert len(read_tree(image)) == 20_002
    assert "Indirect levels: 1" in debugfs(image, "htree_dump /d")
    if ROOT:
        with mounted(image) as root:
            for number in range(20_000):
                assert os.readlink(root / f"d/file number {number}") == str(number)
            assert len(os.listdir(root / "d")) == 20_000


@pytest.mark.parametrize("count", [1, 100, 150, 300, 345, 400, 700, 3000])
def test_directory_sizes(make: Make, read_tree: ReadTree, count: int) -> None:
    """Around one, two and three blocks, e2fsck has nothing to improve."""
    layer = LayerBuilder()
    for number in range(count):
        layer.link(f"d/{number:04}-name", "x")
    tree = read_tree(make(layer))
    assert {path for path in tree if path.startswith(b"/d/")} == {
        f"/d/{number:04}-name".encode() for number in range(count)
    }


def test_names_with_one_hash(make: Make, read_tree: ReadTree) -> None:
    """A leaf whose names all hash alike goes on in the next block."""
    from bootstream.rootfs.ext4.directories import pack_directory  # noqa: PLC0415 - one test's

    names = [(b"%03d" % n + b"n" * 252, 20 + n, 1) for n in range(100)]
    blocks, indexed = pack_directory(12, 2, names, 4096, lambda _: 0x1234)
    assert indexed
    limit, count = struct.unpack_from("<HH", blocks[0], 32)
    starts = [struct.unpack_from("<II", blocks[0], 32 + 8 * n) for n in range(1, count)]
    assert limit == 508
    assert [block for _, block in starts] == list(range(2, len(blocks)))
    assert all(start & 1 for start, _ in starts[1:])
    del make, read_tree


@pytest.mark.parametrize("name", ["a", "abcd", "x" * 31, "x" * 32, "x" * 33, "y" * 255])
def test_name_hash_is_e2fsprogs_own(name: str, tmp_path: Path) -> None:
    """debugfs computes the same."""
    seed = "c95ec02e-f2d8-4768-b0ec-cf47883ded57"
    said = debugfs(tmp_path, f"dx_hash -h half_md4 -s {seed} {name}")
    expected = int(said.split(" is ")[1].split()[0], 16)
    assert hasher(bytes.fromhex(seed.replace("-", "")))(name.encode()) == expected


@pytest.mark.parametrize("form", ["gnu", "0.0", "0.1", "1.0"])
def test_sparse_files(make: Make, read_tree: ReadTree, mounted: Mounted, form: str) -> None:
    """Every form of tar; holes stay holes, a file over 4 GiB keeps its size."""
    pieces = [(4096 * 3 + 512 * n * 40, b"%03d" % n * 100) for n in range(120)]
    layer = LayerBuilder().sparse("s", 5_000_000, pieces, form=form)  # type: ignore[arg-type]
    layer.sparse("huge", 6 << 30, [(5 << 30, b"far away")], form=form)  # type: ignore[arg-type]
    layer.sparse("hole", 1 << 20, [], form=form)  # type: ignore[arg-type]
    layer.file("after", b"still in step")
    image = make(layer)
    expected = bytearray(5_000_000)
    for offset, data in pieces:
        expected[offset : offset + len(data)] = data
    if not ROOT:
        assert debugfs(image, "cat /after") == "still in step"
        return
    with mounted(image) as root:
        assert (root / "s").read_bytes() == expected
        assert (root / "s").stat().st_blocks * 512 < 1_100_000
        assert (root / "huge").stat().st_size == 6 << 30
        assert (root / "huge").stat().st_blocks <= 16
        assert (root / "hole").stat().st_blocks == 0
        assert (root / "after").read_bytes() == b"still in step"
        with (root / "huge").open("rb") as file:
            file.seek(5 << 30)
            assert file.read(9) == b"far away\0"


def test_zeros_become_holes_and_deep_extent_trees(
    make: Make, read_tree: ReadTree, mounted: Mounted
) -> None:
    """A file of many islands needs a tree of extents; deleted by a layer above, it is all free."""
    island = b"data" * 256 + bytes(63 * 1024)
    data = island * 1000 + b"end"
    layer = LayerBuilder().file("islands", data).file("tail", b"x" * 70_000)
    image = make(layer, block_size=1024, size=160 << 20)
    assert read_tree(image)[b"/islands"][5] == data
    assert " 2/ 2 " in debugfs(image, "dump_extents /islands")
    if ROOT:
        with mounted(image) as root:
            assert (root / "islands").read_bytes() == data
            assert (root / "islands").stat().st_blocks * 512 < 2_200_000
    emptied = make(layer, LayerBuilder().whiteout("islands"), block_size=1024, size=160 << 20)
    content = emptied.read_bytes()
    assert content.count(b"datadatadata") == 0  # freed blocks are zeros


def test_many_groups(make: Make, read_tree: ReadTree, mounted: Mounted) -> None:
    """Data around the backups of superblocks, in groups of 8 MiB."""
    unit = bytes(range(256)) * 4
    layer = LayerBuilder()
    for number in range(12):
        layer.file(f"f{number}", (b"%d" % number + unit) * 3000)
        layer.file(f"small{number}", unit)
    image = make(layer, block_size=1024)
    tree = read_tree(image)
    for number in range(12):
        assert tree[b"/f%d" % number][5] == (b"%d" % number + unit) * 3000
    if ROOT:
        with mounted(image) as root:
            for number in range(12):
                assert (root / f"f{number}").read_bytes() == (b"%d" % number + unit) * 3000


@pytest.mark.parametrize("block_size", [1024, 4096])
def test_others_write_and_it_stays_clean(make: Make, tmp_path: Path, block_size: int) -> None:
    """The journal, free blocks and inodes, and an index of ours, changed by other code.

    For root that is the kernel; an ordinary user has debugfs.
    """
    layer = LayerBuilder()
    for number in range(900):
        layer.file(f"d/ours {number}", b"o" * number)
    image = make(layer, block_size=block_size)
    if ROOT:
        target = tmp_path / "rw"
        target.mkdir()
        subprocess.run(["mount", "-o", "loop", str(image), str(target)], check=True)
        try:
            for number in range(3000):
                (target / f"d/theirs {number}").write_bytes(b"t" * number)
            for number in range(0, 900, 2):
                (target / f"d/ours {number}").unlink()
            (target / "large").write_bytes(b"l" * 40_000_000)
        finally:
            subprocess.run(["umount", str(target)], check=True)
    else:
        (tmp_path / "source").write_bytes(b"t" * 5000)
        script = [f'write {tmp_path / "source"} "/d/theirs {number}"' for number in range(3000)]
        script += [f'rm "/d/ours {number}"' for number in range(0, 900, 2)]
        (tmp_path / "script").write_text(
            "cd /d\n" + "\n".join(script).replace("/d/theirs", "theirs")
        )
        command = ["debugfs", "-w", "-f", str(tmp_path / "script"), str(image)]
        subprocess.run(command, check=True, capture_output=True, timeout=25)
    subprocess.run(["e2fsck", "-fn", str(image)], check=True, capture_output=True)
    assert len(debugfs(image, "ls -p /d").splitlines()) >= 3450


def test_grows_with_resize2fs(make: Make) -> None:
    """The room kept for descriptors is what resize2fs expects."""
    image = make(LayerBuilder().file("f", b"x" * 100_000), size=64 << 20, block_size=1024)
    subprocess.run(["truncate", "-s", "900M", str(image)], check=True)
    subprocess.run(["resize2fs", "-f", str(image)], check=True, capture_output=True, timeout=20)
    subprocess.run(["e2fsck", "-fn", str(image)], check=True, capture_output=True, timeout=20)


def test_acl_that_says_what_the_mode_says(make: Make, read_tree: ReadTree) -> None:
    """It is not kept, and its bits count, as they would to the kernel; a broken one is refused."""
    plain = acl((1, 7, NONE), (4, 5, NONE), (32, 1, NONE))
    image = make(LayerBuilder().file("f", xattrs={"system.posix_acl_access": plain}))
    assert read_tree(image)[b"/f"][0] == stat.S_IFREG | 0o751
    assert read_tree(image)[b"/f"][6] == ()
    for bad in (b"", b"\2\0\0\0", plain[:-8], plain[:4] + plain[12:20] + plain[4:12], b"x" * 28):
        with pytest.raises(InvalidInput, match="ACL"):
            make(LayerBuilder().file("f", xattrs={"system.posix_acl_access": bad}))


def test_index_of_names_beyond_ascii(make: Make, read_tree: ReadTree, mounted: Mounted) -> None:
    """The hash takes bytes as unsigned, as the superblock's flag tells the kernel."""
    layer = LayerBuilder()
    names = [b"\xff\x80\xfe %d \xc3" % number for number in range(2000)]
    for name in names:
        layer.link(b"d/" + name, name)
    image = make(layer)
    assert len(read_tree(image)) == 2002
    if ROOT:
        with mounted(image) as root:
            for name in names:
                assert os.readlink(os.path.join(os.fsencode(root), b"d", name)) == name


def test_attributes_of_everything(make: Make, read_tree: ReadTree, mounted: Mounted) -> None:
    """In the inode and in a block, on links short and long, devices, pipes, directories."""
    small = {"trusted.small": b"s", "security.note": b"n"}
    large = {"trusted.large": b"l" * 500}
    layer = LayerBuilder()
    for word, xattrs in (("small", small), ("large", large)):
        layer.link(f"{word}/fast", "t" * 20, xattrs=xattrs)
        layer.link(f"{word}/slow", "t" * 200, xattrs=xattrs)
        layer.device(f"{word}/device", 1, 3, xattrs=xattrs)
        layer.fifo(f"{word}/pipe", xattrs=xattrs)
        layer.folder(f"{word}/folder", xattrs=xattrs)
        layer.file(f"{word}/file", b"f" * 70_000, xattrs=xattrs)
    image = make(layer)
    tree = read_tree(image)
    for word, xattrs in (("small", small), ("large", large)):
        for name in ("fast", "slow", "device", "pipe", "folder", "file"):
            assert dict(tree[f"/{word}/{name}".encode()][6]) == xattrs  # type: ignore[call-overload]  # pairs
    if not ROOT:
        return
    with mounted(image) as root:
        for word, xattrs in (("small", small), ("large", large)):
            for path in (root / word).iterdir():
                assert sorted(os.listxattr(path, follow_symlinks=False)) == sorted(xattrs)
                for name, value in xattrs.items():
                    assert os.getxattr(path, name, follow_symlinks=False) == value
            assert (root / word / "fast").readlink() == Path("t" * 20)
            assert (root / word / "slow").readlink() == Path("t" * 200)


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.dictionaries(
        st.text(
            st.characters(exclude_characters="\0=", exclude_categories=["Cs"]),
            min_size=1,
            max_size=40,
        ),
        st.binary(max_size=300),
        max_size=8,
    )
)
def test_any_attributes(make: Make, read_tree: ReadTree, attributes: dict[str, bytes]) -> None:
    """Whatever their names and values, e2fsck agrees with order and hashes."""
    expected = {f"user.{name}": value for name, value in attributes.items()}
    tree = read_tree(make(LayerBuilder().file("f", b"x", xattrs=expected), size=4 << 20))
    assert dict(tree[b"/f"][6]) == expected  # type: ignore[call-overload]  # pairs
