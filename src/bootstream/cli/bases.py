"""The devices below a server's exports: each artifact of a build is opened once, and watched.

However many exports lie on one artifact, its index, its table of chunks and its way to the
store are there once. Each device has its trace replayed or recorded, and its figures.
"""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import bootstream
from bootstream import wiring
from bootstream.block.stats import MOST_EVENTS, snapshot
from bootstream.cli.localfile import appearing
from bootstream.cli.output import human_size, iso, say
from bootstream.errors import BootstreamError, BuildNotFound
from bootstream.templates.leases import Lease
from bootstream.templates.traces import TraceKeeper, TraceMode

if TYPE_CHECKING:
    from bootstream.block.cache import NodeCache
    from bootstream.block.chunked import ChunkedDevice
    from bootstream.cli.context import Cli
    from bootstream.progress import Progress
    from bootstream.templates.manifest import Manifest

FORMAT = "bootstream/stats"
VERSION = 1
_LOOK_UPS = 32
_CONTROL_EVENTS = 8_000
"""Of each kind in an answer of the control socket, whose lines have at most 1 MiB."""


class Base(NamedTuple):
    """An opened artifact of a build."""

    manifest: Manifest
    artifact: str
    device: ChunkedDevice
    trace: TraceKeeper


@dataclass(slots=True)
class Bases:
    """Opens what exports lie on. The stack closes it all: traces, devices, leases, in this order.

    Args:
        cli: the invocation.
        cache: shared by all.
        stack: closes what is opened here.
        mode: what becomes of traces.
    """

    cli: Cli
    cache: NodeCache
    stack: ExitStack
    mode: TraceMode
    exports: dict[str, Base] = field(default_factory=dict)
    _found: dict[str, str] = field(default_factory=dict)
    _held: dict[str, Manifest] = field(default_factory=dict)
    _bases: dict[tuple[str, str], Base] = field(default_factory=dict)

    def look_up(self, refs: Sequence[str]) -> None:
        """Find out which builds many references name, side by side."""
        with ThreadPoolExecutor(min(_LOOK_UPS, len(refs))) as pool:
            self._found.update(zip(refs, pool.map(self.cli.catalogue.build_of, refs), strict=True))

    def hold(self, ref: str) -> Manifest:
        """Take a lease, one a build; it is checked under the lease, so nothing was collected."""
        build_id = self._found.get(ref) or self.cli.catalogue.build_of(ref)
        if build_id not in self._held:
            try:
                lease = Lease(self.cli.storage, build_id, self.cli.settings.node_id)
            except BuildNotFound:
                self.cli.catalogue.resolve(ref)  # its error also says what the reference is
                raise
            self._held[build_id] = self.stack.enter_context(lease).manifest
        return self._held[build_id]

    def open(self, manifest: Manifest, artifact: str) -> Base:
        """Return an artifact's device, the same one each time."""
        key = (manifest.build_id, artifact)
        if key not in self._bases:
            device = wiring.open_device(
                self.cli.storage,
                self.cache,
                manifest,
                artifact,
                patience=self.cli.settings.read_patience,
            )
            self.stack.enter_context(closing(device))
            keeper = TraceKeeper(
                self.cli.storage,
                manifest,
                artifact,
                device,
                mode=self.mode,
                warn=self.cli.warn,
            )
            self.stack.callback(keeper.finish)
            self._bases[key] = Base(manifest, artifact, device, keeper)
        return self._bases[key]

    def finish(self) -> None:
        """Store what is recorded; idempotent."""
        for base in self._bases.values():
            base.trace.finish()

    def stats(self, *, events: int = MOST_EVENTS) -> dict[str, Any]:
        """Return the document of docs/formats/stats.md, with so many events of each kind."""
        bases = list(self._bases.values())
        return {
            "format": FORMAT,
            "version": VERSION,
            "tool": f"bootstream {bootstream.__version__}",
            "when": iso(datetime.now(UTC)),
            "exports": {name: bases.index(base) for name, base in self.exports.items()},
            "devices": [
                {
                    "template_id": base.manifest.template_id,
                    "build_id": base.manifest.build_id,
                    "artifact": base.artifact,
                    "trace": _trace_to_json(base.trace),
                    **snapshot(base.device, events=events).to_json(),
                }
                for base in bases
            ],
        }

    def answer(self, request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        """Answer the control socket's request ``stats``."""
        del request, progress
        most = _CONTROL_EVENTS // max(1, len(self._bases))
        return self.stats(events=most)

    def tell(self) -> None:
        """Say what was read and fetched, a line or two for each device that was used."""
        for base in self._bases.values():
            counters = snapshot(base.device, events=0).counters
            if counters["touched_chunks"] or counters["fetched_bytes"]:
                for line in lines_of(counters, str(base.trace.state)):
                    say(f"{base.manifest.template_id} {base.artifact}: {line}")


def lines_of(counters: Mapping[str, float], trace: str) -> Iterator[str]:
    """Yield a device's counters as people read them."""
    hits = counters["cache_hits"] + counters["prefetch_hits"]
    yield (
        f"{human_size(counters['touched_bytes'])} asked, "
        f"{human_size(counters['fetched_bytes'])} fetched "
        f"({human_size(counters['stored_bytes'])} stored), "
        f"{human_size(counters['wasted_bytes'])} wasted; "
        f"{counters['requests']:.0f} requests, {counters['prefetches']:.0f} prefetches, "
        f"{counters['hedges']:.0f} hedges; "
        f"{hits:.0f} of {counters['touched_chunks']:.0f} chunks were there"
    )
    yield (
        f"{counters['waits']:.0f} waits of {counters['wait_ms'] / 1000:.2f} s together: "
        f"half within {counters['wait_p50_ms']:.1f} ms, 99 of 100 within "
        f"{counters['wait_p99_ms']:.1f} ms, the longest {counters['wait_max_ms']:.1f} ms; "
        f"trace {trace}"
    )


def _trace_to_json(keeper: TraceKeeper) -> dict[str, Any]:
    trace = keeper.replayed
    return {
        "state": keeper.state,
        "chunks": 0 if trace is None else trace.chunk_count,
        "boots": 0 if trace is None else trace.boots,
    }


@contextmanager
def writing_stats(cli: Cli, bases: Bases, path: Path | None) -> Iterator[None]:
    """Write figures to ``path`` at the start, whenever SIGUSR1 comes, and at the block's end.

    Trouble is raised at the start, and a warning later. With ``-v`` the figures are told at
    the end, too; traces are stored before that.
    """
    lock = threading.Lock()
    threads: list[threading.Thread] = []

    def write() -> None:
        assert path is not None
        with lock, appearing(path, operation="write statistics to", replace=True) as target:
            target.write_text(json.dumps(bases.stats(), separators=(",", ":")) + "\n", "utf-8")

    def try_to_write() -> None:
        try:
            write()
        except BootstreamError as error:
            cli.warn(str(error))

    def asked(_signum: int, _frame: object) -> None:
        # Not here: this interrupts the main thread wherever it is, in locks that it holds.
        thread = threading.Thread(target=try_to_write, name="stats")
        threads.append(thread)
        thread.start()

    watched = path is not None and threading.current_thread() is threading.main_thread()
    if path is not None:
        write()
    before = signal.signal(signal.SIGUSR1, asked) if watched else None
    try:
        yield
    finally:
        if watched:
            signal.signal(signal.SIGUSR1, before)
        for thread in threads:
            thread.join()
        bases.finish()
        if cli.verbose and not cli.quiet:
            bases.tell()
        if path is not None:
            try_to_write()
