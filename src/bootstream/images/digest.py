"""Digests of content: ``sha256:<hex>`` and ``sha512:<hex>``.

OCI image specification, "Descriptor", "Digests". Both registered algorithms that
are in use are supported; others are refused, since what cannot be checked must not
be used.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

from bootstream.errors import Corrupt

if TYPE_CHECKING:
    from hashlib import _Hash

_HEX = {"sha256": 64, "sha512": 128}
_PATTERN = re.compile(r"(sha256):([0-9a-f]{64})|(sha512):([0-9a-f]{128})")


def is_digest(text: object) -> bool:
    """Tell whether ``text`` is a digest that can be checked here."""
    return isinstance(text, str) and _PATTERN.fullmatch(text) is not None


def check_digest(text: object, *, what: str) -> str:
    """Return ``text`` if it is a digest; raises Corrupt, naming ``what`` it was read from."""
    if isinstance(text, str) and _PATTERN.fullmatch(text):
        return text
    raise Corrupt(
        f"{ascii(text)[:160]} is not a sha256 or sha512 digest", operation="read", object=what
    )


def split_digest(digest: str) -> tuple[str, str]:
    """Return algorithm and hexadecimal digits of a digest that was checked before."""
    algorithm, _, digits = digest.partition(":")
    return algorithm, digits


def new_hash(digest: str) -> _Hash:
    """Return an empty hash of the digest's algorithm."""
    return hashlib.new(split_digest(digest)[0], usedforsecurity=True)


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    """Return the digest of ``data``."""
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def verify(data: bytes, digest: str, *, what: str) -> bytes:
    """Return ``data`` if ``digest`` is its digest; raises Corrupt naming ``what`` otherwise."""
    found = digest_of(data, split_digest(digest)[0])
    if found != digest:
        raise Corrupt(
            f"its digest is {found}, not {digest} as promised", operation="verify", object=what
        )
    return data
