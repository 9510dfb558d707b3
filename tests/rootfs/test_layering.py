"""Layers over layers, against a model that computes them another way."""

from __future__ import annotations

import io
import stat
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bootstream.errors import InvalidInput
from bootstream.progress import NO_PROGRESS
from bootstream.rootfs import Ext4Options, build_ext4
from bootstream.rootfs.ext4 import Ext4FileSystem
from bootstream.testing.images import LayerBuilder

Tree = dict[bytes, tuple[object, ...]]
ReadTree = Callable[[Path], Tree]
Make = Callable[..., Path]


@dataclass(eq=False)
class Entry:
    """What a path holds; hard links share one."""

    kind: int
    mode: int
    data: bytes = b""


class Model:
    """Each layer becomes a map of its own, merged over the lower one at its end."""

    def __init__(self) -> None:
        self.lower: dict[str, Entry] = {}
        self.begin()

    def begin(self) -> None:
        self.upper: dict[str, Entry] = {}
        self.gone: set[str] = set()  # with everything below
        self.emptied: set[str] = set()  # everything below only

    def end(self) -> None:
        merged = {p: e for p, e in self.lower.items() if not self.hidden(p)} | self.upper
        for path in list(merged):
            for parent in parents(path):
                merged.setdefault(parent, Entry(stat.S_IFDIR, 0o755))
        self.lower = merged
        self.begin()

    def hidden(self, path: str) -> bool:
        above = parents(path)
        return any(p in self.gone for p in [path, *above]) or any(p in self.emptied for p in above)

    def visible(self, path: str) -> Entry | None:
        found = self.upper.get(path)
        if found is None and not self.hidden(path):
            found = self.lower.get(path)
        if found is None and any(path in parents(p) for p in self.upper):
            return Entry(stat.S_IFDIR, 0o755)
        return found

    def possible(self, path: str) -> bool:
        return all(
            (entry := self.visible(p)) is None or entry.kind == stat.S_IFDIR for p in parents(path)
        )

    def put(self, path: str, entry: Entry) -> None:
        if entry.kind != stat.S_IFDIR:
            self.gone.add(path)
            for below in [p for p in self.upper if path in parents(p)]:
                del self.upper[below]
        self.upper[path] = entry


def parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:n]) for n in range(1, len(parts))]


PATHS = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map("/".join)
OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["file", "file", "folder", "link", "symlink", "whiteout", "opaque"]),
        PATHS,
        PATHS,
        st.sampled_from([0o644, 0o755, 0o4711, 0o1777, 0o600]),
    ),
    max_size=12,
)


def play(model: Model, layer: LayerBuilder, step: tuple[str, str, str, int], serial: int) -> None:
    verb, path, other, mode = step
    if verb in ("whiteout", "opaque"):
        if not model.possible(path):
            return
        if verb == "whiteout":
            layer.whiteout(path)
            if path not in model.upper:
                model.gone.add(path)
            else:
                model.emptied.add(path)
        else:
            entry = model.visible(path)
            if entry is not None and entry.kind != stat.S_IFDIR:
                return
            layer.opaque(path)
            model.emptied.add(path)
        return
    if not model.possible(path):
        return
    if verb == "file":
        data = b"%d" % serial
        layer.file(path, data, mode=mode)
        model.put(path, Entry(stat.S_IFREG, mode, data))
    elif verb == "folder":
        layer.folder(path, mode=mode)
        model.put(path, Entry(stat.S_IFDIR, mode))
    elif verb == "symlink":
        target = f"nowhere{serial}"
        layer.link(path, target)
        model.put(path, Entry(stat.S_IFLNK, 0o777, target.encode()))
    else:
        target_entry = model.visible(other) if model.possible(other) else None
        if target_entry is None or target_entry.kind == stat.S_IFDIR or path in parents(other):
            return
        layer.link(path, other, hard=True)
        model.put(path, target_entry)


def seen(tree: Tree) -> dict[str, tuple[object, ...]]:
    """The reader's tree as far as the model knows one."""
    found: dict[str, tuple[object, ...]] = {}
    for path, entry in tree.items():
        mode = entry[0]
        assert isinstance(mode, int)
        links = entry[7] if len(entry) > 7 else ()
        found[path.decode()[1:]] = (mode, entry[5] or b"", links)
    del found["lost+found"]
    return found


