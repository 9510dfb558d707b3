"""A small NBD client: an export of any server as a device.

Source: proto.md; see ``protocol.py``. It asks for structured replies and base:allocation,
works without either, and speaks the newstyle handshake alone.

One lock, one connection: a call sends its requests, a few at a time, and takes the replies
in whatever order they come. Several threads may share a client; they take turns. A reply
that breaks the protocol, or a broken line, ends the connection: what is called afterwards
raises Unavailable.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

from bootstream.block.device import Extent
from bootstream.errors import (
    BootstreamError,
    InvalidInput,
    PermissionDenied,
    StorageFull,
    Unavailable,
)
from bootstream.nbd.greeting import Agreement, negotiate
from bootstream.nbd.pending import Pending, receive
from bootstream.nbd.protocol import (
    REQUEST_MAGIC,
    Command,
    CommandFlag,
    Errno,
    ExportFlag,
)
from bootstream.nbd.requests import HEADER
from bootstream.nbd.stream import Stream, mapped
from bootstream.nbd.uri import parse_uri

_PIECE = 1 << 20
_WINDOW = 8
_STATUS = 1 << 30


def connect(uri: str, *, timeout: float = 60.0) -> Client:
    """Connect to the export that a URI names, see ``uri.py``.

    Args:
        uri: ``nbd://HOST[:PORT]/NAME`` or ``nbd+unix:///NAME?socket=PATH``.
        timeout: seconds for connecting, and then for any time without a byte.

    Raises:
        InvalidInput: no such URI; or the server wants TLS.
        NotFound: no such export, or no such socket.
        PermissionDenied: the socket or the export may not be used.
        Unavailable: nobody answers there.
        Corrupt: what answers does not speak NBD.
    """
    address = parse_uri(uri)
    name = str(address)
    with mapped("connect to", name):
        stream = Stream(address.connect(timeout))
        try:
            return Client(stream, negotiate(stream, address.name, name=name), name=name)
        except BaseException:
            stream.close()
            raise


class Client:
    """An export as a device, and a context manager. Made by :func:`connect`.

    Every method that talks to the server raises:
        Unavailable: the line broke, or the server reports an I/O error.
        Corrupt: the server broke the protocol.
        StorageFull, InvalidInput, PermissionDenied: what the server says.
    """

    def __init__(self, stream: Stream, agreement: Agreement, *, name: str) -> None:
        self._stream = stream
        self._agreement = agreement
        self._name = name
        self._lock = threading.Lock()
        self._cookie = 0
        self._broken = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def size(self) -> int:
        """The size of the export in bytes."""
        return self._agreement.size

    @property
    def writable(self) -> bool:
        """Whether the server takes writes."""
        return not self._agreement.flags & ExportFlag.READ_ONLY

    @property
    def flags(self) -> ExportFlag:
        """What the server says that the export can do."""
        return self._agreement.flags

    def read_views(self, offset: int, length: int) -> Sequence[memoryview]:
        """Read ``length`` bytes into memory of their own."""
        buffer = memoryview(bytearray(length))
        self.read_into(buffer, offset)
        return [buffer]

    def read_warm(self, offset: int, length: int) -> Sequence[memoryview] | None:
        """Return None: everything is behind a socket."""
        del offset, length
        return None

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer`` from ``offset``."""
        length = len(buffer)
        block = self._agreement.minimum_block
        first, last = offset - offset % block, -(-(offset + length) // block) * block
        if (first, last) != (offset, offset + length):
            whole = memoryview(bytearray(last - first))
            self.read_into(whole, first)
            buffer[:] = whole[offset - first : offset - first + length]
            return
        self._exchange(
            Pending(Command.READ, 0, offset + at, size, buffer=buffer[at : at + size])
            for at, size in self._pieces(length)
        )

    def write(self, data: memoryview, offset: int) -> None:
        """Write ``data`` at ``offset``; durable only after :meth:`flush`."""
        self._insist_writable(offset, len(data))
        self._exchange(
            Pending(Command.WRITE, 0, offset + at, size, payload=data[at : at + size])
            for at, size in self._pieces(len(data))
        )

    def zero(self, offset: int, length: int, *, may_trim: bool) -> None:
        """Make the range read as zeros; ``may_trim`` allows a hole."""
        self._insist_writable(offset, length)
        if not self.flags & ExportFlag.SEND_WRITE_ZEROES:
            zeros = memoryview(bytes(min(length, _PIECE)))
            for at in range(0, length, _PIECE):
                self.write(zeros[: length - at], offset + at)
            return
        flags = 0 if may_trim else CommandFlag.NO_HOLE
        self._ranges(Command.WRITE_ZEROES, flags, offset, length)

    def trim(self, offset: int, length: int) -> None:
        """Say that the contents are no longer needed; nothing where the server cannot."""
        self._insist_writable(offset, length)
        if self.flags & ExportFlag.SEND_TRIM:
            self._ranges(Command.TRIM, 0, offset, length)

    def flush(self) -> None:
        """Return once every write that returned before is durable."""
        if self.flags & ExportFlag.SEND_FLUSH:
            self._exchange([Pending(Command.FLUSH, 0, 0, 0)])

    def extents(self, offset: int, length: int) -> list[Extent]:
        """Describe the range; all data where the server has no base:allocation."""
        block = self._agreement.minimum_block
        if self._agreement.allocation is None or offset % block or length % block:
            return [Extent(length, hole=False, zero=False)]
        found: list[Extent] = []
        end = offset + length
        while offset < end:
            pending = Pending(Command.BLOCK_STATUS, 0, offset, min(_STATUS, end - offset))
            self._exchange([pending])
            for run, *kind in pending.extents:
                offset += run
                before = found.pop().length if found and found[-1][1:] == tuple(kind) else 0
                found.append(Extent(before + run, *kind))
        return found

    def prefetch(self, offset: int, length: int) -> None:
        """Advise the server to cache the range, where it takes such advice."""
        if self.flags & ExportFlag.SEND_CACHE:
            self._ranges(Command.CACHE, 0, offset, length)

    def close(self) -> None:
        """Say goodbye and hang up; idempotent."""
        with self._lock:
            if not self._broken:
                self._broken = True
                with suppress(OSError):  # then the server knows already
                    self._stream.send(HEADER.pack(REQUEST_MAGIC, 0, Command.DISC, 0, 0, 0))
            self._stream.close()

    # -- requests -------------------------------------------------------------------------

    def _pieces(self, length: int) -> Iterator[tuple[int, int]]:
        piece = min(_PIECE, self._agreement.maximum_payload)
        for at in range(0, length, piece):
            yield at, min(piece, length - at)

    def _ranges(self, command: Command, flags: int, offset: int, length: int) -> None:
        """Send a command without payload for a range of any length."""
        # Some servers bound these like reads and writes, though they carry no payload.
        piece = self._agreement.maximum_payload
        self._exchange(
            Pending(command, flags, offset + at, min(piece, length - at))
            for at in range(0, length, piece)
        )

    def _insist_writable(self, offset: int, length: int) -> None:
        if not self.writable:
            raise InvalidInput("it is read-only", operation="write to", object=self._name)
        block = self._agreement.minimum_block
        if offset % block or length % block:
            raise InvalidInput(
                f"the server takes whole blocks of {block} bytes only",
                operation="write to",
                object=self._name,
            )

    def _exchange(self, requests: Iterable[Pending]) -> None:
        """Send requests, a window of them at a time, and take all replies.

        A failed request stops the sending; what is under way is still received, so that
        the connection stays usable. The first failure is raised.
        """
        with self._lock, mapped("use", self._name):
            if self._broken:
                raise Unavailable("the connection is closed", operation="use", object=self._name)
            try:
                failed = self._run(iter(requests))
            except BaseException:
                # Between two messages is the only place where a stream can be left.
                self._broken = True
                self._stream.close()
                raise
        if failed is not None:
            raise self._failure(failed)

    def _run(self, requests: Iterator[Pending]) -> Pending | None:
        under_way: dict[int, Pending] = {}
        failed: Pending | None = None
        more = True
        while more or under_way:
            while more and len(under_way) < _WINDOW:
                request = next(requests, None)
                if request is None or failed is not None:
                    more = False
                    break
                self._cookie += 1
                under_way[self._cookie] = request
                self._stream.send(request.header(self._cookie), request.payload)
            if under_way:
                done = receive(self._stream, under_way, self._agreement)
                if done is not None and done.error and failed is None:
                    failed = done
        return failed

    def _failure(self, request: Pending) -> BootstreamError:
        name = Command(request.command).name
        said = request.message or f"error {request.error}"
        text = f"{name} of {request.length} bytes at {request.offset}: {said}"
        kind: type[BootstreamError]
        match request.error:
            case Errno.EPERM:
                kind = PermissionDenied
            case Errno.ENOSPC:
                kind = StorageFull
            case Errno.EINVAL | Errno.EOVERFLOW | Errno.ENOTSUP:
                kind = InvalidInput
            case _:
                kind = Unavailable
        return kind(text, operation="use", object=self._name)
