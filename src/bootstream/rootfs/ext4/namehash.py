"""The hash that orders names in an indexed directory: half MD4, unsigned characters.

Kernel documentation, "ext4 Data Structures and Algorithms", section "Hash Tree
Directories"; MD4 is RFC 1320, of which this takes three rounds of eight steps over 32
bytes of the name at a time. The result's lowest bit is clear: an index uses it to say that
a hash goes on in the next block.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable

VERSION = 1
HASH_SEED = hashlib.sha256(b"bootstream ext4 directories").digest()[:16]
"""The same for every image: the order of names in a directory that no upper layer touches
must not change when another layer does, or its blocks would never be shared."""
_M = 0xFFFFFFFF
_WORDS = struct.Struct(">8I")
_LAST = 0xFFFFFFFE
"""The kernel keeps this value for the end of a directory."""


def hasher(seed: bytes) -> Callable[[bytes], int]:
    """Return the function from a name to its hash, for a file system's 16-byte seed."""
    start: tuple[int, ...] = struct.unpack("<4I", seed)
    if start == (0, 0, 0, 0):
        start = (0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476)

    def name_hash(name: bytes) -> int:
        a0, b0, c0, d0 = start
        while name:
            a, b, c, d = _transform(a0, b0, c0, d0, _words(name))
            a0 = (a0 + a) & _M
            b0 = (b0 + b) & _M
            c0 = (c0 + c) & _M
            d0 = (d0 + d) & _M
            name = name[32:]
        value = b0 & ~1
        return value - 2 if value == _LAST else value

    return name_hash


def _words(name: bytes) -> tuple[int, ...]:
    """Return eight big-endian words of the name; what is missing is filled with its length."""
    length = len(name)
    if length >= 32:
        return _WORDS.unpack_from(name)
    fill = (length & 0xFF) * 0x01010101
    whole, over = divmod(length, 4)
    words = struct.unpack_from(f">{whole}I", name)
    if over:
        # The last, partial word: characters pushed in from the right into the fill.
        last = (fill << (8 * over)) & _M | int.from_bytes(name[whole * 4 :], "big")
        words += (last,)
    return words + (fill,) * (8 - len(words))


def _transform(a: int, b: int, c: int, d: int, words: tuple[int, ...]) -> tuple[int, int, int, int]:
    w0, w1, w2, w3, w4, w5, w6, w7 = words
    for x, y, z, w in ((w0, w1, w2, w3), (w4, w5, w6, w7)):
        a = (a + (d ^ (b & (c ^ d))) + x) & _M
        a = (a << 3 | a >> 29) & _M
        d = (d + (c ^ (a & (b ^ c))) + y) & _M
        d = (d << 7 | d >> 25) & _M
        c = (c + (b ^ (d & (a ^ b))) + z) & _M
        c = (c << 11 | c >> 21) & _M
        b = (b + (a ^ (c & (d ^ a))) + w) & _M
        b = (b << 19 | b >> 13) & _M
    for x, y, z, w in ((w1, w3, w5, w7), (w0, w2, w4, w6)):
        a = (a + ((b & c) + ((b ^ c) & d)) + x + 0x5A827999) & _M
        a = (a << 3 | a >> 29) & _M
        d = (d + ((a & b) + ((a ^ b) & c)) + y + 0x5A827999) & _M
        d = (d << 5 | d >> 27) & _M
        c = (c + ((d & a) + ((d ^ a) & b)) + z + 0x5A827999) & _M
        c = (c << 9 | c >> 23) & _M
        b = (b + ((c & d) + ((c ^ d) & a)) + w + 0x5A827999) & _M
        b = (b << 13 | b >> 19) & _M
    for x, y, z, w in ((w3, w7, w2, w6), (w1, w5, w0, w4)):
        a = (a + (b ^ c ^ d) + x + 0x6ED9EBA1) & _M
        a = (a << 3 | a >> 29) & _M
        d = (d + (a ^ b ^ c) + y + 0x6ED9EBA1) & _M
        d = (d << 9 | d >> 23) & _M
        c = (c + (d ^ a ^ b) + z + 0x6ED9EBA1) & _M
        c = (c << 11 | c >> 21) & _M
        b = (b + (c ^ d ^ a) + w + 0x6ED9EBA1) & _M
        b = (b << 15 | b >> 17) & _M
    return a, b, c, d
