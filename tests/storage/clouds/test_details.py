"""What the clouds have of their own: signed URLs, left uploads, identities, orders, errors."""

from __future__ import annotations

import builtins
import contextlib
import hashlib
import http.server
import io
import json
import random
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from uuid import uuid4

import boto3  # type: ignore[import-untyped,unused-ignore]  # it has no types
import pytest
import urllib3
from hypothesis import given
from hypothesis import strategies as st

from bootstream.errors import (
    BootstreamError,
    InvalidInput,
    PermissionDenied,
    Unavailable,
)
from bootstream.storage.aws import AWSBucketStorageProvider
from bootstream.storage.azure import AzureBlobStorageProvider
from bootstream.storage.gcp import GCPBucketStorageProvider
from bootstream.storage.objects import copy_object
from bootstream.storage.objectstore import in_utf8_order
from bootstream.storage.objectstore_errors import Remedies, parse, store_error
from bootstream.storage.objectstore_parts import PART, PartSource, part_size
from bootstream.storage.protocol import StorageProvider
from bootstream.storage.s3requests import Keys, Unsigned, parse_xml, signed_headers
from bootstream.testing.registry import make_certificates, run
from bootstream.testing.servers import Azurite, GoogleServer, Moto, Nanio
from bootstream.testing.servers.s3 import S3Server
from bootstream.testing.storage import content

HOUR = timedelta(hours=1)


@pytest.fixture(scope="module")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Moto]:
    with Moto(tmp_path_factory.mktemp("moto")) as server:
        yield server


@pytest.fixture(scope="module")
def nanio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nanio]:
    with Nanio(tmp_path_factory.mktemp("nanio")) as server:
        yield server


@pytest.fixture(scope="module")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azurite]:
    with Azurite(tmp_path_factory.mktemp("azurite")) as server:
        yield server


def over(server: S3Server) -> AWSBucketStorageProvider:
    return AWSBucketStorageProvider(
        server.create_bucket(f"bucket-{uuid4().hex[:8]}"),
        endpoint=server.url,
        access_key=server.keys.access_key,
        secret_key=server.keys.secret_key,
    )


def client(server: S3Server) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=server.url,
        region_name="us-east-1",
        aws_access_key_id=server.keys.access_key,
        aws_secret_access_key=server.keys.secret_key,
    )


# -- signed URLs ----------------------------------------------------------------------------------


def test_signed_url_of_s3(nanio: Nanio) -> None:
    """Its holder uploads that object and no other, until it expires."""
    provider = over(nanio)
    url = provider.signed_upload_url("a/b c", HOUR)
    assert urllib3.request("PUT", url, body=b"signed", retries=False).status == 200
    assert content(provider, "a/b c") == b"signed"
    assert urllib3.request("PUT", url.replace("a/b", "a/x"), body=b"", retries=False).status == 403
    assert urllib3.request("GET", url, retries=False).status == 403
    assert nanio.keys.secret_key not in url
    expired = url.replace("X-Amz-Expires=3600", "X-Amz-Expires=999999")
    assert urllib3.request("PUT", expired, body=b"", retries=False).status in (400, 403)


def test_signed_url_of_azure(azurite: Azurite) -> None:
    """With the header that says what kind of blob it is."""
    provider = AzureBlobStorageProvider(
        azurite.create_bucket(f"bucket-{uuid4().hex[:8]}"),
        account=azurite.account,
        account_key=azurite.account_key,
        endpoint=azurite.endpoint,
    )
    url = provider.signed_upload_url("a/b.c-d_e~f", HOUR)
    headers = {"x-ms-blob-type": "BlockBlob"}
    assert urllib3.request("PUT", url, body=b"s", headers=headers, retries=False).status == 201
    assert content(provider, "a/b.c-d_e~f") == b"s"
    assert urllib3.request("GET", url, retries=False).status == 403
    with pytest.raises(InvalidInput, match="cannot be signed"):
        provider.signed_upload_url("a b", HOUR)


