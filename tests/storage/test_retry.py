"""What the retry wrapper repeats, how often, and what it never does twice."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from bootstream.errors import (
    AlreadyExists,
    BootstreamError,
    Corrupt,
    InvalidInput,
    ObjectNotFound,
    OutcomeUnknown,
    PermissionDenied,
    PreconditionFailed,
    StorageFull,
    Throttled,
    Unavailable,
)
from bootstream.storage.faults import (
    Cuts,
    Fails,
    Fault,
    FaultStorageProvider,
)
from bootstream.storage.memory import MemoryStorageProvider
from bootstream.storage.objects import copy_object
from bootstream.storage.protocol import StorageProvider
from bootstream.storage.retry import RetryPolicy, RetryStorageProvider
from bootstream.testing.storage import BrokenSink, HashingSink, PatternSource, content, paths

LOST = Fails(Unavailable, after=True)


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def inner() -> MemoryStorageProvider:
    return MemoryStorageProvider()


@pytest.fixture
def faulty(inner: MemoryStorageProvider) -> FaultStorageProvider:
    return FaultStorageProvider(inner, sleep=lambda _seconds: None)


def retry(inner: StorageProvider, time: Time, **policy: float) -> RetryStorageProvider:
    return RetryStorageProvider(
        inner,
        RetryPolicy(**policy),  # type: ignore[arg-type]  # attempts is whole in every test
        sleep=time.sleep,
        clock=lambda: time.now,
        rng=random.Random(3),
    )


@pytest.fixture
def store(faulty: FaultStorageProvider, time: Time) -> RetryStorageProvider:
    return retry(faulty, time)


def operations(store: StorageProvider, tmp_path: Path) -> Iterator[Callable[[], object]]:
    """Everything that is repeated, each on an object that exists."""
    target = store.open_object("a/b")
    file = tmp_path / "file"
    file.write_bytes(b"data")
    yield lambda: target.put(b"data")
    yield lambda: store.open_object("a/new").put(b"data", if_none_match=True)
    yield lambda: target.read_from(io.BytesIO(b"data"))
    yield lambda: target.write_from_file_system(file)
    yield lambda: target.write_to(io.BytesIO())
    yield lambda: target.read_at(bytearray(4), 0)
    yield target.stat
    yield target.size
    yield target.exists
    yield lambda: paths(store)
    yield store.details
    yield lambda: store.collect_uploads(timedelta(0))
    yield target.delete
    yield lambda: store.delete_objects_with_prefix("a")


@pytest.mark.parametrize("error", [Unavailable, Throttled])
def test_transient_errors_are_repeated(
    faulty: FaultStorageProvider,
    store: RetryStorageProvider,
    tmp_path: Path,
    error: type[BootstreamError],
) -> None:
    """Two in a row are not seen from above, whatever the operation."""
    store.open_object("a/b").put(b"data")
    for number, call in enumerate(operations(store, tmp_path)):
        faulty.clear()
        faulty.add(Fault(Fails(error), count=2))
        struck = faulty.struck
        call()
        assert faulty.struck == struck + 2, number


@pytest.mark.parametrize("error", [PermissionDenied, StorageFull, Corrupt, ObjectNotFound])
def test_other_errors_are_not(
    faulty: FaultStorageProvider,
    store: RetryStorageProvider,
    time: Time,
    tmp_path: Path,
    error: type[BootstreamError],
) -> None:
    """What waiting does not mend is raised at once."""
    store.open_object("a/b").put(b"data")
    for number, call in enumerate(operations(store, tmp_path)):
        faulty.clear()
        faulty.add(Fault(Fails(error)))
        struck = faulty.struck
        with pytest.raises(error):
            call()
        assert faulty.struck == struck + 1, number
    assert time.slept == []


def test_attempts_are_counted(faulty: FaultStorageProvider, time: Time) -> None:
    """The last error is raised, and says how often it was tried."""
    faulty.add(Fault(Fails(Unavailable)))
    store = retry(faulty, time, attempts=4)
    with pytest.raises(Unavailable) as raised:
        store.open_object("a").stat()
    assert faulty.struck == 4
    assert len(time.slept) == 3
    assert raised.value.__notes__ == ["given up after 4 attempts"]


def test_waits_are_random_and_bounded(faulty: FaultStorageProvider, time: Time) -> None:
    """Full jitter below a bound that doubles."""
    faulty.add(Fault(Fails(Unavailable)))
    store = retry(faulty, time, attempts=2000, total=1e9, first_wait=1.0, longest_wait=8.0)
    with pytest.raises(Unavailable):
        store.open_object("a").stat()
    assert all(0 <= wait <= min(8.0, 2.0 ** min(n, 9)) for n, wait in enumerate(time.slept))
    late = time.slept[5:]
    assert min(late) < 0.1
    assert max(late) > 7.9
    assert 3.7 < sum(late) / len(late) < 4.3


def test_time_runs_out(faulty: FaultStorageProvider, time: Time) -> None:
    """No attempt begins after the total, which the first failure begins."""
    faulty.add(Fault(Fails(Unavailable)))
    store = retry(faulty, time, attempts=10_000, total=30.0, first_wait=4.0)
    with pytest.raises(Unavailable):
        store.open_object("a").stat()
    assert 10 < sum(time.slept) <= 30
    faulty.clear()
    faulty.add(Fault(LOST, operations=frozenset({"read_from"}), count=1))

    class Slow(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            time.now += 1000
            return super().read(size)

    assert store.open_object("slow").read_from(Slow(b"x" * 10)) == 10


def test_retry_after_is_honoured(faulty: FaultStorageProvider, time: Time) -> None:
    """Not earlier than the server said; and not at all where that is too late."""
    faulty.add(Fault(Fails(lambda: Throttled("slow down", retry_after=7.0)), count=3))
    retry(faulty, time).details()
    assert [7.0 <= wait <= 7.5 for wait in time.slept] == [True] * 3
    faulty.clear()
    time.slept.clear()
    faulty.add(Fault(Fails(lambda: Throttled("slow down", retry_after=61.0))))
    with pytest.raises(Throttled):
        retry(faulty, time).details()
    assert time.slept == []


def test_stopping_while_waiting(faulty: FaultStorageProvider) -> None:
    """What the sleep raises passes."""

    def stop(_seconds: float) -> None:
        raise KeyboardInterrupt

    faulty.add(Fault(Fails(Unavailable)))
    with pytest.raises(KeyboardInterrupt):
        RetryStorageProvider(faulty, sleep=stop).details()


def test_lost_answer_of_a_creation(
    faulty: FaultStorageProvider, store: RetryStorageProvider
) -> None:
    """Having created it oneself, without hearing of it, is a success."""
    faulty.add(Fault(LOST, operations=frozenset({"put"}), count=1))
    target = store.open_object("created")
    etag = target.put(memoryview(b"mine 123").cast("I"), if_none_match=True)
    assert etag == target.stat().etag
    assert faulty.struck == 1


def test_lost_answer_of_a_swap(faulty: FaultStorageProvider, store: RetryStorageProvider) -> None:
    """The same for a replacement."""
    target = store.open_object("swapped")
    before = target.put(b"old")
    faulty.add(Fault(LOST, operations=frozenset({"put"}), count=2))
    etag = target.put(b"new", if_match=before)
    assert target.get(10) == (b"new", etag)
    assert etag != before


@pytest.mark.parametrize("theirs", [b"theirs", b"longer than ours", b""])
def test_somebody_else_was_first(
    inner: MemoryStorageProvider,
    faulty: FaultStorageProvider,
    store: RetryStorageProvider,
    theirs: bytes,
) -> None:
    """Other bytes are another's: the refusal stands, as it does without any trouble."""
    target = store.open_object("object")
    before = target.put(b"old")
    inner.open_object("object").put(theirs)
    for lost in (False, True):
        for condition in ({"if_none_match": True}, {"if_match": before}):
            faulty.clear()
            if lost:
                faulty.add(Fault(Fails(Unavailable), operations=frozenset({"put"}), count=1))
            with pytest.raises((AlreadyExists, PreconditionFailed)):
                target.put(b"mine!!", **condition)
    assert content(inner, "object") == theirs


