"""A local OCI that takes every caller, with a bucket, for tests of Object Storage."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.localoci.client import Client
from tests.localoci.openserver import OpenServer

from bootstream.localoci.service import Limits

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LIMITS = Limits(put=8 << 20, part=8 << 20, item=24 << 20)


class Clock:
    """A time that stands until a test moves it."""

    def __init__(self) -> None:
        self.now = 1_790_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """The open server's time."""
    return Clock()


@pytest.fixture
def open_server(tmp_path: Path, clock: Clock) -> Iterator[OpenServer]:
    """A server that asks nobody to sign in; its bucket is ``b``."""
    with OpenServer(tmp_path / "oci", clock=clock, limits=LIMITS) as server:
        server.application.ensure_bucket("b", "compartment")
        yield server


@pytest.fixture
def client(open_server: OpenServer) -> Iterator[Client]:
    """A client of the open server."""
    with Client(open_server.port) as client:
        yield client
