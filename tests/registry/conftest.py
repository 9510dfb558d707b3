"""Registries for tests, and how they are spoken to."""

from __future__ import annotations

from pathlib import Path

import pytest

from bootstream.images.cache import BlobCache
from bootstream.registry.remote import Access


@pytest.fixture
def access(tmp_path: Path) -> Access:
    """Anonymous access, with a cache of its own."""
    return Access(BlobCache(tmp_path / "cache"))