def test_a_swap_that_may_have_been_replaced_says_so(
    inner: MemoryStorageProvider, faulty: FaultStorageProvider, store: RetryStorageProvider
) -> None:
    """Its answer was lost, and then somebody wrote: nobody can say whether it was applied."""
    target = store.open_object("object")
    before = target.put(b"old")
    for applied in (LOST, Fails(Unavailable)):
        inner.open_object("object").put(b"theirs")
        stale = before if applied is not LOST else inner.open_object("object").stat().etag
        faulty.clear()
        faulty.add(Fault(applied, operations=frozenset({"put"}), count=1))
        overwrite = inner.open_object("object")
        meddling = RetryStorageProvider(faulty, sleep=lambda _, o=overwrite: o.put(b"later"))  # type: ignore[misc]  # bound now
        with pytest.raises(OutcomeUnknown, match="not known") as raised:
            meddling.open_object("object").put(b"mine", if_match=stale)
        assert raised.value.remedy is not None
        assert content(inner, "object") == b"later"


def test_same_bytes_of_somebody_else(
    inner: MemoryStorageProvider, faulty: FaultStorageProvider, store: RetryStorageProvider
) -> None:
    """Nothing of ours was lost: then even equal bytes are another's."""
    inner.open_object("object").put(b"same")
    with pytest.raises(AlreadyExists):
        store.open_object("object").put(b"same", if_none_match=True)
    faulty.add(Fault(Fails(Throttled), operations=frozenset({"put"}), count=1))
    with pytest.raises(AlreadyExists):
        store.open_object("object").put(b"same", if_none_match=True)


