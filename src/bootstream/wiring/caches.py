"""What a host keeps so as not to fetch it again."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bootstream.block.cache import NodeCache
    from bootstream.config import Settings
    from bootstream.images.cache import BlobCache

# Imports are inside: a command pays only for the layers it uses.


def open_node_cache(settings: Settings) -> NodeCache:
    """Return the cache of decoded chunks that all exports of this host share."""
    from bootstream.block.cache import NodeCache  # noqa: PLC0415 - see above

    return NodeCache(settings.cache_dir / "node", limit=settings.cache_size)


def open_blob_cache(settings: Settings) -> BlobCache:
    """Return the cache of image layers."""
    from bootstream.images.cache import BlobCache  # noqa: PLC0415 - see above

    return BlobCache(settings.cache_dir / "blobs")
