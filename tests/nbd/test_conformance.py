"""A device behind the wire is a device: the suite of all devices, through server and client."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bootstream.block.device import Device
from bootstream.nbd.client import connect
from bootstream.nbd.server import Export, Server
from bootstream.testing.device import DeviceConformance
from bootstream.testing.memory_device import MemoryDevice


class TestMemoryDevice(DeviceConformance):
    """What the other tests stand on."""

    @pytest.fixture
    def device(self, contents: bytes) -> Device:
        """One in memory."""
        return MemoryDevice(contents)


class _Wire(DeviceConformance):
    """What differs behind a wire."""

    def test_warm(self, device: Device, contents: bytes) -> None:
        """Every read waits for the server."""
        assert device.read_warm(0, len(contents)) is None


class TestWire(_Wire):
    """Client, socket, server, device."""

    @pytest.fixture
    def device(self, contents: bytes, tmp_path: Path) -> Iterator[Device]:
        """A client of a server in this process."""
        with Server({"disk": Export(MemoryDevice(contents))}, default="disk") as server:
            uri = server.listen_unix(tmp_path / "s")
            server.start()
            with connect(uri) as client:
                yield client


class TestReadOnlyWire(_Wire):
    """The same, not to be written."""

    @pytest.fixture
    def device(self, contents: bytes, tmp_path: Path) -> Iterator[Device]:
        """A client of a read-only export."""
        exports = {"disk": Export(MemoryDevice(contents, writable=False))}
        with Server(exports, default="disk") as server:
            uri = server.listen_unix(tmp_path / "s")
            server.start()
            with connect(uri) as client:
                yield client
