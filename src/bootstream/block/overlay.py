"""Copy-on-write: what a client writes, over a base that never changes.

An overlay is a chain of layers (``overlay_layer``) in one file (``overlay_file``). Reads
start at the top and go down; all writes go to the top. ``freeze`` puts an empty layer on
the chain: what was the top is from then on exactly what the device held at that moment, and
can be read at leisure while the client writes on.

A write that is under way while the top changes would land in a frozen layer, after a
newer one completed its block without it. So writers say that they are there, freezing
closes a gate, waits for those inside, flushes the little that came since the flush just
before, and opens the gate again. Readers pass no gate: a layer that was the top a moment
ago still reads as it did. They keep the layer they read alive, and its slot in the file
is given back only when no reader has it.

A layer that was committed is equal to a build. The next commit needs to look at the layers
above it only; afterwards these are merged downwards, so a chain stays short.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from threading import get_ident

from bootstream.block.device import Device, Extent
from bootstream.block.disk import disk_error
from bootstream.block.overlay_file import OverlayFile
from bootstream.block.overlay_header import BLOCK, Committed
from bootstream.block.overlay_layer import Layer
from bootstream.block.overlay_states import States
from bootstream.errors import BootstreamError, Conflict

__all__ = ["BLOCK", "Committed", "Frozen", "Overlay"]

log = logging.getLogger("bootstream.block")

_USUAL_LAYERS = 3
"""What was committed, what a failed commit left, and the top."""


class _Gate:
    """Closed from its making until ``opened``; writers that leave say so."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.left = threading.Event()


