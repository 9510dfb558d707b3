"""The provider against the local OCI: the conformance suite, signatures, policies, faults."""

from __future__ import annotations

import hashlib
import io
import random
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from bootstream.clouds.oci import Principal
from bootstream.errors import (
    BucketNotFound,
    ObjectNotFound,
    PermissionDenied,
    Throttled,
    Unavailable,
)
from bootstream.storage.oci import OCIBucketStorageProvider, checksums
from bootstream.storage.oci.connection import TimeLimits
from bootstream.storage.retry import RetryPolicy, RetryStorageProvider
from bootstream.testing.localoci import LocalOciServer
from bootstream.testing.storage import HashingSink, PatternSource, StorageConformance, paths

DATA = random.Random(9).randbytes(1 << 20)

Make = Callable[..., OCIBucketStorageProvider]


@pytest.fixture(scope="module")
def oci(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalOciServer]:
    """One local OCI for all tests of this file."""
    with LocalOciServer(tmp_path_factory.mktemp("oci")) as server:
        yield server


@pytest.fixture(scope="module")
def principal(oci: LocalOciServer) -> Iterator[Principal]:
    """The user with an API key."""
    principal = oci.principal()
    yield principal
    _close(principal)


@pytest.fixture
def make(oci: LocalOciServer, principal: Principal) -> Iterator[Make]:
    """Makes providers; afterwards the bucket is empty, and nothing goes wrong any more."""
    made: list[OCIBucketStorageProvider] = []

    def build(**fields: Any) -> OCIBucketStorageProvider:
        given = {"namespace": None, "principal": principal, "endpoint": oci.endpoint} | fields
        made.append(OCIBucketStorageProvider(given.pop("bucket", oci.bucket), **given))
        return made[-1]

    yield build
    oci.faults.clear()
    oci.set_policies(None)
    oci.set_clock(0)
    cleaner = build()
    for path in paths(cleaner):
        cleaner.open_object(path).delete()
    cleaner.collect_uploads(timedelta(0))
    for provider in made:
        provider.close()


def _close(principal: Principal) -> None:
    close = getattr(principal, "close", None)
    if close is not None:
        close()


class TestLocalOci(StorageConformance):
    """All that a store promises, over signed requests."""

    key_count = 1200
    stream_size = 80 << 20

    @pytest.fixture
    def provider(self, make: Make) -> OCIBucketStorageProvider:
        """The empty bucket."""
        return make()

    @pytest.fixture
    def lost(self, make: Make) -> OCIBucketStorageProvider:
        """A bucket that is not there."""
        return make(bucket="not-there")


def test_wrong_namespace(make: Make) -> None:
    """It is told from a missing object."""
    with pytest.raises(BucketNotFound):
        make(namespace="another").open_object("a").stat()


def test_identity(make: Make, oci: LocalOciServer) -> None:
    """Names the place, and whether the namespace was given or looked up makes no difference."""
    details = make().details()
    assert details == make(namespace=oci.namespace).details() or details.identity
    assert details.provider == "OCIBucket"
    assert details.identity.endswith(f"/{oci.namespace}/{oci.bucket}")


@pytest.mark.parametrize("auth", ["instance_principal", "resource_principal", "security_token"])
def test_every_kind_of_principal(make: Make, oci: LocalOciServer, auth: str) -> None:
    """Reads and writes are signed so that the service takes them, bodies hashed or not."""
    profile = "SESSION" if auth == "security_token" else None
    principal = oci.principal(auth, profile)
    try:
        provider = make(principal=principal, part_size=64 << 10)
        provider.open_object("a b/ü").read_from(io.BytesIO(DATA))
        buffer = bytearray(1000)
        provider.open_object("a b/ü").read_at(buffer, 5000)
        assert bytes(buffer) == DATA[5000:6000]
        assert provider.delete_objects_with_prefix("a b") == 1
    finally:
        _close(principal)


def test_refresh_under_16_threads(make: Make, oci: LocalOciServer) -> None:
    """Tokens that end all the time, and an instance's new key: not one request fails."""
    oci.set_token_lifetime(2)
    try:
        principal = oci.principal("instance_principal")
        try:
            provider = make(principal=principal)
            provider.open_object("a").put(DATA)
            oci.take_requests()

            def work(number: int) -> bool:
                rng = random.Random(number)
                for turn in range(40):
                    if number == 0 and turn % 10 == 5:
                        oci.rotate_instance()
                        principal.refresh(principal.credentials())
                    offset = rng.randrange(len(DATA) - 1000)
                    buffer = bytearray(1000)
                    provider.open_object("a").read_at(buffer, offset)
                    assert bytes(buffer) == DATA[offset : offset + 1000]
                    provider.open_object(f"b/{number}").put(buffer)
                return True

            with ThreadPoolExecutor(16) as pool:
                assert all(pool.map(work, range(16)))
        finally:
            _close(principal)
    finally:
        oci.set_token_lifetime(1200)


