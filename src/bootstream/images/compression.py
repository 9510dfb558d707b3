"""Decoders of layer blobs: gzip, zstd and plain, chosen by what the bytes are.

Media types are often wrong about compression, so the first bytes decide. Every
decoder is a generator of pieces of a few hundred KiB up to about a MiB, whatever
the input claims, and is strict about ends: input that stops inside a member or
frame, or goes on with something that is neither, is ``Corrupt``.

A gzip member is decoded with an output limit. zstd has no such limit in its
streaming interface, and one compressed byte may stand for many KiB, so the frame
structure is walked here: a block decodes to at most 128 KiB (RFC 8878, 3.1.1.2.4),
so feeding whole blocks, at most eight at a time, bounds what comes out. The walk
also sees skippable frames, ends and windows. Windows over 128 MiB, beyond what the
zstd program itself accepts by default, are refused.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Protocol

import zstandard

from bootstream.errors import Corrupt, InvalidInput

MAX_WINDOW = 128 << 20
_PIECE = 1 << 20
_GZIP_INPUT = 128 << 10
_ZSTD_INPUT = 256 << 10
_BLOCK_BATCH = 8
_MAX_BLOCK = 128 << 10

_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_UNSUPPORTED = {
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x04\x22\x4d\x18": "lz4",
    b"LZIP": "lzip",
}


class RawReader(Protocol):
    """Bytes of a blob as stored, from one thread."""

    def read(self, size: int, /) -> bytes:
        """Return 1 to ``size`` bytes, or none at the end."""
        ...

    def close(self) -> None:
        """Release what it holds; idempotent."""
        ...


def decompress(read: Callable[[int], bytes], *, name: str) -> Iterator[bytes]:
    """Yield the decoded contents of a blob in pieces of bounded size, none of them empty.

    Args:
        read: returns 1 to size bytes, or none at the end.
        name: the blob's name, for errors.

    Raises:
        Corrupt: it is cut short, or has something after its end, or cannot be decoded.
        InvalidInput: it is compressed in a way that cannot be read here.
    """
    source = _Source(read, name)
    source.fill(6)
    head = source.peek(6)
    if head.startswith(_GZIP):
        return _gunzip(source)
    if head.startswith(_ZSTD) or _is_skippable(head):
        return _unzstd(source)
    for magic, method in _UNSUPPORTED.items():
        if head.startswith(magic):
            raise InvalidInput(
                f"it is compressed with {method}; gzip, zstd and none can be read",
                operation="read",
                object=name,
                remedy="copy the image with gzip layers: skopeo copy --dest-compress …",
            )
    return _plain(source)


class _Source:
    """Buffered input that knows whether it has ended."""

    def __init__(self, read: Callable[[int], bytes], name: str) -> None:
        self._read = read
        self._buffer = b""
        self._offset = 0
        self.name = name

    def fill(self, size: int) -> bool:
        """Buffer at least ``size`` bytes; False if the input ends before."""
        missing = size - (len(self._buffer) - self._offset)
        if missing <= 0:
            return True
        parts = [self._buffer[self._offset :]]
        self._offset = 0
        while missing > 0:
            data = self._read(max(missing, _ZSTD_INPUT))
            if not data:
                break
            parts.append(data)
            missing -= len(data)
        self._buffer = b"".join(parts)
        return missing <= 0

    def peek(self, size: int, skip: int = 0) -> bytes:
        start = self._offset + skip
        return self._buffer[start : start + size]

    def take(self, size: int) -> bytes:
        """Return ``size`` bytes that are buffered."""
        data = self._buffer[self._offset : self._offset + size]
        self._offset += size
        return data

    def next(self, size: int) -> bytes:
        """Return 1 to ``size`` bytes, buffered ones first, or none at the end."""
        if self._offset < len(self._buffer):
            data = self._buffer[self._offset : self._offset + size]
            self._offset += len(data)
            return data
        return self._read(size)

    def give_back(self, data: bytes) -> None:
        self._buffer = data + self._buffer[self._offset :]
        self._offset = 0

    def cut_short(self) -> Corrupt:
        return self.corrupt("its compressed data ends early")

    def corrupt(self, problem: str) -> Corrupt:
        return Corrupt(problem, operation="decompress", object=self.name)


def _plain(source: _Source) -> Iterator[bytes]:
    while data := source.next(_PIECE):
        yield data


def _gunzip(source: _Source) -> Iterator[bytes]:
    """RFC 1952: one member after another, each with its own checksum and length."""
    while source.fill(1):
        source.fill(2)
        if source.peek(2) != _GZIP:
            raise source.corrupt("something that is not gzip follows its compressed data")
        member = zlib.decompressobj(wbits=31)
        data = b""
        while not member.eof:
            if not data:
                data = source.next(_GZIP_INPUT)
                if not data:
                    raise source.cut_short()
            try:
                piece = member.decompress(data, _PIECE)
            except zlib.error as error:
                raise source.corrupt(f"its gzip data is damaged ({error})") from error
            data = member.unconsumed_tail
            if piece:
                yield piece
        source.give_back(member.unused_data)


def _is_skippable(head: bytes) -> bool:
    return len(head) >= 4 and head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50


def _unzstd(source: _Source) -> Iterator[bytes]:
    """RFC 8878, 3.1: zstd frames and skippable frames in any order."""
    decoder = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)
    while source.fill(1):
        if not source.fill(4):
            raise source.cut_short()
        magic = source.peek(4)
        if magic == _ZSTD:
            yield from _unzstd_frame(source, decoder)
        elif _is_skippable(magic):
            _skip_frame(source)
        else:
            raise source.corrupt("something that is not zstd follows its compressed data")


def _skip_frame(source: _Source) -> None:
    if not source.fill(8):
        raise source.cut_short()
    left = int.from_bytes(source.take(8)[4:], "little")
    while left:
        data = source.next(min(left, _PIECE))
        if not data:
            raise source.cut_short()
        left -= len(data)


def _unzstd_frame(source: _Source, decoder: zstandard.ZstdDecompressor) -> Iterator[bytes]:
    header, checksum = _frame_header(source)
    frame = decoder.decompressobj()
    pending = [header]
    for blocks, last in _blocks(source):
        pending += blocks
        if last and checksum:
            if not source.fill(4):
                raise source.cut_short()
            pending.append(source.take(4))
        try:
            piece = frame.decompress(b"".join(pending))
        except zstandard.ZstdError as error:
            raise source.corrupt(f"its zstd data is damaged ({error})") from error
        pending.clear()
        if piece:
            yield piece
    if not frame.eof or frame.unused_data:
        raise source.corrupt("its zstd data is damaged (a frame does not end where it says)")


def _blocks(source: _Source) -> Iterator[tuple[list[bytes], bool]]:
    """Yield a frame's blocks, a few at a time, and whether its last one is among them."""
    while True:
        blocks: list[bytes] = []
        for _ in range(_BLOCK_BATCH):
            last, block = _next_block(source)
            blocks.append(block)
            if last:
                yield blocks, True
                return
        yield blocks, False


