"""The overlay against a model; what it keeps, what it refuses, what a crash leaves."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from zlib import crc32

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.block.helpers import largest_file

from bootstream.block.file import FileDevice
from bootstream.block.overlay import Overlay
from bootstream.block.overlay_header import PAGE_STATES
from bootstream.errors import Conflict, Corrupt, InvalidInput, PermissionDenied, StorageFull
from bootstream.testing.device import read_all, sample_contents
from bootstream.testing.memory_device import MemoryDevice

BLOCK = 4096
SIZE = 40 * BLOCK + 700
CONTENTS = sample_contents(SIZE, seed=7)
DIGEST = "ab" * 32

ranges = st.tuples(st.integers(0, SIZE - 1), st.integers(1, 6 * BLOCK)).map(
    lambda pair: (pair[0], min(pair[1], SIZE - pair[0]))
)
aligned = st.tuples(st.integers(0, 39), st.integers(1, 5)).map(
    lambda pair: (pair[0] * BLOCK, min(pair[1] * BLOCK, SIZE - pair[0] * BLOCK))
)
steps = st.lists(
    st.tuples(
        st.sampled_from(("write", "write", "trim", "zero", "allocate", "flush", "reopen")),
        ranges | aligned,
        st.integers(1, 255),
    ),
    max_size=25,
)


def overlay(path: Path | None, contents: bytes = CONTENTS, digest: str = DIGEST) -> Overlay:
    """An overlay over memory."""
    folder = None if path is not None else Path("/dev/shm")
    return Overlay(MemoryDevice(contents), path, base_digest=digest, folder=folder)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=steps)
def test_model(tmp_path: Path, steps: list[tuple[str, tuple[int, int], int]]) -> None:
    """Any history of changes reads as it does on a plain array, also after reopening."""
    path = tmp_path / "overlay"
    path.unlink(missing_ok=True)
    device = overlay(path)
    model = bytearray(CONTENTS)
    try:
        for step, (offset, length), value in steps:
            if step == "write":
                data = bytes([value]) * length
                device.write(memoryview(data), offset)
                model[offset : offset + length] = data
            elif step in ("trim", "zero", "allocate"):
                if step == "trim":
                    device.trim(offset, length)
                else:
                    device.zero(offset, length, may_trim=step == "zero")
                model[offset : offset + length] = bytes(length)
            elif step == "flush":
                device.flush()
            else:
                device.close()
                device = overlay(path)
            assert read_all(device, offset, length) == model[offset : offset + length]
            warm = device.read_warm(offset, length)
            assert warm is not None
            assert b"".join(warm) == model[offset : offset + length]
        assert read_all(device) == model
        at = 0
        for extent in device.extents(0, SIZE):
            assert not (extent.zero and any(model[at : at + extent.length]))
            at += extent.length
        assert at == SIZE
    finally:
        device.close()


def test_kept(tmp_path: Path) -> None:
    """A kept overlay is private, and continues where it was closed."""
    path = tmp_path / "made" / "overlay"
    with closing(overlay(path)) as device:
        device.write(memoryview(b"hello"), 5000)
        device.trim(8 * BLOCK, 2 * BLOCK)
        expected = read_all(device)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    with closing(overlay(path)) as device:
        assert read_all(device) == expected
        assert expected[5000:5005] == b"hello"


def test_many_map_pages(tmp_path: Path) -> None:
    """States lie in the right page and byte of the map of a large device."""
    blocks = 3 * PAGE_STATES + 5
    size = blocks * BLOCK
    with (tmp_path / "base").open("wb") as file:
        file.truncate(size)
    base = FileDevice(tmp_path / "base")
    path = tmp_path / "overlay"
    touched = [0, PAGE_STATES - 1, PAGE_STATES, 2 * PAGE_STATES + 1, blocks - 1]
    with closing(Overlay(base, path, base_digest=DIGEST)) as device:
        for block in touched:
            device.write(memoryview(bytes([block % 251 + 1]) * BLOCK), block * BLOCK)
    assert path.stat().st_blocks * 512 < 1 << 20
    with closing(Overlay(base, path, base_digest=DIGEST)) as device:
        for block in touched:
            data = b"".join(device.read_views(block * BLOCK, BLOCK))
            assert data == bytes([block % 251 + 1]) * BLOCK
        written = [block for block in range(blocks) if device._top.states[block]]
        assert written == touched
    base.close()


def test_trim_gives_room_back(tmp_path: Path) -> None:
    """Trimmed blocks take no room on disk."""
    path = tmp_path / "overlay"
    contents = bytes(8 << 20)
    with closing(overlay(path, contents)) as device:
        device.write(memoryview(b"\x01" * (8 << 20)), 0)
        device.flush()
        full = path.stat().st_blocks
        device.trim(0, 8 << 20)
        assert path.stat().st_blocks * 512 < full * 512 - (7 << 20)


def test_second_user_is_refused(tmp_path: Path) -> None:
    """One overlay file has one user at a time; afterwards it is free."""
    path = tmp_path / "overlay"
    with closing(overlay(path)), pytest.raises(Conflict, match="in use"):
        overlay(path)
    overlay(path).close()


def test_other_base_is_refused(tmp_path: Path) -> None:
    """Another base's digest or size is refused, with a remedy, and the file stays as it is."""
    path = tmp_path / "overlay"
    with closing(overlay(path)) as device:
        device.write(memoryview(b"mine"), 0)
    before = path.read_bytes()
    with pytest.raises(InvalidInput, match="another base") as caught:
        overlay(path, digest="cd" * 32)
    assert caught.value.remedy
    with pytest.raises(InvalidInput, match="another base"):
        overlay(path, contents=CONTENTS + b"more")
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"x", b"precious" * 1000, b"BSOVRLAX" + bytes(9000)])
def test_foreign_file_is_refused(tmp_path: Path, content: bytes) -> None:
    """A file that is no overlay is never touched."""
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match="not an overlay"):
        overlay(path)
    assert path.read_bytes() == content


