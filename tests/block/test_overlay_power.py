"""Power cuts: whatever a disk kept of what was not synced, the last flush is there.

The overlay writes to a file as always; every write and every sync is noted beside. A power
cut is then made up: all that was synced, and of what came later any sectors of 512 bytes.
Header and map may be torn in any place, for the few states of a small device would never lie
in two sectors.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
        st.sampled_from(
            ("write", "write", "trim", "zero", "flush", "cut", "kill in flush")
            + ("cut in flush",) * 3
        ),
        st.integers(0, BLOCKS * 8 - 1),
        st.integers(1, 20),
    ),
    min_size=1,
    max_size=20,
)


class Disk:
    """What a disk was told, in order."""

    def __init__(self) -> None:
        self.durable = bytearray()
        self.pending: list[tuple[int, bytes]] = []

    def before(self) -> None:
        """Called before every write and sync."""

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
        disk.before()
        disk.note(offset, bytes(data))
        return pwrite(descriptor, data, offset)

    def note_pwritev(descriptor: int, buffers: list[bytes], offset: int) -> int:
        disk.before()
        disk.note(offset, b"".join(buffers))
        return pwritev(descriptor, buffers, offset)

    def note_fdatasync(descriptor: int) -> None:
        disk.before()
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
        mock.patch("bootstream.block.overlay_layer.punch_hole", return_value=False),
        mock.patch("bootstream.block.overlay_layer.zero_range", return_value=False),
    ):
        yield


def sectors(data: bytes | bytearray) -> list[bytes]:
    """Cut into sectors."""
    return [bytes(data[at : at + SECTOR]) for at in range(0, len(data), SECTOR)]


class Trial:
    """A history with power cuts in it, and what may be read after each."""

    def __init__(self, path: Path, disk: Disk, seed: int) -> None:
        self.path = path
        self.disk = disk
        self.source = random.Random(seed)
        self.model = bytearray(BASE)
        self.allowed = [{sector} for sector in sectors(BASE)]
        self.device = self.open()

    def open(self) -> Overlay:
        """Open the overlay."""
        return Overlay(MemoryDevice(BASE), self.path, base_digest="d")

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

    def flush(self) -> None:
        """Flush; all is durable then."""
        self.device.flush()
        self.allowed = [{found} for found in sectors(self.model)]

    def kill(self) -> None:
        """End the process before one of the writes and syncs of a flush; nothing is lost yet."""
        left = self.source.randrange(4)

        def count(*_: object) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt

        with (
            mock.patch.object(self.disk, "before", count),
            contextlib.suppress(KeyboardInterrupt),
        ):
            self.device.flush()
        self.device._file.close()
        if self.source.random() < 0.5:  # and then lose power while it is opened again
            self.restore(self.cut_within(lambda: self.open().close()))
        self.look()

    def look(self) -> None:
        """Open, and compare what is there with what may be."""
        self.device = self.open()
        self.model[:] = read_all(self.device)
        for number, found in enumerate(sectors(self.model)):
            assert found in self.allowed[number]

    def cut(self, what: str) -> None:
        """Lose power, perhaps within a flush, and perhaps again while opening afterwards."""
        image = self.disk.after_power_cut(self.source)
        if what == "cut in flush":
            self.change("write", self.source.randrange(BLOCKS) * BLOCK, b"\xfe" * BLOCK)
            image = self.cut_within(self.device.flush)
        self.device.close()
        self.restore(image)
        if self.source.random() < 0.5:
            image = self.cut_within(lambda: self.open().close())
            self.restore(image)
        self.look()
        self.allowed = [{found} for found in sectors(self.model)]

    def cut_within(self, action: Callable[[], None]) -> bytes:
        """Return what a power cut before one of the writes and syncs of ``action`` leaves."""
        images: list[bytes] = []

        def cut() -> None:
            images.append(self.disk.after_power_cut(self.source))

        with mock.patch.object(self.disk, "before", cut):
            action()
        images.append(self.disk.after_power_cut(self.source))
        return self.source.choice(images)

    def restore(self, image: bytes) -> None:
        """Make ``image`` what is on the disk."""
        self.path.write_bytes(image.ljust(self.path.stat().st_size, b"\0"))
        self.disk.durable[:] = image
        self.disk.pending.clear()


@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(history=events, seed=st.integers(0, 1 << 30))
def test_power_cuts(tmp_path: Path, history: list[tuple[str, int, int]], seed: int) -> None:
    """After a cut every sector is as flushed last, or as something written after that."""
    path = tmp_path / "overlay"
    path.unlink(missing_ok=True)
    disk = Disk()
    with noted(disk):
        trial = Trial(path, disk, seed)
        try:
            for step, (what, sector, count) in enumerate(history):
                if what.startswith("cut"):
                    trial.cut(what)
                elif what == "kill in flush":
                    trial.kill()
                elif what == "flush":
                    trial.flush()
                else:
                    length = min(count * SECTOR, len(BASE) - sector * SECTOR)
                    trial.change(what, sector * SECTOR, bytes([step + 1]) * length)
            trial.cut("cut in flush")
        finally:
            trial.device.close()
