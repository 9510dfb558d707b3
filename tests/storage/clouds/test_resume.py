"""Uploads by the XML API that are gone on with, at S3 and at Google; Google's tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from urllib.parse import parse_qs

import pytest
import urllib3
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from bootstream.errors import PermissionDenied, Throttled, Unavailable
from bootstream.storage.aws import AWSBucketStorageProvider
from bootstream.storage.faults import Fails, Fault, FaultStorageProvider
from bootstream.storage.gcp import GCPBucketStorageProvider
from bootstream.storage.googlesigner import GoogleSigner
from bootstream.storage.limit import LimitStorageProvider
from bootstream.storage.memory import MemoryStorageProvider
from bootstream.storage.metrics import MetricsStorageProvider
from bootstream.storage.objectstore import BucketProvider
from bootstream.storage.prefix import PrefixStorageProvider
from bootstream.storage.protocol import StorageProvider
from bootstream.storage.resume import upload
from bootstream.storage.retry import RetryPolicy, RetryStorageProvider
from bootstream.storage.s3requests import Unsigned
from bootstream.testing.servers import GoogleServer, Moto
from bootstream.testing.servers.scripted import Reply, scripted
from bootstream.testing.storage import content

PART = 8 << 20
DATA = bytes(range(256)) * ((3 * PART + 1000) // 256)
NOW = timedelta(0)


class Memory:
    """A checkpoint in memory, which outlives the upload that wrote it."""

    def __init__(self, *, keep: bool = True) -> None:
        self.keep = keep
        self.token: str | None = None
        self.stale: str | None = None
        self.there = 0

    def recorded(self) -> str | None:
        self.there = 0
        return self.token

    def outdated(self) -> str | None:
        stale, self.stale = self.stale, None
        return stale

    def record(self, token: str) -> None:
        self.token = token

    def forget(self) -> None:
        self.token = None

    def found(self, size: int) -> None:
        self.there += size


class Breaking:
    """A source that breaks off after so many bytes, the first time; it can be rewound."""

    def __init__(self, data: bytes, at: int | None = None) -> None:
        self._data = data
        self._offset = 0
        self._at = at

    def read(self, size: int, /) -> bytes:
        if self._at is not None and self._offset >= self._at:
            raise OSError("broken off")
        piece = self._data[self._offset : self._offset + size]
        self._offset += len(piece)
        return piece

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._offset

    def seek(self, offset: int, /) -> int:
        self._offset = offset
        return offset


@pytest.fixture(scope="module", params=["s3", "gs"])
def provider(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BucketProvider]:
    folder = tmp_path_factory.mktemp("server")
    if request.param == "s3":
        with Moto(folder) as moto:
            yield AWSBucketStorageProvider(
                moto.create_bucket("bucket"), endpoint=moto.url, access_key="a", secret_key="b"
            )
    else:
        with GoogleServer(folder) as google:
            yield GCPBucketStorageProvider(
                google.create_bucket("bucket"), endpoint=google.url, anonymous=True
            )


def left(provider: StorageProvider) -> int:
    return provider.collect_uploads(NOW, dry_run=True)


def test_an_upload_that_broke_is_gone_on_with(provider: BucketProvider) -> None:
    """The parts that are there are not sent again; metadata is that of the beginning."""
    target, memory = provider.open_object("a/b é"), Memory()
    with pytest.raises(OSError, match="broken off"):
        upload(target, Breaking(DATA, 2 * PART), len(DATA), metadata={"k": "v"}, checkpoint=memory)
    assert memory.token is not None
    assert left(provider) == 1
    count = upload(target, Breaking(DATA), len(DATA), metadata={"k": "v"}, checkpoint=memory)
    assert (count, memory.there) == (len(DATA), 2 * PART)
    assert memory.recorded() is None
    assert content(provider, "a/b é") == DATA
    assert target.stat().metadata == {"k": "v"}
    assert left(provider) == 0


def test_a_wrong_checkpoint_makes_no_wrong_object(provider: BucketProvider) -> None:
    """Parts of other bytes are sent again, whatever the checkpoint vouches for."""
    target, memory = provider.open_object("wrong"), Memory()
    other = DATA[::-1]
    with pytest.raises(OSError, match="broken off"):
        upload(target, Breaking(other, 2 * PART), len(DATA), metadata=None, checkpoint=memory)
    upload(target, Breaking(DATA), len(DATA), metadata=None, checkpoint=memory)
    assert memory.there == 0
    assert content(provider, "wrong") == DATA
    for token in ("", "x", f"{PART} no-such-upload", f"{PART // 2} abc"):
        memory.token = token
        upload(target, Breaking(DATA), len(DATA), metadata=None, checkpoint=memory)
    assert content(provider, "wrong") == DATA
    assert left(provider) == 0


def test_what_fails_leaves_nothing_unless_it_is_asked_to(provider: BucketProvider) -> None:
    """Without keep, an upload that fails is aborted; one that is outdated always is."""
    target, memory = provider.open_object("gone"), Memory(keep=False)
    with pytest.raises(OSError, match="broken off"):
        upload(target, Breaking(DATA, 2 * PART), len(DATA), metadata=None, checkpoint=memory)
    assert memory.token is None
    assert left(provider) == 0
    memory.keep = True
    with pytest.raises(OSError, match="broken off"):
        upload(target, Breaking(DATA, 2 * PART), len(DATA), metadata=None, checkpoint=memory)
    memory.stale, memory.token = memory.token, None
    upload(target, Breaking(DATA), len(DATA), metadata=None, checkpoint=memory)
    assert left(provider) == 0
    small = provider.open_object("small")
    assert upload(small, Breaking(b"few"), 3, metadata=None, checkpoint=Memory()) == 3
    assert content(provider, "small") == b"few"


def test_through_all_wrappers(provider: BucketProvider) -> None:
    """Each hands it on, and retry begins no upload twice."""
    faulty = FaultStorageProvider(provider)
    store: StorageProvider = LimitStorageProvider(faulty, concurrency=2)
    store = RetryStorageProvider(store, RetryPolicy(first_wait=0.001, longest_wait=0.01))
    counted = MetricsStorageProvider(store)
    store = PrefixStorageProvider(counted, "team")
    faulty.add(Fault(Fails(Throttled), operations=frozenset({"read_from"}), count=2))
    memory = Memory()
    target = store.open_object("x")
    assert upload(target, Breaking(DATA), len(DATA), metadata=None, checkpoint=memory) == len(DATA)
    assert counted.snapshot()["read_from"]["bytes"] == len(DATA)
    assert content(provider, "team/x") == DATA
    assert left(provider) == 0


def test_a_store_without_parts(provider: BucketProvider) -> None:
    """A store in memory is uploaded to as always, also below wrappers."""
    del provider
    store = RetryStorageProvider(MemoryStorageProvider())
    memory = Memory()
    assert upload(store.open_object("x"), Breaking(b"1"), 1, metadata=None, checkpoint=memory) == 1
    assert memory.token is None


# -- collecting, and tokens -----------------------------------------------------------------------


def test_left_uploads_of_google_are_collected(tmp_path: Path) -> None:
    """Listed by the XML API and aborted; a dry run counts only."""
    with GoogleServer(tmp_path) as google:
        bucket = google.create_bucket("bucket")
        store = GCPBucketStorageProvider(bucket, endpoint=google.url, anonymous=True)
        for name in ("plain", "with%20space/%C3%A9%2B%26"):
            url = f"{google.url}/{bucket}/{name}?uploads"
            assert urllib3.request("POST", url, retries=False).status == 200
        assert store.collect_uploads(NOW, dry_run=True) == 2
        assert store.collect_uploads(NOW) == 2
        assert store.collect_uploads(NOW) == 0


def account() -> str:
    """The key of a service account, whose token service is nowhere."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()
    fields = {"type": "service_account", "client_email": "a@b.iam.gserviceaccount.com"}
    return json.dumps(fields | {"private_key": pem, "token_uri": "http://127.0.0.1:9/token"})