def _frame_header(source: _Source) -> tuple[bytes, bool]:
    """RFC 8878, 3.1.1.1. Return magic and header, and whether a checksum follows the blocks."""
    if not source.fill(5):
        raise source.cut_short()
    flags = source.peek(1, 4)[0]
    single = bool(flags & 0x20)
    content_bytes = (1 if single else 0, 2, 4, 8)[flags >> 6]
    dictionary_bytes = (0, 1, 2, 4)[flags & 3]
    size = 5 + (0 if single else 1) + dictionary_bytes + content_bytes
    if not source.fill(size):
        raise source.cut_short()
    header = source.take(size)
    if single:
        content = int.from_bytes(header[size - content_bytes :], "little")
        window = content + (256 if content_bytes == 2 else 0)
    else:
        exponent, mantissa = header[5] >> 3, header[5] & 7
        base = 1 << (10 + exponent)
        window = base + (base >> 3) * mantissa
    if window > MAX_WINDOW:
        raise source.corrupt(
            f"it needs {window} bytes of window to decode; at most {MAX_WINDOW} are allowed"
        )
    return header, bool(flags & 4)


def _next_block(source: _Source) -> tuple[bool, bytes]:
    """RFC 8878, 3.1.1.2. Return whether it is the frame's last block, and the block."""
    if not source.fill(3):
        raise source.cut_short()
    header = int.from_bytes(source.peek(3), "little")
    last, kind, size = bool(header & 1), header >> 1 & 3, header >> 3
    if kind == 3 or size > _MAX_BLOCK:
        raise source.corrupt("its zstd data is damaged (an impossible block)")
    length = 3 + (1 if kind == 1 else size)
    if not source.fill(length):
        raise source.cut_short()
    return last, source.take(length)
