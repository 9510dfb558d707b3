"""Reading: one range into a buffer, and a whole object in order or into a file, in parallel.

A whole object is read in pieces, each with ``if-match`` on the first one's etag, so that a
replaced object is an error and never a mixture. Into a file (``filesink``), each piece is
written by the thread that receives it, as it comes: through a buffer that stays in the
processor's cache, and with no other thread waiting for its turn. Any other sink gets whole
pieces in order, from the calling thread.
"""

from __future__ import annotations

import contextlib
import hashlib
from base64 import b64encode
from collections import deque
from concurrent.futures import Executor, Future
from dataclasses import dataclass

from bootstream.errors import PreconditionFailed, Unavailable
from bootstream.storage.filesink import Place, place_of
from bootstream.storage.oci.client import Client, Request
from bootstream.storage.oci.ranges import (
    Piece,
    fetch,
    fetch_resuming,
    fetch_through,
    resuming,
)
from bootstream.storage.protocol import Sink

PIECE = 4 << 20
SPLIT = 12 << 20  # a single read from this size on is worth several requests
_STEP = 256 << 10  # on the way into a file
_WINDOW = 10  # pieces in memory at once
_VERSIONS = 3


class _NotTaken(Exception):
    """The file did not take what came; the cause says why."""


@dataclass(frozen=True, slots=True)
class _Object:
    """What is downloaded: how to ask for it, and, once that is known, its size and etag."""

    client: Client
    target: str
    path: str
    size: int = 0
    etag: str = ""

    def piece_at(self, offset: int) -> int:
        """Return how many bytes the piece at ``offset`` has."""
        return min(PIECE, self.size - offset)


