"""Traces beside builds: stored, read, made of file lists; recorded and replayed by servers.

The format is docs/formats/trace.md, what is done with it docs/streaming.md.
"""

from __future__ import annotations

import logging
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from enum import StrEnum
from typing import Protocol

from bootstream.block.device import Extent
from bootstream.block.recorder import Recorder
from bootstream.block.trace import MAX_SIZE, Trace, extend
from bootstream.chunks.index import Index
from bootstream.chunks.names import trace_path
from bootstream.errors import (
    AlreadyExists,
    BootstreamError,
    Corrupt,
    InvalidInput,
    NotFound,
    ObjectNotFound,
)
from bootstream.rootfs.ext4.reader import Ext4FileSystem
from bootstream.storage.protocol import StorageProvider
from bootstream.templates.manifest import Manifest

log = logging.getLogger("bootstream.templates")

RECORD_SECONDS = 60.0
"""For how long after the first touch a server records."""
FEWEST_CHUNKS = 8
"""A recording of fewer is no boot, and is not stored by itself."""
COPY_BYTES = 32 << 20
"""A recording of more than this, and of more than half of an image's data, is a copy of it."""
_FIRST_READ = 64 << 10
_PATIENCE_SECONDS = 5.0


def load_trace(storage: StorageProvider, manifest: Manifest, artifact: str) -> Trace | None:
    """Return the trace of a build's artifact, None if there is none; usually one request.

    Raises:
        Corrupt: it is damaged, or of other contents.
        InvalidInput: the build has no such artifact, or a newer version wrote the trace.
    """
    manifest.artifact(artifact)
    path = trace_path(manifest.build_id, artifact)
    try:
        data = _read(storage, path)
    except ObjectNotFound:
        return None
    trace = Trace.decode(data, name=path)
    if not _belongs(trace, manifest, artifact):
        raise Corrupt(
            "it is of other contents",
            operation="read trace",
            object=path,
            remedy=f"remove it: bootstream trace rm {manifest.build_id}",
        )
    return trace


def _read(storage: StorageProvider, path: str) -> memoryview:
    """Read an object whose size is not known, of at most ``MAX_SIZE`` bytes and one more."""
    target = storage.open_object(path)
    data = bytearray(_FIRST_READ)
    count = target.read_at(data, 0)
    if count == len(data):
        rest = bytearray(max(0, min(target.size(), MAX_SIZE + 1) - count))
        if rest:
            count += target.read_at(rest, count)
        data += rest
    return memoryview(data)[:count]


