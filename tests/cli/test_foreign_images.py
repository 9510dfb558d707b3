"""Images that were not made here: folders deeper than the stack, journals with changes."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

from bootstream.progress import NO_PROGRESS
from bootstream.rootfs import Ext4Options, build_ext4
from bootstream.testing.cli import CommandLine
from bootstream.testing.images import LayerBuilder


def test_deep_folders(tmp_path: Path) -> None:
    """Listed and copied like any other; two frames a level would be too many."""
    depth = sys.getrecursionlimit() // 2 + 50
    bottom = "/".join(["d"] * depth) + "/f"
    layer = LayerBuilder().file(bottom, b"bottom\n").finish()
    options = Ext4Options(max_depth=2 * depth)
    build_ext4([lambda: io.BytesIO(layer)], tmp_path / "image", options, NO_PROGRESS, seed="deep")
    cli = CommandLine(tmp_path)
    cli.ok("import", tmp_path / "image", "-t", "deep")
    assert cli.ok("files", "deep", "/", "-R").splitlines()[depth] == f"/{bottom}"
    try:
        cli.ok("cp", "deep:/", tmp_path / "copy")
        assert (tmp_path / "copy" / bottom).read_text() == "bottom\n"
    finally:
        # Python's own rmtree goes down by recursion, and may fail when the folder's time is over.
        subprocess.run(["rm", "-rf", tmp_path / "copy"], check=True)


def test_unfinished_journal(tmp_path: Path) -> None:
    """An image of a system that was not shut down is read, with a warning."""
    image = tmp_path / "image"
    subprocess.run(["mkfs.ext4", "-q", "-F", image, "8M"], check=True, capture_output=True)
    cli = CommandLine(tmp_path)
    cli.ok("import", image, "-t", "vm:clean")
    assert cli("files", "vm:clean").stderr == ""
    subprocess.run(
        ["debugfs", "-w", "-R", "feature needs_recovery", image], check=True, capture_output=True
    )
    cli.ok("import", image, "-t", "vm:dirty")
    result = cli("files", "vm:dirty")
    assert (result.code, result.stdout) == (0, "/lost+found\n")
    assert "journal" in result.stderr
