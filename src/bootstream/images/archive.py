"""Images in archives: an OCI layout in a tar, and what ``docker save`` writes.

A ``docker save`` archive has a ``manifest.json``: a list of images, each with
``Config`` (a member's name), ``RepoTags`` and ``Layers`` (members' names, bottom
first). Up to Docker 24 layers are ``<id>/layer.tar``, repeated ones symbolic
links; from 25 on they are ``blobs/sha256/<hex>`` and an OCI layout lies around
them. It has no manifest to take a digest from: one is made of what is there, in a
fixed form, as copying it to a registry would.

An archive as a whole may be compressed; it is then decoded to an unnamed file
beside the blob cache first. Members are read where they lie.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import dup
from pathlib import Path
from typing import Any

from bootstream.errors import BootstreamError, Corrupt, ImageNotFound, InvalidInput
from bootstream.images.choice import choose
from bootstream.images.compression import decompress
from bootstream.images.digest import digest_of, new_hash
from bootstream.images.files import FileSlice, SharedFile, read_small, write_error
from bootstream.images.image import SourcedImage
from bootstream.images.layout import open_layout
from bootstream.images.local import LocalSource, Piece, read_file
from bootstream.images.manifest import (
    DOCKER_CONFIG,
    DOCKER_LAYER,
    DOCKER_MANIFEST,
    MAX_CONFIG,
    MAX_LAYERS,
    MAX_MANIFEST,
    Descriptor,
    parse_config,
    parse_json,
)
from bootstream.images.platform import Platform
from bootstream.images.reference import (
    DockerArchiveReference,
    LayoutReference,
    RegistryReference,
    parse_name,
)
from bootstream.images.tarindex import TarIndex

_MANIFEST = "manifest.json"
_COMPRESSED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ\x00")
_SUFFIXES = {b"\x1f\x8b": ".gzip", b"\x28\xb5\x2f\xfd": ".zstd"}
"""Of the media types of compressed layers."""


def open_archive(path: str, *, scratch: Callable[[], Path]) -> TarIndex:
    """Return the members of the archive at ``path``.

    Args:
        path: a tar, plain or compressed.
        scratch: returns an existing folder with room for the decoded archive; called only
            if it is compressed.

    Raises:
        ImageNotFound: there is no such file.
        Corrupt: it is no archive, damaged, or has members that it must not have.
        StorageFull: the scratch folder has no room.
    """
    file = SharedFile.open(path, what="an archive")
    if file.read_at(0, 6).startswith(_COMPRESSED):
        file = _decode(file, scratch())
    return TarIndex(file, name=path)


def _decode(file: SharedFile, scratch: Path) -> SharedFile:
    reader = FileSlice(file)
    try:
        with tempfile.TemporaryFile(dir=scratch) as target:
            for piece in decompress(reader.read, name=file.name):
                target.write(piece)
            target.flush()
            return SharedFile(dup(target.fileno()), file.name)
    except OSError as error:
        raise write_error(error, str(scratch)) from error


def open_oci_archive(
    reference: LayoutReference, *, scratch: Callable[[], Path], platform: Platform | None
) -> SourcedImage:
    """Return an image of an OCI layout in a tar; see ``open_layout`` and ``open_archive``."""
    members = open_archive(reference.path, scratch=scratch)
    _check_unique(members, "index.json")
    return open_layout(members, reference, platform=platform)


def open_docker_archive(
    reference: DockerArchiveReference, *, scratch: Callable[[], Path], platform: Platform | None
) -> SourcedImage:
    """Return an image of what ``docker save`` wrote.

    Raises:
        ImageNotFound: no such file, or no such image or platform in it.
        InvalidInput: it has several images and the reference names none.
        Corrupt: it is damaged.
    """
    source, root, manifest = select_saved(reference, scratch=scratch)
    return choose(source, [root], reference=str(reference), platform=platform, raw_root=manifest)


def select_saved(
    reference: DockerArchiveReference, *, scratch: Callable[[], Path]
) -> tuple[LocalSource, Descriptor, bytes]:
    """Return an archive's blobs, and the manifest that is made for an image in it.

    Raises:
        ImageNotFound, InvalidInput, Corrupt: as ``open_docker_archive``.
    """
    members = open_archive(reference.path, scratch=scratch)
    _check_unique(members, _MANIFEST)
    entry = _select(_entries(members), reference)
    raw_config = _read_config(members, entry.config)
    parsed = parse_config(raw_config, what=f"{reference.path}, {entry.config}")
    if len(parsed.diff_ids) != len(entry.layers):
        raise _corrupt(
            reference.path,
            f"an image has {len(entry.layers)} layers, its configuration {len(parsed.diff_ids)}",
        )
    layers = [
        _describe(members, name, diff_id)
        for name, diff_id in zip(entry.layers, parsed.diff_ids, strict=True)
    ]
    config = Descriptor(DOCKER_CONFIG, digest_of(raw_config), len(raw_config))
    manifest = _make_manifest(config, layers)
    names = {config.digest: entry.config}
    names |= {layer.digest: name for layer, name in zip(layers, entry.layers, strict=True)}
    root = Descriptor(DOCKER_MANIFEST, digest_of(manifest), len(manifest))
    return LocalSource(members, lambda descriptor: names[descriptor.digest]), root, manifest


@dataclass(frozen=True, slots=True)
class _Entry:
    config: str
    tags: tuple[str, ...]
    layers: tuple[str, ...]


def _entries(members: TarIndex) -> list[_Entry]:
    try:
        data = read_file(members, _MANIFEST, MAX_MANIFEST)
    except ImageNotFound as error:
        raise InvalidInput(
            "it is not what 'docker save' writes: it has no manifest.json",
            operation="open",
            object=members.name,
            remedy="for an OCI layout in a tar, write oci-archive:FILE",
        ) from error
    document = parse_json(data, what=f"{members.name}, {_MANIFEST}")
    if not isinstance(document, list):
        raise _corrupt(members.name, f"{_MANIFEST} is not a list of images")
    return [_entry(item, members.name) for item in document]


def _entry(item: Any, path: str) -> _Entry:
    if not isinstance(item, dict):
        raise _corrupt(path, f"{_MANIFEST} has an entry that is no image")
    config, tags, layers = item.get("Config"), item.get("RepoTags"), item.get("Layers")
    tags, layers = tags or [], layers or []
    if (
        not isinstance(config, str)
        or not _are_strings(tags)
        or not _are_strings(layers)
        or len(layers) > MAX_LAYERS
    ):
        raise _corrupt(path, f"{_MANIFEST} has an entry that is no image")
    return _Entry(config, tuple(tags), tuple(layers))


def _are_strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _select(entries: Sequence[_Entry], reference: DockerArchiveReference) -> _Entry:
    tags = [tag for entry in entries for tag in entry.tags]
    known = f"; its images: {', '.join(map(_plain, tags[:20]))}" if tags else ""
    if reference.number is not None:
        if reference.number < len(entries):
            return entries[reference.number]
        raise _missing(reference, f"the archive has {len(entries)} images, counted from 0")
    if reference.image is not None:
        for entry in entries:
            if any(_same(tag, reference.image) for tag in entry.tags):
                return entry
        raise _missing(reference, f"the archive has no such image{known}")
    if not entries:
        raise _missing(reference, "the archive has no images")
    if len(entries) > 1:
        raise InvalidInput(
            f"the archive has {len(entries)} images{known}",
            operation="resolve",
            object=str(reference),
            remedy=f"name one: {reference}:NAME:TAG, or by number, {reference}:@0",
        )
    return entries[0]


def _same(tag: str, wanted: RegistryReference) -> bool:
    try:
        return parse_name(tag) == wanted
    except InvalidInput:
        return False


def _plain(tag: str) -> str:
    return ascii(tag)[1:-1][:300]


def _missing(reference: DockerArchiveReference, problem: str) -> ImageNotFound:
    return ImageNotFound(problem, operation="resolve", object=str(reference))


def _read_config(members: TarIndex, name: str) -> bytes:
    """Return the configuration; where its name is its digest, that is checked."""
    piece = _member(members, name)
    data = read_small(piece.file, piece.offset, piece.size, MAX_CONFIG)
    stem = name.rpartition("/")[2].removesuffix(".json")
    if len(stem) == 64 and not stem.strip("0123456789abcdef") and digest_of(data)[7:] != stem:
        raise _corrupt(members.name, f"the configuration {name} is not what its name says")
    return data


def _member(members: TarIndex, name: str) -> Piece:
    try:
        return members.locate(name)
    except ImageNotFound as error:
        raise _corrupt(members.name, f"its image needs {_plain(name)}, which is missing") from error


def _describe(members: TarIndex, name: str, diff_id: str) -> Descriptor:
    """Describe a layer. A plain one's digest is its diff id; others are hashed here."""
    piece = _member(members, name)
    digest, suffix = diff_id, ""
    start = piece.file.read_at(piece.offset, min(6, piece.size))
    if start.startswith(_COMPRESSED):
        suffix = next((name for mark, name in _SUFFIXES.items() if start.startswith(mark)), "")
        reader = FileSlice(piece.file, piece.offset, piece.size)
        hashed = new_hash("sha256:")
        while data := reader.read(1 << 20):
            hashed.update(data)
        digest = f"sha256:{hashed.hexdigest()}"
    return Descriptor(DOCKER_LAYER + suffix, digest, piece.size)


def _make_manifest(config: Descriptor, layers: Sequence[Descriptor]) -> bytes:
    def entry(descriptor: Descriptor) -> dict[str, object]:
        return {
            "mediaType": descriptor.media_type,
            "size": descriptor.size,
            "digest": descriptor.digest,
        }

    document = {
        "schemaVersion": 2,
        "mediaType": DOCKER_MANIFEST,
        "config": entry(config),
        "layers": [entry(layer) for layer in layers],
    }
    return json.dumps(document, separators=(",", ":")).encode()


def _check_unique(members: TarIndex, name: str) -> None:
    if name in members.repeated:
        raise _corrupt(members.name, f"it has more than one {name}")


def _corrupt(path: str, problem: str) -> BootstreamError:
    return Corrupt(problem, operation="read archive", object=path)
