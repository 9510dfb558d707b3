"""What the chunk size costs and saves, over real root file systems.

    sudo .venv/bin/python bench/chunk_size.py FOLDER [--include PACKAGES]

Makes a Debian with mmdebstrap in FOLDER (kept, and used again), an ext4 image of it with
``mkfs.ext4 -d``, and writes the image with every chunk size through the package's own
writer. Then, through the package's own reader over a store in memory that counts:

- ratio and speed by zstd level, in CPU time of the whole writer;
- random reads of 4 KiB, each alone: bytes fetched for one, CPU time to decode and check it;
- a start-up: all files of a few packages, each read in requests of 128 KiB as the kernel's
  read-ahead makes them, through a cache that forgets nothing; then the same known before;
- what a build stores anew after small changes, with the one before as its parent: with
  ``mkfs.ext4 -d``, and with the package's own ext4 writer and a layer that brings the changes.

Root is needed for the owners and devices in the image. docs/decisions/chunk-size.md has
the figures and what follows from them.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bootstream.chunks.index import Index
from bootstream.chunks.reader import ChunkReader, load_index
from bootstream.chunks.writer import ArtifactSummary, write_artifact
from bootstream.progress import NO_PROGRESS
from bootstream.rootfs import Ext4Options, build_ext4
from bootstream.storage.memory import MemoryStorageObject, MemoryStorageProvider
from bootstream.storage.protocol import WritableBuffer
from bootstream.testing.debian import EPOCH, debian_layout

KIB = 1 << 10
SIZES = [4 * KIB, 16 * KIB, 32 * KIB, 64 * KIB, 128 * KIB, 256 * KIB, 1024 * KIB]
LEVELS = [1, 3, 6]
BLOCK = 4096
READ_AHEAD = 128 * KIB
FIRST, SECOND = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"
STARTUP = ["libc6", "bash", "dash", "coreutils", "perl-base", "libsystemd0", "systemd", "udev",
           "python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib"]  # fmt: skip
UNUSED = ("usr/share/doc/", "usr/share/man/", "usr/share/locale/", "usr/share/lintian/")


class Counting(MemoryStorageProvider):
    """A store in memory that counts range requests and their bytes."""

    requests = 0
    fetched = 0

    def open_object(self, path: str) -> MemoryStorageObject:
        """Return a handle that counts."""
        return _Counted(self, path)

    def take(self) -> tuple[int, int]:
        """Return requests and bytes since the last time."""
        counts = self.requests, self.fetched
        self.requests = self.fetched = 0
        return counts


class _Counted(MemoryStorageObject):
    _provider: Counting

    def read_at(self, buffer: WritableBuffer, offset: int) -> int:
        count = super().read_at(buffer, offset)
        self._provider.requests += 1
        self._provider.fetched += count
        return count


@dataclass
class Image:
    """An ext4 image and the tree it is made of."""

    tree: Path
    path: Path

    def make(self) -> None:
        """Make the image of the tree as it is now; the same tree makes the same image."""
        used = int(_output("du", "-s", "--block-size=1M", str(self.tree)).split()[0])
        self.path.unlink(missing_ok=True)
        _output(
            "mkfs.ext4", "-q", "-d", str(self.tree), "-b", str(BLOCK), "-U", FIRST,
            "-E", f"hash_seed={SECOND},lazy_itable_init=0,root_owner=0:0", "-O", "^has_journal",
            str(self.path), f"{used * 5 // 4 + 64}M",
        )  # fmt: skip

    def reads(self) -> list[list[int]]:
        """The blocks of each read of the start-up, in order."""
        paths = [path for package in STARTUP for path in self._files(package)]
        commands = "\n".join(f'blocks "/{path}"' for path in paths) + "\n"
        script = self.path.with_suffix(".debugfs")
        script.write_text(commands)
        reads = []
        for line in _output("debugfs", "-f", str(script), str(self.path)).splitlines():
            if line.startswith("debugfs:"):
                continue
            blocks = [int(word) for word in line.split() if word.isdigit()]
            step = READ_AHEAD // BLOCK
            reads += [blocks[start : start + step] for start in range(0, len(blocks), step)]
        return [read for read in reads if read]

    def _files(self, package: str) -> Iterator[str]:
        for listing in sorted(self.tree.glob(f"var/lib/dpkg/info/{package}*.list")):
            if listing.name.split(".list")[0].split(":")[0] != package:
                continue
            for line in listing.read_text().splitlines():
                path = self.tree / line[1:]
                if not line[1:].startswith(UNUSED) and path.is_file() and not path.is_symlink():
                    yield str(path.resolve().relative_to(self.tree.resolve()))


def _output(*command: str) -> str:
    environment = os.environ | {"E2FSPROGS_FAKE_TIME": str(EPOCH)}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if result.returncode != 0:
        raise SystemExit(f"{' '.join(command)}: {result.stderr}")
    return result.stdout


def prepare(folder: Path, include: str) -> Image:
    debian_layout(folder, include=include)
    tree = folder / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir()
    _output("tar", "-x", "--numeric-owner", "-f", str(folder / "base.tar"), "-C", str(tree))
    image = Image(tree, folder / "image.ext4")
    image.make()  # reading sets access times, once
    image.make()
    return image


def publish(
    image: Path, size: int, level: int, *, parent: Index | None = None, threads: int = 2
) -> tuple[Counting, Index, ArtifactSummary, float]:
    storage, build = Counting(), FIRST if parent is None else SECOND
    start = time.process_time()
    summary = write_artifact(
        image, build_id=build, artifact="rootfs.ext4", storage=storage, parent=parent,
        chunk_size=size, level=level, threads=threads,
    )  # fmt: skip
    took = time.process_time() - start
    return storage, load_index(storage, build, "rootfs.ext4"), summary, took


def data_bytes(index: Index) -> int:
    """Bytes of the chunks that are not zeros."""
    zeros = sum(index.chunk_length(c) for c in range(index.chunk_count) if index.is_zero(c))
    return index.size - zeros


def levels(image: Image) -> None:
    data = data_bytes(publish(image.path, BLOCK, 1)[1])
    print(f"\nimage data {data / 1e6:.0f} MB. Ratio to it, and MB a CPU second, by level")
    print("chunk KiB  " + "  ".join(f"  level {level}   " for level in LEVELS))
    for size in SIZES:
        cells = []
        for level in LEVELS:
            _, _, summary, took = publish(image.path, size, level, threads=1)
            cells.append(f"{data / summary.stored_bytes:5.2f} {data / took / 1e6:6.0f}")
        print(f"{size // KIB:9}  " + "  ".join(cells))


def _get(reader: ChunkReader, chunks: list[int]) -> None:
    reader.fetch(chunks, _drop)


def _drop(chunk: int, data: bytes | memoryview) -> None:
    del chunk, data


def reading(image: Image, level: int) -> dict[int, Index]:
    reads = image.reads()
    wanted = sum(map(len, reads)) * BLOCK
    print(
        f"\nlevel {level}. Start-up: {len(reads)} reads of {wanted / 1e6:.0f} MB."
        " Requests: one a chunk; merged a read; all known before"
    )
    print(
        "chunk KiB  ratio  index kB | random 4 KiB: fetched kB    ms"
        " | start-up MB  chunks  merged  known"
    )
    indexes = {}
    data = data_bytes(publish(image.path, BLOCK, 1)[1])
    with image.path.open("rb") as file:
        used = [n for n in range(image.path.stat().st_size // BLOCK) if any(file.read(BLOCK))]
    for size in SIZES:
        storage, index, summary, _ = publish(image.path, size, level)
        indexes[size] = index
        reader, chosen = ChunkReader(storage, index), random.Random(1).choices(used, k=1000)
        storage.take()
        start = time.process_time()
        for block in chosen:
            _get(reader, [block * BLOCK // size])
        took = time.process_time() - start
        alone = storage.take()[1] / len(chosen)
        have: set[int] = set()
        for read in reads:
            touched = {block * BLOCK // size for block in read} - have
            _get(reader, sorted(chunk for chunk in touched if not index.is_zero(chunk)))
            have |= touched
        merged, fetched = storage.take()
        stored = sorted(chunk for chunk in have if not index.is_zero(chunk))
        _get(reader, stored)
        known = storage.take()[0]
        print(
            f"{size // KIB:9}  {data / summary.stored_bytes:5.2f}  {summary.index_size / 1e3:8.0f}"
            f" | {alone / 1e3:24.1f} {1000 * took / len(chosen):5.2f}"
            f" | {fetched / 1e6:11.1f}  {len(stored):6}  {merged:6}  {known:5}"
        )
    return indexes


def changes(image: Image, before: dict[int, Index], level: int) -> None:
    hostname = image.tree / "etc/hostname"
    files = (path for path in sorted(image.tree.glob("etc/*")) if not path.is_symlink())
    grown = next(path for path in files if path.is_file() and path.stat().st_size > BLOCK // 2)

    def rename() -> None:
        hostname.write_text("other\n")

    def grow() -> None:
        grown.write_bytes(grown.read_bytes() + b"x" * 8192)

    def add() -> None:
        (image.tree / "srv/new").write_bytes(random.Random(2).randbytes(1 << 20))

    steps = {
        "a small file changes": rename,
        "a file in /etc grows by 8 KiB": grow,
        "1 MiB is added in /srv": add,
    }
    print("\nmkfs.ext4 -d: kB stored anew, pack + index, by changes on top of each other")
    print("chunk KiB  " + "  ".join(f"{name:>30}" for name in steps))
    rows: dict[int, list[str]] = {size: [] for size in SIZES}
    parents = dict(before)
    for change in steps.values():
        change()
        image.make()
        for size in SIZES:
            _, index, summary, _ = publish(image.path, size, level, parent=parents[size])
            parents[size] = index
            anew = f"{summary.stored_bytes / 1e3:.0f} + {summary.index_size / 1e3:.0f}"
            rows[size].append(f"{anew:>30}")
    for size, row in rows.items():
        print(f"{size // KIB:9}  " + "  ".join(row))


def layered(folder: Path, level: int) -> None:
    """The same changes, as upper layers, through the package's own ext4 writer."""
    changed = {
        "etc/hostname": b"other\n",
        "etc/bash.bashrc": b"x" * (8192 + 2000),
        "srv/new": random.Random(2).randbytes(1 << 20),
    }
    images = []
    for count in range(1 + len(changed)):
        layer = io.BytesIO()
        with tarfile.open(fileobj=layer, mode="w") as tar:
            for name, data in list(changed.items())[:count]:
                member = tarfile.TarInfo(name)
                member.size, member.mtime = len(data), EPOCH
                tar.addfile(member, io.BytesIO(data))
        layers = [(folder / "base.tar").read_bytes(), layer.getvalue()]
        images.append(folder / f"layered{count}.ext4")
        build_ext4(
            [partial(io.BytesIO, data) for data in layers],
            images[-1],
            Ext4Options(),
            NO_PROGRESS,
            seed=str(count),
        )
    print("\nour ext4 writer: kB stored anew, pack alone, all and then by the same changes")
    for size in SIZES:
        parent = None
        row = []
        for image in images:
            _, parent, summary, _ = publish(image, size, level, parent=parent)
            row.append(summary.stored_bytes)
        print(f"{size // KIB:9}  " + "  ".join(f"{stored / 1e3:10.0f}" for stored in row))


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare chunk sizes over a Debian image.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--include", default="perl-base,ca-certificates")
    parser.add_argument("--level", type=int, default=3)
    parser.add_argument("--skip-levels", action="store_true")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("root is needed for owners and devices in the image")
    image = prepare(arguments.folder, arguments.include)
    if not arguments.skip_levels:
        levels(image)
    changes(image, reading(image, arguments.level), arguments.level)
    layered(arguments.folder, arguments.level)


if __name__ == "__main__":
    main()
