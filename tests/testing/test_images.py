"""Images made for tests are what other tools take for images."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from bootstream.testing.images import (
    CAP_NET_BIND_SERVICE,
    EPOCH,
    Compression,
    LayerBuilder,
    SparseForm,
    docker_archive,
    oci_archive,
    write_index,
    write_layout,
)


def run(*command: str | Path) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=25)
    assert result.returncode == 0, f"{command}: {result.stderr}"
    return result.stdout


def members(layer: LayerBuilder) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(layer.finish())) as tar:
        return {member.name: member for member in tar}


def test_tarfile_reads_every_kind() -> None:
    """Types, owners beyond octal, fractions of a second, long and odd names."""
    layer = LayerBuilder(parents=True)
    layer.file("a/b/file", b"data", 0o4755, uid=5_000_000, mtime=-1.5)
    layer.link("a/soft", "x/" * 100).link("a/hard", "a/b/file", hard=True)
    layer.device("null", 1, 3).device("disk", 8, 1, block=True).fifo("pipe")
    layer.whiteout("a/gone").opaque("a").opaque("").file("n" * 250).file("ü")
    found = members(layer)
    assert list(found)[:3] == ["a", "a/b", "a/b/file"]
    file = found["a/b/file"]
    assert (file.mode, file.uid, file.mtime, file.size) == (0o4755, 5_000_000, -1.5, 4)
    assert found["a/soft"].linkname == "x/" * 100
    assert found["a/hard"].islnk()
    assert (found["null"].ischr(), found["disk"].isblk(), found["pipe"].isfifo()) == (True,) * 3
    assert {"a/.wh.gone", "a/.wh..wh..opq", ".wh..wh..opq", "n" * 250, "ü"} <= set(found)
    assert found["ü"].mtime == EPOCH


def test_gnu_tar_unpacks_it(tmp_path: Path) -> None:
    """Names outside UTF-8, attributes with zeros in them, and all forms of sparse members."""
    layer = LayerBuilder()
    layer.file(b"odd \xff", b"1", xattrs={"security.capability": CAP_NET_BIND_SERVICE})
    pieces = [(8192 * number, b"%03d" % number) for number in range(40)]
    forms: list[SparseForm] = ["1.0", "0.1", "0.0", "gnu"]
    for form in forms:
        layer.sparse(f"sparse-{form}", 1 << 20, pieces, form=form)
    (tmp_path / "layer.tar").write_bytes(layer.finish())
    (tmp_path / "out").mkdir()
    listed = run("tar", "--xattrs", "--xattrs-include=*", "-tvvf", tmp_path / "layer.tar")
    assert f"x: {len(CAP_NET_BIND_SERVICE)} security.capability" in listed
    run("tar", "-C", tmp_path / "out", "-xf", tmp_path / "layer.tar", "--no-same-owner")
    assert b"odd \xff" in os.listdir(os.fsencode(tmp_path / "out"))
    expected = bytearray(1 << 20)
    for offset, data in pieces:
        expected[offset : offset + len(data)] = data
    for form in forms:
        assert (tmp_path / "out" / f"sparse-{form}").read_bytes() == expected, form


def test_the_same_every_time(tmp_path: Path) -> None:
    """Bytes do not depend on the moment, and a builder can go on after it was finished."""
    layer = LayerBuilder().file("a", b"1")
    first = layer.finish()
    assert layer.file("b").finish() != first
    assert LayerBuilder().file("a", b"1").finish() == first
    one = write_layout(tmp_path / "1", [first], tag="t", architecture="amd64")
    assert write_layout(tmp_path / "2", [first], tag="t", architecture="amd64") == one


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
def test_skopeo_copies_layouts(compression: Compression, tmp_path: Path) -> None:
    """Several images in one layout; digests are what was said."""
    layout = tmp_path / "layout"
    layer = LayerBuilder().file("etc/x", b"1" * 1000)
    config = {"Cmd": ["/bin/sh"], "Labels": {"a": "b"}}
    write_layout(layout, [LayerBuilder().file("old")], tag="t", architecture="amd64")
    digest = write_layout(
        layout, [layer, layer.finish()], tag="t", compression=compression, architecture="amd64",
        config=config,
    )  # fmt: skip
    write_layout(layout, [layer], tag="other", architecture="amd64")
    run("skopeo", "copy", "-q", "--preserve-digests", f"oci:{layout}:t", f"dir:{tmp_path / 'out'}")
    copied = (tmp_path / "out" / "manifest.json").read_bytes()
    assert f"sha256:{hashlib.sha256(copied).hexdigest()}" == digest
    assert json.loads(run("skopeo", "inspect", "--config", f"oci:{layout}:t"))["config"] == config
    run("skopeo", "inspect", f"oci:{layout}:other")


def test_skopeo_chooses_a_platform(tmp_path: Path) -> None:
    """An index of two platforms offers both."""
    write_index(
        tmp_path,
        {"linux/amd64": [LayerBuilder()], "linux/arm64/v8": [LayerBuilder().file("arm")]},
        tag="t",
    )
    for architecture in ("amd64", "arm64"):
        said = run("skopeo", "--override-arch", architecture, "inspect", f"oci:{tmp_path}:t")
        assert json.loads(said)["Architecture"] == architecture


def test_skopeo_reads_archives(tmp_path: Path) -> None:
    """Both kinds."""
    layer = LayerBuilder().file("etc/x", b"1" * 1000)
    image_id = docker_archive(tmp_path / "d.tar", [layer, LayerBuilder()], "demo:1")
    said = run("skopeo", "inspect", "--raw", "--config", f"docker-archive:{tmp_path / 'd.tar'}")
    assert f"sha256:{hashlib.sha256(said.encode()).hexdigest()}" == image_id
    write_layout(tmp_path / "layout", [layer], tag="t")
    oci_archive(tmp_path / "o.tar", tmp_path / "layout")
    run("skopeo", "inspect", f"oci-archive:{tmp_path / 'o.tar'}:t")
