"""From what a reference names to the one image for a platform.

An index may hold manifests and further indexes; its entries' platforms are
believed when choosing, then compared with what the image's configuration says.
Attestations are not images. Of several that would run, the closest variant wins,
then the first. Nothing that does not run on the platform is ever chosen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from bootstream.errors import BootstreamError, Corrupt, ImageNotFound, InvalidInput
from bootstream.images.digest import digest_of, split_digest
from bootstream.images.image import BlobSource, SourcedImage, assemble
from bootstream.images.manifest import (
    Descriptor,
    Index,
    Manifest,
    parse_document,
)
from bootstream.images.platform import Platform

MAX_DEPTH = 4
MAX_DOCUMENTS = 64


def choose(
    source: BlobSource,
    roots: Sequence[Descriptor],
    *,
    reference: str,
    platform: Platform | None,
    raw_root: bytes | None = None,
) -> SourcedImage:
    """Return the image for ``platform``, this host's own if None.

    Args:
        source: where manifests and configurations are read from.
        roots: what the reference names: one descriptor, or several that differ by platform.
        reference: in full, for errors and as the image's own.
        platform: what it must run on.
        raw_root: the document of a single root, where it was read already.

    Raises:
        ImageNotFound: there is no image for the platform; says which ones there are.
        Corrupt, InvalidInput: a document on the way is malformed or no image.
    """
    wanted = platform or Platform.host()
    reader = _Reader(source, reference)
    if raw_root is not None:
        reader.known[roots[0].digest] = raw_root
    offered: list[Platform] = []
    best: tuple[int, _Found] | None = None
    for found in reader.walk(roots):
        if found.platform is not None:
            offered.append(found.platform)
        distance = 0 if found.platform is None else wanted.distance(found.platform)
        if distance is not None and (best is None or distance < best[0]):
            best = distance, found
    if best is None:
        raise _not_offered(reference, wanted, offered)
    image = reader.image(best[1], wanted)
    if wanted.distance(image.platform) is None:
        raise _not_offered(reference, wanted, [*offered, image.platform])
    return image


@dataclass(frozen=True, slots=True)
class _Found:
    """An image manifest; its platform is None until its configuration was read."""

    descriptor: Descriptor
    platform: Platform | None
    image: SourcedImage | None = None


class _Reader:
    """Reads documents, each at most once, and not more than a bounded number of them."""

    def __init__(self, source: BlobSource, reference: str) -> None:
        self.known: dict[str, bytes] = {}
        self._source = source
        self._reference = reference

    def document(self, descriptor: Descriptor) -> tuple[bytes, Manifest | Index]:
        """Return a document as bytes and parsed."""
        if descriptor.digest not in self.known:
            if len(self.known) >= MAX_DOCUMENTS:
                raise Corrupt(
                    f"more than {MAX_DOCUMENTS} manifests had to be read to choose one",
                    operation="resolve",
                    object=self._reference,
                    remedy="name the image by its digest",
                )
            self.known[descriptor.digest] = self._source.read_document(descriptor)
        data = self.known[descriptor.digest]
        name = f"{self._reference}, manifest {descriptor.digest}"
        return data, parse_document(data, media_type=descriptor.media_type, what=name)

    def walk(self, roots: Iterable[Descriptor], depth: int = 0) -> Iterator[_Found]:
        """Yield every image below ``roots``, in order; those without a platform are read."""
        for descriptor in roots:
            if descriptor.is_attestation:
                continue
            if descriptor.platform is not None and _is_manifest(descriptor):
                yield _Found(descriptor, descriptor.platform)
                continue
            _, document = self.document(descriptor)
            if isinstance(document, Index):
                if depth + 1 >= MAX_DEPTH:
                    raise Corrupt(
                        f"indexes are nested more than {MAX_DEPTH} deep",
                        operation="resolve",
                        object=self._reference,
                    )
                yield from self.walk(document.manifests, depth + 1)
            elif descriptor.platform is not None:
                yield _Found(descriptor, descriptor.platform)
            elif depth == 0:
                image = self.image(_Found(descriptor, None), None)
                yield _Found(descriptor, image.platform if image.platform.os else None, image)
            else:
                yield from self._read_platform(descriptor)

    def _read_platform(self, descriptor: Descriptor) -> Iterator[_Found]:
        """An index's entry that names no platform: an image, or something else to pass over."""
        try:
            image = self.image(_Found(descriptor, None), None)
        except InvalidInput:
            return
        yield _Found(descriptor, image.platform if image.platform.os else None, image)

    def image(self, found: _Found, wanted: Platform | None) -> SourcedImage:
        """Return the image of a manifest."""
        if found.image is not None and (wanted is None or found.image.platform.os):
            return found.image
        data, document = self.document(found.descriptor)
        if isinstance(document, Index):
            raise Corrupt(
                f"{found.descriptor.digest} is an index where an image was promised",
                operation="resolve",
                object=self._reference,
            )
        return assemble(
            self._source,
            reference=self._reference,
            digest=found.descriptor.digest,
            raw_manifest=data,
            manifest=document,
            described=found.platform,
            fallback=wanted or Platform("", ""),
        )


def _is_manifest(descriptor: Descriptor) -> bool:
    return ".manifest.v" in descriptor.media_type and "list" not in descriptor.media_type


def _not_offered(reference: str, wanted: Platform, offered: Sequence[Platform]) -> BootstreamError:
    names = sorted({str(platform) for platform in offered})
    there = f"there is {', '.join(names)}" if names else "it has no images at all"
    return ImageNotFound(
        f"it has no image for {wanted}; {there}",
        operation="resolve",
        object=reference,
        remedy=f"choose with --platform: {' or '.join(names)}" if names else None,
    )


def root_of(data: bytes, media_type: str, *, digest: str | None = None) -> Descriptor:
    """Return the descriptor of a document that was read by name, of a digest that was asked for."""
    algorithm = split_digest(digest)[0] if digest else "sha256"
    return Descriptor(media_type, digest_of(data, algorithm), len(data))
