"""``doctor`` on KVM: it is what boots that counts, not a device node."""

from __future__ import annotations

import os
from pathlib import Path

from bootstream.testing.cli import CommandLine

KERNEL = Path(os.environ.get("BOOTSTREAM_TEST_IMAGES", "")) / "linux-image"


def test_kvm_is_tried(tmp_path: Path) -> None:
    """With a kernel it is tried, and what came out is remembered; a host may have none."""
    assert KERNEL.is_dir(), "make test prepares a kernel"
    cli = CommandLine(tmp_path, {"BOOTSTREAM_RUNTIME_DIR": str(tmp_path / "run")})
    only = ("doctor", "--only", "kvm", "--kernel", str(KERNEL), "--time-limit", "25s")
    (found,) = cli.json(*only)["findings"]
    if os.access("/dev/kvm", os.R_OK | os.W_OK):
        assert ("boots under KVM" in found["detail"]) is (found["state"] == "ok")
        assert (tmp_path / "run" / "accel.json").exists()
        assert cli.json(*only)["findings"] == [found]
    else:
        assert found["state"] == "lacking"
    assert cli(*only, "--strict").code == (0 if found["state"] == "ok" else 1)


def test_a_kernel_that_is_none(tmp_path: Path) -> None:
    """A file that is no kernel is said, and is no failure of the host."""
    (tmp_path / "kernel").write_bytes(b"no kernel" * 1000)
    document = CommandLine(tmp_path).json(
        "doctor", "--only", "kvm", "--kernel", tmp_path / "kernel"
    )
    (found,) = document["findings"]
    assert found["state"] == "lacking"
    if Path("/dev/kvm").exists():
        assert "kernel" in found["detail"]
