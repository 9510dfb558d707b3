"""Freezing an overlay while it is written to: what is frozen, what goes on, what a crash leaves."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from unittest import mock
from zlib import crc32

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.block.helpers import largest_file
from tests.block.test_overlay_power import Disk, noted

from bootstream.block.overlay import Frozen, Overlay, _Gate
from bootstream.block.overlay_file import read_base
from bootstream.block.overlay_header import HEADER_SIZE, MAX_LAYERS
from bootstream.errors import (
    BootstreamError,
    Conflict,
    Corrupt,
    InvalidInput,
    StorageFull,
    Unavailable,
)
from bootstream.testing.device import read_all, sample_contents
from bootstream.testing.memory_device import MemoryDevice

BLOCK = 4096
SIZE = 40 * BLOCK + 700
CONTENTS = sample_contents(SIZE, seed=9)
DIGEST = "ab" * 32
BUILD = "11111111-1111-4111-8111-11111111111%d"

ranges = st.tuples(st.integers(0, SIZE - 1), st.integers(1, 6 * BLOCK)).map(
    lambda pair: (pair[0], min(pair[1], SIZE - pair[0]))
)
steps = st.lists(
    st.tuples(
        st.sampled_from(
            ["write"] * 3
            + ["trim", "zero", "allocate", "flush", "reopen"]
            + ["commit"] * 2
            + ["fail", "no room"]
        ),
        ranges,
        st.integers(1, 255),
    ),
    max_size=30,
)


def overlay(path: Path | None, contents: bytes = CONTENTS) -> Overlay:
    """An overlay over memory."""
    folder = None if path is not None else Path("/dev/shm")
    return Overlay(MemoryDevice(contents), path, base_digest=DIGEST, folder=folder)


def contents_of(frozen: Frozen) -> bytes:
    """All bytes of what was frozen."""
    buffer = bytearray(frozen.size)
    frozen.read_into(memoryview(buffer), 0)
    return bytes(buffer)


class Broken(Exception):
    """The commit did not come to its end."""


class Trial:
    """A device, what it should hold, and every build that it was committed as."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.device = overlay(path)
        self.model = bytearray(CONTENTS)
        self.builds: dict[str, bytes] = {}
        self.commits = 0

    def change(self, step: str, offset: int, length: int, value: int) -> None:
        """Write, zero or trim."""
        data = bytes(length) if step != "write" else bytes([value]) * length
        if step == "write":
            self.device.write(memoryview(data), offset)
        elif step == "trim":
            self.device.trim(offset, length)
        else:
            self.device.zero(offset, length, may_trim=step == "zero")
        self.model[offset : offset + length] = data

    def freeze(self, *, fail: bool, merge: bool = True) -> None:
        """Freeze, write on meanwhile, compare what was frozen, and perhaps break off."""
        with suppress(Broken), self.device.freeze() as frozen:
            expected = bytes(self.model)
            self.change("write", self.commits * 777 % SIZE, 1, 7)
            assert contents_of(frozen) == expected
            before = CONTENTS if frozen.parent is None else self.builds[frozen.parent.build_id]
            for block, changed in enumerate(frozen.changed):
                at = slice(block * BLOCK, (block + 1) * BLOCK)
                assert changed or before[at] == expected[at]
            if fail:
                raise Broken
            self.commits += 1
            build = f"11111111-1111-4111-8111-{self.commits:012}"
            frozen.committed(build, f"{self.commits:064x}")
            self.builds[build] = expected
            if not merge:
                no_room = OSError(28, "No space left on device")
                patch = mock.patch(
                    "bootstream.block.overlay_layer.Layer.absorb", side_effect=no_room
                )
                patch.start()
        if not (merge or fail):
            patch.stop()

    def reopen(self) -> None:
        """Close and open again, where something was kept."""
        if self.path is not None:
            self.device.close()
            self.device = overlay(self.path)


@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=steps, kept=st.booleans())
def test_model(tmp_path: Path, steps: list[tuple[str, tuple[int, int], int]], kept: bool) -> None:
    """Any history reads as on a plain array; what is frozen is what was there at that moment."""
    path = tmp_path / "overlay"
    path.unlink(missing_ok=True)
    trial = Trial(path if kept else None)
    try:
        for step, (offset, length), value in steps:
            if step == "flush":
                trial.device.flush()
            elif step == "reopen":
                trial.reopen()
            elif step in ("commit", "fail", "no room"):
                trial.freeze(fail=step == "fail", merge=step != "no room")
            else:
                trial.change(step, offset, length, value)
            assert read_all(trial.device) == trial.model
        trial.freeze(fail=False)
        assert len(trial.device._chain) <= 2
        trial.reopen()
        assert read_all(trial.device) == trial.model
    finally:
        trial.device.close()


