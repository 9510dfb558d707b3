"""Container layers to ext4: ours next to unpacking and ``mkfs.ext4 -d``, and to ``debugfs``.

Every way starts from the same OCI layout with compressed layers and ends with an image of
the same size; each run is a process of its own, and the least of several counts. Needs
root: only root unpacks owners and devices. Two images: a real Debian of four layers, and
one of 100,000 small files. Also shown: how many of a rebuild's 64 KiB chunks are new after
one file changed in the top layer.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from memory import peak_memory

from bootstream.images import BlobCache, resolve
from bootstream.progress import NO_PROGRESS
from bootstream.rootfs import Ext4Options, build_ext4
from bootstream.testing.debian import assemble, debian_layout, top_layer
from bootstream.testing.images import LayerBuilder, write_layout

CHUNK = 65536


def build(reference: str, target: Path) -> None:
    """Build, and say how long the build alone took and how much memory the process had."""
    image = resolve(reference, cache=BlobCache(target.parent / "cache"))
    start = time.perf_counter()
    build_ext4(
        [layer.open for layer in image.layers],
        target,
        Ext4Options(),
        NO_PROGRESS,
        seed=",".join(layer.diff_id for layer in image.layers),
    )
    seconds = time.perf_counter() - start
    json.dump({"build": seconds, "memory": peak_memory()}, sys.stdout)


def run(*command: str, stdin: bytes | None = None) -> str:
    result = subprocess.run(command, input=stdin, capture_output=True, check=False)
    if result.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{result.stdout.decode()}{result.stderr.decode()}")
    return result.stdout.decode("utf-8", "replace")


def ours(layout: Path, tag: str, folder: Path) -> dict[str, float]:
    said = run(sys.executable, __file__, "--build", f"oci:{layout}:{tag}", str(folder / "ours"))
    return dict(json.loads(said))


def mkfs(tree: Path | None, image: Path, size: tuple[int, int]) -> None:
    """Make an image of so many bytes and inodes."""
    with image.open("wb") as file:
        file.truncate(size[0])
    populate = ["-d", str(tree)] if tree else []
    run("mkfs.ext4", "-q", "-F", "-m", "0", "-N", str(size[1]), *populate, str(image))


def umoci(layout: Path, tag: str, folder: Path, size: tuple[int, int]) -> None:
    run("umoci", "unpack", "--image", f"{layout}:{tag}", str(folder / "bundle"))
    mkfs(folder / "bundle/rootfs", folder / "umoci", size)


def blobs(layout: Path, tag: str) -> list[Path]:
    index = json.loads((layout / "index.json").read_bytes())
    for entry in index["manifests"]:
        if entry["annotations"]["org.opencontainers.image.ref.name"] == tag:
            manifest = json.loads(blob(layout, entry["digest"]).read_bytes())
            return [blob(layout, layer["digest"]) for layer in manifest["layers"]]
    sys.exit(f"no tag {tag} in {layout}")


def blob(layout: Path, digest: str) -> Path:
    return layout / "blobs" / digest.replace(":", "/")


def tar(layout: Path, tag: str, folder: Path, size: tuple[int, int]) -> None:
    """What is least: tar knows no whiteouts nor files over directories; it fails on a few."""
    tree = folder / "tree"
    tree.mkdir()
    for layer in blobs(layout, tag):
        flags = ["--xattrs", "--xattrs-include=*", "--overwrite"]
        command = ["tar", "-xzpf", str(layer), "-C", str(tree), "--numeric-owner", *flags]
        subprocess.run(command, capture_output=True, check=False)
    mkfs(tree, folder / "tar", size)


def debugfs(layout: Path, tag: str, folder: Path, size: tuple[int, int]) -> None:
    """An empty file system, and one script that puts everything in."""
    run("umoci", "unpack", "--image", f"{layout}:{tag}", str(folder / "bundle"))
    mkfs(None, folder / "debugfs", size)
    root = os.fsencode(folder / "bundle/rootfs")
    lines: list[bytes] = []
    for parent, folders, files in os.walk(root):
        inside = parent[len(root) :] or b"/"
        lines.append(b'cd "%s"' % inside)
        for name in folders + files:
            lines += commands(parent, name)
    script = folder / "script"
    script.write_bytes(b"\n".join(lines) + b"\n")
    run("debugfs", "-w", "-f", str(script), str(folder / "debugfs"))


def commands(parent: bytes, name: bytes) -> list[bytes]:
    path = os.path.join(parent, name)
    status = os.lstat(path)
    kind = stat.S_IFMT(status.st_mode)
    if kind == stat.S_IFDIR:
        first = b'mkdir "%s"' % name
    elif kind == stat.S_IFLNK:
        first = b'symlink "%s" "%s"' % (name, os.readlink(path))
    elif kind == stat.S_IFREG:
        first = b'write "%s" "%s"' % (path, name)
    elif kind == stat.S_IFIFO:
        first = b'mknod "%s" p' % name
    else:
        letter = b"c" if kind == stat.S_IFCHR else b"b"
        numbers = os.major(status.st_rdev), os.minor(status.st_rdev)
        first = b'mknod "%s" %s %d %d' % (name, letter, *numbers)
    fields = {b"mode": b"0%o" % status.st_mode, b"uid": b"%d" % status.st_uid}
    fields |= {b"gid": b"%d" % status.st_gid, b"mtime": b"@%d" % int(status.st_mtime)}
    return [first, *(b'sif "%s" %s %s' % (name, key, value) for key, value in fields.items())]


def synthetic(folder: Path, files: int) -> Path:
    """An image of so many small files in a thousandth of the directories."""
    layout = folder / f"small-{files}"
    if not layout.exists():
        chance = random.Random(1)
        layer = LayerBuilder()
        for number in range(files):
            place = f"srv/d{number // 100:04}"
            if number % 100 == 0:
                layer.folder(place)
            layer.file(
                f"{place}/f{number % 100:02}.txt", chance.randbytes(chance.randint(50, 4000))
            )
        making = folder / "making-small"
        shutil.rmtree(making, ignore_errors=True)
        write_layout(making, [layer.finish()], tag="small")
        making.rename(layout)
    return layout


def changed(images: Path, folder: Path) -> Path:
    layers = [images / "base.tar", images / "2.tar", images / "3.tar"]
    top = top_layer(folder, message=b"version 2, a little longer\n" * 500)
    assemble(folder / "changed", [*layers, top])
    return folder / "changed"


def chunks(image: Path) -> dict[bytes, int]:
    found: dict[bytes, int] = {}
    zero = bytes(CHUNK)
    with image.open("rb") as file:
        while data := file.read(CHUNK):
            if data != zero[: len(data)]:
                digest = hashlib.sha256(data).digest()
                found[digest] = found.get(digest, 0) + 1
    return found


def least(call: Callable[[Path], object], runs: int, scratch: Path) -> tuple[float, object]:
    """Return the least seconds of several runs, each in an empty folder, and what it gave."""
    best: tuple[float, object] | None = None
    for _ in range(runs):
        folder = Path(tempfile.mkdtemp(dir=scratch))
        start = time.perf_counter()
        result = call(folder)
        seconds = time.perf_counter() - start
        shutil.rmtree(folder)
        if best is None or seconds < best[0]:
            best = seconds, result
    assert best is not None
    return best


def compare(
    layout: Path, tag: str, arguments: argparse.Namespace, scratch: Path
) -> dict[str, object]:
    folder = Path(tempfile.mkdtemp(dir=scratch))
    ours(layout, tag, folder)
    with (folder / "ours").open("rb") as file:
        inodes = int.from_bytes(file.read(1028)[1024:], "little")
    size = (folder / "ours").stat().st_size, inodes
    shutil.rmtree(folder)
    seconds, details = least(lambda f: ours(layout, tag, f), arguments.runs, scratch)
    assert isinstance(details, dict)
    result: dict[str, object] = {"ours": seconds, **details}
    peers = {"umoci": umoci, "tar": tar, "debugfs": debugfs}
    for name in arguments.peers:
        peer = peers[name]
        call = partial(peer, layout, tag, size=size)
        result[name], _ = least(call, arguments.runs, scratch)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, default=Path("/tmp/bootstream-test-images"))
    parser.add_argument("--scratch", type=Path, help="where images are made; a fast disk")
    parser.add_argument("--files", type=int, default=100_000, help="of the synthetic image")
    parser.add_argument("--runs", type=int, default=2, help="the least counts")
    parser.add_argument("--only", choices=["debian", "small"], help="one image")
    parser.add_argument("--peers", nargs="*", default=["umoci", "tar", "debugfs"])
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--build", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.build:
        build(arguments.build[0], Path(arguments.build[1]))
        return
    if os.geteuid() != 0:
        sys.exit("needs root: unpacking keeps owners and devices for root only")
    report: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as name:
        scratch = Path(name)
        if arguments.only != "small":
            layout = debian_layout(arguments.images)
            report["debian"] = compare(layout, "bookworm", arguments, scratch)
            before, after = (folder_of(scratch, n) for n in ("before", "after"))
            ours(layout, "bookworm", before)
            ours(changed(arguments.images, scratch), "bookworm", after)
            old, new = chunks(before / "ours"), chunks(after / "ours")
            report["debian"]["chunks"] = sum(new.values())
            report["debian"]["new_chunks"] = sum(n for key, n in new.items() if key not in old)
        if arguments.only != "debian":
            layout = synthetic(arguments.images, arguments.files)
            report["small"] = compare(layout, "small", arguments, scratch)
    if arguments.json:
        json.dump(report, sys.stdout, indent=2)
        return
    for image, result in report.items():
        show(image, result)


def folder_of(scratch: Path, name: str) -> Path:
    (scratch / name).mkdir()
    return scratch / name


def show(image: str, result: dict[str, object]) -> None:
    base = float(str(result["ours"]))
    print(f"{image}: ours {base:.2f} s, of which {result['build']:.2f} s are the build; ", end="")
    print(f"peak memory {float(str(result['memory'])) / (1 << 20):.0f} MiB")
    labels = {
        "umoci": "umoci unpack + mkfs.ext4 -d",
        "tar": "tar -x + mkfs.ext4 -d",
        "debugfs": "umoci unpack + mkfs.ext4 + debugfs script",
    }
    for name, label in labels.items():
        if name in result:
            seconds = float(str(result[name]))
            print(f"  {label}: {seconds:.2f} s; ours takes {base / seconds:.2f} of it")
    if "chunks" in result:
        new, total = int(str(result["new_chunks"])), int(str(result["chunks"]))
        print(f"  after one file changed: {new} of {total} chunks are new, {new / total:.2%}")


if __name__ == "__main__":
    main()
