"""rclone, which speaks OCI through the SDK for Go, is content with the local OCI."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bootstream.testing.localoci import LocalOciServer

RCLONE = Path(sys.executable).parent / "rclone"
CHUNKS = ("--oos-upload-cutoff", "5Mi", "--oos-chunk-size", "5Mi")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalOciServer]:
    with LocalOciServer(tmp_path_factory.mktemp("oci")) as running:
        yield running


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files small and large, with names that need escapes."""
    folder = tmp_path_factory.mktemp("tree")
    (folder / "sub").mkdir()
    (folder / "a b+%.txt").write_bytes(random.Random(1).randbytes(3000))
    (folder / "sub" / "é?.txt").write_text("hi\n")
    (folder / "sub" / "empty").write_bytes(b"")
    (folder / "sub" / "large").write_bytes(random.Random(2).randbytes(17_000_000))
    return folder


def rclone(server: LocalOciServer, *arguments: str, provider: str = "user_principal_auth") -> str:
    """Run it with the variables of the shell file, and insist on success."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(server.folder), **server.variables}
    environment["RCLONE_CONFIG_LOCALOCI_PROVIDER"] = provider
    result = subprocess.run(
        [RCLONE, "--config", "", "--retries", "1", "--low-level-retries", "1", *arguments],
        env=environment,
        capture_output=True,
        check=False,
        timeout=25,
    )
    assert result.returncode == 0, result.stderr.decode()[-2000:]
    return result.stdout.decode()


def test_there_and_back(server: LocalOciServer, tree: Path, tmp_path: Path) -> None:
    """Small files in one request, large ones in parts; both come back as they were."""
    remote = f"localoci:{server.bucket}/there"
    server.take_requests()
    rclone(server, "copy", str(tree), remote, *CHUNKS)
    counts = server.take_requests()
    assert counts["UploadPart"] >= 4
    assert counts["CommitMultipartUpload"] == 1
    rclone(server, "check", str(tree), remote)  # by MD5, where the server knows it
    rclone(server, "copy", remote, str(tmp_path / "back"), "--multi-thread-cutoff", "8Mi")
    names = [path.relative_to(tree) for path in tree.rglob("*") if path.is_file()]
    assert len(names) == 4
    for name in names:
        assert (tmp_path / "back" / name).read_bytes() == (tree / name).read_bytes()


def test_list_copy_move_and_delete(server: LocalOciServer, tree: Path) -> None:
    """Everything else that it does to objects."""
    remote = f"localoci:{server.bucket}/more"
    rclone(server, "copyto", str(tree / "sub" / "large"), f"{remote}/large", *CHUNKS)
    rclone(server, "copyto", f"{remote}/large", f"{remote}/copied")
    rclone(server, "moveto", f"{remote}/copied", f"{remote}/deep/er/moved")
    lines = rclone(server, "lsf", "-R", "--format", "ps", remote).splitlines()
    assert sorted(lines) == ["deep/;-1", "deep/er/;-1", "deep/er/moved;17000000", "large;17000000"]
    there = rclone(server, "hashsum", "md5", "--download", f"{remote}/deep/er/moved").split()[0]
    assert there == rclone(server, "hashsum", "md5", str(tree / "sub" / "large")).split()[0]
    rclone(server, "delete", remote)
    assert rclone(server, "lsf", "-R", remote) == ""


def test_ranged_read(server: LocalOciServer, tmp_path: Path) -> None:
    """A range from the middle."""
    (tmp_path / "digits").write_text("0123456789" * 100)
    remote = f"localoci:{server.bucket}/digits"
    rclone(server, "copyto", str(tmp_path / "digits"), remote)
    assert rclone(server, "cat", "--offset", "505", "--count", "7", remote) == "5678901"


@pytest.mark.parametrize("provider", ["instance_principal_auth", "resource_principal_auth"])
def test_other_principals(server: LocalOciServer, tmp_path: Path, provider: str) -> None:
    """Metadata and federation as the SDK for Go asks, and tokens in files."""
    (tmp_path / "file").write_text(provider)
    remote = f"localoci:{server.bucket}/{provider}"
    rclone(server, "copyto", str(tmp_path / "file"), remote, provider=provider)
    assert rclone(server, "cat", remote, provider=provider) == provider


def test_it_makes_and_removes_buckets(server: LocalOciServer) -> None:
    """A bucket of its own, and away with it."""
    rclone(server, "mkdir", "localoci:another")
    assert "another/" in rclone(server, "lsf", "localoci:").splitlines()
    rclone(server, "purge", "localoci:another")
    assert "another/" not in rclone(server, "lsf", "localoci:").splitlines()