def test_folder_and_fifo_are_refused(tmp_path: Path) -> None:
    """What is not a file is refused, without waiting for it."""
    with pytest.raises(InvalidInput):
        overlay(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(InvalidInput):
        overlay(tmp_path / "fifo")


def test_empty_file_becomes_an_overlay(tmp_path: Path) -> None:
    """A file without any data is what a cut-short making leaves."""
    path = tmp_path / "overlay"
    path.touch()
    overlay(path).close()
    path.unlink()
    with path.open("wb") as file:
        file.truncate(5 << 20)
    with closing(overlay(path)) as device:
        assert read_all(device) == CONTENTS


def test_newer_version_is_refused(tmp_path: Path) -> None:
    """A version of the future is named, not misread."""
    path = tmp_path / "overlay"
    overlay(path).close()
    data = bytearray(path.read_bytes())
    for at in (0, BLOCK):
        data[at + 8] = 3
        data[at + BLOCK - 4 : at + BLOCK] = crc32(data[at : at + BLOCK - 4]).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(InvalidInput, match="version 3"):
        overlay(path)


def test_short_file_is_corrupt(tmp_path: Path) -> None:
    """A file that was cut short is named so."""
    path = tmp_path / "overlay"
    overlay(path).close()
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(Corrupt, match="cut short"):
        overlay(path)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=st.integers(0, 4 * BLOCK - 1), bit=st.integers(0, 7), count=st.integers(1, 40))
def test_damage_is_mended_or_named(tmp_path: Path, place: int, bit: int, count: int) -> None:
    """Damage in one copy of header or map changes nothing; no damage goes unseen."""
    path = tmp_path / "overlay"
    path.unlink(missing_ok=True)
    with closing(overlay(path)) as device:
        device.write(memoryview(b"\x07" * BLOCK * 3), 9 * BLOCK)
        device.trim(BLOCK, BLOCK)
        expected = read_all(device)
    data = bytearray(path.read_bytes())
    for index in range(place, min(4 * BLOCK, place + count)):
        data[index] ^= 1 << bit
    path.write_bytes(data)
    try:
        device = overlay(path)
    except Corrupt:
        assert place // BLOCK != (place + count - 1) // BLOCK
        return
    with closing(device):
        assert read_all(device) == expected


def test_both_maps_damaged_is_corrupt(tmp_path: Path) -> None:
    """When no copy of a map page is whole, the overlay says so."""
    path = tmp_path / "overlay"
    with closing(overlay(path)) as device:
        device.write(memoryview(b"x" * BLOCK), 0)
    data = bytearray(path.read_bytes())
    data[2 * BLOCK + 100] ^= 1
    data[3 * BLOCK + 100] ^= 1
    path.write_bytes(data)
    with pytest.raises(Corrupt, match="map"):
        overlay(path)


def test_flush_with_concurrent_writers(tmp_path: Path) -> None:
    """What was written before a flush is there after it, whoever else writes meanwhile."""
    path = tmp_path / "overlay"
    device = overlay(path)
    try:
        stop = threading.Event()

        def disturb() -> None:
            block = 0
            while not stop.is_set():
                device.write(memoryview(b"\x55" * BLOCK), (20 + block % 20) * BLOCK)
                block += 1

        with ThreadPoolExecutor(2) as pool:
            for _ in range(2):
                pool.submit(disturb)
            for block in range(20):
                device.write(memoryview(bytes([block + 1]) * BLOCK), block * BLOCK)
                device.flush()
                copy = tmp_path / "copy"
                copy.write_bytes(path.read_bytes())
                with closing(overlay(copy)) as image:
                    data = read_all(image, 0, (block + 1) * BLOCK)
                assert data == b"".join(bytes([n + 1]) * BLOCK for n in range(block + 1))
            stop.set()
    finally:
        device.close()


