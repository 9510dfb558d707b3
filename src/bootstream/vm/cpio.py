"""Archives that the kernel unpacks as its initial RAM disk: cpio, "newc".

Source: Linux, ``Documentation/driver-api/early-userspace/buffer-format.rst``. An entry is a
header of 110 ASCII characters, the name with a zero, and the data; name and data are each
followed by zeros up to a multiple of 4. An entry named ``TRAILER!!!`` ends the archive.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass

from bootstream.errors import InvalidInput

_LIMIT = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class Entry:
    """One file, folder, link or device; root owns it.

    Attributes:
        name: path without a slash in front; folders come before what is in them.
        mode: kind and permissions, as in ``st_mode``.
        data: of a file, or a symbolic link's target.
        device: major and minor number of a device.
    """

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def folder(name: str, mode: int = 0o755) -> Entry:
    """Return the entry of a folder."""
    return Entry(name, stat.S_IFDIR | mode)


def file(name: str, data: bytes, mode: int = 0o644) -> Entry:
    """Return the entry of a file."""
    return Entry(name, stat.S_IFREG | mode, data)


def archive(entries: Iterable[Entry]) -> bytes:
    """Return the archive; the same entries give the same bytes.

    Raises:
        InvalidInput: a file has 4 GiB or more, or a name has a zero in it.
    """
    parts: list[bytes] = []
    for number, entry in enumerate([*entries, Entry("TRAILER!!!", 0)], start=1):
        name = entry.name.encode("utf-8", "surrogateescape")
        if b"\0" in name or not name or len(entry.data) > _LIMIT:
            raise InvalidInput(
                "it does not fit into an archive", operation="make initrd of", object=entry.name
            )
        links = 2 if stat.S_ISDIR(entry.mode) else 1
        fields = (number, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device)
        header = b"070701" + b"".join(b"%08x" % f for f in (*fields, len(name) + 1, 0))
        parts += [_aligned(header + name + b"\0"), _aligned(entry.data)]
    return b"".join(parts)


def _aligned(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
