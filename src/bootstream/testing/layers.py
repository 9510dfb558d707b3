"""Layer tars made on the spot, to the byte.

Layers are deterministic (fixed times, no user names) and written by hand where Python's
tarfile would add or refuse something: extended attributes are raw bytes in ``SCHILY.xattr``
records, as Go's archive/tar and GNU tar write them; names need not be UTF-8; sparse members
have each of GNU tar's forms; hostile headers go in as they are.

Formats: POSIX.1-2001 pax, section "pax Header Block"; GNU tar manual, "Storing Sparse Files".
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

EPOCH = 1_700_000_000
"""The time of everything that is not given another one, in seconds."""

CAP_NET_BIND_SERVICE = bytes.fromhex("0100000200040000000000000000000000000000")
"""A ``security.capability``, version 2: cap_net_bind_service, permitted and effective."""

SparseForm = Literal["1.0", "0.1", "0.0", "gnu"]

_BLOCK = 512
_OCTAL_7, _OCTAL_11 = 1 << 21, 1 << 33


@dataclass(slots=True)
class _Member:
    """A tar member as plain values; what does not fit into its header goes into pax records."""

    name: bytes
    kind: bytes
    mode: int
    uid: int = 0
    gid: int = 0
    uname: str = ""
    gname: str = ""
    mtime: float = EPOCH
    link: bytes = b""
    devmajor: int = 0
    devminor: int = 0
    xattrs: Mapping[str, bytes] = field(default_factory=dict)
    pax: Mapping[str, str | bytes] = field(default_factory=dict)


class LayerBuilder:
    """A layer tar in memory, member by member.

    Names are text or bytes, without a leading ``/`` unless the test wants one. Every
    method that adds takes the fields ``uid``, ``gid``, ``uname``, ``gname``, ``mtime`` (a
    float where it has a fraction), ``xattrs`` (name to bytes) and ``pax`` (further records).

    Args:
        parents: also add the folders above a member, once each, with mode 0755.
    """

    def __init__(self, *, parents: bool = False) -> None:
        self._buffer = io.BytesIO()
        self._parents = parents
        self._folders: set[bytes] = set()

    def file(
        self, name: str | bytes, data: bytes = b"", mode: int = 0o644, **fields: Any
    ) -> LayerBuilder:
        """Add a regular file."""
        return self._add(_Member(_bytes(name), tarfile.REGTYPE, mode, **fields), data)

    def folder(self, name: str | bytes, mode: int = 0o755, **fields: Any) -> LayerBuilder:
        """Add a directory; its name gets the customary ``/`` at the end."""
        plain = _bytes(name).rstrip(b"/")
        self._folders.add(plain)
        return self._add(_Member(plain + b"/", tarfile.DIRTYPE, mode, **fields))

    def link(
        self,
        name: str | bytes,
        target: str | bytes,
        *,
        hard: bool = False,
        mode: int = 0o777,
        **fields: Any,
    ) -> LayerBuilder:
        """Add a symbolic link, or with ``hard`` a hard link to an earlier name."""
        kind = tarfile.LNKTYPE if hard else tarfile.SYMTYPE
        return self._add(_Member(_bytes(name), kind, mode, link=_bytes(target), **fields))

    def device(
        self,
        name: str | bytes,
        major: int,
        minor: int,
        *,
        block: bool = False,
        mode: int = 0o600,
        **fields: Any,
    ) -> LayerBuilder:
        """Add a character device, or with ``block`` a block device."""
        kind = tarfile.BLKTYPE if block else tarfile.CHRTYPE
        member = _Member(_bytes(name), kind, mode, devmajor=major, devminor=minor, **fields)
        return self._add(member)

    def fifo(self, name: str | bytes, mode: int = 0o644, **fields: Any) -> LayerBuilder:
        """Add a named pipe."""
        return self._add(_Member(_bytes(name), tarfile.FIFOTYPE, mode, **fields))

    def whiteout(self, name: str | bytes) -> LayerBuilder:
        """Delete ``name`` of the layers below."""
        folder, slash, base = _bytes(name).rstrip(b"/").rpartition(b"/")
        return self.file(folder + slash + b".wh." + base)

    def opaque(self, folder: str | bytes) -> LayerBuilder:
        """Hide everything that the layers below have in ``folder``."""
        plain = _bytes(folder).rstrip(b"/")
        return self.file((plain + b"/" if plain else b"") + b".wh..wh..opq")

    def sparse(
        self,
        name: str | bytes,
        size: int,
        pieces: Sequence[tuple[int, bytes]],
        mode: int = 0o644,
        *,
        form: SparseForm = "1.0",
        **fields: Any,
    ) -> LayerBuilder:
        """Add a sparse file of ``size`` bytes with data only at the (offset, data) ``pieces``.

        Offsets ascend in steps of whole 512 byte blocks; pieces are filled up to one.
        """
        member = _Member(_bytes(name), tarfile.REGTYPE, mode, **fields)
        self._add_parents(member.name)
        self._buffer.write(_sparse(member, size, pieces, form))
        return self

    def raw(self, header: tarfile.TarInfo | bytes, data: bytes = b"") -> LayerBuilder:
        """Add a header as it is, tarfile's or bytes of any kind, and data padded to a block."""
        if isinstance(header, tarfile.TarInfo):
            header = header.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
        self._buffer.write(header + _padded(data))
        return self

    def finish(self) -> bytes:
        """Return the tar with its end; the builder may go on, and be finished again."""
        return self._buffer.getvalue() + bytes(2 * _BLOCK)

    def _add(self, member: _Member, data: bytes = b"") -> LayerBuilder:
        self._add_parents(member.name)
        self._buffer.write(_header(member, len(data)) + _padded(data))
        return self

    def _add_parents(self, name: bytes) -> None:
        folder = name.rstrip(b"/").rpartition(b"/")[0]
        if self._parents and folder and folder not in self._folders:
            self.folder(folder)


