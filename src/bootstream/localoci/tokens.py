"""Security tokens: JWTs signed with RS256 (RFC 7519, RFC 7515) that carry a session key.

A token needs no registry of sessions: its claim ``jwk`` holds the public key (RFC 7517, as
a string, the way the cloud has it) with which requests are signed that name the token as
their key, and ``exp`` says until when.
"""

from __future__ import annotations

import base64
import binascii
import json
import secrets
from collections.abc import Callable, Mapping
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

_MAX_TOKEN = 16384
_KEY_ID = "local_oci"


class TokenError(Exception):
    """A token is not one of ours, or is no longer good; the message says which."""


def encode64(data: bytes) -> str:
    """Return base64url without padding (RFC 7515, section 2)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def decode64(text: str) -> bytes:
    """Undo ``encode64``.

    Raises:
        ValueError: it is not that.
    """
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from error


def jwk_of(key: rsa.RSAPublicKey) -> dict[str, str]:
    """Return a public key as a JSON Web Key (RFC 7518, section 6.3)."""
    numbers = key.public_numbers()
    return {
        "kid": _KEY_ID,
        "kty": "RSA",
        "alg": "RS256",
        "use": "sig",
        "n": encode64(numbers.n.to_bytes((numbers.n.bit_length() + 7) // 8)),
        "e": encode64(numbers.e.to_bytes((numbers.e.bit_length() + 7) // 8)),
    }


def key_of(jwk: Mapping[str, Any]) -> rsa.RSAPublicKey:
    """Undo ``jwk_of``.

    Raises:
        ValueError: it is not an RSA key.
    """
    try:
        modulus, exponent = (int.from_bytes(decode64(jwk[part])) for part in ("n", "e"))
    except (KeyError, TypeError) as error:
        raise ValueError("no RSA key") from error
    return rsa.RSAPublicNumbers(exponent, modulus).public_key()


class Tokens:
    """Gives out tokens and checks those that come back. Thread safe.

    Args:
        key: signs them.
        clock: seconds since the epoch.
        lifetime: seconds for which a token is good, unless said otherwise.
    """

    def __init__(
        self, key: rsa.RSAPrivateKey, *, clock: Callable[[], float], lifetime: float
    ) -> None:
        self._key = key
        self._public = key.public_key()
        self._clock = clock
        self.lifetime = lifetime

    def issue(
        self,
        session_key: rsa.RSAPublicKey,
        claims: Mapping[str, Any],
        *,
        lifetime: float | None = None,
    ) -> str:
        """Return a token for a session key.

        Args:
            session_key: its private half signs the requests.
            claims: who it is; ``iat``, ``exp``, ``jti`` and ``jwk`` are added.
            lifetime: seconds.
        """
        now = self._clock()
        body = dict(claims) | {
            "iss": "authService.oracle.com",
            "aud": "oci",
            "iat": int(now),
            "exp": int(now + (self.lifetime if lifetime is None else lifetime)),
            "jti": secrets.token_hex(16),
            "jwk": json.dumps(jwk_of(session_key), separators=(",", ":")),
        }
        header = {"kid": _KEY_ID, "alg": "RS256", "typ": "JWT"}
        signed = f"{_json64(header)}.{_json64(body)}"
        signature = self._key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{signed}.{encode64(signature)}"

    def verify(self, token: str, *, expired: bool = False) -> dict[str, Any]:
        """Return a token's claims.

        Args:
            token: as a client sent it.
            expired: take one that is no longer good too.

        Raises:
            TokenError: it is not one of ours, or has expired.
        """
        claims = self._claims(token)
        expiry = claims.get("exp")
        if not isinstance(expiry, int | float):
            raise TokenError("the security token has no expiry")
        if not expired and self._clock() >= expiry:
            raise TokenError("the security token has expired")
        return claims

    def _claims(self, token: str) -> dict[str, Any]:
        if len(token) > _MAX_TOKEN:
            raise TokenError("the security token is too long")
        signed, _, signature = token.rpartition(".")
        try:
            header64, _, body64 = signed.partition(".")
            header = json.loads(decode64(header64))
            body = json.loads(decode64(body64))
            raw = decode64(signature)
            known = header["alg"] == "RS256"
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise TokenError("the security token is not a JWT") from error
        if not known or not isinstance(body, dict):
            raise TokenError("the security token is not a JWT signed with RS256")
        try:
            self._public.verify(raw, signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        except InvalidSignature as error:
            raise TokenError("the security token was not given out here") from error
        return body

    @staticmethod
    def session_key(claims: Mapping[str, Any]) -> rsa.RSAPublicKey:
        """Return the key with which a token's holder signs.

        Raises:
            TokenError: the claims have none.
        """
        try:
            jwk = claims["jwk"]
            return key_of(json.loads(jwk) if isinstance(jwk, str) else jwk)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise TokenError("the security token has no session key") from error


def _json64(document: Mapping[str, Any]) -> str:
    return encode64(json.dumps(document, separators=(",", ":")).encode())
