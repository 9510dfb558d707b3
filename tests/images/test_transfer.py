"""Copies between registries, layouts and archives, judged by skopeo and by every digest."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bootstream.errors import Corrupt, ImageNotFound, InvalidInput, PermissionDenied, Unavailable
from bootstream.images.cache import BlobCache
from bootstream.images.credentials import NoCredentials
from bootstream.images.manifest import MAX_MANIFEST
from bootstream.images.platform import Platform
from bootstream.images.reference import parse_reference
from bootstream.images.resolver import resolve
from bootstream.images.transfer import (
    LayoutTarget,
    RegistryTarget,
    TransferSource,
    copy,
    image_of,
    open_source,
    registry_source,
)
from bootstream.images.transport import Transport
from bootstream.images.validate import validate
from bootstream.progress import NO_PROGRESS
from bootstream.testing.images import docker_archive, oci_archive, write_index, write_layout
from bootstream.testing.registry import DockerRegistry, run

from .conftest import Proxy, ProxyHandler, sample_layers
from .test_push import QUICK, client_of, inspect

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def source_of(reference: str, scratch: Path | None = None) -> TransferSource:
    return open_source(
        reference, scratch=lambda: scratch or Path.cwd(), credentials=NoCredentials()
    )


def blobs(layout: Path) -> set[str]:
    """Return the names of a layout's blobs, each of which must be what its name says."""
    files = [file for file in (layout / "blobs").rglob("*") if file.is_file()]
    for file in files:
        assert hashlib.sha256(file.read_bytes()).hexdigest() == file.name
    return {file.name for file in files}


def put(layout: Path, data: bytes) -> dict[str, Any]:
    """Write a blob into a layout; return what describes it, without a type."""
    digits = hashlib.sha256(data).hexdigest()
    folder = layout / "blobs" / "sha256"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / digits).write_bytes(data)
    return {"digest": f"sha256:{digits}", "size": len(data)}


def put_json(layout: Path, document: dict[str, Any]) -> dict[str, Any]:
    return {"mediaType": document["mediaType"], **put(layout, json.dumps(document).encode())}


def name(layout: Path, *entries: dict[str, Any], tag: str = "x") -> None:
    """Write a layout's index with one name for its entries."""
    annotations = {"annotations": {"org.opencontainers.image.ref.name": tag}}
    index = {"schemaVersion": 2, "manifests": [entry | annotations for entry in entries]}
    (layout / "index.json").write_text(json.dumps(index))
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


def odd_image(layout: Path, *, nested: bool = True) -> set[str]:
    """An index of everything: platforms, an attestation, an artifact, a nested index.

    Returns the names of all blobs that belong to it.
    """
    write_index(
        layout,
        {"linux/amd64": sample_layers(), "linux/arm64/v8": sample_layers()[1:]},
        tag="inner",
        compression="zstd",
    )
    inner = json.loads((layout / "index.json").read_text())["manifests"][0]
    entry = {key: inner[key] for key in ("mediaType", "digest", "size")}
    config = {"mediaType": "application/vnd.example.config.v9+json", **put(layout, b"{}")}
    statement = {"mediaType": "application/vnd.in-toto+json", **put(layout, b'{"_type":"x"}')}
    empty = {"mediaType": "application/octet-stream", **put(layout, b"")}
    attestation = put_json(
        layout,
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": "application/vnd.example.odd",
            "config": config,
            "layers": [statement, empty],
            "subject": {"mediaType": MANIFEST, "digest": "sha256:" + "0" * 64, "size": 5},
        },
    )
    attestation["platform"] = {"os": "unknown", "architecture": "unknown"}
    attestation["annotations"] = {"vnd.docker.reference.type": "attestation-manifest"}
    entries = [entry]
    if not nested:
        path = layout / "blobs" / "sha256" / entry["digest"].partition(":")[2]
        entries = json.loads(path.read_text())["manifests"]
        path.unlink()
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [*entries, attestation]}
    root = put_json(layout, index)
    name(layout, root)
    return blobs(layout)


# -- the same bytes --------------------------------------------------------------------------------


