"""Every store and every wrapper against the one suite."""

from __future__ import annotations

import random
from pathlib import Path
from typing import ClassVar

import pytest

from bootstream.errors import Throttled, Unavailable
from bootstream.storage.faults import READS, Cuts, Fails, Fault, FaultStorageProvider
from bootstream.storage.local import LocalStorageProvider
from bootstream.storage.memory import MemoryStorageProvider
from bootstream.storage.prefix import PrefixStorageProvider
from bootstream.storage.protocol import StorageProvider
from bootstream.storage.retry import RetryPolicy, RetryStorageProvider
from bootstream.testing.storage import StorageConformance


class TestMemory(StorageConformance):
    """The store in memory."""

    in_memory: ClassVar[bool] = True
    has_bucket: ClassVar[bool] = False
    stream_size: ClassVar[int] = 32 << 20

    @pytest.fixture
    def provider(self) -> StorageProvider:
        return MemoryStorageProvider()


class TestLocal(StorageConformance):
    """The store in a folder."""

    component_bytes: ClassVar[int] = 255
    objects_as_folders: ClassVar[bool] = False

    @pytest.fixture
    def provider(self, tmp_path: Path) -> StorageProvider:
        return LocalStorageProvider(tmp_path / "store")

    @pytest.fixture
    def lost(self, tmp_path: Path) -> StorageProvider:
        (tmp_path / "file").write_bytes(b"no folder")
        return LocalStorageProvider(tmp_path / "file")


class TestLocalNamed(TestLocal):
    """The same where the file system has no files without a name."""

    stream_size: ClassVar[int] = 32 << 20
    key_count: ClassVar[int] = 300

    @pytest.fixture
    def provider(self, tmp_path: Path) -> StorageProvider:
        provider = LocalStorageProvider(tmp_path / "store")
        provider._unnamed = False
        return provider


class TestPrefix(TestLocal):
    """A part of a folder, beside other parts that must not be touched."""

    stream_size: ClassVar[int] = 32 << 20
    key_count: ClassVar[int] = 300

    @pytest.fixture
    def provider(self, tmp_path: Path) -> StorageProvider:
        return PrefixStorageProvider(LocalStorageProvider(tmp_path), "some/prefix")


class TestRetriedFaults(StorageConformance):
    """A bad network under the layer that mends it."""

    in_memory: ClassVar[bool] = True
    has_bucket: ClassVar[bool] = False
    stream_size: ClassVar[int] = 32 << 20
    key_count: ClassVar[int] = 500

    @pytest.fixture
    def provider(self) -> StorageProvider:
        faulty = FaultStorageProvider(
            MemoryStorageProvider(),
            Fault(Fails(Unavailable), probability=0.1),
            Fault(Fails(Throttled), probability=0.1),
            Fault(Fails(Unavailable, after=True), operations=READS | {"put"}, probability=0.1),
            Fault(Cuts(), probability=0.1),
            seed=11,
        )
        policy = RetryPolicy(attempts=30, total=600.0)
        return RetryStorageProvider(
            faulty, policy, sleep=lambda _seconds: None, rng=random.Random(1)
        )
