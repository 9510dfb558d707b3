"""Power cuts: whatever a disk kept of what was not synced, the last flush is there.

The overlay writes to a file as always; every write and every sync is noted beside. A power
cut is then made up: all that was synced, and of what came later any sectors of 512 bytes.
Header and map may be torn in any place, for the few states of a small device would never lie
in two sectors.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from unittest import mock

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bootstream.block.overlay import Overlay
from bootstream.testing.device import read_all
from bootstream.testing.memory_device import MemoryDevice

SECTOR = 512
TORN = 8
DATA = 1 << 20
BLOCK = 4096
BLOCKS = 6
BASE = b"".join(bytes([200 + n]) * BLOCK for n in range(BLOCKS))

events = st.lists(
    st.tuples(
        st.sampled_from(("write", "write", "trim", "zero", "flush", "reopen")),
        st.integers(0, BLOCKS * 8 - 1),
        st.integers(1, 20),
    ),
    min_size=1,
    max_size=14,
)


class Disk:
    """What a disk was told, in order."""

    def __init__(self) -> None:
        self.durable = bytearray()
        self.pending: list[tuple[int, bytes]] = []

    def note(self, offset: int, data: bytes) -> None:
        """A write that is not durable yet."""
        self.pending.append((offset, data))

    def sync(self) -> None:
        """All writes so far are durable."""
        for offset, data in self.pending:
            self._apply(self.durable, offset, data)
        self.pending.clear()

    def after_power_cut(self, source: random.Random) -> bytes:
        """What may be on the disk afterwards."""
        image = bytearray(self.durable)
        likely = source.choice((0.0, 0.1, 0.5, 0.9, 1.0))
        for offset, data in self.pending:
            unit = SECTOR if offset >= DATA else TORN
            for at in range(0, len(data), unit):
                if source.random() < likely:
                    self._apply(image, offset + at, data[at : at + unit])
        return bytes(image)

    @staticmethod
    def _apply(image: bytearray, offset: int, data: bytes) -> None:
        image.extend(bytes(max(0, offset + len(data) - len(image))))
        image[offset : offset + len(data)] = data


@contextmanager
def noted(disk: Disk) -> Iterator[None]:
    """Note every write and sync of this process to ``disk``; holes are not punched."""
    pwrite, pwritev, fdatasync, fsync = os.pwrite, os.pwritev, os.fdatasync, os.fsync

    def note_pwrite(descriptor: int, data: bytes, offset: int) -> int:
        disk.note(offset, bytes(data))
        return pwrite(descriptor, data, offset)

    def note_pwritev(descriptor: int, buffers: list[bytes], offset: int) -> int:
        disk.note(offset, b"".join(buffers))
        return pwritev(descriptor, buffers, offset)

    def note_fdatasync(descriptor: int) -> None:
        fdatasync(descriptor)
        disk.sync()

    def note_fsync(descriptor: int) -> None:
        fsync(descriptor)
        disk.sync()

    with (
        mock.patch.object(os, "pwrite", note_pwrite),
        mock.patch.object(os, "pwritev", note_pwritev),
        mock.patch.object(os, "fdatasync", note_fdatasync),
        mock.patch.object(os, "fsync", note_fsync),
        mock.patch("bootstream.block.overlay.punch_hole", return_value=False),
        mock.patch("bootstream.block.overlay.zero_range", return_value=False),
    ):
        yield


def sectors(data: bytes | bytearray) -> list[bytes]:
    """Cut into sectors."""
    return [bytes(data[at : at + SECTOR]) for at in range(0, len(data), SECTOR)]


Allowed = list[set[bytes]]


class Trial:
    """A history, and the power cuts in it: images of the disk and what may be read there."""

    def __init__(self, path: Path, disk: Disk, seed: int) -> None:
        self.path = path
        self.disk = disk
        self.source = random.Random(seed)
        self.cuts: list[tuple[bytes, Allowed]] = []
        self.model = bytearray(BASE)
        self.allowed: Allowed = [{sector} for sector in sectors(BASE)]
        self.device = self.open()

    def open(self) -> Overlay:
        """Open the overlay."""
        return Overlay(MemoryDevice(BASE), self.path, base_digest="d")

    def cut(self) -> None:
        """Make up a power cut at this moment."""
        image = self.disk.after_power_cut(self.source)
        self.cuts.append((image, [set(sector) for sector in self.allowed]))

    def change(self, what: str, offset: int, data: bytes) -> None:
        """Write ``data``, or zeros in one way or another."""
        if what == "write":
            self.device.write(memoryview(data), offset)
        else:
            data = bytes(len(data))
            self.device.zero(offset, len(data), may_trim=what == "trim")
        self.model[offset : offset + len(data)] = data
        for number, found in enumerate(sectors(self.model)):
            self.allowed[number].add(found)

    def settle(self, what: str) -> None:
        """Flush or reopen, with a power cut before one of the writes and syncs of that."""
        note, sync = self.disk.note, self.disk.sync
        left = self.source.randrange(5)

        def count() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                self.cut()

        def cut_note(offset: int, data: bytes) -> None:
            count()
            note(offset, data)

        def cut_sync() -> None:
            count()
            sync()

        with (
            mock.patch.object(self.disk, "note", cut_note),
            mock.patch.object(self.disk, "sync", cut_sync),
        ):
            self.device.flush()
            if what == "reopen":
                self.device.close()
                self.device = self.open()
        self.allowed = [{found} for found in sectors(self.model)]


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(history=events, seed=st.integers(0, 1 << 30))
def test_power_cut(tmp_path: Path, history: list[tuple[str, int, int]], seed: int) -> None:
    """Every sector is as flushed last, or as something written after that; then again."""
    path = tmp_path / "overlay"
    path.unlink(missing_ok=True)
    disk = Disk()
    with noted(disk):
        trial = Trial(path, disk, seed)
        try:
            for step, (what, sector, count) in enumerate(history):
                if what in ("flush", "reopen"):
                    trial.settle(what)
                    continue
                length = min(count * SECTOR, len(BASE) - sector * SECTOR)
                trial.change(what, sector * SECTOR, bytes([step + 1]) * length)
            trial.cut()
            size = path.stat().st_size
        finally:
            trial.device.close()
    for image, allowed in trial.cuts:
        check(path, image.ljust(size, b"\0"), allowed, trial.source)


def check(path: Path, image: bytes, allowed: Allowed, source: random.Random) -> None:
    """Open what a power cut left, also after another one during that; see what is there."""
    path.write_bytes(image)
    disk = Disk()
    disk.durable[:] = image
    with noted(disk), mock.patch.object(disk, "sync", cut_before(disk, source, path)):
        Overlay(MemoryDevice(BASE), path, base_digest="d").close()
    for again in (disk.after_power_cut(source), path.with_suffix(".cut").read_bytes()):
        path.write_bytes(again)
        with closing(Overlay(MemoryDevice(BASE), path, base_digest="d")) as survivor:
            for number, found in enumerate(sectors(read_all(survivor))):
                assert found in allowed[number]


def cut_before(disk: Disk, source: random.Random, path: Path) -> Callable[[], None]:
    """A sync that leaves what a power cut before it would have left."""
    sync = disk.sync
    path.with_suffix(".cut").write_bytes(disk.durable)

    def cut_sync() -> None:
        path.with_suffix(".cut").write_bytes(disk.after_power_cut(source))
        sync()

    return cut_sync
