"""Metadata of a file in a local store: lines ``key=value`` in one extended attribute."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping

from bootstream.errors import InvalidInput
from bootstream.storage.metadata import decode_metadata, encode_metadata

ATTRIBUTE = "user.bootstream.metadata"

_NONE = frozenset({errno.ENODATA, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM, errno.EACCES})
_CANNOT = frozenset(
    {errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM, errno.ENOSPC, errno.E2BIG, errno.ERANGE}
)


def write_metadata(descriptor: int, metadata: Mapping[str, str]) -> None:
    """Attach valid metadata to a file; touches nothing where it is empty.

    Raises:
        InvalidInput: this file system keeps no such attributes, or none so long.
        OSError: anything else that goes wrong.
    """
    if not metadata:
        return
    try:
        os.setxattr(descriptor, ATTRIBUTE, encode_metadata(metadata))
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        raise InvalidInput(
            "the file system of this store cannot keep metadata "
            f"({(error.strerror or 'no extended attributes').lower()})",
            operation="write object",
            remedy="keep the store on ext4, XFS or Btrfs, which have user extended attributes",
        ) from error


def read_metadata(descriptor: int) -> dict[str, str]:
    """Return a file's metadata; none where it has none, or its file system cannot.

    Raises:
        Corrupt: the attribute is there, and not as it was written.
        OSError: anything else that goes wrong.
    """
    try:
        data = os.getxattr(descriptor, ATTRIBUTE)
    except OSError as error:
        if error.errno in _NONE:
            return {}
        raise
    return decode_metadata(data)