def test_chain_stays_short_and_room_comes_back(tmp_path: Path) -> None:
    """Twenty commits leave two layers, and a file no larger than what was written."""
    contents = bytes(8 << 20)
    path = tmp_path / "overlay"
    with closing(overlay(path, contents)) as device:
        for turn in range(20):
            for number in range(16):
                at = (turn * 16 + number) % 64 * (128 << 10)
                device.write(memoryview(bytes([turn + 1]) * (64 << 10)), at)
            with device.freeze() as frozen:
                assert frozen.bytes_changed == 1 << 20
                frozen.committed(BUILD % 1, "cd" * 32)
        assert len(device._chain) == 2
        device.flush()
        assert path.stat().st_blocks * 512 < (4 << 20) + (1 << 20)
    digest, size, committed = read_base(path)
    assert (digest, size) == (DIGEST, 8 << 20)
    assert committed is not None
    assert committed == (BUILD % 1, "cd" * 32)


def test_merging_many_small_pieces_syncs_little(tmp_path: Path) -> None:
    """What is scattered is not synced piece by piece; a merge of much is, now and then."""
    contents = bytes(64 << 20)
    syncs = 0
    fdatasync = os.fdatasync

    def count(descriptor: int) -> None:
        nonlocal syncs
        syncs += 1
        fdatasync(descriptor)

    with closing(overlay(tmp_path / "overlay", contents)) as device:
        for data, step, most in ((b"a" * BLOCK, 4 * BLOCK, 20), (b"b" * (1 << 20), 1 << 20, 25)):
            for turn in range(2):
                for at in range(0, len(contents), step):
                    device.write(memoryview(data), at)
                with mock.patch.object(os, "fdatasync", count), device.freeze() as frozen:
                    frozen.committed(BUILD % (turn + 1), "cd" * 32)
                    syncs = 0
            assert 3 <= syncs <= most
        assert len(device._chain) == 2


def test_nothing_written_freezes_nothing(tmp_path: Path) -> None:
    """Without a write the chain does not grow, and what is frozen is the base."""
    with closing(overlay(tmp_path / "overlay")) as device:
        for _ in range(3):
            with device.freeze() as frozen:
                assert contents_of(frozen) == CONTENTS
                assert frozen.bytes_changed == 0
                frozen.committed(BUILD % 1, "cd" * 32)
        assert len(device._chain) == 1


def test_writers_go_on(tmp_path: Path) -> None:
    """Each writer's blocks are frozen at one moment: none is newer than one written before it."""
    blocks = 64
    contents = bytes(blocks * BLOCK)
    device = overlay(tmp_path / "overlay", contents)
    stop = threading.Event()

    def write(writer: int) -> int:
        """Count up, in turn, in all blocks of this writer; odd ones by parts of a block."""
        turn = 0
        mine = range(writer * 16, writer * 16 + 16)
        while not stop.is_set():
            turn += 1
            for block in mine:
                data = memoryview(turn.to_bytes(8, "little") * (512 if block % 2 else 64))
                device.write(data, block * BLOCK)
        return turn

    def counts(data: bytes, writer: int) -> list[int]:
        found = [
            int.from_bytes(data[block * BLOCK : block * BLOCK + 8], "little")
            for block in range(writer * 16, writer * 16 + 16)
        ]
        assert found == sorted(found, reverse=True)
        assert found[0] - found[-1] <= 1
        return found

    try:
        with ThreadPoolExecutor(4) as pool:
            writers = [pool.submit(write, writer) for writer in range(4)]
            last = [0] * 4
            try:
                for turn in range(1, 16):
                    with device.freeze() as frozen:
                        first = contents_of(frozen)
                        for writer in range(4):
                            found = counts(first, writer)[0]
                            assert found >= last[writer]
                            last[writer] = found
                        assert contents_of(frozen) == first
                        if turn % 3:
                            frozen.committed(BUILD % 1, "cd" * 32)
            finally:
                stop.set()
            ends = [writer.result() for writer in writers]
        data = read_all(device)
        for writer in range(4):
            assert counts(data, writer) == [ends[writer]] * 16
    finally:
        stop.set()
        device.close()