def test_listing_goes_on(
    inner: MemoryStorageProvider, faulty: FaultStorageProvider, store: RetryStorageProvider
) -> None:
    """After an error, from the last name; every name once, however often it breaks."""
    names = [f"n/{n:03}" for n in range(100)]
    for name in names:
        inner.open_object(name).put(b"")
    for number in range(20):
        cut = Cuts(at=1 + number * 5)
        faulty.add(Fault(cut, operations=frozenset({"list"}), skip=number, count=1))
    assert paths(store, "n") == names
    assert faulty.struck == 20, "more than an operation may fail that makes no progress"
    faulty.add(Fault(Cuts(at=50), operations=frozenset({"list"})))
    with pytest.raises(Unavailable):  # without progress the attempts run out
        paths(store, "n")


def test_download_goes_on(
    inner: MemoryStorageProvider, faulty: FaultStorageProvider, store: RetryStorageProvider
) -> None:
    """From the byte it reached; nothing comes twice."""
    source = PatternSource(20_000_000)
    inner.open_object("large").read_from(source)
    faulty.add(Fault(Cuts(at=7_654_321), operations=frozenset({"write_to"}), count=1))
    faulty.add(Fault(Cuts(), operations=frozenset({"read_at"}), count=3))
    sink = HashingSink()
    assert store.open_object("large").write_to(sink) == sink.count == 20_000_000
    assert sink.digest.digest() == source.digest.digest()
    assert faulty.struck == 4


def test_download_of_what_was_replaced(
    inner: MemoryStorageProvider, faulty: FaultStorageProvider, store: RetryStorageProvider
) -> None:
    """The rest of another version is never appended."""
    inner.open_object("large").put(b"a" * (3 << 20))
    faulty.add(Fault(Cuts(at=1 << 20), operations=frozenset({"write_to"})))

    class Replacing(HashingSink):
        def write(self, data: memoryview, /) -> None:
            super().write(data)
            inner.open_object("large").put(b"b" * (3 << 20))

    sink = Replacing()
    with pytest.raises(Unavailable):
        store.open_object("large").write_to(sink)
    assert sink.count == 1 << 20


def test_errors_of_sinks_and_sources_are_their_own(store: RetryStorageProvider, time: Time) -> None:
    """They are not repeated, even where they call themselves transient."""
    store.open_object("object").put(bytes(3 << 20))
    with pytest.raises(Unavailable, match="sink"):
        store.open_object("object").write_to(BrokenSink(1 << 20, Unavailable("sink")))

    class Source(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise Unavailable("source")

    with pytest.raises(Unavailable, match="source"):
        store.open_object("object").read_from(Source())
    assert time.slept == []


def test_uploads_rewind(faulty: FaultStorageProvider, store: RetryStorageProvider) -> None:
    """To where the source stood; what cannot be rewound is not sent twice."""
    lost = Fault(LOST, operations=frozenset({"read_from"}), count=2)
    faulty.add(lost)
    source = io.BytesIO(b"header and body")
    source.seek(7)
    assert store.open_object("rewound").read_from(source) == 8
    assert content(store, "rewound") == b"and body"
    faulty.add(lost)
    assert copy_object(store.open_object("rewound"), store.open_object("copy")) == 8
    assert content(store, "copy") == b"and body"
    faulty.add(lost)
    with pytest.raises(Unavailable):
        store.open_object("once").read_from(PatternSource(10))


def test_wrong_names_are_refused_at_once(store: RetryStorageProvider) -> None:
    """A listing does not wait for its first item to be told of a bad prefix."""
    with pytest.raises(InvalidInput):
        store.list_objects("../x")
    with pytest.raises(InvalidInput):
        store.open_object("../x")
    with pytest.raises(InvalidInput):
        store.signed_upload_url("x", timedelta(hours=1))
