"""The tar reader: dialects, limits, and damage of every kind."""

from __future__ import annotations

import io
import random
import tarfile
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bootstream.errors import BootstreamError, Corrupt, InvalidInput
from bootstream.rootfs.member import Member
from bootstream.rootfs.numbers import decimal_time, header_number
from bootstream.rootfs.source import Source
from bootstream.rootfs.tar import TarReader
from bootstream.testing.images import LayerBuilder


def members(data: bytes) -> Iterator[tuple[Member, bytes]]:
    """Every member with its stored content."""
    with Source(lambda: io.BytesIO(data), lambda _: None) as source:
        reader = TarReader(source, "layer")
        while (member := reader.next()) is not None:
            content = b""
            while part := reader.read(1 << 16):
                content += part
            yield member, content


FIELDS = st.fixed_dictionaries(
    {
        "name": st.lists(
            st.text("abcß\U0001f600 .", min_size=1, max_size=90), min_size=1, max_size=3
        ).map("/".join),
        "uid": st.integers(0, 2**32 - 1),
        "gid": st.integers(0, 2**32 - 1),
        "mtime": st.integers(-(2**33), 2**35),
        "mode": st.integers(0, 0o7777),
    }
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(FIELDS, st.binary(max_size=1500)), max_size=5),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_what_tarfile_writes_is_read(
    files: list[tuple[dict[str, object], bytes]], dialect: int
) -> None:
    """Names, owners, times out of octal's reach, in both dialects of the standard library."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=dialect) as tar:
        for fields, data in files:
            info = tarfile.TarInfo()
            for key, value in fields.items():
                setattr(info, key, value)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    found = list(members(buffer.getvalue()))
    assert len(found) == len(files)
    for (member, content), (fields, data) in zip(found, files, strict=True):
        assert content == data
        assert member.name.decode() == fields["name"]
        assert (member.uid, member.gid, member.mode) == (
            fields["uid"],
            fields["gid"],
            fields["mode"],
        )
        assert member.mtime == fields["mtime"] * 10**9  # type: ignore[operator]  # an int


SAMPLE = (
    LayerBuilder()
    .file("a" * 150, b"long name", xattrs={"user.x": b"1\n2"}, mtime=1.5)
    .folder("d")
    .link("l", "t" * 200)
    .device("null", 1, 3)
    .sparse("s1", 100_000, [(8192, b"x" * 600), (65536, b"y")], form="1.0")
    .sparse("s2", 100_000, [(8192, b"x" * 600), (65536, b"y")], form="0.1")
    .sparse("s3", 100_000, [(8192, b"x" * 600), (65536, b"y")], form="0.0")
    .sparse("s4", 100_000, [(512 * 2 * n, b"x") for n in range(60)], form="gnu")
    .file("end", b"z" * 2000)
    .finish()
)


def test_sample_is_whole() -> None:
    """What the mutations below start from."""
    found = {member.name: member for member, _ in members(SAMPLE)}
    assert found[b"a" * 150].xattrs == {b"user.x": b"1\n2"}
    assert found[b"a" * 150].mtime == 1_500_000_000
    assert [found[name].size for name in (b"s1", b"s2", b"s3", b"s4")] == [100_000] * 4
    assert len(found[b"s4"].sparse or ()) == 2 * 61


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 2**32))
def test_mutations_end_in_an_error_of_ours(seed: int) -> None:
    """Flipped, cut, repeated and inserted bytes: Corrupt, InvalidInput or another archive."""
    chance = random.Random(seed)
    data = bytearray(SAMPLE)
    for _ in range(chance.randint(1, 6)):
        at = chance.randrange(len(data))
        kind = chance.randrange(4)
        if kind == 0:
            data[at] = chance.randrange(256)
        elif kind == 1:
            data[at : at + chance.randrange(600)] = b""
        elif kind == 2:
            data[at:at] = data[at : at + 512]
        else:
            field = chance.choice([b"9" * 11, b"\xff" * 12, b"\x80" + b"\xff" * 11, b"-1", b"\0"])
            data[at : at + len(field)] = field
        if not data:
            return
    if chance.random() < 0.7:  # most damage has a right checksum, or it is found at once
        for start in range(0, len(data) - 511, 512):
            if data[start + 257 : start + 262] == b"ustar":
                data[start + 148 : start + 156] = b" " * 8
                data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
    try:
        for member, _ in members(bytes(data)):
            assert member.size >= 0
    except (Corrupt, InvalidInput) as error:
        assert "layer" in str(error)  # noqa: PT017 - no error is fine too


def header(**fields: object) -> bytearray:
    info = tarfile.TarInfo("file")
    for key, value in fields.items():
        setattr(info, key, value)
    return bytearray(info.tobuf(tarfile.GNU_FORMAT))


def signed(block: bytearray) -> bytes:
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def raises(data: bytes, words: str, kind: type[BootstreamError] = Corrupt) -> None:
    with pytest.raises(kind, match=words):
        list(members(data))


def test_damage_is_named() -> None:
    """Cut off anywhere, wrong checksums, sizes below zero or beyond reason, long headers."""
    whole = LayerBuilder().file("file", b"x" * 3000).finish()
    for cut in (100, 511, 513, 1000, 3000):
        raises(whole[:cut], "archive ends")
    flipped = bytearray(whole)
    flipped[5] ^= 1
    raises(bytes(flipped), "checksum")
    for field in (b"\xff" * 12, b"\x80" + b"\xff" * 11, b"-0000000001\0", b"00000000009\0"):
        block = header()
        block[124:136] = field
        raises(signed(block), "size")
    long = header(type=b"x", size=1 << 30)
    raises(signed(long), "extended header claims")
    raises(signed(header(type=b"L", size=1 << 40)), "extended header claims")
    raises(signed(header(type=b"x", size=0)), "ends after an extended header")
    for record in (b"nonsense", b"99 a=b\n", b"5 a=b\n", b"6 =abc\n", b"6 a=bc", b"-1 a=b\n", b" "):
        block = bytearray(signed(header(type=b"x", size=len(record))))
        raises(bytes(block) + record.ljust(512, b"\0") + whole, "extended header's record")
    for key, value in (
        (b"mtime", b"abc"),
        (b"size", b"-5"),
        (b"uid", b"1e3"),
        (b"size", b"9" * 24),
    ):
        body = b" %s=%s\n" % (key, value)
        record = b"%d" % (len(body) + 2) + body
        raises(
            signed(header(type=b"x", size=len(record))) + record.ljust(512, b"\0") + whole,
            "wrong|size",
        )
    raises(signed(header(type=b"Z")), "type 'Z'", InvalidInput)
    raises(whole[:3584] + bytes(512) + whole, "single block of zeros")


def test_ends_that_are_fine() -> None:
    """Nothing at all, no end mark, one block of it, anything behind it: as runtimes take it."""
    whole = LayerBuilder().file("file", b"x").finish()
    assert list(members(b"")) == []
    for data in (whole[:1024], whole[:1536], whole, whole + b"rubbish" * 1000):
        assert [content for _, content in members(data)] == [b"x"]


def test_global_headers_count_until_taken_back() -> None:
    """A global record holds for all that follow; an extended header's own comes first."""
    buffer = io.BytesIO()
    with tarfile.open(
        fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"mtime": "7.5"}
    ) as tar:
        tar.addfile(tarfile.TarInfo("first"))
        info = tarfile.TarInfo("second")
        info.pax_headers = {"mtime": "8"}
        tar.addfile(info)
    assert [member.mtime for member, _ in members(buffer.getvalue())] == [7_500_000_000, 8 * 10**9]


