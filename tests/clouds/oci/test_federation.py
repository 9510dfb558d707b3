"""Instance principals and workload identity against a small cloud of our own."""

from __future__ import annotations

import base64
import contextlib
import datetime
import hashlib
import json
import logging
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA1, SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_public_key,
)
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.connectproxy import ConnectProxy

from bootstream.clouds.oci import http_date, instance, open_principal, sign
from bootstream.clouds.oci.instance import InstancePrincipal
from bootstream.clouds.oci.workload import WorkloadIdentityPrincipal, endpoint_of
from bootstream.errors import BootstreamError, PermissionDenied, Unavailable
from bootstream.proxies import Proxies

KEYS = [rsa.generate_private_key(65537, 2048) for _ in range(3)]
TENANCY = "ocid1.tenancy.oc1..example"


def name(*units: str) -> x509.Name:
    """A subject with these organisational units."""
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, "ocid1.instance.oc1..i"),
            *(x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit) for unit in units),
        ]
    )


def certificate(key: rsa.RSAPrivateKey, subject: x509.Name) -> x509.Certificate:
    """A certificate of a key, signed by the first of the keys."""
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(name())
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .sign(KEYS[0], SHA256())
    )


LEAF = certificate(KEYS[1], name(f"opc-tenant:{TENANCY}"))


