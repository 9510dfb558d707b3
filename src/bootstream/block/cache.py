"""The node cache: decoded chunks on this host's disk, shared by all exports and processes.

docs/formats/cache.md is the disk format and the rules between processes. What this
module adds is who lets go of what, and when:

- A ``PackCache`` opens segments as chunks of them are asked for, and keeps them.
- Devices keep views of chunks in tables of their own, so that a warm read costs one
  look-up there. The cache knows the tables only to empty them: about once a minute, so
  that what is still used comes by again and is seen to be used, and when it lets a
  segment go. A view that outlives that is never wrong, since chunks never change; it only
  keeps its room.
- Trouble with the cache's disk is never a reader's trouble: chunks are then served
  uncached, and one warning says why.
"""

from __future__ import annotations

import hashlib
import logging
import os
import resource
import threading
import time
from collections.abc import Iterator, MutableMapping, Sequence
from pathlib import Path

from bootstream.block.disk import disk_error
from bootstream.block.eviction import Evictor
from bootstream.block.segment import Layout, Segment, open_segment
from bootstream.errors import InvalidInput, PermissionDenied

_log = logging.getLogger(__name__)

VERSION = "v1"
SEGMENT_SIZE = 64 << 20
_SMALLEST_SEGMENT = 1 << 20
_ROUND_SECONDS = 60.0
_IDLE_ROUNDS = 5
_RETRY_SECONDS = 10.0

ViewTable = MutableMapping[int, memoryview]


