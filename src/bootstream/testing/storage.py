"""What every storage provider promises, as tests: subclass, and give a ``provider``.

::

    class TestMyBucket(StorageConformance):
        component_bytes = 1024

        @pytest.fixture
        def provider(self) -> Iterator[StorageProvider]:
            ...yield one over an empty bucket or prefix, and empty it afterwards

The class attributes say what a store can do and how large the tests are; the defaults are
those of a cloud's bucket, at sizes for every commit.
"""

from __future__ import annotations

import hashlib
import io
import threading
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import ClassVar

import pytest

from bootstream.errors import (
    AlreadyExists,
    BootstreamError,
    InvalidInput,
    NotFound,
    ObjectNotFound,
    PreconditionFailed,
)
from bootstream.storage.objects import ObjectReader, copy_object, read_exact, read_small
from bootstream.storage.protocol import ReadableBuffer, StorageProvider

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


class StorageConformance:
    """The tests. Attributes say what the store can do.

    ``component_bytes``: the longest name between two slashes. ``objects_as_folders``:
    whether ``a`` and ``a/b`` can both be objects. ``key_count``: objects in the test of
    many pages. ``stream_size``: bytes of the large object. ``memory_limit``: bytes that
    moving it may allocate. ``in_memory``: the store itself lies in this process's memory.
    ``clock_skew``: how far the store's clock may be from this host's.
    """

    component_bytes: ClassVar[int] = 1024
    objects_as_folders: ClassVar[bool] = True
    key_count: ClassVar[int] = 2500
    stream_size: ClassVar[int] = 256 << 20
    memory_limit: ClassVar[int] = 64 << 20
    in_memory: ClassVar[bool] = False
    clock_skew: ClassVar[timedelta] = timedelta(seconds=30)

    @pytest.fixture
    def provider(self) -> StorageProvider:
        """The store to test, empty; to be overridden."""
        raise NotImplementedError

    # -- reading and writing ------------------------------------------------------------------

    def test_round_trip(self, provider: StorageProvider) -> None:
        """What is written is read, by every way in and out."""
        target = provider.open_object("a/b/object")
        data = bytes(range(256)) * 100
        etag = target.put(data)
        assert target.path == "a/b/object"
        assert content(provider, "a/b/object") == data
        buffer = bytearray(len(data))
        assert target.read_at(buffer, 0) == len(data)
        assert bytes(buffer) == data
        assert read_small(target, len(data)) == (data, etag)
        assert target.exists()
        assert target.size() == len(data)
        assert [(i.path, i.size, i.etag) for i in provider.list_objects()] == [
            ("a/b/object", len(data), etag)
        ]

    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, "cast"])
    def test_every_kind_of_buffer(self, provider: StorageProvider, kind: type | str) -> None:
        """Anything with bytes in it can be put, and be read into."""
        data = b"0123456789abcdef"
        if kind == "cast":
            given: ReadableBuffer = memoryview(data).cast("I")
        else:
            assert isinstance(kind, type)
            given = kind(data)
        provider.open_object("put").put(given)
        assert content(provider, "put") == data

        class Once:
            def __init__(self) -> None:
                self.left: list[ReadableBuffer] = [b"", given]

            def read(self, size: int, /) -> ReadableBuffer:
                del size
                return self.left.pop()

        assert provider.open_object("streamed").read_from(Once()) == len(data)
        assert content(provider, "streamed") == data
        for into in (bytearray(16), memoryview(bytearray(16)), memoryview(bytearray(16)).cast("H")):
            assert provider.open_object("put").read_at(into, 0) == 16
            assert bytes(into) == data
        inside = bytearray(b"." * 20)
        assert provider.open_object("put").read_at(memoryview(inside)[2:18], 0) == 16
        assert bytes(inside) == b".." + data + b".."

    def test_file(self, provider: StorageProvider, tmp_path: Path) -> None:
        """A local file is uploaded, over what was there; a sparse one with its zeros."""
        source = tmp_path / "file"
        target = provider.open_object("file")
        with source.open("wb") as file:
            file.write(b"start")
            file.seek(3 << 20)
            file.write(b"middle")
            file.truncate(5 << 20)
        target.write_from_file_system(source)
        assert content(provider, "file") == source.read_bytes()
        source.write_bytes(b"short")
        target.write_from_file_system(str(source))
        assert content(provider, "file") == b"short"
        source.write_bytes(b"")
        target.write_from_file_system(source)
        assert content(provider, "file") == b""

    def test_missing_file(self, provider: StorageProvider, tmp_path: Path) -> None:
        """A local file that is not there, or is a folder, is named; nothing is written."""
        target = provider.open_object("file")
        with pytest.raises(NotFound) as raised:
            target.write_from_file_system(tmp_path / "missing")
        assert not isinstance(raised.value, ObjectNotFound)
        assert str(tmp_path / "missing") in str(raised.value)
        with pytest.raises(InvalidInput):
            target.write_from_file_system(tmp_path)
        assert paths(provider) == []

    def test_missing_object(self, provider: StorageProvider) -> None:
        """Every kind of reading says that it is not there, and names it."""
        provider.open_object("other").put(b"x")
        for path in ("missing", "missing/below", "other-not", "folder/missing"):
            target = provider.open_object(path)
            for read in (
                target.stat,
                target.size,
                lambda t=target: t.read_at(bytearray(1), 0),
                lambda t=target: t.read_at(bytearray(0), 0),
                lambda t=target: t.read_at(bytearray(1), 1 << 40),
                lambda t=target: t.write_to(io.BytesIO()),
                lambda t=target: ObjectReader(t).read(1),
                lambda t=target: copy_object(t, provider.open_object("copy")),
            ):
                with pytest.raises(ObjectNotFound) as raised:
                    read()
                assert path in (raised.value.object or "")
            assert not target.exists()
        assert paths(provider) == ["other"]

    def test_handle_touches_nothing(self, provider: StorageProvider) -> None:
        """Opening creates nothing, and a handle sees what comes after it."""
        target = provider.open_object("later")
        assert paths(provider) == []
        provider.open_object("later").put(b"now")
        assert target.size() == 3

    def test_folder_is_no_object(self, provider: StorageProvider) -> None:
        """What is only a prefix of names does not exist itself."""
        provider.open_object("folder/object").put(b"x")
        target = provider.open_object("folder")
        assert not target.exists()
        with pytest.raises(ObjectNotFound):
            target.stat()
        with pytest.raises(ObjectNotFound):
            target.read_at(bytearray(1), 0)
        with pytest.raises(ObjectNotFound):
            target.write_to(io.BytesIO())
        target.delete()
        assert paths(provider) == ["folder/object"]

    def test_empty_object(self, provider: StorageProvider) -> None:
        """No bytes are an object too."""
        target = provider.open_object("empty")
        target.put(b"")
        assert target.exists()
        assert target.size() == 0
        assert target.read_at(bytearray(8), 0) == 0
        assert target.read_at(bytearray(0), 0) == 0
        assert content(provider, "empty") == b""
        provider.open_object("streamed").read_from(io.BytesIO())
        assert [(i.path, i.size) for i in provider.list_objects()] == [
            ("empty", 0),
            ("streamed", 0),
        ]

    def test_ranges(self, provider: StorageProvider) -> None:
        """A buffer is filled from anywhere; short only where the object ends."""
        data = hashlib.sha256(b"x").digest() * 1000
        target = provider.open_object("ranges")
        target.put(data)
        size = len(data)
        for offset, length in (
            (0, 1), (0, size), (1, size - 1), (size - 1, 1), (12345, 678), (0, 0), (size, 0),
            (size - 1, 2), (size - 10, 100), (0, size + 1), (size, 1), (size + 1, 1),
            (size + (1 << 20), 4096), (1 << 62, 1), (1 << 63, 1), (1 << 70, 1),
        ):  # fmt: skip
            buffer = bytearray(b"\xee" * length)
            expected = data[offset : offset + length]
            assert target.read_at(buffer, offset) == len(expected)
            assert bytes(buffer[: len(expected)]) == expected
        with pytest.raises(InvalidInput):
            target.read_at(bytearray(1), -1)
        whole = bytearray(10)
        read_exact(target, whole, 5)
        assert bytes(whole) == data[5:15]

    def test_parallel_ranges(self, provider: StorageProvider) -> None:
        """One handle serves many threads."""
        data = b"".join(n.to_bytes(4, "big") for n in range(1 << 16))
        target = provider.open_object("parallel")
        target.put(data)

        def read(number: int) -> bool:
            offset = number * 997 % (len(data) - 5000)
            buffer = bytearray(5000)
            return target.read_at(buffer, offset) == 5000 and buffer == data[offset : offset + 5000]

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(read, range(200)))

    def test_short_reads_are_not_the_end(self, provider: StorageProvider) -> None:
        """A source may give less than it was asked for."""
        source = PatternSource(3_000_001, short=7919)
        target = provider.open_object("short")
        assert target.read_from(source) == 3_000_001
        sink = HashingSink()
        assert target.write_to(sink) == 3_000_001
        assert sink.digest.digest() == source.digest.digest()

    @pytest.mark.timeout(600)
    def test_large_object_in_little_memory(self, provider: StorageProvider) -> None:
        """Memory use does not depend on the size, in either direction."""
        source, sink = PatternSource(self.stream_size), HashingSink()
        target = provider.open_object("large")
        tracemalloc.start()
        try:
            assert target.read_from(source) == self.stream_size
            peak_up = tracemalloc.get_traced_memory()[1]
            tracemalloc.reset_peak()
            assert target.write_to(sink) == self.stream_size
            peak_down = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert sink.count == target.size() == self.stream_size
        assert sink.digest.digest() == source.digest.digest()
        if not self.in_memory:
            assert max(peak_up, peak_down) < self.memory_limit

    @pytest.mark.parametrize("fail_at", [0, 1, 1 << 20, 9 << 20])
    def test_source_that_raises_leaves_nothing(
        self, provider: StorageProvider, fail_at: int
    ) -> None:
        """Its error passes as it is; no object appears, and none is harmed."""
        broken = PatternSource(10 << 20, short=1 << 18, fail_at=fail_at, error=SourceBroke())
        with pytest.raises(SourceBroke):
            provider.open_object("new/object").read_from(broken)
        assert paths(provider) == []
        provider.open_object("old").put(b"kept")
        broken = PatternSource(10 << 20, short=1 << 18, fail_at=fail_at, error=OSError("source"))
        with pytest.raises(OSError, match=r"^source$"):
            provider.open_object("old").read_from(broken)
        assert content(provider, "old") == b"kept"
        assert provider.collect_uploads(timedelta(0)) == 0

    def test_sink_that_raises(self, provider: StorageProvider) -> None:
        """Its error passes as it is, and the object can be read again."""
        provider.open_object("object").put(bytes(3 << 20))
        for room in (0, 1 << 20, (3 << 20) - 1):
            with pytest.raises(SourceBroke):
                provider.open_object("object").write_to(BrokenSink(room, SourceBroke()))
        assert content(provider, "object") == bytes(3 << 20)

    def test_copy(self, provider: StorageProvider) -> None:
        """An object is a source for another."""
        provider.open_object("from").read_from(PatternSource(2_500_000))
        copied = copy_object(provider.open_object("from"), provider.open_object("to"))
        assert copied == 2_500_000
        assert content(provider, "to") == content(provider, "from")

    def test_replaced_while_read(self, provider: StorageProvider) -> None:
        """Readers see the old or the new content, whole; never both, and never nothing."""
        size = 200_000
        target = provider.open_object("replaced")
        target.put(b"\0" * size)
        stop = threading.Event()
        torn: list[str] = []

        def read() -> None:
            while not stop.is_set():
                buffer = bytearray(size)
                count = target.read_at(buffer, 0)
                if count != size or buffer.count(buffer[0]) != size:
                    torn.append(f"{count} bytes, {buffer[:1]!r}")
                if paths(provider) != ["replaced"]:
                    torn.append("not listed")

        with ThreadPoolExecutor(3) as pool:
            readers = [pool.submit(read) for _ in range(3)]
            for number in range(1, 30):
                if number % 2:
                    target.put(bytes([number]) * size)
                else:
                    target.read_from(io.BytesIO(bytes([number]) * size))
            stop.set()
            for reader in readers:
                reader.result()
        assert torn == []

    # -- names --------------------------------------------------------------------------------

    def test_odd_names(self, provider: StorageProvider) -> None:
        """Each is itself: written, read and listed as given, none taken for another."""
        for number, name in enumerate(ODD_NAMES):
            provider.open_object(name).put(str(number).encode())
            provider.open_object(f"below/{name}").put(b"below")
        assert paths(provider, "below") == sorted(
            (f"below/{name}" for name in ODD_NAMES), key=str.encode
        )
        for number, name in enumerate(ODD_NAMES):
            assert content(provider, name) == str(number).encode()
            provider.open_object(name).delete()
        assert provider.delete_objects_with_prefix("below") == len(ODD_NAMES)
        assert paths(provider) == []

    @pytest.mark.parametrize("name", BAD_NAMES, ids=ascii)
    def test_bad_names(self, provider: StorageProvider, name: str) -> None:
        """They are refused before anything happens, for objects and for prefixes."""
        with pytest.raises(InvalidInput):
            provider.open_object(name)
        if name and not name.endswith("/"):
            with pytest.raises(InvalidInput):
                list(provider.list_objects(name))
        if not name.endswith("trailing/"):
            with pytest.raises(InvalidInput):
                provider.delete_objects_with_prefix(name)

    def test_long_names(self, provider: StorageProvider) -> None:
        """As long as the store can; what it cannot is refused, not cut."""
        deep = "d/" * 511 + "ef"
        for name in (
            "x" * self.component_bytes,
            deep,
            "f/" + "ü" * (self.component_bytes // 2 - 1),
        ):
            try:
                target = provider.open_object(name)
            except InvalidInput:
                assert name == deep  # a wrapper's prefix may take a part of the 1024 bytes
                continue
            target.put(b"long")
            assert content(provider, name) == b"long"
            assert name in paths(provider)
            target.delete()
        if self.component_bytes < 1024:
            for name in ("x" * (self.component_bytes + 1), "a/" + "x" * 1000 + "/b"):
                with pytest.raises(InvalidInput):
                    provider.open_object(name)
        assert paths(provider) == []

    def test_object_beside_its_folder(self, provider: StorageProvider) -> None:
        """``a`` and ``a/b`` are both objects, or the second is refused and harms nothing."""
        for first, second in (("one", "one/below/it"), ("two/below/it", "two")):
            provider.open_object(first).put(b"first")
            if self.objects_as_folders:
                provider.open_object(second).put(b"second")
                assert content(provider, second) == b"second"
            else:
                for condition in (False, True):
                    with pytest.raises(InvalidInput):
                        provider.open_object(second).put(b"", if_none_match=condition)
                with pytest.raises(InvalidInput):
                    provider.open_object(second).read_from(io.BytesIO(b"second"))
                with pytest.raises(PreconditionFailed):
                    provider.open_object(second).put(b"", if_match="none")
                assert not provider.open_object(second).exists()
            assert content(provider, first) == b"first"
            provider.open_object(second).delete()
            provider.open_object(first).delete()
            provider.open_object(second).put(b"alone")
            provider.open_object(second).delete()
        assert paths(provider) == []

    # -- listing and deleting by prefix -------------------------------------------------------

    def test_listing(self, provider: StorageProvider) -> None:
        """In the order of the UTF-8 bytes of whole paths; prefixes are whole components."""
        names = ["a-b", "a.b/c", "a/b", "a/b-c", "a0", "ab/c", "b", "é", "～", "\U0001f680"]
        for name in reversed(names):
            provider.open_object(name).put(name.encode())
        assert paths(provider) == sorted(names, key=str.encode) == names
        assert paths(provider, "a") == paths(provider, "a/") == ["a/b", "a/b-c"]
        assert paths(provider, "a/b") == []
        assert paths(provider, "ab") == ["ab/c"]
        assert paths(provider, "missing") == paths(provider, "b/c") == []
        for info in provider.list_objects():
            stat = provider.open_object(info.path).stat()
            assert (info.size, info.etag, info.last_modified) == (
                stat.size,
                stat.etag,
                stat.last_modified,
            )
        assert not isinstance(provider.list_objects(), list), "listings stream"

    @pytest.mark.timeout(600)
    def test_many_objects(self, provider: StorageProvider) -> None:
        """All pages are followed, in order, by listings and deletions."""
        names = [f"many/{n % 7}/{n:06}" for n in range(self.key_count)]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda name: provider.open_object(name).put(b""), names))
        provider.open_object("many-others").put(b"")
        assert paths(provider, "many") == sorted(names)
        inside = [name for name in names if name.startswith("many/3/")]
        assert paths(provider, "many/3") == inside
        assert provider.delete_objects_with_prefix("many/3/") == len(inside)
        assert provider.delete_objects_with_prefix("many") == self.key_count - len(inside)
        assert paths(provider) == ["many-others"]

    def test_listing_while_others_delete(self, provider: StorageProvider) -> None:
        """What goes is no trouble; what stays is there."""
        stays = [f"s/{n:03}" for n in range(0, 300, 3)]
        goes = [f"s/{n:03}" for n in range(300) if n % 3]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda name: provider.open_object(name).put(b""), stays + goes))
        listing = provider.list_objects()
        seen = [next(listing).path]
        for name in goes:
            provider.open_object(name).delete()
        seen += [info.path for info in listing]
        assert set(stays) <= set(seen) <= set(stays + goes)
        assert seen == sorted(seen)

    def test_prefixes_of_each_other(self, provider: StorageProvider) -> None:
        """``abc`` never touches ``abcd/…``, nor an object called ``abc``."""
        for name in ("abc/1", "abc/2/3", "abcd/1", "ab/c"):
            provider.open_object(name).put(b"x")
        if self.objects_as_folders:
            provider.open_object("abc").put(b"x")
        assert provider.delete_objects_with_prefix("abc") == 2
        left = ["ab/c", "abcd/1"]
        if self.objects_as_folders:
            left.insert(1, "abc")
        assert paths(provider) == left

    def test_deleting_twice(self, provider: StorageProvider) -> None:
        """Deleting what is not there succeeds, also where there is nothing at all."""
        provider.open_object("nowhere/at/all").delete()
        assert provider.delete_objects_with_prefix("nowhere") == 0
        target = provider.open_object("a/b")
        target.put(b"x")
        target.delete()
        target.delete()
        assert not target.exists()
        provider.open_object("a/b").put(b"again")
        assert provider.delete_objects_with_prefix("a/") == 1
        assert provider.delete_objects_with_prefix("a/") == 0
        provider.open_object("a").put(b"")
        provider.open_object("a/b").delete()
        assert paths(provider) == ["a"]

    def test_empty_prefix_is_never_deleted(self, provider: StorageProvider) -> None:
        """Nothing spells "everything"."""
        provider.open_object("kept").put(b"x")
        for prefix in ("", "/", ".", "./", "//"):
            with pytest.raises(InvalidInput):
                provider.delete_objects_with_prefix(prefix)
        assert paths(provider) == ["kept"]

    # -- conditions ---------------------------------------------------------------------------

    def test_create_only(self, provider: StorageProvider) -> None:
        """It creates, and never replaces."""
        target = provider.open_object("c/created")
        etag = target.put(b"first", if_none_match=True)
        with pytest.raises(AlreadyExists) as raised:
            target.put(b"second", if_none_match=True)
        assert "c/created" in (raised.value.object or "")
        assert read_small(target, 10) == (b"first", etag)
        target.delete()
        assert target.put(b"third", if_none_match=True) != etag

    def test_replace_what_was_read(self, provider: StorageProvider) -> None:
        """``if_match`` holds for the current etag alone."""
        target = provider.open_object("r/replaced")
        for expected in ("", "missing", "*"):
            with pytest.raises(PreconditionFailed):
                target.put(b"", if_match=expected)
        assert paths(provider) == []
        first = target.put(b"1")
        second = target.put(b"2", if_match=first)
        with pytest.raises(PreconditionFailed) as raised:
            target.put(b"3", if_match=first)
        assert "r/replaced" in (raised.value.object or "")
        assert read_small(target, 10) == (b"2", second)
        target.delete()
        with pytest.raises(PreconditionFailed):
            target.put(b"4", if_match=second)
        assert not target.exists()

    @pytest.mark.parametrize("size", [1, 100_000])
    def test_of_many_creators_one_wins(self, provider: StorageProvider, size: int) -> None:
        """At the same moment, into a folder that is not there yet."""
        for number in range(8):
            path = f"race/{number}/object"
            bodies = [bytes([n]) * size for n in range(8)]
            results = at_once(
                [
                    lambda path=path, body=body: provider.open_object(path).put(  # type: ignore[misc]  # bound now
                        body, if_none_match=True
                    )
                    for body in bodies
                ]
            )
            winners = [n for n, result in enumerate(results) if isinstance(result, str)]
            assert len(winners) == 1, results
            assert sum(isinstance(result, AlreadyExists) for result in results) == 7, results
            found, etag = read_small(provider.open_object(path), size)
            assert found == bodies[winners[0]]
            assert etag == results[winners[0]]

    def test_no_lost_update(self, provider: StorageProvider) -> None:
        """Counting up by read, compare and swap from many threads loses no count."""
        target = provider.open_object("counter")
        target.put(b"0")

        def count_up() -> int:
            done = 0
            while done < 10:
                body, etag = read_small(target, 20)
                try:
                    target.put(str(int(body) + 1).encode(), if_match=etag)
                    done += 1
                except PreconditionFailed:
                    continue
            return done

        assert at_once([count_up] * 4) == [10] * 4
        assert content(provider, "counter") == b"40"

    def test_delete_and_swap_never_both_win(self, provider: StorageProvider) -> None:
        """An object that was deleted is not brought back by a swap that expects it."""
        for number in range(20):
            target = provider.open_object(f"swap/{number}")
            etag = target.put(b"old")
            _, swapped = at_once(
                [target.delete, lambda t=target, e=etag: t.put(b"new", if_match=e)]  # type: ignore[misc]  # bound now
            )
            if isinstance(swapped, PreconditionFailed):
                assert not target.exists()
            else:  # the swap came first, and then the deletion
                assert isinstance(swapped, str)
                assert not target.exists()

    def test_creators_and_deleters(self, provider: StorageProvider) -> None:
        """Emptying a folder disturbs nobody who writes into it at that moment."""

        def write(number: int) -> None:
            for turn in range(15):
                target = provider.open_object(f"busy/folder/{number}")
                target.put(str(turn).encode())
                assert content(provider, target.path) == str(turn).encode()
                target.delete()

        results = at_once([lambda n=n: write(n) for n in range(6)])  # type: ignore[misc]  # bound now
        assert results == [None] * 6
        assert paths(provider) == []

    # -- metadata -----------------------------------------------------------------------------

    def test_etag_changes_with_every_write(self, provider: StorageProvider) -> None:
        """Also for the same bytes, at once, and after a deletion."""
        target = provider.open_object("etag")
        seen = set()
        for turn in range(100):
            seen.add(target.put(b"same"))
            if turn % 3 == 0:
                target.delete()
                seen.add(target.put(b"same"))
        assert len(seen) == 134
        assert target.stat().etag == target.stat().etag
        before = target.stat()
        content(provider, "etag")
        assert target.stat() == before, "reading changes nothing"

    def test_last_modified_and_clock(self, provider: StorageProvider) -> None:
        """Times have a zone, and are the storage's own."""
        before = provider.details().now
        target = provider.open_object("time")
        target.put(b"1")
        first = target.stat().last_modified
        after = provider.details().now
        assert None not in (before.tzinfo, first.tzinfo, after.tzinfo)
        second = timedelta(seconds=1)  # HTTP dates have no fractions
        assert before - second <= first <= after + second
        assert abs(after - datetime.now(UTC)) < self.clock_skew
        target.put(b"2")
        assert target.stat().last_modified >= first
        assert dict(target.stat().metadata) == {}

    def test_details(self, provider: StorageProvider) -> None:
        """A store has a name, the same each time, that tells nothing secret by its form."""
        details = provider.details()
        assert details.create_only is True
        assert "://" in details.identity
        assert "@" not in details.identity
        assert provider.details().identity == details.identity
        assert provider.details().now >= details.now

    def test_nothing_to_collect(self, provider: StorageProvider) -> None:
        """Finished uploads leave nothing, and objects are never collected."""
        target = provider.open_object("a/kept")
        target.read_from(PatternSource(1 << 20))
        target.put(b"replaced")
        assert provider.collect_uploads(timedelta(0), dry_run=True) == 0
        assert provider.collect_uploads(timedelta(0)) == 0
        assert content(provider, "a/kept") == b"replaced"

    def test_upload_in_progress_is_not_collected(self, provider: StorageProvider) -> None:
        """Where a store sees its writers, and by age where it does not."""
        inside, go_on = threading.Event(), threading.Event()

        class Waiting:
            def __init__(self) -> None:
                self.turns = 0

            def read(self, size: int, /) -> bytes:
                del size
                self.turns += 1
                if self.turns == 2:
                    inside.set()
                    assert go_on.wait(20)
                return b"x" * 1000 if self.turns < 3 else b""

        with ThreadPoolExecutor(1) as pool:
            upload = pool.submit(provider.open_object("slow").read_from, Waiting())
            assert inside.wait(20)
            assert provider.collect_uploads(timedelta(hours=1)) == 0
            assert paths(provider) == []
            go_on.set()
            assert upload.result() == 2000
        assert content(provider, "slow") == b"x" * 2000
