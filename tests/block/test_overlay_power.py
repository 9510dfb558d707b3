"""Power cuts: whatever a disk kept of what was not synced, the last flush is there.

The overlay writes to a file as always; every write and every sync is noted beside. A power
cut is then made up: all that was synced, and of what came later any sectors of 512 bytes.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from unittest import mock

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bootstream.block.overlay import Overlay
from bootstream.testing.device import read_all
from bootstream.testing.memory_device import MemoryDevice

SECTOR = 512
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
            for at in range(0, len(data), SECTOR):
                if source.random() < likely:
                    self._apply(image, offset + at, data[at : at + SECTOR])
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


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(history=events, seed=st.integers(0, 1 << 30), within_flush=st.booleans())
def test_power_cut(
    tmp_path: Path, history: list[tuple[str, int, int]], seed: int, within_flush: bool
) -> None:
    """Every sector is as flushed last, or as something written after that."""
    path = tmp_path / "overlay"
    path.unlink(missing_ok=True)
    source = random.Random(seed)
    disk = Disk()
    images: list[bytes] = []
    with noted(disk):
        device = Overlay(MemoryDevice(BASE), path, base_digest="d")
        model = bytearray(BASE)
        allowed = [{sector} for sector in sectors(BASE)]
        try:
            for step, (what, sector, count) in enumerate(history):
                offset = sector * SECTOR
                length = min(count * SECTOR, len(BASE) - offset)
                if what == "flush":
                    if within_flush and step == len(history) - 1:
                        cut_within_flush(disk, device, source, images)
                        break
                    device.flush()
                    allowed = [{found} for found in sectors(model)]
                    continue
                if what == "reopen":
                    device.close()
                    device = Overlay(MemoryDevice(BASE), path, base_digest="d")
                    allowed = [{found} for found in sectors(model)]
                    continue
                data = bytes([step + 1]) * length if what == "write" else bytes(length)
                if what == "write":
                    device.write(memoryview(data), offset)
                else:
                    device.zero(offset, length, may_trim=what == "trim")
                model[offset : offset + length] = data
                for number, found in enumerate(sectors(model)):
                    allowed[number].add(found)
            images += [disk.after_power_cut(source) for _ in range(3)]
            size = path.stat().st_size
        finally:
            device.close()
    for image in images:
        path.write_bytes(image.ljust(size, b"\0"))
        with closing(Overlay(MemoryDevice(BASE), path, base_digest="d")) as survivor:
            for number, found in enumerate(sectors(read_all(survivor))):
                assert found in allowed[number]


def cut_within_flush(
    disk: Disk, device: Overlay, source: random.Random, images: list[bytes]
) -> None:
    """Flush, with a power cut before each of its writes and syncs."""
    note, sync = disk.note, disk.sync

    def cut_note(offset: int, data: bytes) -> None:
        images.append(disk.after_power_cut(source))
        note(offset, data)

    def cut_sync() -> None:
        images.append(disk.after_power_cut(source))
        sync()

    with mock.patch.object(disk, "note", cut_note), mock.patch.object(disk, "sync", cut_sync):
        device.flush()