def expected(model: Model) -> dict[str, tuple[object, ...]]:
    result: dict[str, tuple[object, ...]] = {}
    for path, entry in model.lower.items():
        links: tuple[bytes, ...] = ()
        if entry.kind != stat.S_IFDIR:
            names = sorted(p for p, e in model.lower.items() if e is entry)
            links = tuple(f"/{p}".encode() for p in names)
        result[path] = (entry.kind | entry.mode, entry.data, links)
    return result


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(OPERATIONS, min_size=1, max_size=4))
def test_any_layers_give_what_the_model_says(
    read_tree: ReadTree, layers: list[list[tuple[str, str, str, int]]]
) -> None:
    """Random members, whiteouts, opaque directories and links over several layers."""
    model = Model()
    openers = []
    for number, steps in enumerate(layers):
        builder = LayerBuilder()
        for index, step in enumerate(steps):
            play(model, builder, step, number * 100 + index)
        model.end()
        data = builder.finish()
        openers.append(lambda data=data: io.BytesIO(data))
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "image"
        options = Ext4Options(size=4 << 20, block_size=1024)
        build_ext4(openers, image, options, NO_PROGRESS, seed="s")
        assert seen(read_tree(image)) == expected(model)
        result = subprocess.run(
            ["e2fsck", "-fn", str(image)], capture_output=True, check=False, timeout=20
        )
        assert result.returncode == 0, result.stdout


def names(tree: Tree) -> set[bytes]:
    return {path for path in tree if path != b"/lost+found"}


def test_opaque_hides_lower_entries_only(make: Make, read_tree: ReadTree) -> None:
    """Wherever it stands among its layer's members, what the layer itself sets stays."""
    lower = LayerBuilder().folder("d", uid=5).file("d/old", b"1").file("d/s/old", b"2")
    for position in range(4):
        upper = LayerBuilder()
        for index in range(4):
            if index == position:
                upper.opaque("d")
            if index == 0:
                upper.file("d/new", b"n")
            elif index == 1:
                upper.file("d/s/new", b"n")
            elif index == 2:
                upper.folder("d", mode=0o700, uid=7)
        tree = read_tree(make(lower, upper))
        assert names(tree) == {b"/d", b"/d/new", b"/d/s", b"/d/s/new"}
        assert tree[b"/d"][0] == stat.S_IFDIR | 0o700
        assert tree[b"/d"][1] == 7


def test_whiteout_edge_cases(make: Make, read_tree: ReadTree) -> None:
    """Of nothing, in a missing directory, of a name the layer sets, AUFS's own lists."""
    lower = LayerBuilder().file("gone").file("stays").file("d/x").file(".wh", b"plain name")
    upper = (
        LayerBuilder()
        .whiteout("gone")
        .whiteout("never")
        .whiteout("missing/folder/name")
        .whiteout("stays/below/a/file")
        .opaque("stays")
        .file("stays", b"new")
        .whiteout("stays")
        .whiteout("d")
        .file(".wh..wh.plnk/1.2", b"")
        .file(".wh..wh.aufs", b"")
    )
    tree = read_tree(make(lower, upper))
    assert names(tree) == {b"/stays", b"/.wh"}
    assert tree[b"/stays"][5] == b"new"
    for bad in (b".wh.", b".wh..", b".wh..."):
        with pytest.raises(InvalidInput, match="whiteout"):
            make(LayerBuilder().file(b"d/" + bad))


def test_whiteouts_of_everything(make: Make, read_tree: ReadTree) -> None:
    """Of the whole root, of the longest name, of lost+found, which ext4 wants back."""
    lower = LayerBuilder().file("n" * 255).folder("d").file("d/x").folder("lost+found", uid=5)
    tree = read_tree(make(lower, LayerBuilder().whiteout("n" * 255)))
    assert names(tree) == {b"/d", b"/d/x"}
    assert tree[b"/lost+found"][1] == 5
    tree = read_tree(make(lower, LayerBuilder().opaque("").file("only")))
    assert names(tree) == {b"/only"}
    tree = read_tree(make(lower, LayerBuilder().whiteout("lost+found")))
    assert tree[b"/lost+found"][:2] == (stat.S_IFDIR | 0o700, 0)