@pytest.mark.parametrize("nested", [True, False])
def test_everything_comes_along(tmp_path: Path, registry: DockerRegistry, nested: bool) -> None:
    """Layout, registry, registry, layout: the same blobs; skopeo and we pull the same image."""
    names = odd_image(tmp_path / "in", nested=nested)
    source = source_of(f"oci:{tmp_path / 'in'}:x")
    first = RegistryTarget(client_of(f"{registry.host}/odd/one"), "1")
    digest = copy(source, first)
    second = client_of(f"{registry.host}/odd/two")
    assert (
        copy(
            registry_source(client_of(f"{registry.host}/odd/one"), "1"), RegistryTarget(second, "2")
        )
        == digest
    )
    assert copy(registry_source(second, digest), LayoutTarget(tmp_path / "out", "y")) == digest
    assert blobs(tmp_path / "out") == names
    if not nested:  # which skopeo does not copy
        options = ("--insecure-policy", "--all", "--quiet", "--src-tls-verify=false")
        theirs = f"oci:{tmp_path / 'theirs'}:z"
        run("skopeo", "copy", *options, f"docker://{registry.host}/odd/two:2", theirs)
        assert blobs(tmp_path / "theirs") == names
    for reference in (f"{registry.host}/odd/two:2", f"oci:{tmp_path}/out:y"):
        image = resolve(reference, cache=BlobCache(tmp_path / "cache"), platform="linux/arm64")
        image.fetch(NO_PROGRESS)
        validate(image)


def test_what_skopeo_pushed(tmp_path: Path, registry: DockerRegistry) -> None:
    """An index of zstd layers that skopeo pushed: the layout has it byte for byte."""
    write_index(
        tmp_path / "in",
        {"linux/amd64": sample_layers()[1:], "linux/arm64/v8": sample_layers()},
        tag="x",
        compression="zstd",
    )
    names = blobs(tmp_path / "in")
    reference = registry.push(f"oci:{tmp_path / 'in'}:x", "theirs/app:1", "--all")
    client = client_of(reference)
    digest = copy(registry_source(client, "1"), LayoutTarget(tmp_path / "out", "x"))
    assert blobs(tmp_path / "out") == names
    raw = run("skopeo", "inspect", "--raw", f"oci:{tmp_path / 'out'}:x")
    assert f"sha256:{hashlib.sha256(raw.encode()).hexdigest()}" == digest
    run("umoci", "ls", "--layout", str(tmp_path / "out"))


@pytest.mark.parametrize("kind", ["docker-archive", "oci-archive", "buildah"])
def test_archives(tmp_path: Path, registry: DockerRegistry, kind: str) -> None:
    """Archives of both kinds, and a Docker manifest list."""
    path = tmp_path / "archive.tar"
    if kind == "docker-archive":
        docker_archive(path, sample_layers(), "app:1")
        reference = f"docker-archive:{path}"
    elif kind == "oci-archive":
        write_layout(tmp_path / "in", sample_layers(), tag="x")
        oci_archive(path, tmp_path / "in")
        reference = f"oci-archive:{path}:x"
    else:
        images = {"linux/amd64": sample_layers(), "linux/arm64/v8": sample_layers()[1:]}
        write_index(tmp_path / "in", images, tag="x", flavour="docker")
        reference = f"oci:{tmp_path / 'in'}:x"
    source = source_of(reference, tmp_path)
    target = f"{registry.host}/archives/{kind}"
    digest = copy(source, RegistryTarget(client_of(target), "1"))
    assert inspect(f"docker://{target}:1", "--override-arch=amd64")["Digest"] == digest
    image = resolve(f"{target}:1", cache=BlobCache(tmp_path / "cache"), platform="linux/amd64")
    image.fetch(NO_PROGRESS)
    validate(image)


def test_one_platform(tmp_path: Path, registry: DockerRegistry) -> None:
    """Only the image of a platform, with the digest that it has in the index."""
    odd_image(tmp_path / "in")
    source = source_of(f"oci:{tmp_path / 'in'}:x")
    client = client_of(f"{registry.host}/platform/app")
    digest = copy(source, RegistryTarget(client, "1"), platform=Platform.parse("linux/arm64"))
    image = resolve(
        f"oci:{tmp_path / 'in'}:x", cache=BlobCache(tmp_path / "c"), platform="linux/arm64"
    )
    assert digest == image.digest
    assert inspect(f"docker://{client.name}:1", "--override-arch=arm64")["Digest"] == digest
    with pytest.raises(ImageNotFound, match="s390x"):
        copy(source, RegistryTarget(client, "2"), platform=Platform.parse("linux/s390x"))


