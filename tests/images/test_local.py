"""Layouts and archives: made by us, by umoci and by skopeo; hostile ones too."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import sys
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bootstream.errors import BootstreamError, Cancelled, Corrupt, ImageNotFound, InvalidInput
from bootstream.images import BlobCache, resolve
from bootstream.images.files import SharedFile
from bootstream.images.image import Image
from bootstream.images.manifest import parse_config, parse_document
from bootstream.images.tarindex import TarIndex
from bootstream.images.validate import validate
from bootstream.progress import NO_PROGRESS, NoProgress
from bootstream.testing.images import (
    LayerBuilder,
    docker_archive,
    host_architecture,
    oci_archive,
    write_index,
    write_layout,
)
from bootstream.testing.registry import run

LAYERS = [
    LayerBuilder().file("etc/name", b"first\n").file("big", b"0123456789" * 50_000),
    LayerBuilder().file("etc/name", b"second\n"),
]
DATA = [layer.finish() for layer in LAYERS]
Open = Callable[..., Image]


@pytest.fixture
def open_image(tmp_path: Path) -> Open:
    """Resolve with a cache of the test's own, fetch, validate."""

    def open_(reference: str, **options: Any) -> Image:
        image = resolve(reference, cache=BlobCache(tmp_path / "cache"), **options)
        image.fetch(NO_PROGRESS)
        validate(image)
        return image

    return open_


def contents(image: Image) -> list[bytes]:
    found = []
    for layer in image.layers:
        with layer.open() as stream:
            found.append(b"".join(iter(lambda: stream.read(1 << 16), b"")))
    return found


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
@pytest.mark.parametrize("flavour", ["oci", "docker"])
def test_layout(open_image: Open, tmp_path: Path, compression: Any, flavour: Any) -> None:
    """Every compression and both families of media types."""
    settings = {
        "Env": ["A=b"],
        "Cmd": ["x", "y"],
        "Entrypoint": ["/init"],
        "User": "7:8",
        "WorkingDir": "/srv",
        "Labels": {"k": "v"},
    }
    layout = tmp_path / "layout"
    digest = write_layout(
        layout, DATA, tag="one", compression=compression, flavour=flavour, config=settings
    )
    image = open_image(f"oci:{layout}:one")
    assert image.digest == digest
    assert image.reference == f"oci:{layout}:one"
    assert str(image.platform) == f"linux/{host_architecture()}"
    assert contents(image) == DATA
    assert (image.config.env, image.config.cmd) == (("A=b",), ("x", "y"))
    assert (image.config.entrypoint, image.config.user) == (("/init",), "7:8")
    assert (image.config.working_dir, image.config.labels) == ("/srv", {"k": "v"})
    assert contents(open_image(f"oci:{layout}")) == DATA
    assert contents(open_image(f"oci:{layout}@{digest}")) == DATA


def test_tags(open_image: Open, tmp_path: Path) -> None:
    """Several images must be named; a tag that is not there is not another one."""
    layout = tmp_path / "layout"
    write_layout(layout, DATA[:1], tag="one")
    write_layout(layout, DATA, tag="two")
    assert contents(open_image(f"oci:{layout}:two")) == DATA
    with pytest.raises(InvalidInput, match="more than one") as caught:
        open_image(f"oci:{layout}")
    assert f"oci:{layout}:one" in str(caught.value.remedy)
    with pytest.raises(ImageNotFound, match="one, two"):
        open_image(f"oci:{layout}:three")
    with pytest.raises(ImageNotFound):
        open_image(f"oci:{layout}@sha256:{'0' * 64}")