class Overlay:
    """A writable device over ``base``. Safe to use from several threads.

    Args:
        base: read only; closed by whoever made it, after the overlay.
        path: where writes are kept, made if it is missing; None throws them away.
        base_digest: names the base's contents (the hex sha256 of its index).
        folder: where a throw-away overlay lies; None takes the system's temporary folder.

    Raises:
        Conflict: somebody has the overlay at ``path`` already.
        InvalidInput: ``path`` is no overlay, or one of another base or version.
        Corrupt: it is damaged.
        StorageFull, PermissionDenied, Unavailable: of the disk it lies on.

    A write that finds the disk full raises StorageFull and changes no block that was not
    written before; the rest of the device keeps working.
    """

    writable = True

    def __init__(
        self,
        base: Device,
        path: Path | None = None,
        *,
        base_digest: str,
        folder: Path | None = None,
    ) -> None:
        self.size = base.size
        self._base = base
        if path is None:
            self._file = OverlayFile.anonymous(base.size, folder)
        else:
            self._file = OverlayFile.open(path, base.size, base_digest)
        self._kept = path is not None
        self._chain: list[Layer] = []
        for place in self._file.layers:
            self._chain.append(Layer(self._chain[-1] if self._chain else base, place, self.size))
        self._top = self._chain[-1]
        self._writing: dict[int, bool] = {}
        self._gate: _Gate | None = None
        self._flush_lock = threading.Lock()
        self._flushes_begun = 0
        self._flushes_done = 0
        self._lost: BootstreamError | None = None
        self._frozen = threading.Lock()

    # Reading

    def read_warm(self, offset: int, length: int) -> Sequence[memoryview] | None:
        """Return the range's views, or None if the base would have to wait."""
        return self._top.read_warm(offset, length)

    def read_views(self, offset: int, length: int) -> Sequence[memoryview]:
        """Return the range's views: the base's own, and fresh ones of what was written."""
        return self._top.read_views(offset, length)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer``; written blocks are read straight into it."""
        self._top.read_into(buffer, offset)

    def extents(self, offset: int, length: int) -> list[Extent]:
        """Describe the range: the base's extents where nothing was written."""
        return self._top.extents(offset, length)

    def prefetch(self, offset: int, length: int) -> None:
        """Pass the advice to the base, for what is still its own."""
        self._top.prefetch(offset, length)

    # Writing: through the gate

    def write(self, data: memoryview, offset: int) -> None:
        """Write; a block that is not written yet is completed from what it reads as."""
        me = get_ident()
        self._writing[me] = True
        try:
            if self._gate is not None:
                self._wait(me)
            self._top.write(data, offset)
        finally:
            self._leave(me)

    def trim(self, offset: int, length: int) -> None:
        """Give the range's room back; it reads as zeros."""
        self.zero(offset, length, may_trim=True)

    def zero(self, offset: int, length: int, *, may_trim: bool) -> None:
        """Make the range read as zeros; without ``may_trim`` it gets room of its own."""
        me = get_ident()
        self._writing[me] = True
        try:
            if self._gate is not None:
                self._wait(me)
            self._top.zero(offset, length, may_trim=may_trim)
        finally:
            self._leave(me)

    def _leave(self, me: int) -> None:
        """Be no writer any more, and say so if somebody waits for that."""
        self._writing.pop(me, None)
        gate = self._gate
        if gate is not None:
            gate.left.set()

    def _wait(self, me: int) -> None:
        """Step back from a closed gate, and in again once it is open."""
        while (gate := self._gate) is not None:
            self._leave(me)
            gate.opened.wait()
            self._writing[me] = True

    @contextmanager
    def _closed_gate(self) -> Iterator[None]:
        """Let no writer in, and have none inside, while the block lasts."""
        gate = self._gate = _Gate()
        try:
            while True:
                gate.left.clear()
                if not self._writing:
                    break
                gate.left.wait()
            yield
        finally:
            self._gate = None
            gate.opened.set()

    # Durability

    def flush(self) -> None:
        """Make durable what was written before; a throw-away overlay has nothing to keep.

        Raises Unavailable, StorageFull or PermissionDenied; what was to be made durable may
        be lost then, and every further flush says so.
        """
        if not self._kept:
            return
        begun = self._flushes_begun
        with self._flush_lock:
            if self._flushes_done > begun:
                return  # one that began after this call has covered it
            self._flushes_begun += 1
            self._flush(self._top)
            self._flushes_done = self._flushes_begun
        if self._file.unused:
            self._file.reclaim()

    def _flush(self, layer: Layer) -> None:
        """Flush one layer; the caller holds the lock."""
        if self._lost is not None:
            raise self._lost
        try:
            layer.flush(self._sync)
        except OSError as error:
            self._lost = disk_error(error, "flush overlay", self._file.name)
            raise self._lost from error

    def _sync(self) -> None:
        """Make the file's data durable; a failure is remembered for good.

        The kernel drops what it could not write, and reports that only once; so no later
        flush could promise anything.
        """
        try:
            os.fdatasync(self._file.descriptor)
        except OSError as error:
            self._lost = disk_error(error, "flush overlay", self._file.name)
            raise self._lost from error

    # Freezing

    @contextmanager
    def freeze(self) -> Iterator[Frozen]:
        """Freeze what the device holds now, and redirect writes; the block reads it.

        Writers wait for some milliseconds. On leaving, layers that are not needed any more
        are merged. A process that ends in between loses nothing: the file names its layers.

        Raises:
            Conflict: it is frozen already, by another commit that is under way.
            StorageFull, PermissionDenied, Unavailable: of the disk; nothing has changed.
        """
        if not self._frozen.acquire(blocking=False):
            raise Conflict(
                "another commit of this overlay is under way",
                operation="freeze overlay",
                object=self._file.name,
                remedy="wait for its end, then commit again",
            )
        try:
            if len(self._chain) > _USUAL_LAYERS:  # what had no room before may have it now
                self._merge(committed=False)
                self._merge(committed=True)
            self._push()
            self._merge(committed=False)
            frozen = Frozen(self, self._chain[:-1])
            try:
                yield frozen
            finally:
                frozen.release()
            self._merge(committed=True)
            self._file.reclaim()
        finally:
            self._frozen.release()

    def _push(self) -> None:
        """Put an empty layer on top, unless the top is empty itself."""
        if self._top.untouched:
            return  # a write that comes now is later than the commit
        self.flush()  # so that little is left to flush while writers wait
        try:
            place = self._file.new_layer()
        except OSError as error:
            raise disk_error(error, "freeze overlay", self._file.name) from error
        try:
            with self._closed_gate(), self._flush_lock:
                if self._kept:
                    self._flush(self._top)
                top = Layer(self._top, place, self.size)
                self._write_chain([*self._chain, top])
        except BaseException:
            self._file.release(place.slot)
            raise

    def _write_chain(self, chain: list[Layer]) -> None:
        """Make ``chain`` the overlay's, on disk first."""
        try:
            self._file.write_chain([layer.file for layer in chain])
        except OSError as error:
            self._lost = disk_error(error, "freeze overlay", self._file.name)
            raise self._lost from error
        chain[0].base = self._base
        for below, layer in pairwise(chain):
            layer.base = below
        self._top = chain[-1]
        self._chain = chain

    def _merge(self, *, committed: bool) -> None:
        """Merge frozen neighbours into the lower one: those committed, or those that are not.

        Where there is no room for that the layers stay, which costs room alone.
        """
        try:
            while (number := self._mergeable(committed=committed)) is not None:
                self._merge_into(number)
        except (OSError, BootstreamError) as error:
            if self._lost is not None:
                raise
            log.warning("%s: its layers stay apart: %s", self._file.name, error)

    def _mergeable(self, *, committed: bool) -> int | None:
        """Return the number of a frozen layer that the next one can be merged into."""
        frozen = self._chain[:-1]
        newest = max(
            (number for number, layer in enumerate(frozen) if layer.file.committed), default=-1
        )
        low, high = (0, newest) if committed else (newest + 1, len(frozen) - 1)
        return high - 1 if high > low else None

    def _merge_into(self, number: int) -> None:
        lower, upper = self._chain[number : number + 2]
        lower.absorb(upper, pause=self._settle)
        with self._flush_lock:
            if self._kept:
                self._flush(lower)
            before = lower.file.committed
            lower.file.committed = upper.file.committed
            try:
                self._write_chain([*self._chain[: number + 1], *self._chain[number + 2 :]])
            except BaseException:
                lower.file.committed = before
                raise
        _release_later(upper, self._file)

    def _settle(self) -> None:
        """Between two pieces of a merge: a client's flush shall not wait for all of it."""
        if self._kept:
            with self._flush_lock:
                self._sync()

    def _mark(self, layer: Layer, build: Committed) -> None:
        with self._flush_lock:
            layer.file.committed = build
            self._write_chain(list(self._chain))

    def close(self) -> None:
        """Flush what is kept and release the file; idempotent. Raises as ``flush``."""
        if self._file.descriptor < 0:
            return
        try:
            self.flush()
        finally:
            with self._flush_lock:
                for layer in self._chain:
                    layer.detach()
                self._file.close()


