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

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from bootstream.errors import (
    AlreadyExists,
    BucketNotFound,
    PreconditionFailed,
)
from bootstream.storage.protocol import StorageProvider
from bootstream.testing.storagecontent import ContentConformance
from bootstream.testing.storagekit import (
    BrokenSink,
    HashingSink,
    PatternSource,
    SourceBroke,
    at_once,
    content,
    paths,
)
from bootstream.testing.storagemetadata import MetadataConformance
from bootstream.testing.storagenames import NamesConformance

__all__ = [
    "BrokenSink",
    "HashingSink",
    "PatternSource",
    "SourceBroke",
    "StorageConformance",
    "at_once",
    "content",
    "paths",
]


class StorageConformance(ContentConformance, NamesConformance, MetadataConformance):
    """All of it: bytes, names, metadata and copies, and here conditions, etags and times."""

    # -- conditions ---------------------------------------------------------------------------

    def test_create_only(self, provider: StorageProvider) -> None:
        """It creates, and never replaces."""
        target = provider.open_object("c/created")
        etag = target.put(b"first", if_none_match=True)
        with pytest.raises(AlreadyExists) as raised:
            target.put(b"second", if_none_match=True)
        assert "c/created" in (raised.value.object or "")
        assert target.get(10) == (b"first", etag)
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
        assert target.get(10) == (b"2", second)
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
            found, etag = provider.open_object(path).get(size)
            assert found == bodies[winners[0]]
            assert etag == results[winners[0]]

    def test_no_lost_update(self, provider: StorageProvider) -> None:
        """Counting up by read, compare and swap from many threads loses no count."""
        target = provider.open_object("counter")
        target.put(b"0")

        def count_up() -> int:
            done = 0
            while done < 10:
                body, etag = target.get(20)
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

    # -- etags and times ------------------------------------------------------------------------

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

    def test_missing_bucket(self, request: pytest.FixtureRequest) -> None:
        """That the bucket is missing is another error than that an object is."""
        if not self.has_bucket:
            provider: StorageProvider = request.getfixturevalue("provider")
            assert provider.details().provider
            assert paths(provider) == []
            return
        lost: StorageProvider = request.getfixturevalue("lost")
        target = lost.open_object("a/b")
        for use in (
            lost.details,
            lambda: paths(lost),
            lambda: lost.delete_objects_with_prefix("a"),
            lambda: target.put(b"x"),
            lambda: target.put(b"x", if_none_match=True),
            lambda: target.put(b"x", if_match="etag"),
            lambda: target.read_from(PatternSource(10)),
            lambda: target.read_at(bytearray(1), 0),
            lambda: target.write_to(HashingSink()),
            lambda: lost.copy_object("a/b", "a/c"),
            target.stat,
            target.exists,
            target.delete,
        ):
            with pytest.raises(BucketNotFound):
                use()
