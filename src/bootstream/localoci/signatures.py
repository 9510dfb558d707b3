"""Request signatures: the ``Authorization`` header of every call to the cloud.

Source: "Request Signatures" in Oracle's API reference, version 1, which follows
draft-cavage-http-signatures-08. The header is ::

    Signature version="1",keyId="K",algorithm="rsa-sha256",headers="H1 H2",signature="S"

``headers`` names what is signed, in order. The signing string has a line ``name: value``
for each; ``(request-target)`` stands for the method in lower case, a space, and path and
query as they were sent. ``S`` is base64 of RSASSA-PKCS1-v1_5 with SHA-256 over it.

What must be signed: ``(request-target)``, ``host``, and ``date`` or ``x-date``; of PUT, POST
and PATCH also ``content-length``, ``content-type`` and ``x-content-sha256``, but for PutObject
and UploadPart, which may leave these out. A body hash that is signed is checked.

A key id is ``TENANCY/USER/FINGERPRINT`` of an API key, or ``ST$TOKEN`` of a session.
"""

from __future__ import annotations

import base64
import binascii
import functools
import math
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from bootstream.localoci.errors import ApiError
from bootstream.localoci.memo import LONG, Memo
from bootstream.localoci.protocols import Caller
from bootstream.localoci.tokens import TokenError, Tokens

if TYPE_CHECKING:
    from bootstream.localoci.http import Request
    from bootstream.localoci.keys import Identity

MAX_SKEW = 300.0  # seconds
_MAX_HEADER = 32768
_DATE = 64  # letters; no date has more
_PADDING = padding.PKCS1v15()
_HASH = hashes.SHA256()
_PREFIX = "signature "
_FIELD = re.compile(r'\s*([A-Za-z]+)="([^"]*)"\s*(?:,|$)')
_BODY_METHODS = frozenset({"PUT", "POST", "PATCH"})
_BODY_HEADERS = ("content-length", "content-type", "x-content-sha256")
_DATA_PUT = re.compile(r"/n/[^/]+/b/[^/]+/[ou]/.")
_MESSAGE = "The required information to complete authentication was not provided or was incorrect: "


def refuse(reason: str) -> ApiError:
    """401 ``NotAuthenticated``, in the service's words, with the reason that it keeps to itself."""
    return ApiError(401, "NotAuthenticated", _MESSAGE + reason)


@dataclass(frozen=True, slots=True)
class Signature:
    """What an ``Authorization`` header says."""

    key_id: str
    headers: tuple[str, ...]
    signature: bytes

    @classmethod
    def parse(cls, value: str | None) -> Signature:
        """Parse a header's value; 401 if it is missing or not a signature of version 1."""
        if not value:
            raise refuse("the request is not signed")
        return (_known_signature if len(value) <= LONG else _signature)(value)


def _signature(value: str) -> Signature:
    if len(value) > _MAX_HEADER or value[: len(_PREFIX)].lower() != _PREFIX:
        raise refuse("the Authorization header is not a signature")
    fields = _fields(value[len(_PREFIX) :])
    missing = {"version", "keyid", "algorithm", "headers", "signature"} - fields.keys()
    if missing:
        raise refuse(f"the signature has no {', '.join(sorted(missing))}")
    if fields["version"] != "1":
        raise refuse("the signature's version is not 1")
    if fields["algorithm"].lower() != "rsa-sha256":
        raise refuse("the signature's algorithm is not rsa-sha256")
    headers = tuple(fields["headers"].lower().split())
    if len(set(headers)) != len(headers):
        raise refuse("a header is signed twice")
    try:
        signature = base64.b64decode(fields["signature"], validate=True)
    except (binascii.Error, ValueError):
        raise refuse("the signature is not base64") from None
    return Signature(fields["keyid"], headers, signature)


_known_signature = functools.lru_cache(1024)(_signature)


