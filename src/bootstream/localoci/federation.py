"""The authentication service: security tokens for instances, pods, resources and sessions.

Instance principals: ``POST /v1/x509`` with ``{certificate, publicKey, intermediateCertificates}``
(PEM without armour and newlines), signed by the certificate's key. Its key id is
``TENANCY/fed-x509/SHA1`` or ``TENANCY/fed-x509-sha256/SHA256``, the certificate's fingerprint.
The answer is ``{"token": …}``.

Workload identity: ``POST /resourcePrincipalSessionTokens`` with ``{podKey}`` and the pod's
service-account token as bearer. The answer is base64 of ``{"token": "ST$…"}``.

Sessions: ``POST /v1/authentication/refresh`` with ``{currentToken}``, signed by the session's
key. The answer is ``{"token": …}``.

Requests and answers are as Oracle's SDKs for Python and Go send and read them; there is no
other description of these endpoints.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from bootstream.localoci.errors import invalid
from bootstream.localoci.http import Request, Response, json_response
from bootstream.localoci.keys import Identity, colons
from bootstream.localoci.signatures import (
    Signature,
    check_date,
    check_signature,
    expect_body,
    refuse,
)
from bootstream.localoci.tokens import TokenError, Tokens

if TYPE_CHECKING:
    from collections.abc import Mapping

_MAX_CERTIFICATES = 8
_SIGNED = ("(request-target)", "content-length", "content-type", "x-content-sha256")
_FINGERPRINTS = {"fed-x509": hashes.SHA1, "fed-x509-sha256": hashes.SHA256}


class Federation:
    """Exchanges proofs of who one is for security tokens. Thread safe.

    Args:
        identity: the authority that is trusted.
        tokens: gives out tokens.
        clock: seconds since the epoch.
    """

    def __init__(self, identity: Identity, tokens: Tokens, clock: Callable[[], float]) -> None:
        self._identity = identity
        self._tokens = tokens
        self._clock = clock

    def handle(self, request: Request) -> Response | None:
        """Answer a request for a token; None if it is for somebody else.

        Raises:
            ApiError: 400 or 401.
        """
        if request.method != "POST":
            return None
        match request.path.rstrip("/"):
            case "/v1/x509":
                return json_response({"token": self._federate(request)})
            case "/resourcePrincipalSessionTokens":
                return self._workload(request)
            case "/v1/authentication/refresh":
                return json_response({"token": self._refresh(request)})
            case _:
                return None

    def _federate(self, request: Request) -> str:
        signature = Signature.parse(request.headers.get("authorization"))
        check_date(request, signature, self._clock())
        expect_body(request, signature)
        body = request.json()
        leaf = _certificate(body.get("certificate"))
        others = body.get("intermediateCertificates") or []
        if not isinstance(others, list) or len(others) > _MAX_CERTIFICATES:
            raise invalid("intermediateCertificates is not a short list")
        self._check_chain(leaf, [_certificate(other) for other in others])
        key = leaf.public_key()
        if not isinstance(key, rsa.RSAPublicKey):
            raise refuse("the certificate's key is not RSA")
        # The host is not signed here: the SDKs leave it out.
        check_signature(request, signature, key, required=_SIGNED)
        units = _units(leaf)
        self._check_key_id(signature.key_id, leaf, units.get("opc-tenant", ""))
        claims = {
            "sub": units["opc-instance"],
            "tenant": units["opc-tenant"],
            "opc-tenant": units["opc-tenant"],
            "opc-instance": units["opc-instance"],
            "opc-compartment": units.get("opc-compartment", ""),
            "opc-certtype": "instance",
            "ptype": "instance",
            "ttype": "x509",
            "fprint": colons(leaf.fingerprint(hashes.SHA1())),  # noqa: S303 - the protocol's
        }
        return self._tokens.issue(_public_key(body.get("publicKey")), claims)

    def _check_chain(self, leaf: x509.Certificate, others: list[x509.Certificate]) -> None:
        """Check that each certificate is signed by the next, and the last by our root."""
        now = self._clock()
        current, left = leaf, list(others)
        root = self._identity.root
        while True:
            start = current.not_valid_before_utc.timestamp()
            if not start <= now < current.not_valid_after_utc.timestamp():
                raise refuse("a certificate is not valid now")
            if _signed_by(current, root):
                break
            issuer = next((other for other in left if _signed_by(current, other)), None)
            if issuer is None or not _is_authority(issuer):
                raise refuse("the certificate's chain does not end at a trusted authority")
            left.remove(issuer)
            current = issuer
        if _is_authority(leaf) or _units(leaf).get("opc-certtype") != "instance":
            raise refuse("the certificate is not an instance's")
        if not {"opc-instance", "opc-tenant"} <= _units(leaf).keys():
            raise refuse("the certificate names no instance or tenancy")

    def _check_key_id(self, key_id: str, leaf: x509.Certificate, tenancy: str) -> None:
        named, _, rest = key_id.partition("/")
        scheme, _, print_ = rest.partition("/")
        algorithm = _FINGERPRINTS.get(scheme)
        if algorithm is None or named != tenancy:
            raise refuse("the key id is not TENANCY/fed-x509/FINGERPRINT of the certificate")
        expected = leaf.fingerprint(algorithm())
        if print_.replace(":", "").lower() != expected.hex():
            raise refuse("the key id's fingerprint is not the certificate's")

    def _workload(self, request: Request) -> Response:
        scheme, _, shown = request.headers.get("authorization", "").partition(" ")
        known = self._identity.service_account_token()
        if scheme.lower() != "bearer" or not _equal(shown.strip(), known):
            raise refuse("the service-account token is not the cluster's")
        names = self._identity.names
        claims = {
            "sub": names.cluster,
            "tenant": names.tenancy,
            "res_tenant": names.tenancy,
            "res_compartment": names.compartment,
            "res_id": names.cluster,
            "res_type": "workload",
            "ptype": "workload",
            "ttype": "res_sp",
        }
        token = self._tokens.issue(_public_key(request.json().get("podKey")), claims)
        text = json.dumps({"token": f"ST${token}"}).encode()
        return Response(200, {"content-type": "text/plain"}, base64.b64encode(text))

    def _refresh(self, request: Request) -> str:
        signature = Signature.parse(request.headers.get("authorization"))
        check_date(request, signature, self._clock())
        if not signature.key_id.startswith("ST$"):
            raise refuse("a session is refreshed with its own token")
        try:
            claims = self._tokens.verify(signature.key_id[3:])
            key = self._tokens.session_key(claims)
        except TokenError as error:
            raise refuse(str(error)) from None
        check_signature(request, signature, key, required=_SIGNED)
        expect_body(request, signature)
        if request.json().get("currentToken") != signature.key_id[3:]:
            raise invalid("currentToken is not the token that signs")
        return self._tokens.issue(key, claims)

    def resource_token(self, lifetime: float | None = None) -> str:
        """Return a token of the resource principal, for version 2.2's file."""
        names = self._identity.names
        claims = {
            "sub": names.function,
            "tenant": names.tenancy,
            "res_tenant": names.tenancy,
            "res_compartment": names.compartment,
            "res_id": names.function,
            "res_type": "fnfunc",
            "ptype": "resource",
            "ttype": "res_sp",
        }
        key = self._identity.resource_key.public_key()
        return self._tokens.issue(key, claims, lifetime=lifetime)

    def session_token(self, lifetime: float | None = None) -> str:
        """Return a token of the first user's session, for a session-token profile."""
        user = self._identity.user
        claims = {
            "sub": user.ocid,
            "tenant": self._identity.names.tenancy,
            "groups": " ".join(user.groups),
            "ptype": "user",
            "ttype": "login",
        }
        key = self._identity.session_key.public_key()
        return self._tokens.issue(key, claims, lifetime=lifetime)


