"""What documents refer to, scopes, links: from outside, so anything may come."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootstream.errors import BootstreamError, Corrupt
from bootstream.images.manifest import OCI_INDEX, OCI_MANIFEST, parse_references
from bootstream.images.scopes import merge_scopes

DIGEST = "sha256:" + "a" * 64
DESCRIPTOR = {"mediaType": "application/x", "digest": DIGEST, "size": 5}

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.just(DIGEST),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["mediaType", "digest", "size", "platform", "annotations"]), inner
        )
    ),
    max_leaves=8,
)
documents = st.dictionaries(
    st.sampled_from(["schemaVersion", "mediaType", "manifests", "layers", "config", "blobs"]),
    values | st.just([DESCRIPTOR]) | st.just(DESCRIPTOR) | st.sampled_from([OCI_INDEX, 2]),
)


@given(documents | values, st.text(max_size=20) | st.sampled_from([OCI_INDEX, OCI_MANIFEST]))
def test_documents_of_any_shape(document: Any, media_type: str) -> None:
    """Either what it refers to, all of it checked, or an error of ours."""
    try:
        found = parse_references(
            json.dumps(document).encode(), media_type=media_type, what="a document"
        )
    except BootstreamError:
        return
    for descriptor in (*found.documents, *found.blobs):
        assert descriptor.digest == DIGEST
        assert descriptor.size >= 0


@given(st.binary(max_size=64))
def test_documents_of_any_bytes(data: bytes) -> None:
    """Bytes that are no JSON object are Corrupt."""
    try:
        parse_references(data, media_type="", what="a document")
    except BootstreamError:
        return
    assert isinstance(json.loads(data), dict)


def test_documents_of_kinds_that_nobody_knows() -> None:
    """Configurations and blobs of any type count; a subject does not; the type stays."""
    kind = "application/vnd.example.thing.v1+json"
    document = {"mediaType": kind, "blobs": [DESCRIPTOR], "config": DESCRIPTOR, "subject": 5}
    found = parse_references(json.dumps(document).encode(), media_type="", what="x")
    assert found.media_type == kind
    assert len(found.blobs) == 2
    two = {"mediaType": OCI_INDEX, "manifests": [], "layers": []}
    with pytest.raises(Corrupt):
        parse_references(json.dumps(two).encode(), media_type="", what="x")


def test_scopes_are_merged() -> None:
    """One entry a resource, every action once, in order; what is no scope stays."""
    assert merge_scopes(["repository:a/b:pull", "repository:a/b:pull,push registry:catalog:*"]) == (
        "repository:a/b:pull,push",
        "registry:catalog:*",
    )
    assert merge_scopes(["", "odd", "repository:h:5000/a:pull"]) == (
        "odd",
        "repository:h:5000/a:pull",
    )


@given(st.lists(st.text(alphabet="ab:, *", max_size=12), max_size=4))
def test_merging_scopes_again_changes_nothing(texts: list[str]) -> None:
    """Whatever a challenge says."""
    once = merge_scopes(texts)
    assert merge_scopes(once) == once
