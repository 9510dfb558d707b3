"""References as people write them, platforms, digests."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootstream.errors import BootstreamError, InvalidInput
from bootstream.images.platform import Platform
from bootstream.images.reference import (
    DockerArchiveReference,
    LayoutReference,
    RegistryReference,
    parse_name,
    parse_reference,
)

SHA = "sha256:" + "0123456789abcdef" * 4
SHA512 = "sha512:" + "0123456789abcdef" * 8


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("debian", "docker.io/library/debian:latest"),
        ("debian:12", "docker.io/library/debian:12"),
        ("docker.io/library/debian", "docker.io/library/debian:latest"),
        ("docker.io/debian", "docker.io/library/debian:latest"),
        ("index.docker.io/team/app:1", "docker.io/team/app:1"),
        ("team/app", "docker.io/team/app:latest"),
        ("localhost/app", "localhost/app:latest"),
        (f"localhost:5000/a/b@{SHA}", f"localhost:5000/a/b@{SHA}"),
        (f"name:tag@{SHA}", f"docker.io/library/name:tag@{SHA}"),
        (f"name@{SHA512}", f"docker.io/library/name@{SHA512}"),
        ("127.0.0.1:1/a/b:c", "127.0.0.1:1/a/b:c"),
        ("[::1]:5000/x", "[::1]:5000/x:latest"),
        ("[2001:db8::1]/x:1", "[2001:db8::1]/x:1"),
        ("GHCR.io/org/app:V1_0", "GHCR.io/org/app:V1_0"),
        ("registry.example/a__b/c-d/e---f.g:x", "registry.example/a__b/c-d/e---f.g:x"),
        ("docker://quay.io/a/b:1", "quay.io/a/b:1"),
        ("docker://debian", "docker.io/library/debian:latest"),
    ],
)
def test_registry_names(text: str, whole: str) -> None:
    """Docker's defaults are filled in, and the full form means the same."""
    parsed = parse_reference(text)
    assert str(parsed) == whole
    assert parse_reference(whole) == parsed


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not one of an image"),
        ("Debian", "debian"),
        ("docker.io/Team/app", "upper-case"),
        ("debian:", "not a tag"),
        ("debian:-x", "not a tag"),
        ("debian:" + "t" * 129, "not a tag"),
        ("debian@sha256:12", "not a digest"),
        ("debian@md5:" + "0" * 32, "not a digest"),
        ("debian@", "not a digest"),
        ("debian@sha256:" + "A" * 64, "not a digest"),
        ("a//b", "not one of an image"),
        ("/a", "not one of an image"),
        ("a/", "not one of an image"),
        ("a..b", "not one of an image"),
        ("-host.example/a", "not a registry"),
        ("host.example:0/a", "not a registry"),
        ("host.example:70000/a", "not a registry"),
        ("host.example:x/a", "not a registry"),
        ("a b", "not one of an image"),
        ("deb\nian", "control"),
        ("https://ghcr.io/a/b", "URL"),
        ("0123456789abcdef" * 4, "image id"),
        ("h.example/" + "a" * 250, "longer"),
        ("containers-storage:[x]/a:b", "containers-storage"),
        ("dir:/tmp/x", "dir:"),
        ("oci:", "no path"),
        ("oci::tag", "no path"),
        ("oci:dir:-", "not a tag"),
        ("oci:dir@sha256:0000000000000000", "not a digest"),
        ("docker-archive:", "no file"),
        ("docker-archive:f:UPPER", "upper"),
        (f"docker-archive:f:a@{SHA}", "digests"),
    ],
)
def test_what_is_no_reference(text: str, says: str) -> None:
    """The error says what is wrong, and what would be right."""
    with pytest.raises(InvalidInput) as caught:
        parse_reference(text)
    assert says in f"{caught.value} {caught.value.remedy}"
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("oci:dir", LayoutReference("dir")),
        ("oci:/a/b/c:12", LayoutReference("/a/b/c", "12")),
        ("oci:dir:docker.io/l/debian:12", LayoutReference("dir", "docker.io/l/debian:12")),
        (f"oci:dir@{SHA}", LayoutReference("dir", None, SHA)),
        (f"oci:dir:tag@{SHA}", LayoutReference("dir", "tag", SHA)),
        ("oci:a@b:tag", LayoutReference("a@b", "tag")),
        ("oci-archive:f.tar:tag", LayoutReference("f.tar", "tag", archive=True)),
        ("docker-archive:f.tar", DockerArchiveReference("f.tar")),
        (
            "docker-archive:f.tar:debian:12",
            DockerArchiveReference("f.tar", RegistryReference("docker.io", "library/debian", "12")),
        ),
        (
            "docker-archive:f.tar:[::1]:5000/x",
            DockerArchiveReference("f.tar", RegistryReference("[::1]:5000", "x", "latest")),
        ),
        ("docker-archive:f.tar:@2", DockerArchiveReference("f.tar", number=2)),
    ],
)  # fmt: skip
def test_paths(text: str, parsed: object) -> None:
    """A path ends at the first colon; what is written out again means the same."""
    assert parse_reference(text) == parsed
    assert parse_reference(str(parsed)) == parsed


