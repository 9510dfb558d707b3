"""Container images as immutable, lazy values.

``resolve`` turns a reference into an ``Image``: one manifest for one platform,
read from a registry, an OCI layout or an archive, with everything checked against
its digest. ``BlobCache`` keeps what comes from registries.
"""

from bootstream.images.cache import BlobCache
from bootstream.images.resolver import resolve

__all__ = ["BlobCache", "resolve"]
