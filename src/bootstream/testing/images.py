"""Container images made on the spot: layouts and archives around layers.

Formats: OCI image specification 1.1: image-layout.md, manifest.md, config.md, layer.md; the
``docker save`` archive as Docker's image specification v1.2 describes it.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import platform as host
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import zstandard

from bootstream.testing.layers import CAP_NET_BIND_SERVICE, EPOCH, LayerBuilder, SparseForm

__all__ = [
    "CAP_NET_BIND_SERVICE",
    "EPOCH",
    "Compression",
    "Flavour",
    "LayerBuilder",
    "Layers",
    "SparseForm",
    "docker_archive",
    "host_architecture",
    "oci_archive",
    "write_index",
    "write_layout",
]

Compression = Literal["gzip", "zstd", "none"]
Flavour = Literal["oci", "docker"]

_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
_OCI = "application/vnd.oci.image"
_DOCKER = "application/vnd.docker"
_TYPES: Mapping[Flavour, Mapping[str, str]] = {
    "oci": {
        "index": f"{_OCI}.index.v1+json",
        "manifest": f"{_OCI}.manifest.v1+json",
        "config": f"{_OCI}.config.v1+json",
        "gzip": f"{_OCI}.layer.v1.tar+gzip",
        "zstd": f"{_OCI}.layer.v1.tar+zstd",
        "none": f"{_OCI}.layer.v1.tar",
    },
    "docker": {
        "index": f"{_DOCKER}.distribution.manifest.list.v2+json",
        "manifest": f"{_DOCKER}.distribution.manifest.v2+json",
        "config": f"{_DOCKER}.container.image.v1+json",
        "gzip": f"{_DOCKER}.image.rootfs.diff.tar.gzip",
        "zstd": f"{_DOCKER}.image.rootfs.diff.tar.zstd",
        "none": f"{_DOCKER}.image.rootfs.diff.tar",
    },
}

Layers = Sequence[LayerBuilder | bytes]


def host_architecture() -> str:
    """Return this machine's architecture as images name it."""
    return _MACHINES.get(host.machine(), host.machine())


def write_layout(
    folder: Path,
    layers: Layers,
    *,
    tag: str,
    compression: Compression = "gzip",
    architecture: str | None = None,
    variant: str | None = None,
    os: str = "linux",
    config: Mapping[str, Any] | None = None,
    flavour: Flavour = "oci",
) -> str:
    """Write an image into the OCI image layout ``folder``, made where it is missing.

    Args:
        folder: the layout; images that it holds already stay, but for the same tag.
        layers: bottom first; tars, uncompressed.
        tag: the image's ``org.opencontainers.image.ref.name``.
        compression: of the layers' blobs.
        architecture: this host's if left out.
        variant: of the architecture, e.g. ``v8``.
        os: the operating system.
        config: the ``config`` object of the image's configuration: ``Env``, ``Cmd``, …
        flavour: media types of OCI, or of Docker's schema 2.

    Returns:
        The digest of the image's manifest.
    """
    types = _TYPES[flavour]
    platform = _platform(architecture, variant, os)
    entry = _write_image(folder, layers, platform, compression, config or {}, types)
    _add_to_index(folder, entry, tag)
    return str(entry["digest"])


def write_index(
    folder: Path,
    platforms: Mapping[str, Layers],
    *,
    tag: str,
    compression: Compression = "gzip",
    flavour: Flavour = "oci",
) -> str:
    """Write an image of several platforms (``os/architecture[/variant]``) into a layout.

    Returns:
        The digest of the image index that ``tag`` names.
    """
    types = _TYPES[flavour]
    entries = []
    for name, layers in platforms.items():
        os, architecture, *variant = name.split("/")
        platform = _platform(architecture, variant[0] if variant else None, os)
        entry = _write_image(folder, layers, platform, compression, {}, types)
        entries.append(entry | {"platform": platform})
    index = {"schemaVersion": 2, "mediaType": types["index"], "manifests": entries}
    entry = _blob(folder, _json(index), types["index"])
    _add_to_index(folder, entry, tag)
    return str(entry["digest"])


