"""The map of an artifact: nothing is lost by shrinking, and the drawing is sound XML."""

from __future__ import annotations

import itertools
import xml.etree.ElementTree as ET

from hypothesis import given
from hypothesis import strategies as st

from bootstream.cli.picture import (
    COLUMNS,
    OWN_COLOUR,
    ZERO_COLOUR,
    Part,
    Picture,
    ancestor_colour,
    html,
    runs,
    shrink,
    svg,
)


@given(st.binary(max_size=500))
def test_runs_cover_the_cells(cells: bytes) -> None:
    """Runs put together are the cells, and neighbours differ."""
    found = list(runs(cells))
    assert b"".join(bytes([value]) * length for _, length, value in found) == cells
    assert all(a[2] != b[2] for a, b in itertools.pairwise(found))
    assert [start for start, _, _ in found] == [
        sum(length for _, length, _ in found[:i]) for i in range(len(found))
    ]


@given(st.binary(min_size=1, max_size=2000), st.integers(1, 300))
def test_shrinking_keeps_the_scale(kinds: bytes, most: int) -> None:
    """Never more cells than asked for, and every chunk is in one."""
    cells, step = shrink(kinds, most)
    assert len(cells) <= most
    assert (len(cells) - 1) * step < len(kinds) <= len(cells) * step
    assert set(cells) <= set(kinds)


def test_a_cell_shows_what_most_of_it_is() -> None:
    """A majority wins; of equals the one that is not zero."""
    assert shrink(bytes([1, 0, 0, 0, 0, 2, 2, 2]), 2) == (bytes([0, 2]), 4)
    assert shrink(bytes([0, 0, 1, 1]), 1) == (bytes([1]), 4)


def picture(title: str) -> Picture:
    parts = [
        Part("zeros", ZERO_COLOUR, 300, 0, 3),
        Part("own", OWN_COLOUR, 400, 100, 4),
        Part("<other> & more", ancestor_colour(0), 0, 0, 0),
    ]
    return Picture(title, ["a", "b"], parts, bytes([0, 0, 0, 1, 1, 1, 1]) * COLUMNS, 100, 700)


def test_drawings_are_self_contained() -> None:
    """Well-formed, with every name escaped, and nothing is fetched from anywhere."""
    drawn = svg(picture('a "title" <with> & odd\u2028names'))
    root = ET.fromstring(drawn)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    texts = "".join(root.itertext())
    assert "<other> & more" in texts
    page = html(picture("t"))
    assert page.startswith("<!DOCTYPE html>")
    for foreign in ("src=", "href=", "url(", "@import", "<script"):
        assert foreign not in page + drawn