def _bytes(name: str | bytes) -> bytes:
    return name if isinstance(name, bytes) else name.encode("utf-8", "surrogateescape")


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % _BLOCK)


def _header(member: _Member, size: int, records: Mapping[str, bytes] | None = None) -> bytes:
    """Return the header of a member, after a pax header for what does not fit into it."""
    pax = dict(records or {})
    for key, name in (("path", member.name), ("linkpath", member.link)):
        if len(name) > 100 or not name.isascii():
            pax.setdefault(key, name)
    numbers = {"uid": member.uid, "gid": member.gid}
    for key, number in numbers.items():
        if not 0 <= number < _OCTAL_7:
            pax[key] = str(number).encode()
    if not 0 <= member.mtime < _OCTAL_11 or member.mtime != int(member.mtime):
        pax["mtime"] = repr(member.mtime).encode()
    if size >= _OCTAL_11:
        pax["size"] = str(size).encode()
    for key, text in (("uname", member.uname), ("gname", member.gname)):
        if len(text.encode()) > 31 or not text.isascii():
            pax[key] = text.encode()
    pax |= {f"SCHILY.xattr.{key}": value for key, value in member.xattrs.items()}
    pax |= {key: _bytes(value) for key, value in member.pax.items()}
    info = tarfile.TarInfo()
    info.type, info.mode = member.kind, member.mode & 0o7777
    info.uid = member.uid if "uid" not in pax else 0
    info.gid = member.gid if "gid" not in pax else 0
    info.uname = member.uname if "uname" not in pax else ""
    info.gname = member.gname if "gname" not in pax else ""
    info.mtime = int(member.mtime) if 0 <= member.mtime < _OCTAL_11 else 0
    info.size = size if size < _OCTAL_11 else 0
    info.devmajor, info.devminor = member.devmajor, member.devminor
    return _pax_header(pax) + _block(info, member.name, member.link)


def _block(info: tarfile.TarInfo, name: bytes, link: bytes) -> bytes:
    """Return one ustar header block; names are cut to what fits."""
    info.name, info.linkname = "", ""
    block = bytearray(info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "surrogateescape"))
    block[0:100] = name[:100].ljust(100, b"\0")
    block[157:257] = link[:100].ljust(100, b"\0")
    return _checksummed(block)