def test_platforms(open_image: Open, tmp_path: Path) -> None:
    """The best variant is chosen; a platform that is not there is named with those that are."""
    layout = tmp_path / "layout"
    images = {
        "linux/arm/v6": DATA[:1],
        "linux/arm/v7": DATA[1:],
        "unknown/unknown": [b""],
        "linux/arm64/v8": DATA,
        "linux/s390x": [],
    }
    write_index(layout, images, tag="all")
    for platform, expected in (
        ("linux/arm/v7", DATA[1:]),
        ("linux/arm/v6", DATA[:1]),
        ("linux/arm/v8", DATA[1:]),
        ("linux/arm64", DATA),
        ("aarch64", DATA),
        ("linux/s390x", []),
    ):
        assert contents(open_image(f"oci:{layout}:all", platform=platform)) == expected
    with pytest.raises(ImageNotFound, match="linux/arm/v6, linux/arm/v7, linux/arm64, linux/s390x"):
        open_image(f"oci:{layout}:all", platform="linux/riscv64")
    with pytest.raises(ImageNotFound):
        open_image(f"oci:{layout}:all", platform="linux/arm/v5")


def test_architecture_of_a_single_image(open_image: Open, tmp_path: Path) -> None:
    """What its configuration says counts, also for this host's own platform."""
    write_layout(tmp_path / "layout", DATA, tag="x", architecture="s390x")
    with pytest.raises(ImageNotFound, match="linux/s390x"):
        open_image(f"oci:{tmp_path}/layout")
    assert contents(open_image(f"oci:{tmp_path}/layout", platform="linux/s390x")) == DATA


def test_an_index_that_lies_about_platforms(open_image: Open, tmp_path: Path) -> None:
    """The configuration decides in the end."""
    layout = tmp_path / "layout"
    write_index(layout, {"linux/s390x": DATA}, tag="x")
    (top,) = json.loads((layout / "index.json").read_bytes())["manifests"]
    path = layout / "blobs" / top["digest"].replace(":", "/")
    index = json.loads(path.read_bytes())
    index["manifests"][0]["platform"]["architecture"] = "riscv64"
    replace_root(layout, put(layout, json.dumps(index).encode()))
    with pytest.raises(ImageNotFound, match="s390x"):
        open_image(f"oci:{layout}", platform="linux/riscv64")


def put(layout: Path, data: bytes) -> dict[str, Any]:
    digest = hashlib.sha256(data).hexdigest()
    (layout / "blobs" / "sha256" / digest).write_bytes(data)
    return {"digest": f"sha256:{digest}", "size": len(data)}


def replace_root(layout: Path, *entries: dict[str, Any]) -> None:
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": entries}))


def test_variant_that_only_the_index_has(open_image: Open, tmp_path: Path) -> None:
    """Many configurations say arm and no more; the index tells v6 from v7."""
    layout = tmp_path / "layout"
    digests = {}
    entries = []
    for variant, layers in (("v6", DATA[:1]), ("v7", DATA)):
        digests[variant] = write_layout(layout, layers, tag=variant, architecture="arm")
        (*_, entry) = json.loads((layout / "index.json").read_bytes())["manifests"]
        del entry["annotations"]
        entry["platform"] = {"os": "linux", "architecture": "arm", "variant": variant}
        entries.append(entry)
    replace_root(layout, put(layout, json.dumps({"manifests": entries}).encode()))
    for variant, digest in digests.items():
        image = open_image(f"oci:{layout}", platform=f"linux/arm/{variant}")
        assert (image.digest, str(image.platform)) == (digest, f"linux/arm/{variant}")


def test_nested_indexes(open_image: Open, tmp_path: Path) -> None:
    """Indexes in indexes, to a bound; entries without media types or platforms."""
    layout = tmp_path / "layout"
    digest = write_layout(layout, DATA, tag="x")
    size = (layout / "blobs" / digest.replace(":", "/")).stat().st_size
    entry: dict[str, Any] = {"digest": digest, "size": size}
    for depth in range(5):
        replace_root(layout, entry)
        if depth < 4:
            assert open_image(f"oci:{layout}").digest == digest
        entry = put(layout, json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode())
    replace_root(layout, entry)
    with pytest.raises(Corrupt, match="nested"):
        open_image(f"oci:{layout}")


