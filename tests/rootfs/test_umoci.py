"""Random layers, with links in their paths, unpacked by umoci and by us."""

from __future__ import annotations

import io
import os
import random
import stat
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from bootstream.errors import InvalidInput
from bootstream.progress import NO_PROGRESS
from bootstream.rootfs import Ext4Options, build_ext4
from bootstream.testing.images import LayerBuilder, write_layout

Tree = dict[bytes, tuple[object, ...]]
SEEDS = 120
ROOTLESS = ["--rootless"] if os.geteuid() != 0 else []


def random_layers(seed: int) -> list[LayerBuilder]:
    chance = random.Random(seed)

    def path() -> str:
        return "/".join(chance.choice("abc") for _ in range(chance.randint(1, 3)))

    layers = []
    for _ in range(chance.randint(1, 3)):
        layer = LayerBuilder()
        for _ in range(chance.randint(1, 7)):
            verb = chance.choice(["file", "file", "folder", "folder", "symlink", "hard", "hide"])
            name, other = path(), path()
            if verb == "file":
                mode = chance.choice([0o644, 0o711])
                layer.file(name, b"%d" % chance.randrange(99), mode=mode)
            elif verb == "folder":
                layer.folder(name)
            elif verb == "symlink":
                layer.link(name, chance.choice(["/", "", "../", "../../../"]) + other)
            elif verb == "hard" and chance.random() < 0.3:
                layer.link(name, other, hard=True)
            elif chance.random() < 0.5:
                layer.whiteout(name)
            else:
                layer.opaque(name)
        layers.append(layer)
    return layers


def tree_of_folder(root: Path) -> dict[bytes, tuple[object, ...]]:
    tree: dict[bytes, tuple[object, ...]] = {}
    names: dict[int, list[bytes]] = {}
    for path in root.rglob("*"):
        status = path.lstat()
        key = b"/" + os.fsencode(path.relative_to(root))
        if stat.S_ISDIR(status.st_mode):
            tree[key] = (stat.S_IFDIR,)
            continue
        data = os.fsencode(path.readlink()) if path.is_symlink() else path.read_bytes()
        tree[key] = (status.st_mode, data)
        names.setdefault(status.st_ino, []).append(key)
    for group in names.values():
        for name in group:
            tree[name] += (tuple(sorted(group)),)
    return tree


def comparable(tree: Tree) -> Tree:
    """Of directories the kind alone: umoci lets order decide of parents that nobody described."""
    found: Tree = {}
    for path, entry in tree.items():
        mode = entry[0]
        assert isinstance(mode, int)
        if path != b"/lost+found":
            found[path] = (stat.S_IFDIR,) if stat.S_ISDIR(mode) else (mode, entry[5], entry[7])
    return found


@pytest.mark.parametrize("part", range(4))
def test_umoci_unpacks_the_same(
    part: int, tmp_path: Path, read_tree: Callable[[Path], Tree]
) -> None:
    """The same tree, or both refuse."""
    agreed = 0
    for seed in range(part * SEEDS // 4, (part + 1) * SEEDS // 4):
        layers = random_layers(seed)
        folder = tmp_path / str(seed)
        write_layout(folder / "layout", layers, tag="t", compression="none")
        unpacked = subprocess.run(
            ["umoci", "unpack", *ROOTLESS, "--image", f"{folder}/layout:t", f"{folder}/bundle"],
            capture_output=True,
            check=False,
            timeout=20,
        )
        openers = [partial(io.BytesIO, layer.finish()) for layer in layers]
        image = folder / "image"
        try:
            build_ext4(openers, image, Ext4Options(size=4 << 20), NO_PROGRESS, seed="")
        except InvalidInput as error:
            assert unpacked.returncode != 0, (seed, error)  # noqa: PT017 - both may be fine
            continue
        assert unpacked.returncode == 0, (seed, unpacked.stderr)
        agreed += 1
        expected = tree_of_folder(folder / "bundle/rootfs")
        assert comparable(read_tree(image)) == expected, seed
    assert agreed > SEEDS // 4 // 4
