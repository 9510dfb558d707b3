"""Every device of this package passes the conformance suite."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from tests.block.helpers import store_image

from bootstream.block.cache import NodeCache
from bootstream.block.chunked import ChunkedDevice
from bootstream.block.device import Device
from bootstream.block.file import FileDevice
from bootstream.block.overlay import Overlay
from bootstream.testing.device import DeviceConformance
from bootstream.testing.memory_device import MemoryDevice


class TestChunkedDevice(DeviceConformance):
    """Chunks through the node cache."""

    @pytest.fixture
    def device(self, contents: bytes, tmp_path: Path) -> Iterator[Device]:
        """A device over a new cache."""
        reader = store_image(contents, tmp_path)
        with (
            closing(NodeCache(tmp_path / "cache", limit=64 << 20)) as cache,
            closing(ChunkedDevice(reader, cache, store="memory")) as device,
        ):
            yield device


class TestRawForm(DeviceConformance):
    """The raw form through the node cache."""

    @pytest.fixture
    def device(self, contents: bytes, tmp_path: Path) -> Iterator[Device]:
        """A device over an artifact that is stored as it is."""
        reader = store_image(contents, tmp_path, form="raw")
        with (
            closing(NodeCache(tmp_path / "cache", limit=64 << 20)) as cache,
            closing(ChunkedDevice(reader, cache, store="memory")) as device,
        ):
            yield device


class TestUncached(DeviceConformance):
    """Chunks without a cache."""

    @pytest.fixture
    def device(self, contents: bytes, tmp_path: Path) -> Iterator[Device]:
        """A device that keeps chunks in memory for a while."""
        with closing(ChunkedDevice(store_image(contents, tmp_path), None, store="m")) as device:
            yield device


class TestTinyCache(DeviceConformance):
    """Chunks through a cache that holds a small part of them: all tests evict."""

    @pytest.fixture
    def device(self, contents: bytes, tmp_path: Path) -> Iterator[Device]:
        """A device over a cache of 512 KiB."""
        reader = store_image(contents, tmp_path)
        with (
            closing(NodeCache(tmp_path / "cache", limit=512 << 10)) as cache,
            closing(ChunkedDevice(reader, cache, store="memory")) as device,
        ):
            yield device


class TestOverlayOverChunks(DeviceConformance):
    """The stack that a server serves."""

    @pytest.fixture
    def device(self, contents: bytes, tmp_path: Path) -> Iterator[Device]:
        """A kept overlay over chunks."""
        reader = store_image(contents, tmp_path)
        with (
            closing(NodeCache(tmp_path / "cache", limit=64 << 20)) as cache,
            closing(ChunkedDevice(reader, cache, store="memory")) as base,
            closing(Overlay(base, tmp_path / "overlay", base_digest="d")) as device,
        ):
            yield device


class TestThrowAwayOverlay(DeviceConformance):
    """An overlay without a name."""

    @pytest.fixture
    def device(self, contents: bytes, tmp_path: Path) -> Iterator[Device]:
        """A throw-away overlay over memory."""
        base = MemoryDevice(contents)
        with closing(Overlay(base, None, base_digest="d", folder=tmp_path)) as device:
            yield device


class TestFile(DeviceConformance):
    """A raw file, writable."""

    @pytest.fixture
    def device(self, contents: bytes, tmp_path: Path) -> Iterator[Device]:
        """A device over a file."""
        path = tmp_path / "image"
        path.write_bytes(contents)
        with closing(FileDevice(path, writable=True)) as device:
            yield device


class TestReadOnlyFile(DeviceConformance):
    """A raw, sparse file, read-only."""

    @pytest.fixture
    def device(self, contents: bytes, tmp_path: Path) -> Iterator[Device]:
        """A device over a file with holes."""
        path = tmp_path / "image"
        with path.open("wb") as file:
            for at in range(0, len(contents), 4096):
                if any(contents[at : at + 4096]):
                    file.seek(at)
                    file.write(contents[at : at + 4096])
            file.truncate(len(contents))
        with closing(FileDevice(path)) as device:
            yield device