def test_several_entries_by_platform(open_image: Open, tmp_path: Path) -> None:
    """One name, an entry for each platform: chosen as from an index."""
    layout = tmp_path / "layout"
    first = write_layout(layout, DATA, tag="x", architecture="amd64")
    second = write_layout(layout, DATA[:1], tag="y", architecture="s390x")
    entries = json.loads((layout / "index.json").read_bytes())["manifests"]
    for entry, architecture in zip(entries, ["amd64", "s390x"], strict=True):
        entry["annotations"]["org.opencontainers.image.ref.name"] = "both"
        entry["platform"] = {"os": "linux", "architecture": architecture}
    replace_root(layout, *entries)
    assert open_image(f"oci:{layout}", platform="amd64").digest == first
    assert open_image(f"oci:{layout}:both", platform="s390x").digest == second


def test_what_is_no_layout(open_image: Open, tmp_path: Path) -> None:
    """Missing is not found; other things are said to be what they are."""
    with pytest.raises(ImageNotFound):
        open_image(f"oci:{tmp_path}/none")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ImageNotFound):
        open_image(f"oci:{tmp_path}/file")
    layout = tmp_path / "layout"
    write_layout(layout, DATA, tag="x")
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "2.0.0"}')
    with pytest.raises(InvalidInput, match="version"):
        open_image(f"oci:{layout}")
    (layout / "oci-layout").unlink()
    with pytest.raises(InvalidInput, match="oci-layout"):
        open_image(f"oci:{layout}")
    os.mkfifo(layout / "oci-layout")
    with pytest.raises(InvalidInput):
        open_image(f"oci:{layout}")


def blob_of(layout: Path, number: int) -> Path:
    image = resolve(f"oci:{layout}", cache=BlobCache(layout / "unused"))
    return layout / "blobs" / image.layers[number].digest.replace(":", "/")


def test_damaged_blobs(open_image: Open, tmp_path: Path) -> None:
    """A flipped byte, a missing and a shorter layer; a flipped byte of manifest and config."""
    layout = tmp_path / "layout"
    digest = write_layout(layout, DATA, tag="x")
    reference = f"oci:{layout}"
    image = open_image(reference)
    config = json.loads(image.raw_manifest)["config"]["digest"]
    blob = blob_of(layout, 0)
    whole = blob.read_bytes()
    blob.write_bytes(whole[:300] + bytes([whole[300] ^ 1]) + whole[301:])
    with pytest.raises(Corrupt, match="digest"):
        open_image(reference)
    with pytest.raises(Corrupt):
        validate(resolve(reference, cache=BlobCache(tmp_path / "cache")))
    blob.write_bytes(whole[:-1])
    with pytest.raises(Corrupt, match="bytes"):
        open_image(reference)
    blob.unlink()
    with pytest.raises(ImageNotFound, match="missing"):
        open_image(reference)
    blob.write_bytes(whole)
    for name in (config, digest):
        path = layout / "blobs" / name.replace(":", "/")
        kept = path.read_bytes()
        path.write_bytes(kept.replace(b"sha256", b"SHA256", 1))
        with pytest.raises(Corrupt):
            open_image(reference)
        path.write_bytes(kept)
    assert contents(open_image(reference)) == DATA


def test_sha512(open_image: Open, tmp_path: Path) -> None:
    """Blobs, manifest and diff ids by the other registered digest."""
    layout = tmp_path / "layout"
    write_layout(layout, DATA[:1], tag="x")
    image = resolve(f"oci:{layout}", cache=BlobCache(tmp_path / "cache"))
    (layout / "blobs" / "sha512").mkdir()

    def put512(data: bytes) -> dict[str, Any]:
        digest = hashlib.sha512(data).hexdigest()
        (layout / "blobs" / "sha512" / digest).write_bytes(data)
        return {"digest": f"sha512:{digest}", "size": len(data)}

    config = json.loads(image.raw_config)
    config["rootfs"]["diff_ids"] = [f"sha512:{hashlib.sha512(DATA[0]).hexdigest()}"]
    manifest = {
        "schemaVersion": 2,
        "config": put512(json.dumps(config).encode()),
        "layers": [put512(gzip.compress(DATA[0]))],
    }
    replace_root(layout, put512(json.dumps(manifest).encode()))
    assert contents(open_image(f"oci:{layout}")) == DATA[:1]