def pem(key: rsa.RSAPrivateKey) -> bytes:
    """A key as the metadata service shows it."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())


def b64url(data: bytes) -> str:
    """Base64 as JWTs have it."""
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


class Cloud:
    """A metadata service, a federation service and a cluster's token service, with faults.

    ``faults`` maps a path to answers (status, body) given once each before good ones.
    """

    def __init__(self) -> None:
        self.lifetime = 600.0
        self.skew = 0.0
        self.faults: dict[str, list[tuple[int, bytes]]] = {}
        self.region = b"iad"
        self.region_info: bytes | None = None
        self.units: tuple[str, ...] = ("opc-certtype:instance", f"opc-tenant:{TENANCY}")
        self.requests: list[str] = []
        self.redirect: str | None = None
        self.tokens: dict[str, rsa.RSAPublicKey] = {}
        self.bearer = "pod.token.x"
        self.dates = True
        self.rotate(1)
        self.mixed = 0
        self.lock = threading.Lock()
        cloud = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle(self) -> None:
                with contextlib.suppress(ConnectionError):  # of clients that read enough
                    super().handle()

            def do_GET(self) -> None:
                self.handle_one()

            def do_POST(self) -> None:
                self.handle_one()

            def handle_one(self) -> None:
                length = int(self.headers.get("content-length", 0))
                status, body = cloud.answer(self, self.rfile.read(length))
                self.send_response_only(status)
                if cloud.dates:
                    self.send_header("date", formatdate(time.time() + cloud.skew, usegmt=True))
                if cloud.redirect:
                    self.send_header("location", cloud.redirect)
                self.send_header("content-length", str(len(body)))
                self.send_header("opc-request-id", "request-1")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.metadata = f"{self.url}/opc/v2"
        self.federation = f"{self.url}/v1/x509"
        self.workload = f"{self.url}/resourcePrincipalSessionTokens"

    def rotate(self, number: int) -> None:
        """Give the instance another certificate and key."""
        self.key = KEYS[number]
        self.leaf = certificate(self.key, name(*self.units))
        self.authority = certificate(KEYS[0], name())

    def answer(self, request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, bytes]:
        path = request.path
        with self.lock:
            self.requests.append(path)
            if self.faults.get(path):
                return self.faults[path].pop(0)
        if path.startswith("/opc/v2/"):
            if request.headers["authorization"] != "Bearer Oracle":
                return 401, b""
            return self.metadata_answer(path.removeprefix("/opc/v2/"))
        if path == "/v1/x509":
            return self.federate(request, body)
        if path == "/resourcePrincipalSessionTokens":
            if request.headers["authorization"] != f"Bearer {self.bearer}":
                return 403, b"{}"
            token = self.issue(json.loads(body)["podKey"], res_tenant=TENANCY)
            return 200, base64.b64encode(json.dumps({"token": f"ST${token}"}).encode())
        return 404, b"{}"

    def metadata_answer(self, path: str) -> tuple[int, bytes]:
        if path == "identity/cert.pem" and self.mixed:
            self.mixed -= 1
            self.rotate(2)
        if path == "instance/regionInfo" and self.region_info is None:
            return 404, b""
        return 200, {
            "instance/region": self.region,
            "instance/regionInfo": self.region_info or b"",
            "identity/cert.pem": self.leaf.public_bytes(Encoding.PEM),
            "identity/key.pem": pem(self.key),
            "identity/intermediate.pem": self.authority.public_bytes(Encoding.PEM),
        }[path]

    def federate(self, request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, bytes]:
        fields = dict(re.findall(r'(\w+)="([^"]*)"', request.headers["authorization"]))
        document = json.loads(body)
        leaf = x509.load_der_x509_certificate(base64.b64decode(document["certificate"]))
        digest = leaf.fingerprint(SHA1()).hex(":").upper()
        assert fields["keyId"] == f"{TENANCY}/fed-x509/{digest}"
        assert fields["headers"] == (
            "date (request-target) content-length content-type x-content-sha256"
        )
        assert document["intermediateCertificates"]
        sha256 = base64.b64encode(hashlib.sha256(body).digest()).decode()
        assert request.headers["x-content-sha256"] == sha256
        text = "\n".join(
            f"{each}: " + ("post /v1/x509" if each == "(request-target)" else request.headers[each])
            for each in fields["headers"].split()
        )
        public = leaf.public_key()
        assert isinstance(public, rsa.RSAPublicKey)
        try:
            public.verify(
                base64.b64decode(fields["signature"]), text.encode(), PKCS1v15(), SHA256()
            )
        except InvalidSignature:
            return 401, b"{}"
        return 200, json.dumps({"token": self.issue(document["publicKey"])}).encode()

    def issue(self, public: str, **claims: str) -> str:
        key = load_der_public_key(base64.b64decode(public))
        assert isinstance(key, rsa.RSAPublicKey)
        now = time.time() + self.skew
        claims_json = json.dumps({"exp": now + self.lifetime, "iat": now, **claims}).encode()
        token = f"e30.{b64url(claims_json)}.{b64url(b'secret-signature')}"
        self.tokens[f"ST${token}"] = key
        return token


@pytest.fixture
def cloud() -> Iterator[Cloud]:
    """A running cloud."""
    made = Cloud()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


def open_instance(cloud: Cloud, patience: float = 10.0) -> InstancePrincipal:
    """An instance of that cloud."""
    return InstancePrincipal(cloud.metadata, cloud.federation, patience=patience)


def test_an_instance_gets_a_token_for_its_session_key(cloud: Cloud) -> None:
    """Token and key belong together; tenancy and region are known; nothing is asked twice."""
    principal = open_instance(cloud)
    credentials = principal.credentials()
    assert cloud.tokens[credentials.key_id] == credentials.private_key.public_key()
    assert principal.tenancy == TENANCY
    assert principal.region == "us-ashburn-1"
    asked = len(cloud.requests)
    assert principal.credentials() is credentials
    assert len(cloud.requests) == asked
    assert abs((credentials.expires or 0) - time.time() - 600) < 10


def test_a_refused_token_is_replaced(cloud: Cloud) -> None:
    """After a 401 there is a new key and a new token, by the certificate of now."""
    principal = open_instance(cloud)
    stale = principal.credentials()
    cloud.rotate(2)
    fresh = principal.refresh(stale)
    assert fresh is not stale
    assert fresh.key_id != stale.key_id
    assert fresh.private_key is not stale.private_key
    assert principal.credentials() is fresh


def test_sixteen_threads_never_mix_key_and_token(cloud: Cloud) -> None:
    """Through three renewals and a forced one, every signature is by its token's key."""
    cloud.lifetime = 1.0
    principal = open_instance(cloud)
    stop = threading.Event()
    counts: list[int] = []
    wrong: list[str] = []

    def work(number: int) -> None:
        count = 0
        while not stop.is_set():
            credentials = principal.credentials()
            target = f"/n/ns/b/b/o/{count}"
            date = http_date()
            header = sign(credentials, "GET", "h", target, date=date)
            fields = dict(re.findall(r'(\w+)="([^"]*)"', header))
            text = f"date: {date}\n(request-target): get {target}\nhost: h".encode()
            try:
                cloud.tokens[fields["keyId"]].verify(
                    base64.b64decode(fields["signature"]), text, PKCS1v15(), SHA256()
                )
            except (InvalidSignature, KeyError) as error:
                wrong.append(repr(error))
            if number == 0 and count == 100:
                principal.refresh(credentials)
            count += 1
        counts.append(count)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 15
    while len(cloud.tokens) < 5 and time.monotonic() < end:
        stop.wait(0.02)
    stop.set()
    for thread in threads:
        thread.join()
    assert len(cloud.tokens) >= 5
    assert not wrong
    assert len(counts) == 16
    assert min(counts) > 0


