"""docs/guide-checklist.md: every block is run as it stands, in order, on one local OCI."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bootstream.testing.cli import CommandLine
from bootstream.testing.images import LayerBuilder, write_layout

ROOT = Path(__file__).parents[2]
_TEXT = (ROOT / "docs" / "guide-checklist.md").read_text("utf-8")
_BLOCKS = re.findall(r"^```sh\n(.*?)^```", _TEXT, re.MULTILINE | re.DOTALL)
SERVER, VARIABLES, *ITEMS = _BLOCKS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with an image and the guide's script, where the page's local OCI runs."""
    folder = tmp_path_factory.mktemp("checklist")
    layer = LayerBuilder()
    layer.file("etc/os-release", b'NAME="Debian GNU/Linux"\n')
    layer.file("usr/lib/data", os.urandom(3_000_000))
    write_layout(folder / "debian", [layer], tag="12")
    (folder / "deploy-poc.sh").symlink_to(ROOT / "deploy-poc.sh")
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", f"{SERVER}\ntouch up\nwait"],
            cwd=folder,
            env=variables(folder),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        end = time.monotonic() + 25
        while not (folder / "up").exists():
            assert server.poll() is None, (folder / "server.log").read_text()
            assert time.monotonic() < end, (folder / "server.log").read_text()
            time.sleep(0.05)
        yield folder
    finally:
        os.killpg(server.pid, signal.SIGTERM)  # the shell that we started, and its job
        server.wait(20)


def variables(folder: Path) -> dict[str, str]:
    """The environment of a block: no variable of the store's but those of the page itself."""
    found = CommandLine(folder).variables
    found.pop("LOCAL_TEMPLATE_STORAGE_BASE_PATH")
    scripts = Path(sys.executable).parent
    return {**found, "HOME": str(folder), "PATH": f"{scripts}{os.pathsep}{found['PATH']}"}


def test_there_are_ten() -> None:
    """Each of the guide's items has a section with a block of its own."""
    assert len(ITEMS) == 10
    sections = re.findall(r"^## (\d+)\. ", _TEXT, re.MULTILINE)
    assert sections == [str(number) for number in range(1, 11)]


@pytest.mark.parametrize("number", range(1, 11))
def test_item(number: int, folder: Path) -> None:
    """The item's commands succeed, one after the other."""
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", VARIABLES + ITEMS[number - 1]],
        cwd=folder,
        env=variables(folder),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=28,
    )
    assert result.returncode == 0, f"{ITEMS[number - 1]}{result.stdout}{result.stderr}"
