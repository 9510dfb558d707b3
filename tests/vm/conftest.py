"""A store with templates made from real Debian images, and a kernel to boot them with."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bootstream.testing.cli import CommandLine
from bootstream.testing.vm import kernel_folder


@pytest.fixture(scope="session")
def images() -> Path:
    """Where images and kernels that are made once are kept."""
    return Path(os.environ.get("BOOTSTREAM_TEST_IMAGES", "/tmp/bootstream-test-images"))


@pytest.fixture(scope="session")
def kernel(images: Path) -> Path:
    """Debian's cloud kernel, unpacked."""
    return kernel_folder(images)


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    """A command line whose store lasts for the module."""
    folder = tmp_path_factory.mktemp("vm")
    return CommandLine(folder, {"BOOTSTREAM_RUNTIME_DIR": str(folder / "run")})