def test_clock_skew(make: Make, oci: LocalOciServer) -> None:
    """A clock that is wrong by more than the service allows is a refusal, not a retry."""
    provider = make()
    provider.open_object("a").put(b"")
    oci.set_clock(1000)
    with pytest.raises(PermissionDenied, match="signature was refused") as raised:
        provider.open_object("b").put(b"")
    assert not raised.value.transient


def test_large_file_in_parts(make: Make, oci: LocalOciServer, tmp_path: Path) -> None:
    """In parts of any size, and back; nothing unfinished is left."""
    source = tmp_path / "file"
    size = (24 << 20) + 12345
    upload = PatternSource(size)
    with source.open("wb") as file:
        while piece := upload.read(1 << 20):
            file.write(piece)
    for part_size in (None, 1 << 20, 5_000_000):
        provider = make(part_size=part_size, parallel=4)
        provider.open_object("large").write_from_file_system(source, metadata={"k": "v"})
        sink = HashingSink()
        assert provider.open_object("large").write_to(sink) == size
        assert sink.digest.digest() == upload.digest.digest()
        assert provider.open_object("large").stat().metadata == {"k": "v"}
        assert provider.collect_uploads(timedelta(0), dry_run=True) == 0
    buffer = bytearray(size)
    assert make().open_object("large").read_at(buffer, 0) == size
    assert hashlib.sha256(buffer).digest() == upload.digest.digest()


