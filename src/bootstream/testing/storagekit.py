"""What tests of storage are made of: names, sources, sinks, and the suite's attributes."""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import ClassVar

import pytest

from bootstream.errors import (
    BootstreamError,
)
from bootstream.storage.protocol import StorageProvider

ODD_NAMES = (
    "plain",
    "with space",
    " leading and trailing ",
    "percent%2Fslash",
    "%",
    "%00",
    "plus+and&equals=1",
    "question?mark#hash",
    "back\\slash",
    "quote\"apostrophe'",
    "semi;colon:at@",
    "brackets[1]{2}<3>",
    "star*",
    "dot.",
    ".hidden",
    "...",
    "a..b",
    "trailing./dots../in../folders...",
    "~tilde",
    "-dash",
    "grüße",
    "gru\u0308ße",
    "日本語/テンプレート",
    "emoji-🚀",
    "\u202eright-to-left",
    "UPPER",
    "upper",
)

BAD_NAMES = (
    "",
    "/",
    "/absolute",
    "trailing/",
    "double//slash",
    ".",
    "..",
    "a/../b",
    "a/./b",
    "../escape",
    "a/..",
    "nul\0",
    "line\nbreak",
    "tab\t",
    "bell\x07",
    "delete\x7f",
    "c1\x85",
    "surrogate\udc80",
    "a" * 1025,
    "ü" * 513,
)


class PatternSource:
    """A source of ``size`` bytes that never lie in memory together, with their sha256.

    ``short`` bounds what one read returns. ``fail_at`` raises ``error`` after so many bytes.
    """

    def __init__(
        self,
        size: int,
        *,
        short: int | None = None,
        fail_at: int | None = None,
        error: BaseException | None = None,
    ) -> None:
        self._left = size
        self._done = 0
        self._short = short
        self._fail_at = fail_at
        self._error = error
        self._block = bytes(range(251)) * 4177  # a little over 1 MiB, no power of two
        self.digest = hashlib.sha256()

    def read(self, size: int, /) -> bytes:
        """Return the next bytes."""
        if self._fail_at is not None and self._done >= self._fail_at and self._error is not None:
            raise self._error
        start = self._done % 251
        count = min(size, self._left, self._short or size, len(self._block) - start)
        piece = self._block[start : start + count]
        self.digest.update(piece)
        self._done += count
        self._left -= count
        return piece


class HashingSink:
    """A sink that keeps a sha256 and a count."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self.count = 0

    def write(self, data: memoryview, /) -> None:
        """Take it."""
        self.digest.update(data)
        self.count += len(data)


class BrokenSink:
    """A sink that raises ``error`` once it has ``room`` bytes."""

    def __init__(self, room: int, error: BaseException) -> None:
        self._room = room
        self._error = error

    def write(self, data: memoryview, /) -> None:
        """Take it, or raise."""
        self._room -= len(data)
        if self._room < 0:
            raise self._error


class SourceBroke(Exception):
    """A source's own error."""


def paths(provider: StorageProvider, prefix: str = "") -> list[str]:
    """Return the paths of a listing."""
    return [info.path for info in provider.list_objects(prefix)]


def content(provider: StorageProvider, path: str) -> bytes:
    """Return an object's bytes by download."""
    sink = io.BytesIO()
    count = provider.open_object(path).write_to(sink)
    assert count == len(sink.getvalue())
    return sink.getvalue()


def at_once(calls: list[Callable[[], object]]) -> list[object]:
    """Run all calls at the same time; return results or errors of the package, in order."""
    barrier = threading.Barrier(len(calls))

    def run(call: Callable[[], object]) -> object:
        barrier.wait()
        try:
            return call()
        except BootstreamError as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


class StorageSuite:
    """What the parts of the suite share. Attributes say what the store can do.

    ``component_bytes``: the longest name between two slashes. ``objects_as_folders``:
    whether ``a`` and ``a/b`` can both be objects. ``key_count``: objects in the test of
    many pages. ``stream_size``: bytes of the large object. ``memory_limit``: bytes that
    moving it may allocate. ``in_memory``: the store itself lies in this process's memory.
    ``clock_skew``: how far the store's clock may be from this host's. ``has_bucket``:
    whether there is a bucket that could be missing; ``lost`` then gives a store without.
    ``has_metadata``: whether objects keep metadata; else writing with some is refused.
    """

    component_bytes: ClassVar[int] = 1024
    objects_as_folders: ClassVar[bool] = True
    key_count: ClassVar[int] = 2500
    stream_size: ClassVar[int] = 256 << 20
    memory_limit: ClassVar[int] = 64 << 20
    in_memory: ClassVar[bool] = False
    clock_skew: ClassVar[timedelta] = timedelta(seconds=30)
    has_bucket: ClassVar[bool] = True
    has_metadata: ClassVar[bool] = True

    @pytest.fixture
    def provider(self) -> StorageProvider:
        """The store to test, empty; to be overridden."""
        raise NotImplementedError

    @pytest.fixture
    def lost(self) -> StorageProvider:
        """A store whose bucket is not there; to be overridden where ``has_bucket``."""
        raise NotImplementedError