def test_outages_are_waited_out(cloud: Cloud) -> None:
    """404 and 5xx while the instance starts, 429 and 5xx of the federation service pass."""
    cloud.faults = {
        "/opc/v2/instance/region": [(503, b""), (404, b"")],
        "/opc/v2/identity/cert.pem": [(500, b"")],
        "/v1/x509": [(429, b""), (503, b"<html>"), (200, b"{}")],
    }
    assert open_instance(cloud).credentials().key_id in cloud.tokens


def test_an_outage_after_the_start_goes_unnoticed(
    cloud: Cloud, caplog: pytest.LogCaptureFixture
) -> None:
    """A renewal that is refused is logged without a secret, and the old token serves on."""
    principal = open_instance(cloud)
    first = principal.credentials()
    cloud.faults = {"/v1/x509": [(401, b'{"code": "NotAuthenticated"}')]}
    with caplog.at_level(logging.DEBUG), pytest.raises(PermissionDenied, match="401"):
        principal.refresh(first)
    assert principal.credentials() is first
    assert "renewed" in caplog.text
    assert first.key_id not in caplog.text
    assert first.key_id.split(".")[1] not in caplog.text
    assert principal.refresh(first) is not first


def test_half_rotated_certificates_are_read_again(cloud: Cloud) -> None:
    """Key and certificate of two rotations are never used together."""
    cloud.mixed = 1
    principal = open_instance(cloud)
    assert principal.credentials().key_id in cloud.tokens
    assert cloud.requests.count("/opc/v2/identity/key.pem") == 2


def test_a_wrong_clock_is_named(cloud: Cloud) -> None:
    """A 401 whose Date is far from ours is explained by the clock."""
    cloud.skew = -1000
    cloud.faults = {"/v1/x509": [(401, b"")]}
    with pytest.raises(PermissionDenied) as caught:
        open_instance(cloud)
    assert "seconds ahead of the server" in str(caught.value.remedy)
    assert caught.value.request_id == "request-1"


def test_a_token_is_dated_by_the_clock_it_was_made_by(cloud: Cloud) -> None:
    """A clock some minutes off neither expires a token early nor keeps it too long."""
    for skew in (-250.0, 250.0):
        cloud.skew = skew
        expires = open_instance(cloud).credentials().expires
        assert expires is not None
        assert abs(expires - time.time() - 600) < 10


def test_no_dynamic_group_is_explained(cloud: Cloud) -> None:
    """What the federation service refuses is told with what would allow it; no retry."""
    cloud.faults = {"/v1/x509": [(403, b"")]}
    with pytest.raises(PermissionDenied) as caught:
        open_instance(cloud)
    assert "dynamic group" in str(caught.value.remedy)
    assert cloud.requests.count("/v1/x509") == 1