def test_freeze_waits_for_a_write_that_waits_for_the_base(tmp_path: Path) -> None:
    """What is under way when the gate closes is in the frozen layer, and hidden by nobody."""
    base = MemoryDevice(CONTENTS)
    released, asked = threading.Event(), threading.Event()
    read_views = base.read_views

    def slow(offset: int, length: int) -> object:
        asked.set()
        assert released.wait(20)
        return read_views(offset, length)

    class Waits(threading.Event):
        """Lets the base answer only once the freezer waits for the writer."""

        def wait(self, timeout: float | None = None) -> bool:
            released.set()
            return super().wait(timeout)

    class Gate(_Gate):
        """A gate that is watched."""

        def __init__(self) -> None:
            super().__init__()
            self.left = Waits()

    with closing(Overlay(base, tmp_path / "overlay", base_digest=DIGEST)) as device:
        device.write(memoryview(b"x" * BLOCK), 0)  # or there would be nothing to freeze
        with (
            mock.patch.object(base, "read_views", slow),
            mock.patch("bootstream.block.overlay._Gate", Gate),
            ThreadPoolExecutor(1) as pool,
        ):
            try:
                first = pool.submit(device.write, memoryview(b"first"), 5 * BLOCK)
                assert asked.wait(20)
                with device.freeze() as frozen:
                    assert contents_of(frozen)[5 * BLOCK : 5 * BLOCK + 5] == b"first"
            finally:
                released.set()
            first.result()
            device.write(memoryview(b"second"), 5 * BLOCK + 100)
        found = read_all(device, 5 * BLOCK, BLOCK)
        assert found[:5] + found[100:106] == b"firstsecond"


def test_flush_after_a_freeze_covers_what_came_just_before(tmp_path: Path) -> None:
    """A write between freezing's own flush and its gate is durable with the client's next one."""
    path = tmp_path / "overlay"
    with closing(overlay(path)) as device:
        device.write(memoryview(b"x" * BLOCK), 0)
        new_layer = device._file.new_layer

        def write_first() -> object:
            device.write(memoryview(b"late" * 1024), 7 * BLOCK)
            return new_layer()

        with mock.patch.object(device._file, "new_layer", write_first), device.freeze():
            device.flush()
            copy = tmp_path / "copy"
            copy.write_bytes(path.read_bytes())
        with closing(overlay(copy)) as other:
            assert read_all(other, 7 * BLOCK, BLOCK) == b"late" * 1024


def test_readers_see_no_gap(tmp_path: Path) -> None:
    """While layers are frozen and merged, readers read what is there, byte for byte."""
    device = overlay(tmp_path / "overlay")
    expected = bytearray(CONTENTS)
    stop = threading.Event()

    def read(seed: int) -> None:
        source = random.Random(seed)
        while not stop.is_set():
            offset = source.randrange(20 * BLOCK)
            length = source.randrange(1, 8 * BLOCK)
            assert b"".join(device.read_views(offset, length)) == expected[offset:][:length]

    for block in range(30):
        data = bytes([block + 1]) * BLOCK
        device.write(memoryview(data), block * BLOCK)
        expected[block * BLOCK : (block + 1) * BLOCK] = data
    try:
        with ThreadPoolExecutor(2) as pool:
            readers = [pool.submit(read, seed) for seed in range(2)]
            try:
                for turn in range(60):
                    block = turn % 28
                    data = bytes(expected[block * BLOCK : (block + 1) * BLOCK])
                    device.write(memoryview(data), block * BLOCK)  # the same: readers need no lock
                    with device.freeze() as frozen:
                        frozen.committed(BUILD % 1, "cd" * 32)
            finally:
                stop.set()
            for reader in readers:
                reader.result()
    finally:
        stop.set()
        device.close()


def test_one_freeze_at_a_time(tmp_path: Path) -> None:
    """A second one is refused until the first has ended."""
    with closing(overlay(tmp_path / "overlay")) as device:
        with device.freeze(), pytest.raises(Conflict, match="under way"), device.freeze():
            pass
        with device.freeze():
            pass


def test_full_disk(tmp_path: Path) -> None:
    """Where a new layer has no room nothing changes, and writes go on."""
    path = tmp_path / "overlay"
    with closing(overlay(path)) as device:
        device.write(memoryview(b"\x01" * BLOCK), 0)
        with (
            largest_file(path.stat().st_size),
            pytest.raises(StorageFull) as caught,
            device.freeze(),
        ):
            pass
        assert caught.value.remedy
        device.write(memoryview(b"\x02" * BLOCK), BLOCK)
        with device.freeze() as frozen:
            assert contents_of(frozen)[: 2 * BLOCK] == b"\x01" * BLOCK + b"\x02" * BLOCK


