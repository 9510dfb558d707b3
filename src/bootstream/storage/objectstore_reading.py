"""Reading through obstore: ranges of one version, checked, straight to where they go.

A read of more than one range is pinned to the etag of its first answer. Every answer's range
and length are checked, so that a server that ignores ranges, or a body that is cut, is an
error and never wrong bytes. Bytes are passed on in pieces as they arrive: obstore would put
them together first, which costs memory and time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from bootstream.errors import BootstreamError, Unavailable
from bootstream.storage.filesink import Place, place_of
from bootstream.storage.objectstore import BucketProvider
from bootstream.storage.objectstore_errors import parse
from bootstream.storage.objectstore_parts import RANGE, in_order
from bootstream.storage.protocol import ObjectStat, Sink

_TRIES = 4
_AT_ONCE = 4
_PIECE = 256 << 10

Take = Callable[[memoryview, int], None]
"""Takes bytes, and how many of the range came before them."""


class _Changed(Exception):
    """The object is not the one that the first answer came from."""


class _BadRange(Exception):
    """The range lies past the object's end, wholly or in part."""


class _NotTaken(Exception):
    """The caller's file did not take the bytes; the cause is its error."""


class Ranges:
    """Reads of one object.

    Args:
        provider: its bucket.
        path: its name.
        stat: tells what is known of it.
    """

    def __init__(self, provider: BucketProvider, path: str, stat: Callable[[], ObjectStat]) -> None:
        self._provider = provider
        self._path = path
        self._stat = stat
        self._obstore = provider.engine.obstore
        self._store = provider.engine.once
        self._parallel = provider.engine.parallel

    def download(self, sink: Sink) -> int:
        """Download all of it; return the count of bytes. See the protocol's ``write_to``."""
        first = memoryview(bytearray(RANGE))
        try:
            count, meta = self._range(0, first, None)
            if meta is None:
                return 0
            size, etag = meta["size"], meta["e_tag"]
            place = place_of(sink) if size > count else None
            if place is not None:
                self._into_file(place, first[:count], size, etag)
            else:
                sink.write(first[:count])
                del first
                self._in_order(sink, count, size, etag)
        except _Changed:
            raise self._changed() from None
        return int(size)

    def _in_order(self, sink: Sink, done: int, size: int, etag: str) -> None:
        def fetch(start: int) -> memoryview:
            buffer = memoryview(bytearray(min(RANGE, size - start)))
            self._range(start, buffer, etag)
            return buffer

        for piece in self._each(fetch, done, size):
            sink.write(piece)

    def _into_file(self, place: Place, first: memoryview, size: int, etag: str) -> None:
        """Write ranges at their place as they come; the last one when all others are written."""
        end = (size - 1) // RANGE * RANGE
        last = memoryview(bytearray(size - end))

        def fetch(start: int) -> int:
            if start == end:
                return self._range(start, last, etag)[0]

            def take(data: memoryview, before: int) -> None:
                try:
                    place.write_at(data, start + before)
                except OSError as error:
                    raise _NotTaken from error

            return self._stream(start, min(RANGE, size - start), etag, take)

        try:
            place.write_at(first, 0)
            place.advance(len(first))
            done = len(first)
            for count in self._each(fetch, done, size):
                if done == end:
                    place.write_at(last, done)
                place.advance(count)
                done += count
        except BaseException as error:
            with contextlib.suppress(OSError):
                place.drop()
            if isinstance(error, _NotTaken) and error.__cause__ is not None:
                raise error.__cause__ from None
            raise

    def _each(self, fetch: Callable[[int], Any], start: int, size: int) -> Iterator[Any]:
        calls = (partial(fetch, at) for at in range(start, size, RANGE))
        parallel = min(_AT_ONCE, self._parallel)
        return in_order(calls, parallel, parallel)

    def fill(self, view: memoryview, offset: int) -> int:
        """Fill ``view`` from ``offset``, short only at the end; return the count of bytes."""
        for _ in range(_TRIES):
            try:
                return self._fill(view, offset)
            except _Changed:
                continue
        raise self._changed()

    def _fill(self, view: memoryview, offset: int) -> int:
        done, meta = self._range(offset, view[:RANGE], None)
        if meta is None or done < RANGE:
            return done
        end: int = min(len(view), meta["size"] - offset)

        def fetch(start: int) -> int:
            part = view[start : min(start + RANGE, end)]
            return self._range(offset + start, part, meta["e_tag"])[0]

        calls = (partial(fetch, start) for start in range(done, end, RANGE))
        return done + sum(in_order(calls, self._parallel, 2 * self._parallel))

    def _range(self, offset: int, buffer: memoryview, etag: str | None) -> tuple[int, Any]:
        """Fill ``buffer``; return how much came, and what is known of the object.

        That is 0 and None past its end. With ``etag`` all bytes are from that version, or
        _Changed is raised.
        """

        def take(data: memoryview, before: int) -> None:
            buffer[before : before + len(data)] = data

        try:
            count, meta = self._get(offset, len(buffer), etag, take)
        except _BadRange:
            # Past the end, wholly or (for some servers) in part. Only the size can tell.
            size = self._stat().size
            if etag is not None:
                raise _Changed from None
            if offset >= size:
                return 0, None
            try:
                count, meta = self._get(offset, min(len(buffer), size - offset), None, take)
            except _BadRange:
                raise _Changed from None
        if etag is not None and (meta["e_tag"] != etag or count != len(buffer)):
            raise _Changed
        return count, meta

    def _stream(self, offset: int, length: int, etag: str, take: Take) -> int:
        """Give a range of that version to ``take``; return its length."""
        try:
            count, meta = self._get(offset, length, etag, take)
        except _BadRange:
            raise _Changed from None
        if meta["e_tag"] != etag or count != length:
            raise _Changed
        return count

    def _get(self, offset: int, length: int, etag: str | None, take: Take) -> tuple[int, Any]:
        options: dict[str, object] = {"range": (offset, offset + length)}
        if etag is not None:
            options["if_match"] = etag
        with self._mapped(etag):
            result = self._obstore.get(self._store, self._path, options=options)
            meta, (start, stop) = result.meta, result.range
        expected = min(length, meta["size"] - offset)
        if start != offset or stop - start != expected:
            raise self._wrong(stop - start, start, expected, offset)
        if etag is not None and meta["e_tag"] != etag:
            raise _Changed  # before any byte of it is taken
        count = 0
        pieces = iter(result.stream(min_chunk_size=_PIECE))
        while True:
            with self._mapped(etag):
                piece = next(pieces, None)
            if piece is None:
                break
            data = memoryview(piece)
            if count + len(data) > expected:
                raise self._wrong(count + len(data), start, expected, offset)
            take(data, count)
            count += len(data)
        if count != expected:
            raise self._wrong(count, start, expected, offset)
        return count, meta

    @contextlib.contextmanager
    def _mapped(self, etag: str | None) -> Iterator[None]:
        try:
            yield
        except (self._obstore.exceptions.BaseError, OSError, ValueError) as error:
            answer = parse(error)
            if answer.bad_range:
                raise _BadRange from None
            if etag is not None and answer.condition_failed:
                raise _Changed from None
            raise self._provider.error(answer, "read object", self._path) from None

    def _wrong(self, count: int, start: int, expected: int, offset: int) -> BootstreamError:
        return Unavailable(
            f"the storage sent {count} bytes from {start} where {expected} from {offset} "
            "were asked for",
            operation="read object",
            object=self._path,
        )

    def _changed(self) -> BootstreamError:
        return Unavailable(
            "it was replaced while it was read", operation="read object", object=self._path
        )
