"""Requests and responses, as the parts of the local OCI hand them to each other.

The server (``httpserver``) makes a :class:`Request` of what came over a connection; a handler
makes a :class:`Response` of it. Neither knows of sockets: tests call handlers directly.

Header names are lower case everywhere. A target is kept as it came, because signatures are
made over it; what is decoded is derived.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import unquote, unquote_plus

from bootstream.localoci.errors import ApiError, Disconnect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    Handler = Callable[["Request"], "Response"]

JSON_LIMIT = 10 << 20  # bytes of a request body that is read as a whole


@functools.lru_cache(1024)
def http_date(seconds: float) -> str:
    """A time of the epoch as headers have it (RFC 9110 section 5.6.7)."""
    return formatdate(seconds, usegmt=True)


class Source(Protocol):
    """Where a request's body comes from: a connection, or bytes in a test."""

    def readinto(self, buffer: memoryview) -> int:
        """Read up to ``len(buffer)`` bytes; 0 is the end.

        Raises:
            Disconnect: the connection ended, or the framing broke, before the body's end.
        """
        ...


class Body:
    """A request's body, read once, in order, by one thread.

    Args:
        source: where the bytes come from.
        length: the size that the client promised, or None for a chunked body.
    """

    def __init__(self, source: Source, length: int | None) -> None:
        self._source = source
        self.length = length
        self.received = 0
        self.ended = length == 0
        self._sha256: Any = None
        self._expected = b""

    def expect_sha256(self, digest: str) -> None:
        """Have the body checked, at its end, against a base64 SHA-256 that was signed.

        Call it before anything is read; the reader raises 401 on a mismatch.
        """
        try:
            self._expected = base64.b64decode(digest, validate=True)
        except ValueError:
            raise ApiError(401, "NotAuthenticated", "x-content-sha256 is not base64") from None
        self._sha256 = hashlib.sha256()
        if self.ended:
            self._finish()

    def wrap(self, around: Callable[[Source], Source]) -> None:
        """Read from a source around the body's own from now on."""
        self._source = around(self._source)

    def readinto(self, buffer: memoryview) -> int:
        """Read up to ``len(buffer)`` bytes into the buffer; 0 is the end."""
        if self.ended or not len(buffer):
            return 0
        count = self._source.readinto(buffer)
        self.received += count
        if count and self._sha256 is not None:
            self._sha256.update(buffer[:count])
        if not count or self.received == self.length:
            self.ended = True
            if self.length is not None and self.received != self.length:
                raise Disconnect("the body ended early")
            self._finish()
        return count

    def read_all(self, limit: int = JSON_LIMIT) -> bytes:
        """The whole rest of the body.

        Raises:
            ApiError: 413, it is longer than ``limit`` bytes.
        """
        too_large = ApiError(413, "RequestEntityTooLarge", f"the body is over {limit} bytes")
        if self.length is not None and self.length > limit:
            raise too_large
        data = bytearray()
        buffer = memoryview(bytearray(min(self.length or 65536, 65536)))
        while count := self.readinto(buffer):
            data += buffer[:count]
            if len(data) > limit:
                raise too_large
        return bytes(data)

    def _finish(self) -> None:
        if self._sha256 is not None and self._sha256.digest() != self._expected:
            raise ApiError(401, "NotAuthenticated", "x-content-sha256 is not the body's")


class BytesSource:
    """A body from memory, for tests and for handlers that call others."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)

    def readinto(self, buffer: memoryview) -> int:
        """Read the next bytes."""
        count = min(len(buffer), len(self._data))
        buffer[:count] = self._data[:count]
        self._data = self._data[count:]
        return count


@dataclass(slots=True)
class Request:
    """One request.

    ``target`` is raw, path and query, as signed; ``headers`` has lower-case names, a name
    that came several times joined by a comma. ``id`` is the answer's opc-request-id.
    ``raw_path`` is the path as it came, still escaped, without the query.
    """

    method: str
    target: str
    headers: Mapping[str, str]
    body: Body
    client: str = "127.0.0.1"
    id: str = ""
    raw_path: str = field(init=False, repr=False)
    _text: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.raw_path = self.target.partition("?")[0]

    @property
    def path(self) -> str:
        """The path, unescaped; where an escaped ``/`` matters use ``raw_path``."""
        return unquote(self.raw_path)

    @property
    def query(self) -> list[tuple[str, str]]:
        """The query's pairs in order, unescaped; a name without ``=`` has the value ''."""
        pairs = []
        for part in self.target.partition("?")[2].split("&"):
            if part:
                name, _, value = part.partition("=")
                pairs.append((unquote_plus(name), unquote_plus(value)))
        return pairs

    def parameters(self) -> dict[str, str]:
        """The query as a mapping; of a name that came twice the last counts."""
        return dict(self.query) if "?" in self.target else {}

    def content(self) -> bytes:
        """The whole body; may be called again. At most 10 MiB, else 413."""
        if self._text is None:
            self._text = self.body.read_all()
        return self._text

    def json(self) -> dict[str, Any]:
        """The body as a JSON object.

        Raises:
            ApiError: 400 ``CannotParseRequest``: it is not one.
        """
        try:
            value = json.loads(self.content() or b"{}")
        except (ValueError, RecursionError):
            raise ApiError(400, "CannotParseRequest", "the body is not JSON") from None
        if not isinstance(value, dict):
            raise ApiError(400, "CannotParseRequest", "the body is not a JSON object")
        return value


@dataclass(slots=True)
class FileRange:
    """Bytes of an open file; whoever sends the response closes it."""

    descriptor: int
    offset: int
    length: int
    close: Callable[[], None]


@dataclass(slots=True)
class Response:
    """One answer.

    ``body`` is bytes, a file's range, or an iterator of pieces, which is sent chunked.
    ``length`` overrides content-length for HEAD, where no body is sent; with an iterator it is
    the length that is promised, and the pieces are sent as they are. After
    ``cut_after`` bytes of the body, if set, the connection is cut: a fault. A ``foreign`` answer
    is as if somebody in between gave it: without the service's own headers.
    """

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | FileRange | Iterator[bytes] = b""
    length: int | None = None
    cut_after: int | None = None
    foreign: bool = False

    def close(self) -> None:
        """Give up what the body holds; for a response that is not sent. Idempotent."""
        if isinstance(self.body, FileRange):
            self.body.close()
            self.body = b""
        elif (close := getattr(self.body, "close", None)) is not None:  # a generator's, mostly
            close()


def json_response(
    value: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """A response whose body is JSON."""
    text = json.dumps(value, separators=(",", ":")).encode()
    return Response(status, {"content-type": "application/json", **(headers or {})}, text)


def error_response(error: ApiError) -> Response:
    """The answer that an error is."""
    value = {"code": error.code, "message": error.message}
    return json_response(value, error.status, error.headers)
