"""Addresses of stores: what each form means, and that nothing else is taken."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootstream.errors import InvalidInput
from bootstream.storage.paths import is_valid_path
from bootstream.storage.url import SCHEMES, StoreAddress, parse_store

NAMES = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1, max_size=30
).filter(is_valid_path)
BUCKETS = st.from_regex(r"[a-z0-9][a-z0-9-]{1,40}[a-z0-9]", fullmatch=True).filter(
    lambda name: "--" not in name
)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("oci://ns@b", StoreAddress("OCIBucket", "b", namespace="ns")),
        ("oci://b/p", StoreAddress("OCIBucket", "b", "p")),
        ("oci://ns@My_Bucket.1/a/b/", StoreAddress("OCIBucket", "My_Bucket.1", "a/b", "ns")),
        ("s3://bucket", StoreAddress("AWSBucket", "bucket")),
        ("s3://bucket/", StoreAddress("AWSBucket", "bucket")),
        ("S3://my.bucket/a b/c%20?#d", StoreAddress("AWSBucket", "my.bucket", "a b/c%20?#d")),
        ("s3://Old_Bucket", StoreAddress("AWSBucket", "Old_Bucket")),
        ("s3://bucket/x@y:z", StoreAddress("AWSBucket", "bucket", "x@y:z")),
        ("gs://my_bucket/grüße", StoreAddress("GCPBucket", "my_bucket", "grüße")),
        ("az://container/p", StoreAddress("AzureBlob", "container", "p")),
        ("file:///a/b%20c/", StoreAddress("Local", folder="/a/b c")),
        ("file://localhost/a", StoreAddress("Local", folder="/a")),
        ("file:///%ff", StoreAddress("Local", folder="/\udcff")),
        ("/a/../b/", StoreAddress("Local", folder="/a/../b")),
        ("a:b", StoreAddress("Local", folder=str(Path("a:b").absolute()))),
    ],
)
def test_forms(text: str, address: StoreAddress) -> None:
    """Each form, read; and its own spelling is read as the same."""
    assert parse_store(text) == address
    assert parse_store(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nul\0",
        "://b",
        "http://host/bucket",
        "s3:///prefix",
        "s3://",
        "s3://ab",
        "s3://b%20c",
        "s3://abc-",
        "s3://a..b",
        "s3://-ab",
        "s3://bucket//p",
        "s3://bucket/../p",
        "s3://bucket/a//b",
        "s3://bucket/a\nb",
        "s3://bucket/" + "x" * 1025,
        "s3://bucket\udcff/x",
        "s3://bucket/\udcff",
        "gs://_bucket",
        "az://two--dashes",
        "az://under_score",
        "oci://@b",
        "oci://ns@",
        "oci://n@s@b",
        "oci://b c",
        "file://",
        "file://host/a",
        "file://relative",
        "file:///a?b",
        "file:///a#b",
        "file:///a%2",
        "file:///a%00",
        "file:///\ud800",
    ],
)
def test_what_is_refused(text: str) -> None:
    """With a remedy, and without a word that could not be printed."""
    with pytest.raises(InvalidInput) as raised:
        parse_store(text)
    assert raised.value.remedy
    str(raised.value).encode("ascii", "strict" if "…" not in str(raised.value) else "ignore")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_credentials_are_not_repeated(scheme: str) -> None:
    """A password in a URL is refused, and in no message."""
    with pytest.raises(InvalidInput) as raised:
        parse_store(f"{scheme}://user:hunter2@bucket/p")
    assert "hunter2" not in str(raised.value) + (raised.value.remedy or "")


@given(st.sampled_from(sorted(SCHEMES)), BUCKETS, st.one_of(st.just(""), NAMES))
def test_round_trip(scheme: str, bucket: str, prefix: str) -> None:
    """A bucket and any prefix that names can have come back as they were."""
    address = parse_store(f"{scheme}://{bucket}/{prefix}")
    assert (address.provider, address.bucket, address.prefix) == (SCHEMES[scheme], bucket, prefix)
    assert parse_store(str(address)) == address


@given(st.binary(min_size=1, max_size=60).filter(lambda name: b"\0" not in name))
def test_any_folder(name: bytes) -> None:
    """Every name that a folder can have, also as a URL."""
    address = StoreAddress("Local", folder=str(Path(os.fsdecode(b"/" + name))))
    assert parse_store(str(address)) == address


@given(
    st.one_of(
        st.text(max_size=80),
        st.builds(lambda s, t: f"{s}://{t}", st.sampled_from([*SCHEMES, "file"]), st.text()),
    )
)
def test_any_text_is_an_address_or_refused(text: str) -> None:
    """Nothing but InvalidInput, and what was read can be written and read again."""
    try:
        address = parse_store(text)
    except InvalidInput:
        return
    try:
        spelled = str(address)
    except UnicodeEncodeError:  # a lone surrogate, which no file name decodes to
        return
    assert parse_store(spelled) == address