_CHILD = """
import sys
from pathlib import Path
from bootstream.block.overlay import Overlay
from bootstream.testing.memory_device import MemoryDevice
device = Overlay(MemoryDevice(bytes(4 << 20)), Path(sys.argv[1]), base_digest="d")
print("ready", flush=True)
for turn in range(1, 1 << 30):
    value = turn % 255 + 1
    for block in range(8):
        device.write(memoryview(bytes([value]) * 4096), ((turn * 37 + block * 129) % 1024) * 4096)
    device.trim(((turn * 91) % 1024) * 4096, 4096)
    device.write(memoryview(turn.to_bytes(8, "little")), 0)
    device.flush()
    print(turn, flush=True)
"""


@pytest.mark.parametrize("lines", [1, 3, 20])
def test_kill_loses_nothing_flushed(tmp_path: Path, lines: int) -> None:
    """After kill -9 at any moment, the last flush that was reported is there."""
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
        turn = int.from_bytes(b"".join(device.read_views(0, 8)), "little")
        assert flushed <= turn <= flushed + 1
        model = bytearray(4 << 20)
        for t in range(1, flushed + 1):
            for block in range(8):
                at = ((t * 37 + block * 129) % 1024) * BLOCK
                model[at : at + BLOCK] = bytes([t % 255 + 1]) * BLOCK
            at = ((t * 91) % 1024) * BLOCK
            model[at : at + BLOCK] = bytes(BLOCK)
            model[:8] = t.to_bytes(8, "little")
        after = flushed + 1  # this turn may be there, or not, block by block
        unsure = {((after * 37 + block * 129) % 1024) for block in range(8)}
        unsure |= {(after * 91) % 1024, 0}
        found = read_all(device)
        for block in set(range(1024)) - unsure:
            assert found[block * BLOCK :][:BLOCK] == model[block * BLOCK :][:BLOCK]


def test_kill_while_making(tmp_path: Path) -> None:
    """A file whose making was cut short before its header is made again."""
    path = tmp_path / "overlay"
    overlay(path).close()
    data = path.read_bytes()
    path.write_bytes(bytes(len(data)))
    overlay(path).close()
    assert path.read_bytes()[:8] == data[:8]


def test_full_disk(tmp_path: Path) -> None:
    """A write that finds no room is StorageFull; what was there, and reads, go on."""
    path = tmp_path / "overlay"
    with closing(overlay(path)) as device:
        device.write(memoryview(b"\x01" * BLOCK), 0)
        with largest_file(device._top.file.data + 10 * BLOCK):
            with pytest.raises(StorageFull) as caught:
                device.write(memoryview(b"\x02" * BLOCK), 20 * BLOCK)
            assert caught.value.remedy
            with pytest.raises(StorageFull):
                device.write(memoryview(b"\x02" * 9), 20 * BLOCK + 5)
            device.write(memoryview(b"\x03" * BLOCK), BLOCK)
            device.flush()
            assert read_all(device, 20 * BLOCK) == CONTENTS[20 * BLOCK :]
        device.write(memoryview(b"\x02" * BLOCK), 20 * BLOCK)
    with closing(overlay(path)) as device:
        assert read_all(device, 0, 2 * BLOCK) == b"\x01" * BLOCK + b"\x03" * BLOCK
        assert read_all(device, 20 * BLOCK, BLOCK) == b"\x02" * BLOCK


def test_failed_sync_is_never_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the kernel failed to make data durable, no flush claims that it is."""
    device = overlay(tmp_path / "overlay")
    device.write(memoryview(b"x" * BLOCK), 0)

    def fail(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        with pytest.raises(Exception, match="Input/output"):
            device.flush()
    with pytest.raises(Exception, match="Input/output"):
        device.flush()
    with pytest.raises(Exception, match="Input/output"):
        device.close()
    device.close()


def test_cold_base(tmp_path: Path) -> None:
    """A warm read is None exactly where the base would have to wait."""
    base = MemoryDevice(CONTENTS)
    base.cold_from = 10 * BLOCK
    with closing(Overlay(base, None, base_digest=DIGEST, folder=tmp_path)) as device:
        assert device.read_warm(0, BLOCK) is not None
        assert device.read_warm(9 * BLOCK, 2 * BLOCK) is None
        device.write(memoryview(b"\x09" * BLOCK), 10 * BLOCK)
        views = device.read_warm(9 * BLOCK, 2 * BLOCK)
        assert views is not None
        assert b"".join(views) == CONTENTS[9 * BLOCK : 10 * BLOCK] + b"\x09" * BLOCK
    assert list(tmp_path.iterdir()) == []


def test_forbidden_folder() -> None:
    """Where nobody may make files, that is what the error says."""
    with pytest.raises(PermissionDenied):
        overlay(Path("/sys/overlay"))