def workforce(file: Path, url: str) -> Path:
    """Credentials of a person, which a token service exchanges for a token."""
    fields = {"type": "external_account_authorized_user", "token_url": f"{url}/token"}
    secrets = {"client_id": "id", "client_secret": "s3cret", "refresh_token": "r"}
    file.write_text(json.dumps(fields | secrets | {"token_info_url": f"{url}/info"}))
    return file


REQUEST = Unsigned("GET", "storage.googleapis.com", "/bucket", "uploads=")


def test_tokens_that_a_key_signs(tmp_path: Path) -> None:
    """A service account's key signs its own tokens; nobody is asked, headers stay."""
    file = tmp_path / "key.json"
    file.write_text(account())
    for signer in (GoogleSigner(key=account()), GoogleSigner(credentials=file)):
        headers = signer(REQUEST._replace(headers={"x-goog-meta-a": "b"}))
        assert headers is not None
        assert headers["x-goog-meta-a"] == "b"
        kind, _, token = headers["authorization"].partition(" ")
        assert (kind, len(token.split("."))) == ("Bearer", 3)
        assert signer(REQUEST) == {"authorization": headers["authorization"]}


def test_tokens_of_a_service(tmp_path: Path) -> None:
    """One token is asked for, and serves until it expires."""
    asked: list[dict[str, list[str]]] = []

    def answer(method: str, target: str, headers: dict[str, str], body: bytes) -> Reply:
        assert (method, target) == ("POST", "/token")
        assert "form" in headers["content-type"]
        asked.append(parse_qs(body.decode()))
        token = {"access_token": "t0ken", "expires_in": 3600, "token_type": "Bearer"}
        return 200, {"Content-Type": "application/json"}, json.dumps(token).encode()

    with scripted(answer) as url:
        signer = GoogleSigner(credentials=workforce(tmp_path / "user.json", url))
        for _ in range(2):
            assert signer(REQUEST) == {"authorization": "Bearer t0ken"}
    assert [form["grant_type"] for form in asked] == [["refresh_token"]]


def test_no_token(tmp_path: Path) -> None:
    """Refused, not reachable, not there at all: three things; none shows a secret."""

    def answer(_method: str, _target: str, _headers: dict[str, str], _body: bytes) -> Reply:
        refused = b'{"error": "invalid_grant", "error_description": "no"}'
        return 400, {"Content-Type": "application/json"}, refused

    with scripted(answer) as url:
        with pytest.raises(PermissionDenied, match="no access token") as denied:
            GoogleSigner(credentials=workforce(tmp_path / "user.json", url))(REQUEST)
        assert "s3cret" not in str(denied.value)
    with pytest.raises(Unavailable):
        GoogleSigner(credentials=workforce(tmp_path / "user.json", "http://127.0.0.1:9"))(REQUEST)
    for key in ("{}", "no json", '{"type": "service_account"}'):
        assert GoogleSigner(key=key)(REQUEST) is None
    assert GoogleSigner(anonymous=True)(REQUEST) == {}
    assert GoogleSigner(key='{"disable_oauth": true}')(REQUEST) == {}, "as obstore has it"