def _checksummed(block: bytearray) -> bytes:
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def _pax_header(records: Mapping[str, bytes]) -> bytes:
    if not records:
        return b""
    data = b"".join(_record(key, value) for key, value in records.items())
    info = tarfile.TarInfo()
    info.type, info.size, info.mode = tarfile.XHDTYPE, len(data), 0o644
    return _block(info, b"PaxHeaders.0/member", b"") + _padded(data)


def _record(key: str, value: bytes) -> bytes:
    """Return one pax record, length, key and value, whose length counts itself."""
    body = b" %s=%s\n" % (key.encode(), value)
    length = len(body) + 1
    while len(str(length)) + len(body) != length:
        length = len(str(length)) + len(body)
    return b"%d" % length + body


def _sparse(
    member: _Member, size: int, pieces: Sequence[tuple[int, bytes]], form: SparseForm
) -> bytes:
    # Whole blocks, but for the end of the file: readers differ in where a piece after a
    # broken block would start, and GNU tar never makes one.
    whole = [(offset, _padded(data)[: size - offset]) for offset, data in pieces]
    spans = [(offset, len(data)) for offset, data in whole]
    spans.append((size, 0))
    body = b"".join(data for _, data in whole)
    if form == "gnu":
        return _gnu_sparse(member, size, spans, body)
    records = {"GNU.sparse.size": b"%d" % size, "GNU.sparse.name": member.name}
    if form == "1.0":
        numbers = [len(spans), *(number for span in spans for number in span)]
        body = _padded(b"".join(b"%d\n" % number for number in numbers)) + body
        records = {
            "GNU.sparse.major": b"1",
            "GNU.sparse.minor": b"0",
            "GNU.sparse.name": member.name,
            "GNU.sparse.realsize": b"%d" % size,
        }
    elif form == "0.1":
        records["GNU.sparse.numblocks"] = b"%d" % len(spans)
        records["GNU.sparse.map"] = b",".join(b"%d,%d" % span for span in spans)
    else:
        # 0.0 repeats two keys, which no mapping can: its records are one block of their own.
        plain = {"GNU.sparse.size": b"%d" % size, "GNU.sparse.numblocks": b"%d" % len(spans)}
        data = b"".join(_record(key, value) for key, value in plain.items()) + b"".join(
            _record("GNU.sparse.offset", b"%d" % offset)
            + _record("GNU.sparse.numbytes", b"%d" % length)
            for offset, length in spans
        )
        info = tarfile.TarInfo()
        info.type, info.size = tarfile.XHDTYPE, len(data)
        header = _block(info, b"PaxHeaders.0/sparse", b"") + _padded(data)
        return header + _header(member, len(body)) + _padded(body)
    folder, slash, base = member.name.rpartition(b"/")
    member.name = folder + slash + b"GNUSparseFile.0/" + base
    return _header(member, len(body), records) + _padded(body)


def _gnu_sparse(member: _Member, size: int, spans: list[tuple[int, int]], body: bytes) -> bytes:
    """Return GNU tar's old form: type ``S``, four spans in the header, 21 in each extension."""
    member.kind = tarfile.GNUTYPE_SPARSE
    whole = _header(member, len(body))
    before, block = whole[:-_BLOCK], bytearray(whole[-_BLOCK:])
    block[257:265] = b"ustar  \0"
    block[345:512] = bytes(167)
    entries = [b"%011o\0%011o\0" % span for span in spans]
    first = b"".join(entries[:4])
    block[386 : 386 + len(first)] = first
    block[482] = len(entries) > 4
    block[483:495] = b"%011o\0" % size
    extensions = b""
    for start in range(4, len(entries), 21):
        piece = b"".join(entries[start : start + 21]).ljust(504, b"\0")
        extensions += piece + bytes([len(entries) > start + 21]) + bytes(7)
    return before + _checksummed(block) + extensions + _padded(body)