def test_a_redirect_is_not_followed(cloud: Cloud) -> None:
    """What is sent is a credential: it goes where it was meant to go, or nowhere."""
    cloud.redirect = f"{cloud.url}/elsewhere"
    cloud.faults = {"/v1/x509": [(307, b"")]}
    with pytest.raises(PermissionDenied, match="307"):
        open_instance(cloud)
    assert "/elsewhere" not in cloud.requests


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("instance/region", b"evil.example/"),
        ("instance/region", b"\xff\xff"),
        ("instance/region", b"x" * 300_000),
        ("identity/cert.pem", b"nonsense"),
        ("identity/intermediate.pem", b""),
        ("identity/key.pem", b"-----BEGIN RSA PRIVATE KEY-----\nsecret\n"),
    ],
)
def test_nonsense_of_the_metadata_service(cloud: Cloud, path: str, body: bytes) -> None:
    """An error of the tree that shows nothing of what was read."""
    cloud.faults = {f"/opc/v2/{path}": [(200, body)] * 100}
    with pytest.raises((Unavailable, PermissionDenied)) as caught:
        open_instance(cloud, patience=0.3)
    assert "secret" not in f"{caught.value!r} {caught.value.remedy}"


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b'{"token": 1}', b'{"token": "a.b.c"}', b"[" * 100_000]
    + [b'{"token": "e30.' + b64url(each).encode() + b'.e30"}' for each in (b"[]", b'{"exp": "1"}')],
)
def test_nonsense_of_the_federation_service(cloud: Cloud, body: bytes) -> None:
    """An answer without a token that has an end is Unavailable."""
    cloud.faults = {"/v1/x509": [(200, body)] * 100}
    with pytest.raises(Unavailable):
        open_instance(cloud, patience=0.3)


def test_a_certificate_without_a_tenancy(cloud: Cloud) -> None:
    """A certificate that is not an instance's is refused."""
    cloud.units = ()
    cloud.rotate(1)
    with pytest.raises(PermissionDenied, match="tenancy"):
        open_instance(cloud)


def test_regions_that_no_table_has(cloud: Cloud) -> None:
    """Their realm is learnt from the metadata service; without it, they are commercial."""
    cloud.region = b"qq-private-1"
    assert open_instance(cloud).region == "qq-private-1"
    cloud.region_info = (
        b'{"realmDomainComponent": "oraclecloud77.com", "regionKey": "qqq", '
        b'"regionIdentifier": "qq-private-1", "realmKey": "oc77"}'
    )
    principal = InstancePrincipal(cloud.metadata, cloud.federation)
    assert principal._region.domain == "oraclecloud77.com"


def test_a_description_of_another_region_is_not_taken(cloud: Cloud) -> None:
    """The region's name decides where credentials go."""
    cloud.region = b"qq-other-1"
    cloud.region_info = (
        b'{"realmDomainComponent": "oraclecloud78.com", "regionIdentifier": "qq-third-1"}'
    )
    principal = open_instance(cloud)
    assert principal.region == "qq-other-1"
    assert principal._region.domain == "oraclecloud.com"


