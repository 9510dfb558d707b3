"""A store that is used gently: so many operations at a time, so many bytes a second.

Two independent limits, shared by all threads that use the provider:

- **Slots.** An operation holds one while the store works for it, in the order in which
  they came. It gives the slot back while the caller's own source or sink runs, and while it
  waits for bandwidth: so copying within a store that has one slot comes to an end, and
  nobody sleeps on what others could use.
- **Bandwidth**, up and down apart. A token bucket kept as one number, the moment at which
  all that was granted so far is paid for; each operation pushes it on by its own bytes and
  waits until a quarter of a second before it (the burst). Grants are in the order of
  arrival, so nobody starves.

Bytes are those of contents; requests without a body (stat, listings, deletions, copies
within the store) cost a slot alone. With a limit on uploads, a file goes up as a stream,
since only then there are moments to wait at.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from os import PathLike

from bootstream.errors import InvalidInput
from bootstream.storage.oserrors import source_error
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

_BURST_SECONDS = 0.25


class LimitStorageProvider(ProviderWrapper):
    """``inner``, used within limits. Safe to use from several threads.

    Args:
        inner: the store.
        concurrency: most operations at a time; None for no limit. A multipart upload is one,
            however many requests the store makes of it.
        upload: most bytes a second upwards; None for no limit.
        download: most bytes a second downwards; None for no limit.
        sleep: waits so many seconds; it may raise, to stop waiting.
        clock: a monotonic time in seconds.

    Raises:
        InvalidInput: a limit is zero or less.
    """

    def __init__(
        self,
        inner: StorageProvider,
        *,
        concurrency: int | None = None,
        upload: float | None = None,
        download: float | None = None,
        sleep: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        for name, value in (
            ("concurrency", concurrency),
            ("upload", upload),
            ("download", download),
        ):
            if value is not None and not value > 0:
                raise InvalidInput(
                    f"{value} is no limit", operation="limit storage", object=name, remedy="above 0"
                )
        super().__init__(inner)
        self._slots = _Slots(concurrency)
        self._up = _Bandwidth(upload, sleep, clock)
        self._down = _Bandwidth(download, sleep, clock)

    def wrap(self, inner: StorageObject) -> StorageObject:
        """Return a handle whose operations are limited."""
        return _LimitObject(inner, self._slots, self._up, self._down)

    def list_objects(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield everything below ``prefix``; a slot is held while the store looks for the next."""
        return self._list(self._inner.list_objects(prefix))

    def _list(self, listing: Iterator[ObjectInfo]) -> Iterator[ObjectInfo]:
        while True:
            with self._slots.held():
                info = next(listing, None)
            if info is None:
                return
            yield info

    def copy_object(self, source: str, target: str) -> None:
        """Copy an object; see the protocol."""
        with self._slots.held():
            self._inner.copy_object(source, target)

    def delete_objects_with_prefix(self, prefix: str) -> int:
        """Delete everything below ``prefix``; return how many objects went."""
        with self._slots.held():
            return self._inner.delete_objects_with_prefix(prefix)

    def signed_upload_url(self, path: str, ttl: timedelta) -> str:
        """Return a URL for uploading ``path``; what is uploaded there is not limited."""
        with self._slots.held():
            return self._inner.signed_upload_url(path, ttl)

    def collect_uploads(self, older_than: timedelta, *, dry_run: bool = False) -> int:
        """Remove what unfinished uploads left; return how many there were."""
        with self._slots.held():
            return self._inner.collect_uploads(older_than, dry_run=dry_run)

    def details(self) -> StorageDetails:
        """Describe the store."""
        with self._slots.held():
            return self._inner.details()


class _Slots:
    """A semaphore that serves in the order of arrival; None is one without an end."""

    def __init__(self, count: int | None) -> None:
        self._limited = count is not None
        self._free = count or 0
        self._lock = threading.Lock()
        self._waiting: deque[threading.Lock] = deque()

    def acquire(self) -> None:
        if not self._limited:
            return
        with self._lock:
            if self._free:
                self._free -= 1
                return
            gate = threading.Lock()
            gate.acquire()
            self._waiting.append(gate)
        try:
            gate.acquire()
        except BaseException:  # such as KeyboardInterrupt: the slot must not be lost
            with self._lock:
                if gate in self._waiting:
                    self._waiting.remove(gate)
                    raise
            self.release()
            raise

    def release(self) -> None:
        if not self._limited:
            return
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._free += 1

    @contextmanager
    def held(self) -> Iterator[None]:
        self.acquire()
        try:
            yield
        finally:
            self.release()

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Within it, a slot that is held is free for others."""
        self.release()
        try:
            yield
        finally:
            self.acquire()


class _Bandwidth:
    """Bytes a second; None is any number."""

    def __init__(
        self,
        rate: float | None,
        sleep: Callable[[float], object],
        clock: Callable[[], float],
    ) -> None:
        self.rate = rate
        self._sleep = sleep
        self._clock = clock
        self._lock = threading.Lock()
        self._paid_at = float("-inf")

    def take(self, count: int) -> None:
        """Wait until ``count`` bytes may move."""
        if self.rate is None or not count:
            return
        with self._lock:
            now = self._clock()
            self._paid_at = max(self._paid_at, now) + count / self.rate
            wait = self._paid_at - now - _BURST_SECONDS
        if wait > 0:
            self._sleep(wait)

    def give_back(self, count: int) -> None:
        """Take back a grant of bytes that did not move."""
        if self.rate is not None and count:
            with self._lock:
                self._paid_at -= count / self.rate


class _FileSource:
    """A local file, whose trouble is said in the package's own errors."""

    def __init__(self, descriptor: int, path: str | PathLike[str]) -> None:
        self._descriptor = descriptor
        self._path = path

    def read(self, size: int, /) -> bytes:
        try:
            return os.read(self._descriptor, size)
        except OSError as error:
            raise source_error(error, self._path) from error


