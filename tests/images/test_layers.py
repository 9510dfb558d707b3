"""Layer streams: every compression, every way to be damaged, bounded memory."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import random
import resource
import subprocess
import threading
import zlib
from collections.abc import Callable

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from bootstream.errors import BootstreamError, Corrupt, InvalidInput
from bootstream.images.compression import decompress
from bootstream.images.layers import DecodedLayer

TEXT = random.Random(1).randbytes(3000) * 700 + b"end"


def digest(data: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def skippable(data: bytes) -> bytes:
    return b"\x53\x2a\x4d\x18" + len(data).to_bytes(4, "little") + data


def zstd_frames(data: bytes) -> bytes:
    """Three frames of different make, with skippable ones around them."""
    third = len(data) // 3
    with_checksum = zstandard.ZstdCompressor(write_checksum=True).compress(data[:third])
    stream = zstandard.ZstdCompressor(level=1, write_content_size=False).compressobj()
    streamed = stream.compress(data[third : 2 * third]) + stream.flush()
    last = zstandard.ZstdCompressor(level=12).compress(data[2 * third :])
    return skippable(b"") + with_checksum + skippable(b"x" * 999) + streamed + last


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "none": lambda data: data,
    "gzip": lambda data: gzip.compress(data, 6),
    "gzip members": lambda data: gzip.compress(data[:1000]) + gzip.compress(data[1000:], 1),
    "gzip stored": lambda data: gzip.compress(data, 0),
    "gzip by pigz blocks": lambda data: b"".join(
        gzip.compress(data[start : start + 65536]) for start in range(0, len(data), 65536)
    ),
    "zstd": zstandard.ZstdCompressor(level=3).compress,
    "zstd frames": zstd_frames,
}


def open_layer(blob: bytes, content: bytes, algorithm: str = "sha256") -> DecodedLayer:
    return DecodedLayer(
        io.BytesIO(blob),
        diff_id=digest(content, algorithm),
        name="layer",
        damaged=lambda: "fetch it again",
    )


def read_all(layer: DecodedLayer, size: int = 1 << 20) -> bytes:
    with layer:
        parts = []
        while data := layer.read(size):
            assert len(data) <= size
            parts.append(data)
        assert layer.read(size) == b""
        return b"".join(parts)


@pytest.mark.parametrize("name", COMPRESSORS)
@pytest.mark.parametrize("size", [1000, 1 << 20])
def test_contents(name: str, size: int) -> None:
    """What comes out is what went in, however it was compressed and is read."""
    assert read_all(open_layer(COMPRESSORS[name](TEXT), TEXT), size) == TEXT


@pytest.mark.parametrize("name", COMPRESSORS)
def test_nothing_in_it(name: str) -> None:
    """An empty tar is a layer too."""
    assert read_all(open_layer(COMPRESSORS[name](b""), b"")) == b""


def test_sha512() -> None:
    """The other registered digest."""
    assert read_all(open_layer(gzip.compress(TEXT), TEXT, "sha512")) == TEXT


def test_by_other_programs(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The zstd program with a long window and several threads; the gzip program."""
    for command in (
        ["zstd", "-q", "--long=27", "-T2", "-19"],
        ["zstd", "-q", "--fast=5", "--no-check"],
        ["gzip", "-9", "--name"],
    ):
        result = subprocess.run([*command, "-c"], input=TEXT, capture_output=True, check=True)
        assert read_all(open_layer(result.stdout, TEXT)) == TEXT