def test_progress_of_a_local_image(tmp_path: Path) -> None:
    """The phase has the layers' sizes, and cancelling passes."""
    layout = tmp_path / "layout"
    write_layout(layout, [*DATA, DATA[0]], tag="x")
    image = resolve(f"oci:{layout}", cache=BlobCache(tmp_path / "cache"))
    said: list[tuple[str, object]] = []

    class Listener(NoProgress):
        def phase(self, name: str, total: int | None = None, unit: str = "B") -> None:
            said.append((name, total))

        def advance(self, name: str, amount: int) -> None:
            said.append((name, amount))

    image.fetch(Listener())
    total = sum({layer.digest: layer.size for layer in image.layers}.values())
    assert said[0] == ("pull", total)
    assert sum(amount for _, amount in said[1:] if isinstance(amount, int)) == total

    class Refusing(NoProgress):
        def advance(self, name: str, amount: int) -> None:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        image.fetch(Refusing())


# -- archives ------------------------------------------------------------------------------


def test_oci_archive(open_image: Open, tmp_path: Path) -> None:
    """Read where it lies, plain or compressed as a whole."""
    digest = write_layout(tmp_path / "layout", DATA, tag="x")
    path = tmp_path / "image.tar"
    oci_archive(path, tmp_path / "layout")
    compressed = tmp_path / "image.tar.gz"
    compressed.write_bytes(gzip.compress(path.read_bytes()))
    for file in (path, compressed):
        image = open_image(f"oci-archive:{file}:x")
        assert (image.digest, contents(image)) == (digest, DATA)


@pytest.mark.parametrize("kind", ["docker-archive", "oci-archive"])
def test_archives_by_skopeo(open_image: Open, tmp_path: Path, kind: str) -> None:
    """What skopeo writes, with repeated layers."""
    layout = tmp_path / "layout"
    write_layout(layout, [*DATA, DATA[0]], tag="x")
    path = tmp_path / "image.tar"
    copy = ("skopeo", "copy", "--insecure-policy", "--quiet")
    run(*copy, f"oci:{layout}:x", f"{kind}:{path}:example/app:1")
    image = open_image(f"{kind}:{path}")
    assert contents(image) == [*DATA, DATA[0]]
    assert open_image(f"{kind}:{path}:example/app:1").digest == image.digest
    compressed = tmp_path / "image.tgz"
    compressed.write_bytes(gzip.compress(path.read_bytes()))
    assert open_image(f"{kind}:{compressed}").digest == image.digest


def test_archive_by_umoci_and_tar(open_image: Open, tmp_path: Path) -> None:
    """A layout by umoci, packed by tar with a leading ./ in names."""
    layout = tmp_path / "layout"
    (tmp_path / "layer.tar").write_bytes(DATA[0])
    run("umoci", "init", "--layout", str(layout))
    run("umoci", "new", "--image", f"{layout}:x")
    run("umoci", "raw", "add-layer", "--image", f"{layout}:x", str(tmp_path / "layer.tar"))
    assert contents(open_image(f"oci:{layout}")) == DATA[:1]
    path = tmp_path / "image.tar"
    run("tar", "-C", str(layout), "-cf", str(path), ".")
    assert contents(open_image(f"oci-archive:{path}:x")) == DATA[:1]


def test_docker_archive(open_image: Open, tmp_path: Path) -> None:
    """The older layout; by name, by number, and without either."""
    path = tmp_path / "image.tar"
    image_id = docker_archive(path, DATA, "example/app:1", config={"Cmd": ["/x"]})
    image = open_image(f"docker-archive:{path}")
    assert contents(image) == DATA
    assert image.config.cmd == ("/x",)
    assert json.loads(image.raw_manifest)["config"]["digest"] == image_id
    assert open_image(f"docker-archive:{path}:docker.io/example/app:1").digest == image.digest
    assert open_image(f"docker-archive:{path}:@0").digest == image.digest
    with pytest.raises(ImageNotFound, match="example/app:1"):
        open_image(f"docker-archive:{path}:example/app:2")
    with pytest.raises(ImageNotFound):
        open_image(f"docker-archive:{path}:@1")
    with pytest.raises(ImageNotFound):
        open_image(f"docker-archive:{tmp_path}/none")
    with pytest.raises(ImageNotFound):
        open_image(f"docker-archive:{path}", platform="linux/s390x")


