"""The part of the storage conformance suite about names: paths, listings, prefixes."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor

import pytest

from bootstream.errors import (
    InvalidInput,
    PreconditionFailed,
)
from bootstream.storage.protocol import StorageProvider
from bootstream.testing.storagekit import (
    BAD_NAMES,
    ODD_NAMES,
    StorageSuite,
    content,
    paths,
)


class NamesConformance(StorageSuite):
    """Every name is itself, listings are whole and in order, deletions go no further."""

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
