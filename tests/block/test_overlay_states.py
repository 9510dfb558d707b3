"""The states of an overlay's blocks, and what many overlays take."""

from __future__ import annotations

import os
from contextlib import ExitStack, closing
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from bootstream.block.file import FileDevice
from bootstream.block.overlay import Overlay
from bootstream.block.overlay_states import States

MIB = 1 << 20


def resident() -> int:
    """Bytes of memory that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_many_overlays_take_little_memory(tmp_path: Path) -> None:
    """Twenty over 10 GiB, each written to and read: their 50 MiB of states are not there."""
    (tmp_path / "base").touch()
    os.truncate(tmp_path / "base", 10 << 30)
    with ExitStack() as stack:
        base = stack.enter_context(closing(FileDevice(tmp_path / "base")))
        before = resident()
        for number in range(20):
            overlay = Overlay(base, None, base_digest="ab" * 32, folder=tmp_path)
            stack.enter_context(closing(overlay))
            overlay.write(memoryview(b"x" * 4096), number << 28)
            overlay.write(memoryview(b"x" * 4096), 9 << 30)
            assert bytes(overlay.read_views(9 << 30, 4096)[0]) == b"x" * 4096
        assert resident() - before < 20 * MIB


@given(
    st.integers(1, 200),
    st.lists(st.tuples(st.integers(0, 199), st.integers(0, 199), st.integers(0, 2))),
)
def test_states_are_bytes(count: int, changes: list[tuple[int, int, int]]) -> None:
    """As a bytearray of zeros, whatever is put where."""
    states, model = States(count), bytearray(count)
    for first, last, state in changes:
        low, high = sorted((first % count, last % count))
        for each in (states, model):
            each[low : high + 1] = bytes([state]) * (high - low + 1)
    assert (len(states), states[:]) == (len(model), bytes(model))
    for state in range(3):
        assert states.has(state, 0, count) == (state in model)
        assert not states.has(state, count, count)
    states.close()
