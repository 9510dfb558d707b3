"""The stack of a device, from a build to something that can be exported.

Outermost first::

    overlay     what a client writes; per export, so it lies above what is shared
    chunked     from image offsets to chunks; needs the index, whole, in memory
    node cache  decoded, verified chunks in segments on disk, shared by every export
    fetcher     range requests to packs, decoded and checked; goes through the stack above
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from bootstream.block.cache import NodeCache
    from bootstream.block.chunked import ChunkedDevice
    from bootstream.block.device import Device
    from bootstream.block.overlay import Overlay
    from bootstream.chunks.index import Index
    from bootstream.config import Settings
    from bootstream.storage.protocol import StorageProvider
    from bootstream.templates.manifest import Manifest

_INDEXES = 256 << 20
"""Bytes of indexes to keep on a host, at most; and a sixteenth of what chunks may take."""

# Imports are inside: a command pays only for the layers it uses.


def open_device(
    storage: StorageProvider,
    cache: NodeCache | None,
    manifest: Manifest,
    artifact: str,
    *,
    patience: float = 30.0,
) -> ChunkedDevice:
    """Return an artifact of a build as a read-only device; its index is loaded now.

    The index is kept beside the cache's chunks, and comes from there the next time. A reader
    waits ``patience`` seconds for a store that has trouble before it gets the error.

    Raises:
        InvalidInput: the build has no such artifact.
        Corrupt: the index is not the one that the manifest vouches for.
    """
    from bootstream.block.chunked import ChunkedDevice  # noqa: PLC0415 - see above
    from bootstream.block.indexes import IndexCache  # noqa: PLC0415
    from bootstream.chunks.reader import ChunkReader, load_index  # noqa: PLC0415

    entry = manifest.artifact(artifact)
    load: Callable[..., Index] = load_index
    if cache is not None:
        load = IndexCache(cache.folder / "indexes", min(_INDEXES, cache.limit // 16)).load
    index = load(
        storage,
        manifest.build_id,
        artifact,
        sha256=entry.index_sha256,
        size=entry.index_size,
    )
    reader = ChunkReader(storage, index)
    return ChunkedDevice(reader, cache, store=storage.details().identity, patience=patience)


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
