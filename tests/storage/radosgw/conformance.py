"""The S3 provider against Ceph: real signatures, real conditions, another's idea of S3.

Not among the tests that are run at every commit, since its packages are large; it is run by
name: ``pytest tests/storage/radosgw/conformance.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import ClassVar
from uuid import uuid4

import boto3  # type: ignore[import-untyped,unused-ignore]  # it has no types
import pytest
import urllib3

from bootstream.errors import PermissionDenied
from bootstream.storage.aws import AWSBucketStorageProvider
from bootstream.storage.protocol import StorageProvider
from bootstream.storage.retry import RetryStorageProvider
from bootstream.testing.servers.radosgw import PACKAGES, RadosGateway, missing
from bootstream.testing.storage import StorageConformance, content

pytestmark = pytest.mark.timeout(180, method="signal")  # the first test waits for the cluster


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RadosGateway]:
    assert not missing(), f"apt-get install --no-install-recommends {PACKAGES}"
    with RadosGateway(tmp_path_factory.mktemp("ceph")) as server:
        yield server


def over(
    server: RadosGateway, bucket: str, secret_key: str | None = None
) -> AWSBucketStorageProvider:
    return AWSBucketStorageProvider(
        bucket,
        endpoint=server.url,
        access_key=server.keys.access_key,
        secret_key=secret_key or server.keys.secret_key,
    )


def fresh() -> str:
    return f"bucket-{uuid4().hex[:12]}"


class TestRadosGateway(StorageConformance):
    """The whole suite, under the retry wrapper that the program always has.

    Ceph 16 answers 500 to a request that meets another one for the same object.
    """

    stream_size: ClassVar[int] = 128 << 20

    @pytest.fixture
    def provider(self, gateway: RadosGateway) -> StorageProvider:
        return RetryStorageProvider(over(gateway, gateway.create_bucket(fresh())))

    @pytest.fixture
    def lost(self, gateway: RadosGateway) -> StorageProvider:
        return over(gateway, fresh())

    def test_etag_changes_with_every_write(self, provider: StorageProvider) -> None:
        """With every write of other bytes: S3's etag is a digest of the content."""
        target = provider.open_object("etag")
        seen = [target.put(str(turn).encode()) for turn in range(20)]
        assert len(set(seen)) == 20
        again = target.put(b"0")
        assert again == seen[0] == target.stat().etag
        before = target.stat()
        content(provider, "etag")
        assert target.stat() == before, "reading changes nothing"


def test_wrong_secret(gateway: RadosGateway) -> None:
    """A signature by another key is refused, for every kind of request."""
    provider = over(gateway, gateway.create_bucket(fresh()), "another-secret-key")
    target = provider.open_object("a")
    for use in (
        lambda: target.put(b"x"),
        lambda: target.read_at(bytearray(1), 0),
        lambda: list(provider.list_objects()),
        lambda: provider.collect_uploads(timedelta(0)),
        target.stat,
        target.delete,
    ):
        with pytest.raises(PermissionDenied):
            use()


def test_signed_url(gateway: RadosGateway) -> None:
    """Its holder uploads that object and no other, and reads nothing."""
    provider = over(gateway, gateway.create_bucket(fresh()))
    url = provider.signed_upload_url("a/b c", timedelta(hours=1))
    assert urllib3.request("PUT", url, body=b"signed", retries=False).status == 200
    assert content(provider, "a/b c") == b"signed"
    assert urllib3.request("PUT", url.replace("a/b", "a/x"), body=b"", retries=False).status == 403
    assert urllib3.request("GET", url, retries=False).status == 403


def test_left_uploads_are_collected(gateway: RadosGateway) -> None:
    """Those begun longer ago, also of odd names; objects stay."""
    bucket = gateway.create_bucket(fresh())
    provider = over(gateway, bucket)
    s3 = boto3.client(
        "s3",
        endpoint_url=gateway.url,
        region_name="us-east-1",
        aws_access_key_id=gateway.keys.access_key,
        aws_secret_access_key=gateway.keys.secret_key,
    )
    provider.open_object("kept").put(b"kept")
    for key in ("plain", "with space/é+&%2F", "plain"):
        upload = s3.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
        s3.upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=1, Body=b"part")
    assert provider.collect_uploads(timedelta(hours=1)) == 0
    assert provider.collect_uploads(timedelta(0), dry_run=True) == 3
    assert provider.collect_uploads(timedelta(0)) == 3
    assert provider.collect_uploads(timedelta(0)) == 0
    assert "Uploads" not in s3.list_multipart_uploads(Bucket=bucket)
    assert content(provider, "kept") == b"kept"
    s3.close()
