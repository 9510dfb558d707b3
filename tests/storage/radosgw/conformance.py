"""The S3 provider against Ceph: real signatures, real conditions, another's idea of S3.

Not among the tests that are run at every commit, since its packages are large; it is run by
name: ``pytest tests/storage/radosgw/conformance.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar
from uuid import uuid4

import pytest

from bootstream.storage.aws import AWSBucketStorageProvider
from bootstream.storage.protocol import StorageProvider
from bootstream.testing.servers.radosgw import PACKAGES, RadosGateway, missing
from bootstream.testing.storage import StorageConformance, content

pytestmark = pytest.mark.timeout(180, method="signal")  # the first test waits for the cluster


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RadosGateway]:
    assert not missing(), f"apt-get install --no-install-recommends {PACKAGES}"
    with RadosGateway(tmp_path_factory.mktemp("ceph")) as server:
        yield server


def over(server: RadosGateway, bucket: str, secret_key: str | None = None) -> StorageProvider:
    return AWSBucketStorageProvider(
        bucket,
        endpoint=server.url,
        access_key=server.keys.access_key,
        secret_key=secret_key or server.keys.secret_key,
    )


def fresh() -> str:
    return f"bucket-{uuid4().hex[:12]}"


class TestRadosGateway(StorageConformance):
    """The whole suite at its own sizes, over the bare provider: Ceph needs no allowances."""

    stream_size: ClassVar[int] = 128 << 20

    @pytest.fixture
    def provider(self, gateway: RadosGateway) -> StorageProvider:
        return over(gateway, gateway.create_bucket(fresh()))

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
