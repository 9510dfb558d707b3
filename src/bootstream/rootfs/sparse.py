"""Maps of sparse files in tar archives: which parts of a file are stored.

GNU tar manual, appendix "Storing Sparse Files": the old GNU format (type ``S``, four
entries in the header and 21 in every block that follows), and the pax formats 0.0 (pairs
of records), 0.1 (one record with all numbers) and 1.0 (decimal lines before the data).
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass

from bootstream.rootfs.numbers import decimal, header_number

MAX_PARTS = 1 << 20
_BLOCK = 512
_ENTRY = 24


@dataclass(frozen=True, slots=True)
class SparseMap:
    """Where the stored parts belong: flat pairs of offset and length; ``size`` of the file."""

    size: int
    parts: array[int]
    name: bytes | None = None

    def check(self, stored: int) -> None:
        """Raise ValueError unless parts ascend, lie inside the file and add up to ``stored``."""
        last = total = 0
        for index in range(0, len(self.parts), 2):
            offset, length = self.parts[index], self.parts[index + 1]
            if offset < last:
                raise ValueError("its parts overlap")
            last = offset + length
            total += length
        if last > self.size:
            raise ValueError("a part lies behind the end of the file")
        if total != stored:
            raise ValueError(f"its parts have {total} bytes, the archive {stored}")


def read_gnu_map(header: bytes, take: Callable[[int], bytes]) -> tuple[SparseMap, int]:
    """Return the map of a member of type S and how many blocks follow its header.

    Raises:
        ValueError: it is damaged or cut off.
    """
    parts: array[int] = array("q")
    size = header_number(header[483:495])
    _entries(header[386 : 386 + 4 * _ENTRY], parts)
    more = header[482] != 0
    blocks = 0
    while more:
        block = take(_BLOCK)
        if len(block) != _BLOCK:
            raise ValueError("the archive ends inside it")
        blocks += 1
        _entries(block[: 21 * _ENTRY], parts)
        more = block[504] != 0
        if len(parts) > 2 * MAX_PARTS:
            raise ValueError(f"it has over {MAX_PARTS} parts")
    return SparseMap(_positive(size), parts), blocks


def _entries(data: bytes, parts: array[int]) -> None:
    for at in range(0, len(data), _ENTRY):
        if not data[at]:
            return
        offset = header_number(data[at : at + 12])
        length = header_number(data[at + 12 : at + 24])
        parts.append(_positive(offset))
        parts.append(_positive(length))


def read_pax_map(
    records: dict[bytes, bytes],
    ordered: list[tuple[bytes, bytes]],
    read: Callable[[int], bytes],
) -> SparseMap | None:
    """Return the map that a member's records describe, None if they describe none.

    Args:
        records: all of them, by key.
        ordered: those that begin with ``GNU.sparse.``, in order: format 0.0 repeats keys.
        read: reads the member's stored content; format 1.0 begins there.

    Raises:
        ValueError: the map is damaged.
    """
    name = records.get(b"GNU.sparse.name") or None
    if b"GNU.sparse.major" in records:
        version = (records[b"GNU.sparse.major"], records.get(b"GNU.sparse.minor"))
        if version != (b"1", b"0"):
            raise ValueError("its version is not 0.0, 0.1 or 1.0")
        size = _positive(decimal(records.get(b"GNU.sparse.realsize", b"")))
        return SparseMap(size, _read_lines(read), name)
    if b"GNU.sparse.map" in records:
        numbers = records[b"GNU.sparse.map"].split(b",")
        if numbers == [b""]:
            numbers = []
    else:
        pairs = [r for r in ordered if r[0] in (b"GNU.sparse.offset", b"GNU.sparse.numbytes")]
        if not pairs and b"GNU.sparse.size" not in records:
            return None
        keys = [key for key, _ in pairs]
        if keys != [b"GNU.sparse.offset", b"GNU.sparse.numbytes"] * (len(keys) // 2):
            raise ValueError("offsets and lengths do not alternate")
        numbers = [value for _, value in pairs]
    if len(numbers) % 2:
        raise ValueError("an offset has no length")
    parts = array("q", [_positive(decimal(number)) for number in numbers])
    total = records.get(b"GNU.sparse.size") or records.get(b"GNU.sparse.realsize") or b""
    return SparseMap(_positive(decimal(total)), parts, name)


def _read_lines(read: Callable[[int], bytes]) -> array[int]:
    """Read a count, then so many pairs, one number a line; the rest of the block is padding."""
    parts: array[int] = array("q")
    wanted: int | None = None
    rest = b""
    while wanted is None or len(parts) < wanted:
        block = read(_BLOCK)
        if len(block) != _BLOCK:
            raise ValueError("the content ends inside it")
        lines = (rest + block).split(b"\n")
        rest = lines.pop()
        for line in lines:
            number = _positive(decimal(line))
            if wanted is None:
                if number > MAX_PARTS:
                    raise ValueError(f"it has over {MAX_PARTS} parts")
                wanted = 2 * number
            elif len(parts) < wanted:
                parts.append(number)
                if len(parts) == wanted:
                    break  # what follows in this block is padding
            if wanted == 0:
                break
        # Not of the block in which the map ends: what is left there is padding.
        if len(rest) > 30 and (wanted is None or len(parts) < wanted):
            raise ValueError("a line is no number")
    return parts


def _positive(number: int) -> int:
    if not 0 <= number < 1 << 62:
        raise ValueError(f"{number} is not a size")
    return number