def test_signed_url_of_google(tmp_path: Path) -> None:
    """Signed here by the service account's key; the stand-in takes it as Google would."""
    key = tmp_path / "key.pem"
    run("openssl", "genpkey", "-algorithm", "RSA", "-out", str(key))
    with GoogleServer(tmp_path / "google") as google:
        bucket = google.create_bucket("bucket-google")
        account = {
            "client_email": "tests@project.iam.gserviceaccount.com",
            "private_key": key.read_text(),
            "private_key_id": "1",
            "gcs_base_url": google.url,
            "disable_oauth": False,
        }
        signer = GCPBucketStorageProvider(
            bucket, service_account_key=json.dumps(account), endpoint=google.url
        )
        url = signer.signed_upload_url("a/b c", HOUR)
        query = parse_qs(urlsplit(url).query)
        assert query["X-Goog-Algorithm"] == ["GOOG4-RSA-SHA256"]
        assert query["X-Goog-Expires"] == ["3600"]
        assert "PRIVATE" not in url
        assert unquote(urlsplit(url).path) == f"/{bucket}/a/b c"


def test_signed_urls_that_cannot_be(moto: Moto) -> None:
    """Longer than the cloud allows, or of no time at all, or for no name."""
    provider = over(moto)
    for ttl in (timedelta(0), -HOUR, timedelta(days=7, seconds=1), timedelta(milliseconds=5)):
        with pytest.raises(InvalidInput):
            provider.signed_upload_url("a", ttl)
    for name in ("", "../a", "/a"):
        with pytest.raises(InvalidInput):
            provider.signed_upload_url(name, HOUR)


# -- uploads that others left ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["moto", "nanio"])
def test_left_uploads_are_collected(name: str, request: pytest.FixtureRequest) -> None:
    """Those begun longer ago; objects, and newer uploads, stay."""
    server: S3Server = request.getfixturevalue(name)
    provider = over(server)
    s3 = client(server)
    bucket = provider.engine.bucket
    provider.open_object("kept").put(b"kept")
    for key in ("plain", "with space/é+&", "plain"):
        upload = s3.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
        s3.upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=1, Body=b"part")
    if name != "moto":  # where every upload began in 2010
        assert provider.collect_uploads(HOUR) == 0
    assert provider.collect_uploads(timedelta(0), dry_run=True) == 3
    assert provider.collect_uploads(timedelta(0)) == 3
    assert provider.collect_uploads(timedelta(0), dry_run=True) == 0
    assert "Uploads" not in s3.list_multipart_uploads(Bucket=bucket)
    assert content(provider, "kept") == b"kept"


def test_collection_of_a_missing_bucket_and_with_wrong_keys(nanio: Nanio) -> None:
    """Said as everywhere else."""
    with pytest.raises(BootstreamError):
        AWSBucketStorageProvider(
            "bucket-nowhere",
            endpoint=nanio.url,
            access_key=nanio.keys.access_key,
            secret_key=nanio.keys.secret_key,
        ).collect_uploads(HOUR)
    with pytest.raises(PermissionDenied):
        AWSBucketStorageProvider(
            nanio.create_bucket("bucket-signed"),
            endpoint=nanio.url,
            access_key=nanio.keys.access_key,
            secret_key="another",
        ).collect_uploads(HOUR)
    with pytest.raises(Unavailable):
        AWSBucketStorageProvider(
            "bucket", endpoint="http://127.0.0.1:9", access_key="a", secret_key="b"
        ).collect_uploads(HOUR)


def test_signature_of_the_documentation() -> None:
    """The example "GET Bucket Lifecycle" of Amazon's page on signing headers."""
    headers = signed_headers(
        Keys("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"),
        "us-east-1",
        Unsigned("GET", "examplebucket.s3.amazonaws.com", "/", "lifecycle="),
        datetime(2013, 5, 24, tzinfo=UTC),
    )
    assert headers["authorization"].endswith(
        "Signature=fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"
    )