class NodeCache:
    """A folder of chunks, at most ``limit`` bytes of it. Safe to use from several threads.

    Args:
        folder: made, private, if it is not there. Any number of processes share it.
        limit: bytes; None is a tenth of the disk that ``folder`` lies on. 0 keeps nothing.
        boot_id: 16 bytes that change with every start of the host; None asks the kernel.

    Raises:
        PermissionDenied, StorageFull, Unavailable: the folder cannot be made or used.
        InvalidInput: ``limit`` is negative.
    """

    def __init__(self, folder: Path, limit: int | None = None, *, boot_id: bytes | None = None):
        if limit is not None and limit < 0:
            raise InvalidInput("a size cannot be negative", operation="open cache")
        root = folder / VERSION
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            root.mkdir(mode=0o700, exist_ok=True)
            _check_private(root)
            if limit is None:
                disk = os.statvfs(root)
                limit = disk.f_blocks * disk.f_frsize // 10
        except OSError as error:
            raise disk_error(error, "open cache", str(folder)) from error
        self.folder = folder
        self.limit = limit
        self.root = root
        self.boot_id = boot_id or _boot_id()
        self.segment_size = _segment_size(limit)
        self._lock = threading.RLock()
        self._packs: dict[bytes, PackCache] = {}
        self._tables: dict[int, ViewTable] = {}
        self._evictor = Evictor(root, limit, self._stamp, self._release_path)
        self._most_open = _most_open()
        self._paused_until = 0.0
        self._warned: set[int | None] = set()
        self._stop = threading.Event()
        self._keeper: threading.Thread | None = None

    def pack(
        self, store: str, build_id: str, artifact: str, *, raw: bool, chunk_size: int
    ) -> PackCache:
        """Return the part of the cache that holds one pack's chunks; touches nothing."""
        names = [store, build_id, artifact, "raw" if raw else "pack"]
        text = "\0".join([*names, str(chunk_size), str(self.segment_size)])
        key = hashlib.sha256(text.encode()).digest()
        slots = max(1, self.segment_size // chunk_size)
        with self._lock:
            if key not in self._packs:
                layout = Layout(key, chunk_size, slots, self.boot_id)
                self._packs[key] = PackCache(self, self.root / key.hex(), layout)
            return self._packs[key]

    def attach(self, table: ViewTable) -> None:
        """Know a device's table of views, to empty it from time to time."""
        with self._lock:
            self._tables[id(table)] = table

    def detach(self, table: ViewTable) -> None:
        """Forget the table; idempotent."""
        with self._lock:
            self._tables.pop(id(table), None)

    def close(self) -> None:
        """Let every segment go; idempotent. Views that are out stay valid."""
        self._stop.set()
        with self._lock:
            keeper, self._keeper = self._keeper, None
            for pack in self._packs.values():
                for number in list(pack.segments):
                    self._release(pack, number)
            self._empty_tables()
        if keeper is not None:
            keeper.join()

    def used(self) -> int:
        """Return how many bytes of disk all segments take now."""
        return self._evictor.used()

    # What PackCache calls

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called: nothing is opened any more."""
        return self._stop.is_set()

    def may_fill(self, size: int) -> bool:
        """Make room for ``size`` more bytes; False if chunks are to be served uncached."""
        if not self.limit or self._stop.is_set() or time.monotonic() < self._paused_until:
            return False
        try:
            if self._evictor.reserve(size):
                return True
        except OSError as error:
            self.warn(error)
        self._paused_until = time.monotonic() + 1.0
        return False

    def warn(self, error: OSError) -> None:
        """Serve uncached for a while, and say why, once for each reason."""
        self._paused_until = time.monotonic() + _RETRY_SECONDS
        if error.errno not in self._warned:
            self._warned.add(error.errno)
            what = error.strerror or error
            _log.warning("the node cache in %s cannot be filled: %s", self.folder, what)

    def opened(self) -> None:
        """A segment was opened: keep watch over it, and hold not too many of them."""
        with self._lock:
            if self._keeper is None and not self._stop.is_set():
                self._keeper = threading.Thread(
                    target=self._keep, name="bootstream-cache", daemon=True
                )
                self._keeper.start()
            held = [(p, n, s) for p in self._packs.values() for n, s in p.segments.items()]
            if len(held) > self._most_open:
                self._empty_tables()
                held.sort(key=lambda entry: entry[2].used_ns)
                for pack, number, _ in held[: len(held) // 2]:
                    self._release(pack, number)

    def _keep(self) -> None:
        while not self._stop.wait(_ROUND_SECONDS):
            self.tidy()

    def tidy(self) -> None:
        """Stamp what was used since the last call, and let go what was not for long."""
        with self._lock:
            self._empty_tables()
            for pack in self._packs.values():
                for number, segment in list(pack.segments.items()):
                    if segment.used_ns != segment.seen_ns:
                        segment.seen_ns, segment.idle = segment.used_ns, 0
                        segment.stamp()
                        continue
                    segment.idle += 1
                    if segment.idle > _IDLE_ROUNDS:
                        self._release(pack, number)

    def _stamp(self) -> None:
        """Tell all processes what this one has used since the last ``tidy``."""
        with self._lock:
            for pack in self._packs.values():
                for segment in list(pack.segments.values()):
                    if segment.used_ns != segment.seen_ns:
                        segment.stamp()

    def _empty_tables(self) -> None:
        for table in self._tables.values():
            table.clear()

    def _release(self, pack: PackCache, number: int) -> None:
        segment = pack.segments.pop(number, None)
        if segment is not None:
            segment.release()

    def _release_path(self, path: Path) -> None:
        """Let go of the segment at ``path``, if this process holds it: it is to be evicted."""
        with self._lock:
            for pack in self._packs.values():
                if pack.folder == path.parent:
                    for number, segment in list(pack.segments.items()):
                        if segment.path == path:
                            self._release(pack, number)
                            self._empty_tables()


class PackCache:
    """One pack's chunks in the cache. Made by ``NodeCache.pack``; thread safe."""

    def __init__(self, cache: NodeCache, folder: Path, layout: Layout) -> None:
        self._cache = cache
        self._layout = layout
        self._lock = threading.Lock()
        self.folder = folder
        self.segments: dict[int, Segment] = {}

    def find(self, ordinal: int, digest: bytes, length: int) -> memoryview | None:
        """Return the frame's chunk if it is cached and, as far as is known, whole."""
        number, slot = divmod(ordinal, self._layout.slots)
        try:
            segment = self.segments.get(number) or self._open(number, create=False)
            return None if segment is None else segment.find(slot, digest, length)
        except OSError as error:
            self._cache.warn(error)
            return None

    def fill(self, ordinal: int, digest: bytes, data: bytes | memoryview) -> memoryview | None:
        """Keep a verified chunk and return its view; None: it has to be served uncached."""
        if not self._cache.may_fill(len(data)):
            return None
        number, slot = divmod(ordinal, self._layout.slots)
        try:
            segment = self.segments.get(number) or self._open(number, create=False)
            if segment is None and self._cache.may_fill(self._layout.data):
                segment = self._open(number, create=True)
            return None if segment is None else segment.fill(slot, digest, data)
        except OSError as error:
            self._cache.warn(error)
            return None

    def fill_many(
        self, chunks: Sequence[tuple[int, bytes, bytes | memoryview]]
    ) -> list[memoryview | None]:
        """``fill`` for several ``(ordinal, sha256, data)``; neighbours are written together."""
        views: list[memoryview | None] = []
        for run in self._runs(chunks):
            ordinal = run[0][0]
            number, slot = divmod(ordinal, self._layout.slots)
            segment = self.segments.get(number)
            written = False
            if len(run) > 1 and segment is not None:
                data = [chunk[2] for chunk in run]
                if self._cache.may_fill(sum(map(len, data))):
                    try:
                        written = segment.fill_run(slot, [chunk[1] for chunk in run], data)
                    except OSError as error:
                        self._cache.warn(error)
            if written and segment is not None:
                views += [segment.view(slot + n, len(chunk[2])) for n, chunk in enumerate(run)]
            else:
                views += [self.fill(*chunk) for chunk in run]
        return views

    def _runs(
        self, chunks: Sequence[tuple[int, bytes, bytes | memoryview]]
    ) -> Iterator[list[tuple[int, bytes, bytes | memoryview]]]:
        """Split into runs of neighbours in one segment, all but the last as long as a slot."""
        run: list[tuple[int, bytes, bytes | memoryview]] = []
        for chunk in chunks:
            if run and not (
                chunk[0] == run[-1][0] + 1
                and chunk[0] % self._layout.slots
                and len(run[-1][2]) == self._layout.chunk_size
            ):
                yield run
                run = []
            run.append(chunk)
        if run:
            yield run

    def _open(self, number: int, *, create: bool) -> Segment | None:
        with self._lock:
            segment = self.segments.get(number)
            if segment is not None or self._cache.closed:
                return segment
            path = self.folder / f"{number:08d}.seg"
            segment = open_segment(path, number, self._layout, create=create)
            if segment is None:
                return None
            self.segments[number] = segment
        self._cache.opened()
        return segment


def _segment_size(limit: int) -> int:
    """The largest power of two up to a sixteenth of the limit, within bounds."""
    return max(_SMALLEST_SEGMENT, min(SEGMENT_SIZE, 1 << max(0, (limit // 16).bit_length() - 1)))


def _most_open() -> int:
    """How many segments to hold: two descriptors each take a quarter of what is allowed."""
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 4096 if allowed == resource.RLIM_INFINITY else max(8, min(4096, allowed // 8))


def _boot_id() -> bytes:
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        return bytes.fromhex(text.strip().replace("-", ""))[:16].ljust(16, b"\0")
    except (OSError, ValueError):
        return os.urandom(16)  # unknown: everything found is hashed again


def _check_private(root: Path) -> None:
    """Refuse a folder in which others could put bytes; close it to them if it is ours."""
    status = root.stat()
    if status.st_uid != os.geteuid():
        raise PermissionDenied(
            "it belongs to another user",
            operation="open cache",
            object=str(root),
            remedy="point BOOTSTREAM_CACHE_DIR at a folder of your own",
        )
    if status.st_mode & 0o077:
        root.chmod(0o700)
