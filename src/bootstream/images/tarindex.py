"""Where the members of a tar archive are, without unpacking it.

Formats: POSIX.1-2017, ``pax``, "ustar Interchange Format" and "pax Extended
Header"; GNU tar manual, "Basic Tar Format" (long names, base-256 numbers). Only
what image archives consist of is taken: regular files, folders, links within the
archive. Names that leave it, sparse members and special files are refused, and
no size that a header states is allocated before it was bounded.
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass

from bootstream.errors import Corrupt, ImageNotFound
from bootstream.images.files import SharedFile
from bootstream.images.local import Piece

MAX_MEMBERS = 100_000
_MAX_EXTENSION = 1 << 20
_MAX_LINKS = 16
_BLOCK = 512


@dataclass(slots=True)
class _Member:
    """A header's fields, after its extensions were applied."""

    name: str
    kind: bytes
    size: int
    link: str


class TarIndex:
    """The members of a tar, by name; a ``FileTree``. Reads all headers once, when made.

    Raises:
        Corrupt: it is not a tar, is cut short, or has members that it must not have.
    """

    def __init__(self, file: SharedFile, *, name: str) -> None:
        self._file = file
        self._name = name
        self._pieces: dict[str, Piece] = {}
        self._links: dict[str, str] = {}
        self.repeated: set[str] = set()
        self._scan()

    @property
    def name(self) -> str:
        """The archive's path."""
        return self._name

    def locate(self, name: str) -> Piece:
        """Return where a member's bytes are, through links. Raises ImageNotFound, Corrupt."""
        for _ in range(_MAX_LINKS):
            if name in self._pieces:
                return self._pieces[name]
            if name not in self._links:
                raise ImageNotFound(
                    f"it has no member {ascii(name)[:200]}", operation="open", object=self._name
                )
            name = self._links[name]
        raise self._corrupt("a link in it leads in circles")

    def _scan(self) -> None:
        offset, count, global_size = 0, 0, 0
        extension: dict[str, str] = {}
        while True:
            header = self._file.read_at(offset, _BLOCK)
            if not header and offset:
                return  # without the two empty blocks at its end, as some tools leave it
            if len(header) < _BLOCK:
                raise self._corrupt("it ends inside a header" if offset else "it is empty")
            if not header.strip(b"\0"):
                return
            count += 1
            if count > MAX_MEMBERS:
                raise self._corrupt(f"it has more than {MAX_MEMBERS} members")
            member = self._parse(header, extension)
            data = offset + _BLOCK
            offset = data + (member.size + _BLOCK - 1) // _BLOCK * _BLOCK
            if data + member.size > self._file.size:
                raise self._corrupt("it ends inside a member")
            if member.kind in (b"x", b"L", b"K"):
                extension |= self._extension(member, data)
            elif member.kind == b"g":
                global_size += member.size
                if global_size > _MAX_EXTENSION:
                    raise self._corrupt("its headers are too large")
            else:
                self._add(member, data)
                extension = {}

    def _parse(self, header: bytes, extension: dict[str, str]) -> _Member:
        checksum = sum(header[:148]) + 8 * 32 + sum(header[156:])
        if self._number(header[148:156]) != checksum:
            raise self._corrupt("it is not a tar archive, or damaged: a header's checksum is wrong")
        kind = header[156:157]
        name = _text(header[:100])
        if header[257:263] == b"ustar\0" and header[345]:
            name = f"{_text(header[345:500])}/{name}"
        size = self._number(header[124:136])
        link = _text(header[157:257])
        if kind not in (b"x", b"g", b"L", b"K"):
            name = extension.get("path", name)
            link = extension.get("linkpath", link)
            if "size" in extension:
                size = self._decimal(extension["size"])
            if any(key.startswith("GNU.sparse.") for key in extension):
                raise self._corrupt(f"its member {ascii(name)[:200]} is sparse")
        if kind in (b"1", b"2", b"3", b"4", b"5", b"6"):
            size = 0
        return _Member(name, kind, size, link)

    def _extension(self, member: _Member, offset: int) -> dict[str, str]:
        if member.size > _MAX_EXTENSION:
            raise self._corrupt("one of its headers is too large")
        data = self._file.read_at(offset, member.size)
        if member.kind == b"L":
            return {"path": _text(data)}
        if member.kind == b"K":
            return {"linkpath": _text(data)}
        records: dict[str, str] = {}
        while data:
            length, _, _ = data[:20].partition(b" ")
            if not length.isdigit() or not len(length) + 2 < int(length) <= len(data):
                raise self._corrupt("one of its pax headers is damaged")
            key, _, value = data[len(length) + 1 : int(length) - 1].partition(b"=")
            records[key.decode("utf-8", "surrogateescape")] = value.decode(
                "utf-8", "surrogateescape"
            )
            data = data[int(length) :]
        return records

    def _add(self, member: _Member, data: int) -> None:
        name = self._inside(member.name, "")
        if member.kind == b"5":
            return
        if name in self._pieces or name in self._links:
            self.repeated.add(name)
        self._pieces.pop(name, None)
        self._links.pop(name, None)
        if member.kind in (b"0", b"\0", b"7"):
            if not member.name.endswith("/"):  # an ancient way to write a folder
                self._pieces[name] = Piece(self._file, data, member.size)
        elif member.kind == b"1":
            self._links[name] = self._inside(member.link, "")
        elif member.kind == b"2":
            self._links[name] = self._inside(member.link, posixpath.dirname(name))
        else:
            raise self._corrupt(f"its member {ascii(name)[:200]} is no file, folder or link")

    def _inside(self, name: str, folder: str) -> str:
        """Return a name within the archive in normal form; others are refused."""
        plain = posixpath.normpath(posixpath.join(folder, name))
        hostile = name.startswith("/") or plain == ".." or plain.startswith("../") or "\0" in name
        if hostile or not name:
            raise self._corrupt(f"its member {ascii(name)[:200]} leads out of the archive")
        return plain

    def _number(self, field: bytes) -> int:
        """A number of a header: octal digits, or GNU's big-endian binary."""
        if field[0] & 0x80:
            value = int.from_bytes(field, "big") & ((1 << (8 * len(field) - 1)) - 1)
            if field[0] & 0x40:
                raise self._corrupt("one of its headers has a negative number")
            return value
        digits = field.strip(b" \0")
        if digits.strip(b"01234567"):
            raise self._corrupt("it is not a tar archive, or damaged: a header has no number")
        return int(digits, 8) if digits else 0

    def _decimal(self, text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) < 20):
            raise self._corrupt("one of its pax headers has no possible size")
        return int(text)

    def _corrupt(self, problem: str) -> Corrupt:
        return Corrupt(problem, operation="read archive", object=self._name)


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")
