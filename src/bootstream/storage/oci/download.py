"""Reading: one range into a buffer, and a whole object in order, in parallel.

Every answer is checked against what was asked before a byte of it counts: status, range,
length, and the etag where bytes of several answers come together. A whole object is read in
pieces, each with ``if-match`` on the first one's etag, so that a replaced object is an error
and never a mixture. A piece that breaks off is gone on with where it broke off; that cannot
be the retry wrapper's work, which does not know what is there already.
"""

from __future__ import annotations

import hashlib
import random
import re
from base64 import b64encode
from collections import deque
from concurrent.futures import Executor, Future
from dataclasses import dataclass

from bootstream.errors import (
    BootstreamError,
    PreconditionFailed,
    Unavailable,
)
from bootstream.storage.oci.client import Client, Request, Unsuitable
from bootstream.storage.oci.connection import Connection, Head
from bootstream.storage.oci.failures import Interrupted
from bootstream.storage.protocol import Sink

PIECE = 4 << 20
SPLIT = 12 << 20  # a single read from this size on is worth several requests
_WINDOW = 10  # pieces in memory at once
_ATTEMPTS = 5
_PROGRESS = 64 << 10  # less than this an attempt is no progress: it could go on byte by byte
_VERSIONS = 3
_LONGEST_WAIT = 30.0
_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19})\Z")
_UNSATISFIED = re.compile(r"bytes \*/([0-9]{1,19})\Z")


@dataclass(frozen=True, slots=True)
class Piece:
    """What one request gave: bytes read, the object's size (None: not said), and its etag."""

    count: int
    total: int | None
    etag: str
    md5: str | None = None


def total_of(head: Head) -> int | None:
    """Return the whole object's size, as an answer to a range states it, or None."""
    if head.status == 206:
        match = _RANGE.match(head.headers.get("content-range", ""))
        return int(match[3]) if match else None
    if head.status == 416:
        match = _UNSATISFIED.match(head.headers.get("content-range", ""))
        return int(match[1]) if match else None
    return head.length if head.length is not None and head.length >= 0 else None


def fetch(
    client: Client, target: str, path: str, view: memoryview, offset: int, etag: str = ""
) -> Piece:
    """Fill ``view`` from ``offset`` by one request; only of the version ``etag``, if given.

    Raises:
        Interrupted: it broke off; says how much is there, of which version.
        PreconditionFailed: it is of another version than ``etag``.
    """
    end = offset + len(view) - 1
    condition = f"if-match: {etag}\r\n" if etag else ""
    request = Request(
        "GET",
        target,
        "read object",
        path,
        headers=f"range: bytes={offset}-{end}\r\n{condition}".encode("latin-1"),
        success=(200, 206, 416),
    )
    version: tuple[str, str | None] = (etag, None)

    def receive(connection: Connection, head: Head) -> Piece:
        nonlocal version
        if head.status == 416:
            connection.receive_body(head, 1 << 16)
            return Piece(0, total_of(head), "")
        found = head.headers.get("etag", "")
        if not found or (etag and found != etag):
            raise Unsuitable("the answer is not of the object that was asked for")
        version = (found, head.headers.get("content-md5"))
        count, total = _expected(head, len(view), offset, end)
        if head.length is None:
            # Without a length in HTTP's words, the range still says how much there is.
            body = connection.receive_body(head, count)
            if len(body) != count:
                raise Unsuitable(f"the body ends after {len(body)} of {count} bytes")
            view[:count] = body
        elif head.length < 0:
            body = connection.receive_body(head, count)
            if len(body) != count:
                raise Unsuitable(f"the body has {len(body)} of {count} bytes")
            view[:count] = body
        else:
            connection.receive_into(view[:count])
        return Piece(count, total, *version)

    try:
        return client.exchange(request, receive)
    except Interrupted as error:
        error.etag, error.md5 = version
        raise


