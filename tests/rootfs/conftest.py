"""Making images, having them judged, and reading them back, for the tests of this folder."""

from __future__ import annotations

import io
import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest

from bootstream.progress import NO_PROGRESS, Progress
from bootstream.rootfs import Ext4Options, Ext4Summary, build_ext4
from bootstream.rootfs.ext4 import Ext4FileSystem
from bootstream.testing.images import LayerBuilder

Tree = dict[bytes, tuple[object, ...]]


def run(*command: str) -> str:
    """Run a program that must succeed; return what it says."""
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=29)
    assert result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"
    return result.stdout


def opener(layer: LayerBuilder | bytes) -> Callable[[], io.BytesIO]:
    data = layer if isinstance(layer, bytes) else layer.finish()
    return lambda: io.BytesIO(data)


class Make(Protocol):
    """Builds, has e2fsck judge, returns the path; ``make.summary`` is of the last image."""

    summary: Ext4Summary

    def __call__(
        self,
        *layers: LayerBuilder | bytes,
        name: str = "image",
        seed: str = "s",
        progress: Progress = NO_PROGRESS,
        check: bool = True,
        **options: Any,
    ) -> Path: ...


class _Make:
    summary: Ext4Summary

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(
        self,
        *layers: LayerBuilder | bytes,
        name: str = "image",
        seed: str = "s",
        progress: Progress = NO_PROGRESS,
        check: bool = True,
        **options: Any,
    ) -> Path:
        path = self._folder / name
        openers = [opener(layer) for layer in layers]
        self.summary = build_ext4(openers, path, Ext4Options(**options), progress, seed=seed)
        if check:
            judge(path)
        return path


def judge(image: Path) -> None:
    """e2fsck finds nothing to say, and would not reorder a directory either."""
    said = run("e2fsck", "-fn", str(image))
    assert "Pass 3A" not in said, said
    assert "Fix" not in said, said


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return _Make(tmp_path)


@pytest.fixture
def read_tree() -> Callable[[Path], Tree]:
    return tree_of


def tree_of(image: Path) -> Tree:
    """Everything below the root, by our reader: mode, owner, device, time, data, xattrs, links."""
    tree: Tree = {}
    names: dict[int, list[bytes]] = {}
    with image.open("rb", buffering=0) as file:

        def read_at(buffer: memoryview, offset: int) -> None:
            assert os.preadv(file.fileno(), [buffer], offset) == len(buffer)

        system = Ext4FileSystem(read_at, image.stat().st_size)
        for path in system.walk():
            status = system.stat(path, follow=False)
            kind = stat.S_IFMT(status.mode)
            data: object = None
            if kind == stat.S_IFLNK:
                data = system.readlink(path)
            elif kind == stat.S_IFREG:
                with system.open(path) as opened:
                    data = opened.read()
            if kind != stat.S_IFDIR:
                names.setdefault(status.inode, []).append(path)
            tree[path] = (
                status.mode,
                status.uid,
                status.gid,
                status.rdev if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0,
                status.mtime_ns,
                data,
                tuple(sorted(system.xattrs(path, follow=False).items())),
            )
    for group in names.values():
        for name in group:
            tree[name] += (tuple(sorted(group)),)
    return tree


Mounted = Callable[[Path], AbstractContextManager[Path]]


@pytest.fixture
def mounted(tmp_path: Path) -> Mounted:
    """The kernel's view; a test that asks for it goes without where it is not root."""

    @contextmanager
    def mount(image: Path) -> Iterator[Path]:
        target = tmp_path / "mounted"
        target.mkdir(exist_ok=True)
        run("mount", "-o", "loop,ro,nosuid,nodev", str(image), str(target))
        try:
            yield target
        finally:
            run("umount", str(target))

    return mount