class _PacedSource:
    """The caller's source, outside the slot, and no faster than the limit."""

    def __init__(self, source: Source, slots: _Slots, bandwidth: _Bandwidth) -> None:
        self._source = source
        self._slots = slots
        self._bandwidth = bandwidth

    def read(self, size: int, /) -> ReadableBuffer:
        with self._slots.lent():
            piece = self._source.read(size)
            self._bandwidth.take(memoryview(piece).nbytes)
            return piece


class _PacedSink:
    """The caller's sink, outside the slot, and no faster than the limit."""

    def __init__(self, sink: Sink, slots: _Slots, bandwidth: _Bandwidth) -> None:
        self._sink = sink
        self._slots = slots
        self._bandwidth = bandwidth

    def write(self, data: memoryview, /) -> None:
        with self._slots.lent():
            self._bandwidth.take(data.nbytes)
            self._sink.write(data)


class _LimitObject(ObjectWrapper):
    """One object of the store that is used gently."""

    __slots__ = ("_down", "_slots", "_up")

    def __init__(
        self, inner: StorageObject, slots: _Slots, up: _Bandwidth, down: _Bandwidth
    ) -> None:
        super().__init__(inner)
        self._slots = slots
        self._up = up
        self._down = down

    def write_from_file_system(
        self, path: str | PathLike[str], *, metadata: Metadata | None = None
    ) -> None:
        if self._up.rate is None:
            with self._slots.held():
                self._inner.write_from_file_system(path, metadata=metadata)
            return
        try:
            # O_NONBLOCK: opening a pipe would wait for its writer.
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError as error:
            raise source_error(error, path) from error
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise InvalidInput(
                    "it is not a regular file", operation="upload file", object=os.fspath(path)
                )
            self.read_from(_FileSource(descriptor, path), metadata=metadata)
        finally:
            os.close(descriptor)

    def read_from(self, source: Source, *, metadata: Metadata | None = None) -> int:
        with self._slots.held():
            paced = _PacedSource(source, self._slots, self._up)
            return self._inner.read_from(paced, metadata=metadata)

    def resume_from(
        self, source: Source, size: int, *, metadata: Metadata | None, checkpoint: Checkpoint
    ) -> int:
        with self._slots.held():
            paced = _PacedSource(source, self._slots, self._up)
            return super().resume_from(paced, size, metadata=metadata, checkpoint=checkpoint)

    def write_to(self, sink: Sink) -> int:
        with self._slots.held():
            return self._inner.write_to(_PacedSink(sink, self._slots, self._down))

    def read_at(self, buffer: WritableBuffer, offset: int) -> int:
        wanted = memoryview(buffer).nbytes
        self._down.take(wanted)
        count = 0
        try:
            with self._slots.held():
                count = self._inner.read_at(buffer, offset)
        finally:
            self._down.give_back(wanted - count)
        return count

    def get(self, limit: int) -> tuple[bytes, str]:
        with self._slots.held():
            data, etag = self._inner.get(limit)
        self._down.take(len(data))
        return data, etag

    def put(
        self,
        data: ReadableBuffer,
        *,
        if_none_match: bool = False,
        if_match: str | None = None,
        metadata: Metadata | None = None,
    ) -> str:
        self._up.take(memoryview(data).nbytes)
        with self._slots.held():
            return self._inner.put(
                data, if_none_match=if_none_match, if_match=if_match, metadata=metadata
            )

    def stat(self) -> ObjectStat:
        with self._slots.held():
            return self._inner.stat()

    def size(self) -> int:
        with self._slots.held():
            return self._inner.size()

    def exists(self) -> bool:
        with self._slots.held():
            return self._inner.exists()

    def delete(self) -> None:
        with self._slots.held():
            self._inner.delete()
