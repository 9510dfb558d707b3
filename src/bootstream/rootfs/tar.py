"""Reading layers: tar as ustar, pax and GNU write it, one member after another.

Sources: POSIX.1-2017 "pax" (ustar interchange format, pax extended header), the GNU tar
manual ("Basic Tar Format", "Storing Sparse Files"), and libarchive's tar(5) for what is
found in the wild. Where these leave a choice, the container runtimes' one is taken:
a missing end marker is no error at a member's boundary, bytes after the marker are not
looked at, links and special files have no content whatever their size says.

The reader is made for hundreds of thousands of small members: fields that repeat (owners,
modes, times) are parsed once, and the checksum is the sum that Adler-32 holds anyway.
Nothing is allocated by a size from the archive before that size is bounded.
"""

from __future__ import annotations

import struct
from zlib import adler32

from bootstream.errors import BootstreamError, Corrupt, InvalidInput
from bootstream.rootfs.member import DIRECTORY, HARD_LINK, REGULAR, Member, printable
from bootstream.rootfs.numbers import NANO, decimal, decimal_time, header_number
from bootstream.rootfs.source import Source
from bootstream.rootfs.sparse import MAX_PARTS, SparseMap, read_gnu_map, read_pax_map

BLOCK_SIZE = 512
MAX_EXTENDED = 1 << 20
"""Bytes of one extended header or long name; the kernel's own limits are far below."""
MAX_SIZE = 1 << 62
MAX_RECORDS = 1 << 16

_HEADER = struct.Struct("100s24s12s12s8sc100s8s32s32s16s155s12s")
_ZEROS = bytes(BLOCK_SIZE)
_CHECKSUM = slice(148, 156)
_CACHED = 4096
_XATTR = b"SCHILY.xattr."
_SKIPPED = frozenset({b"V", b"D"})
"""Volume headers and GNU's lists of directory contents: nothing for a file system."""
_KNOWN = frozenset({b"0", b"1", b"2", b"3", b"4", b"5", b"6"})

Records = dict[bytes, bytes]


