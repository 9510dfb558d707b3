"""Patterns for the names of images: what they make, and what is read back."""

from __future__ import annotations

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootstream.errors import InvalidInput
from bootstream.ids import is_build_id, is_template_id
from bootstream.registry.hosts import may_be
from bootstream.registry.names import ImageNames

BUILD = "0b2f6a1e-6d2f-4c0f-9a57-3f6f0c3f7b10"
PATTERNS = (
    "e2b-templates:{template_id}-{build_id}",
    "e2b/{template_id}:{build_id}",
    "a/b.c/{template_id}/{build_id}",
    "x:{build_id}{template_id}",
    "x:{template_id}{build_id}",
    "{build_id}/x:{template_id}.v1",
)

template_ids = st.from_regex(re.compile(r"[a-z0-9][a-z0-9-]{0,62}"), fullmatch=True).filter(
    is_template_id
)
build_ids = st.uuids().map(str)


@pytest.mark.parametrize("pattern", PATTERNS)
@given(template_id=template_ids, build_id=build_ids)
def test_names_are_read_back(pattern: str, template_id: str, build_id: str) -> None:
    """What a pattern makes is read back as it was, or refused before it is made."""
    names = ImageNames(pattern)
    try:
        repository, tag = names.name(template_id, build_id)
    except InvalidInput:
        assert template_id.endswith("-")  # no component of a repository may end so
        assert not names.by_tag
        return
    assert names.parse(repository, tag) == (template_id, build_id)
    assert names.repositories(template_id).fullmatch(repository)
    assert repository.startswith(names.prefix)


@pytest.mark.parametrize("pattern", PATTERNS)
@given(repository=st.text(string.printable, max_size=80), tag=st.text(max_size=140))
def test_other_names_are_nobodys(pattern: str, repository: str, tag: str) -> None:
    """Anything else is None, whatever it is; and what is taken makes the same name again."""
    names = ImageNames(pattern)
    for name in (repository, names.prefix.rstrip("/") or repository):
        found = names.parse(name, tag)
        assert found is None or names.name(*found) == (name, tag)


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        "e2b-templates",
        "e2b:{build_id}",
        "e2b:{template_id}",
        "e2b/{template_id}:{template_id}-{build_id}",
        "e2b:{template_id}-{build_id}-{other}",
        "e2b:{}-{template_id}-{build_id}",
        "E2B:{template_id}-{build_id}",
        "e2b:-{template_id}-{build_id}",
        "e2b:{template_id}/{build_id}",
        "/e2b:{template_id}-{build_id}",
        "e2b/:{template_id}-{build_id}",
        "e2b//x:{template_id}-{build_id}",
        "e2b@{template_id}:{build_id}",
        "e2b:{template_id}-{build_id}@sha256:" + "0" * 64,
        "e2b:" + "x" * 40 + "{template_id}-{build_id}",
        "x" * 200 + "/{template_id}:{build_id}",
        "../{template_id}:{build_id}",
        "e2b:{template_id}-{build_id}\n",
        "e2b:{template_id!r}-{build_id}",
    ],
)
def test_patterns_that_cannot_be(pattern: str) -> None:
    """They are refused when they are read, with the setting's name and an example."""
    with pytest.raises(InvalidInput) as raised:
        ImageNames(pattern)
    assert raised.value.object == "OCI_IMAGE_NAME"
    assert "{template_id}" in (raised.value.remedy or "")


@pytest.mark.parametrize(
    ("template_id", "build_id"),
    [
        ("", BUILD),
        ("Py", BUILD),
        ("-a", BUILD),
        ("a/b", BUILD),
        ("a:b", BUILD),
        ("a" * 64, BUILD),
        (BUILD, BUILD),
        ("py", ""),
        ("py", "latest"),
        ("py", BUILD.upper()),
        ("py", BUILD + "0"),
        ("py", f"../{BUILD}"),
        ("py\n", BUILD),
    ],
)
def test_ids_are_checked(template_id: str, build_id: str) -> None:
    """Nothing that is no id becomes part of a name."""
    names = ImageNames(PATTERNS[0])
    with pytest.raises(InvalidInput):
        names.name(template_id, build_id)


def test_a_template_that_looks_like_a_build_is_none() -> None:
    """A tag of two build ids is no image of ours."""
    names = ImageNames("x:{template_id}-{build_id}")
    assert is_build_id(BUILD)
    assert names.parse("x", f"{BUILD}-{BUILD}") is None
    assert names.parse("x", f"a{BUILD}-{BUILD}") == (f"a{BUILD}", BUILD)


@pytest.mark.parametrize(
    ("provider", "host", "endpoint", "expected"),
    [
        ("OCI_OCIR", "iad.ocir.io", None, True),
        ("OCI_OCIR", "ocir.us-langley-1.oci.oraclegovcloud.com", None, True),
        ("OCI_OCIR", "ocir.io.example", None, False),
        ("OCI_OCIR", "docker.io", None, False),
        ("OCI_OCIR", "127.0.0.1:5000", "http://127.0.0.1:5000", True),
        ("OCI_OCIR", "iad.ocir.io", "127.0.0.1:5000", False),
        ("AWS_ECR", "123456789012.dkr.ecr.eu-west-1.amazonaws.com", None, True),
        ("AWS_ECR", "public.ecr.aws", None, False),
        ("GCP_ARTIFACTS", "europe-west4-docker.pkg.dev", None, True),
        ("AZURE_ACR", "fleet.azurecr.io", None, True),
        ("Local", "127.0.0.1:5000", None, False),
    ],
)
def test_hosts_of_providers(provider: str, host: str, endpoint: str | None, expected: bool) -> None:
    """Only where a host may be the settings' registry is anybody asked whether it is."""
    assert may_be(provider, host, endpoint=endpoint) is expected