component = st.from_regex(r"[a-z0-9]{1,8}((\.|_|__|-{1,3})[a-z0-9]{1,8}){0,2}", fullmatch=True)
tag = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True)
registry = st.one_of(
    st.sampled_from(["docker.io", "localhost", "[::1]:5000", "127.0.0.1:1"]),
    st.from_regex(
        r"[a-z0-9]{1,6}(-[a-z0-9]{1,4})?\.[A-Za-z0-9]{1,6}(:[1-9][0-9]{0,3})?", fullmatch=True
    ),
)
digest = st.text("0123456789abcdef", min_size=64, max_size=64).map(lambda text: f"sha256:{text}")


@given(registry, st.lists(component, min_size=1, max_size=4), st.none() | tag, st.none() | digest)
def test_names_round_trip(host: str, path: list[str], tag: str | None, digest: str | None) -> None:
    """What is written from a parsed name parses to the same."""
    text = "/".join([host, *path]) + (f":{tag}" if tag else "") + (f"@{digest}" if digest else "")
    parsed = parse_name(text)
    assert parse_reference(str(parsed)) == parsed
    assert (parsed.digest, parsed.tag) == (digest, tag or (None if digest else "latest"))


@given(st.text(string.printable + "é\0\x85", max_size=80))
def test_any_text_is_a_reference_or_invalid(text: str) -> None:
    """No other exception; and what is accepted can be written and read again."""
    for prefix in ("", "oci:", "docker-archive:", "docker://", "oci-archive:x:"):
        try:
            parsed = parse_reference(prefix + text)
        except InvalidInput:
            continue
        assert parse_reference(str(parsed)) == parsed


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("linux/amd64", "linux/amd64"),
        ("linux/x86_64", "linux/amd64"),
        ("amd64", "linux/amd64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("aarch64", "linux/arm64"),
        ("linux/arm", "linux/arm/v7"),
        ("linux/armhf", "linux/arm/v7"),
        ("linux/armel", "linux/arm/v6"),
        ("linux/arm/7", "linux/arm/v7"),
        ("Linux/AMD64", "linux/amd64"),
        ("linux/i686", "linux/386"),
    ],
)
def test_platforms_have_one_normal_form(text: str, normal: str) -> None:
    """Aliases and usual variants are resolved."""
    assert str(Platform.parse(text)) == normal


@pytest.mark.parametrize("text", ["", "linux/", "a/b/c/d", "linux/amd 64", "/amd64", "linux//v8"])
def test_what_is_no_platform(text: str) -> None:
    """A clear error."""
    with pytest.raises(InvalidInput):
        Platform.parse(text)


def test_what_runs_where() -> None:
    """The same, or an older variant; never a newer one or another architecture."""

    def distance(host: str, image: str) -> int | None:
        return Platform.parse(host).distance(Platform.parse(image))

    assert distance("linux/arm/v7", "linux/arm/v7") == 0
    assert distance("linux/arm/v7", "linux/arm/v6") == 1
    assert distance("linux/arm/v6", "linux/arm/v7") is None
    assert distance("linux/arm64", "linux/arm64/v8") == 0
    assert distance("linux/arm64", "linux/arm64/v9") is None
    assert distance("linux/amd64/v3", "linux/amd64") == 2
    assert distance("linux/amd64", "linux/amd64/v3") is None
    assert distance("linux/amd64", "windows/amd64") is None
    assert distance("linux/amd64", "linux/arm64") is None


@given(st.text(max_size=30))
def test_any_text_is_a_platform_or_invalid(text: str) -> None:
    """No other exception; normal forms are fixed points."""
    try:
        platform = Platform.parse(text)
    except BootstreamError:
        return
    assert Platform.parse(str(platform)) == platform
