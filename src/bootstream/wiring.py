"""The one place where the stacks are assembled, from settings to working objects.

Storage, outermost first::

    prefix      every name gets TEMPLATE_BUCKET_PREFIX before anything else sees it, so
                that what retry says of an object is the name it has in the bucket
    retry       the only layer that repeats requests; one request of the prefix is one of
                the store, so nothing above multiplies attempts
    provider    raw: it maps errors and says which of them are transient

A device, outermost first::

    overlay     what a client writes; per export, so it lies above what is shared
    chunked     from image offsets to chunks; needs the index, whole, in memory
    node cache  decoded, verified chunks in segments on disk, shared by every export
    fetcher     range requests to packs, decoded and checked; goes through the stack above
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bootstream.block.cache import NodeCache
    from bootstream.block.device import Device
    from bootstream.block.overlay import Overlay
    from bootstream.config import Settings
    from bootstream.images.cache import BlobCache
    from bootstream.images.image import Image
    from bootstream.storage.protocol import StorageProvider
    from bootstream.templates.build import TemplateBuilder
    from bootstream.templates.manifest import Manifest

# Imports are inside: a command pays only for the layers it uses.


def open_storage(settings: Settings) -> StorageProvider:
    """Return the store that the settings name, ready for use by the templates layer."""
    from bootstream.storage.local import LocalStorageProvider  # noqa: PLC0415 - see above
    from bootstream.storage.prefix import PrefixStorageProvider  # noqa: PLC0415
    from bootstream.storage.retry import RetryStorageProvider  # noqa: PLC0415

    storage: StorageProvider = RetryStorageProvider(LocalStorageProvider(settings.local_base_path))
    if settings.template_bucket_prefix:
        storage = PrefixStorageProvider(storage, settings.template_bucket_prefix)
    return storage


def open_node_cache(settings: Settings) -> NodeCache:
    """Return the cache of decoded chunks that all exports of this host share."""
    from bootstream.block.cache import NodeCache  # noqa: PLC0415 - see above

    return NodeCache(settings.cache_dir / "node", limit=settings.cache_size)


def open_device(
    storage: StorageProvider, cache: NodeCache | None, manifest: Manifest, artifact: str
) -> Device:
    """Return an artifact of a build as a read-only device; its index is loaded now.

    Raises:
        InvalidInput: the build has no such artifact.
        Corrupt: the index is not the one that the manifest vouches for.
    """
    from bootstream.block.chunked import ChunkedDevice  # noqa: PLC0415 - see above
    from bootstream.chunks.reader import ChunkReader, load_index  # noqa: PLC0415

    entry = manifest.artifact(artifact)
    index = load_index(
        storage,
        manifest.build_id,
        artifact,
        sha256=entry.index_sha256,
        size=entry.index_size,
    )
    reader = ChunkReader(storage, index)
    return ChunkedDevice(reader, cache, store=storage.details().identity)


def open_overlay(
    settings: Settings, base: Device, path: Path | None, *, manifest: Manifest, artifact: str
) -> Overlay:
    """Return a writable device over ``base``: kept in ``path``, or thrown away if None.

    Raises:
        InvalidInput: the file belongs to another base.
    """
    from bootstream.block.overlay import Overlay  # noqa: PLC0415 - see above

    return Overlay(
        base,
        path,
        base_digest=manifest.artifact(artifact).index_sha256,
        folder=settings.cache_dir / "overlays",
    )


def open_blob_cache(settings: Settings) -> BlobCache:
    """Return the cache of image layers."""
    from bootstream.images.cache import BlobCache  # noqa: PLC0415 - see above

    return BlobCache(settings.cache_dir / "blobs")


def open_image(
    settings: Settings,
    reference: str,
    *,
    platform: str | None = None,
    plain_http: bool = False,
    ca_file: str | None = None,
) -> Image:
    """Return the container image that ``reference`` names; its layers come when fetched."""
    from bootstream.images import resolve  # noqa: PLC0415 - see above

    return resolve(
        reference,
        cache=open_blob_cache(settings),
        platform=platform,
        plain_http=plain_http,
        ca_file=ca_file,
        auth_file=settings.registry_auth_file,
    )


def open_builder(settings: Settings, storage: StorageProvider) -> TemplateBuilder:
    """Return what makes builds on this host."""
    from bootstream.templates.build import TemplateBuilder  # noqa: PLC0415 - see above

    return TemplateBuilder(
        storage, scratch=settings.cache_dir / "scratch", node_id=settings.node_id
    )