def test_foreign_layers(tmp_path: Path, registry: DockerRegistry) -> None:
    """A non-distributable layer is copied where the source has it, and left out otherwise."""
    kind = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
    for there in (True, False):
        layout = tmp_path / f"in{there}"
        write_layout(layout, sample_layers()[1:], tag="x")
        root = json.loads((layout / "index.json").read_text())["manifests"][0]
        path = layout / "blobs" / "sha256" / root["digest"].partition(":")[2]
        document = json.loads(path.read_text())
        layer = document["layers"][0]
        layer |= {"mediaType": kind, "urls": ["https://layers.example.com/1"]}
        document["mediaType"] = MANIFEST
        name(layout, put_json(layout, document))
        blob = layout / "blobs" / "sha256" / layer["digest"].partition(":")[2]
        if not there:
            blob.unlink()
        out = tmp_path / f"out{there}"
        digest = copy(source_of(f"oci:{layout}:x"), LayoutTarget(out, "x"))
        assert (blob.name in blobs(out)) == there
        assert digest.partition(":")[2] in blobs(out)


# -- layouts ---------------------------------------------------------------------------------------


def test_a_layout_that_is_there(tmp_path: Path) -> None:
    """Other images stay; the same name is replaced; no name adds no second entry."""
    write_layout(tmp_path / "in", sample_layers()[1:], tag="x")
    write_layout(tmp_path / "other", sample_layers(), tag="x")
    out = tmp_path / "out"
    run("skopeo", "copy", "--insecure-policy", f"oci:{tmp_path}/other:x", f"oci:{out}:theirs")
    first = copy(source_of(f"oci:{tmp_path}/in:x"), LayoutTarget(out, "ours"))
    for tag in ("theirs", "ours"):
        run("skopeo", "inspect", f"oci:{out}:{tag}")
    second = copy(source_of(f"oci:{tmp_path}/other:x"), LayoutTarget(out, "ours"))
    assert first != second
    assert inspect(f"oci:{out}:ours")["Digest"] == second
    for _ in range(2):
        copy(source_of(f"oci:{tmp_path}/in:x"), LayoutTarget(out))
    entries = json.loads((out / "index.json").read_text())["manifests"]
    assert [entry["digest"] for entry in entries if "annotations" not in entry] == [first]
    assert len(entries) == 3
    blobs(out)


def test_two_processes_write_one_layout(tmp_path: Path) -> None:
    """Every name is there in the end, and every blob is whole."""
    write_layout(tmp_path / "in", sample_layers(), tag="x")
    code = (
        "import sys; from pathlib import Path; from bootstream.images.transfer import *;"
        "from bootstream.images.credentials import NoCredentials;"
        "s = open_source(sys.argv[1], scratch=Path.cwd, credentials=NoCredentials());"
        "[copy(s, LayoutTarget(sys.argv[2], sys.argv[3] + str(n))) for n in range(8)]"
    )
    out = tmp_path / "out"
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", code, f"oci:{tmp_path / 'in'}:x", str(out), f"p{number}-"]
        )
        for number in range(2)
    ]
    assert [worker.wait(25) for worker in workers] == [0, 0]
    index = json.loads((out / "index.json").read_text())
    assert len(index["manifests"]) == 16
    assert blobs(out) == blobs(tmp_path / "in")
    assert {path.name for path in out.iterdir()} == {"blobs", "index.json", "oci-layout"}