def test_the_metadata_service_has_two_addresses(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nobody answers at the first, the second is asked, and from then on that one."""
    monkeypatch.setattr(instance, "METADATA_BASES", ("http://127.0.0.1:9", cloud.metadata))
    principal = InstancePrincipal(None, cloud.federation, probing=True)
    assert principal.credentials().key_id in cloud.tokens


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_certificates_and_keys(data: st.DataObject) -> None:
    """Whatever the metadata service shows, the tree's errors are all that comes of it."""
    what = data.draw(st.sampled_from(["identity/cert.pem", "identity/key.pem"]))
    documents = {
        "identity/cert.pem": LEAF.public_bytes(Encoding.DER),
        "identity/key.pem": KEYS[1].private_bytes(
            Encoding.DER, PrivateFormat.PKCS8, NoEncryption()
        ),
        "identity/intermediate.pem": LEAF.public_bytes(Encoding.DER),
    }
    der = bytearray(documents[what])
    for _ in range(data.draw(st.integers(1, 4))):
        der[data.draw(st.integers(0, len(der) - 1))] = data.draw(st.integers(0, 255))
    documents[what] = bytes(der)
    principal = InstancePrincipal.__new__(InstancePrincipal)
    principal._base = "http://127.0.0.1:9"

    def get(path: str) -> bytes:
        label = b"PRIVATE KEY" if "key" in path else b"CERTIFICATE"
        body = base64.encodebytes(documents[path])
        return b"-----BEGIN %b-----\n%b-----END %b-----\n" % (label, body, label)

    with (
        mock.patch.object(InstancePrincipal, "_get", staticmethod(get)),
        warnings.catch_warnings(),
        contextlib.suppress(BootstreamError),
    ):
        warnings.simplefilter("ignore")  # of the parser, about what it will refuse one day
        principal._identity()


def test_no_metadata_service_at_all() -> None:
    """Unavailable, soon, with a word about where instance principals exist."""
    with pytest.raises(Unavailable) as caught:
        InstancePrincipal("http://127.0.0.1:9", patience=0.2)
    assert "refused" in str(caught.value)
    assert "instances of OCI" in str(caught.value.remedy)


def test_proxies_are_not_for_metadata(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy in the environment is not asked."""
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    assert open_instance(cloud).credentials().key_id


def test_the_token_is_fetched_through_a_proxy(cloud: Cloud) -> None:
    """The federation service is behind it, under a name that only it knows; metadata is not."""
    with ConnectProxy(("127.0.0.1", cloud.server.server_port)) as proxy:
        principal = InstancePrincipal(
            cloud.metadata,
            "http://auth.example/v1/x509",
            proxies=Proxies(http=proxy.url("user:secret")),
        )
        assert principal.credentials().key_id
    (head,) = proxy.heads
    assert head.startswith("POST http://auth.example/v1/x509 HTTP/1.1\r\n")
    assert "proxy-authorization: basic dxnlcjpzzwnyzxq=" in head.lower()


@pytest.mark.parametrize(
    ("status", "kind"), [(407, PermissionDenied), (403, PermissionDenied), (502, Unavailable)]
)
def test_a_proxy_that_refuses(cloud: Cloud, status: int, kind: type[BootstreamError]) -> None:
    """The error names the proxy and its answer, and not the password."""
    with (
        ConnectProxy(("127.0.0.1", 9), refuse=status) as proxy,
        pytest.raises(kind, match=f"proxy http://127.0.0.1:{proxy.port}: it answers {status}") as e,
    ):
        InstancePrincipal(
            cloud.metadata,
            "https://auth.example/v1/x509",
            proxies=Proxies(https=proxy.url("user:secret")),
            patience=0.2,
        )
    assert "secret" not in f"{e.value} {e.value.remedy}"


def test_a_workload_gets_a_token(cloud: Cloud, tmp_path: Path) -> None:
    """The pod's token is read for each exchange, and its rotation followed."""
    file = tmp_path / "token"
    file.write_text(cloud.bearer + "\n")
    principal = WorkloadIdentityPrincipal(cloud.workload, region="phx", token_file=file)
    first = principal.credentials()
    assert cloud.tokens[first.key_id] == first.private_key.public_key()
    assert (principal.tenancy, principal.region) == (TENANCY, "us-phoenix-1")
    cloud.bearer = "another.token.y"
    file.write_text(cloud.bearer)
    assert principal.refresh(first) is not first


def test_a_workload_that_is_refused(cloud: Cloud, tmp_path: Path) -> None:
    """A basic cluster, a missing token and a file that is none are told apart."""
    file = tmp_path / "token"
    with pytest.raises(PermissionDenied, match="does not exist"):
        WorkloadIdentityPrincipal(cloud.workload, region=None, token_file=file)
    file.write_text("two words")
    with pytest.raises(PermissionDenied, match="not a token"):
        WorkloadIdentityPrincipal(cloud.workload, region=None, token_file=file)
    file.write_text("secret.wrong.one")
    with pytest.raises(PermissionDenied, match="403") as caught:
        WorkloadIdentityPrincipal(cloud.workload, region=None, token_file=file)
    assert "enhanced" in str(caught.value.remedy)
    assert "secret" not in str(caught.value)
    file.write_text(cloud.bearer)
    cloud.faults = {"/resourcePrincipalSessionTokens": [(200, b"%%%")] * 100}
    with pytest.raises(Unavailable):
        WorkloadIdentityPrincipal(cloud.workload, region=None, token_file=file, patience=0.2)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("10.96.0.1", "https://10.96.0.1:12250/resourcePrincipalSessionTokens"),
        ("fd00::1", "https://[fd00::1]:12250/resourcePrincipalSessionTokens"),
        ("", None),
    ],
)
def test_where_the_clusters_token_service_is(host: str, expected: str | None) -> None:
    """Beside the Kubernetes API, at a port of its own."""
    assert endpoint_of({"KUBERNETES_SERVICE_HOST": host}) == expected