def test_old_and_foreign_headers() -> None:
    """V7 directories, ustar prefixes, contiguous files, blanks in numbers, base 256."""
    block = header(name="old/")
    block[156:157] = b"\0"
    block[257:265] = bytes(8)
    prefixed = bytearray(tarfile.TarInfo("name").tobuf(tarfile.USTAR_FORMAT))
    prefixed[345:351] = b"prefix"
    contiguous = header(type=b"7", size=3)
    contiguous[108:116] = b"   1750 "
    contiguous[136:148] = b"\xff" * 12
    data = signed(block) + signed(prefixed) + signed(contiguous) + b"abc".ljust(512, b"\0")
    found = list(members(data))
    assert [(m.kind, m.name) for m, _ in found] == [
        (b"5", b"old/"),
        (b"0", b"prefix/name"),
        (b"0", b"file"),
    ]
    assert (found[2][0].uid, found[2][0].mtime, found[2][1]) == (1000, -(10**9), b"abc")


@given(st.integers(-(2**40), 2**40), st.integers(0, 10**9 - 1))
def test_times_keep_nanoseconds(seconds: int, nanoseconds: int) -> None:
    """Also before the epoch, and with more digits than there are nanoseconds."""
    exact = seconds * 10**9 + (nanoseconds if seconds >= 0 else -nanoseconds)
    text = b"%d.%09d" % (seconds, nanoseconds)
    if seconds == 0:
        exact = nanoseconds
    assert decimal_time(text) == exact
    assert decimal_time(text + b"1") == (exact - 1 if seconds < 0 else exact)


@given(st.integers(-(2**88), 2**88 - 1))
def test_base_256(number: int) -> None:
    """What the standard library writes for numbers beyond octal."""
    field = tarfile.itn(number, 12, tarfile.GNU_FORMAT)  # type: ignore[attr-defined]  # it is there
    assert header_number(field) == number
