"""What can be derived from the storage protocol, written once."""

from __future__ import annotations

from bootstream.errors import Corrupt, ObjectNotFound, Unavailable
from bootstream.storage.protocol import StorageObject, WritableBuffer

_TRIES = 32  # each of them another's write that succeeded meanwhile


def read_small(target: StorageObject, limit: int) -> tuple[bytes, str]:
    """Return the whole content of a small object and the etag it belongs to.

    Raises:
        ObjectNotFound: it does not exist.
        Corrupt: it is larger than ``limit`` bytes.
        Unavailable: it changed under every one of several tries.
    """
    before = target.stat()
    for _ in range(_TRIES):
        if before.size > limit:
            raise Corrupt(
                f"it has {before.size} bytes where at most {limit} were expected",
                operation="read object",
                object=target.path,
            )
        buffer = bytearray(before.size)
        count = target.read_at(buffer, 0) if buffer else 0
        after = target.stat()
        if count == before.size and after.etag == before.etag:
            return bytes(buffer), before.etag
        before = after
    raise Unavailable(
        "it keeps changing while it is read", operation="read object", object=target.path
    )


def read_exact(target: StorageObject, buffer: WritableBuffer, offset: int) -> None:
    """Fill ``buffer`` from ``offset``; raises Corrupt where the object ends before."""
    count = target.read_at(buffer, offset)
    if count != len(buffer):
        raise Corrupt(
            f"it ends at byte {offset + count}, {len(buffer) - count} bytes short",
            operation="read object",
            object=target.path,
        )


class ObjectReader:
    """Reads an object from its start to its end: a ``Source`` for another upload.

    It can be rewound, so that the upload can be repeated.
    """

    def __init__(self, target: StorageObject) -> None:
        self._target = target
        self._offset = 0

    def read(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes, none at the end."""
        buffer = bytearray(size)
        count = self._target.read_at(buffer, self._offset)
        self._offset += count
        return bytes(memoryview(buffer)[:count])

    def seekable(self) -> bool:
        """Tell that it can be rewound."""
        return True

    def tell(self) -> int:
        """Return the offset in bytes of the next read."""
        return self._offset

    def seek(self, offset: int, /) -> int:
        """Go to an offset in bytes from the object's start."""
        self._offset = offset
        return offset


def copy_object(source: StorageObject, target: StorageObject) -> int:
    """Copy an object, also between stores, in bounded memory; return its size.

    Raises:
        ObjectNotFound: ``source`` does not exist; nothing is written then.
    """
    if not source.exists():
        raise ObjectNotFound("it does not exist", operation="copy object", object=source.path)
    return target.read_from(ObjectReader(source))