def test_layers_that_cannot_be_merged_end_in_an_error(tmp_path: Path) -> None:
    """A chain is bounded: the commit says why it cannot begin, and nothing is lost."""
    no_room = OSError(28, "No space left on device")
    with (
        closing(overlay(tmp_path / "overlay")) as device,
        mock.patch("bootstream.block.overlay_layer.Layer.absorb", side_effect=no_room),
    ):
        for turn in range(MAX_LAYERS - 1):
            device.write(memoryview(bytes([turn + 1]) * BLOCK), turn * BLOCK)
            with device.freeze():
                pass
        device.write(memoryview(b"\xff"), 30 * BLOCK)
        with pytest.raises(Conflict) as caught, device.freeze():
            pass
        assert caught.value.remedy
        assert read_all(device, 30 * BLOCK, 1) == b"\xff"
    with closing(overlay(tmp_path / "overlay")) as device:
        with device.freeze() as frozen:
            assert contents_of(frozen)[BLOCK : 2 * BLOCK] == b"\x02" * BLOCK
        assert len(device._chain) == 2


def test_failed_sync_ends_flushes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sync that fails while freezing is as one that fails in a flush: said for good."""
    device = overlay(tmp_path / "overlay")
    device.write(memoryview(b"x" * BLOCK), 0)

    def fail(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        with pytest.raises(Unavailable, match="Input/output"), device.freeze():
            pass
    with pytest.raises(Unavailable, match="Input/output"):
        device.flush()
    assert read_all(device, 0, BLOCK) == b"x" * BLOCK
    with pytest.raises(Unavailable, match="Input/output"):
        device.close()


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=st.integers(0, 2 * HEADER_SIZE - 1), value=st.integers(0, 255))
def test_damaged_header_is_mended_or_named(tmp_path: Path, place: int, value: int) -> None:
    """One copy of the header with a chain may be damaged; a reader takes the other."""
    path = tmp_path / "overlay"
    path.unlink(missing_ok=True)
    with closing(overlay(path)) as device:
        device.write(memoryview(b"\x07" * BLOCK * 3), 9 * BLOCK)
        with device.freeze() as frozen:
            frozen.committed(BUILD % 1, "cd" * 32)
        device.write(memoryview(b"\x08" * BLOCK), 10 * BLOCK)
        expected = read_all(device)
    data = bytearray(path.read_bytes())
    data[place] = value
    path.write_bytes(data)
    with closing(overlay(path)) as device:
        assert read_all(device) == expected
    both = bytearray(path.read_bytes())
    assert both[:HEADER_SIZE] == both[HEADER_SIZE : 2 * HEADER_SIZE]
    both[100] ^= 1
    both[HEADER_SIZE + 100] ^= 1
    path.write_bytes(both)
    with pytest.raises(Corrupt):
        overlay(path)


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    place=st.one_of(st.integers(8, 72), st.integers(196, 256 + 4 * 128)),
    data=st.binary(min_size=1, max_size=16),
)
def test_headers_that_lie(tmp_path: Path, place: int, data: bytes) -> None:
    """A header that is whole and says odd things is refused, or read; nothing else happens."""
    path = tmp_path / "overlay"
    path.unlink(missing_ok=True)
    with closing(overlay(path)) as device:
        device.write(memoryview(b"\x07" * BLOCK * 3), 9 * BLOCK)
        with device.freeze() as frozen:
            frozen.committed(BUILD % 1, "cd" * 32)
    header = bytearray(path.read_bytes()[: HEADER_SIZE - 4])
    header[place : place + len(data)] = data
    whole = bytes(header) + crc32(header).to_bytes(4, "little")
    with path.open("r+b") as file:
        file.write(whole * 2)
    with suppress(Corrupt, InvalidInput):
        read_base(path)
    try:
        device = overlay(path)
    except (Corrupt, InvalidInput):
        assert path.read_bytes()[: 2 * HEADER_SIZE] == whole * 2
        return
    with closing(device):
        read_all(device)
        with device.freeze() as frozen:
            contents_of(frozen)


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    seed=st.integers(0, 1 << 30),
    marks=st.booleans(),
    turns=st.integers(1, 4),
)
def test_power_cuts(tmp_path: Path, seed: int, marks: bool, turns: int) -> None:
    """A cut before any write or sync of freeze, mark and merge loses nothing flushed."""
    blocks = 6
    base = b"".join(bytes([200 + n]) * BLOCK for n in range(blocks))
    path = tmp_path / "overlay"
    path.unlink(missing_ok=True)
    source = random.Random(seed)
    disk = Disk()
    images: list[tuple[bytes, bytes, int]] = []
    with noted(disk):
        device = Overlay(MemoryDevice(base), path, base_digest="d")
        model = bytearray(base)
        try:
            for turn in range(turns):
                for _ in range(3):
                    at = source.randrange(blocks) * BLOCK
                    data = bytes([turn + 1]) * BLOCK if source.random() < 0.7 else bytes(BLOCK)
                    if any(data):
                        device.write(memoryview(data), at)
                    else:
                        device.trim(at, BLOCK)
                    model[at : at + BLOCK] = data
                device.flush()

                def cut() -> None:
                    if source.random() < 0.12:
                        image = disk.after_power_cut(source)
                        images.append((image, bytes(model), path.stat().st_size))

                with (
                    mock.patch.object(disk, "before", cut),
                    mock.patch("os.copy_file_range", side_effect=OSError(38, "none")),
                    mock.patch(
                        "bootstream.block.overlay_file.punch_hole", side_effect=OSError(95, "none")
                    ),
                    device.freeze() as frozen,
                ):
                    if marks:
                        frozen.committed(BUILD % 1, "cd" * 32)
        finally:
            device.close()
    for image, expected, size in source.sample(images, min(len(images), 4)):
        path.write_bytes(image.ljust(size, b"\0"))
        for _ in range(2):
            with closing(Overlay(MemoryDevice(base), path, base_digest="d")) as device:
                assert read_all(device) == expected
                with device.freeze() as frozen:
                    assert contents_of(frozen) == expected


_CHILD = """
import sys
from pathlib import Path
from bootstream.block.overlay import Overlay
from bootstream.testing.memory_device import MemoryDevice
device = Overlay(MemoryDevice(bytes(4 << 20)), Path(sys.argv[1]), base_digest="d")
print("ready", flush=True)
for turn in range(1, 1 << 30):
    for block in range(8):
        at = (turn * 37 + block * 129) % 1024 or 1
        device.write(memoryview(turn.to_bytes(8, "little") * 512), at * 4096)
    device.write(memoryview(turn.to_bytes(8, "little")), 0)
    device.flush()
    print(turn, flush=True)
    with device.freeze() as frozen:
        if turn % 3:
            frozen.committed("11111111-1111-4111-8111-111111111111", f"{turn:064x}")
