"""Sign-in from end to end: OCI's own signers get tokens here, and sign with them."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import oci  # type: ignore[import-untyped]  # it has no types
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from hypothesis import given
from hypothesis import strategies as st
from oci.auth.signers import (  # type: ignore[import-untyped]  # the same
    InstancePrincipalsSecurityTokenSigner,
    OkeWorkloadIdentityResourcePrincipalSigner,
    get_resource_principals_signer,
)

from bootstream.clouds.oci import sign
from bootstream.localoci.errors import ApiError
from bootstream.localoci.federation import Federation
from bootstream.localoci.http import Body, BytesSource, Request
from bootstream.localoci.keys import Identity, issue, make_key, name_of, public_pem
from bootstream.localoci.services import Clock
from bootstream.localoci.signatures import signing_string
from bootstream.localoci.tokens import TokenError, Tokens
from bootstream.testing.localoci import LocalOciServer


def sign_request(
    target: str, host: str, data: bytes, *, key_id: str, key: rsa.RSAPrivateKey, now: float
) -> Request:
    """A signed POST of JSON, of which anything may be wrong."""
    headers = {
        "host": host,
        "date": formatdate(now, usegmt=True),
        "content-length": str(len(data)),
        "content-type": "application/json",
        "x-content-sha256": base64.b64encode(hashlib.sha256(data).digest()).decode(),
    }
    names = ("date", "(request-target)", "content-length", "content-type", "x-content-sha256")
    text = signing_string("POST", target, headers, names)
    signature = base64.b64encode(key.sign(text, padding.PKCS1v15(), hashes.SHA256())).decode()
    headers["authorization"] = (
        f'Signature version="1",keyId="{key_id}",algorithm="rsa-sha256",'
        f'headers="{" ".join(names)}",signature="{signature}"'
    )
    return Request("POST", target, headers, Body(BytesSource(data), len(data)))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalOciServer]:
    with LocalOciServer(tmp_path_factory.mktemp("oci"), workload=True) as running:
        yield running


@pytest.fixture(autouse=True)
def undone(server: LocalOciServer) -> Iterator[None]:
    """Whatever a test does to the server is undone."""
    yield
    server.set_clock(0)
    server.set_token_lifetime(1200)
    server.set_policies(None)


def client_of(server: LocalOciServer, signer: Any) -> Any:
    return oci.object_storage.ObjectStorageClient(
        config_of(server, "DEFAULT"),
        signer=signer,
        service_endpoint=server.endpoint,
        retry_strategy=oci.retry.NoneRetryStrategy(),
    )


def put_and_get(server: LocalOciServer, signer: Any, name: str) -> None:
    """Prove that whoever signs so may write and read."""
    client = client_of(server, signer)
    assert client.get_namespace().data == server.namespace
    client.put_object(server.namespace, server.bucket, name, name.encode())
    assert client.get_object(server.namespace, server.bucket, name).data.content == name.encode()


def config_of(server: LocalOciServer, profile: str) -> dict[str, str]:
    config: dict[str, str] = oci.config.from_file(str(server.config_file), profile)
    return config


def instance_signer(server: LocalOciServer, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("OCI_METADATA_BASE_URL", server.metadata_base_url)
    return InstancePrincipalsSecurityTokenSigner(federation_endpoint=server.federation_endpoint)


def test_api_key(server: LocalOciServer) -> None:
    """The config file's first profile."""
    config = config_of(server, "DEFAULT")
    oci.config.validate_config(config)
    put_and_get(server, oci.signer.Signer.from_config(config), "api-key")


def test_session_token(server: LocalOciServer) -> None:
    """The config file's second profile."""
    config = config_of(server, "SESSION")
    token = Path(config["security_token_file"]).read_text()
    key = oci.signer.load_private_key_from_file(config["key_file"])
    put_and_get(server, oci.auth.signers.SecurityTokenSigner(token, key), "session")


