"""Reading artifacts: the index, single chunks, and whole artifacts."""

from __future__ import annotations

from collections.abc import Callable

from bootstream.chunks.export import export_artifact
from bootstream.chunks.fetch import ChunkReader
from bootstream.chunks.index import MAX_INDEX_SIZE, Index, corrupt_index
from bootstream.chunks.names import index_path
from bootstream.chunks.verify import VerifyReport, verify_artifact
from bootstream.storage.protocol import StorageProvider

__all__ = ["ChunkReader", "VerifyReport", "export_artifact", "load_index", "verify_artifact"]


def load_index(
    storage: StorageProvider,
    build_id: str,
    artifact: str,
    *,
    sha256: str | None = None,
    size: int | None = None,
    keep: Callable[[memoryview], None] | None = None,
) -> Index:
    """Load the index of an artifact, with one request where ``size`` is known.

    Args:
        storage: where it is.
        build_id: whose artifact it is.
        artifact: its name.
        sha256: the digest in hex that the build's manifest names; None: unverified but for
            the checksum that an index carries itself.
        size: the index object's size in bytes, by the manifest.
        keep: is given the index object's bytes, once they are proved.

    Raises:
        ObjectNotFound: there is none.
        Corrupt: it differs from the manifest, or from its format.
        InvalidInput: it was written by a newer version.
    """
    path = index_path(build_id, artifact)
    target = storage.open_object(path)
    expected = target.size() if size is None else size
    if not 0 < expected <= MAX_INDEX_SIZE:
        raise corrupt_index(f"{expected} bytes are no size of an index", path)
    buffer = bytearray(expected + 1)  # one more than it may have: a longer object shows
    count = target.read_at(buffer, 0)
    if count != expected:
        longer = "more than" if count > expected else f"{count} instead of"
        raise corrupt_index(f"it has {longer} the {expected} bytes that the manifest says", path)
    index = Index.parse(memoryview(buffer)[:count], name=path)
    if sha256 is not None and index.digest != sha256:
        raise corrupt_index("it is not the index that the manifest names", path)
    if keep is not None:
        keep(memoryview(buffer)[:count])
    return index
