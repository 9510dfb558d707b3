"""The one place where the stacks are assembled, from settings to working objects.

Each module has one kind of stack, and says why its order is what it is.
"""

from __future__ import annotations

from bootstream.wiring.caches import open_blob_cache, open_node_cache
from bootstream.wiring.devices import open_device, open_overlay
from bootstream.wiring.images import (
    open_builder,
    open_image,
    open_image_source,
    open_image_target,
)
from bootstream.wiring.registries import get_artifacts_registry_provider
from bootstream.wiring.stores import (
    get_template_storage_provider,
    open_provider,
    store_address,
    with_store,
)

__all__ = [
    "get_artifacts_registry_provider",
    "get_template_storage_provider",
    "open_blob_cache",
    "open_builder",
    "open_device",
    "open_image",
    "open_image_source",
    "open_image_target",
    "open_node_cache",
    "open_overlay",
    "open_provider",
    "store_address",
    "with_store",
]