def test_a_killed_pull_leaves_nothing_wrong(tmp_path: Path, proxy: Proxy) -> None:
    """``kill -9`` while a blob comes: no index, no half blob; the next pull succeeds."""
    stall, came = threading.Event(), threading.Event()

    def behave(handler: ProxyHandler) -> None:
        if "/blobs/" in handler.path and not came.is_set():
            came.set()
            handler.forward(limit=50, pause=stall)
        else:
            handler.forward()

    proxy.behave = behave
    code = (
        "import sys; from pathlib import Path; from bootstream.images.transfer import *;"
        "from bootstream.images.credentials import NoCredentials;"
        "s = open_source(sys.argv[1], scratch=Path.cwd, credentials=NoCredentials(),"
        "plain_http=True); copy(s, LayoutTarget(sys.argv[2], 'x'))"
    )
    out = tmp_path / "out"
    arguments = [sys.executable, "-c", code, f"{proxy.host}/team/app:1", str(out)]
    with subprocess.Popen(arguments) as process:
        try:
            assert came.wait(15)
        finally:
            os.kill(process.pid, signal.SIGKILL)
    stall.set()
    assert not (out / "index.json").exists()
    if out.exists():
        blobs(out)
    copy(registry_source(client_of(f"{proxy.host}/team/app"), "1"), LayoutTarget(out, "x"))
    run("skopeo", "inspect", f"oci:{out}:x")


