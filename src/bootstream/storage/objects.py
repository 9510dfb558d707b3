"""What can be derived from the storage protocol, written once."""

from __future__ import annotations

from bootstream.errors import Corrupt, ObjectNotFound
from bootstream.storage.protocol import StorageObject, WritableBuffer


def too_large(size: int, limit: int, path: str) -> Corrupt:
    """Return the error of ``StorageObject.get`` for an object of ``size`` bytes."""
    return Corrupt(
        f"it has {size} bytes where at most {limit} were expected",
        operation="read object",
        object=path,
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
