"""Request signatures: the same as the SDK's, and nothing in them can be forged."""

from __future__ import annotations

import base64
import copy
import pickle
import re
import time
from email.utils import parsedate_to_datetime

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from oci._vendor import requests  # type: ignore[import-untyped]
from oci.signer import Signer  # type: ignore[import-untyped]

from bootstream.clouds.oci import Credentials, body_headers, http_date, sign
from bootstream.errors import InvalidInput

KEY = rsa.generate_private_key(65537, 2048)
PEM = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
CREDENTIALS = Credentials("ocid1.tenancy.oc1..t/ocid1.user.oc1..u/aa:bb", KEY)
DATE = "Tue, 24 Nov 2026 22:59:00 GMT"
TARGET = "/n/ns/b/bucket/o/a%2Fb%20c/d?versionId=1&partNum=2&a="


@pytest.fixture(scope="module")
def sdk() -> Signer:
    """Oracle's own signer, with our key."""
    tenancy, user, fingerprint = CREDENTIALS.key_id.split("/")
    return Signer(tenancy, user, fingerprint, None, private_key_content=PEM)


def sdk_authorization(sdk: Signer, method: str, body: bytes | None, enforce: bool = True) -> str:
    """What the SDK would send for a request."""
    headers = {"date": DATE}
    if body is not None:
        headers |= {"content-type": "application/json"}
    prepared = requests.Request(
        method, f"https://storage.example:8443{TARGET}", headers=headers, data=body
    ).prepare()
    sdk(prepared, enforce_content_headers=enforce)
    return str(prepared.headers["authorization"])


def fields(authorization: str) -> dict[str, str]:
    """The parts of an Authorization header."""
    assert authorization.startswith("Signature ")
    return dict(re.findall(r'(\w+)="([^"]*)"', authorization))


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE"])
def test_requests_without_a_body_are_signed_as_the_sdk_does(sdk: Signer, method: str) -> None:
    """The same key and the same request give the same header, byte for byte."""
    ours = sign(CREDENTIALS, method, "storage.example:8443", TARGET, date=DATE)
    assert fields(ours) == fields(sdk_authorization(sdk, method, None))
    assert fields(ours)["headers"] == "date (request-target) host"


@pytest.mark.parametrize("method", ["PUT", "POST", "PATCH"])
@pytest.mark.parametrize("body", [b"", b'{"a": 1}', bytes(5000)])
def test_requests_with_a_body_are_signed_as_the_sdk_does(
    sdk: Signer, method: str, body: bytes
) -> None:
    """Length, type and hash of the body are in the signature, in the SDK's order."""
    headers = body_headers(body)
    ours = sign(
        CREDENTIALS, method, "storage.example:8443", TARGET, date=DATE, body_headers=headers
    )
    assert fields(ours) == fields(sdk_authorization(sdk, method, body))


def test_puts_of_objects_leave_the_body_out_as_the_sdk_does(sdk: Signer) -> None:
    """PutObject and UploadPart sign no body."""
    ours = sign(CREDENTIALS, "PUT", "storage.example:8443", TARGET, date=DATE)
    assert fields(ours) == fields(sdk_authorization(sdk, "PUT", b"data", enforce=False))


def test_the_federation_service_wants_no_host() -> None:
    """Without a host, it is neither named nor signed, and the signature holds."""
    parts = fields(sign(CREDENTIALS, "POST", None, "/v1/x509", date=DATE))
    assert parts["headers"] == "date (request-target)"
    text = f"date: {DATE}\n(request-target): post /v1/x509".encode()
    KEY.public_key().verify(base64.b64decode(parts["signature"]), text, PKCS1v15(), SHA256())


@settings(max_examples=60, deadline=None)
@given(
    method=st.sampled_from(["GET", "PUT", "POST"]),
    target=st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=80),
    other=st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=80),
)
def test_a_signature_is_for_one_target(method: str, target: str, other: str) -> None:
    """The signing string verifies with the target that was signed, and with no other."""
    parts = fields(sign(CREDENTIALS, method, "h", f"/{target}", date=DATE))
    signature = base64.b64decode(parts["signature"])

    def verify(name: str) -> None:
        text = f"date: {DATE}\n(request-target): {method.lower()} /{name}\nhost: h".encode()
        KEY.public_key().verify(signature, text, PKCS1v15(), SHA256())

    verify(target)
    if other != target:
        with pytest.raises(InvalidSignature):
            verify(other)


@pytest.mark.parametrize("bad", ["/a\nhost: b", "/a\r\n", "/a\x00", "/\x7f", "\n"])
def test_control_characters_are_refused(bad: str) -> None:
    """A name that could add a line to what is signed never is signed."""
    with pytest.raises(InvalidInput):
        sign(CREDENTIALS, "GET", "h", bad, date=DATE)
    with pytest.raises(InvalidInput):
        sign(CREDENTIALS, "GET", bad, "/", date=DATE)


def test_nothing_secret_shows() -> None:
    """Neither token nor key is in repr, str or a pickle."""
    credentials = Credentials("ST$secret.token.here", KEY, 12.0)
    assert "secret" not in f"{credentials!r} {credentials}"
    with pytest.raises(TypeError):
        pickle.dumps(credentials)
    with pytest.raises(TypeError):
        copy.copy(credentials)


def test_credentials_are_told_apart_by_identity() -> None:
    """Two snapshots with the same values are two snapshots."""
    assert Credentials("a/b/c", KEY) != Credentials("a/b/c", KEY)
    assert CREDENTIALS == CREDENTIALS


def test_the_date_is_now_and_is_formatted_once_a_second() -> None:
    """An HTTP date within a second of now; the same object within the second."""
    before = int(time.time())
    first = http_date()
    stamp = parsedate_to_datetime(first).timestamp()
    assert before <= stamp <= time.time()
    assert first.endswith(" GMT")
    texts = [http_date() for _ in range(1000)]
    assert len({id(text) for text in texts}) <= 2
