"""Checksums of bodies: MD5, SHA-256, SHA-384 from the standard library, CRC32C from here.

CRC32C (RFC 3720 appendix B.4) has no place in the standard library, and a table of bytes is
slow in Python, some 10 MB/s. A CRC is a remainder in the ring of polynomials over two elements,
so a long message may first be replaced by a shorter one of equal remainder. Let ``Q`` be a
sparse multiple of the CRC's polynomial ``P``, ``Q = x^a + x^b + … + 1``. Squaring in this ring
only spreads the exponents: ``Q^(2^k) = x^(a·2^k) + x^(b·2^k) + … + 1``, a multiple of ``P``
again. Hence ``H·x^(a·2^k) + L`` has the remainder of ``L + H·x^(b·2^k) + … + H``: what stands
above a power of two times ``a`` is folded down with a few shifts of long integers, which are as
fast as memory is. Some hundred bits are left, and they go through the table.

Where the ``crc32c`` package is installed, as with Oracle's SDK, it does bodies a hundred times as
fast.
"""

from __future__ import annotations

import base64
import hashlib
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_POLYNOMIAL = 0x82F63B78  # reflected
# Exponents of Q besides 0, highest first; the test suite checks that P divides it.
_SPARSE = (1059, 88, 85, 43, 4)
_FOLDED = 4096  # bits that are left to the table
_BLOCK = 256 << 10  # bytes that are folded at a time: the integers stay in a cache


def _table() -> list[int]:
    table = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = (value >> 1) ^ (_POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return table


_TABLE = _table()


def crc32c(data: bytes | bytearray | memoryview, value: int = 0) -> int:
    """The CRC32C of data, or of more data after that whose CRC32C is ``value``."""
    view = memoryview(data).cast("B")
    state = value ^ 0xFFFFFFFF
    for start in range(0, len(view), _BLOCK):
        state = _block(view[start : start + _BLOCK], state)
    return state ^ 0xFFFFFFFF


def _block(data: memoryview, state: int) -> int:
    if len(data) > 2 * _FOLDED // 8:
        data, state = _fold(data, state), 0
    table = _TABLE
    for byte in data:
        state = (state >> 8) ^ table[(state ^ byte) & 0xFF]
    return state


def _fold(data: memoryview, state: int) -> memoryview:
    """A shorter message that, from the state 0, leaves the same state.

    A message is an integer whose lowest bit is its first, the highest power: the order in
    which a reflected CRC takes them.
    """
    bits = len(data) * 8
    message = int.from_bytes(data, "little") ^ state
    top, *others = _SPARSE
    power = 1 << ((bits - 1) // top).bit_length() - 1
    while bits > _FOLDED:
        while power * top >= bits:
            power >>= 1
        keep = power * top
        high = message & ((1 << bits - keep) - 1)  # what stands above x^keep
        left = max(keep, bits - keep + others[0] * power)
        folded = (message >> bits - keep) << left - keep
        base = left - bits + keep
        for exponent in (*others, 0):
            folded ^= high << base - exponent * power
        message, bits = folded, left
    padding = -bits % 8
    return memoryview((message << padding).to_bytes((bits + padding) // 8, "little"))


def crc32c_concat(first: int, second: int, length: int) -> int:
    """The CRC32C of two messages in a row; ``length`` is the second's, in bytes.

    The first's remainder moves up by the second's length: a product with a power of ``x``.
    """
    bits, square = length * 8, 1 << 30  # x, as the highest power is bit 0 of 32
    while bits:
        if bits & 1:
            first = _product(first, square)
        square = _product(square, square)
        bits >>= 1
    return first ^ second


def _product(left: int, right: int) -> int:
    """The product of two remainders, modulo the polynomial."""
    result = 0
    for power in range(31, -1, -1):
        if left >> power & 1:
            result ^= right
        right = (right >> 1) ^ (_POLYNOMIAL if right & 1 else 0)
    return result


class _Hash(Protocol):
    def update(self, data: memoryview, /) -> None: ...

    def digest(self) -> bytes: ...


def _load() -> Callable[[memoryview, int], int]:
    try:
        found: Callable[[memoryview, int], int] = import_module("crc32c").crc32c
    except ImportError:
        return crc32c
    return found


_fast = _load()


class Crc32c:
    """CRC32C in the form of hashlib's objects; the digest is four bytes, highest first."""

    def __init__(self) -> None:
        self._value = 0

    def update(self, data: memoryview, /) -> None:
        """Take more bytes."""
        self._value = _fast(data, self._value)

    def digest(self) -> bytes:
        """The checksum so far."""
        return self._value.to_bytes(4, "big")


ALGORITHMS: Mapping[str, str] = {
    "CRC32C": "opc-content-crc32c",
    "SHA256": "opc-content-sha256",
    "SHA384": "opc-content-sha384",
}


def of_parts(digests: Sequence[tuple[Mapping[str, str], int]]) -> dict[str, str]:
    """The headers that tell the checksums of an object of parts.

    ``digests`` are each part's, in base64 by algorithm, and its size. MD5, SHA-256 and SHA-384
    are digests of the parts' digests, with the number of parts; CRC32C is the whole object's.
    An algorithm that a part lacks is left out.
    """
    result = {}
    names = set.intersection(*(set(part) for part, _ in digests))
    for name, header, made in (
        ("MD5", "opc-multipart-md5", hashlib.md5(usedforsecurity=False)),
        ("SHA256", "opc-multipart-sha256", hashlib.sha256()),
        ("SHA384", "opc-multipart-sha384", hashlib.sha384()),
    ):
        if name in names:
            for part, _ in digests:
                made.update(base64.b64decode(part[name]))
            result[header] = f"{base64.b64encode(made.digest()).decode()}-{len(digests)}"
    if "CRC32C" in names:
        whole = 0
        for part, size in digests:
            own = int.from_bytes(base64.b64decode(part["CRC32C"]), "big")
            whole = crc32c_concat(whole, own, size)
        result["opc-content-crc32c"] = base64.b64encode(whole.to_bytes(4, "big")).decode()
    return result


class Checksums:
    """The checksums of a body as it comes: always MD5, and those that were asked for."""

    def __init__(self, names: frozenset[str] = frozenset()) -> None:
        made: dict[str, Any] = {"MD5": hashlib.md5(usedforsecurity=False)}
        if "CRC32C" in names:
            made["CRC32C"] = Crc32c()
        if "SHA256" in names:
            made["SHA256"] = hashlib.sha256()
        if "SHA384" in names:
            made["SHA384"] = hashlib.sha384()
        self._made: dict[str, _Hash] = made

    def update(self, data: memoryview) -> None:
        """Take more bytes."""
        for made in self._made.values():
            made.update(data)

    def digests(self) -> dict[str, str]:
        """Name of the algorithm -> digest in base64."""
        return {name: base64.b64encode(made.digest()).decode() for name, made in self._made.items()}
