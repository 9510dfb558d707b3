"""One member of a layer, whatever dialect of tar it was written in."""

from __future__ import annotations

from array import array

REGULAR = b"0"
HARD_LINK = b"1"
SYMLINK = b"2"
CHARACTER = b"3"
BLOCK = b"4"
DIRECTORY = b"5"
FIFO = b"6"


class Member:
    """What a header says, in plain values.

    Attributes:
        name, link: bytes as stored; paths are not cleaned yet.
        kind: one of the constants of this module.
        mode: permission bits, with setuid, setgid and sticky.
        size: logical size; ``stored`` is how much of it the archive holds.
        mtime, atime: nanoseconds since the epoch; atime None where it is not given.
        xattrs: by full name, or None.
        sparse: flat pairs of offset and length of the parts stored, or None for all.
    """

    __slots__ = (
        "atime",
        "gid",
        "kind",
        "link",
        "major",
        "minor",
        "mode",
        "mtime",
        "name",
        "size",
        "sparse",
        "stored",
        "uid",
        "xattrs",
    )

    name: bytes
    link: bytes
    kind: bytes
    mode: int
    uid: int
    gid: int
    size: int
    stored: int
    mtime: int
    atime: int | None
    major: int
    minor: int
    xattrs: dict[bytes, bytes] | None
    sparse: array[int] | None


def printable(name: bytes) -> str:
    """Return ``name`` for a message: UTF-8 where it is, escapes where it is not."""
    text = name[:300].decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
