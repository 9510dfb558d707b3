"""Chunks out of the store: few large requests, every chunk checked before it is handed out.

Small chunks keep what is read beside the point small; large requests keep the number
of round trips small. So chunks that are wanted together, and lie near each other in
one pack, are one range request, also over a small gap of frames that nobody asked for.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import zstandard

from bootstream.chunks.index import DIGEST_SIZE, Index, Pack
from bootstream.errors import Corrupt, InvalidInput, ObjectNotFound
from bootstream.storage.protocol import StorageProvider

REQUEST_SIZE = 4 << 20
GAP = 128 << 10

Deliver = Callable[[int, "bytes | memoryview"], None]
Damaged = Callable[[Pack, Corrupt | ObjectNotFound], None]


@dataclass(slots=True)
class _Piece:
    """One place in a pack, and the chunks that are there."""

    entry: int
    offset: int
    length: int
    chunks: list[int]


@dataclass(slots=True)
class _Request:
    """Neighbouring pieces of one pack that are read together."""

    pack: int
    offset: int
    end: int
    pieces: list[_Piece] = field(default_factory=list)


class _Unsound(Exception):
    """A piece is not what the index says; the text says how."""


class ChunkReader:
    """Reads chunks of one artifact. Safe to use from many threads.

    It keeps nothing: every fetch goes to the storage, and every chunk is decoded and
    checked against its sha256 each time.

    Args:
        storage: where the packs are.
        index: of the artifact.
        request_size: bytes that one range request may take, unless one frame is larger.
        gap: unwanted bytes between two frames that are rather read than asked around.
    """

    def __init__(
        self,
        storage: StorageProvider,
        index: Index,
        *,
        request_size: int = REQUEST_SIZE,
        gap: int = GAP,
    ) -> None:
        self.index = index
        self._storage = storage
        self._request_size = request_size
        self._gap = gap
        self._own = threading.local()
        self._lock = threading.Lock()
        self._received = 0

    @property
    def received(self) -> int:
        """How many bytes the storage gave so far, also those that nobody could use."""
        return self._received

    def plan(self, chunks: Iterable[int]) -> list[list[int]]:
        """Group chunks that are not zeros into those that ``fetch`` brings by one request."""
        return [
            sorted(chunk for piece in request.pieces for chunk in piece.chunks)
            for request in self._plan(chunks)
        ]

    def fetch(self, chunks: Sequence[int], deliver: Deliver) -> None:
        """Fetch chunks and hand each to ``deliver(chunk, data)``, as soon as it is there.

        Args:
            chunks: numbers, ascending, of chunks that are not zeros.
            deliver: is called in this thread, once a chunk, in the order in which they lie
                in the packs; ``data`` has exactly ``chunk_length`` bytes, and stays valid.

        Raises:
            Corrupt: a chunk is damaged in the store: fetched twice, wrong twice.
            InvalidInput: a chunk is zeros, which are stored nowhere.
            NotFound, Unavailable, PermissionDenied: of the storage.
        """
        self.check(chunks, deliver, self._refuse)

    def check(
        self,
        chunks: Iterable[int],
        deliver: Deliver,
        damaged: Damaged,
        *,
        skip: Callable[[Pack], bool] | None = None,
    ) -> None:
        """Fetch as ``fetch`` does, but tell ``damaged`` of chunks that are, and go on.

        Packs for which ``skip`` is true, asked before every request, are left out.
        """
        for request in self._plan(chunks):
            pack = self.index.packs[request.pack]
            if skip is not None and skip(pack):
                continue
            try:
                self._run(request, pack, deliver, damaged)
            except ObjectNotFound as error:
                damaged(pack, error)

    @staticmethod
    def _refuse(pack: Pack, error: Corrupt | ObjectNotFound) -> None:
        del pack
        raise error

    # -- requests -------------------------------------------------------------------------

    def _plan(self, chunks: Iterable[int]) -> Iterator[_Request]:
        """Group chunks into requests, in the order of packs and of places in them."""
        request: _Request | None = None
        for pack, offset, length, entry, chunk in sorted(self._places(chunks)):
            if request is not None and request.pack == pack:
                last = request.pieces[-1]
                if last.entry == entry:
                    last.chunks.append(chunk)
                    continue
                near = offset - request.end <= self._gap
                if near and offset + length - request.offset <= self._request_size:
                    request.pieces.append(_Piece(entry, offset, length, [chunk]))
                    request.end = max(request.end, offset + length)
                    continue
            if request is not None:
                yield request
            request = _Request(pack, offset, offset + length)
            request.pieces.append(_Piece(entry, offset, length, [chunk]))
        if request is not None:
            yield request

    def _places(self, chunks: Iterable[int]) -> Iterator[tuple[int, int, int, int, int]]:
        index = self.index
        for chunk in chunks:
            entry = index.positions[chunk] - 1
            if entry < 0:
                raise InvalidInput(
                    f"chunk {chunk} is zeros", operation="read chunk", object=index.name
                )
            yield (
                index.pack_numbers[entry],
                index.offsets[entry],
                index.lengths[entry],
                entry,
                chunk,
            )

    def _run(self, request: _Request, pack: Pack, deliver: Deliver, damaged: Damaged) -> None:
        length = request.end - request.offset
        data = self._read(pack, request.offset, self._buffer(length))
        for piece in request.pieces:
            start = piece.offset - request.offset
            try:
                content = self._open(pack, data[start : start + piece.length], piece)
            except _Unsound:
                # the network or a cache on the way may have been at fault: ask once more
                try:
                    again = self._read(pack, piece.offset, memoryview(bytearray(piece.length)))
                    content = self._open(pack, again, piece)
                except _Unsound as reason:
                    damaged(pack, self._corrupt(pack, piece, str(reason)))
                    continue
            for chunk in piece.chunks:
                deliver(chunk, content)

    def _read(self, pack: Pack, offset: int, buffer: memoryview) -> memoryview:
        """Read a range; shorter where the object ends."""
        count = self._storage.open_object(pack.path).read_at(buffer, offset)
        with self._lock:
            self._received += count
        return buffer[:count]

    def _buffer(self, length: int) -> memoryview:
        """Return memory of this thread's own, which its next request uses again.

        Fresh memory for each request would cost the kernel as much as receiving into it.
        """
        buffer: memoryview | None = getattr(self._own, "buffer", None)
        if buffer is None or len(buffer) < length:
            buffer = memoryview(bytearray(length))
            if length <= self._request_size:
                self._own.buffer = buffer
        return buffer[:length]

    def _corrupt(self, pack: Pack, piece: _Piece, reason: str) -> Corrupt:
        return Corrupt(
            f"chunk {piece.chunks[0]} of {self.index.name.removesuffix('.index')} is damaged: "
            f"{reason} (at byte {piece.offset}, {piece.length} bytes; fetched twice)",
            operation="read chunk",
            object=pack.path,
            remedy="make the build again; 'bootstream verify' names all that is damaged",
        )

    # -- checks ---------------------------------------------------------------------------

    def _open(self, pack: Pack, stored: memoryview, piece: _Piece) -> bytes:
        """Return the chunk that ``stored`` is, proved; raises _Unsound."""
        index = self.index
        size = index.chunk_length(piece.chunks[0])
        if index.chunk_length(piece.chunks[-1]) != size:
            raise _Unsound("the index gives it to chunks of different lengths")
        if len(stored) != piece.length:
            raise _Unsound("the object ends before it does")
        content = self._raw(stored, size) if pack.raw else self._decode(stored, size)
        wanted = index.digests[piece.entry * DIGEST_SIZE : (piece.entry + 1) * DIGEST_SIZE]
        if hashlib.sha256(content).digest() != wanted:
            raise _Unsound("its bytes differ from their sha256")
        return content

    @staticmethod
    def _raw(stored: memoryview, size: int) -> bytes:
        if len(stored) != size:
            raise _Unsound(f"the index says {len(stored)} bytes, the chunk has {size}")
        return bytes(stored)  # a view would keep the whole request's bytes as long as it lives

    def _decode(self, frame: memoryview, size: int) -> bytes:
        """Decode exactly one frame of exactly ``size`` bytes; docs/formats/pack.md, Reading."""
        try:
            declared = zstandard.get_frame_parameters(frame).content_size
            if declared != size:
                raise _Unsound(f"its frame holds another size than {size} bytes")
            content = self._decoder().decompress(frame, allow_extra_data=False)
        except (zstandard.ZstdError, MemoryError) as error:
            raise _Unsound("it is not a sound zstd frame") from error
        if len(content) != size:
            raise _Unsound(f"its frame makes {len(content)} bytes, not {size}")
        return content

    def _decoder(self) -> zstandard.ZstdDecompressor:
        """Return this thread's decoder, which never takes more memory than a chunk is large."""
        decoder: zstandard.ZstdDecompressor | None = getattr(self._own, "decoder", None)
        if decoder is None:
            decoder = zstandard.ZstdDecompressor(max_window_size=self.index.chunk_size)
            self._own.decoder = decoder
        return decoder
