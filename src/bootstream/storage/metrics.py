"""A store that counts: calls, errors by class, bytes, and how long each kind of operation took.

Cheap enough to be always on: one clock reading before and after, and one short lock.
Operations have the names that ``bootstream.storage.faultrules`` has for them; uploads of
files count as ``read_from``, ``size`` and ``exists`` as ``stat``.

Times fall into buckets that double, from a microsecond to a little over an hour; a
percentile read from them is at most twice the true one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from os import PathLike
from pathlib import Path
from typing import Any

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
from bootstream.storage.resume import Checkpoint
from bootstream.storage.wrapper import ObjectWrapper, ProviderWrapper

_BUCKETS = 33  # the last: 2**32 us, 72 minutes, and everything longer


class Metrics:
    """The counts of one or more providers. Safe to use from several threads.

    Args:
        clock: a monotonic time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self._lock = threading.Lock()
        self._counts: dict[str, _Counts] = {}

    def record(self, operation: str, began: float, size: int, error: BaseException | None) -> None:
        """Count one call that began at ``began`` and ends now, and moved ``size`` bytes."""
        seconds = self.clock() - began
        bucket = min(int(seconds * 1e6).bit_length(), _BUCKETS - 1)
        with self._lock:
            counts = self._counts.get(operation)
            if counts is None:
                counts = self._counts[operation] = _Counts()
            counts.calls += 1
            counts.size += size
            counts.seconds += seconds
            counts.buckets[bucket] += 1
            if error is not None:
                name = type(error).__name__
                counts.errors[name] = counts.errors.get(name, 0) + 1

    def snapshot(self) -> dict[str, Any]:
        """Return all counts as plain values, by operation, as JSON could hold them.

        ``calls``; ``errors``: class name to count; ``bytes`` that moved in calls that
        succeeded; ``seconds``: the sum over all calls; ``latency``: pairs of a bucket's
        upper bound in seconds and the calls in it, empty ones left out.
        """
        with self._lock:
            return {
                operation: {
                    "calls": counts.calls,
                    "errors": dict(counts.errors),
                    "bytes": counts.size,
                    "seconds": counts.seconds,
                    "latency": [
                        [2**number / 1e6, count]
                        for number, count in enumerate(counts.buckets)
                        if count
                    ],
                }
                for operation, counts in self._counts.items()
            }


class _Counts:
    __slots__ = ("buckets", "calls", "errors", "seconds", "size")

    def __init__(self) -> None:
        self.calls = 0
        self.size = 0
        self.seconds = 0.0
        self.errors: dict[str, int] = {}
        self.buckets = [0] * _BUCKETS


class _Timed:
    """One call: a context manager that records how it ended."""

    __slots__ = ("_began", "_metrics", "_operation", "size")

    def __init__(self, metrics: Metrics, operation: str) -> None:
        self._metrics = metrics
        self._operation = operation
        self.size = 0

    def __enter__(self) -> _Timed:
        self._began = self._metrics.clock()
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._metrics.record(self._operation, self._began, self.size, error)


