"""Extended attributes: entries in the inode and in a block, ACLs as the kernel gives them.

Source: the kernel's ext4 documentation, "Extended Attributes" and "POSIX ACLs"; for the
form in which ``getxattr`` returns an ACL, linux/posix_acl_xattr.h.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

from bootstream.rootfs.ext4.reader_layout import Inode, corrupt

_MAGIC = 0xEA020000
_ENTRY = struct.Struct("<BBHIII")
_BLOCK_HEADER = 32
_LARGEST = 1 << 24
_PREFIXES = {
    1: "user.",
    2: "system.posix_acl_access",
    3: "system.posix_acl_default",
    4: "trusted.",
    6: "security.",
    7: "system.",
    8: "system.richacl",
    9: "encryption.",
}
_ACLS = (2, 3)
_INLINE = (7, b"data")
_ACL_ON_DISK, _ACL_TO_USER = 1, 2
_ACL_WITH_ID = (0x02, 0x08)  # ACL_USER, ACL_GROUP
_NO_ID = 0xFFFFFFFF

ReadBlock = Callable[[int], bytes]
ReadValue = Callable[[int, int, str], bytes]


class _Attribute(NamedTuple):
    kind: int
    name: bytes
    value: bytes


def read_xattrs(inode: Inode, read_block: ReadBlock, read_value: ReadValue) -> dict[str, bytes]:
    """Return name to value, as ``getxattr`` would have them.

    Args:
        inode: whose attributes they are.
        read_block: returns a block of the image.
        read_value: returns the value of so many bytes that an inode of its own holds.

    Raises:
        Corrupt: entries that cannot be.
    """
    found: dict[str, bytes] = {}
    for attribute in _attributes(inode, read_block, read_value):
        if (attribute.kind, attribute.name) == _INLINE:
            continue
        prefix = _PREFIXES.get(attribute.kind)
        if prefix is None:
            raise corrupt("an attribute of unknown kind", inode.object)
        name = prefix + attribute.name.decode("utf-8", "surrogateescape")
        value = attribute.value
        found[name] = _acl(value, inode) if attribute.kind in _ACLS else value
    return found


def inline_rest(inode: Inode) -> bytes:
    """Return the part of inline data that lies behind i_block; "Inline Data"."""
    for attribute in _in_inode(inode, _no_value):
        if (attribute.kind, attribute.name) == _INLINE:
            return attribute.value
    return b""


def _no_value(_number: int, _size: int, object: str) -> bytes:
    raise corrupt("inline data is elsewhere", object)


def _attributes(inode: Inode, read_block: ReadBlock, read_value: ReadValue) -> list[_Attribute]:
    found = _in_inode(inode, read_value)
    if inode.xattr_block:
        data = read_block(inode.xattr_block)
        magic, _references, blocks = struct.unpack_from("<III", data)
        if magic != _MAGIC or blocks != 1:
            raise corrupt("its attribute block is damaged", inode.object)
        found += _entries(data, _BLOCK_HEADER, 0, inode, read_value)
    return found


def _in_inode(inode: Inode, read_value: ReadValue) -> list[_Attribute]:
    body = inode.body
    if len(body) < 4 or struct.unpack_from("<I", body)[0] != _MAGIC:
        return []
    return _entries(body, 4, 4, inode, read_value)


def _entries(
    data: bytes, start: int, base: int, inode: Inode, read_value: ReadValue
) -> list[_Attribute]:
    """Decode entries from ``start`` up to the zero word; values are at offsets from ``base``."""
    found = []
    while start + 4 <= len(data) and data[start : start + 4] != b"\0\0\0\0":
        if start + _ENTRY.size > len(data):
            raise corrupt("an attribute goes over its edge", inode.object)
        length, kind, offset, holder, size, _hash = _ENTRY.unpack_from(data, start)
        first = start + _ENTRY.size
        start = first + (length + 3 & ~3)
        offset += base
        if size > _LARGEST or start > len(data) or (not holder and offset + size > len(data)):
            raise corrupt("an attribute goes over its edge", inode.object)
        name = data[first : first + length]
        inside = data[offset : offset + size]
        value = read_value(holder, size, inode.object) if holder else inside
        found.append(_Attribute(kind, name, value))
    return found


def _acl(value: bytes, inode: Inode) -> bytes:
    """Turn an ACL as it is on disk into what user space sees; "POSIX ACLs"."""
    if not value:
        return value
    if len(value) < 4 or struct.unpack_from("<I", value)[0] != _ACL_ON_DISK:
        raise corrupt("an ACL of unknown version", inode.object)
    entries = [struct.pack("<I", _ACL_TO_USER)]
    at = 4
    while at < len(value):
        if at + 4 > len(value):
            raise corrupt("an ACL ends early", inode.object)
        tag, permissions = struct.unpack_from("<HH", value, at)
        at += 4
        owner = _NO_ID
        if tag in _ACL_WITH_ID:
            if at + 4 > len(value):
                raise corrupt("an ACL ends early", inode.object)
            (owner,) = struct.unpack_from("<I", value, at)
            at += 4
        entries.append(struct.pack("<HHI", tag, permissions, owner))
    return b"".join(entries)
