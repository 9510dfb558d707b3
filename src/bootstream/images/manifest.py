"""Manifests, indexes and image configurations: bytes in, checked values out.

Formats: OCI image specification 1.1 (``manifest.md``, ``image-index.md``,
``config.md``) and Docker's "Image Manifest Version 2, Schema 2" with its manifest
list, which differ in media types only. Everything here comes from outside: sizes
are bounded before parsing, types are checked field by field, and any defect is
``Corrupt``. A document that could be read as a manifest and as an index is refused,
as the specification asks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bootstream.errors import Corrupt, InvalidInput
from bootstream.images.digest import check_digest
from bootstream.images.platform import Platform

MAX_MANIFEST = 4 << 20
MAX_CONFIG = 8 << 20
MAX_LAYERS = 4096
MAX_BLOB = 1 << 44

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
ACCEPTED = (OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST)

REF_NAME = "org.opencontainers.image.ref.name"
CONTAINERD_NAME = "io.containerd.image.name"

_SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1"
_INDEXES = frozenset({OCI_INDEX, DOCKER_LIST})
_MANIFESTS = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
_NONDISTRIBUTABLE = ("nondistributable", ".foreign.")


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What a document says of a blob: type, digest, size in bytes, and for indexes a platform."""

    media_type: str
    digest: str
    size: int
    platform: Platform | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def nondistributable(self) -> bool:
        """Whether registries may lack it on purpose (a foreign layer)."""
        return any(mark in self.media_type for mark in _NONDISTRIBUTABLE)

    @property
    def is_attestation(self) -> bool:
        """Whether it is a statement about an image (provenance, contents), not an image."""
        return "vnd.docker.reference.type" in self.annotations or (
            self.platform is not None
            and (self.platform.os, self.platform.architecture) == ("unknown", "unknown")
        )


@dataclass(frozen=True, slots=True)
class Manifest:
    """One image for one platform: a configuration, and layers, bottom first."""

    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True)
class Index:
    """Several manifests or indexes, in the order in which they are preferred."""

    media_type: str
    manifests: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """How the image's program is started, as the image says; strings are never None."""

    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    user: str = ""
    working_dir: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """A parsed configuration blob.

    ``platform`` is None where it names no architecture. Many builders leave the variant
    out, also where the index has one; ``has_variant`` tells.
    """

    config: ImageConfig
    platform: Platform | None
    has_variant: bool
    diff_ids: tuple[str, ...]

    def platform_beside(self, described: Platform | None) -> Platform | None:
        """Return its platform, with the variant that an index gives if it has none itself."""
        if self.platform is None or described is None:
            return self.platform or described
        same = (self.platform.os, self.platform.architecture) == (
            described.os,
            described.architecture,
        )
        return described if same and not self.has_variant else self.platform


