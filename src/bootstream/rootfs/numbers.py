"""Numbers as tar headers write them.

Octal digits that end in a blank or NUL (POSIX.1-2017, pax, "ustar Interchange
Format"); base 256 with the top bit set, two's complement (GNU tar manual, "Extensions
to the Archive Format"); decimal seconds with a fraction ("pax Extended Header").
"""

from __future__ import annotations

import re

NANO = 10**9
_DECIMAL_TIME = re.compile(rb"(-?)(\d{1,20})(?:\.(\d*))?")
_DECIMAL = re.compile(rb"-?\d{1,25}")


def header_number(field: bytes) -> int:
    """Return the number in a header field; an empty field is 0. Raises ValueError."""
    if field[0] & 0x80:
        bits = len(field) * 8 - 1
        value = int.from_bytes(field, "big") & ((1 << bits) - 1)
        return value - (1 << bits) if value >> (bits - 1) else value
    text = field.split(b"\0", 1)[0].strip(b" ")
    if not text:
        return 0
    if not text.isdigit():
        raise ValueError("not octal digits")
    return int(text, 8)


def decimal(text: bytes) -> int:
    """Return the integer of an extended header's record. Raises ValueError."""
    if not _DECIMAL.fullmatch(text):
        raise ValueError("not a decimal number")
    return int(text)


def decimal_time(text: bytes) -> int:
    """Return nanoseconds, cut towards the past, of ``-1.5`` and the like. Raises ValueError."""
    match = _DECIMAL_TIME.fullmatch(text)
    if match is None:
        raise ValueError("not a time in seconds")
    fraction = (match[3] or b"")[:60]
    nanoseconds = int(match[2]) * NANO + int(fraction[:9].ljust(9, b"0"))
    if not match[1]:
        return nanoseconds
    return -nanoseconds - bool(fraction[9:].strip(b"0"))
