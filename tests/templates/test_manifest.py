"""The manifest: what is written is read back, and nothing else is ever accepted."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootstream.errors import BootstreamError, Corrupt, InvalidInput
from bootstream.templates.manifest import Artifact, Manifest, taken_over

BUILD = "8c5a9d9e-58f3-4e2b-9b54-0a3d2f6e1c11"
PARENT = "00000000-0000-4000-8000-000000000001"


def sample() -> Manifest:
    return Manifest(
        build_id=BUILD,
        template_id="py311",
        state="published",
        created=datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
        parent=PARENT,
        depends_on=(PARENT,),
        artifacts={
            "rootfs.ext4": Artifact("chunked", 1 << 30, 65536, 4096, "a" * 64, 123456),
            "snapfile": Artifact("raw", 5, 4096, 300, "b" * 64, 5, sha256="c" * 64),
        },
        image={"reference": "debian:12", "env": ["PATH=/bin", "X=ü"]},
        options={"label": "root", "size": None},
        tool="bootstream 0",
    )


def test_round_trip() -> None:
    """Every field survives, in both states."""
    manifest = sample()
    assert Manifest.from_json(manifest.to_json(), build_id=BUILD) == manifest
    buried = manifest.as_deleted(datetime(2026, 2, 1, tzinfo=UTC))
    assert Manifest.from_json(buried.to_json(), build_id=BUILD) == buried


def test_halves_of_surrogate_pairs() -> None:
    """An image's configuration may hold what UTF-8 cannot; the build is published all the same."""
    manifest = replace(sample(), image={"env": ["X=\ud800"]})
    assert Manifest.from_json(manifest.to_json(), build_id=BUILD) == manifest


def test_taken_over_round_trip() -> None:
    """A manifest made by collection has no template, and says so."""
    manifest = taken_over(BUILD, datetime(2026, 2, 1, tzinfo=UTC))
    assert Manifest.from_json(manifest.to_json(), build_id=BUILD) == manifest


def test_unknown_keys_are_ignored() -> None:
    """A later minor addition does not stop this reader."""
    document = json.loads(sample().to_json())
    document["something_new"] = {"x": 1}
    assert Manifest.from_json(json.dumps(document).encode(), build_id=BUILD) == sample()


def test_newer_version_asks_for_an_upgrade() -> None:
    """A version above ours is not guessed at."""
    document = json.loads(sample().to_json()) | {"version": 2}
    with pytest.raises(InvalidInput) as caught:
        Manifest.from_json(json.dumps(document).encode(), build_id=BUILD)
    assert "upgrade" in str(caught.value.remedy)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", "other"),
        ("version", "1"),
        ("version", True),
        ("state", "half"),
        ("build_id", PARENT),
        ("template_id", "../x"),
        ("template_id", ""),
        ("created", "yesterday"),
        ("created", "2026-01-02T03:04:05"),
        ("parent", "not-a-build"),
        ("depends_on", [1]),
        ("depends_on", ["../../etc"]),
        ("artifacts", []),
        ("artifacts", {"../evil": {}}),
        ("artifacts", {"rootfs.ext4": {}}),
        ("image", "debian"),
    ],
)
def test_wrong_values_are_corrupt(key: str, value: Any) -> None:
    """Each field is checked before anything is formed from it."""
    document = json.loads(sample().to_json()) | {key: value}
    with pytest.raises(Corrupt):
        Manifest.from_json(json.dumps(document).encode(), build_id=BUILD)


@pytest.mark.parametrize(
    ("key", "value"), [("size", -1), ("size", 1.5), ("form", "zip"), ("index", {"size": 1})]
)
def test_wrong_artifacts_are_corrupt(key: str, value: Any) -> None:
    """The same inside an artifact."""
    document = json.loads(sample().to_json())
    document["artifacts"]["rootfs.ext4"][key] = value
    with pytest.raises(Corrupt):
        Manifest.from_json(json.dumps(document).encode(), build_id=BUILD)


@given(st.binary(max_size=400))
def test_arbitrary_bytes(data: bytes) -> None:
    """No bytes make anything but an error of ours."""
    with pytest.raises(BootstreamError):
        Manifest.from_json(data, build_id=BUILD)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(st.sampled_from(sorted(json.loads(sample().to_json()))), JSON)
def test_arbitrary_values(key: str, value: Any) -> None:
    """Any JSON in any field is accepted or refused, never a crash."""
    document = json.loads(sample().to_json()) | {key: value}
    try:
        Manifest.from_json(json.dumps(document).encode(), build_id=BUILD)
    except BootstreamError:
        pass


@given(st.data())
def test_any_flipped_byte_is_seen_or_harmless(data: st.DataObject) -> None:
    """A flipped byte is refused, or changes only text that nobody decides by."""
    raw = bytearray(sample().to_json())
    position = data.draw(st.integers(0, len(raw) - 1))
    raw[position] ^= data.draw(st.integers(1, 255))
    try:
        manifest = Manifest.from_json(bytes(raw), build_id=BUILD)
    except BootstreamError:
        return
    assert manifest.build_id == BUILD
    assert set(manifest.depends_on) <= {PARENT, *manifest.depends_on}


def test_deep_nesting_is_refused() -> None:
    """JSON nested beyond reason is an error, not a crash."""
    with pytest.raises(BootstreamError):
        Manifest.from_json(b"[" * 200_000, build_id=BUILD)
