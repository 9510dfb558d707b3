"""Instance principal: a compute instance's certificate, exchanged for a token.

"Calling Services from an Instance" of Oracle's documentation. The metadata service hands
out a certificate that says which instance of which tenancy this is, its key, and the
authority's certificate; all three are rotated several times a day. For every token a new
session key is made; its public half and the certificates go to the federation service in
a request that the certificate's key signs, and a token for the session key comes back.
"""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.serialization import Encoding

from bootstream.clouds.oci import web
from bootstream.clouds.oci.credentials import Credentials
from bootstream.clouds.oci.keys import load_private_key, new_session_key, public_der_base64
from bootstream.clouds.oci.refresher import Refresher
from bootstream.clouds.oci.regions import (
    Region,
    federation_endpoint,
    find_region,
    is_known,
    learn_from_json,
)
from bootstream.clouds.oci.signing import body_headers, http_date, sign
from bootstream.clouds.oci.tokens import Token, parse_token
from bootstream.errors import BootstreamError, InvalidInput, PermissionDenied, Unavailable
from bootstream.proxies import NO_PROXIES, Proxies

_LOG = logging.getLogger(__name__)
METADATA_BASES = ("http://169.254.169.254/opc/v2", "http://[fd00:c1::a9fe:a9fe]/opc/v2")
_METADATA = "read instance metadata"
_GET_TOKEN = "get instance token"  # noqa: S105 - an operation's name
_TENANT = ("opc-tenant:", "opc-identity:")
_DYNAMIC_GROUP = (
    "the instance has to be in a dynamic group with a policy; where the group is new, "
    "wait some minutes"
)
_ON_OCI = "instance principals exist on compute instances of OCI only"


@dataclass(frozen=True, slots=True)
class _Identity:
    """What the metadata service says this instance is, at one time."""

    certificate: x509.Certificate
    intermediate: tuple[x509.Certificate, ...]
    key: RSAPrivateKey
    tenancy: str


