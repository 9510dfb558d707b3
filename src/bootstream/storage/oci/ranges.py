"""One range of an object: asked for, checked, and gone on with where it breaks off.

Every answer is checked against what was asked before a byte of it counts: status, range,
length, and the etag where bytes of several answers come together. A piece that breaks off is
gone on with where it broke off; that cannot be the retry wrapper's work, which does not know
what is there already.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from bootstream.errors import BootstreamError
from bootstream.storage.oci.client import Client, Request, Unsuitable
from bootstream.storage.oci.connection import Connection, Head
from bootstream.storage.oci.failures import Interrupted

_ATTEMPTS = 5
_PROGRESS = 64 << 10  # less than this an attempt is no progress: it could go on byte by byte
_LONGEST_WAIT = 30.0
_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19})\Z")
_UNSATISFIED = re.compile(r"bytes \*/([0-9]{1,19})\Z")

Take = Callable[[memoryview, int], None]
"""Gets bytes of a range, in order, and how many came before them."""


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

    def receive(connection: Connection, head: Head, count: int) -> None:
        if head.length is not None and head.length >= 0:
            connection.receive_into(view[:count])
        else:
            view[:count] = _whole(connection, head, count)

    return _ask(client, target, path, len(view), offset, etag, receive)


def fetch_through(
    client: Client,
    target: str,
    path: str,
    size: int,
    offset: int,
    etag: str,
    buffer: memoryview,
    take: Take,
) -> Piece:
    """``fetch`` of ``size`` bytes that go to ``take`` as they come, by way of ``buffer``.

    What ``take`` raises passes; an OSError of its own it has to wrap, as that would be taken
    for the connection's.
    """

    def receive(connection: Connection, head: Head, count: int) -> None:
        if head.length is not None and head.length >= 0:
            connection.receive_through(count, buffer, take)
        else:
            take(memoryview(_whole(connection, head, count)), 0)

    return _ask(client, target, path, size, offset, etag, receive)


def _whole(connection: Connection, head: Head, count: int) -> bytes:
    """Return a body that comes in chunks, or ends with the connection: the range tells how much."""
    body = connection.receive_body(head, count)
    if len(body) != count:
        raise Unsuitable(f"the body has {len(body)} of {count} bytes")
    return body


def _ask(
    client: Client,
    target: str,
    path: str,
    size: int,
    offset: int,
    etag: str,
    receive_body: Callable[[Connection, Head, int], None],
) -> Piece:
    end = offset + size - 1
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
        count, total = _expected(head, size, offset, end)
        receive_body(connection, head, count)
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


def resuming(client: Client, ask: Callable[[int, str], Piece], etag: str) -> Piece:
    """Return what ``ask`` brings, which goes on after so many bytes where it broke off.

    Attempts count anew with real progress. ``ask`` gets that count, and the version's etag.
    """
    done = 0
    failed = 0
    md5: str | None = None
    while True:
        try:
            piece = ask(done, etag)
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


def fetch_resuming(
    client: Client, target: str, path: str, view: memoryview, offset: int, etag: str
) -> Piece:
    """``fetch``, going on where it broke off."""

    def ask(done: int, etag: str) -> Piece:
        return fetch(client, target, path, view[done:], offset + done, etag)

    return resuming(client, ask, etag)