def _fields(text: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    position = 0
    while position < len(text):
        match = _FIELD.match(text, position)
        name = match[1].lower() if match else ""
        if match is None or name in fields:
            raise refuse("the Authorization header is malformed")
        fields[name] = match[2]
        position = match.end()
    return fields


def signing_string(
    method: str, target: str, headers: Mapping[str, str], names: Sequence[str]
) -> bytes:
    """Return what is signed.

    Args:
        method: as it was sent.
        target: path and query, raw.
        headers: by lower-case name.
        names: what is signed, in order.

    Raises:
        ApiError: 401, a header is named that the request has not.
    """
    lines = []
    for name in names:
        if name == "(request-target)":
            lines.append(f"{name}: {method.lower()} {target}")
        elif name in headers:
            lines.append(f"{name}: {headers[name].strip()}")
        else:
            raise refuse(f"the header {name} is signed but not sent")
    return "\n".join(lines).encode("latin-1", "replace")


def check_signature(
    request: Request,
    signature: Signature,
    key: rsa.RSAPublicKey,
    *,
    required: Sequence[str],
    known: Memo[Hashable, bool] | None = None,
) -> None:
    """Check that a key signed a request's head, and that all that must be signed is.

    The body's hash is another matter: see ``expect_body``.

    Args:
        request: what came.
        signature: what its header says.
        key: whose signature it should be.
        required: headers that must be signed.
        known: signatures that matched, with key id and all that was signed; of its users, one
            key id always means the same key.

    Raises:
        ApiError: 401.
    """
    missing = [name for name in required if name not in signature.headers]
    if missing:
        raise refuse(f"not signed: {', '.join(missing)}")
    text = signing_string(request.method, request.target, request.headers, signature.headers)
    whole = (signature.key_id, text, signature.signature)
    if known is not None and known.get(whole):
        return
    try:
        key.verify(signature.signature, text, _PADDING, _HASH)
    except InvalidSignature:
        raise refuse("the signature does not match") from None
    if known is not None and len(text) + len(signature.key_id) <= LONG:
        known.keep(whole, value=True)


def expect_body(request: Request, signature: Signature) -> None:
    """Have the body checked while it is read, if its hash is signed; call it before.

    Raises:
        ApiError: 401: the hash is not base64, or not an empty body's.
    """
    if "x-content-sha256" in signature.headers:
        request.body.expect_sha256(request.headers["x-content-sha256"])


def _seconds(date: str) -> float:
    return parsedate_to_datetime(date).timestamp()


_known_seconds = functools.lru_cache(256)(_seconds)


def check_date(request: Request, signature: Signature, now: float) -> None:
    """Check that the date that is signed is now.

    Raises:
        ApiError: 401: no date is signed, or it is more than five minutes off.
    """
    name = next((name for name in ("x-date", "date") if name in signature.headers), None)
    if name is None:
        raise refuse("not signed: date")
    try:
        text = request.headers[name]
        date = (_known_seconds if len(text) <= _DATE else _seconds)(text)
    except (KeyError, ValueError, TypeError, IndexError, OverflowError):
        raise refuse(f"the header {name} is not a date") from None
    if abs(date - now) > MAX_SKEW:
        raise refuse(f"the date is {abs(date - now):.0f} s off, over {MAX_SKEW:.0f}")


def required_headers(request: Request) -> tuple[str, ...]:
    """Return what a call to the object storage must sign, besides a date."""
    basic = ("(request-target)", "host")
    if request.method not in _BODY_METHODS:
        return basic
    if request.method == "PUT" and _DATA_PUT.match(request.raw_path):
        return basic
    return basic + _BODY_HEADERS


class Authenticator:
    """Says who made a request. Thread safe.

    Args:
        identity: whose API keys are known.
        tokens: checks security tokens.
        clock: seconds since the epoch.
    """

    def __init__(self, identity: Identity, tokens: Tokens, clock: Callable[[], float]) -> None:
        self._identity = identity
        self._tokens = tokens
        self._clock = clock
        self._groups = {user.ocid: " ".join(user.groups) for user in identity.names.users}
        self._matched: Memo[Hashable, bool] = Memo(2048)
        # By key id: when it ends, its key, and whose it is.
        self._sessions: Memo[str, tuple[float, rsa.RSAPublicKey, Caller]] = Memo(256)

    def __call__(self, request: Request) -> Caller:
        """Return who signed a request.

        Raises:
            ApiError: 401 ``NotAuthenticated``: nobody did, or not as it must be.
        """
        signature = Signature.parse(request.headers.get("authorization"))
        check_date(request, signature, self._clock())
        key, caller = self._who(signature.key_id)
        check_signature(
            request, signature, key, required=required_headers(request), known=self._matched
        )
        expect_body(request, signature)
        return caller

    def _who(self, key_id: str) -> tuple[rsa.RSAPublicKey, Caller]:
        session = self._sessions.get(key_id)
        if session is None:
            session = self._session(key_id) if key_id.startswith("ST$") else self._user(key_id)
            if len(key_id) <= LONG:
                self._sessions.keep(key_id, session)
        expiry, key, caller = session
        if self._clock() >= expiry:
            raise refuse("the security token has expired")
        return key, caller

    def _session(self, key_id: str) -> tuple[float, rsa.RSAPublicKey, Caller]:
        try:
            claims = self._tokens.verify(key_id[3:])
            return claims["exp"], self._tokens.session_key(claims), caller_of(claims)
        except TokenError as error:
            raise refuse(str(error)) from None

    def _user(self, key_id: str) -> tuple[float, rsa.RSAPublicKey, Caller]:
        tenancy, _, rest = key_id.partition("/")
        user, _, fingerprint = rest.partition("/")
        key = self._identity.api_key(tenancy, user, fingerprint)
        if key is None:
            raise refuse("the key id names no key that is known")
        attributes = {"groups": self._groups.get(user, "")}
        return math.inf, key, Caller(user, tenancy, "user", attributes)


def caller_of(claims: Mapping[str, Any]) -> Caller:
    """Return who holds a token with such claims.

    Raises:
        TokenError: they name nobody.
    """
    subject, tenancy = claims.get("sub"), claims.get("tenant")
    if not isinstance(subject, str) or not isinstance(tenancy, str):
        raise TokenError("the security token names nobody")
    attributes = {
        name: value
        for name, claim in (
            ("groups", "groups"),
            ("compartment", "opc-compartment"),
            ("compartment", "res_compartment"),
        )
        if isinstance(value := claims.get(claim), str)
    }
    return Caller(subject, tenancy, str(claims.get("ptype", "user")), attributes)