def _equal(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode("utf-8", "replace"), other.encode())


def _der(value: Any, what: str) -> bytes:
    if not isinstance(value, str):
        raise invalid(f"{what} is missing")
    text = "".join(line for line in value.splitlines() if not line.startswith("-----"))
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise invalid(f"{what} is not base64") from None


def _certificate(value: Any) -> x509.Certificate:
    try:
        return x509.load_der_x509_certificate(_der(value, "certificate"))
    except ValueError:
        raise invalid("certificate is none") from None


def _public_key(value: Any) -> rsa.RSAPublicKey:
    try:
        key = serialization.load_der_public_key(_der(value, "the session's public key"))
    except ValueError:
        key = None
    if not isinstance(key, rsa.RSAPublicKey) or not 2048 <= key.key_size <= 8192:
        raise invalid("the session's public key is not an RSA key of 2048 to 8192 bits")
    return key


def _signed_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except Exception:  # noqa: BLE001 - whatever a foreign certificate makes of it, it is a no
        return False
    return True


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    except (x509.ExtensionNotFound, ValueError):
        return False
    return constraints.value.ca


def _units(certificate: x509.Certificate) -> Mapping[str, str]:
    units = {}
    for attribute in certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME):
        name, _, value = str(attribute.value).partition(":")
        units[name] = value
    return units