def test_folders_that_cannot_be_written(tmp_path: Path, layout: Path) -> None:
    """A file where a folder should be, an index that is none, a name with no folder above."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(InvalidInput):
        copy(source_of(f"oci:{layout}:x"), LayoutTarget(tmp_path / "file", "x"))
    (tmp_path / "odd").mkdir()
    for text in ("[]", '{"manifests": 5}'):
        (tmp_path / "odd" / "index.json").write_text(text)
        with pytest.raises(InvalidInput):
            copy(source_of(f"oci:{layout}:x"), LayoutTarget(tmp_path / "odd", "x"))
        assert (tmp_path / "odd" / "index.json").read_text() == text
    with pytest.raises(PermissionDenied if os.geteuid() else (InvalidInput, ImageNotFound)):
        copy(source_of(f"oci:{layout}:x"), LayoutTarget("/proc/self/none", "x"))


# -- sources that lie ------------------------------------------------------------------------------


def test_manifests_that_lie(tmp_path: Path, proxy: Proxy, registry: DockerRegistry) -> None:
    """50 MB of manifest; sizes that are not so; damaged; nested without end: nothing is left."""
    out = LayoutTarget(tmp_path / "out", "x")
    proxy.behave = lambda handler: handler.answer(200, b" " * (50 << 20))
    with pytest.raises(Corrupt, match="larger"):
        registry_source(client_of(f"{proxy.host}/team/app"), "1")
    deep: dict[str, Any] = {"schemaVersion": 2, "mediaType": INDEX, "manifests": []}
    layout = tmp_path / "deep"
    for _ in range(6):
        deep = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [put_json(layout, deep)]}
    name(layout, put_json(layout, deep))
    with pytest.raises(Corrupt, match="nested"):
        copy(source_of(f"oci:{layout}:x"), out)
    big = {"mediaType": INDEX, "digest": "sha256:" + "1" * 64, "size": MAX_MANIFEST}
    many = [big | {"digest": f"sha256:{number:064x}"} for number in range(100)]
    for entries, wrong in (([big | {"size": 1 << 40}], Corrupt), (many, (Corrupt, ImageNotFound))):
        lying = {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}
        name(layout, put_json(layout, lying))
        with pytest.raises(wrong):
            copy(source_of(f"oci:{layout}:x"), out)
    small = put_json(layout, {"schemaVersion": 2, "mediaType": INDEX, "manifests": []})
    both = {
        "schemaVersion": 2,
        "mediaType": INDEX,
        "manifests": [small | {"size": small["size"] + 1}],
    }
    name(layout, put_json(layout, both))
    with pytest.raises(Corrupt, match="bytes"):
        copy(source_of(f"oci:{layout}:x"), out)
    client = client_of(f"{registry.host}/lies/app")
    with pytest.raises(Corrupt):
        copy(source_of(f"oci:{layout}:x"), RegistryTarget(client, "1"))
    assert not (tmp_path / "out" / "index.json").exists()


@pytest.mark.parametrize("how", ["flipped", "short", "another size"])
def test_layers_that_lie(tmp_path: Path, proxy: Proxy, how: str) -> None:
    """Into a layout nothing wrong gets a name, and the copy says which blob it was."""
    changes: dict[str, Callable[[bytes], bytes]] = {
        "flipped": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        "short": lambda data: data[:-1],
        "another size": lambda _: b"other",
    }

    def behave(handler: ProxyHandler) -> None:
        if "/blobs/" not in handler.path:
            handler.forward()
        elif how == "another size":
            handler.forward(change=changes[how], hide=("content-length",))
        else:
            handler.forward(change=changes[how])

    proxy.behave = behave
    source = registry_source(client_of(f"{proxy.host}/team/app"), "1", retry=QUICK)
    with pytest.raises(Corrupt if how == "flipped" else (Corrupt, Unavailable)) as caught:
        copy(source, LayoutTarget(tmp_path / "out", "x"))
    assert "sha256:" in str(caught.value)
    assert not (tmp_path / "out" / "index.json").exists()
    assert not blobs(tmp_path / "out")


def test_a_layout_that_lies(tmp_path: Path, registry: DockerRegistry) -> None:
    """A damaged or missing blob of a layout: said, and the registry has no tag."""
    client = client_of(f"{registry.host}/damaged/app")
    for harm in ("flip", "cut", "remove"):
        layout = tmp_path / harm
        write_layout(layout, sample_layers(), tag="x")
        largest = max((layout / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
        data = largest.read_bytes()
        if harm == "remove":
            largest.unlink()
        else:
            largest.write_bytes(data[:-1] + (bytes([data[-1] ^ 1]) if harm == "flip" else b""))
        with pytest.raises((Corrupt, ImageNotFound)) as caught:
            copy(source_of(f"oci:{layout}:x"), RegistryTarget(client, harm, retry=QUICK))
        assert largest.name in str(caught.value)
        with pytest.raises(ImageNotFound):
            registry_source(client, harm)


def test_several_roots(tmp_path: Path) -> None:
    """A layout with one name for two platforms and no index: which one is asked for."""
    write_index(
        tmp_path, {"linux/amd64": sample_layers()[1:], "linux/arm64": sample_layers()[1:]}, tag="i"
    )
    root = json.loads((tmp_path / "index.json").read_text())["manifests"][0]
    path = tmp_path / "blobs" / "sha256" / root["digest"].partition(":")[2]
    name(tmp_path, *json.loads(path.read_text())["manifests"])
    with pytest.raises(InvalidInput) as caught:
        source_of(f"oci:{tmp_path}:x")
    assert "@sha256:" in (caught.value.remedy or "")


# -- certificates ----------------------------------------------------------------------------------


def test_certificates_of_a_host(tmp_path: Path) -> None:
    """A folder named like HOST:PORT, as Docker has it: its authority is trusted there only."""
    with DockerRegistry(tmp_path / "r", tls=True) as server:
        url = f"https://{server.host}/v2/"
        folders = [tmp_path / "none", tmp_path / "certs.d"]
        with pytest.raises(Exception, match="not trusted"):
            Transport(certificate_folders=folders).send("GET", url, headers={}, operation="ask")
        own = folders[1] / server.host
        own.mkdir(parents=True)
        (own / "ca.crt").write_bytes(server.ca_file.read_bytes())
        transport = Transport(certificate_folders=folders)
        with transport.send("GET", url, headers={}, operation="ask") as answer:
            answer.drain()
            assert answer.status == 200
        transport.close()
        for file, text in (("ca.crt", "no certificate"), ("client.cert", "nor this")):
            (own / file).write_text(text)
            with pytest.raises(InvalidInput, match="certificates"):
                Transport(certificate_folders=folders).send("GET", url, headers={}, operation="ask")
            (own / "ca.crt").write_bytes(server.ca_file.read_bytes())


def test_an_image_to_look_at_checks_its_layers(layout: Path, tmp_path: Path) -> None:
    """What is shown without being copied can be fetched: each blob is read where it lies."""
    source = open_source(
        parse_reference(f"oci:{layout}:x"), scratch=Path.cwd, credentials=NoCredentials()
    )
    image = image_of(source)
    image.fetch(NO_PROGRESS)
    blob = layout / "blobs" / image.layers[0].digest.replace(":", "/")
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 1
    damaged = tmp_path / "damaged"
    shutil.copytree(layout, damaged)
    (damaged / "blobs" / image.layers[0].digest.replace(":", "/")).write_bytes(data)
    source = open_source(
        parse_reference(f"oci:{damaged}:x"), scratch=Path.cwd, credentials=NoCredentials()
    )
    with pytest.raises(Corrupt):
        image_of(source).fetch(NO_PROGRESS)
