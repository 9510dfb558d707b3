"""The main job on a real Debian image, judged by tools that are not ours.

A registry serves it, an unprivileged build makes the template, ``e2fsck`` and (for
root) the kernel judge the file system, ``umoci unpack`` says what the tree must be,
and NBD clients read it back.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from bootstream.rootfs.ext4 import Ext4FileSystem
from bootstream.testing.debian import assemble, debian_layout, top_layer
from bootstream.testing.registry import DockerRegistry

Tree = dict[bytes, tuple[object, ...]]


def run(*command: str, **environment: str) -> str:
    result = subprocess.run(
        command,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=29,
    )
    assert result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"
    return result.stdout


def unprivileged() -> list[str]:
    """A prefix that runs a command without any of root's powers."""
    if os.geteuid() != 0:
        return []
    return ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]


@pytest.fixture(scope="module")
def images() -> Path:
    return Path(os.environ.get("BOOTSTREAM_TEST_IMAGES", "/tmp/bootstream-test-images"))


@pytest.fixture(scope="module")
def reference(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The image in a real registry, put there by skopeo."""
    layout = debian_layout(images)
    with DockerRegistry(tmp_path_factory.mktemp("registry")) as registry:
        name = f"{registry.host}/debian:bookworm"
        run(
            "skopeo",
            "copy",
            "--dest-tls-verify=false",
            f"oci:{layout}:bookworm",
            f"docker://{name}",
        )
        yield name


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("store")
    return {
        "LOCAL_TEMPLATE_STORAGE_BASE_PATH": str(folder / "templates"),
        "BOOTSTREAM_CACHE_DIR": str(folder / "cache"),
    }


@pytest.fixture(scope="module")
def exported(
    reference: str, store: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The template built by an ordinary user, as a raw file."""
    target = tmp_path_factory.mktemp("exported") / "rootfs.ext4"
    bootstream = [*unprivileged(), sys.executable, "-m", "bootstream"]
    build = run(*bootstream, "build", reference, "-t", "debian", **store).strip()
    assert len(build) == 36
    run(*bootstream, "export", "debian", str(target), **store)
    return target


@pytest.fixture(scope="module")
def unpacked(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What umoci makes of the same image."""
    bundle = tmp_path_factory.mktemp("umoci") / "bundle"
    rootless = ["--rootless"] if os.geteuid() != 0 else []
    layout = debian_layout(images)
    run("umoci", "unpack", *rootless, "--image", f"{layout}:bookworm", str(bundle))
    return bundle / "rootfs"


def tree_of_folder(root: Path) -> Tree:
    """Everything below ``root``: kind, mode, owner, times, links, content, xattrs."""
    tree: Tree = {}
    inodes: dict[int, list[bytes]] = {}
    top = os.fsencode(root)
    for folder, folders, files in os.walk(top):
        for name in folders + files:
            path = os.path.join(folder, name)
            status = os.lstat(path)
            key = path[len(top) + 1 :]
            if not stat.S_ISDIR(status.st_mode):
                inodes.setdefault(status.st_ino, []).append(key)
            tree[key] = (
                status.st_mode,
                status.st_uid,
                status.st_gid,
                status.st_rdev
                if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode)
                else 0,
                int(status.st_mtime),
                content(path, status),
                tuple(
                    sorted((n, os.getxattr(path, n, follow_symlinks=False)) for n in xattrs(path))
                ),
            )
    return with_links(tree, inodes)


def xattrs(path: bytes) -> list[str]:
    return [
        n for n in os.listxattr(path, follow_symlinks=False) if not n.startswith("user.rootless")
    ]


def content(path: bytes, status: os.stat_result) -> object:
    if stat.S_ISLNK(status.st_mode):
        return os.readlink(path)
    if stat.S_ISREG(status.st_mode):
        with open(path, "rb") as file:
            return status.st_size, hashlib.file_digest(file, "sha256").hexdigest()
    return None


def with_links(tree: Tree, inodes: dict[int, list[bytes]]) -> Tree:
    """Add to every name the names that share its inode."""
    for names in inodes.values():
        for name in names:
            tree[name] += (tuple(sorted(names)),)
    return tree


def tree_of_image(image: Path) -> Tree:
    """The same of a file system image, by our own reader."""
    tree: Tree = {}
    inodes: dict[int, list[bytes]] = {}
    with image.open("rb", buffering=0) as file:

        def read_at(buffer: memoryview, offset: int) -> None:
            assert os.preadv(file.fileno(), [buffer], offset) == len(buffer)

        system = Ext4FileSystem(read_at, image.stat().st_size)
        for path in system.walk():
            key = path.lstrip(b"/")
            status = system.stat(path, follow=False)
            kind = stat.S_IFMT(status.mode)
            if kind != stat.S_IFDIR:
                inodes.setdefault(status.inode, []).append(key)
            if kind == stat.S_IFLNK:
                data: object = system.readlink(path)
            elif kind == stat.S_IFREG:
                with system.open(path) as opened:
                    digest = hashlib.file_digest(opened, "sha256")
                data = status.size, digest.hexdigest()
            else:
                data = None
            device = status.rdev if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0
            times = status.mtime_ns // 10**9
            attributes = tuple(sorted(system.xattrs(path, follow=False).items()))
            tree[key] = (status.mode, status.uid, status.gid, device, times, data, attributes)
    return with_links(tree, inodes)


def differences(ours: Tree, theirs: Tree) -> Sequence[object]:
    names = sorted(ours.keys() | theirs.keys())
    return [(n, ours.get(n), theirs.get(n)) for n in names if ours.get(n) != theirs.get(n)][:5]


def comparable(tree: Tree) -> Tree:
    """What two unpackings of one image must agree on, as far as this user may see it."""
    tree = {name: entry for name, entry in tree.items() if name != b"lost+found"}
    if os.geteuid() == 0:
        return tree
    # A rootless unpacking has no owners and capabilities, and empty files for devices.
    empty = (0, hashlib.sha256().hexdigest())
    return {
        name: (stat.S_IFMT(e[0]), *e[4:6])  # type: ignore[arg-type]  # the mode
        for name, e in tree.items()
        if stat.S_IFMT(e[0]) in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)  # type: ignore[arg-type]
        and e[5] != empty
    }


def test_file_system_is_clean(exported: Path) -> None:
    """e2fsck finds nothing to say."""
    run("e2fsck", "-fn", str(exported))


def test_tree_is_what_umoci_unpacks(exported: Path, unpacked: Path) -> None:
    """Content, owners, modes, times, xattrs, links and devices, by our reader."""
    ours, theirs = comparable(tree_of_image(exported)), comparable(tree_of_folder(unpacked))
    assert len(ours) > 5000
    assert differences(ours, theirs) == []


def test_kernel_sees_the_same_tree(exported: Path, unpacked: Path, tmp_path: Path) -> None:
    """The kernel mounts it and agrees; an ordinary user asks debugfs instead."""
    if os.geteuid() != 0:
        listing = run("debugfs", "-R", "ls -p /app", str(exported))
        assert "/becomes-dir/" in listing
        return
    run("mount", "-o", "loop,ro,nosuid,nodev,noload", str(exported), str(tmp_path))
    try:
        assert (
            differences(comparable(tree_of_folder(tmp_path)), comparable(tree_of_folder(unpacked)))
            == []
        )
    finally:
        run("umount", str(tmp_path))


def test_another_day_gives_the_same_bytes(exported: Path, reference: str, tmp_path: Path) -> None:
    """Another store, scratch folder, user mask, time zone and clock: the same image."""
    store = {
        "LOCAL_TEMPLATE_STORAGE_BASE_PATH": str(tmp_path / "t"),
        "BOOTSTREAM_CACHE_DIR": str(tmp_path / "c"),
        "TZ": "Asia/Tokyo",
        "PYTHONHASHSEED": "7",
    }
    other_day = [sys.executable, "-c", OTHER_DAY]
    run(*other_day, "build", reference, "-t", "debian", **store)
    run(*other_day, "export", "debian", str(tmp_path / "image"), **store)
    assert digest(tmp_path / "image") == digest(exported)


OTHER_DAY = """
import os, sys, time
os.umask(0o77)
real, real_ns = time.time, time.time_ns
time.time = lambda: real() + 40 * 86400
time.time_ns = lambda: real_ns() + 40 * 86400 * 10**9
from bootstream.cli import main
main()
"""


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def test_one_file_change_stores_little(
    exported: Path, images: Path, store: dict[str, str], tmp_path: Path
) -> None:
    """A rebuild after a change in the top layer stores under two hundredths anew."""
    del exported  # the first build is the parent
    layout = tmp_path / "changed"
    layers = [images / "base.tar", images / "2.tar", images / "3.tar"]
    changed = top_layer(tmp_path, message=b"version 2, a little longer\n" * 500)
    assemble(layout, [*layers, changed])
    bootstream = [sys.executable, "-m", "bootstream"]
    first = show(store, "debian")
    run(*bootstream, "build", f"oci:{layout}:bookworm", "-t", "debian:next", **store)
    second = show(store, "debian:next")
    assert second["parent"] == first["build_id"]
    assert second["stored"] < first["stored"] * 0.02


def show(store: dict[str, str], name: str) -> dict[str, Any]:
    shown: dict[str, Any] = json.loads(
        run(sys.executable, "-m", "bootstream", "show", name, "--json", **store)
    )
    artifact = shown["artifacts"]["rootfs.ext4"]
    return shown | {"stored": artifact["stored_size"]}