@pytest.mark.parametrize("algorithm", ["CRC32C", "SHA256"])
def test_the_service_compares_checksums(
    oci: LocalOciServer, make: Make, algorithm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole and in parts, what is damaged on its way is refused and sent again."""
    if algorithm == "SHA256":
        monkeypatch.setattr(checksums, "_CRC32C", None)
    assert checksums.algorithm() == algorithm
    provider = make(part_size=1 << 20, sleep=lambda _: None)
    rule = oci.faults.add(effect="flip", upload=True, operation="UploadPart", count=1)
    target = provider.open_object("parts")
    target.read_from(io.BytesIO(DATA * 3))
    assert oci.faults.hits(rule) == 1
    sink = io.BytesIO()
    target.write_to(sink)
    assert sink.getvalue() == DATA * 3
    oci.faults.add(effect="flip", upload=True, operation="PutObject", count=1)
    with pytest.raises(Unavailable, match="damaged"):
        provider.open_object("whole").put(DATA[:1000])
    provider.open_object("whole").put(DATA[:1000])


def test_upload_url(make: Make) -> None:
    """Its holder writes that object, without a signature, and nothing else."""
    provider = make()
    url = provider.signed_upload_url("some where/ü", timedelta(hours=1))
    request = urllib.request.Request(url, data=b"by url", method="PUT")
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 200
    buffer = bytearray(6)
    provider.open_object("some where/ü").read_at(buffer, 0)
    assert bytes(buffer) == b"by url"
    assert provider.collect_uploads(timedelta(0)) == 0, "it is still good"


@pytest.mark.parametrize(
    "fault",
    [
        {"effect": "status", "status": 503},
        {"effect": "status", "status": 429},
        {"effect": "html"},
        {"effect": "reset", "after": 200_000},
        {"effect": "cut", "after": 200_000},
        {"effect": "stall", "after": 200_000, "seconds": 5},
        {"effect": "short"},
        {"effect": "long"},
    ],
    ids=lambda fault: f"{fault['effect']} {fault.get('status', '')}",
)
def test_faults_of_the_service(make: Make, oci: LocalOciServer, fault: dict[str, Any]) -> None:
    """One of them ends in an error; behind retries, in the right bytes; in no case in others."""
    inner = make(limits=TimeLimits(5, 0.5, 0.5))
    inner.open_object("a").read_from(io.BytesIO(DATA))
    buffer = bytearray(len(DATA))
    rule = oci.faults.add(**fault, operation="GetObject", count=1)
    with pytest.raises((Unavailable, Throttled)) as raised:
        inner.open_object("a").read_at(buffer, 0)
    assert raised.value.transient
    assert oci.faults.hits(rule) == 1
    provider = RetryStorageProvider(inner, RetryPolicy(first_wait=0.01))
    oci.faults.add(**fault, operation="GetObject", count=2)
    assert provider.open_object("a").read_at(buffer, 0) == len(DATA)
    assert bytes(buffer) == DATA
    oci.faults.add(**fault, operation="GetObject", count=2)
    sink = io.BytesIO()
    assert inner.open_object("a").write_to(sink) == len(DATA), "a download goes on by itself"
    assert sink.getvalue() == DATA


@pytest.mark.parametrize(
    "fault",
    [
        {"effect": "status", "status": 500},
        {"effect": "status", "status": 503, "late": True},
        {"effect": "status", "status": 409, "code": "ConcurrentObjectUpdate"},
        {"effect": "expired"},
        {"effect": "stray"},
        {"effect": "reset"},
        {"effect": "reset", "late": True},
    ],
    ids=lambda fault: f"{fault['effect']} {fault.get('status', '')} {fault.get('late', '')}",
)
def test_faults_during_uploads(make: Make, oci: LocalOciServer, fault: dict[str, Any]) -> None:
    """Parts are sent again, a lost commit is recognised, and nothing unfinished is left."""
    provider = make(part_size=128 << 10, parallel=4)
    rules = [
        oci.faults.add(**fault, operation=operation, count=1)
        for operation in ("UploadPart", "CommitMultipartUpload")
    ]
    provider.open_object("a").read_from(io.BytesIO(DATA))
    sink = io.BytesIO()
    provider.open_object("a").write_to(sink)
    assert sink.getvalue() == DATA
    assert [oci.faults.hits(rule) for rule in rules] == [1, 1]
    assert provider.collect_uploads(timedelta(0), dry_run=True) == 0


def test_lasting_trouble_leaves_nothing(make: Make, oci: LocalOciServer) -> None:
    """An upload that fails for good is aborted."""
    provider = make(part_size=128 << 10, parallel=4)
    oci.faults.add("status", status=403, code="NotAllowed", operation="UploadPart", skip=3)
    with pytest.raises(PermissionDenied):
        provider.open_object("a").read_from(io.BytesIO(DATA))
    assert paths(provider) == []
    assert provider.collect_uploads(timedelta(0), dry_run=True) == 0


def test_damaged_on_the_way(make: Make, oci: LocalOciServer) -> None:
    """A bit that fell over in a whole object shows in its checksum."""
    provider = make()
    provider.open_object("a").put(DATA)
    oci.faults.add("flip", after=1000, operation="GetObject", count=1)
    sink = io.BytesIO()
    provider.open_object("a").write_to(sink)
    assert sink.getvalue() == DATA


def test_remedies_are_true(make: Make, oci: LocalOciServer) -> None:
    """Starting from no permission at all, each error names the statement that is missing."""
    make().open_object("a").put(b"x")
    granted: list[str] = []

    def everything() -> None:
        provider = make(part_size=64 << 10)
        assert provider.details().provider
        provider.open_object("b/1").read_from(io.BytesIO(DATA))
        provider.open_object("b/1").write_to(io.BytesIO())
        provider.open_object("b/1").stat()
        provider.open_object("b/2").put(b"", if_none_match=True)
        assert paths(provider, "b") == ["b/1", "b/2"]
        assert provider.delete_objects_with_prefix("b") == 2
        assert provider.signed_upload_url("b/3", timedelta(hours=1))
        assert provider.collect_uploads(timedelta(hours=1)) == 0
        provider.copy_object("a", "c")

    for _ in range(6):
        oci.set_policies({"groups": {"users": ["user"]}, "statements": granted})
        try:
            everything()
        except (PermissionDenied, BucketNotFound) as error:
            missing = error
        else:
            break
        _, _, statement = (missing.remedy or "").partition("add the policy: ")
        statement = statement.replace("<group>", "users").replace("<compartment>", "C")
        assert statement, missing
        assert statement not in granted, missing
        granted.append(statement)
    else:
        pytest.fail(f"these do not suffice: {granted}")
    assert 3 <= len(granted) <= 4
    assert "read buckets" in granted[0]


@pytest.mark.parametrize("visible", [False, True])
def test_the_statement_that_is_named_is_the_one_that_is_missing(
    oci: LocalOciServer, make: Make, visible: bool
) -> None:
    """What is asked of objects names objects, of the bucket buckets, of URLs their own."""
    make().open_object("a").put(DATA[:100])
    seen = ["Allow any-user to read buckets in tenancy"] if visible else []
    oci.set_policies({"groups": {}, "statements": seen})
    provider = make()
    target = provider.open_object("a")
    objects: dict[str, Callable[[], object]] = {
        "read": lambda: target.read_at(bytearray(10), 0),
        "download": lambda: target.write_to(io.BytesIO()),
        "stat": target.stat,
        "put": lambda: target.put(b"x"),
        "upload": lambda: target.read_from(io.BytesIO(DATA)),
        "delete": target.delete,
        "list": lambda: list(provider.list_objects()),
        "clear": lambda: provider.delete_objects_with_prefix("a"),
    }
    for name, ask in objects.items():
        with pytest.raises((PermissionDenied, BucketNotFound)) as raised:
            ask()
        assert "to manage objects in" in (raised.value.remedy or ""), name
        assert "read buckets" not in (raised.value.remedy or ""), name
    with pytest.raises((PermissionDenied, BucketNotFound)) as raised:
        provider.signed_upload_url("b", timedelta(hours=1))
    if visible:
        assert "PAR_MANAGE" in (raised.value.remedy or "")
    else:  # the bucket's clock comes first
        assert "to read buckets in" in (raised.value.remedy or "")
        with pytest.raises(BucketNotFound) as raised:
            provider.details()
        assert "to read buckets in" in (raised.value.remedy or "")


def test_missing_object(make: Make) -> None:
    """The service's id of the request is on the error."""
    with pytest.raises(ObjectNotFound) as raised:
        make().open_object("missing").read_at(bytearray(1), 0)
    assert raised.value.request_id
