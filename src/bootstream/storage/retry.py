"""The one layer that repeats requests.

Only errors that say ``transient`` are repeated, only while attempts and time last, and only
what is safe to repeat:

- Reading is: ``read_at``, ``stat``, listings (which go on after the last name that was
  seen), downloads (which go on at the byte they reached, while the etag stays).
- Deleting and plain writing are: between the first attempt and the last they have no order
  towards other writers anyway.
- A conditional write whose answer was lost may find its own work: ``AlreadyExists`` because
  it created the object itself. So when such a refusal follows an attempt whose outcome is
  unknown, the object is read back, and is ours if it has our bytes. Whoever relies on
  being the only one therefore writes bytes that nobody else writes, such as a token. Other
  bytes under ``if_match`` leave two possibilities, that the write was never applied, and that
  it was and has been replaced since: that is ``OutcomeUnknown``. (Under ``if_none_match`` the
  object is another's now in either case, which is what ``AlreadyExists`` says.)
- An upload is, from a file, from a source that can be rewound, or from any while nothing
  was read from it.

Waits are "full jitter": anything from nothing to a bound that doubles, so that many clients
that failed together do not come back together. A wait that the server asked for is kept to,
or, where it is longer than the time left, not begun at all.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from os import PathLike
from typing import Protocol, TypeVar, runtime_checkable

from bootstream.errors import (
    AlreadyExists,
    BootstreamError,
    Conflict,
    Corrupt,
    NotFound,
    OutcomeUnknown,
    PreconditionFailed,
    Throttled,
    Unavailable,
)
from bootstream.storage.filesink import Place, place_of
from bootstream.storage.protocol import (
    Metadata,
    ObjectInfo,
    ObjectStat,
    ReadableBuffer,
    Sink,
    Source,
    StorageDetails,
    StorageObject,
    StorageProvider,
    WritableBuffer,
)
from bootstream.storage.resume import Checkpoint, upload
from bootstream.storage.wrapper import ObjectWrapper, ProviderWrapper

T = TypeVar("T")

_PIECE = 4 << 20


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long to go on. Times in seconds.

    ``attempts`` counts the first one; none begins later than ``total`` after the first
    failure, however long an upload worked before. The wait before attempt n + 1 is random,
    up to ``first_wait`` * 2**(n - 1), at most ``longest_wait``. What makes progress (a
    listing, a download) begins anew with each progress.
    """

    attempts: int = 6
    total: float = 60.0
    first_wait: float = 0.1
    longest_wait: float = 10.0