def test_session_is_refreshed(server: LocalOciServer) -> None:
    """A token that is still good gets another, which lasts longer."""
    config = config_of(server, "SESSION")
    token = Path(config["security_token_file"]).read_text()
    key = oci.signer.load_private_key_from_file(config["key_file"])
    server.set_token_lifetime(9000)
    request = sign_request(
        "/v1/authentication/refresh",
        server.endpoint.partition("//")[2],
        json.dumps({"currentToken": token}).encode(),
        key_id=f"ST${token}",
        key=key,
        now=time.time(),
    )
    connection = HTTPConnection("127.0.0.1", int(server.endpoint.rpartition(":")[2]), timeout=10)
    connection.request("POST", request.target, request.content(), dict(request.headers))
    answer = connection.getresponse()
    fresh = json.loads(answer.read())["token"]
    connection.close()
    expiries = [json.loads(_decode(text.split(".")[1]))["exp"] for text in (token, fresh)]
    assert expiries[1] > expiries[0] + 5000
    put_and_get(server, oci.auth.signers.SecurityTokenSigner(fresh, key), "refreshed")


def test_instance_principal(server: LocalOciServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Metadata, federation, and a request signed with the session's key."""
    signer = instance_signer(server, monkeypatch)
    assert signer.region == server.region
    put_and_get(server, signer, "instance")


def test_instance_token_is_refreshed(
    server: LocalOciServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cloud refuses a token that has expired, and the SDK gets another before that."""
    server.set_token_lifetime(0)
    signer = instance_signer(server, monkeypatch)
    token = signer.federation_client.get_security_token()
    key = signer.session_key_supplier.get_key_pair()["private"]
    with pytest.raises(oci.exceptions.ServiceError) as caught:
        client_of(server, oci.auth.signers.SecurityTokenSigner(token, key)).get_namespace()
    assert (caught.value.status, caught.value.code) == (401, "NotAuthenticated")
    assert "expired" in caught.value.message
    server.set_token_lifetime(30)  # under the SDK's minute of caution: refreshed on each request
    server.take_requests()
    put_and_get(server, signer, "again")
    assert server.take_requests()["Federation"] >= 3


def test_instance_certificate_is_rotated(
    server: LocalOciServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signer takes the new certificate at its next refresh."""
    signer = instance_signer(server, monkeypatch)
    before = signer.leaf_certificate_retriever.get_certificate_raw()
    server.rotate_instance()
    signer.refresh_security_token()
    assert signer.leaf_certificate_retriever.get_certificate_raw() != before
    put_and_get(server, signer, "rotated")


def test_resource_principal(server: LocalOciServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Version 2.2: token and key in files that the shell file names."""
    for name in ("VERSION", "RPST", "PRIVATE_PEM", "REGION"):
        variable = f"OCI_RESOURCE_PRINCIPAL_{name}"
        monkeypatch.setenv(variable, server.variables[variable])
    put_and_get(server, get_resource_principals_signer(), "resource")


def test_tokens_in_files_are_replaced(tmp_path: Path) -> None:
    """They are never older than half of their lives."""
    with LocalOciServer(tmp_path, token_lifetime=1) as server:
        path = Path(server.variables["OCI_RESOURCE_PRINCIPAL_RPST"])
        first = path.read_text()
        deadline = time.monotonic() + 10
        while path.read_text() == first and time.monotonic() < deadline:
            server.administer("GET", "health")
        assert path.read_text() != first


def test_another_lifetime_counts_for_files_too(server: LocalOciServer) -> None:
    """A token in a file that would outlive it is replaced."""
    path = Path(server.variables["OCI_RESOURCE_PRINCIPAL_RPST"])
    server.set_token_lifetime(5000)
    claims = json.loads(_decode(path.read_text().split(".")[1]))
    assert 4990 < claims["exp"] - time.time() < 5010


def test_workload_identity(server: LocalOciServer) -> None:
    """A pod shows its service account's token, over TLS, and signs with what it gets."""
    path = Path(server.variables["OCI_KUBERNETES_SERVICE_ACCOUNT_TOKEN_PATH"])

    class Provider:
        """Shows the pod's token. The SDK's own wants one of the cluster's form, a JWT."""

        def get_sa_token(self) -> str:
            """Return it."""
            return path.read_text()

    signer = OkeWorkloadIdentityResourcePrincipalSigner(  # what takes another port than 12250
        sa_token_provider=Provider(),
        sa_cert_path=server.variables["OCI_KUBERNETES_SERVICE_ACCOUNT_CERT_PATH"],
        service_host=server.variables["KUBERNETES_SERVICE_HOST"],
        service_port=server.workload_port,
        region=server.region,
    )
    put_and_get(server, signer, "workload")


@pytest.mark.parametrize(
    "auth", ["api_key", "instance_principal", "resource_principal", "oke_workload_identity"]
)
def test_principals_of_our_own(server: LocalOciServer, auth: str) -> None:
    """The kit opens each kind, and the server knows its key."""
    principal = server.principal(auth)
    assert principal.name == auth
    assert principal.region == server.region
    credentials = principal.credentials()
    host = server.endpoint.partition("//")[2]
    date = formatdate(usegmt=True)
    headers = {"Date": date, "Authorization": sign(credentials, "GET", host, "/n", date=date)}
    connection = HTTPConnection(host, timeout=10)
    connection.request("GET", "/n", headers=headers)
    answer = connection.getresponse()
    assert (answer.status, json.loads(answer.read())) == (200, server.namespace)
    connection.close()


def test_policies_tell_principals_apart(
    server: LocalOciServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the user may, the instance may not."""
    user = client_of(server, oci.signer.Signer.from_config(config_of(server, "DEFAULT")))
    instance = client_of(server, instance_signer(server, monkeypatch))
    user.put_object(server.namespace, server.bucket, "secret", b"x")
    server.set_policies(
        {
            "groups": {"hosts": ["instance"]},
            "statements": [
                "Allow group Administrators to manage all-resources in tenancy",
                "Allow dynamic-group hosts to inspect objects in tenancy",
            ],
        }
    )
    assert user.get_object(server.namespace, server.bucket, "secret").data.content == b"x"
    names = [
        item.name for item in instance.list_objects(server.namespace, server.bucket).data.objects
    ]
    assert "secret" in names
    calls: tuple[Callable[[], Any], ...] = (
        lambda: instance.get_object(server.namespace, server.bucket, "secret"),
        lambda: instance.put_object(server.namespace, server.bucket, "new", b"x"),
        lambda: instance.delete_object(server.namespace, server.bucket, "secret"),
    )
    for call in calls:
        with pytest.raises(oci.exceptions.ServiceError) as caught:
            call()
        assert (caught.value.status, caught.value.code) == (404, "BucketNotFound")


def test_clock_skew(server: LocalOciServer) -> None:
    """Over five minutes is 401; under is nothing."""
    client = client_of(server, oci.signer.Signer.from_config(config_of(server, "DEFAULT")))
    for offset in (-290, 290):
        server.set_clock(offset)
        client.get_namespace()
    for offset in (-310, 310):
        server.set_clock(offset)
        with pytest.raises(oci.exceptions.ServiceError) as caught:
            client.get_namespace()
        assert (caught.value.status, caught.value.code) == (401, "NotAuthenticated")


def test_metadata(server: LocalOciServer) -> None:
    """What an instance reads about itself, and that the header is asked for."""
    connection = HTTPConnection("127.0.0.1", int(server.endpoint.rpartition(":")[2]), timeout=10)

    def get(path: str, **headers: str) -> tuple[int, bytes]:
        connection.request("GET", f"/opc/v2{path}", headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read()

    oracle = {"Authorization": "Bearer Oracle"}
    status, body = get("/instance/", **oracle)
    instance = json.loads(body)
    assert status == 200
    assert instance["canonicalRegionName"] == server.region
    assert get("/instance/regionInfo/regionIdentifier", **oracle) == (200, server.region.encode())
    assert json.loads(get("/instance/regionInfo", **oracle)[1])["regionKey"] == "IAD"
    assert get("/instance/compartmentId", **oracle) == (200, server.compartment.encode())
    leaf = x509.load_pem_x509_certificate(get("/identity/cert.pem", **oracle)[1])
    assert f"opc-tenant:{instance['tenantId']}" in leaf.subject.rfc4514_string()
    leaf.verify_directly_issued_by(
        x509.load_pem_x509_certificate(get("/identity/intermediate.pem", **oracle)[1])
    )
    assert get("/instance/")[0] == 403
    assert get("/instance/", **oracle, **{"X-Forwarded-For": "10.0.0.1"})[0] == 403
    assert get("/instance/nothing", **oracle)[0] == 404
    connection.close()


class Federated:
    """The federation endpoint alone, and requests to it."""

    def __init__(self, folder: Path) -> None:
        self.clock = Clock()
        self.identity = Identity(folder, region="us-ashburn-1", namespace="ns", clock=self.clock)
        self.tokens = Tokens(self.identity.token_key, clock=self.clock, lifetime=600)
        self.federation = Federation(self.identity, self.tokens, self.clock)
        self.leaf = self.identity.instance()
        self.other = make_key()
        self.session_key = bare(public_pem(make_key().public_key()))

    def body(self, **changed: Any) -> dict[str, Any]:
        """What a good request says."""
        return {
            "certificate": bare(self.leaf.pem),
            "publicKey": self.session_key,
            "intermediateCertificates": [bare(self.identity.intermediate.pem)],
        } | changed

    def ask(self, body: Any, **changed: Any) -> dict[str, Any]:
        """Sign and send; return the token's claims."""
        fingerprint = self.leaf.certificate.fingerprint(_sha256()).hex(":")
        values: dict[str, Any] = {
            "key_id": f"{self.identity.names.tenancy}/fed-x509-sha256/{fingerprint}",
            "key": self.leaf.key,
            "now": self.clock(),
        } | changed
        request = sign_request("/v1/x509", "host", json.dumps(body).encode(), **values)
        response = self.federation.handle(request)
        assert response is not None
        assert isinstance(response.body, bytes)
        return self.tokens.verify(json.loads(response.body)["token"])


def _sha256() -> Any:
    return hashes.SHA256()


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def bare(pem: bytes) -> str:
    """PEM without armour and newlines."""
    return "".join(line for line in pem.decode().splitlines() if "-----" not in line)


@pytest.fixture(scope="module")
def federated(tmp_path_factory: pytest.TempPathFactory) -> Federated:
    return Federated(tmp_path_factory.mktemp("federation"))


def test_federation_as_the_go_sdk_asks(federated: Federated) -> None:
    """The key id has a SHA-256 fingerprint, the body says so."""
    claims = federated.ask(federated.body(fingerprintAlgorithm="SHA256"))
    assert claims["sub"] == federated.identity.names.instance
    assert claims["opc-compartment"] == federated.identity.names.compartment


def refused(federated: Federated, body: Any, status: int = 401, **changed: Any) -> str:
    with pytest.raises(ApiError) as caught:
        federated.ask(body, **changed)
    assert caught.value.status == status
    return caught.value.message


def test_certificates_that_are_not_trusted(federated: Federated, tmp_path: Path) -> None:
    """Another authority's, one without its chain, one that is not an instance's, an old one."""
    stranger = Federated(tmp_path)
    assert "authority" in refused(stranger, federated.body(), key=federated.leaf.key)
    assert "authority" in refused(federated, federated.body(intermediateCertificates=[]))
    intermediate = federated.identity.intermediate
    self_made = issue(
        name_of("x", ("opc-certtype:instance", "opc-instance:i", "opc-tenant:t")),
        federated.leaf,  # a leaf is no authority
        now=federated.clock(),
        lifetime=60,
    )
    chain = [bare(federated.leaf.pem), bare(intermediate.pem)]
    body = federated.body(certificate=bare(self_made.pem), intermediateCertificates=chain)
    assert "authority" in refused(federated, body, key=self_made.key)
    user = issue(name_of("x"), intermediate, now=federated.clock(), lifetime=60)
    assert "instance's" in refused(
        federated, federated.body(certificate=bare(user.pem)), key=user.key
    )
    units = ("opc-certtype:instance", "opc-instance:i", "opc-tenant:t")
    old = issue(name_of("x", units), intermediate, now=federated.clock() - 600, lifetime=60)
    assert "valid" in refused(federated, federated.body(certificate=bare(old.pem)), key=old.key)


def test_proofs_that_are_none(federated: Federated) -> None:
    """Another key signs, another key id, another tenancy, an old date."""
    tenancy = federated.identity.names.tenancy
    assert "match" in refused(federated, federated.body(), key=make_key())
    assert "fingerprint" in refused(federated, federated.body(), key_id=f"{tenancy}/fed-x509/00:11")
    sha256 = federated.leaf.certificate.fingerprint(_sha256()).hex()
    assert refused(federated, federated.body(), key_id=f"other/fed-x509-sha256/{sha256}")
    assert "off" in refused(federated, federated.body(), now=federated.clock() - 400)


@pytest.mark.parametrize(
    "changed",
    [
        {"certificate": None},
        {"certificate": "!"},
        {"certificate": "AAAA"},
        {"publicKey": 7},
        {"publicKey": "AAAA"},
        {"intermediateCertificates": "x"},
        {"intermediateCertificates": ["AAAA"] * 9},
    ],
)
def test_bodies_that_are_none(federated: Federated, changed: dict[str, Any]) -> None:
    """What is missing or malformed is 400."""
    refused(federated, federated.body(**changed), 400)


def test_damaged_certificates(federated: Federated) -> None:
    """Whatever a certificate is made of, the answer is 400 or 401."""
    chance = random.Random(11)
    for pem in (federated.leaf.pem, federated.identity.intermediate.pem):
        whole = base64.b64decode(bare(pem))
        for _ in range(150):
            damaged = bytearray(whole)
            for _ in range(chance.randrange(1, 4)):
                damaged[chance.randrange(len(damaged))] = chance.randrange(256)
            text = base64.b64encode(damaged).decode()
            changes: tuple[dict[str, Any], ...] = (
                {"certificate": text},
                {"certificate": text, "intermediateCertificates": [text]},
                {"intermediateCertificates": [text, bare(pem)]},
            )
            with pytest.raises(ApiError) as caught:
                federated.ask(federated.body(**chance.choice(changes)), key=federated.other)
            assert caught.value.status in {400, 401}


@given(st.text(alphabet='abeyJ.-_=0{}[]"', max_size=60))
def test_any_token(federated: Federated, text: str) -> None:
    """No text makes the check of a token fail otherwise than as a token that is none."""
    with pytest.raises(TokenError):
        federated.tokens.verify(text)


@given(
    st.dictionaries(
        st.sampled_from(["jwk", "sub", "tenant"]),
        st.recursive(
            st.none() | st.integers() | st.text(max_size=8),
            lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["n", "e"]), inner),
        ),
    )
)
def test_any_session_key(claims: dict[str, Any]) -> None:
    """Nor does what a token might say."""
    with pytest.raises(TokenError):
        Tokens.session_key(claims)


def test_pods_of_another_cluster(federated: Federated) -> None:
    """A service-account token that the cluster does not know."""
    data = json.dumps({"podKey": bare(public_pem(make_key().public_key()))}).encode()
    for value in ("", "Bearer x", "Bearer ü", "Basic x"):
        request = Request(
            "POST",
            "/resourcePrincipalSessionTokens",
            {"authorization": value},
            Body(BytesSource(data), len(data)),
        )
        with pytest.raises(ApiError) as caught:
            federated.federation.handle(request)
        assert caught.value.status == 401
