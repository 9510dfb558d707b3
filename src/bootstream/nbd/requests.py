"""Requests of the transmission phase: framing, and what is allowed.

Source: proto.md, "Request message", "Command flags", "Request types", "Error values".

:class:`RequestReader` owns the receive buffer, so that a payload goes from the socket to
the device without a copy: receive into :meth:`~RequestReader.space`, say how much came with
:meth:`~RequestReader.received`, take what is complete from
:meth:`~RequestReader.requests`. Requests are plain tuples, because at a hundred thousand a
second the making of an object is what costs.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from typing import TypeAlias

from bootstream.nbd.protocol import (
    MAX_PAYLOAD,
    REQUEST_MAGIC,
    Command,
    CommandFlag,
    Errno,
    ProtocolError,
)

HEADER = struct.Struct(">IHHQQI")
"""Magic, command flags, type, cookie, offset, length."""

Request: TypeAlias = tuple[int, int, int, int, int, "memoryview | None"]
"""Command, command flags, cookie, offset, length, payload of a WRITE.

The payload is None for every other command, and for a WRITE that is longer than
:data:`~bootstream.nbd.protocol.MAX_PAYLOAD`, whose bytes are dropped.
"""

# Room for several writes of usual size in one receive.
_SMALL = 1 << 20
_LARGE = MAX_PAYLOAD + HEADER.size
_FUA = int(CommandFlag.FUA)
_DF = int(CommandFlag.DF)
_WRITE = int(Command.WRITE)


class RequestReader:
    """Frames requests. Not thread safe.

    Args:
        leftover: what was received beyond the handshake.

    The buffer is an anonymous mapping, whose pages the kernel gives as bytes really arrive;
    a larger one once a payload does not fit.
    """

    def __init__(self, leftover: bytes = b"") -> None:
        self._view = memoryview(mmap.mmap(-1, max(_SMALL, len(leftover))))
        self._view[: len(leftover)] = leftover
        self._start = 0
        self._end = len(leftover)
        self._wanted = HEADER.size
        self._dropping = 0

    @property
    def idle(self) -> bool:
        """Whether it stands between two requests."""
        return self._start == self._end and not self._dropping

    def space(self) -> memoryview:
        """Return where to receive next; never empty. Ends the life of earlier payloads."""
        start, end = self._start, self._end
        if start == end:
            self._start = self._end = start = end = 0
        missing = start + self._wanted - end
        if missing <= 0 or self._dropping:
            return self._view[end:] if end < len(self._view) else self._moved()
        if end + missing > len(self._view):
            self._moved()
            end = self._end
        # Of a long payload just its own bytes, so that the buffer is empty after it and
        # nothing has to be moved; otherwise whatever came.
        if missing > _SMALL // 4:
            return self._view[end : end + missing]
        return self._view[end:]

    def _moved(self) -> memoryview:
        """Bring what is pending to the start of a buffer that it fits in, whole."""
        pending = self._view[self._start : self._end]
        target = self._view
        if self._wanted > len(target):
            target = memoryview(mmap.mmap(-1, _LARGE))
        target[: len(pending)] = pending
        self._view = target
        self._start, self._end = 0, len(pending)
        return target[self._end :]

    def received(self, count: int) -> None:
        """Say that ``count`` bytes were put at the front of :meth:`space`."""
        self._end += count

    def requests(self) -> Iterator[Request]:
        """Yield the requests that are complete.

        Raises:
            ProtocolError: what stands where a request must start is not one.
        """
        unpack = HEADER.unpack_from
        view = self._view
        while True:
            if self._dropping:
                dropped = min(self._dropping, self._end - self._start)
                self._start += dropped
                self._dropping -= dropped
            start = self._start
            if self._end - start < 28:
                self._wanted = 28
                return
            magic, flags, command, cookie, offset, length = unpack(view, start)
            if magic != REQUEST_MAGIC:
                raise ProtocolError(f"bad request magic {magic:#x}")
            start += 28
            if command != _WRITE:
                self._start = start
                yield command, flags, cookie, offset, length, None
            elif length > MAX_PAYLOAD:
                self._start = start
                self._dropping = length
                yield command, flags, cookie, offset, length, None
            elif self._end - start < length:
                self._wanted = 28 + length
                return
            else:
                self._start = start + length
                yield command, flags, cookie, offset, length, view[start : start + length]


_ALLOWED = {
    Command.READ: CommandFlag.FUA | CommandFlag.DF,
    Command.WRITE: CommandFlag.FUA,
    Command.FLUSH: CommandFlag.FUA,
    Command.TRIM: CommandFlag.FUA,
    Command.CACHE: CommandFlag.FUA,
    Command.WRITE_ZEROES: CommandFlag.FUA | CommandFlag.NO_HOLE | CommandFlag.FAST_ZERO,
    Command.BLOCK_STATUS: CommandFlag.FUA | CommandFlag.REQ_ONE,
}
# Plain numbers, because the complement of a flag holds the known flags only.
_ALLOWED_BITS = {int(command): int(flags) for command, flags in _ALLOWED.items()}
_MODIFYING = frozenset({int(Command.WRITE), int(Command.TRIM), int(Command.WRITE_ZEROES)})
_EXTENDING = frozenset({int(Command.WRITE), int(Command.WRITE_ZEROES)})


def refusal(
    command: int,
    flags: int,
    offset: int,
    length: int,
    *,
    size: int,
    writable: bool,
    structured: bool,
    allocation: bool,
) -> tuple[Errno, str] | None:
    """Say why a request is refused, or None where a device may see it.

    This is the one place where ranges and flags are checked. Command DISC is not for it.
    """
    allowed = _ALLOWED_BITS.get(command)
    if allowed is None:
        return Errno.EINVAL, f"unknown command {command}"
    if command in _MODIFYING and not writable:
        return Errno.EPERM, "the export is read-only"
    if not writable:
        allowed &= ~_FUA
    if not structured:
        allowed &= ~_DF
    if flags & ~allowed:
        return Errno.EINVAL, f"command {command} does not take flags {flags & ~allowed:#x}"
    if command == Command.FLUSH:
        return None  # offset and length are reserved: some clients fill them
    if offset + length > size:
        error = Errno.ENOSPC if command in _EXTENDING else Errno.EINVAL
        return error, f"{length} bytes at {offset} reach past the end at {size}"
    if length > MAX_PAYLOAD and command in (Command.READ, Command.WRITE):
        error = Errno.EOVERFLOW if flags & CommandFlag.DF else Errno.EINVAL
        return error, f"{length} bytes are more than {MAX_PAYLOAD}"
    if command == Command.BLOCK_STATUS:
        if not allocation:
            return Errno.EINVAL, "no metadata context was selected"
        if not length:
            return Errno.EINVAL, "block status of no bytes"
    return None