class RetryStorageProvider(ProviderWrapper):
    """``inner``, with transient errors repeated.

    Args:
        inner: the store that may fail.
        policy: how long to go on.
        sleep: waits so many seconds; it may raise, to stop waiting.
        clock: a monotonic time in seconds.
        rng: for the jitter.
    """

    def __init__(
        self,
        inner: StorageProvider,
        policy: RetryPolicy | None = None,
        *,
        sleep: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        super().__init__(inner)
        self._policy = policy or RetryPolicy()
        self._sleep = sleep
        self._clock = clock
        self._random = rng or random.Random()  # noqa: S311 - jitter, no secret

    def budget(self) -> Budget:
        """Return a fresh budget for one operation."""
        return Budget(self._policy, self._sleep, self._clock, self._random)

    def run(self, call: Callable[[], T]) -> T:
        """Return what ``call`` returns, once it raises nothing transient any more."""
        budget = self.budget()
        while True:
            try:
                return call()
            except BootstreamError as error:
                budget.wait(error)

    def wrap(self, inner: StorageObject) -> StorageObject:
        """Return a handle whose operations are repeated."""
        return _RetryObject(inner, self)

    def list_objects(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield everything below ``prefix``; after an error, from the last name seen."""
        # Asked for at once: a wrong prefix is refused here, not at the first item.
        return self._list(prefix, self._inner.list_objects(prefix))

    def _list(self, prefix: str, listing: Iterator[ObjectInfo]) -> Iterator[ObjectInfo]:
        last = b""
        budget: Budget | None = None
        while True:
            try:
                for info in listing:
                    name = info.path.encode()
                    if name > last:
                        last = name
                        budget = None
                        yield info
            except BootstreamError as error:
                budget = budget or self.budget()
                budget.wait(error)
                listing = self._inner.list_objects(prefix)
            else:
                return

    def copy_object(self, source: str, target: str) -> None:
        """Copy an object; see the protocol. A copy that was made twice is the same copy."""
        self.run(lambda: self._inner.copy_object(source, target))

    def delete_objects_with_prefix(self, prefix: str) -> int:
        """Delete everything below ``prefix``; return how many the last attempt deleted."""
        return self.run(lambda: self._inner.delete_objects_with_prefix(prefix))

    def signed_upload_url(self, path: str, ttl: timedelta) -> str:
        """Return a URL for uploading ``path``; see the protocol."""
        return self.run(lambda: self._inner.signed_upload_url(path, ttl))

    def collect_uploads(self, older_than: timedelta, *, dry_run: bool = False) -> int:
        """Remove what unfinished uploads left; return how many the last attempt found."""
        return self.run(lambda: self._inner.collect_uploads(older_than, dry_run=dry_run))

    def details(self) -> StorageDetails:
        """Describe the store."""
        return self.run(self._inner.details)


class Budget:
    """Attempts and time that are left for one operation; its time begins with its first failure."""

    def __init__(
        self,
        policy: RetryPolicy,
        sleep: Callable[[float], object],
        clock: Callable[[], float],
        rng: random.Random,
    ) -> None:
        self._policy = policy
        self._sleep = sleep
        self._clock = clock
        self._random = rng
        self._failed = 0
        self._deadline = 0.0

    def wait(self, error: BootstreamError) -> None:
        """Sleep until the next attempt; raises ``error`` where there is to be none."""
        if not error.transient:
            raise error
        policy = self._policy
        if self._failed == 0:
            self._deadline = self._clock() + policy.total
        self._failed += 1
        # The exponent is bounded: 2.0**1024 is an OverflowError.
        bound = min(policy.longest_wait, policy.first_wait * 2.0 ** min(self._failed - 1, 60))
        wait = self._random.uniform(0.0, bound) + (error.retry_after or 0.0)
        if self._failed >= policy.attempts or self._clock() + wait > self._deadline:
            error.add_note(f"given up after {self._failed} attempts")
            raise error
        self._sleep(wait)


def _unsettled(refusal: Conflict) -> Conflict:
    if not isinstance(refusal, PreconditionFailed):
        return refusal
    return OutcomeUnknown(
        "it is another version now; whether this write was there before is not known, since "
        "the answer to it was lost",
        operation=refusal.operation,
        object=refusal.object,
        request_id=refusal.request_id,
        remedy="look at what is there, then decide again",
    )


@runtime_checkable
class _Rewindable(Protocol):
    def seekable(self) -> bool: ...
    def tell(self) -> int: ...
    def seek(self, offset: int, /) -> object: ...


class _Watched:
    """Somebody else's source or sink: remembers its own error, which is nothing to retry."""

    def __init__(self, source: Source | None = None, sink: Sink | None = None) -> None:
        self._source = source
        self._sink = sink
        self.error: BaseException | None = None
        self.touched = False
        self.written = 0

    def read(self, size: int, /) -> ReadableBuffer:
        assert self._source is not None
        self.touched = True
        try:
            return self._source.read(size)
        except BaseException as error:
            self.error = error
            raise

    def write(self, data: memoryview, /) -> None:
        assert self._sink is not None
        try:
            self._sink.write(data)
        except BaseException as error:
            self.error = error
            raise
        self.written += len(data)

    def place(self) -> Place | None:
        """Return the sink's own place, if it has one, watched as well."""
        inner = None if self._sink is None else place_of(self._sink)
        return None if inner is None else _WatchedPlace(inner, self)


class _WatchedPlace:
    """A place that tells the watched sink what it took."""

    def __init__(self, inner: Place, watched: _Watched) -> None:
        self._inner = inner
        self._watched = watched
        self.drop = inner.drop

    def write_at(self, data: memoryview, offset: int, /) -> None:
        try:
            self._inner.write_at(data, offset)
        except OSError as error:
            self._watched.error = error
            raise

    def advance(self, count: int, /) -> None:
        self._inner.advance(count)
        self._watched.written += count


class _RetryObject(ObjectWrapper):
    """One object of the store that may fail."""

    __slots__ = ("_provider",)

    def __init__(self, inner: StorageObject, provider: RetryStorageProvider) -> None:
        super().__init__(inner)
        self._provider = provider

    def write_from_file_system(
        self, path: str | PathLike[str], *, metadata: Metadata | None = None
    ) -> None:
        self._provider.run(lambda: self._inner.write_from_file_system(path, metadata=metadata))

    def read_from(self, source: Source, *, metadata: Metadata | None = None) -> int:
        return self._send(source, lambda given: self._inner.read_from(given, metadata=metadata))

    def resume_from(
        self, source: Source, size: int, *, metadata: Metadata | None, checkpoint: Checkpoint
    ) -> int:
        def send(given: Source) -> int:
            return upload(self._inner, given, size, metadata=metadata, checkpoint=checkpoint)

        return self._send(source, send)

    def _send(self, source: Source, send: Callable[[Source], int]) -> int:
        watched = _Watched(source=source)
        again = source if isinstance(source, _Rewindable) and source.seekable() else None
        start = again.tell() if again is not None else 0
        budget = self._provider.budget()
        while True:
            try:
                return send(watched)
            except BootstreamError as error:
                if watched.error is not None or (watched.touched and again is None):
                    raise
                budget.wait(error)
            if again is not None:
                again.seek(start)

    def write_to(self, sink: Sink) -> int:
        before = self.stat()
        watched = _Watched(sink=sink)
        budget = self._provider.budget()
        while not watched.written:
            # From the start as long as that is possible: a store may check the whole, not parts.
            try:
                return self._inner.write_to(watched)
            except BootstreamError as error:
                if watched.error is not None:
                    raise
                budget.wait(error)
        return self._resume(watched, before)

    def _resume(self, watched: _Watched, before: ObjectStat) -> int:
        """Download the rest in pieces, each retried by itself."""
        buffer = memoryview(bytearray(min(_PIECE, max(before.size, 1))))
        while True:
            # The etag is looked at between reading and passing on: a sink takes nothing back.
            count = self.read_at(buffer, watched.written)
            if self.stat().etag != before.etag:
                raise Unavailable(
                    "it was replaced while it was read",
                    operation="read object",
                    object=self.path,
                    transient=False,
                )
            if not count:
                return watched.written
            watched.write(buffer[:count])

    def read_at(self, buffer: WritableBuffer, offset: int) -> int:
        return self._provider.run(lambda: self._inner.read_at(buffer, offset))

    def get(self, limit: int) -> tuple[bytes, str]:
        return self._provider.run(lambda: self._inner.get(limit))

    def put(
        self,
        data: ReadableBuffer,
        *,
        if_none_match: bool = False,
        if_match: str | None = None,
        metadata: Metadata | None = None,
    ) -> str:
        unknown = False
        budget = self._provider.budget()
        while True:
            try:
                return self._inner.put(
                    data, if_none_match=if_none_match, if_match=if_match, metadata=metadata
                )
            except (AlreadyExists, PreconditionFailed) as error:
                if not unknown:
                    raise
                return self._own_etag(data, error)
            except BootstreamError as error:
                budget.wait(error)
                unknown = unknown or not isinstance(error, Throttled)

    def _own_etag(self, data: ReadableBuffer, refusal: Conflict) -> str:
        """Return the object's etag if an attempt of ours wrote it; raises if not.

        Raises:
            AlreadyExists: it is another's.
            OutcomeUnknown: it is another's, or gone, and ours may have been there before.
        """
        try:
            content, etag = self.get(memoryview(data).nbytes)
        except (NotFound, Corrupt):  # gone again, or of another size
            raise _unsettled(refusal) from None
        if content != bytes(data):
            raise _unsettled(refusal)
        return etag

    def stat(self) -> ObjectStat:
        return self._provider.run(self._inner.stat)

    def size(self) -> int:
        return self._provider.run(self._inner.size)

    def exists(self) -> bool:
        return self._provider.run(self._inner.exists)

    def delete(self) -> None:
        self._provider.run(self._inner.delete)
