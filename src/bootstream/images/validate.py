"""Whether everything about an image is as it says."""

from __future__ import annotations

from bootstream.errors import BootstreamError, Corrupt
from bootstream.images.digest import digest_of, new_hash, split_digest
from bootstream.images.image import Image, Layer
from bootstream.images.manifest import Manifest, parse_config, parse_document

_PIECE = 1 << 20


def validate(image: Image) -> None:
    """Read all of an image and check it against itself.

    Manifest and configuration against their digests and against what the image shows of
    them; every blob's size and digest; every layer's diff id.

    Raises:
        Corrupt: something differs; the message names every difference.
    """
    problems = [*_documents(image)]
    for number, layer in enumerate(image.layers):
        problems += [f"layer {number}: {problem}" for problem in _layer(layer)]
    if problems:
        raise Corrupt("; ".join(problems), operation="validate", object=image.reference)


def _documents(image: Image) -> list[str]:
    problems: list[str] = []
    algorithm = split_digest(image.digest)[0]
    if digest_of(image.raw_manifest, algorithm) != image.digest:
        problems.append("the manifest differs from its digest")
    manifest = parse_document(image.raw_manifest, media_type=None, what="the manifest")
    if not isinstance(manifest, Manifest):
        return [*problems, "the manifest is an index"]
    if len(image.raw_config) != manifest.config.size:
        problems.append("the configuration differs from its size")
    algorithm = split_digest(manifest.config.digest)[0]
    if digest_of(image.raw_config, algorithm) != manifest.config.digest:
        problems.append("the configuration differs from its digest")
    parsed = parse_config(image.raw_config, what="the configuration")
    shown = [(layer.digest, layer.size, layer.media_type) for layer in image.layers]
    if shown != [(layer.digest, layer.size, layer.media_type) for layer in manifest.layers]:
        problems.append("its layers are not those of the manifest")
    if tuple(layer.diff_id for layer in image.layers) != parsed.diff_ids:
        problems.append("its diff ids are not those of the configuration")
    if image.config != parsed.config:
        problems.append("its settings are not those of the configuration")
    if parsed.platform_beside(image.platform) != image.platform:
        problems.append("its platform is not that of the configuration")
    return problems


def _layer(layer: Layer) -> list[str]:
    problems: list[str] = []
    found = new_hash(layer.digest)
    size = 0
    try:
        blob = layer.open_blob()
        try:
            while data := blob.read(_PIECE):
                found.update(data)
                size += len(data)
        finally:
            blob.close()
        if size != layer.size:
            problems.append(f"the blob has {size} bytes, not {layer.size}")
        if f"{split_digest(layer.digest)[0]}:{found.hexdigest()}" != layer.digest:
            problems.append("the blob differs from its digest")
        with layer.open() as stream:
            while stream.read(_PIECE):
                pass
    except BootstreamError as error:
        problems.append(str(error))
    return problems
