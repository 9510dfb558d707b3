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

from bootstream.errors import InvalidInput

if TYPE_CHECKING:
    from bootstream.block.cache import NodeCache
    from bootstream.block.device import Device
    from bootstream.config import Settings
    from bootstream.images.cache import BlobCache
    from bootstream.images.image import Image
    from bootstream.storage.protocol import StorageProvider
    from bootstream.templates.build import TemplateBuilder
    from bootstream.templates.manifest import Manifest
