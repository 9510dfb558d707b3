"""Which sinks take bytes at their place, and what they look like after a failure."""

from __future__ import annotations

import io
import os
import tempfile
import threading
from pathlib import Path

import pytest

from bootstream.storage.filesink import Dropped, place_of


class _Counting(io.FileIO):
    """A file that does more in write() than write."""

    def write(self, data: object, /) -> int:
        return super().write(data)  # type: ignore[arg-type]  # whatever is given


def test_files_are_places(tmp_path: Path) -> None:
    """Files of Python's own, buffered or not, whose end is where they are."""
    with (tmp_path / "a").open("wb") as file:
        assert place_of(file)
    with (tmp_path / "a").open("wb", buffering=0) as raw:
        assert place_of(raw)
    with (tmp_path / "a").open("w+b") as both:
        assert place_of(both)
    with tempfile.TemporaryFile() as unnamed:
        assert place_of(unnamed)


def test_what_is_no_place(tmp_path: Path) -> None:
    """Appending, reading, overwriting, pipes, devices, special and closed files."""
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    with path.open("ab") as appending:
        assert place_of(appending) is None
    with path.open("rb") as reading:
        assert place_of(reading) is None, "no sink at all"
    with path.open("r+b") as middle:
        middle.seek(4)
        assert place_of(middle) is None
        middle.seek(5)
        assert place_of(middle)
    assert place_of(middle) is None, "it is closed"
    with _Counting(path, "w") as special:
        assert place_of(special) is None
    with open("/dev/null", "wb") as device:
        assert place_of(device) is None
    descriptors = os.pipe()
    with open(descriptors[0], "rb"), open(descriptors[1], "wb") as pipe:
        assert place_of(pipe) is None
    assert place_of(io.BytesIO()) is None


def test_bytes_go_after_what_is_there(tmp_path: Path) -> None:
    """Offsets count from the position, and what was written before through the buffer is there."""
    path = tmp_path / "a"
    with path.open("wb") as file:
        file.write(b"head")
        place = place_of(file)
        assert place
        place.write_at(memoryview(b"world"), 6)
        place.write_at(memoryview(b"hello "), 0)
        place.advance(11)
        file.write(b"!")
    assert path.read_bytes() == b"headhello world!"


def test_a_failure_leaves_what_came_in_order(tmp_path: Path) -> None:
    """What lies beyond the position is cut off, and nothing can be added after that."""
    path = tmp_path / "a"
    with path.open("wb") as file:
        place = place_of(file)
        assert place
        place.write_at(memoryview(b"hello"), 0)
        place.write_at(memoryview(b"late"), 1000)
        place.advance(5)
        place.drop()
        with pytest.raises(Dropped):
            place.write_at(memoryview(b"later"), 2000)
        assert path.read_bytes() == b"hello"
        file.write(b" again")
    assert path.read_bytes() == b"hello again"


def test_dropping_waits_for_writes_that_run(tmp_path: Path) -> None:
    """Whatever other threads are at, nothing is beyond the position when it returns."""
    path = tmp_path / "a"
    with path.open("wb", buffering=0) as file:
        place = place_of(file)
        assert place
        began = threading.Event()

        def write() -> None:
            data = memoryview(bytes(64 << 10))
            with pytest.raises(Dropped):
                for number in range(1 << 20):
                    place.write_at(data, number % 64 << 16)
                    began.set()

        threads = [threading.Thread(target=write) for _ in range(4)]
        for thread in threads:
            thread.start()
        began.wait(10)
        place.drop()
        assert path.stat().st_size == 0
        for thread in threads:
            thread.join()
    assert path.stat().st_size == 0
