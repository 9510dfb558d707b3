"""kill -9 at random moments of every verb that writes: nothing published is ever harmed.

Each case kills the command at five moments spread over its whole run, so that the
four cases of a verb make twenty. After every kill what was published before must
verify clean, and a second try must succeed.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bootstream.testing.images import LayerBuilder, write_layout

BOOTSTREAM = [sys.executable, "-m", "bootstream"]
CASES = range(4)
MOMENTS = 5


class Host:
    """One machine: a store, a cache, and the command."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = folder / "templates"
        self.cache = folder / "cache"
        self.environment = os.environ | {
            "LOCAL_TEMPLATE_STORAGE_BASE_PATH": str(self.store),
            "BOOTSTREAM_CACHE_DIR": str(self.cache),
        }

    def run(self, *arguments: str) -> str:
        result = subprocess.run(
            [*BOOTSTREAM, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=29,
        )
        assert result.returncode == 0, f"{arguments}: {result.stdout}{result.stderr}"
        return result.stdout

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*BOOTSTREAM, *arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def kill_within(self, seconds: float, *arguments: str) -> bool:
        """Start a command and kill -9 it after ``seconds``; tell whether it was still running."""
        with self.start(*arguments) as process:
            try:
                process.wait(timeout=seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                return True
        return False

    def duration(self, *arguments: str) -> float:
        """Run a command to its end; return how long it took, in seconds."""
        begun = time.monotonic()
        self.run(*arguments)
        return time.monotonic() - begun

    def files(self) -> list[str]:
        return sorted(str(path.relative_to(self.store)) for path in self.store.rglob("*"))

    def check(self) -> None:
        """Every published build verifies clean."""
        for build in json.loads(self.run("ls", "--json")):
            self.run("verify", build["build_id"])

    def empty(self) -> None:
        """Delete everything: nothing that a killed process left stays behind."""
        for build in json.loads(self.run("ls", "--json")):
            self.run("rm", build["build_id"])
        self.run("gc", "--older-than", "0s")
        assert self.files() == []


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.fixture
def image(tmp_path: Path) -> str:
    """A small image: a few MiB that do not compress, and some hundred files."""
    rng = random.Random(1)
    layer = LayerBuilder()
    for number in range(300):
        layer.file(f"d{number % 7}/f{number}", rng.randbytes(rng.randrange(20_000)))
    top = LayerBuilder()
    top.file("big", rng.randbytes(6 << 20))
    write_layout(tmp_path / "image", [layer, top], tag="v1")
    return f"oci:{tmp_path / 'image'}:v1"


def moments(case: int, whole: float) -> list[float]:
    """Times to kill at, one in each of five equal parts of the run."""
    rng = random.Random(case)
    return [whole * (part + rng.random()) / MOMENTS for part in range(MOMENTS)]


@pytest.mark.parametrize("case", CASES)
def test_build_killed(host: Host, image: str, case: int) -> None:
    """A killed build is invisible; the next one works; collection leaves nothing of it."""
    whole = host.duration("build", image, "-t", "kept")
    for moment in moments(case, whole):
        host.kill_within(moment, "build", image, "-t", "next", "--parent", "none")
        host.run("verify", "kept")
    host.run("build", image, "-t", "next")
    host.check()
    host.empty()


@pytest.mark.parametrize("case", CASES)
def test_publish_killed(host: Host, tmp_path: Path, case: int) -> None:
    """The same for publishing a raw file, where nearly all the time goes into the store."""
    raw = tmp_path / "raw"
    raw.write_bytes(random.Random(2).randbytes(24 << 20))
    whole = host.duration("import", str(raw), "-t", "kept")
    for moment in moments(case, whole):
        host.kill_within(moment, "import", str(raw), "-t", "next", "--parent", "none")
        host.run("verify", "kept")
    host.run("import", str(raw), "-t", "next")
    host.check()
    host.empty()


@pytest.mark.parametrize("case", CASES)
def test_serve_killed(host: Host, tmp_path: Path, case: int) -> None:
    """A server killed while its cache fills leaves a cache that never lies."""
    raw = tmp_path / "raw"
    raw.write_bytes(random.Random(3).randbytes(24 << 20))
    host.run("import", str(raw), "-t", "served")
    socket = tmp_path / "s"
    uri = f"nbd+unix:///?socket={socket}"
    copy = tmp_path / "copy"
    for moment in moments(case, 0.2):
        with host.start("serve", "served", "--socket", str(socket), "--read-only") as process:
            assert process.stdout is not None
            assert process.stdout.readline()
            with subprocess.Popen(
                ["nbdcopy", uri, str(copy)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            ) as client:
                try:
                    client.wait(timeout=moment)
                except subprocess.TimeoutExpired:
                    pass
                process.kill()
                client.wait(timeout=20)
    with host.start("serve", "served", "--socket", str(socket), "--read-only") as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        subprocess.run(["nbdcopy", uri, str(copy)], check=True, timeout=20)
        process.terminate()
        assert process.wait(timeout=10) == 0
    assert copy.read_bytes() == raw.read_bytes()
    host.empty()


@pytest.mark.parametrize("case", CASES)
def test_collection_killed(host: Host, image: str, case: int) -> None:
    """A killed collection is continued by the next, and never touches what is kept."""
    host.run("build", image, "-t", "kept")
    for tag in ("a", "b", "c"):
        host.run("build", image, "-t", f"gone:{tag}", "--parent", "none")
    host.run("rm", "gone", "--all")
    whole = 0.6
    for moment in moments(case, whole):
        host.kill_within(moment, "gc", "--older-than", "0s")
        host.run("verify", "kept")
    host.run("gc", "--older-than", "0s")
    host.check()
    host.empty()