@pytest.mark.parametrize("name", [name for name in COMPRESSORS if name != "none"])
def test_cut_short(name: str) -> None:
    """Wherever the compressed data ends early, also where only the checksum is missing."""
    blob = COMPRESSORS[name](TEXT)
    for end in (1, 5, 7, 11, 100, len(blob) // 2, len(blob) - 9, len(blob) - 4, len(blob) - 1):
        with pytest.raises(Corrupt):
            read_all(open_layer(blob[:end], TEXT))


@pytest.mark.parametrize("name", [name for name in COMPRESSORS if name != "none"])
@pytest.mark.parametrize("garbage", [b"\0", b"garbage", b"\0" * 512, b"\x1f", b"\x28\xb5"])
def test_trailing_garbage(name: str, garbage: bytes) -> None:
    """Something after the end is not passed over."""
    with pytest.raises(Corrupt):
        read_all(open_layer(COMPRESSORS[name](TEXT) + garbage, TEXT))


def test_other_content_is_found_at_the_end() -> None:
    """The diff id decides; the error says what to do, and stays on further reads."""
    layer = open_layer(gzip.compress(TEXT), TEXT + b"!")
    with pytest.raises(Corrupt, match="diff id") as caught, layer:
        while layer.read(1 << 20):
            pass
    assert caught.value.remedy == "fetch it again"
    again = open_layer(gzip.compress(TEXT), TEXT + b"!")
    with again:
        for _ in range(2):
            with pytest.raises(Corrupt):
                while again.read(1 << 20):
                    pass


@pytest.mark.parametrize("compress", [bz2.compress, lzma.compress])
def test_other_compressions_are_named(compress: Callable[[bytes], bytes]) -> None:
    """What cannot be read is said to be so."""
    with pytest.raises(InvalidInput, match="compressed with"):
        read_all(open_layer(compress(TEXT), TEXT))


def test_closing_early_ends_the_threads() -> None:
    """Whether it was read or not; closing twice is nothing."""
    before = threading.active_count()
    for count in (0, 1):
        layer = open_layer(gzip.compress(b"\0" * (64 << 20), 1), b"")
        for _ in range(count):
            assert layer.read(10) == b"\0" * 10
        layer.close()
        layer.close()
    assert threading.active_count() == before


def test_dropping_it_ends_the_threads() -> None:
    """A stream that nobody closed does not keep its threads."""
    layer = open_layer(gzip.compress(b"\0" * (32 << 20), 1), b"")
    threads = list(layer._threads)
    del layer
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def bomb_of_runs(total: int) -> bytes:
    """A zstd frame of repeated-byte blocks: four bytes for each 128 KiB."""
    header = b"\x28\xb5\x2f\xfd\x00\x88"  # a window of 128 MiB
    block = (128 << 10) << 3 | 1 << 1
    blocks = total // (128 << 10)
    return (
        header
        + (block.to_bytes(3, "little") + b"\0") * (blocks - 1)
        + ((block | 1).to_bytes(3, "little") + b"\0")
    )


def test_a_bomb_is_no_memory_problem() -> None:
    """Gigabytes out of kilobytes come in pieces of bounded size."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    packer = zlib.compressobj(9, wbits=31)
    zeros = b"\0" * (1 << 20)
    bomb = b"".join(packer.compress(zeros) for _ in range(200)) + packer.flush()
    for blob, total in ((bomb, 200 << 20), (bomb_of_runs(600 << 20), 600 << 20)):
        assert len(blob) < 1 << 20
        size = 0
        for piece in decompress(io.BytesIO(blob).read, name="bomb"):
            assert len(piece) <= 2 << 20
            size += len(piece)
        assert size == total
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 320 << 10  # KiB; the window alone may take 128 MiB


@pytest.mark.parametrize(
    "descriptor", [b"\x00\x91", b"\xe0" + b"\xff" * 8, b"\xa0\xff\xff\xff\x7f"]
)
def test_huge_windows_are_refused(descriptor: bytes) -> None:
    """A frame that wants more than 128 MiB of window, by either field."""
    blob = b"\x28\xb5\x2f\xfd" + descriptor + b"\x01\0\0"
    with pytest.raises(Corrupt, match="window"):
        list(decompress(io.BytesIO(blob).read, name="layer"))


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([name for name in COMPRESSORS if name != "none"]),
    st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(1, 255)), min_size=1, max_size=4),
)
def test_mutations(name: str, changes: list[tuple[int, int]]) -> None:
    """A changed byte gives the same contents, or an error of ours; never another, no hang."""
    content = TEXT[:9000]
    blob = bytearray(COMPRESSORS[name](content))
    for offset, change in changes:
        blob[offset % len(blob)] ^= change
    try:
        assert read_all(open_layer(bytes(blob), content)) == content
    except BootstreamError:
        pass


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([b"", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd"]))
def test_any_bytes(data: bytes, magic: bytes) -> None:
    """Bytes that claim to be compressed are decoded or refused."""
    try:
        for _ in decompress(io.BytesIO(magic + data).read, name="layer"):
            pass
    except BootstreamError:
        pass


def test_errors_of_the_blob_pass() -> None:
    """What reading the blob raises reaches the reader."""

    class Failing:
        def read(self, size: int, /) -> bytes:
            raise Corrupt("the disk is bad")

        def close(self) -> None:
            pass

    layer = DecodedLayer(Failing(), diff_id=digest(b""), name="x", damaged=str)
    with pytest.raises(Corrupt, match="the disk is bad"), layer:
        layer.read(1)