def _release_later(layer: Layer, file: OverlayFile) -> None:
    """Give the layer's slot back once nobody reads it any more."""
    weakref.finalize(layer, file.release, layer.file.slot).atexit = False


class Frozen:
    """What an overlay held when it was frozen. Use it within the block of ``freeze``.

    Attributes:
        size: of the device in bytes.
        parent: the build that the overlay was committed as before; None: its base.
        changed: one byte a block of 4096, not 0 where it may differ from the parent.
        bytes_changed: how many bytes these blocks have.
    """

    def __init__(self, overlay: Overlay, layers: list[Layer]) -> None:
        self._overlay = overlay
        self._layers = layers
        self.size = overlay.size
        self.parent: Committed | None = None
        fresh: list[Layer] = []
        for layer in reversed(layers):
            if layer.file.committed is not None:
                self.parent = layer.file.committed
                break
            fresh.append(layer)
        self._device: Device | Layer = layers[-1] if layers else overlay._base
        self.changed = _union([layer.states for layer in fresh], -(-self.size // BLOCK))
        self.bytes_changed = (len(self.changed) - self.changed.count(0)) * BLOCK

    def since_base(self) -> None:
        """Compare with the base, not with the build that it was committed as before."""
        self.parent = None
        states = [layer.states for layer in self._layers]
        self.changed = _union(states, -(-self.size // BLOCK))
        self.bytes_changed = (len(self.changed) - self.changed.count(0)) * BLOCK

    def release(self) -> None:
        """Hold no layer any more, so that its room can go; nothing is read afterwards."""
        self._layers = []
        self._device = self._overlay._base

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer`` from ``offset``; thread safe. Raises what the base raises."""
        self._device.read_into(buffer, offset)

    def extents(self, offset: int, length: int) -> list[Extent]:
        """Describe the range, as a device does."""
        return self._device.extents(offset, length)

    def committed(self, build_id: str, index_sha256: str) -> None:
        """Note, durably, which build this is equal to; the next commit builds on it.

        Raises Unavailable, StorageFull: of the disk.
        """
        if self._layers:
            self._overlay._mark(self._layers[-1], Committed(build_id, index_sha256))


def _union(states: list[States], blocks: int) -> bytes:
    """Combine maps of states: not 0 where one of them is not."""
    total = 0
    for column in states:
        total |= int.from_bytes(column, "little")
    return total.to_bytes(blocks, "little")
