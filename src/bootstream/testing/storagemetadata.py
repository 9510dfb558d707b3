"""The part of the storage conformance suite about metadata, and copies within a store."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from bootstream.errors import InvalidInput, ObjectNotFound, PreconditionFailed
from bootstream.storage.protocol import StorageProvider
from bootstream.testing.storagekit import PatternSource, StorageSuite, at_once, content, paths

METADATA = {
    "content-sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "k": "v",
    "a-b-c0": "printable ~!@#$%^&*()_+-={}[]|\\:\";'<>?,./` and spaces",
    "percent": "%20%2F+",
    "x" * 64: "=",
}

BAD_METADATA: tuple[dict[str, str], ...] = (
    {"": "v"},
    {"Upper": "v"},
    {"under_score": "v"},
    {"with space": "v"},
    {"colon:": "v"},
    {"0digit": "v"},
    {"-": "v"},
    {"é": "v"},
    {"x" * 65: "v"},
    {"line\n": "v"},
    {"k": ""},
    {"k": " leading"},
    {"k": "trailing "},
    {"k": "line\r\nX-Injected: 1"},
    {"k": "nul\0"},
    {"k": "grüße"},
    {"k": "v" * 2048},
    {f"k{n}": "v" for n in range(65)},
)


class MetadataConformance(StorageSuite):
    """Metadata comes back as it was given, and copies are the same but for their name."""

    def test_metadata_of_every_way_in(self, provider: StorageProvider, tmp_path: Path) -> None:
        """It is there after each kind of writing, or refused where a store has none."""
        source = tmp_path / "file"
        source.write_bytes(b"from a file")
        target = provider.open_object("m/object")
        writes = (
            lambda: target.put(b"put", metadata=METADATA),
            lambda: target.read_from(io.BytesIO(b"streamed"), metadata=METADATA),
            lambda: target.write_from_file_system(source, metadata=METADATA),
        )
        for write in writes:
            if not self.has_metadata:
                with pytest.raises(InvalidInput):
                    write()
                assert paths(provider) == []
                continue
            write()
            assert dict(target.stat().metadata) == METADATA
            target.delete()

    def test_metadata_is_replaced_with_the_object(self, provider: StorageProvider) -> None:
        """A later write without any leaves none; a refused one changes nothing."""
        if not self.has_metadata:
            return
        target = provider.open_object("m/replaced")
        etag = target.put(b"1", metadata={"number": "1"}, if_none_match=True)
        with pytest.raises(PreconditionFailed):
            target.put(b"2", metadata={"number": "2"}, if_match="other")
        assert dict(target.stat().metadata) == {"number": "1"}
        target.put(b"3", metadata={"other": "3"}, if_match=etag)
        assert dict(target.stat().metadata) == {"other": "3"}
        target.put(b"4")
        assert dict(target.stat().metadata) == {}
        target.put(b"5", metadata={})
        assert dict(target.stat().metadata) == {}

    def test_metadata_of_a_large_object(self, provider: StorageProvider) -> None:
        """Also of one that goes up in parts."""
        if not self.has_metadata:
            return
        target = provider.open_object("m/large")
        target.read_from(PatternSource(min(self.stream_size, 40 << 20)), metadata=METADATA)
        assert dict(target.stat().metadata) == METADATA

    @pytest.mark.parametrize("metadata", BAD_METADATA, ids=lambda value: ascii(value)[:20])
    def test_bad_metadata(
        self, provider: StorageProvider, metadata: dict[str, str], tmp_path: Path
    ) -> None:
        """It is refused before anything is read or written."""
        source = tmp_path / "file"
        source.write_bytes(b"")
        target = provider.open_object("m/bad")
        stream = io.BytesIO(b"never read")
        for write in (
            lambda: target.put(b"", metadata=metadata),
            lambda: target.read_from(stream, metadata=metadata),
            lambda: target.write_from_file_system(source, metadata=metadata),
        ):
            with pytest.raises(InvalidInput):
                write()
        assert stream.tell() == 0
        assert paths(provider) == []

    # -- copies -------------------------------------------------------------------------------

    def test_copy_keeps_metadata(self, provider: StorageProvider) -> None:
        """Bytes and metadata are the same; the source stays, and later has its own life."""
        metadata = {"kept": "yes"} if self.has_metadata else None
        source = provider.open_object("from/it")
        source.put(b"content", metadata=metadata)
        provider.copy_object("from/it", "to/a new place")
        copy = provider.open_object("to/a new place")
        assert content(provider, "to/a new place") == b"content"
        assert dict(copy.stat().metadata) == (metadata or {})
        source.put(b"changed")
        assert content(provider, "to/a new place") == b"content"
        before = copy.stat().etag
        provider.copy_object("from/it", "to/a new place")
        assert content(provider, "to/a new place") == b"changed"
        assert copy.stat().etag != before
        assert dict(copy.stat().metadata) == {}
        source.delete()
        assert paths(provider) == ["to/a new place"]

    def test_copy_of_nothing(self, provider: StorageProvider) -> None:
        """A missing source is named, and the target stays; an empty object is no nothing."""
        provider.open_object("kept").put(b"kept")
        for missing in ("missing", "kept-not", "folder/missing"):
            with pytest.raises(ObjectNotFound) as raised:
                provider.copy_object(missing, "kept")
            assert missing in str(raised.value)
        assert content(provider, "kept") == b"kept"
        provider.open_object("empty").put(b"")
        provider.copy_object("empty", "kept")
        assert content(provider, "kept") == b""

    def test_copy_of_a_large_object(self, provider: StorageProvider) -> None:
        """All of it, also where the store cannot do it in one piece."""
        upload = PatternSource(min(self.stream_size, 64 << 20) + 1)
        size = provider.open_object("large").read_from(upload)
        provider.copy_object("large", "large copy")
        copy = provider.open_object("large copy")
        assert copy.size() == size
        assert content(provider, "large copy") == content(provider, "large")

    def test_copy_with_odd_names(self, provider: StorageProvider) -> None:
        """What has a meaning in URLs has none in a name."""
        names = ["a b", "a%20b", "a+b&c=d", "q?m#h", "grüße/日本語", "emoji-🚀"]
        for number, name in enumerate(names):
            provider.open_object(name).put(str(number).encode())
            provider.copy_object(name, f"copy/{name}")
        for number, name in enumerate(names):
            assert content(provider, f"copy/{name}") == str(number).encode()

    @pytest.mark.parametrize(
        ("source", "target"), [("a", "a"), ("a", ""), ("", "a"), ("a", "../b"), ("/a", "b")]
    )
    def test_copy_that_cannot_be(self, provider: StorageProvider, source: str, target: str) -> None:
        """Onto itself, or with a name that is none: refused."""
        provider.open_object("a").put(b"a")
        with pytest.raises(InvalidInput):
            provider.copy_object(source, target)
        assert paths(provider) == ["a"]

    def test_copies_at_once(self, provider: StorageProvider) -> None:
        """Many to one name: it is one of them, whole."""
        bodies = [bytes([n]) * 50_000 for n in range(4)]
        for number, body in enumerate(bodies):
            provider.open_object(f"from/{number}").put(body)
        results = at_once(
            [lambda n=n: provider.copy_object(f"from/{n}", "to") for n in range(4)]  # type: ignore[misc]  # bound now
        )
        assert results == [None] * 4
        assert content(provider, "to") in bodies
