"""A registry with images, and a way to end what workers a test leaves."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from bootstream.services.files import wait_for_lock
from bootstream.testing.images import LayerBuilder, write_layout
from bootstream.testing.registry import DockerRegistry


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    """A registry with ``app:1``, which is small, and ``big:1``, 24 MiB that do not compress."""
    folder = tmp_path_factory.mktemp("registry")
    data = random.Random(7).randbytes(24 << 20)
    small = LayerBuilder().file("etc/marker", b"hello\n").file("bin/app", data[:300_000])
    write_layout(folder / "small", [small.finish()], tag="a")
    write_layout(folder / "large", [LayerBuilder().file("data", data).finish()], tag="a")
    with DockerRegistry(folder / "registry") as server:
        for layout, name in (("small", "app:1"), ("large", "big:1")):
            subprocess.run(
                [
                    "skopeo",
                    "copy",
                    "--quiet",
                    "--dest-tls-verify=false",
                    f"oci:{folder / layout}:a",
                    f"docker://{server.host}/test/{name}",
                ],
                check=True,
                capture_output=True,
            )
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder for services; workers that were left in it are ended."""
    yield tmp_path
    for process in tmp_path.glob("**/builds/*/process.json"):
        if (process.parent / "result.json").exists():
            continue
        with suppress(ProcessLookupError):
            os.kill(json.loads(process.read_text())["pid"], signal.SIGKILL)
        wait_for_lock(process.parent / "lock")