def _expected(head: Head, size: int, offset: int, end: int) -> tuple[int, int]:
    """Return how many bytes the answer brings, and of how many; raises Unsuitable."""
    if head.status == 200:
        # Whoever does not know ranges sends everything. That will do where it is all we want.
        fits = head.length is not None and 0 <= head.length <= size
        if offset or not fits or "opc-request-id" not in head.headers:
            raise Unsuitable("a part was asked for, and the whole was sent")
        assert head.length is not None
        return head.length, head.length
    match = _RANGE.match(head.headers.get("content-range", ""))
    if match is None:
        raise Unsuitable("the answer does not say which part it is")
    first, last, total = int(match[1]), int(match[2]), int(match[3])
    if first != offset or last != min(end, total - 1) or last < first:
        raise Unsuitable(f"bytes {offset} to {end} were asked for; {first} to {last} were sent")
    count = last - first + 1
    if head.length is not None and head.length >= 0 and head.length != count:
        raise Unsuitable(f"the answer has {head.length} bytes for a part of {count}")
    return count, total


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


def fetch_resuming(
    client: Client,
    target: str,
    path: str,
    view: memoryview,
    offset: int,
    etag: str,
) -> Piece:
    """``fetch``, going on where it broke off; attempts count anew with real progress."""
    done = 0
    failed = 0
    md5: str | None = None
    while True:
        try:
            piece = fetch(client, target, path, view[done:], offset + done, etag)
        except BootstreamError as error:
            if not error.transient:
                raise
            if isinstance(error, Interrupted) and error.received:
                if error.received >= _PROGRESS:
                    failed = 0
                md5 = md5 if done else error.md5
                done += error.received
                etag = etag or error.etag
            failed += 1
            if failed >= _ATTEMPTS:
                error.add_note(f"given up after {failed} attempts")
                raise
            jitter = random.uniform(0, 0.1 * 2**failed)  # noqa: S311 - no secret
            client.sleep(jitter + min(error.retry_after or 0.0, _LONGEST_WAIT))
        else:
            # The checksum is of the answer that began at the start; what others have may be
            # of the rest alone.
            md5 = md5 if done else piece.md5
            return Piece(done + piece.count, piece.total, etag or piece.etag, md5)


def download(
    client: Client, target: str, path: str, sink: Sink, executor: Executor, parallel: int
) -> int:
    """Write all of the object to ``sink`` in order; return the count of bytes.

    Memory: at most ``_WINDOW`` pieces of ``PIECE`` bytes.
    """
    buffers: deque[bytearray] = deque()
    first = bytearray(PIECE)
    head = _first_piece(client, target, path, first)
    if head.total is None and not head.count:
        _check_end(client, target, path, None, 0)
        return 0
    total = head.total or 0
    if head.count != min(total, PIECE):
        raise _changed(path)
    window = max(1, min(parallel, _WINDOW - 1))
    waiting: deque[tuple[Future[Piece], bytearray]] = deque()
    written, asked = 0, PIECE

    def ask() -> None:
        nonlocal asked
        buffer = buffers.popleft() if buffers else bytearray(PIECE)
        part = memoryview(buffer)[: min(PIECE, total - asked)]
        future = executor.submit(fetch_resuming, client, target, path, part, asked, head.etag)
        waiting.append((future, buffer))
        asked += PIECE

    try:
        while asked < total and len(waiting) < window:
            ask()
        if head.count:
            sink.write(memoryview(first)[: head.count])
        written = head.count
        buffers.append(first)
        while waiting:
            future, buffer = waiting.popleft()
            piece = future.result()
            if piece.count != min(PIECE, total - written):
                raise _changed(path)
            sink.write(memoryview(buffer)[: piece.count])
            written += piece.count
            buffers.append(buffer)
            if asked < total:
                ask()
    except PreconditionFailed:
        raise _changed(path) from None
    finally:
        for future, _ in waiting:
            future.cancel()
    return written


def _first_piece(client: Client, target: str, path: str, buffer: bytearray) -> Piece:
    """Return the first piece; where that is all, it has the checksum it was stored with."""
    for _ in range(_VERSIONS):
        piece = fetch_resuming(client, target, path, memoryview(buffer), 0, "")
        if piece.md5 is None or piece.count != piece.total or "-" in piece.md5:
            return piece
        data = memoryview(buffer)[: piece.count]
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