class InstancePrincipal:
    """The instance this runs on. Thread safe; see ``Principal``.

    Args:
        metadata_base_url: of the metadata service, without a slash at its end; None takes
            the two known addresses, IPv4 first.
        endpoint: full URL of the federation service; None takes the region's.
        patience: seconds to keep trying while nobody answers.
        probing: whether there is a metadata service is the question: give up after 3 seconds.
        ca_file: authorities to trust for the federation service.
        proxies: for the federation service; never for the metadata service.

    Raises:
        PermissionDenied: refused.
        Unavailable: no answer in time.
    """

    name = "instance_principal"

    def __init__(
        self,
        metadata_base_url: str | None = None,
        endpoint: str | None = None,
        *,
        patience: float = 30.0,
        probing: bool = False,
        ca_file: str | None = None,
        proxies: Proxies = NO_PROXIES,
    ) -> None:
        self._proxies = proxies
        self._patience = patience
        self._ca_file = ca_file
        self._connect = 1.5 if probing else 5.0
        bases = (metadata_base_url.rstrip("/"),) if metadata_base_url else METADATA_BASES
        self._base = bases[0]
        self._region = self._find_region(bases, 3.0 if probing else patience)
        self._endpoint = endpoint or federation_endpoint(self._region)
        self._tenancy: str | None = None
        self._refresher = Refresher(self._acquire, name=self.name)
        self._refresher.credentials()

    @property
    def tenancy(self) -> str | None:
        """See ``Principal``."""
        return self._tenancy

    @property
    def region(self) -> str | None:
        """See ``Principal``."""
        return self._region.identifier

    def credentials(self) -> Credentials:
        """See ``Principal``."""
        return self._refresher.credentials()

    def refresh(self, stale: Credentials) -> Credentials:
        """See ``Principal``."""
        return self._refresher.refresh(stale)

    def _get(self, path: str) -> bytes:
        url = f"{self._base}/{path}"
        answer = web.request(
            "GET",
            url,
            headers={"authorization": "Bearer Oracle"},
            connect=self._connect,
            read=10.0,
            operation=_METADATA,
        )
        return web.check(answer, operation=_METADATA, object=url, remedy=_ON_OCI).body

    def _find_region(self, bases: tuple[str, ...], patience: float) -> Region:
        def ask() -> Region:
            error: BootstreamError | None = None
            for base in bases:
                self._base = base
                try:
                    name = self._get("instance/region")
                except Unavailable as this:
                    error = error or this
                    continue
                return self._region_of(name)
            assert error is not None
            error.remedy = _ON_OCI
            raise error

        return web.retry(ask, patience=patience)

    def _region_of(self, data: bytes) -> Region:
        try:
            name = data.decode("ascii").strip()
            if not is_known(name):
                return self._learn(name)
            return find_region(name)
        except (UnicodeDecodeError, InvalidInput) as error:
            raise Unavailable(
                "the region is not one", operation=_METADATA, object=self._base, remedy=_ON_OCI
            ) from error

    def _learn(self, name: str) -> Region:
        region = find_region(name)  # what cannot be a region goes no further
        try:
            described = learn_from_json(self._get("instance/regionInfo"))
        except BootstreamError as error:
            _LOG.info("region %s is in no table and not described: %s", name, error)
            return region
        return described if region.identifier in {described.identifier, described.key} else region

    def _acquire(self) -> Credentials:
        return web.retry(self._acquire_once, patience=self._patience)

    def _acquire_once(self) -> Credentials:
        identity = self._identity()
        session = new_session_key()
        document = {
            "certificate": _der(identity.certificate),
            "publicKey": public_der_base64(session),
            "intermediateCertificates": [_der(each) for each in identity.intermediate],
        }
        token, offset = self._exchange(identity, json.dumps(document).encode())
        self._tenancy = identity.tenancy
        return Credentials(token.key_id, session, token.expires + offset)

    def _identity(self) -> _Identity:
        key_pem = self._get("identity/key.pem")
        leaf = _certificates(self._get("identity/cert.pem"), "cert.pem")[0]
        intermediate = _certificates(self._get("identity/intermediate.pem"), "intermediate.pem")
        key = load_private_key(key_pem, None, source="identity/key.pem")
        try:
            fits = leaf.public_key() == key.public_key()
            values = [attribute.value for attribute in leaf.subject]
        except (ValueError, UnsupportedAlgorithm):
            raise _bad_certificate("cert.pem") from None
        if not fits:
            raise Unavailable(
                "certificate and key are not of one pair: they are being rotated",
                operation=_METADATA,
                object=self._base,
            )
        return _Identity(leaf, intermediate, key, _tenancy(values))

    def _exchange(self, identity: _Identity, body: bytes) -> tuple[Token, float]:
        """Return the token, and by how much this machine's clock is off, in seconds."""
        digest = identity.certificate.fingerprint(SHA1())  # noqa: S303 - a name, as the service has it
        leaf = Credentials(f"{identity.tenancy}/fed-x509/{digest.hex(':').upper()}", identity.key)
        url = self._endpoint
        headers = {"date": http_date(), **body_headers(body)}
        headers["authorization"] = sign(
            leaf, "POST", None, web.target_of(url), date=headers["date"], body_headers=headers
        )
        answer = web.request(
            "POST",
            url,
            headers=headers,
            body=body,
            ca_file=self._ca_file,
            proxies=self._proxies,
            operation=_GET_TOKEN,
        )
        web.check(answer, operation=_GET_TOKEN, object=url, remedy=_DYNAMIC_GROUP)
        return token_of(answer, lambda data: json.loads(data)["token"], object=url)


def token_of(
    answer: web.Answer, extract: Callable[[bytes], object], *, object: str
) -> tuple[Token, float]:
    """Return the token in an answer, and the clock's offset where it is worth minding.

    Raises Unavailable where there is none.
    """
    try:
        text = extract(answer.body)
        if not isinstance(text, str):
            raise ValueError("the token is not text")  # noqa: TRY004, TRY301 - one error for all
        token = parse_token(text)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = str(error) if type(error) is ValueError else "the answer holds no token"
        raise Unavailable(reason, operation=_GET_TOKEN, object=object) from None
    offset = web.clock_offset(answer.headers.get("date")) or 0.0
    return token, offset if abs(offset) > 5 else 0.0


def _certificates(pem: bytes, name: str) -> tuple[x509.Certificate, ...]:
    try:
        return tuple(x509.load_pem_x509_certificates(pem))
    except (ValueError, UnsupportedAlgorithm):
        raise _bad_certificate(name) from None


def _bad_certificate(name: str) -> Unavailable:
    return Unavailable(
        "this is not a certificate in PEM form", operation=_METADATA, object=f"identity/{name}"
    )


def _tenancy(values: Iterable[str | bytes]) -> str:
    """Return the tenancy that a certificate's subject names."""
    for value in values:
        if isinstance(value, str):
            for prefix in _TENANT:
                if value.startswith(prefix):
                    return value.removeprefix(prefix)
    raise PermissionDenied(
        "the instance's certificate names no tenancy",
        operation=_METADATA,
        object="identity/cert.pem",
        remedy=_ON_OCI,
    )


def _der(certificate: x509.Certificate) -> str:
    return base64.b64encode(certificate.public_bytes(Encoding.DER)).decode("ascii")