def test_signature_of_a_body_of_the_documentation() -> None:
    """The example "PUT Object" of the same page: headers of one's own, and a digest."""
    request = Unsigned(
        "PUT",
        "examplebucket.s3.amazonaws.com",
        "/test%24file.text",
        "",
        {"date": "Fri, 24 May 2013 00:00:00 GMT", "x-amz-storage-class": "REDUCED_REDUNDANCY"},
        hashlib.sha256(b"Welcome to Amazon S3.").hexdigest(),
    )
    keys = Keys("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
    headers = signed_headers(keys, "us-east-1", request, datetime(2013, 5, 24, tzinfo=UTC))
    assert headers["authorization"].endswith(
        "Signature=98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd"
    )


def test_keys_are_not_shown() -> None:
    """Not in what a debugger or a log prints."""
    assert "secret" not in repr(Keys("id", "secret", "secret"))


def test_credentials_of_boto3(moto: Moto, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by boto3's chain, for obstore's requests and for our own."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "from-boto3")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    bucket = moto.create_bucket(f"bucket-{uuid4().hex[:8]}")
    provider = AWSBucketStorageProvider(bucket, endpoint=moto.url, boto3=True)
    provider.open_object("a").put(b"x")
    assert content(provider, "a") == b"x"
    client(moto).create_multipart_upload(Bucket=bucket, Key="left")
    assert provider.collect_uploads(timedelta(0)) == 1


# -- construction ---------------------------------------------------------------------------------


def test_identities() -> None:
    """Of one store the same, of others another, and never a secret."""
    stores: list[StorageProvider] = [
        AWSBucketStorageProvider(
            "bucket", region="eu-west-1", access_key="id", secret_key="secret"
        ),
        AWSBucketStorageProvider(
            "bucket",
            endpoint="https://s3.eu-west-1.amazonaws.com",
            access_key="id",
            secret_key="secret",
        ),
        AWSBucketStorageProvider(
            "bucket", endpoint="https://minio.example:9000", access_key="id", secret_key="secret"
        ),
        AWSBucketStorageProvider("other", region="eu-west-1", access_key="id", secret_key="secret"),
        GCPBucketStorageProvider("bucket", anonymous=True),
        AzureBlobStorageProvider("bucket", account="account", account_key="c2VjcmV0"),
        AzureBlobStorageProvider("bucket", account="another", account_key="c2VjcmV0"),
    ]
    identities = [store.engine.identity for store in stores]  # type: ignore[attr-defined]  # all of them
    assert identities[0] == identities[1] == "s3://bucket"
    assert len(set(identities)) == 6
    assert not any("secret" in repr(store) or "c2Vj" in repr(store) for store in stores)


def test_only_foreign_stores_are_probed() -> None:
    """Amazon's, Google's and Azure's conditions hold without asking."""
    assert AWSBucketStorageProvider("b-1", access_key="id", secret_key="secret").keeps_conditions()
    assert AWSBucketStorageProvider(
        "b-1",
        endpoint="https://bucket.vpce-1.s3.us-east-1.vpce.amazonaws.com",
        access_key="id",
        secret_key="secret",
    ).keeps_conditions()
    assert GCPBucketStorageProvider("b-1", anonymous=True).keeps_conditions()
    evil = AWSBucketStorageProvider(
        "b-1", endpoint="https://amazonaws.com.example", access_key="id", secret_key="secret"
    )
    assert evil.needs_probe()


def test_half_a_pair_of_keys() -> None:
    """Named, not guessed."""
    with pytest.raises(InvalidInput, match="come together"):
        AWSBucketStorageProvider("bucket", access_key="id")


def test_bad_settings_say_no_secret() -> None:
    """Keys that cannot be read are not quoted."""
    for make in (
        lambda: AzureBlobStorageProvider("c", account="a", account_key="!secret!"),
        lambda: GCPBucketStorageProvider("b", service_account_key='{"private_key": "!secret!"'),
        lambda: GCPBucketStorageProvider("b", credentials="/nowhere/at/all.json"),
    ):
        with pytest.raises(InvalidInput) as raised:
            make()
        assert "secret" not in str(raised.value)
        assert raised.value.remedy


@pytest.mark.parametrize("extra", ["aws", "gcp", "azure"])
def test_without_obstore(extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command that installs it is the remedy."""
    makes: dict[str, Callable[[], StorageProvider]] = {
        "aws": lambda: AWSBucketStorageProvider("bucket"),
        "gcp": lambda: GCPBucketStorageProvider("bucket"),
        "azure": lambda: AzureBlobStorageProvider("bucket", account="account"),
    }
    real = builtins.__import__

    def without(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name.partition(".")[0] == "obstore":
            raise ImportError(name)
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InvalidInput) as raised:
        makes[extra]()
    assert raised.value.remedy == f"pip install 'bootstream[{extra}]'"


def test_importing_loads_nothing_heavy() -> None:
    """The modules cost nothing until a store is opened."""
    code = (
        "import sys; import bootstream.storage.aws, bootstream.storage.gcp, "
        "bootstream.storage.azure; "
        "print(*(name in sys.modules for name in ('obstore', 'boto3', 'urllib3')))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "False", "False"]


# -- parts, orders, texts -------------------------------------------------------------------------


@given(st.integers(0, 1 << 46), st.sampled_from([10_000, 50_000]))
def test_part_sizes(size: int, most: int) -> None:
    """Any object fits into the parts that a cloud allows."""
    length = part_size(size, most)
    assert length >= PART
    assert length * most >= size
    assert length == PART or length % (1 << 20) == 0


def test_a_stream_that_never_ends() -> None:
    """It is stopped, and told from an error of the storage's."""

    class Endless:
        def read(self, size: int, /) -> bytes:
            return bytes(size)

    source = PartSource(Endless(), 10, 3)
    with pytest.raises(InvalidInput) as raised:
        list(source.parts(source.take()))
    assert source.failure is raised.value


@given(st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1), unique=True))
def test_utf8_order(names: list[str]) -> None:
    """What is sorted by UTF-16 comes out sorted by UTF-8, whatever is in it."""
    found = [{"path": name} for name in sorted(names, key=lambda name: name.encode("utf-16-be"))]
    assert [meta["path"] for meta in in_utf8_order(found)] == sorted(names, key=str.encode)


def test_utf8_order_is_a_stream() -> None:
    """Names that both orders agree on are not held back."""
    taken = []

    def names() -> Iterator[dict[str, str]]:
        for number in range(100):
            taken.append(number)
            yield {"path": f"{number:03}"}

    assert next(in_utf8_order(names()))["path"] == "000"
    assert len(taken) == 1


REMEDIES = Remedies("credentials", "permission", "bucket", "region")


WORDS = (
    *("status code: ", "404", "503", "416", "200", "<Code>", "</Code>", "NoSuchBucket"),
    *("<Message>", "</Message>", "RequestId:", "https://host/path?sig=SECRET ", "//169.254."),
    *("\n", " - ", "SlowDown", "(code: ", ")"),
)


@given(st.text(max_size=400) | st.lists(st.sampled_from(WORDS)).map("".join))
def test_any_text_is_an_error_of_the_tree(text: str) -> None:
    """And no URL's query, which may be a secret, is in it."""
    for kind in (ValueError, FileNotFoundError, OSError):
        error = store_error(
            parse(kind(text)), operation="read", object="o", bucket="b", remedies=REMEDIES
        )
        assert isinstance(error, BootstreamError)
        if "<Message>" not in text and "<Code>" not in text:
            assert "SECRET" not in str(error)


def test_random_bytes_as_a_list_of_uploads(moto: Moto) -> None:
    """A list that cannot be read is an error that can be repeated, not a crash."""
    from bootstream.storage import s3uploads  # noqa: PLC0415

    generator = random.Random(7)
    good = b"<R><Upload><Key>k</Key><Initiated>2026-01-01T00:00:00Z</Initiated></Upload></R>"
    for _ in range(300):
        data = bytearray(good)
        for _ in range(generator.randrange(1, 5)):
            data[generator.randrange(len(data))] = generator.randrange(256)
        with contextlib.suppress(Unavailable):
            for item in parse_xml(bytes(data), "list").findall("Upload"):
                s3uploads._time(item.findtext("Initiated", "")) - datetime.now(UTC)
    assert s3uploads._time("2026-01-01T00:00:00").tzinfo is UTC
    for bad in (b"", b"<!DOCTYPE a []><a/>", b"<a>", bytes(9 << 20)):
        with pytest.raises(Unavailable):
            parse_xml(bad, "list")


# -- what others put into the bucket, and TLS -----------------------------------------------------


@pytest.mark.parametrize("name", ["a//b", "x/../y", "control\x01"])
def test_objects_that_cannot_be_named(moto: Moto, name: str) -> None:
    """A stranger with such a name is named; what is elsewhere is listed."""
    provider = over(moto)
    bucket = provider.engine.bucket
    client(moto).put_object(Bucket=bucket, Key=f"strange/{name}", Body=b"x")
    provider.open_object("ours/object").put(b"x")
    with pytest.raises(InvalidInput) as raised:
        list(provider.list_objects())
    assert ascii(f"strange/{name}") in str(raised.value)
    assert "TEMPLATE_BUCKET_PREFIX" in (raised.value.remedy or "")
    assert [info.path for info in provider.list_objects("ours")] == ["ours/object"]


@pytest.mark.parametrize("prefix", ["odd/%", "odd/q?m#h", "odd/a%2Fb", "odd/a b+c"])
def test_odd_prefixes(moto: Moto, prefix: str) -> None:
    """What has a meaning in URLs has none in a prefix."""
    provider = over(moto)
    for name in ("odd/%", "odd/q?m#h", "odd/a%2Fb", "odd/a b+c", "odd/a", "odd/q"):
        provider.open_object(f"{name}/x").put(b"x")
    assert [info.path for info in provider.list_objects(prefix)] == [f"{prefix}/x"]
    assert provider.delete_objects_with_prefix(prefix) == 1
    assert len(list(provider.list_objects())) == 5


def test_certificates(tmp_path: Path) -> None:
    """A named authority is trusted; one that is not is said, and not tried again."""
    make_certificates(tmp_path)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_HEAD(self) -> None:
            self.send_response(403)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """Clients that do not trust us are part of the test."""

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
    server = Server(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    url = f"https://127.0.0.1:{server.server_port}"
    try:
        trusting = GCPBucketStorageProvider(
            "bucket", endpoint=url, anonymous=True, ca_file=str(tmp_path / "ca.pem")
        )
        assert list(trusting.list_objects()) == []
        assert abs(trusting.details().now - datetime.now(UTC)) < timedelta(seconds=30)
        with pytest.raises(Unavailable, match="certificate") as raised:
            list(GCPBucketStorageProvider("bucket", endpoint=url, anonymous=True).list_objects())
        assert not raised.value.transient
        assert "BOOTSTREAM_STORAGE_CA_FILE" in (raised.value.remedy or "")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    with pytest.raises(InvalidInput, match="certificates"):
        GCPBucketStorageProvider("bucket", anonymous=True, ca_file=str(tmp_path / "missing"))


@pytest.mark.parametrize("endpoint", [
    "nonsense", "", "ftp://host", "http://", "http://user@host", "http://host:port",
    "http://host/?query", "http://host/#part", "http://ho st", "http://host/\n", "http://[::1",
])  # fmt: skip
def test_endpoints_that_are_none(endpoint: str) -> None:
    """Refused at once: at the first request they would be a panic."""
    for make in (
        lambda: AWSBucketStorageProvider("b", endpoint=endpoint, access_key="i", secret_key="s"),
        lambda: GCPBucketStorageProvider("b", endpoint=endpoint, anonymous=True),
        lambda: AzureBlobStorageProvider("b", account="a", endpoint=endpoint),
    ):
        with pytest.raises(InvalidInput):
            make()


@pytest.mark.parametrize("name", ["", "a/b", "a b", "a\n", "ä", "-a", "a?b", "a" * 223])
def test_names_that_are_none(name: str) -> None:
    """Of buckets, regions and accounts."""
    for make in (
        lambda: AWSBucketStorageProvider(name, access_key="i", secret_key="s"),
        lambda: AWSBucketStorageProvider("b", region=name, access_key="i", secret_key="s"),
        lambda: GCPBucketStorageProvider(name, anonymous=True),
        lambda: AzureBlobStorageProvider(name, account="a"),
        lambda: AzureBlobStorageProvider("b", account=name),
    ):
        with pytest.raises(InvalidInput):
            make()


def test_copy_of_more_than_a_request_can(moto: Moto, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes through this host, metadata too."""
    provider = over(moto)
    data = bytes(range(256)) * 40_000
    provider.open_object("from").read_from(io.BytesIO(data), metadata={"kept": "yes"})
    monkeypatch.setattr(provider, "traits", replace(provider.traits, max_copy=1 << 20))
    provider.copy_object("from", "to")
    assert content(provider, "to") == data
    assert dict(provider.open_object("to").stat().metadata) == {"kept": "yes"}


def test_copy_between_stores(moto: Moto, azurite: Azurite) -> None:
    """From one cloud to another, both through obstore, in parts."""
    source = over(moto)
    target = AzureBlobStorageProvider(
        azurite.create_bucket(f"bucket-{uuid4().hex[:8]}"),
        account=azurite.account,
        account_key=azurite.account_key,
        endpoint=azurite.endpoint,
    )
    data = bytes(range(256)) * 80_000
    source.open_object("from").put(data)
    assert copy_object(source.open_object("from"), target.open_object("to")) == len(data)
    assert content(target, "to") == data
    assert copy_object(target.open_object("to"), source.open_object("back")) == len(data)
    assert content(source, "back") == data
