"""The conformance suite over the bucket in memory, as quick as a unit test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.storage.oci.helpers import ScriptedServer, Seen, provider_for, refusal, reply
from tests.storage.oci.memorybucket import MemoryBucket

from bootstream.storage.oci import OCIBucketStorageProvider
from bootstream.testing.storage import StorageConformance


def _nothing(seen: Seen) -> bytes:
    return reply(404) if seen.method == "HEAD" else refusal(404, "BucketNotFound")


class TestMemoryBucket(StorageConformance):
    """Without batches, and in small pages, so that the other ways are gone as well."""

    key_count = 300
    stream_size = 40 << 20
    in_memory = True

    @pytest.fixture
    def provider(self) -> Iterator[OCIBucketStorageProvider]:
        """An empty bucket."""
        with ScriptedServer(MemoryBucket(batches=False, page=7)) as server:
            provider = provider_for(server)
            yield provider
            provider.close()

    @pytest.fixture
    def lost(self) -> Iterator[OCIBucketStorageProvider]:
        """A bucket that is not there."""
        with ScriptedServer(_nothing) as server:
            provider = provider_for(server)
            yield provider
            provider.close()
