"""Metadata: what is taken, the form in which a local store keeps it, and where it cannot."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootstream.errors import Corrupt, InvalidInput
from bootstream.storage.local import LocalStorageProvider
from bootstream.storage.localmetadata import ATTRIBUTE
from bootstream.storage.metadata import (
    decode_metadata,
    encode_metadata,
    validate_metadata,
)

KEYS = st.from_regex(r"[a-z][a-z0-9-]{0,63}", fullmatch=True)
VALUES = st.from_regex(r"[!-~]([ -~]{0,40}[!-~])?", fullmatch=True)


@given(st.dictionaries(KEYS, VALUES, max_size=18))
def test_round_trip(metadata: dict[str, str]) -> None:
    """Whatever is taken comes back, key by key, and fits into the attribute of a small inode."""
    assert validate_metadata(metadata) == metadata
    encoded = encode_metadata(metadata)
    assert decode_metadata(encoded) == metadata
    assert len(encoded) <= 2048 + 2 * 64


@given(st.dictionaries(st.text(max_size=70), st.text(max_size=70), max_size=3))
def test_any_text_is_taken_or_refused(metadata: dict[str, str]) -> None:
    """Nothing but InvalidInput, and nothing that could be a line or a header of its own."""
    try:
        found = validate_metadata(metadata)
    except InvalidInput:
        return
    assert all(c.isprintable() and c.isascii() for c in "".join([*found, *found.values()]))


@given(st.binary(max_size=200))
def test_any_attribute_is_read_or_refused(data: bytes) -> None:
    """What others put there is metadata, or Corrupt."""
    try:
        found = decode_metadata(data)
    except Corrupt:
        return
    assert decode_metadata(encode_metadata(found)) == found


def test_local_attribute(tmp_path: Path) -> None:
    """It is the documented one, other tools may set it, and damage in it is named."""
    target = LocalStorageProvider(tmp_path).open_object("a/b")
    target.put(b"x", metadata={"made-by": "a test", "n": "1"})
    assert os.getxattr(tmp_path / "a/b", ATTRIBUTE) == b"made-by=a test\nn=1\n"
    os.setxattr(tmp_path / "a/b", ATTRIBUTE, b"n=2")
    assert dict(target.stat().metadata) == {"n": "2"}
    os.setxattr(tmp_path / "a/b", ATTRIBUTE, b"\xff\0")
    with pytest.raises(Corrupt, match="a/b"):
        target.stat()


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.ENOSPC, errno.EPERM])
def test_file_system_without_attributes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Writing with metadata is refused, without leaving anything; without, all is well."""

    def refuse(*_args: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "setxattr", refuse)
    target = LocalStorageProvider(tmp_path).open_object("a/b")
    with pytest.raises(InvalidInput, match="a/b") as raised:
        target.put(b"x", metadata={"k": "v"})
    assert "file system" in str(raised.value)
    assert list(tmp_path.iterdir()) == []
    target.put(b"x")
    assert dict(target.stat().metadata) == {}
