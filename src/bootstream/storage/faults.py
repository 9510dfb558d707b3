"""A store that fails as it is told to: for tests, and for trying out what an outage does.

::

    FaultStorageProvider(
        inner,
        Fault(Fails(Unavailable), operations=READS, probability=0.01),
        Fault(Delays(0.05, jitter=0.05)),
        Fault(Cuts(), paths="*.pack", count=3),
        Fault(Fills(at=1 << 30)),
        seed=7,
    )

Faults are asked in the order given, each for every operation. All chance comes from the
seed: the same calls in the same order meet the same faults. Calls from several threads
are counted together, in the order in which they come.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from os import PathLike
from pathlib import Path

from bootstream.storage.faultrules import (
    ALL,
    READS,
    WRITES,
    Cuts,
    Delays,
    Fails,
    Fault,
    Faults,
    Fills,
    Flips,
    cut_error,
)
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

__all__ = [
    "ALL",
    "READS",
    "WRITES",
    "Cuts",
    "Delays",
    "Fails",
    "Fault",
    "FaultStorageProvider",
    "Fills",
    "Flips",
]


class FaultStorageProvider(ProviderWrapper):
    """``inner``, with faults.

    Args:
        inner: the store that works.
        faults: what goes wrong.
        seed: of all chance.
        sleep: waits so many seconds.
    """

    def __init__(
        self,
        inner: StorageProvider,
        *faults: Fault,
        seed: int = 0,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        super().__init__(inner)
        self._faults = Faults(faults, seed=seed, sleep=sleep)

    @property
    def struck(self) -> int:
        """How many operations met a fault so far; one that met two counts twice."""
        return self._faults.struck

    def add(self, fault: Fault) -> None:
        """Let one more thing go wrong from now on."""
        self._faults.add(fault)

    def clear(self) -> None:
        """Let nothing go wrong any more."""
        self._faults.clear()

    # -- the provider -------------------------------------------------------------------------

    def wrap(self, inner: StorageObject) -> StorageObject:
        """Return a handle whose operations fail as they are told to."""
        return _FaultObject(inner, self._faults)

    def list_objects(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield everything below ``prefix``, or break off."""
        return self._list(prefix, self._inner.list_objects(prefix))

    def _list(self, prefix: str, inner: Iterator[ObjectInfo]) -> Iterator[ObjectInfo]:
        plan = self._faults.begin("list", prefix)
        if plan.cut is None:
            yield from inner
        else:
            found = list(inner)
            at = plan.cut.at if plan.cut.at is not None else self._faults.chance(len(found))
            yield from found[:at]
            if at < len(found) or plan.cut.at is None:
                raise cut_error("list", prefix)
        plan.finish()

    def copy_object(self, source: str, target: str) -> None:
        """Copy an object; the path that faults look at is the target's."""
        plan = self._faults.begin("copy", target)
        self._inner.copy_object(source, target)
        plan.finish()

    def delete_objects_with_prefix(self, prefix: str) -> int:
        """Delete everything below ``prefix``."""
        plan = self._faults.begin("delete_prefix", prefix)
        count = self._inner.delete_objects_with_prefix(prefix)
        plan.finish()
        return count

    def signed_upload_url(self, path: str, ttl: timedelta) -> str:
        """Return a URL for uploading ``path``."""
        plan = self._faults.begin("sign", path)
        url = self._inner.signed_upload_url(path, ttl)
        plan.finish()
        return url

    def collect_uploads(self, older_than: timedelta, *, dry_run: bool = False) -> int:
        """Remove what unfinished uploads left."""
        plan = self._faults.begin("collect", "")
        count = self._inner.collect_uploads(older_than, dry_run=dry_run)
        plan.finish()
        return count

    def details(self) -> StorageDetails:
        """Describe the store."""
        plan = self._faults.begin("details", "")
        details = self._inner.details()
        plan.finish()
        return details


class _FullSource:
    """A source that raises StorageFull in the place of the disk that it is for."""

    def __init__(self, source: Source, faults: Faults, path: str) -> None:
        self._source = source
        self._faults = faults
        self._path = path

    def read(self, size: int, /) -> ReadableBuffer:
        piece = self._source.read(size)
        self._faults.write("read_from", self._path, memoryview(piece).nbytes)
        return piece


