"""The part of the storage conformance suite about bytes: reading and writing objects."""

from __future__ import annotations

import hashlib
import io
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from bootstream.errors import (
    Corrupt,
    InvalidInput,
    NotFound,
    ObjectNotFound,
)
from bootstream.storage.objects import ObjectReader, copy_object, read_exact
from bootstream.storage.protocol import ReadableBuffer, StorageProvider
from bootstream.testing.storagekit import (
    BrokenSink,
    HashingSink,
    PatternSource,
    SourceBroke,
    StorageSuite,
    content,
    paths,
)


class ContentConformance(StorageSuite):
    """Objects give back what was put into them, whole, by every way in and out."""

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
        assert target.get(len(data)) == (data, etag)
        assert target.exists()
        assert target.size() == len(data)
        assert [(i.path, i.size, i.etag) for i in provider.list_objects()] == [
            ("a/b/object", len(data), etag)
        ]

    def test_get(self, provider: StorageProvider) -> None:
        """A small object comes whole, with its etag; a larger one than was allowed does not."""
        target = provider.open_object("small/object")
        with pytest.raises(ObjectNotFound):
            target.get(10)
        for data in (b"", b"0123456789"):
            etag = target.put(data)
            assert target.get(10) == (data, etag)
            assert target.get(1 << 20) == (data, etag)
        with pytest.raises(Corrupt, match="10 bytes"):
            target.get(9)

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
