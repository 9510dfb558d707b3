"""The providers over obstore against real servers, by the one suite of all stores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import ClassVar
from uuid import uuid4

import pytest

from bootstream.errors import BootstreamError, InvalidInput, ObjectNotFound, PermissionDenied
from bootstream.storage.aws import AWSBucketStorageProvider
from bootstream.storage.azure import AzureBlobStorageProvider
from bootstream.storage.gcp import GCPBucketStorageProvider
from bootstream.storage.protocol import StorageProvider
from bootstream.storage.retry import RetryStorageProvider
from bootstream.testing import storagenames
from bootstream.testing.servers import Azurite, GoogleServer, Moto, Nanio
from bootstream.testing.storage import StorageConformance, at_once, content, paths
from bootstream.testing.storagekit import ODD_NAMES


class CloudConformance(StorageConformance):
    """What these servers can do in the time that a test may take."""

    stream_size: ClassVar[int] = 18 << 20
    key_count: ClassVar[int] = 1030


class EtagOfContent:
    """For stores whose etag is a digest of the content: the same bytes, the same etag."""

    def test_etag_changes_with_every_write(self, provider: StorageProvider) -> None:
        """With every write of other bytes: a condition then holds for the same content."""
        target = provider.open_object("etag")
        seen = [target.put(str(turn).encode()) for turn in range(20)]
        assert len(set(seen)) == 20
        again = target.put(b"0")
        assert again == seen[0] == target.stat().etag
        before = target.stat()
        content(provider, "etag")
        assert target.stat() == before, "reading changes nothing"


@pytest.fixture(scope="module")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Moto]:
    with Moto(tmp_path_factory.mktemp("moto")) as server:
        yield server


@pytest.fixture(scope="module")
def nanio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nanio]:
    with Nanio(tmp_path_factory.mktemp("nanio")) as server:
        yield server


@pytest.fixture(scope="module")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azurite]:
    with Azurite(tmp_path_factory.mktemp("azurite")) as server:
        yield server


@pytest.fixture(scope="module")
def google(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GoogleServer]:
    with GoogleServer(tmp_path_factory.mktemp("google")) as server:
        yield server


def fresh() -> str:
    return f"bucket-{uuid4().hex[:12]}"


def over_s3(server: Moto | Nanio, bucket: str) -> AWSBucketStorageProvider:
    return AWSBucketStorageProvider(
        bucket,
        endpoint=server.url,
        access_key=server.keys.access_key,
        secret_key=server.keys.secret_key,
    )


class TestMoto(EtagOfContent, CloudConformance):
    """S3 by moto, under the retry wrapper: it answers some requests at once with 500."""

    @pytest.fixture
    def provider(self, moto: Moto) -> StorageProvider:
        return RetryStorageProvider(over_s3(moto, moto.create_bucket(fresh())))

    @pytest.fixture
    def lost(self, moto: Moto) -> StorageProvider:
        return over_s3(moto, fresh())


class TestAzurite(CloudConformance):
    """Azure Blob Storage by Azurite."""

    @pytest.fixture
    def provider(self, azurite: Azurite) -> StorageProvider:
        return self.over(azurite, azurite.create_bucket(fresh()))

    @pytest.fixture
    def lost(self, azurite: Azurite) -> StorageProvider:
        return self.over(azurite, fresh())

    def over(self, azurite: Azurite, bucket: str) -> StorageProvider:
        return AzureBlobStorageProvider(
            bucket,
            account=azurite.account,
            account_key=azurite.account_key,
            endpoint=azurite.endpoint,
        )

    @pytest.fixture(autouse=True)
    def _no_backslash(self, monkeypatch: pytest.MonkeyPatch) -> None:
        names = tuple(name for name in ODD_NAMES if "\\" not in name)
        monkeypatch.setattr(storagenames, "ODD_NAMES", names)

    def test_odd_names(self, provider: StorageProvider) -> None:
        """All but those with a backslash, which Azure takes for a slash: refused, not changed."""
        with pytest.raises(InvalidInput):
            provider.open_object("back\\slash")
        super().test_odd_names(provider)


class TestGoogle(EtagOfContent, CloudConformance):
    """Google Cloud Storage by a stand-in with its preconditions."""

    @pytest.fixture
    def provider(self, google: GoogleServer) -> StorageProvider:
        return self.over(google, google.create_bucket(fresh()))

    @pytest.fixture
    def lost(self, google: GoogleServer) -> StorageProvider:
        return self.over(google, fresh())

    def over(self, google: GoogleServer, bucket: str) -> StorageProvider:
        return GCPBucketStorageProvider(bucket, endpoint=google.url, anonymous=True)


class TestNanio(EtagOfContent, CloudConformance):
    """S3 by nanio, which checks signatures, but keeps objects as files and no conditions.

    Where it cannot do what a bucket does, the promise is that nobody is deceived.
    """

    @pytest.fixture
    def provider(self, nanio: Nanio) -> StorageProvider:
        return over_s3(nanio, nanio.create_bucket(fresh()))

    @pytest.fixture
    def lost(self, nanio: Nanio) -> StorageProvider:
        return over_s3(nanio, fresh())

    def refused(self, provider: StorageProvider) -> None:
        """Conditional writes are not made without their condition; others work."""
        target = provider.open_object("c/conditional")
        with pytest.raises(InvalidInput, match="ignores the conditions"):
            target.put(b"first", if_none_match=True)
        assert paths(provider) == [], "the probe is gone, too"
        etag = target.put(b"plain", metadata={"number": "1"})
        attempts: tuple[Callable[[], str], ...] = (
            lambda: target.put(b"second", if_none_match=True),
            lambda: target.put(b"second", if_match=etag),
            lambda: target.put(b"second", if_match="other", metadata={"number": "2"}),
        )
        for attempt in attempts:
            with pytest.raises(InvalidInput, match="ignores the conditions"):
                attempt()
        assert content(provider, target.path) == b"plain"
        assert dict(target.stat().metadata) == {"number": "1"}

    def test_details(self, provider: StorageProvider) -> None:
        """It is known that conditions do not hold, which refuses it for publishing."""
        assert provider.details().create_only is False
        assert provider.details().now >= provider.details().now - timedelta(seconds=2)
        assert paths(provider) == []

    def test_create_only(self, provider: StorageProvider) -> None:
        """Refused."""
        self.refused(provider)

    def test_replace_what_was_read(self, provider: StorageProvider) -> None:
        """Refused, also when it would not hold."""
        with pytest.raises(InvalidInput):
            provider.open_object("r").put(b"", if_match="missing")
        self.refused(provider)

    @pytest.mark.parametrize("size", [1, 100_000])
    def test_of_many_creators_one_wins(self, provider: StorageProvider, size: int) -> None:
        """None wins."""
        results = at_once(
            [lambda: provider.open_object("o").put(bytes(size), if_none_match=True)] * 4
        )
        assert all(isinstance(result, InvalidInput) for result in results), results
        assert paths(provider) == []

    def test_no_lost_update(self, provider: StorageProvider) -> None:
        """No update is made that could be lost."""
        self.refused(provider)

    def test_delete_and_swap_never_both_win(self, provider: StorageProvider) -> None:
        """A swap that expects what is gone is refused."""
        target = provider.open_object("swap")
        etag = target.put(b"old")
        target.delete()
        with pytest.raises(InvalidInput):
            target.put(b"new", if_match=etag)
        assert not target.exists()

    def test_metadata_is_replaced_with_the_object(self, provider: StorageProvider) -> None:
        """By plain writes."""
        target = provider.open_object("m/replaced")
        target.put(b"1", metadata={"number": "1"})
        target.put(b"2", metadata={"other": "2"})
        assert dict(target.stat().metadata) == {"other": "2"}
        target.put(b"3")
        assert dict(target.stat().metadata) == {}

    def test_odd_names(self, provider: StorageProvider) -> None:
        """It misreads a percent sign in a signed name: refused, and taken for no other."""
        for name in ODD_NAMES:
            target = provider.open_object(f"odd/{name}")
            try:
                target.put(name.encode())
            except PermissionDenied:
                assert "%" in name
                continue
            assert content(provider, target.path) == name.encode()
        readable = [path for path in paths(provider, "odd") if "%" not in path]
        assert readable == sorted(
            (f"odd/{name}" for name in ODD_NAMES if "%" not in name), key=str.encode
        )

    def test_copy_with_odd_names(self, provider: StorageProvider) -> None:
        """As far as its signatures go."""
        for number, name in enumerate(["a b", "a+b&c=d", "q?m#h", "grüße/日本語"]):
            provider.open_object(name).put(str(number).encode())
            provider.copy_object(name, f"copy/{name}")
            assert content(provider, f"copy/{name}") == str(number).encode()

    def test_long_names(self, provider: StorageProvider) -> None:
        """Those of a file work; of others it says nothing good, and keeps a part in a name."""
        fine = provider.open_object("d/" + "x" * 200)
        fine.put(b"long")
        assert content(provider, fine.path) == b"long"
        with pytest.raises(BootstreamError):
            provider.open_object("x" * 1024).put(b"")
        # It drops the connection afterwards, which the next request may find out.
        left = paths(RetryStorageProvider(provider))
        assert [path for path in left if not path.startswith(".tmp.")] == [fine.path]

    def test_object_beside_its_folder(self, provider: StorageProvider) -> None:
        """Refused, and what is there stays."""
        for first, second in (("one", "one/below/it"), ("two/below/it", "two")):
            provider.open_object(first).put(b"first")
            with pytest.raises(BootstreamError):
                provider.open_object(second).put(b"second")
            assert content(RetryStorageProvider(provider), first) == b"first"

    def test_prefixes_of_each_other(self, provider: StorageProvider) -> None:
        """``abc`` never touches ``abcd/…``."""
        for name in ("abc/1", "abc/2/3", "abcd/1", "ab/c"):
            provider.open_object(name).put(b"x")
        assert provider.delete_objects_with_prefix("abc") == 2
        assert paths(provider) == ["ab/c", "abcd/1"]

    def test_deleting_twice(self, provider: StorageProvider) -> None:
        """Deleting what is not there succeeds."""
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

    def test_folder_is_no_object(self, provider: StorageProvider) -> None:
        """What is only a prefix of names does not exist itself."""
        provider.open_object("folder/object").put(b"x")
        target = provider.open_object("folder")
        assert not target.exists()
        with pytest.raises(ObjectNotFound):
            target.read_at(bytearray(1), 0)
        assert paths(provider) == ["folder/object"]

    def test_replaced_while_read(self, provider: StorageProvider) -> None:
        """Reads are whole; its listings may miss what is being replaced."""
        target, size = provider.open_object("replaced"), 200_000
        target.put(b"\0" * size)

        def read() -> set[int]:
            buffer = bytearray(size)
            assert target.read_at(buffer, 0) == size
            return set(buffer)

        def write() -> None:
            for number in range(1, 20):
                target.put(bytes([number]) * size)

        def many() -> int:
            return max(len(read()) for _ in range(30))

        assert at_once([many, many, write]) == [1, 1, None]
