"""Tokens of the registry: bearer tokens of the token service, and the users' auth tokens.

A bearer token is a JWT (RFC 7519) with HS256 over a key of the data folder; clients take it as
opaque. It says who has it (``sub``, ``tenant``, ``ptype``, ``groups``) and, of a token that was
asked for with a scope, ``access``: for each repository the actions that were asked for and those
that were granted. A token without ``access`` is its holder: the policies decide at each request.

Auth tokens are the passwords of users at the registry. Each user of ``identity.json`` gets one
when there is none, in ``identity/auth-tokens.json`` (0600): ``{"NAME": "TOKEN"}``.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import string
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bootstream.errors import Corrupt
from bootstream.localoci.keys import write_secret
from bootstream.localoci.protocols import Caller
from bootstream.localoci.tokens import TokenError, decode64, encode64

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from bootstream.localoci.keys import Identity

_KEY = "registry-token.key"
_AUTH_TOKENS = "auth-tokens.json"
_AUTH_TOKEN_LETTERS = string.ascii_letters + string.digits
_MAX_TOKEN = 65536
_HEADER = encode64(b'{"alg":"HS256","typ":"JWT"}')


@dataclass(frozen=True, slots=True)
class Access:
    """What a token says of one repository."""

    asked: frozenset[str]
    granted: frozenset[str]


@dataclass(frozen=True, slots=True)
class Holder:
    """Who shows a bearer token, and what it is good for.

    ``access`` is by the repository's name with its namespace; None: whatever the policies
    grant the caller. ``expires`` is in seconds since the epoch.
    """

    caller: Caller
    access: Mapping[str, Access] | None
    expires: float


class RegistryTokens:
    """Gives out bearer tokens and checks those that come back. Thread safe.

    Args:
        folder: where its key is; made when missing.
        clock: seconds since the epoch.
        lifetime: seconds for which a token is good.
    """

    def __init__(self, folder: Path, *, clock: Callable[[], float], lifetime: float) -> None:
        path = folder / _KEY
        if not path.exists():
            write_secret(path, secrets.token_bytes(32))
        self._key = path.read_bytes()
        self._clock = clock
        self.lifetime = lifetime

    def issue(
        self, caller: Caller, access: Mapping[str, Access] | None, *, until: float | None = None
    ) -> tuple[str, int]:
        """Return a token, and the seconds for which it is good.

        Args:
            caller: who gets it.
            access: what it grants; None: whatever its holder may do.
            until: when it ends at the latest: a token got by another does not outlive that.
        """
        now = self._clock()
        expires = now + self.lifetime
        if until is not None:
            expires = min(expires, until)
        claims: dict[str, Any] = {
            "sub": caller.principal_ocid,
            "tenant": caller.tenancy,
            "ptype": caller.kind,
            "groups": caller.attributes.get("groups", ""),
            "iat": now,
            "exp": expires,
            "jti": secrets.token_hex(8),
        }
        if access is not None:
            claims["access"] = {
                name: {"asked": sorted(one.asked), "granted": sorted(one.granted)}
                for name, one in access.items()
            }
        body = encode64(json.dumps(claims, separators=(",", ":")).encode())
        signed = f"{_HEADER}.{body}"
        return f"{signed}.{self._signature(signed)}", max(0, int(expires - now))

    def holder(self, token: str) -> Holder:
        """Return who a token is.

        Raises:
            TokenError: it was not given out here, or has expired.
        """
        signed, _, signature = token.rpartition(".")
        known = len(token) <= _MAX_TOKEN and token.isascii()
        if not known or not hmac.compare_digest(self._signature(signed), signature):
            raise TokenError("the token was not given out here")
        claims = json.loads(decode64(signed.partition(".")[2]))  # ours: as it was made
        if self._clock() >= claims["exp"]:
            raise TokenError("the token has expired")
        caller = Caller(
            claims["sub"], claims["tenant"], claims["ptype"], {"groups": claims["groups"]}
        )
        access = claims.get("access")
        if access is not None:
            access = {
                name: Access(frozenset(one["asked"]), frozenset(one["granted"]))
                for name, one in access.items()
            }
        return Holder(caller, access, claims["exp"])

    def _signature(self, signed: str) -> str:
        return encode64(hmac.digest(self._key, signed.encode(), hashlib.sha256))


class AuthTokens:
    """The users' auth tokens.

    Args:
        identity: who the users are.

    Raises:
        Corrupt: the file cannot be read as what it is.
    """

    def __init__(self, identity: Identity) -> None:
        path = identity.folder / _AUTH_TOKENS
        try:
            held = json.loads(path.read_bytes()) if path.exists() else {}
            if not all(isinstance(token, str) and token for token in held.values()):
                raise TypeError("a token is not a text")  # noqa: TRY301 - mapped with the others
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise Corrupt(
                f"the auth tokens cannot be read ({error})",
                operation="open",
                object=str(path),
                remedy="remove the file; the tokens are then made anew",
            ) from error
        self._users = {user.name: user for user in identity.names.users}
        self._tenancy = identity.names.tenancy
        missing = self._users.keys() - held.keys()
        if missing:
            held |= {
                name: "".join(secrets.choice(_AUTH_TOKEN_LETTERS) for _ in range(20))
                for name in missing
            }
            write_secret(path, json.dumps(held, indent=2).encode() + b"\n")
        self._tokens: dict[str, str] = held

    def of(self, name: str) -> str:
        """Return a user's token."""
        return self._tokens[name]

    def user(self, name: str, token: str) -> Caller | None:
        """Return the user of a name if that is their token."""
        user = self._users.get(name)
        if user is None or not hmac.compare_digest(
            self._tokens[name].encode(), token.encode("utf-8", "replace")
        ):
            return None
        return Caller(user.ocid, self._tenancy, "user", {"groups": " ".join(user.groups)})