class MetricsStorageProvider(ProviderWrapper):
    """``inner``, with every call counted.

    Args:
        inner: the store.
        metrics: where to count; None makes one of its own.
    """

    def __init__(self, inner: StorageProvider, metrics: Metrics | None = None) -> None:
        super().__init__(inner)
        self.metrics = metrics or Metrics()

    def snapshot(self) -> dict[str, Any]:
        """Return the counts so far; see ``Metrics.snapshot``."""
        return self.metrics.snapshot()

    def wrap(self, inner: StorageObject) -> StorageObject:
        """Return a handle whose operations are counted."""
        return _MetricsObject(inner, self.metrics)

    def list_objects(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield everything below ``prefix``; counted when it ends, without the caller's time."""
        return self._list(self._inner.list_objects(prefix))

    def _list(self, listing: Iterator[ObjectInfo]) -> Iterator[ObjectInfo]:
        clock = self.metrics.clock
        worked = 0.0
        error: BaseException | None = None
        try:
            while True:
                began = clock()
                try:
                    info = next(listing, None)
                except BaseException as raised:
                    error = raised
                    raise
                finally:
                    worked += clock() - began
                if info is None:
                    return
                yield info
        finally:
            self.metrics.record("list", clock() - worked, 0, error)

    def copy_object(self, source: str, target: str) -> None:
        """Copy an object; see the protocol."""
        with _Timed(self.metrics, "copy"):
            self._inner.copy_object(source, target)

    def delete_objects_with_prefix(self, prefix: str) -> int:
        """Delete everything below ``prefix``; return how many objects went."""
        with _Timed(self.metrics, "delete_prefix"):
            return self._inner.delete_objects_with_prefix(prefix)

    def signed_upload_url(self, path: str, ttl: timedelta) -> str:
        """Return a URL for uploading ``path``; see the protocol."""
        with _Timed(self.metrics, "sign"):
            return self._inner.signed_upload_url(path, ttl)

    def collect_uploads(self, older_than: timedelta, *, dry_run: bool = False) -> int:
        """Remove what unfinished uploads left; return how many there were."""
        with _Timed(self.metrics, "collect"):
            return self._inner.collect_uploads(older_than, dry_run=dry_run)

    def details(self) -> StorageDetails:
        """Describe the store."""
        with _Timed(self.metrics, "details"):
            return self._inner.details()


class _MetricsObject(ObjectWrapper):
    """One object of the store that counts."""

    __slots__ = ("_metrics",)

    def __init__(self, inner: StorageObject, metrics: Metrics) -> None:
        super().__init__(inner)
        self._metrics = metrics

    def write_from_file_system(
        self, path: str | PathLike[str], *, metadata: Metadata | None = None
    ) -> None:
        with _Timed(self._metrics, "read_from") as call:
            self._inner.write_from_file_system(path, metadata=metadata)
            call.size = _size_of(path)

    def read_from(self, source: Source, *, metadata: Metadata | None = None) -> int:
        with _Timed(self._metrics, "read_from") as call:
            call.size = self._inner.read_from(source, metadata=metadata)
        return call.size

    def resume_from(
        self, source: Source, size: int, *, metadata: Metadata | None, checkpoint: Checkpoint
    ) -> int:
        with _Timed(self._metrics, "read_from") as call:
            call.size = super().resume_from(source, size, metadata=metadata, checkpoint=checkpoint)
        return call.size

    def write_to(self, sink: Sink) -> int:
        with _Timed(self._metrics, "write_to") as call:
            call.size = self._inner.write_to(sink)
        return call.size

    def read_at(self, buffer: WritableBuffer, offset: int) -> int:
        with _Timed(self._metrics, "read_at") as call:
            call.size = self._inner.read_at(buffer, offset)
        return call.size

    def get(self, limit: int) -> tuple[bytes, str]:
        with _Timed(self._metrics, "read_at") as call:
            data, etag = self._inner.get(limit)
            call.size = len(data)
        return data, etag

    def put(
        self,
        data: ReadableBuffer,
        *,
        if_none_match: bool = False,
        if_match: str | None = None,
        metadata: Metadata | None = None,
    ) -> str:
        with _Timed(self._metrics, "put") as call:
            etag = self._inner.put(
                data, if_none_match=if_none_match, if_match=if_match, metadata=metadata
            )
            call.size = memoryview(data).nbytes
        return etag

    def stat(self) -> ObjectStat:
        with _Timed(self._metrics, "stat"):
            return self._inner.stat()

    def size(self) -> int:
        with _Timed(self._metrics, "stat"):
            return self._inner.size()

    def exists(self) -> bool:
        with _Timed(self._metrics, "stat"):
            return self._inner.exists()

    def delete(self) -> None:
        with _Timed(self._metrics, "delete"):
            self._inner.delete()


def _size_of(path: str | PathLike[str]) -> int:
    try:
        return Path(path).stat().st_size
    except OSError:  # gone since; the upload itself succeeded
        return 0