def read_range(
    client: Client,
    target: str,
    path: str,
    view: memoryview,
    offset: int,
    executor: Executor,
    parallel: int,
) -> int:
    """Fill ``view``; return the count, short only at the object's end."""
    if len(view) < SPLIT or parallel < 2:
        piece = fetch(client, target, path, view, offset)
        if not piece.count:
            _check_end(client, target, path, piece.total, offset)
        return piece.count
    for _ in range(_VERSIONS):
        size = -(-len(view) // min(parallel, len(view) // PIECE))
        size = -(-size // (64 << 10)) * (64 << 10)
        starts = range(0, len(view), size)
        futures = [
            executor.submit(fetch, client, target, path, view[at : at + size], offset + at)
            for at in starts
        ]
        pieces = _all(futures)
        count = sum(piece.count for piece in pieces)
        seen = {piece.etag for piece in pieces if piece.count}
        totals = {piece.total for piece in pieces if piece.total is not None}
        if not seen:
            _check_end(client, target, path, pieces[0].total, offset)
            return 0
        if len(seen) == 1 and len(totals) == 1:
            expected = min(len(view), max(0, totals.pop() - offset))
            if count == expected:
                return count
    raise Unavailable("it keeps changing while it is read", operation="read object", object=path)


def _all(futures: list[Future[Piece]]) -> list[Piece]:
    """Return all results; only when none runs any more, as they write to one buffer."""
    failure: BaseException | None = None
    pieces = []
    for future in futures:
        try:
            pieces.append(future.result())
        except BaseException as error:  # noqa: BLE001 - raised below, after the others ended
            failure = failure or error
            for other in futures:
                other.cancel()
    if failure is not None:
        raise failure
    return pieces


def _check_end(client: Client, target: str, path: str, total: int | None, offset: int) -> None:
    """Make sure that ``offset`` is past the end, as the storage claims."""
    if total is None:
        request = Request("HEAD", target, "read object", path)
        total = int(client.call(request).headers.get("content-length", "-1"))
        if total < 0:
            total = offset + 1
    if offset < total:
        raise Unavailable(
            f"byte {offset} of {total} is said to be past the end",
            operation="read object",
            object=path,
        )


def download(
    client: Client, target: str, path: str, sink: Sink, executor: Executor, parallel: int
) -> int:
    """Write all of the object to ``sink``, in order or at its place; return the count of bytes.

    Memory: at most ``_WINDOW`` pieces of ``PIECE`` bytes; into a file, two of them and
    ``_STEP`` bytes for each of ``parallel`` requests.
    """
    first = memoryview(bytearray(PIECE))
    head = _first_piece(client, target, path, first)
    if head.total is None and not head.count:
        _check_end(client, target, path, None, 0)
        return 0
    what = _Object(client, target, path, head.total or 0, head.etag)
    if head.count != what.piece_at(0):
        raise _changed(path)
    place = place_of(sink) if what.size > PIECE else None
    try:
        if place is not None:
            _fill(what, place, first, executor, parallel)
        else:
            _pass_on(what, sink, first, executor, min(parallel, _WINDOW - 1))
    except PreconditionFailed:
        raise _changed(path) from None
    return what.size


def _pass_on(what: _Object, sink: Sink, first: memoryview, executor: Executor, window: int) -> None:
    """Write pieces in order, ``window`` of which are on their way at once."""
    spare: list[memoryview] = []
    offsets = iter(range(PIECE, what.size, PIECE))
    waiting: deque[tuple[Future[Piece], memoryview, int]] = deque()

    def ask() -> None:
        offset = next(offsets, None)
        if offset is not None:
            buffer = spare.pop() if spare else memoryview(bytearray(PIECE))
            part = buffer[: what.piece_at(offset)]
            future = executor.submit(
                fetch_resuming, what.client, what.target, what.path, part, offset, what.etag
            )
            waiting.append((future, buffer, len(part)))

    try:
        for _ in range(window):
            ask()
        if what.size:
            sink.write(first[: what.piece_at(0)])
        spare.append(first)
        while waiting:
            future, buffer, size = waiting.popleft()
            _insist(what, future.result(), size)
            sink.write(buffer[:size])
            spare.append(buffer)
            ask()
    finally:
        for future, _, _ in waiting:
            future.cancel()


def _fill(what: _Object, place: Place, first: memoryview, executor: Executor, window: int) -> None:
    """Write pieces at their place as they come, ``window`` at once; the last one last."""
    spare: list[memoryview] = []
    offsets = iter(range(PIECE, what.size, PIECE))
    waiting: deque[tuple[Future[Piece], int]] = deque()
    last = memoryview(bytearray((what.size - 1) % PIECE + 1))

    def write(offset: int) -> Piece:
        try:
            buffer = spare.pop()
        except IndexError:
            buffer = memoryview(bytearray(_STEP))

        def ask(done: int, etag: str) -> Piece:
            start = offset + done

            def take(data: memoryview, before: int) -> None:
                try:
                    place.write_at(data, start + before)
                except OSError as error:
                    raise _NotTaken from error

            size = what.piece_at(offset) - done
            return fetch_through(
                what.client, what.target, what.path, size, start, etag, buffer, take
            )

        try:
            return resuming(what.client, ask, what.etag)
        finally:
            spare.append(buffer)

    def keep(offset: int) -> Piece:
        return fetch_resuming(what.client, what.target, what.path, last, offset, what.etag)

    def submit() -> None:
        offset = next(offsets, None)
        if offset is not None:
            size = what.piece_at(offset)
            do = keep if offset + size == what.size else write
            waiting.append((executor.submit(do, offset), size))

    try:
        for _ in range(window):
            submit()
        place.write_at(first, 0)
        place.advance(len(first))
        done = len(first)
        while waiting:
            future, size = waiting.popleft()
            _insist(what, future.result(), size)
            if not waiting:
                place.write_at(last, done)
            place.advance(size)
            done += size
            submit()
    except BaseException as error:
        for future, _ in waiting:
            future.cancel()
        with contextlib.suppress(OSError):
            place.drop()
        if isinstance(error, _NotTaken) and error.__cause__ is not None:
            raise error.__cause__ from None
        raise


def _insist(what: _Object, piece: Piece, size: int) -> None:
    if piece.count != size:
        raise _changed(what.path)


def _first_piece(client: Client, target: str, path: str, buffer: memoryview) -> Piece:
    """Return the first piece; where that is all, it has the checksum it was stored with."""
    for _ in range(_VERSIONS):
        piece = fetch_resuming(client, target, path, buffer, 0, "")
        if piece.md5 is None or piece.count != piece.total or "-" in piece.md5:
            return piece
        data = buffer[: piece.count]
        digest = hashlib.md5(data, usedforsecurity=False).digest()
        if b64encode(digest).decode() == piece.md5:
            return piece
    raise Unavailable("its bytes are damaged on their way", operation="read object", object=path)


def _changed(path: str) -> Unavailable:
    return Unavailable(
        "it was replaced while it was read",
        operation="read object",
        object=path,
        transient=False,
    )