def test_paths_are_cleaned_as_runtimes_do(make: Make, read_tree: ReadTree) -> None:
    """``./x``, ``/x``, ``x//y/``, ``a/../b``; the root's own member sets its metadata."""
    layer = (
        LayerBuilder()
        .folder("./", mode=0o711, uid=3)
        .file("./one", b"1")
        .file("/two", b"2")
        .file("d//three", b"3")
        .file("e/../four", b"4")
        .file("...", b"5")
    )
    image = make(layer)
    assert names(read_tree(image)) == {b"/one", b"/two", b"/d", b"/d/three", b"/four", b"/..."}
    data = image.read_bytes()

    def read_at(buffer: memoryview, offset: int) -> None:
        buffer[:] = data[offset : offset + len(buffer)]

    root = Ext4FileSystem(read_at, len(data)).stat(b"/")
    assert (root.mode & 0o7777, root.uid) == (0o711, 3)


def test_symlinked_parents_stay_inside(make: Make, read_tree: ReadTree) -> None:
    """Absolute and relative links, links out of the image, links to what is missing yet."""
    lower = (
        LayerBuilder()
        .folder("usr/lib")
        .link("lib", "usr/lib")
        .link("abs", "/usr")
        .link("out", "../../../../usr")
        .link("later", "var/later")
        .link("loop", "loop")
    )
    upper = (
        LayerBuilder()
        .file("lib/a", b"a")
        .file("abs/lib/b", b"b")
        .file("out/c", b"c")
        .file("later/d", b"d")
        .link("hard", "lib/a", hard=True)
        .link("link-itself", "lib", hard=True)
    )
    tree = read_tree(make(lower, upper))
    for path, data in {
        b"/usr/lib/a": b"a",
        b"/usr/lib/b": b"b",
        b"/usr/c": b"c",
        b"/var/later/d": b"d",
        b"/hard": b"a",
        b"/link-itself": b"usr/lib",
    }.items():
        assert tree[path][5] == data
    assert tree[b"/hard"][7] == (b"/hard", b"/usr/lib/a")
    with pytest.raises(InvalidInput, match="symbolic links"):
        make(lower, LayerBuilder().file("loop/x"))
    tree = read_tree(make(lower, LayerBuilder().folder("lib").file("lib/own")))
    assert b"/lib/own" in tree  # a directory in the place of the link, which is not followed


def test_hard_link_outlives_its_first_name(make: Make, read_tree: ReadTree) -> None:
    """Within and across layers; a link to a symlink is one to the symlink itself."""
    data = b"x" * 200_000
    one = LayerBuilder().file("a", data, uid=9).link("b", "a", hard=True).link("s", "a")
    two = LayerBuilder().whiteout("a").link("c", "b", hard=True).link("t", "s", hard=True)
    tree = read_tree(make(one, two))
    assert names(tree) == {b"/b", b"/c", b"/s", b"/t"}
    assert tree[b"/c"] == tree[b"/b"]
    assert tree[b"/c"][5] == data
    assert tree[b"/t"][7] == (b"/s", b"/t")


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (LayerBuilder().file("../x"), ["outside", "../x"]),
        (LayerBuilder().file("a/../../x"), ["outside", "a/../../x"]),
        (LayerBuilder().link("l", "../../etc/x", hard=True), ["outside", "l"]),
        (LayerBuilder().link("l", "missing", hard=True), ["missing", "'l'", "not there"]),
        (LayerBuilder().folder("d").link("l", "d", hard=True), ["directory", "'l'"]),
        (LayerBuilder().file("f").file("f/x"), ["not a directory", "f/x"]),
        (LayerBuilder().file("n" * 256), ["255"]),
        (LayerBuilder().file("/".join(["d"] * 300)), ["max_depth"]),
        (LayerBuilder().file("/".join(["d"] * 3000)), ["max_path"]),
        (LayerBuilder().file("./"), ["root"]),
        (LayerBuilder().link("l", ""), ["symbolic link to nothing"]),
        (LayerBuilder().link("l", "x" * 4096), ["4095 at most"]),
        (LayerBuilder().file("x", uid=1 << 32), ["32 bits"]),
        (LayerBuilder().file("lost+found"), ["lost+found"]),
        (LayerBuilder().file("x", xattrs={"user.big": b"v" * 5000}), ["extended attributes", "x"]),
    ],
)
def test_what_is_refused_is_named(make: Make, layer: LayerBuilder, words: list[str]) -> None:
    """The message has the member and the reason; nothing is left behind."""
    with pytest.raises(InvalidInput) as caught:
        make(layer)
    text = f"{caught.value} {caught.value.remedy}"
    assert all(word in text for word in words), text