def parse_json(data: bytes, *, what: str) -> Any:
    """Parse JSON from outside. Raises Corrupt for anything that is not JSON."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Corrupt("it is not valid JSON", operation="read", object=what) from error


def parse_document(data: bytes, *, media_type: str | None, what: str) -> Manifest | Index:
    """Parse a manifest or an index.

    Args:
        data: the document, at most ``MAX_MANIFEST`` bytes.
        media_type: what the place it came from says of it; the document's own
            ``mediaType`` counts more, its shape decides where neither is known.
        what: its name, for errors.

    Raises:
        Corrupt: it is neither, or malformed, or both at once.
        InvalidInput: it is one of a kind that this program does not read.
    """
    document = _mapping(parse_json(_limited(data, MAX_MANIFEST, what), what=what), what)
    kind = document.get("mediaType")
    if not isinstance(kind, str) or not kind:
        kind = (media_type or "").partition(";")[0].strip().lower()
    if kind.startswith(_SCHEMA_1) or document.get("schemaVersion") == 1:
        raise InvalidInput(
            "it is a manifest of the old schema 1, which has no digests of its layers' contents",
            operation="read",
            object=what,
            remedy="push the image again with a current tool, or convert it with skopeo copy",
        )
    has_index, has_manifest = "manifests" in document, "layers" in document or "config" in document
    if has_index and has_manifest:
        raise _corrupt("it is a manifest and an index at once", what)
    if has_index and kind not in _MANIFESTS:
        entries = _sequence(document["manifests"], "manifests", what)
        manifests = tuple(_descriptor(entry, "manifests", what) for entry in entries)
        return Index(kind if kind in _INDEXES else OCI_INDEX, manifests)
    if has_manifest and kind not in _INDEXES:
        return _manifest(document, kind if kind in _MANIFESTS else OCI_MANIFEST, what)
    raise _corrupt(f"it is not an image manifest (media type {ascii(kind)[:100]})", what)


@dataclass(frozen=True, slots=True)
class References:
    """What a document of any type needs beside itself: other documents, and blobs."""

    media_type: str
    documents: tuple[Descriptor, ...]
    blobs: tuple[Descriptor, ...]


def parse_references(data: bytes, *, media_type: str, what: str) -> References:
    """Return what a document refers to, whatever it describes: an image, a chart, a signature.

    ``subject`` is left out: what it names need not be there. The media type is the
    document's own, or the one that is said of it, or the one of its shape.

    Raises:
        Corrupt: it is malformed, or an index and a manifest at once.
        InvalidInput: it is of the old schema 1.
    """
    document = _mapping(parse_json(_limited(data, MAX_MANIFEST, what), what=what), what)
    kind = _string(document.get("mediaType"), "mediaType", what)
    kind = kind or media_type.partition(";")[0].strip()
    if "manifests" in document or "layers" in document or kind.startswith(_SCHEMA_1):
        parsed = parse_document(data, media_type=kind, what=what)
        kind = kind or parsed.media_type
        if isinstance(parsed, Index):
            return References(kind, parsed.manifests, ())
        return References(kind, (), (parsed.config, *parsed.layers))
    entries = _sequence(document.get("blobs"), "blobs", what)[:MAX_LAYERS]
    blobs = [_descriptor(entry, "blobs", what) for entry in entries]
    if document.get("config") is not None:
        blobs.append(_descriptor(document["config"], "config", what))
    return References(kind or OCI_MANIFEST, (), tuple(blobs))


def _manifest(document: Mapping[str, Any], media_type: str, what: str) -> Manifest:
    layers = _sequence(document.get("layers"), "layers", what)
    if len(layers) > MAX_LAYERS:
        raise _corrupt(f"it has {len(layers)} layers; {MAX_LAYERS} are possible", what)
    return Manifest(
        media_type,
        _descriptor(document.get("config"), "config", what),
        tuple(_descriptor(layer, "layers", what) for layer in layers),
    )


def parse_config(data: bytes, *, what: str) -> ConfigFile:
    """Parse a configuration blob of at most ``MAX_CONFIG`` bytes.

    Raises:
        Corrupt: it is malformed.
        InvalidInput: it does not describe a root file system: no container image.
    """
    document = _mapping(parse_json(_limited(data, MAX_CONFIG, what), what=what), what)
    rootfs = document.get("rootfs")
    if not isinstance(rootfs, dict) or not isinstance(rootfs.get("diff_ids"), list):
        raise InvalidInput(
            "it is not a container image: its configuration names no layers",
            operation="read",
            object=what,
        )
    diff_ids = tuple(
        check_digest(item, what=f"{what}, rootfs.diff_ids")
        for item in rootfs["diff_ids"][: MAX_LAYERS + 1]
    )
    fields = document.get("config")
    fields = {} if fields is None else _mapping(fields, f"{what}, config")
    config = ImageConfig(
        env=_strings(fields.get("Env"), "Env", what),
        entrypoint=_strings(fields.get("Entrypoint"), "Entrypoint", what),
        cmd=_strings(fields.get("Cmd"), "Cmd", what),
        user=_string(fields.get("User"), "User", what),
        working_dir=_string(fields.get("WorkingDir"), "WorkingDir", what),
        labels=_string_map(fields.get("Labels"), "Labels", what),
    )
    return ConfigFile(config, _platform(document, what), bool(document.get("variant")), diff_ids)


def _platform(value: Mapping[str, Any], what: str) -> Platform | None:
    architecture = _string(value.get("architecture"), "architecture", what)
    if not architecture:
        return None
    os = _string(value.get("os"), "os", what) or "linux"
    return Platform.make(os, architecture, _string(value.get("variant"), "variant", what))


def _descriptor(value: Any, name: str, what: str) -> Descriptor:
    entry = _mapping(value, f"{what}, {name}")
    size = entry.get("size")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= MAX_BLOB:
        raise _corrupt(f"an entry of {name} has no possible size", what)
    platform = entry.get("platform")
    return Descriptor(
        media_type=_string(entry.get("mediaType"), "mediaType", what),
        digest=check_digest(entry.get("digest"), what=f"{what}, {name}"),
        size=size,
        platform=None if platform is None else _platform(_mapping(platform, what), what),
        annotations=_string_map(entry.get("annotations"), "annotations", what),
    )


def _limited(data: bytes, limit: int, what: str) -> bytes:
    if len(data) > limit:
        raise _corrupt(f"it has {len(data)} bytes where at most {limit} are possible", what)
    return data


def _mapping(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise _corrupt("it is not a JSON object", what)
    return value


def _sequence(value: Any, name: str, what: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise _corrupt(f"{name} is not a list", what)
    return value


def _string(value: Any, name: str, what: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _corrupt(f"{name} is not a string", what)
    return value


def _strings(value: Any, name: str, what: str) -> tuple[str, ...]:
    items = _sequence(value, name, what)
    return tuple(_string(item, name, what) for item in items)


def _string_map(value: Any, name: str, what: str) -> dict[str, str]:
    if value is None:
        return {}
    return {key: _string(item, name, what) for key, item in _mapping(value, what).items()}


def _corrupt(problem: str, what: str) -> Corrupt:
    return Corrupt(problem, operation="read", object=what)