def saved(images: object, members: Mapping[str, bytes | str]) -> bytes:
    """A ``docker save`` archive; a member that is text is a symbolic link."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in {**members, "manifest.json": json.dumps(images).encode()}.items():
            member = tarfile.TarInfo(name)
            if isinstance(data, str):
                member.type, member.linkname = tarfile.SYMTYPE, data
                tar.addfile(member)
            else:
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def configuration(layers: list[bytes]) -> tuple[str, bytes]:
    config = json.dumps(
        {
            "architecture": host_architecture(),
            "os": "linux",
            "rootfs": {
                "diff_ids": [f"sha256:{hashlib.sha256(data).hexdigest()}" for data in layers]
            },
        }
    ).encode()
    return hashlib.sha256(config).hexdigest(), config


def test_docker_archive_with_linked_layers(open_image: Open, tmp_path: Path) -> None:
    """Repeated layers are symbolic links; images share layers; several must be named."""
    two, two_config = configuration([DATA[0], DATA[0]])
    one, one_config = configuration([DATA[1]])
    images = [
        {"Config": f"{two}.json", "RepoTags": ["two:1"], "Layers": ["a/layer.tar", "b/layer.tar"]},
        {"Config": f"{one}.json", "RepoTags": None, "Layers": ["c/layer.tar"]},
    ]
    members: dict[str, bytes | str] = {
        "a/layer.tar": DATA[0],
        "b/layer.tar": "../a/layer.tar",
        "c/layer.tar": DATA[1],
        f"{two}.json": two_config,
        f"{one}.json": one_config,
    }
    path = tmp_path / "saved.tar"
    path.write_bytes(saved(images, members))
    assert contents(open_image(f"docker-archive:{path}:two:1")) == [DATA[0], DATA[0]]
    assert contents(open_image(f"docker-archive:{path}:@1")) == [DATA[1]]
    with pytest.raises(InvalidInput, match="2 images"):
        open_image(f"docker-archive:{path}")


def test_docker_archive_as_an_oci_layout(open_image: Open, tmp_path: Path) -> None:
    """As newer Docker writes it; layers that somebody compressed are taken too."""
    name, config = configuration(DATA)
    packed = gzip.compress(DATA[1])
    blobs = [DATA[0], packed]
    layers = [f"blobs/sha256/{hashlib.sha256(data).hexdigest()}" for data in blobs]
    images = [{"Config": f"blobs/sha256/{name}", "RepoTags": ["new:1"], "Layers": layers}]
    members: dict[str, bytes | str] = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}'}
    members.update(zip(layers, blobs, strict=True))
    members[f"blobs/sha256/{name}"] = config
    path = tmp_path / "saved.tar"
    path.write_bytes(saved(images, members))
    image = open_image(f"docker-archive:{path}")
    assert contents(image) == DATA
    assert [layer.size for layer in image.layers] == [len(data) for data in blobs]


def test_docker_archive_with_wrong_contents(open_image: Open, tmp_path: Path) -> None:
    """Other layers than the configuration names, a wrong configuration, missing members."""
    name, config = configuration(DATA)
    images = [{"Config": f"{name}.json", "RepoTags": ["x:1"], "Layers": ["a", "b"]}]
    good: dict[str, bytes | str] = {"a": DATA[0], "b": DATA[1], f"{name}.json": config}
    path = tmp_path / "saved.tar"
    changes: list[tuple[str, bytes | str]] = [
        ("b", DATA[0]),
        (f"{name}.json", config + b" "),
        ("b", "nowhere"),
        ("b", "b"),
        ("b", "../../etc/passwd"),
    ]
    for member, content in changes:
        path.write_bytes(saved(images, {**good, member: content}))
        with pytest.raises(Corrupt):
            open_image(f"docker-archive:{path}")
    wrong: object
    for wrong in ({}, [7], [{"Config": 7}], [{"Config": "x", "Layers": "y"}], [{"Config": "x"}]):
        path.write_bytes(saved(wrong, good))
        with pytest.raises(Corrupt):
            open_image(f"docker-archive:{path}")
    path.write_bytes(saved(images, good))
    assert contents(open_image(f"docker-archive:{path}")) == DATA


def tar_of(*members: tuple[str, bytes, str], data: bytes = b"") -> bytes:
    """A tar of members given by name, type and link target."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind, link in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, link
            member.size = len(data) if kind == tarfile.REGTYPE else 0
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def index_of(path: Path, data: bytes) -> TarIndex:
    path.write_bytes(data)
    return TarIndex(SharedFile.open(str(path), what="an archive"), name=str(path))