class _FaultySink:
    """A sink for what a fault leaves of a download."""

    def __init__(
        self,
        sink: Sink,
        faults: Faults,
        path: str,
        cut_at: int | None,
        flip_at: int | None,
    ) -> None:
        self._sink = sink
        self._faults = faults
        self._path = path
        self._cut_at = cut_at
        self._flip_at = flip_at
        self._offset = 0

    def write(self, data: memoryview, /) -> None:
        start, end = self._offset, self._offset + len(data)
        if self._flip_at is not None and start <= self._flip_at < end:
            data = memoryview(bytearray(data))
            at = self._flip_at - start
            self._faults.flip(data[at : at + 1])
        if self._cut_at is not None and end > self._cut_at:
            if self._cut_at > start:
                self._sink.write(data[: self._cut_at - start])
            raise cut_error("write_to", self._path)
        self._sink.write(data)
        self._offset = end


class _FaultObject(ObjectWrapper):
    """One object of the store that fails as it is told to."""

    __slots__ = ("_faults",)

    def __init__(self, inner: StorageObject, faults: Faults) -> None:
        super().__init__(inner)
        self._faults = faults

    def write_from_file_system(
        self, path: str | PathLike[str], *, metadata: Metadata | None = None
    ) -> None:
        plan = self._faults.begin("read_from", self.path)
        try:
            size = Path(path).stat().st_size
        except OSError as error:
            raise source_error(error, path) from error
        self._faults.write("read_from", self.path, size)
        self._inner.write_from_file_system(path, metadata=metadata)
        plan.finish()

    def read_from(self, source: Source, *, metadata: Metadata | None = None) -> int:
        plan = self._faults.begin("read_from", self.path)
        full = _FullSource(source, self._faults, self.path)
        count = self._inner.read_from(full, metadata=metadata)
        plan.finish()
        return count

    def resume_from(
        self, source: Source, size: int, *, metadata: Metadata | None, checkpoint: Checkpoint
    ) -> int:
        plan = self._faults.begin("read_from", self.path)
        full = _FullSource(source, self._faults, self.path)
        count = super().resume_from(full, size, metadata=metadata, checkpoint=checkpoint)
        plan.finish()
        return count

    def write_to(self, sink: Sink) -> int:
        plan = self._faults.begin("write_to", self.path)
        if plan.cut is not None or plan.flip:
            size = self._inner.size()
            at = None if plan.cut is None else plan.cut.at
            if plan.cut is not None and at is None:
                at = self._faults.chance(size)
            flip_at = self._faults.chance(size) if plan.flip else None
            sink = _FaultySink(sink, self._faults, self.path, at, flip_at)
        count = self._inner.write_to(sink)
        if plan.cut is not None and plan.cut.at is None and count == 0:
            raise cut_error("write_to", self.path)
        plan.finish()
        return count

    def read_at(self, buffer: WritableBuffer, offset: int) -> int:
        plan = self._faults.begin("read_at", self.path)
        view = memoryview(buffer).cast("B")
        if plan.cut is not None:
            at = plan.cut.at if plan.cut.at is not None else self._faults.chance(len(view))
            if at < len(view):
                # The bytes before the cut are in the buffer already, as with a real one.
                self._inner.read_at(view[:at], offset)
                raise cut_error("read_at", self.path)
        count = self._inner.read_at(view, offset)
        if plan.flip:
            self._faults.flip(view[:count])
        plan.finish()
        return count

    def get(self, limit: int) -> tuple[bytes, str]:
        plan = self._faults.begin("read_at", self.path)
        if plan.cut is not None:
            raise cut_error("read_at", self.path)
        data, etag = self._inner.get(limit)
        if plan.flip:
            damaged = bytearray(data)
            self._faults.flip(memoryview(damaged))
            data = bytes(damaged)
        plan.finish()
        return data, etag

    def put(
        self,
        data: ReadableBuffer,
        *,
        if_none_match: bool = False,
        if_match: str | None = None,
        metadata: Metadata | None = None,
    ) -> str:
        plan = self._faults.begin("put", self.path)
        self._faults.write("put", self.path, memoryview(data).nbytes)
        etag = self._inner.put(
            data, if_none_match=if_none_match, if_match=if_match, metadata=metadata
        )
        plan.finish()
        return etag

    def stat(self) -> ObjectStat:
        plan = self._faults.begin("stat", self.path)
        found = self._inner.stat()
        plan.finish()
        return found

    def size(self) -> int:
        return self.stat().size

    def exists(self) -> bool:
        plan = self._faults.begin("stat", self.path)
        found = self._inner.exists()
        plan.finish()
        return found

    def delete(self) -> None:
        plan = self._faults.begin("delete", self.path)
        self._inner.delete()
        plan.finish()
