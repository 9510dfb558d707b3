"""Container images as immutable values; what a source of images has to supply.

An image is resolved to one manifest and its configuration; its layers stay where
they are until they are fetched or opened. A source (registry, layout, archive)
supplies the methods of ``BlobSource``; all the rest is derived here, once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

from bootstream.errors import Corrupt, InvalidInput
from bootstream.images.digest import verify
from bootstream.images.layers import DecodedLayer, RawReader
from bootstream.images.manifest import (
    MAX_CONFIG,
    Descriptor,
    ImageConfig,
    Manifest,
    parse_config,
)
from bootstream.images.platform import Platform
from bootstream.progress import Progress

__all__ = [
    "BlobSource",
    "Image",
    "ImageConfig",
    "Layer",
    "LayerStream",
    "Platform",
    "RawReader",
    "SourcedImage",
    "SourcedLayer",
    "assemble",
]


class LayerStream(Protocol):
    """A layer's uncompressed tar, read once from start to end by one thread."""

    def read(self, size: int, /) -> bytes:
        """Return 1 to ``size`` bytes, or ``b""`` at the end. A short read is not the end.

        Raises:
            Corrupt: the compressed data ends early, has something after its end, or
                the whole differs from the layer's diff id (only known at the end).
            InvalidInput: it is compressed in a way that cannot be read here.
        """
        ...

    def close(self) -> None:
        """Release what it holds; idempotent, also before the end."""
        ...

    def __enter__(self) -> LayerStream: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


class Layer(Protocol):
    """One layer of an image. Safe to open several times, from several threads."""

    @property
    def diff_id(self) -> str:
        """The digest of the uncompressed tar."""
        ...

    @property
    def digest(self) -> str:
        """The digest of the blob as stored."""
        ...

    @property
    def size(self) -> int:
        """Bytes of the blob as stored."""
        ...

    @property
    def media_type(self) -> str:
        """What the manifest calls it; how it is really compressed is seen when it is opened."""
        ...

    def open(self) -> LayerStream:
        """Open it at its start; brings it into reach first if ``fetch`` did not."""
        ...

    def open_blob(self) -> RawReader:
        """Open the blob as stored, unchecked."""
        ...


class Image(Protocol):
    """One image for one platform."""

    @property
    def reference(self) -> str:
        """The reference that was resolved, in full: ``docker.io/library/debian:12``."""
        ...

    @property
    def digest(self) -> str:
        """The digest of the manifest that was chosen."""
        ...

    @property
    def platform(self) -> Platform:
        """What it runs on."""
        ...

    @property
    def config(self) -> ImageConfig:
        """How its program is started."""
        ...

    @property
    def layers(self) -> Sequence[Layer]:
        """Its layers, bottom first."""
        ...

    @property
    def raw_manifest(self) -> bytes:
        """The manifest, to the byte."""
        ...

    @property
    def raw_config(self) -> bytes:
        """The configuration, to the byte."""
        ...

    def fetch(self, progress: Progress) -> None:
        """Bring all layers into reach and check them against their digests; phase ``pull``.

        Raises:
            Corrupt: a blob is not what its digest says.
            NotFound, PermissionDenied, Throttled, Unavailable, StorageFull: of the source.
            Cancelled: from ``progress``, passed on.
        """
        ...


class BlobSource(Protocol):
    """Where blobs come from. Safe to use from several threads."""

    def read_document(self, descriptor: Descriptor) -> bytes:
        """Return a manifest or an index, verified; registries keep them apart from blobs.

        Raises:
            Corrupt: it is larger than ``MAX_MANIFEST``, or not what its digest and size say.
            ImageNotFound: the source has no such document.
        """
        ...

    def read(self, descriptor: Descriptor, limit: int) -> bytes:
        """Return a small blob (a configuration) of at most ``limit`` bytes, verified.

        Raises:
            Corrupt: it is larger, or not what its digest and size say.
            ImageNotFound: the source has no such blob.
        """
        ...

    def open(self, descriptor: Descriptor) -> RawReader:
        """Open a blob at its start, for one thread.

        Raises:
            ImageNotFound: the source has no such blob.
        """
        ...

    def fetch(self, descriptors: Sequence[Descriptor], progress: Progress) -> None:
        """Bring blobs into reach and check them; each at most once. See ``Image.fetch``."""
        ...

    def damaged(self, descriptor: Descriptor) -> str:
        """A blob's contents were found wrong: forget it where possible; say what that means."""
        ...


@dataclass(frozen=True, slots=True)
class SourcedLayer:
    """A layer that a source holds."""

    descriptor: Descriptor
    diff_id: str
    source: BlobSource
    name: str

    @property
    def digest(self) -> str:
        """See ``Layer``."""
        return self.descriptor.digest

    @property
    def size(self) -> int:
        """See ``Layer``."""
        return self.descriptor.size

    @property
    def media_type(self) -> str:
        """See ``Layer``."""
        return self.descriptor.media_type

    def open(self) -> LayerStream:
        """See ``Layer``."""
        return DecodedLayer(
            self.open_blob(),
            diff_id=self.diff_id,
            name=f"{self.name}, layer {self.digest}",
            damaged=lambda: self.source.damaged(self.descriptor),
        )

    def open_blob(self) -> RawReader:
        """See ``Layer``."""
        return self.source.open(self.descriptor)


@dataclass(frozen=True, slots=True)
class SourcedImage:
    """An image that a source holds."""

    reference: str
    digest: str
    platform: Platform
    config: ImageConfig
    layers: tuple[SourcedLayer, ...]
    raw_manifest: bytes
    raw_config: bytes
    source: BlobSource

    def fetch(self, progress: Progress) -> None:
        """See ``Image``."""
        unique = {layer.digest: layer.descriptor for layer in self.layers}
        progress.phase("pull", sum(descriptor.size for descriptor in unique.values()))
        self.source.fetch(list(unique.values()), progress)
        progress.done("pull")


def assemble(
    source: BlobSource,
    *,
    reference: str,
    digest: str,
    raw_manifest: bytes,
    manifest: Manifest,
    described: Platform | None,
    fallback: Platform,
) -> SourcedImage:
    """Return the image of a manifest; reads and checks its configuration.

    ``described`` is its platform by the index it is in; ``fallback`` where neither that nor
    the configuration names one.

    Raises:
        Corrupt, InvalidInput: the manifest or its configuration describes no image.
    """
    verify(raw_manifest, digest, what=f"{reference}, manifest")
    raw_config = source.read(manifest.config, MAX_CONFIG)
    parsed = parse_config(raw_config, what=f"{reference}, configuration")
    if len(parsed.diff_ids) != len(manifest.layers):
        raise Corrupt(
            f"its manifest has {len(manifest.layers)} layers, its configuration "
            f"{len(parsed.diff_ids)}",
            operation="read",
            object=reference,
        )
    for layer in manifest.layers:
        if layer.media_type.endswith("+encrypted"):
            raise InvalidInput(
                f"layer {layer.digest} is encrypted",
                operation="read",
                object=reference,
                remedy="decrypt the image first: skopeo copy --decryption-key KEY …",
            )
    layers = tuple(
        SourcedLayer(descriptor, diff_id, source, reference)
        for descriptor, diff_id in zip(manifest.layers, parsed.diff_ids, strict=True)
    )
    return SourcedImage(
        reference=reference,
        digest=digest,
        platform=parsed.platform_beside(described) or fallback,
        config=parsed.config,
        layers=layers,
        raw_manifest=raw_manifest,
        raw_config=raw_config,
        source=source,
    )
