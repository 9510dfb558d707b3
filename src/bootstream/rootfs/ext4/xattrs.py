"""Extended attributes and ACLs as ext4 keeps them.

Kernel documentation, "ext4 Data Structures and Algorithms", section "Extended
Attributes": in the inode's own spare room first, else all of them in one block, sorted by
name index, length of the name, name. Hashes as ``fs/ext4/xattr.c`` computes them. An ACL
has a form of its own on disk (``fs/ext4/acl.h``), another in archives
(``include/uapi/linux/posix_acl_xattr.h``).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from bootstream.errors import InvalidInput
from bootstream.rootfs.member import printable
from bootstream.rootfs.nodes import Xattrs

IN_INODE = 96
NOTHING = bytes(IN_INODE)
"""Bytes behind an inode's fields where its size is 256 and the fields take 160."""
_MAGIC = 0xEA020000
_PREFIXES = ((b"user.", 1), (b"trusted.", 4), (b"security.", 6))
_ACCESS = b"system.posix_acl_access"
_DEFAULT = b"system.posix_acl_default"
_ENTRY = struct.Struct("<BBHIII")
_BLOCK_HEAD = struct.Struct("<IIIII12x")
_ACL_ENTRY = struct.Struct("<HHI")
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 1, 2, 4, 8, 16, 32
_M = 0xFFFFFFFF


def convert(xattrs: Mapping[bytes, bytes]) -> tuple[Xattrs, list[bytes], int | None]:
    """Return attributes by name index; names that ext4 has no place for; mode from an ACL.

    An access ACL that says no more than the mode is not kept: the kernel would not either,
    and takes the nine permission bits from it; they are returned, else None.

    Raises:
        ValueError: a name or an ACL is malformed.
    """
    found: list[tuple[int, bytes, bytes]] = []
    unknown: list[bytes] = []
    bits: int | None = None
    for name, value in xattrs.items():
        if name in (_ACCESS, _DEFAULT):
            acl, plain = _acl(value)
            if name == _DEFAULT:
                found.append((3, b"", acl))
            elif plain is None:
                found.append((2, b"", acl))
            else:
                bits = plain
            continue
        for prefix, index in _PREFIXES:
            if name.startswith(prefix) and len(name) > len(prefix):
                rest = name[len(prefix) :]
                if len(rest) > 255 or b"\0" in rest:
                    raise ValueError(f"the name {printable(name)!r} is over 255 bytes or has NULs")
                found.append((index, rest, value))
                break
        else:
            unknown.append(name)
    found.sort(key=lambda item: (item[0], len(item[1]), item[1]))
    return tuple(found), unknown, bits


def _acl(value: bytes) -> tuple[bytes, int | None]:
    """Return an ACL in its form on disk, and the permission bits if it has only those."""
    if len(value) < 4 or (len(value) - 4) % 8 or value[:4] != b"\2\0\0\0":
        raise ValueError("an ACL is not of version 2")
    entries = [_ACL_ENTRY.unpack_from(value, at) for at in range(4, len(value), 8)]
    order = [(tag, who if tag in (_USER, _GROUP) else 0) for tag, _, who in entries]
    tags = [tag for tag, _, _ in entries]
    wanted = [tags.count(tag) for tag in (_USER_OBJ, _GROUP_OBJ, _OTHER)]
    named = _USER in tags or _GROUP in tags
    known = {_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER}
    if (
        wanted != [1, 1, 1]
        or not set(tags) <= known
        or order != sorted(set(order))
        or tags.count(_MASK) > 1
        or (named and _MASK not in tags)
        or any(permissions > 7 for _, permissions, _ in entries)
    ):
        raise ValueError("an ACL's entries are wrong or out of order")
    parts = [struct.pack("<I", 1)]
    for tag, permissions, who in entries:
        parts.append(struct.pack("<HH", tag, permissions))
        if tag in (_USER, _GROUP):
            parts.append(struct.pack("<I", who))
    bits = None
    if len(entries) == 3:
        of = {tag: permissions for tag, permissions, _ in entries}
        bits = of[_USER_OBJ] << 6 | of[_GROUP_OBJ] << 3 | of[_OTHER]
    return b"".join(parts), bits


def in_inode(xattrs: Xattrs) -> bytes | None:
    """Return the 96 bytes behind an inode's fields; None if the attributes do not fit."""
    if not xattrs:
        return bytes(IN_INODE)
    body = _pack(xattrs, IN_INODE - 4, 0)
    return None if body is None else struct.pack("<I", _MAGIC) + body


def in_block(xattrs: Xattrs, block_size: int, references: int) -> bytes:
    """Return an attribute block that so many inodes share.

    Raises:
        InvalidInput: they do not fit.
    """
    body = _pack(xattrs, block_size - _BLOCK_HEAD.size, _BLOCK_HEAD.size)
    if body is None:
        raise InvalidInput(
            f"{total_size(xattrs)} bytes of extended attributes do not fit one block",
            operation="make ext4",
            remedy=f"ext4 keeps a file's attributes in one block of {block_size} bytes",
        )
    whole = 0
    for index, name, value in xattrs:
        one = _hash(index, name, value)
        if not one:
            whole = 0
            break
        whole = ((whole << 16) ^ (whole >> 16) ^ one) & _M
    return _BLOCK_HEAD.pack(_MAGIC, references, 1, whole, 0) + body


def fits(xattrs: Xattrs, block_size: int) -> bool:
    """Whether a block, or an inode, has room for the attributes."""
    return total_size(xattrs) <= block_size - _BLOCK_HEAD.size


def total_size(xattrs: Xattrs) -> int:
    """Return the bytes that entries, values and the end mark take."""
    names = sum(_ENTRY.size + (len(name) + 3 & ~3) for _, name, _ in xattrs)
    return names + sum(len(value) + 3 & ~3 for _, _, value in xattrs) + 4


def _pack(xattrs: Xattrs, room: int, base: int) -> bytes | None:
    """Return entries from the front and values from the back of ``room`` bytes.

    Offsets of values count from ``base`` bytes before: a block's are from its start.
    """
    if total_size(xattrs) > room:
        return None
    body = bytearray(room)
    at = 0
    end = room
    for index, name, value in xattrs:
        padded = len(value) + 3 & ~3
        end -= padded
        body[end : end + len(value)] = value
        offset = end + base if value else 0
        _ENTRY.pack_into(
            body, at, len(name), index, offset, 0, len(value), _hash(index, name, value)
        )
        at += _ENTRY.size
        body[at : at + len(name)] = name
        at += len(name) + 3 & ~3
    return bytes(body)


def _hash(index: int, name: bytes, value: bytes) -> int:
    del index  # two attributes that differ in it alone have the same hash
    result = 0
    for byte in name:
        result = ((result << 5) ^ (result >> 27) ^ byte) & _M
    if value:
        padded = value + bytes(-len(value) % 4)
        for (word,) in struct.iter_unpack("<I", padded):
            result = ((result << 16) ^ (result >> 16) ^ word) & _M
    return result