@pytest.mark.parametrize(
    "member",
    [
        ("/etc/passwd", tarfile.REGTYPE, ""),
        ("../x", tarfile.REGTYPE, ""),
        ("a/../../x", tarfile.REGTYPE, ""),
        ("a", tarfile.SYMTYPE, "/etc/passwd"),
        ("a/b", tarfile.SYMTYPE, "../../x"),
        ("a", tarfile.LNKTYPE, "../x"),
        ("a", tarfile.CHRTYPE, ""),
        ("a", tarfile.FIFOTYPE, ""),
    ],
)
def test_hostile_members(tmp_path: Path, member: tuple[str, bytes, str]) -> None:
    """Names that leave the archive, and special files, are refused."""
    with pytest.raises(Corrupt):
        index_of(tmp_path / "x.tar", tar_of(member))


def test_tar_of_every_kind(tmp_path: Path) -> None:
    """Long names in both dialects, links in both kinds, sizes in binary."""
    long = "d/" * 80 + "n" * 120
    for dialect in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=dialect) as tar:
            member = tarfile.TarInfo(long)
            member.size = 5
            tar.addfile(member, io.BytesIO(b"12345"))
            for name, kind, target in (
                ("soft", tarfile.SYMTYPE, long),
                ("hard", tarfile.LNKTYPE, long),
                ("both", tarfile.SYMTYPE, "soft"),
            ):
                member = tarfile.TarInfo(name)
                member.type, member.linkname = kind, target
                tar.addfile(member)
        index = index_of(tmp_path / "x.tar", buffer.getvalue())
        for name in (long, "soft", "hard", "both"):
            piece = index.locate(name)
            assert piece.file.read_at(piece.offset, piece.size) == b"12345"
    with pytest.raises(ImageNotFound):
        index.locate("none")


def test_what_is_no_tar(tmp_path: Path) -> None:
    """Nothing, text, an archive that was cut off, one that claims to be huge."""
    whole = tar_of(("a", tarfile.REGTYPE, ""), data=b"x" * 5000)
    for data in (b"", b"not a tar" * 200, whole[:300], whole[:3000]):
        with pytest.raises(Corrupt):
            index_of(tmp_path / "x.tar", data)
    header = bytearray(tar_of(("x", tarfile.REGTYPE, ""))[:512])
    header[156:157] = b"x"
    header[124:136] = b"\x80" + (1 << 60).to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    with pytest.raises(Corrupt):
        index_of(tmp_path / "x.tar", bytes(header) + b"\0" * 1024)


FUZZ = settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
CHANGES = st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=6)


