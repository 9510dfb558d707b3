"""Security tokens: JWTs (RFC 7519) that the cloud made; read here, verified by the cloud.

Only ``exp``, ``iat``, ``jwk`` and the tenancy are looked at, to know when to come back and
whether a key belongs to the token. Nothing is trusted for what a token says.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

_MAX_TOKEN = 64 << 10
_FORM = re.compile(r"[A-Za-z0-9_-]+\.([A-Za-z0-9_-]+)\.[A-Za-z0-9_-]*")


@dataclass(frozen=True, slots=True)
class Token:
    """A token's text, and what was read out of it. ``expires`` in seconds since 1970."""

    text: str = field(repr=False)
    expires: float
    issued: float | None
    claims: Mapping[str, Any] = field(repr=False)

    @property
    def key_id(self) -> str:
        """What a request names as its key."""
        return f"ST${self.text}"

    @property
    def tenancy(self) -> str | None:
        """The tenancy's OCID where the token has it: of the resource, or of the caller."""
        for claim in ("res_tenant", "tenant"):
            if isinstance(value := self.claims.get(claim), str) and value:
                return value
        return None

    def fits(self, key: RSAPrivateKey) -> bool:
        """Tell whether the token can be for this key: False only where it names another."""
        jwk = self.claims.get("jwk")
        try:
            document: Any = json.loads(jwk) if isinstance(jwk, str) else jwk
            named = int.from_bytes(_decode(document["n"]), "big")
        except (ValueError, TypeError, KeyError, RecursionError):
            return True
        return named == key.public_key().public_numbers().n


def parse_token(data: str | bytes) -> Token:
    """Read a JWT, with or without ``ST$`` before it and white space around it.

    Raises ValueError with a message that holds nothing of the token.
    """
    if len(data) > _MAX_TOKEN:
        raise ValueError("the token is too long")
    try:
        text = (data if isinstance(data, str) else data.decode("ascii")).strip()
    except UnicodeDecodeError:
        raise ValueError("the token is not text") from None
    match = _FORM.fullmatch(text.removeprefix("ST$"))
    if match is None:
        raise ValueError("the token is not a JWT")
    try:
        claims = json.loads(_decode(match[1]))
    except (ValueError, RecursionError):
        raise ValueError("the token's claims are not JSON") from None
    if not isinstance(claims, dict):
        raise ValueError("the token's claims are not a JSON object")  # noqa: TRY004 - one error
    expires = _number(claims.get("exp"))
    if expires is None:
        raise ValueError("the token has no expiry (exp)")
    return Token(match[0], expires, _number(claims.get("iat")), claims)


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
