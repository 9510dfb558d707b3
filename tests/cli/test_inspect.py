"""``inspect``: raw artifacts, empty ones, long histories, terminals of every width."""

from __future__ import annotations

import os
import pty
import subprocess
import xml.etree.ElementTree as ET
from array import array
from dataclasses import dataclass
from pathlib import Path

import pytest

from bootstream.chunks.index import Pack
from bootstream.chunks.report import Part
from bootstream.cli.inspect import _Layout
from bootstream.testing.cli import COMMAND, CommandLine


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    """A store with a build, and one after it that changed a little."""
    cli = CommandLine(tmp_path_factory.mktemp("store"))
    disk = cli.folder / "disk"
    disk.write_bytes(os.urandom(1 << 20) + bytes(3 << 20) + b"tail")
    cli.ok("import", disk, "-t", "vm:1")
    with disk.open("r+b") as file:
        file.write(b"changed")
    cli.ok("import", disk, "-t", "vm", "--parent", cli.json("show", "vm:1")["build_id"])
    return cli


def test_parts_say_where_bytes_live(cli: CommandLine) -> None:
    """One chunk is new, the others are the first build's, and half is zeros."""
    report = cli.json("inspect", "vm")
    zero, own, ancestor = report["parts"]
    assert (zero["kind"], zero["chunks"], zero["stored_size"]) == ("zero", 48, 0)
    assert (own["kind"], own["chunks"], own["build_id"]) == ("own", 1, report["build_id"])
    assert (ancestor["kind"], ancestor["chunks"]) == ("ancestor", 16)
    assert ancestor["build_id"] == cli.json("show", "vm:1")["build_id"]
    text = cli.ok("inspect", "vm")
    drawn = text.splitlines()[-2:]
    assert "".join(line.split()[-1] for line in drawn) == "#" + "a" * 15 + "." * 48 + "a"


def test_raw_form(cli: CommandLine, tmp_path: Path) -> None:
    """A raw artifact has parts, too, and another artifact can be asked for."""
    memory = tmp_path / "memory"
    memory.write_bytes(b"page" * 50_000)
    cli.ok("import", cli.folder / "disk", "-t", "raw", "--form", "raw",
           "--artifact", f"memfile={memory}")  # fmt: skip
    report = cli.json("inspect", "raw", "--artifact", "memfile")
    assert (report["form"], report["size"]) == ("raw", 200_000)
    assert sum(part["size"] for part in report["parts"]) == 200_000
    assert "memfile, raw" in cli.ok("inspect", "raw", "--artifact", "memfile")
    assert cli("inspect", "raw", "--artifact", "nothing").code == 2


def test_pictures(cli: CommandLine, tmp_path: Path) -> None:
    """An existing picture is replaced; nothing else is, and nothing is left of a failure."""
    target = tmp_path / "map.SVG"
    target.write_text("old")
    cli.ok("inspect", "vm", "--picture", target)
    assert ET.fromstring(target.read_text("utf-8")).tag.endswith("svg")
    for name in ("map", "map.png", "no/such/folder/map.svg"):
        assert cli("inspect", "vm", "--picture", tmp_path / name).code in (2, 3)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".map")]


@pytest.mark.parametrize(("columns", "coloured", "lines"), [(200, True, 1), (40, False, 0)])
def test_terminal(cli: CommandLine, columns: int, coloured: bool, lines: int) -> None:
    """A wide terminal gets a map in colours, a narrow one none."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, "inspect", "vm"],
        env=cli.variables | {"COLUMNS": str(columns), "TERM": "xterm"},
        stdin=subprocess.DEVNULL,
        stdout=theirs,
    ) as process:
        os.close(theirs)
        said = b""
        try:
            while piece := os.read(ours, 1 << 16):
                said += piece
        except OSError:  # the other side is closed
            pass
        os.close(ours)
        assert process.wait(timeout=20) == 0
    assert (b"\x1b[34m#" in said) is coloured
    assert said.count(b"one character is") == lines


@dataclass
class _History:
    """What is needed of an index whose packs are those of many builds."""

    packs: tuple[Pack, ...]

    def kinds(self) -> array[int]:
        return array("H", range(len(self.packs) + 1))


def test_long_histories() -> None:
    """More builds than symbols: the smallest are one part, and nothing is lost."""
    builds = [f"{number:08x}-0000-4000-8000-000000000000" for number in range(300)]
    parts = [Part("zero", None, 1, 0, 10, 0), Part("own", builds[0], 1, 1, 10, 5)]
    parts += [
        Part("ancestor", build, 1, 1, 10 + number, 5) for number, build in enumerate(builds[1:])
    ]
    index = _History(tuple(Pack(build, "rootfs.ext4", False) for build in builds))
    layout = _Layout.of(index, builds[0], parts)  # type: ignore[arg-type]  # all that it reads
    assert len(layout.parts) == 54
    assert sum(part.size for part in layout.parts) == sum(part.size for part in parts)
    assert len(layout.cells) == 301
    assert layout.cells[:2] == bytes([0, 1])
    assert max(layout.cells) == 53
    assert layout.parts[layout.cells[300]].build_id == builds[299]
    assert layout.parts[layout.cells[2]].build_id is None