@FUZZ
@given(CHANGES)
def test_mutated_tars(tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    """A tar with changed bytes is read or refused; nothing else happens."""
    data = bytearray(tar_of(("a" * 120, tarfile.REGTYPE, ""), ("b", tarfile.SYMTYPE, "a")))
    for offset, value in changes:
        data[offset % len(data)] = value
    try:
        index_of(tmp_path / "x.tar", bytes(data))
    except BootstreamError:
        pass


MANIFEST = {
    "schemaVersion": 2,
    "config": {"mediaType": "c", "digest": f"sha256:{'0' * 64}", "size": 2},
    "layers": [{"mediaType": "l", "digest": f"sha256:{'1' * 64}", "size": 3, "annotations": {}}],
}
INDEX = {
    "schemaVersion": 2,
    "manifests": [MANIFEST["config"] | {"platform": {"os": "linux", "architecture": "arm"}}],  # type: ignore[operator]  # a dict
}
CONFIG = {
    "architecture": "amd64",
    "os": "linux",
    "config": {"Env": ["a=b"], "Labels": {"a": "b"}, "Cmd": None},
    "rootfs": {"diff_ids": [f"sha256:{'1' * 64}"]},
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


@FUZZ
@given(st.sampled_from([MANIFEST, INDEX, CONFIG]), st.integers(0, 30), JSON)
def test_documents_with_a_wrong_field(document: dict[str, Any], where: int, value: object) -> None:
    """Any value in any place is read or refused; nothing else happens."""
    copy = json.loads(json.dumps(document))
    places: list[tuple[Any, Any]] = []

    def collect(node: Any) -> None:
        for key, item in node.items() if isinstance(node, dict) else enumerate(node):
            places.append((node, key))
            if isinstance(item, (dict, list)):
                collect(item)

    collect(copy)
    node, key = places[where % len(places)]
    node[key] = value
    data = json.dumps(copy).encode()
    for parse in (
        lambda: parse_document(data, media_type=None, what="x"),
        lambda: parse_config(data, what="x"),
    ):
        try:
            parse()
        except BootstreamError:
            pass


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{",
        b"\xff",
        b"[" * 100_000,
        b'{"schemaVersion": ' + b"9" * 10_000 + b"}",
        json.dumps({**MANIFEST, **INDEX}).encode(),
        json.dumps({**MANIFEST, "mediaType": "application/vnd.oci.image.index.v1+json"}).encode(),
        b" " * (5 << 20),
    ],
)
def test_documents_that_are_none(data: bytes) -> None:
    """Not JSON, too deep, too large, or two things at once."""
    with pytest.raises(Corrupt):
        parse_document(data, media_type=None, what="x")


def test_kinds_that_are_not_read(open_image: Open, tmp_path: Path) -> None:
    """Schema 1, artifacts that are no images, encrypted layers: each says what it is."""
    with pytest.raises(InvalidInput, match="schema 1"):
        parse_document(b'{"schemaVersion": 1, "fsLayers": []}', media_type=None, what="x")
    with pytest.raises(InvalidInput, match="not a container image"):
        parse_config(b"{}", what="x")
    layout = tmp_path / "layout"
    write_layout(layout, DATA, tag="x")
    image = open_image(f"oci:{layout}")
    manifest = json.loads(image.raw_manifest)
    manifest["layers"][0]["mediaType"] += "+encrypted"
    replace_root(layout, put(layout, json.dumps(manifest).encode()))
    with pytest.raises(InvalidInput, match="encrypted"):
        open_image(f"oci:{layout}")
    manifest["layers"].pop()
    replace_root(layout, put(layout, json.dumps(manifest).encode()))
    with pytest.raises(Corrupt, match="layers"):
        open_image(f"oci:{layout}")


def test_local_images_need_no_http_client(tmp_path: Path) -> None:
    """Commands that never see a registry do not pay for loading one."""
    write_layout(tmp_path / "layout", DATA, tag="x")
    code = (
        "import sys; from pathlib import Path; from bootstream.images import *;"
        "resolve(sys.argv[1], cache=BlobCache(Path(sys.argv[2])));"
        "print('urllib3' in sys.modules)"
    )
    reference, cache = f"oci:{tmp_path}/layout", tmp_path / "cache"
    assert run(sys.executable, "-c", code, reference, str(cache)) == "False\n"
    assert not cache.exists()


def test_validate_names_every_difference(tmp_path: Path) -> None:
    """Damage in two layers is two problems in one error."""
    layout = tmp_path / "layout"
    write_layout(layout, DATA, tag="x")
    for number in (0, 1):
        blob = blob_of(layout, number)
        data = blob.read_bytes()
        blob.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    image = resolve(f"oci:{layout}", cache=BlobCache(tmp_path / "cache"))
    with pytest.raises(Corrupt, match=r"layer 0: the blob.*layer 1: the blob"):
        validate(image)
