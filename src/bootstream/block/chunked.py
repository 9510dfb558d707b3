"""A device whose bytes are chunks in packs: from image offsets to chunks to views.

The warm read is the hot path of the whole product, so it is one look-up in a table of
the chunks that were touched, and one slice. Whatever is not in the table goes the longer
way: the index says which frame of which pack the chunk is, the cache whether it is
there. The table is bounded, and emptied by the cache now and then; that only costs the
longer way again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from bootstream.block.cache import NodeCache, PackCache
from bootstream.block.counters import Counters
from bootstream.block.device import ZEROS, Extent, copy_views, merge_extents
from bootstream.block.fetcher import Data, Fetcher, Source
from bootstream.block.flights import Urgency
from bootstream.block.readahead import LARGEST_PIECE, ReadAhead
from bootstream.block.recent import RecentChunks
from bootstream.block.recorder import Recorder
from bootstream.block.trace import Trace
from bootstream.chunks.index import ChunkRef, Index
from bootstream.errors import InvalidInput

_MOST_VIEWS = 1 << 16
_MEMORY = 32 << 20


class ChunkSource(Source, Protocol):
    """What a device needs of ``bootstream.chunks.reader.ChunkReader``."""

    @property
    def index(self) -> Index:
        """Where the chunks are."""
        ...

    @property
    def received(self) -> int:
        """How many stored bytes came from the store."""
        ...


class ChunkedDevice:
    """A read-only device over an index. Safe to use from several threads.

    Args:
        reader: fetches chunks; the device does not outlive it.
        cache: None, or where it cannot be filled, leaves the chunks in memory for a while.
        store: ``StorageDetails.identity`` of the store that the packs are in.

    Reads raise what the reader raises; the next read tries again. The cache may be shared
    and is closed by whoever made it.
    """

    writable = False

    def __init__(
        self, reader: ChunkSource, cache: NodeCache | None, *, store: str, patience: float = 0.0
    ) -> None:
        index = reader.index
        self.size = index.size
        self._index = index
        self._reader = reader
        self._chunk_size = index.chunk_size
        self._shift = index.chunk_size.bit_length() - 1
        self._mask = index.chunk_size - 1
        self._cache = cache
        self._packs: list[PackCache] = []
        self._views: dict[int, memoryview] = {}
        if cache is not None:
            for pack in index.packs:
                names = (store, pack.build_id, pack.artifact)
                self._packs.append(cache.pack(*names, raw=pack.raw, chunk_size=index.chunk_size))
            cache.attach(self._views)
        self._recent = RecentChunks(max(_MEMORY, 4 * index.chunk_size))
        self._ahead = ReadAhead(chunk_size=index.chunk_size, chunk_count=index.chunk_count)
        self._traced = b""
        self.recorder = Recorder(index.chunk_count)
        self._fetcher = Fetcher(
            reader,
            self._arrived,
            self._keep,
            self._missing,
            piece=max(1, LARGEST_PIECE // index.chunk_size),
            recorder=self.recorder,
            patience=patience,
        )

    # Reading

    def read_warm(self, offset: int, length: int) -> Sequence[memoryview] | None:
        """Return the range's views, or None if a chunk of it has to be fetched."""
        view = self._views.get(offset >> self._shift)
        if view is not None:
            start = offset & self._mask
            end = start + length
            if end <= self._chunk_size:
                return (view[start:end],)
        return self._gather(offset, length)

    def read_views(self, offset: int, length: int) -> Sequence[memoryview]:
        """Return the range's views; what misses is fetched, together."""
        views = self.read_warm(offset, length)
        if views is not None:
            return views
        first, last = offset >> self._shift, (offset + length - 1) >> self._shift
        self._note(first, last)
        found: dict[int, memoryview] = {}
        missing = []
        for chunk in range(first, last + 1):
            view = self._find(chunk)
            if view is None:
                missing.append(chunk)
            else:
                found[chunk] = view
        if missing:
            found.update(self._fetcher.get(missing))
        return self._cut([found[chunk] for chunk in range(first, last + 1)], offset, length)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer``; one copy."""
        copy_views(self.read_views(offset, len(buffer)), buffer)

    def _gather(self, offset: int, length: int) -> list[memoryview] | None:
        """The warm read of a range that spans chunks, or of chunks not in the table."""
        first, last = offset >> self._shift, (offset + length - 1) >> self._shift
        known = self._views.get
        fresh = False
        views = []
        for chunk in range(first, last + 1):
            view = known(chunk)
            if view is None:
                fresh = True
                view = self._find(chunk)
                if view is None:
                    return None
            views.append(view)
        if fresh:
            self._note(first, last)
        return self._cut(views, offset, length)

    def _cut(self, views: list[memoryview], offset: int, length: int) -> list[memoryview]:
        """Trim the views of whole chunks to the range."""
        start = offset & self._mask
        excess = start + length - (len(views) - 1) * self._chunk_size
        views[-1] = views[-1][:excess]
        if start:
            views[0] = views[0][start:]
        return views

    # Chunks

    def _find(self, chunk: int) -> memoryview | None:
        """Return the chunk's view for a reader, and keep it in the table if it is warm."""
        view = self._locate(chunk)
        if view is not None:
            if len(self._views) >= _MOST_VIEWS:
                self._views.clear()
            self._views[chunk] = view
            return view
        return self._recent.get(chunk)

    def _locate(self, chunk: int) -> memoryview | None:
        """Return the chunk's view if it is zeros or cached.

        Only what a reader asked for goes into the table: read-ahead knows by a chunk that
        is not there how far the reader has come.
        """
        ref = self._index.lookup(chunk)
        length = min(self._chunk_size, self.size - (chunk << self._shift))
        if ref is None:
            return ZEROS[:length]
        if self._packs:
            return self._packs[ref.pack].find(ref.ordinal, ref.sha256, length)
        return None

    def _arrived(self, chunk: int) -> memoryview | None:
        """Return the chunk's view if it is here, for whoever is about to fetch it."""
        return self._locate(chunk) or self._recent.get(chunk)

    def _keep(self, arrived: Sequence[tuple[int, Data]]) -> list[memoryview]:
        """Put chunks that arrived into the cache, or else into memory; return their views."""
        if not self._packs:
            return [self._recent.put(chunk, data) for chunk, data in arrived]
        by_pack: dict[int, list[tuple[int, ChunkRef, Data]]] = {}
        for chunk, data in arrived:
            ref = self._index.lookup(chunk)
            assert ref is not None
            by_pack.setdefault(ref.pack, []).append((chunk, ref, data))
        views: dict[int, memoryview | None] = {}
        for pack, entries in by_pack.items():
            filled = self._packs[pack].fill_many(
                [(ref.ordinal, ref.sha256, data) for _, ref, data in entries]
            )
            views.update(zip((chunk for chunk, _, _ in entries), filled, strict=True))
        return [views[chunk] or self._recent.put(chunk, data) for chunk, data in arrived]

    def _missing(self, chunks: Sequence[int]) -> list[int]:
        """Return, ascending, those chunks that have to be fetched."""
        if not isinstance(chunks, range):
            return [
                c for c in sorted(chunks) if not self._index.is_zero(c) and not self._arrived(c)
            ]
        missing = []
        chunk, stop = chunks.start, chunks.stop
        while chunk < stop:
            count, zero = self._index.run(chunk, stop - chunk)
            if not zero:
                missing += [c for c in range(chunk, chunk + count) if self._arrived(c) is None]
            chunk += count
        return missing

    def _note(self, first: int, last: int) -> None:
        """Somebody reads these chunks for the first time: fetch ahead if that is worth it."""
        self.recorder.touch(first, last)
        # What follows a chunk of the trace is in the trace as well, if it is wanted.
        if self._traced and self._traced.find(0, first, last + 1) < 0:
            return
        ahead = self._ahead.note(first, last, self._fetcher.pace.limit)
        if ahead is not None:
            self._fetcher.ahead(range(*ahead), Urgency.AHEAD)

    def replay(self, trace: Trace) -> None:
        """Fetch what a trace names, about in its order, in large requests, in the background.

        Raises:
            InvalidInput: it is of other contents.
        """
        if (trace.index_sha256, trace.chunk_size) != (self._index.digest, self._chunk_size):
            raise InvalidInput(
                "the trace is of other contents",
                operation="replay trace",
                object=self._index.name,
                remedy="record another: bootstream trace record",
            )
        chunks = [chunk for chunk in trace.arranged() if chunk < self._index.chunk_count]
        if not self._packs:  # what memory cannot hold would push itself out
            del chunks[_MEMORY // 2 // self._chunk_size :]
        traced = bytearray(self._index.chunk_count)
        for chunk in chunks:
            traced[chunk] = 1
        self._traced = bytes(traced)
        self._fetcher.ahead(chunks, Urgency.AHEAD)

    def trace(self, seconds: float = 600.0) -> Trace:
        """Return the first touches since the device was opened, of so many seconds."""
        return self.recorder.trace(
            self._index.digest, self._chunk_size, self._index.is_zero, seconds=seconds
        )

    # The rest of a device

    @property
    def index(self) -> Index:
        """Where its chunks are."""
        return self._index

    @property
    def received(self) -> int:
        """How many stored bytes came since the device was opened, gaps and repeats with them."""
        return self._reader.received

    @property
    def counters(self) -> Counters:
        """What was fetched and waited for since the device was opened."""
        return self._fetcher.counters

    def extents(self, offset: int, length: int) -> list[Extent]:
        """Describe the range; chunks that are stored nowhere are holes."""
        found = []
        end = offset + length
        while offset < end:
            chunk = offset >> self._shift
            last = (end - 1) >> self._shift
            count, zero = self._index.run(chunk, last - chunk + 1)
            stop = min(end, (chunk + count) << self._shift)
            found.append(Extent(stop - offset, zero, zero))
            offset = stop
        return merge_extents(found)

    def prefetch(self, offset: int, length: int) -> None:
        """Fetch the range soon, in the background."""
        if not self._packs:  # what memory cannot hold would push itself out
            length = min(length, _MEMORY // 2)
        first, last = offset >> self._shift, (offset + length - 1) >> self._shift
        self._fetcher.ahead(range(first, last + 1), Urgency.BACKGROUND)

    def wait_for_prefetch(self, timeout: float) -> bool:
        """Return True once no prefetch is under way, False after ``timeout`` seconds."""
        return self._fetcher.wait_until_idle(timeout)

    def write(self, data: memoryview, offset: int) -> None:
        """Refuse: raises InvalidInput."""
        del data, offset
        raise self._read_only()

    def zero(self, offset: int, length: int, *, may_trim: bool) -> None:
        """Refuse: raises InvalidInput."""
        del offset, length, may_trim
        raise self._read_only()

    def trim(self, offset: int, length: int) -> None:
        """Refuse: raises InvalidInput."""
        del offset, length
        raise self._read_only()

    def _read_only(self) -> InvalidInput:
        return InvalidInput(
            "the device is read-only",
            operation="write",
            object=self._index.name,
            remedy="put an overlay on it",
        )

    def flush(self) -> None:
        """There is nothing to make durable."""

    def close(self) -> None:
        """Stop prefetching and let the cache's segments go; idempotent."""
        self._fetcher.close()
        if self._cache is not None:
            self._cache.detach(self._views)
        self._views.clear()
        self._recent.clear()
