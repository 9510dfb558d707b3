"""Container images as immutable, lazy values.

``resolve`` turns a reference into an ``Image``: one manifest for one platform,
read from a registry, an OCI layout or an archive, with everything checked against
its digest. ``BlobCache`` keeps what comes from registries.

Both are imported on first use: most commands only need the types in
``bootstream.images.image``, and an HTTP client takes a while to load.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bootstream.images.cache import BlobCache
    from bootstream.images.resolver import resolve

__all__ = ["BlobCache", "resolve"]


def __getattr__(name: str) -> object:
    """Import what is asked for (PEP 562)."""
    if name == "BlobCache":
        from bootstream.images.cache import BlobCache  # noqa: PLC0415 - see above

        return BlobCache
    if name == "resolve":
        from bootstream.images.resolver import resolve  # noqa: PLC0415 - see above

        return resolve
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