def _belongs(trace: Trace, manifest: Manifest, artifact: str) -> bool:
    entry = manifest.artifact(artifact)
    chunks = -(-entry.size // entry.chunk_size)
    same = (trace.index_sha256, trace.chunk_size) == (entry.index_sha256, entry.chunk_size)
    return same and trace.end <= chunks


def check_trace(trace: Trace, manifest: Manifest, artifact: str) -> None:
    """Raise InvalidInput if a trace is not one of this build's artifact."""
    if not _belongs(trace, manifest, artifact):
        raise InvalidInput(
            "the trace is of other contents",
            operation="use trace",
            object=trace_path(manifest.build_id, artifact),
            remedy="record one of this build: bootstream trace record",
        )


def store_trace(
    storage: StorageProvider, manifest: Manifest, artifact: str, trace: Trace, *, replace: bool
) -> bool:
    """Store a trace; whoever does holds a lease on the build. Tell whether it was stored.

    Args:
        storage: the store.
        manifest: the build.
        artifact: whose trace it is.
        trace: of exactly these contents.
        replace: take the place of another one; else only if there is none.

    Raises:
        InvalidInput: it is of other contents.
    """
    check_trace(trace, manifest, artifact)
    path = trace_path(manifest.build_id, artifact)
    try:
        storage.open_object(path).put(trace.encode(), if_none_match=not replace)
    except AlreadyExists:
        return False
    return True


def carry_traces(storage: StorageProvider, origin: Manifest, derived: Manifest) -> None:
    """Give a build that was made from another one its traces: it boots much the same.

    Of artifacts of the same size in chunks of the same size. Trouble leaves it without.
    """
    for name, entry in derived.artifacts.items():
        before = origin.artifacts.get(name)
        if before is None or (before.size, before.chunk_size) != (entry.size, entry.chunk_size):
            continue
        try:
            trace = load_trace(storage, origin, name)
            if trace is not None:
                trace = replace(trace, index_sha256=entry.index_sha256)
                store_trace(storage, derived, name, trace, replace=False)
        except BootstreamError as error:
            log.debug("the trace of %s is not taken over: %s", name, error)


def remove_trace(storage: StorageProvider, manifest: Manifest, artifact: str) -> bool:
    """Remove a trace, whatever is in it; tell whether there was one."""
    manifest.artifact(artifact)
    target = storage.open_object(trace_path(manifest.build_id, artifact))
    there = target.exists()
    if there:
        target.delete()
    return there


# -- file lists ---------------------------------------------------------------------------------


def trace_of_files(
    index: Index,
    read_at: Callable[[memoryview, int], None],
    paths: Iterable[bytes],
    *,
    missing: Callable[[bytes], None] | None = None,
) -> Trace:
    """Return a trace of what is read to find files of an ext4 image, and then of the files.

    Args:
        index: of the image.
        read_at: reads the image.
        paths: of files, or of folders: then of everything below, but not behind links.
        missing: told of paths that are not there; None raises NotFound.

    Raises:
        InvalidInput, Corrupt, NotFound: as ``Ext4FileSystem``.
    """
    chunks: dict[int, None] = {}

    def note(offset: int, length: int) -> None:
        for chunk in range(offset // index.chunk_size, -(-(offset + length) // index.chunk_size)):
            if chunk < index.chunk_count and not index.is_zero(chunk):
                chunks[chunk] = None

    def read(view: memoryview, offset: int) -> None:
        note(offset, len(view))
        read_at(view, offset)

    system = Ext4FileSystem(read, index.size)
    for path in paths:
        try:
            for file in _files(system, path):
                for offset, length in system.extents(file):
                    note(offset, length)
        except NotFound:
            if missing is None:
                raise
            missing(path)
    return extend(Trace(index.digest, index.chunk_size, ()), chunks)


def _files(system: Ext4FileSystem, path: bytes) -> Iterator[bytes]:
    """Yield a regular file's path, or those of all regular files below a folder."""
    mode = system.stat(path).mode
    if stat.S_ISREG(mode):
        yield path
    if not stat.S_ISDIR(mode):
        return
    waiting = [path]
    while waiting:
        folder = waiting.pop()
        below = []
        for name in sorted(system.listdir(folder)):
            child = folder.rstrip(b"/") + b"/" + name
            mode = system.stat(child, follow=False).mode
            if stat.S_ISDIR(mode):
                below.append(child)
            elif stat.S_ISREG(mode):
                yield child
        waiting += reversed(below)


# -- servers ------------------------------------------------------------------------------------


class TraceMode(StrEnum):
    """What a server does: replay, or else record; record anew; neither."""

    AUTO = "auto"
    RECORD = "record"
    OFF = "off"


class Traced(Protocol):
    """A device that can be recorded; ``bootstream.block.chunked.ChunkedDevice``."""

    @property
    def recorder(self) -> Recorder:
        """What it notes."""
        ...

    def trace(self, seconds: float = ...) -> Trace:
        """Return the first touches."""
        ...

    def replay(self, trace: Trace) -> None:
        """Fetch what the trace names."""
        ...

    def extents(self, offset: int, length: int) -> list[Extent]:
        """Say where there is data."""
        ...


class TraceKeeper:
    """Replays or records for one device that is served, in the background.

    Trouble never reaches the reader: a damaged trace is told to ``warn`` and ignored, what
    cannot be stored is a debug message. ``state`` says what happens, in one word or two:
    ``off``, ``loading``, ``replayed``, ``recording``, ``stored``, ``not stored``, ``ignored``.

    Args:
        storage: the store of the build.
        manifest: the build; whoever serves it holds a lease until after ``finish``.
        artifact: which one of it.
        device: of the artifact.
        mode: what to do.
        warn: told of a damaged trace.
        seconds: to record after the first touch.
    """

    def __init__(
        self,
        storage: StorageProvider,
        manifest: Manifest,
        artifact: str,
        device: Traced,
        *,
        mode: TraceMode,
        warn: Callable[[str], None],
        seconds: float = RECORD_SECONDS,
    ) -> None:
        self._storage = storage
        self._manifest = manifest
        self._artifact = artifact
        self._device = device
        self._mode = mode
        self._warn = warn
        self._seconds = seconds
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._finished = False
        self.replayed: Trace | None = None
        self.state = "off" if mode is TraceMode.OFF else "loading"
        self._loading = threading.Thread(target=self._begin, name="trace", daemon=True)
        if mode is not TraceMode.OFF:
            self._loading.start()

    def _begin(self) -> None:
        if self._mode is TraceMode.AUTO:
            try:
                trace = load_trace(self._storage, self._manifest, self._artifact)
            except (Corrupt, InvalidInput) as error:
                self.state = "ignored"
                self._warn(f"the trace is ignored: {error}")
                return
            except BootstreamError as error:
                self.state = "ignored"
                log.debug("the trace could not be read: %s", error)
                return
            if trace is not None:
                self.replayed, self.state = trace, "replayed"
                self._device.replay(trace)
                return
        self.state = "recording"
        self._device.recorder.on_first_touch(self._touched)

    def _touched(self) -> None:
        """Somebody reads: store what there is after a while."""
        with self._lock:
            if self._finished:
                return
            self._timer = threading.Timer(self._seconds, self._store)
            self._timer.daemon = True
            self._timer.start()

    def finish(self) -> None:
        """Store what was recorded, unless it is stored; the device is open still. Idempotent."""
        with self._lock:
            self._finished = True
            timer, self._timer = self._timer, None
        if self._loading.ident is not None:
            self._loading.join(_PATIENCE_SECONDS)  # the store may not answer for long
        if timer is not None:
            timer.cancel()
            timer.join()
        self._store()

    def _store(self) -> None:
        with self._lock:
            if self.state != "recording":
                return
            self.state = "not stored"
        trace = self._device.trace(self._seconds)
        reason = self._unsuited(trace)
        if reason is not None:
            log.debug("the trace is not stored: %s", reason)
            return
        anew = self._mode is TraceMode.RECORD
        try:
            stored = store_trace(self._storage, self._manifest, self._artifact, trace, replace=anew)
        except BootstreamError as error:
            log.debug("the trace is not stored: %s", error)
            return
        if stored:
            self.state = "stored"
            log.info(
                "a trace of %d chunks is stored: %s/%s",
                trace.chunk_count, self._manifest.build_id, self._artifact,
            )  # fmt: skip

    def _unsuited(self, trace: Trace) -> str | None:
        """Say why this is not worth to be every boot's plan, None if it is."""
        if trace.chunk_count < FEWEST_CHUNKS and self._mode is TraceMode.AUTO:
            return "too little was read"
        if not trace.chunk_count:
            return "nothing was read"
        size = trace.chunk_count * trace.chunk_size
        if self._mode is TraceMode.AUTO and size > COPY_BYTES:
            whole = self._manifest.artifact(self._artifact).size
            extents = self._device.extents(0, whole)
            if size > sum(extent.length for extent in extents if not extent.hole) // 2:
                return "all of it was read, as by a copy"
        return None