def docker_archive(
    path: Path,
    layers: Layers,
    tag: str,
    *,
    architecture: str | None = None,
    config: Mapping[str, Any] | None = None,
) -> str:
    """Write an image as ``docker save`` did before it wrote OCI layouts too.

    Returns:
        The digest of the image's configuration, which is the image id.
    """
    data = [_tar_bytes(layer) for layer in layers]
    configuration = _configuration(data, _platform(architecture, None, "linux"), config or {})
    image_id = hashlib.sha256(configuration).hexdigest()
    names = [f"{number:064x}/layer.tar" for number in range(1, len(data) + 1)]
    manifest = [{"Config": f"{image_id}.json", "RepoTags": [tag], "Layers": names}]
    archive = LayerBuilder()
    for name, layer in zip(names, data, strict=True):
        archive.folder(name.partition("/")[0])
        archive.file(name.partition("/")[0] + "/VERSION", b"1.0")
        archive.file(name, layer)
    archive.file(f"{image_id}.json", configuration)
    archive.file("manifest.json", _json(manifest))
    path.write_bytes(archive.finish())
    return f"sha256:{image_id}"


def oci_archive(path: Path, layout: Path) -> None:
    """Pack a layout folder into one tar, as ``oci-archive:`` has it."""
    archive = LayerBuilder()
    for item in sorted(layout.rglob("*")):
        name = item.relative_to(layout).as_posix()
        if item.is_dir():
            archive.folder(name)
        else:
            archive.file(name, item.read_bytes())
    path.write_bytes(archive.finish())


def _platform(architecture: str | None, variant: str | None, os: str) -> dict[str, str]:
    platform = {"architecture": architecture or host_architecture(), "os": os}
    return platform | ({"variant": variant} if variant else {})


def _write_image(
    folder: Path,
    layers: Layers,
    platform: Mapping[str, str],
    compression: Compression,
    config: Mapping[str, Any],
    types: Mapping[str, str],
) -> dict[str, Any]:
    data = [_tar_bytes(layer) for layer in layers]
    configuration = _configuration(data, platform, config)
    manifest = {
        "schemaVersion": 2,
        "mediaType": types["manifest"],
        "config": _blob(folder, configuration, types["config"]),
        "layers": [
            _blob(folder, _compress(layer, compression), types[compression]) for layer in data
        ],
    }
    return _blob(folder, _json(manifest), types["manifest"])


def _tar_bytes(layer: LayerBuilder | bytes) -> bytes:
    return layer.finish() if isinstance(layer, LayerBuilder) else layer


def _configuration(
    layers: Sequence[bytes], platform: Mapping[str, str], config: Mapping[str, Any]
) -> bytes:
    diff_ids = [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers]
    return _json(
        {
            **platform,
            "created": "2023-11-14T22:13:20Z",
            "config": dict(config),
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        }
    )


def _compress(data: bytes, compression: Compression) -> bytes:
    if compression == "gzip":
        return gzip.compress(data, 5, mtime=0)
    if compression == "zstd":
        return zstandard.ZstdCompressor(level=3).compress(data)
    return data


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def _blob(folder: Path, data: bytes, media_type: str) -> dict[str, Any]:
    digest = hashlib.sha256(data).hexdigest()
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    (blobs / digest).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}


def _add_to_index(folder: Path, entry: dict[str, Any], tag: str) -> None:
    key = "org.opencontainers.image.ref.name"
    (folder / "oci-layout").write_bytes(_json({"imageLayoutVersion": "1.0.0"}))
    path = folder / "index.json"
    index: dict[str, Any] = {"schemaVersion": 2, "manifests": []}
    if path.exists():
        index = json.loads(path.read_bytes())
    kept = [old for old in index["manifests"] if old.get("annotations", {}).get(key) != tag]
    index["manifests"] = [*kept, entry | {"annotations": {key: tag}}]
    path.write_bytes(_json(index))
