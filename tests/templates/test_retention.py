"""Which builds ``prune`` lets go."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootstream.errors import InvalidInput
from bootstream.templates.catalogue import ListedBuild
from bootstream.templates.manifest import Manifest
from bootstream.templates.retention import superfluous


def builds(*tags: tuple[str, ...]) -> list[ListedBuild]:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    return [
        ListedBuild(
            Manifest(f"build-{number}", "vm", "published", start + timedelta(days=number)), names
        )
        for number, names in enumerate(tags)
    ]


def numbers(chosen: list[ListedBuild]) -> list[int]:
    return [int(build.manifest.build_id.removeprefix("build-")) for build in chosen]


def test_the_newest_and_the_tagged_stay() -> None:
    """Everything else goes, oldest first, tagged with something else or not."""
    history = builds(("stable",), ("v1",), (), ("v2",), ("x",))
    assert numbers(superfluous(history, keep_last=1, keep_tags=["stable"])) == [1, 2, 3]
    assert numbers(superfluous(history, keep_tags=["v*"])) == [0, 2, 4]
    assert numbers(superfluous(history, keep_last=0)) == [0, 1, 2, 3, 4]


def test_latest_always_stays() -> None:
    """Also when it is old: it is what a name without a tag means."""
    assert numbers(superfluous(builds(("latest",), (), ()), keep_last=1)) == [1]


@given(st.integers(0, 10), st.integers(0, 10))
def test_keep_last_counts(there: int, kept: int) -> None:
    """Never more than all, never fewer than asked for."""
    gone = numbers(superfluous(builds(*[()] * there), keep_last=kept))
    assert gone == list(range(max(0, there - kept)))


def test_saying_nothing_deletes_nothing() -> None:
    """A forgotten option must not empty a template."""
    with pytest.raises(InvalidInput):
        superfluous(builds(()))
    with pytest.raises(InvalidInput):
        superfluous(builds(()), keep_last=-1)