"""


@pytest.mark.parametrize("lines", [1, 3, 20])
def test_kill(tmp_path: Path, lines: int) -> None:
    """After kill -9 while freezing and merging, what was flushed is there; nothing older is."""
    path = tmp_path / "overlay"
    process = subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process:
        assert process.stdout.readline() == "ready\n"
        seen = [process.stdout.readline() for _ in range(lines)]
        process.send_signal(signal.SIGKILL)
        seen += process.stdout.readlines()
        process.wait()
    flushed = int([line for line in seen if line.endswith("\n")][-1])
    with closing(Overlay(MemoryDevice(bytes(4 << 20)), path, base_digest="d")) as device:
        model = [0] * 1024
        for turn in range(1, flushed + 1):
            for block in range(8):
                model[(turn * 37 + block * 129) % 1024 or 1] = turn
        data = read_all(device)
        for block in range(1, 1024):
            found = int.from_bytes(data[block * BLOCK : block * BLOCK + 8], "little")
            assert found in (model[block], flushed + 1)
        with device.freeze() as frozen:
            assert contents_of(frozen) == data


def test_error_of_the_base_passes(tmp_path: Path) -> None:
    """A base that cannot be read fails the write that needs it; a freeze then goes through."""
    base = MemoryDevice(CONTENTS)
    with closing(Overlay(base, tmp_path / "overlay", base_digest=DIGEST)) as device:
        with (
            mock.patch.object(base, "read_views", side_effect=Unavailable("gone")),
            pytest.raises(BootstreamError, match="gone"),
        ):
            device.write(memoryview(b"x"), 5)
        device.write(memoryview(b"y"), 5)
        with device.freeze() as frozen:
            assert contents_of(frozen)[5:6] == b"y"