def test_opened_by_name_and_last_of_all(cloud: Cloud, tmp_path: Path) -> None:
    """``instance_principal`` opens it, and so does having nothing else."""
    named = open_principal(
        auth="instance_principal",
        environ={"HOME": str(tmp_path)},
        metadata_base_url=cloud.metadata + "/",
        federation_endpoint=cloud.federation,
    )
    found = open_principal(
        environ={
            "HOME": str(tmp_path),
            "OCI_METADATA_BASE_URL": cloud.metadata,
            "OCI_CLI_FEDERATION_ENDPOINT": cloud.federation,
        }
    )
    assert named.name == found.name == "instance_principal"


def test_a_broken_default_profile_is_passed_over_a_named_one_is_not(
    cloud: Cloud, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody who named a profile acts as the instance instead; who did not is warned."""
    (tmp_path / ".oci").mkdir()
    (tmp_path / ".oci" / "config").write_text("[DEFAULT]\nuser=a\n[p]\n")
    environ = {"HOME": str(tmp_path)}

    def opened(environ: dict[str, str], **more: Any) -> str:
        return open_principal(
            environ=environ,
            metadata_base_url=cloud.metadata,
            federation_endpoint=cloud.federation,
            **more,
        ).name

    assert opened(environ) == "instance_principal"
    assert "fingerprint are missing; signing as instance_principal" in caplog.text
    attempts: list[Callable[[], str]] = [
        lambda: opened(environ, profile="p"),
        lambda: opened(environ | {"OCI_CLI_PROFILE": "p"}),
        lambda: opened(environ, config_file=tmp_path / ".oci" / "config"),
        lambda: opened(environ | {"OCI_CLI_CONFIG_FILE": "~/.oci/config"}),
    ]
    for attempt in attempts:
        with pytest.raises(PermissionDenied, match="missing"):
            attempt()


def test_the_last_error_names_all_that_was_tried(cloud: Cloud, tmp_path: Path) -> None:
    """Each kind with its reason, and nothing secret."""
    cloud.faults = {"/opc/v2/instance/region": [(403, b"")] * 100}
    environ = {
        "HOME": str(tmp_path),
        "OCI_RESOURCE_PRINCIPAL_VERSION": "2.2",
        "OCI_RESOURCE_PRINCIPAL_RPST": "secret-not-a-token",
        "OCI_RESOURCE_PRINCIPAL_PRIVATE_PEM": "secret-not-a-key",
    }
    with pytest.raises(PermissionDenied) as caught:
        open_principal(environ=environ, metadata_base_url=cloud.metadata)
    remedy = str(caught.value.remedy)
    for text in ("resource principal: ", "not a JWT", "workload identity: ", "config", "403"):
        assert text in remedy
    assert "secret" not in remedy


def test_unknown_kinds_are_refused() -> None:
    """The error lists the kinds that exist."""
    with pytest.raises(BootstreamError) as caught:
        open_principal(environ={"OCI_CLI_AUTH": "instance_obo_user"})
    assert "oke_workload_identity" in str(caught.value.remedy)


def test_a_federation_service_that_is_not_there(cloud: Cloud) -> None:
    """Nobody listens: Unavailable once the time is over."""
    with pytest.raises(Unavailable):
        InstancePrincipal(cloud.metadata, "http://127.0.0.1:9/v1/x509", patience=0.2)