class TarReader:
    """The members of one archive, in order.

    Args:
        source: the archive's bytes.
        label: the archive's name for messages, e.g. ``layer 3``.

    All methods raise Corrupt, naming member and offset, where the archive breaks its format.
    """

    def __init__(self, source: Source, label: str) -> None:
        self._source = source
        self._label = label
        self._offset = 0
        self._left = 0
        self._padding = 0
        self._name = b""
        self._global: Records = {}
        self._owners: dict[bytes, tuple[int, int, int]] = {}
        self._times: dict[bytes, int] = {}

    def next(self) -> Member | None:
        """Return the next member, None at the end; what is left of the last is passed over."""
        self._pass_content()
        records: Records | None = None
        sparse_records: list[tuple[bytes, bytes]] = []
        long_name: bytes | None = None
        long_link: bytes | None = None
        while True:
            header = self._header()
            if header is None:
                if records is not None or long_name is not None or long_link is not None:
                    raise self.corrupt("the archive ends after an extended header")
                self._source.drain()
                return None
            kind = header[156:157]
            if kind in (b"x", b"X"):
                found = self._records(header)
                records = (records or {}) | dict(found)
                sparse_records += [r for r in found if r[0].startswith(b"GNU.sparse.")]
                if len(sparse_records) > 2 * MAX_PARTS or len(records) > MAX_RECORDS:
                    raise self.corrupt("its extended headers have too many records")
            elif kind == b"g":
                self._global.update(self._records(header))
            elif kind == b"L":
                long_name = self._extended(header).split(b"\0", 1)[0]
            elif kind == b"K":
                long_link = self._extended(header).split(b"\0", 1)[0]
            elif kind in _SKIPPED:
                self._start_content(self._number(header[124:136], "size"))
                self._pass_content()
            else:
                break
        member = self._member(header, long_name, long_link)
        if self._global:
            records = self._global | (records or {})
        if records:
            try:
                self._apply(member, records)
            except ValueError as error:
                raise self.corrupt(f"an extended header's record is wrong: {error}") from None
        self._check_kind(member)
        self._begin(member, header, records, sparse_records)
        return member

    def read(self, size: int) -> bytes:
        """Return ``size`` bytes of the member's stored content, or what is left of it."""
        size = min(size, self._left)
        data = self._source.take(size)
        if len(data) != size:
            raise self.corrupt("the archive ends inside this member")
        self._left -= size
        self._offset += size
        return data

    def corrupt(self, message: str) -> Corrupt:
        """Return an error that says where in the archive reading stopped."""
        return Corrupt(
            f"{message} (member {printable(self._name)!r}, byte {self._offset})",
            operation="unpack",
            object=self._label,
            remedy="the layer is damaged: push the image again",
        )

    def refused(self, message: str, remedy: str | None = None) -> InvalidInput:
        """Return an error that names the member."""
        return InvalidInput(
            f"member {printable(self._name)!r}: {message}",
            operation="unpack",
            object=self._label,
            remedy=remedy,
        )

    # -- headers --------------------------------------------------------------------------

    def _header(self) -> bytes | None:
        header = self._source.take(BLOCK_SIZE)
        if len(header) != BLOCK_SIZE:
            if not header:
                return None
            raise self.corrupt("the archive ends inside a header")
        self._offset += BLOCK_SIZE
        if header == _ZEROS:
            following = self._source.take(BLOCK_SIZE)
            if following and following != _ZEROS:
                raise self.corrupt("a single block of zeros stands between members")
            return None
        total = (adler32(header[:256]) & 0xFFFF) + (adler32(header[256:]) & 0xFFFF) - 2
        field = header[_CHECKSUM]
        try:
            expected = header_number(field)
        except ValueError:
            raise self.corrupt("a header's checksum is no number") from None
        blanks = 8 * 0x20 - sum(field)
        if total + blanks != expected:
            signed = total + blanks - 256 * sum(c > 127 for c in header)
            if signed != expected:
                raise self.corrupt("a header's checksum is wrong")
        return header

    def _member(self, header: bytes, long_name: bytes | None, long_link: bytes | None) -> Member:
        (name, owner, size, mtime, _, kind, link, magic, _, _, device, prefix, _) = _HEADER.unpack(
            header
        )
        name = name.split(b"\0", 1)[0]
        if magic[:6] == b"ustar\0" and prefix[0]:
            if header[508:] == b"tar\0":  # star keeps times behind a shorter prefix
                prefix = prefix[:131]
            prefix = prefix.split(b"\0", 1)[0]
            if prefix:
                name = prefix + b"/" + name
        member = Member()
        member.name = self._name = name if long_name is None else long_name
        member.link = link.split(b"\0", 1)[0] if long_link is None else long_link
        if kind == b"\0":
            kind = DIRECTORY if member.name.endswith(b"/") else REGULAR
        elif kind in (b"7", b"S"):
            kind = REGULAR
        member.kind = kind
        values = self._owners.get(owner)
        if values is None:
            values = (
                self._number(owner[:8], "mode"),
                self._number(owner[8:16], "uid"),
                self._number(owner[16:], "gid"),
            )
            if len(self._owners) >= _CACHED:
                self._owners.clear()
            self._owners[owner] = values
        member.mode, member.uid, member.gid = values
        time = self._times.get(mtime)
        if time is None:
            time = self._number(mtime, "mtime") * NANO
            if len(self._times) >= _CACHED:
                self._times.clear()
            self._times[mtime] = time
        member.mtime = time
        member.atime = None
        member.size = member.stored = self._number(size, "size")
        if kind in (b"3", b"4"):
            member.major = self._number(device[:8], "device number")
            member.minor = self._number(device[8:], "device number")
        else:
            member.major = member.minor = 0
        member.xattrs = None
        member.sparse = None
        return member

    def _number(self, field: bytes, what: str) -> int:
        try:
            return header_number(field)
        except ValueError as error:
            raise self.corrupt(f"its {what} is wrong: {error}") from None

    def _check_kind(self, member: Member) -> None:
        if member.kind not in _KNOWN:
            kind = printable(member.kind)
            raise self.refused(
                f"type {kind!r} is not one that layers are made of",
                "write the layer with GNU tar, bsdtar or an image builder",
            )
        if b"\0" in member.name or b"\0" in member.link:
            raise self.corrupt("its path holds a NUL")
        if not (0 <= member.uid <= 0xFFFFFFFF and 0 <= member.gid <= 0xFFFFFFFF):
            raise self.refused(f"owner {member.uid}:{member.gid} does not fit 32 bits")

    # -- extended headers ------------------------------------------------------------------

    def _extended(self, header: bytes) -> bytes:
        size = self._number(header[124:136], "size")
        if not 0 <= size <= MAX_EXTENDED:
            raise self.corrupt(f"an extended header claims {size} bytes; {MAX_EXTENDED} at most")
        self._start_content(size)
        data = self.read(size)
        self._pass_content()
        return data

    def _records(self, header: bytes) -> list[tuple[bytes, bytes]]:
        data = self._extended(header)
        records = []
        position = 0
        end = len(data)
        while position < end:
            blank = data.find(b" ", position, position + 20)
            digits = data[position:blank]
            if blank < 0 or not digits.isdigit():
                raise self.corrupt("an extended header's record has no length")
            stop = position + int(digits)
            equals = data.find(b"=", blank, stop)
            if stop > end or stop <= blank or equals <= blank + 1 or data[stop - 1] != 0x0A:
                raise self.corrupt("an extended header's record has a wrong length")
            records.append((data[blank + 1 : equals], data[equals + 1 : stop - 1]))
            position = stop
        return records

    def _apply(self, member: Member, records: Records) -> None:
        xattrs: dict[bytes, bytes] = {}
        for key, value in records.items():
            if key.startswith(_XATTR):
                xattrs[key[len(_XATTR) :]] = value
            elif not value:
                continue  # an empty value takes a global one back: the header's own counts
            elif key == b"mtime":
                member.mtime = decimal_time(value)
            elif key == b"path":
                member.name = self._name = value
            elif key == b"linkpath":
                member.link = value
            elif key == b"size":
                member.size = member.stored = decimal(value)
            elif key == b"uid":
                member.uid = decimal(value)
            elif key == b"gid":
                member.gid = decimal(value)
            elif key == b"atime":
                member.atime = decimal_time(value)
            elif key == b"SCHILY.devmajor":
                member.major = decimal(value)
            elif key == b"SCHILY.devminor":
                member.minor = decimal(value)
        member.xattrs = xattrs or None

    # -- content ---------------------------------------------------------------------------

    def _begin(
        self,
        member: Member,
        header: bytes,
        records: Records | None,
        sparse_records: list[tuple[bytes, bytes]],
    ) -> None:
        if member.kind != REGULAR:
            member.size = member.stored = 0
            if member.kind == HARD_LINK and not member.link:
                raise self.corrupt("a hard link has no target")
            return
        if not 0 <= member.stored < MAX_SIZE:
            raise self.corrupt(f"its size is {member.stored}")
        try:
            if header[156:157] == b"S":
                found, blocks = read_gnu_map(header, self._source.take)
                self._offset += blocks * BLOCK_SIZE
                self._start_content(member.stored)
            else:
                self._start_content(member.stored)
                if not sparse_records or records is None:
                    return
                map_of = read_pax_map(records, sparse_records, self.read)
                if map_of is None:
                    return
                found = map_of
            self._take_map(member, found)
        except BootstreamError:
            raise
        except ValueError as error:
            raise self.corrupt(f"its map of holes is wrong: {error}") from None

    def _take_map(self, member: Member, found: SparseMap) -> None:
        if found.name is not None:
            member.name = self._name = found.name
            if b"\0" in found.name:
                raise ValueError("the path holds a NUL")
        member.size = found.size
        member.sparse = found.parts
        member.stored = self._left
        found.check(member.stored)

    def _start_content(self, size: int) -> None:
        if not 0 <= size < MAX_SIZE:
            raise self.corrupt(f"its size is {size}")
        self._left = size
        self._padding = -size % BLOCK_SIZE

    def _pass_content(self) -> None:
        size = self._left + self._padding
        if size:
            if self._source.skip(size) != size:
                raise self.corrupt("the archive ends inside this member")
            self._offset += size
            self._left = self._padding = 0
