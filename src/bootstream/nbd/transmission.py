"""From requests to replies: which device method a command is, and who runs it.

The connection's thread answers at once whatever can be: all complete requests in the
receive buffer are one batch, and its replies go out with one ``sendmsg``, the data of warm
reads straight from the device's views. At depth 16 that is two system calls for up to
sixteen requests, and no other thread is woken: no lock is waited for, the interpreter is
not handed over.

Whatever may wait goes to :class:`~bootstream.nbd.workers.Workers`: a read that is not warm,
flushes, large zeroing. Its reply goes out when it is ready, in any order. Writes stay here,
because their payload lies in the receive buffer.

FLUSH covers every write that was answered before it was sent: those writes have returned
from the device by then, which is what :meth:`Device.flush` is about.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeAlias

from bootstream.block.device import Extent
from bootstream.nbd import replies
from bootstream.nbd.export import Export
from bootstream.nbd.failures import FailureLog, errno_of
from bootstream.nbd.protocol import (
    MAX_PAYLOAD,
    STATE_HOLE,
    STATE_ZERO,
    STRUCTURED_REPLY_MAGIC,
    Command,
    CommandFlag,
    Errno,
)
from bootstream.nbd.requests import RequestReader, refusal
from bootstream.nbd.workers import Workers

Buffer: TypeAlias = "bytes | memoryview"

# A batch is sent once it holds this much data: enough to be worth a system call, little
# enough for the client to work on it while the rest is looked up.
_SEND = 256 << 10
# Reads from this length on are answered with holes where the device knows of zeros.
_SPARSE = 64 << 10
_MIN_HOLE = 4096
# Zeroing and block status up to these lengths are done by the connection's own thread.
_QUICK_ZERO = 1 << 20
_QUICK_STATUS = 64 << 20
_MAX_DESCRIPTORS = 8192
_FIRST_WINDOW = 1 << 20
_LAST_WINDOW = 256 << 20
_FUA = int(CommandFlag.FUA)
_DF = int(CommandFlag.DF)
_NO_HOLE = int(CommandFlag.NO_HOLE)
_READ = int(Command.READ)
_WRITE = int(Command.WRITE)
_DISC = int(Command.DISC)

_ReadViews: TypeAlias = Callable[[int, int], "Sequence[memoryview] | None"]


class Transmission:
    """Answers the requests of one connection.

    Args:
        export: what was chosen, under ``name``.
        name: for the log.
        structured: whether replies are structured.
        allocation: whether base:allocation was selected.
        send: sends a list of buffers that is a whole number of replies; any thread.
        workers: where waiting is done.
        failures: where failed requests are logged.
    """

    def __init__(
        self,
        export: Export,
        *,
        name: str,
        structured: bool,
        allocation: bool,
        send: Callable[[list[Buffer]], None],
        workers: Workers,
        failures: FailureLog,
    ) -> None:
        self._device = export.device
        self._fast_zero = export.fast_zero
        self._size = export.device.size
        self._writable = export.device.writable
        self._name = name
        self._structured = structured
        self._allocation = allocation
        self._send = send
        self._workers = workers
        self._failures = failures
        self._out: list[Buffer] = []
        self._pending = 0
        self.answered = 0
        """How many requests the last :meth:`answer` found and answered; 0 if a worker has one."""

    def answer(self, reader: RequestReader) -> bool:
        """Answer every complete request; False once the client said DISC.

        Raises:
            ProtocolError: the client broke the framing; what came before is answered.
            OSError: it went away.
        """
        try:
            return self._batch(reader)
        finally:
            self._send_out()

    def _batch(self, reader: RequestReader) -> bool:
        # Everything in this loop is paid for by every request: names are local, the
        # common read is recognised with the fewest comparisons.
        out = self._out
        size = self._size
        structured = self._structured
        plain = _SPARSE if structured else MAX_PAYLOAD + 1
        read_warm = self._device.read_warm
        pack_data = replies.DATA.pack
        pending = 0
        answered = 0
        for command, flags, cookie, offset, length, payload in reader.requests():
            answered += 1
            if command or flags or not 0 < length < plain or offset + length > size:
                if command == _DISC:
                    return False
                self._other(command, flags, cookie, offset, length, payload)
                continue
            try:
                views = read_warm(offset, length)
            except Exception as failure:  # noqa: BLE001 - each becomes an error reply
                self._queue(self._failed(_READ, cookie, offset, length, failure))
                continue
            if views is None:
                self._later(_READ, 0, cookie, offset, length)
                answered = -MAX_PAYLOAD
                continue
            if sum(map(len, views)) != length:
                self._queue(self._failed(_READ, cookie, offset, length, _short(views, length)))
                continue
            if structured:
                out.append(pack_data(STRUCTURED_REPLY_MAGIC, 1, 1, cookie, length + 8, offset))
            else:
                out.append(replies.simple(cookie))
            out += views
            pending += length
            if pending >= _SEND:
                self._send_out()
                pending = 0
        self.answered = max(0, answered)
        return True

    def _other(
        self,
        command: int,
        flags: int,
        cookie: int,
        offset: int,
        length: int,
        payload: memoryview | None,
    ) -> None:
        """Answer what is not a plain read: check it, then do it here or have it done."""
        refused = refusal(
            command,
            flags,
            offset,
            length,
            size=self._size,
            writable=self._writable,
            structured=self._structured,
            allocation=self._allocation,
        )
        if refused is not None:
            reply: list[Buffer] | None = [self._error(cookie, *refused)]
        else:
            try:
                reply = self._at_once(command, flags, cookie, offset, length, payload)
            except Exception as failure:  # noqa: BLE001 - each becomes an error reply
                reply = self._failed(command, cookie, offset, length, failure)
        if reply is None:
            self._later(command, flags, cookie, offset, length)
            return
        self._queue(reply)

    def _at_once(
        self,
        command: int,
        flags: int,
        cookie: int,
        offset: int,
        length: int,
        payload: memoryview | None,
    ) -> list[Buffer] | None:
        """Do what needs no waiting and return the reply; None where the rest is for a worker."""
        match command:
            case Command.READ:
                return self._read(flags, cookie, offset, length, self._device.read_warm)
            case Command.WRITE:
                if payload:
                    self._device.write(payload, offset)
                # With FUA the flush is left, as for the others.
                return None if flags & _FUA else [replies.simple(cookie)]
            case Command.TRIM | Command.WRITE_ZEROES:
                quick = length <= _QUICK_ZERO and not flags & _FUA
            case Command.BLOCK_STATUS:
                quick = length <= _QUICK_STATUS or bool(flags & CommandFlag.REQ_ONE)
            case _:
                quick = False
        return self._do(command, flags, cookie, offset, length) if quick else None

    def _do(self, command: int, flags: int, cookie: int, offset: int, length: int) -> list[Buffer]:
        """Do all of a command, but the writing of a WRITE, and return its reply."""
        device = self._device
        match command:
            case Command.READ:
                reply = self._read(flags, cookie, offset, length, device.read_views)
                assert reply is not None, "read_views returns views or raises"
                return reply
            case Command.BLOCK_STATUS:
                return [self._block_status(flags, cookie, offset, length)]
            case Command.TRIM:
                if length:
                    device.trim(offset, length)
            case Command.WRITE_ZEROES:
                hole_allowed = not flags & _NO_HOLE
                if flags & CommandFlag.FAST_ZERO and not (hole_allowed and self._fast_zero):
                    text = "zeroing would not be faster than writing"
                    return [self._error(cookie, Errno.ENOTSUP, text)]
                if length:
                    device.zero(offset, length, may_trim=hole_allowed)
            case Command.CACHE:
                if length:
                    device.prefetch(offset, length)
            case Command.FLUSH:
                if self._writable:
                    device.flush()
        if flags & _FUA and command != Command.FLUSH and self._writable:
            device.flush()
        return [replies.simple(cookie)]

    # -- reads ----------------------------------------------------------------------------

    def _read(
        self, flags: int, cookie: int, offset: int, length: int, read: _ReadViews
    ) -> list[Buffer] | None:
        """Return the reply to a READ of any kind; None where ``read`` would have to wait."""
        if not length:
            return [replies.none(cookie) if self._structured else replies.simple(cookie)]
        if not self._structured:
            views = read(offset, length)
            return None if views is None else [replies.simple(cookie), *_whole(views, length)]
        runs = [(length, False)]
        if length >= _SPARSE and not flags & _DF:
            runs = self._runs(offset, length)
        reply: list[Buffer] = []
        end = offset + length
        for run, zero in runs:
            done = offset + run == end
            if zero:
                reply.append(replies.hole(cookie, offset, run, done=done))
            else:
                views = read(offset, run)
                if views is None:
                    return None
                reply.append(replies.data(cookie, offset, run, done=done))
                reply += _whole(views, run)
            offset += run
        return reply

    def _runs(self, offset: int, length: int) -> list[tuple[int, bool]]:
        """Split a range into (length, zero); zeros too short for a chunk count as data."""
        runs: list[tuple[int, bool]] = []
        for extent in self._device.extents(offset, length):
            zero = extent.zero and extent.length >= _MIN_HOLE
            if runs and runs[-1][1] == zero:
                runs[-1] = (runs[-1][0] + extent.length, zero)
            else:
                runs.append((extent.length, zero))
        return runs

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        """Yield extents, looked up in growing windows.

        Clients that want one at a time ask for all of the rest each time: to look all of it
        up would make a walk over an image quadratic. Neighbours may be of one kind.
        """
        end = offset + length
        window = _FIRST_WINDOW
        while offset < end:
            window = min(window, end - offset)
            yield from self._device.extents(offset, window)
            offset += window
            window = min(2 * window, _LAST_WINDOW)

    def _block_status(self, flags: int, cookie: int, offset: int, length: int) -> bytes:
        """Return the chunk; it may describe less than was asked for, from the start."""
        found: list[tuple[int, int]] = []
        for extent in self._extents(offset, length):
            state = STATE_HOLE * extent.hole | STATE_ZERO * extent.zero
            if found and found[-1][1] == state:
                found[-1] = (found[-1][0] + extent.length, state)
            elif len(found) == (1 if flags & CommandFlag.REQ_ONE else _MAX_DESCRIPTORS):
                break
            else:
                found.append((extent.length, state))
        return replies.block_status(cookie, found)

    # -- replies --------------------------------------------------------------------------

    def _queue(self, reply: list[Buffer]) -> None:
        """Add a reply to the batch, and send that once it is large.

        A batch may be thousands of requests, and a reply megabytes of fresh memory.
        """
        self._out += reply
        self._pending += sum(map(len, reply))
        if self._pending >= _SEND:
            self._send_out()

    def _send_out(self) -> None:
        """Send what the batch has so far."""
        if self._out:
            out = self._out[:]
            self._out.clear()
            self._pending = 0
            self._send(out)

    def _later(self, command: int, flags: int, cookie: int, offset: int, length: int) -> None:
        """Give a request to a worker; waits for room, having sent what is ready."""
        cost = length if command == _READ else 0
        if not self._workers.has_room(cost):
            self._send_out()
        self._workers.submit(partial(self._work, command, flags, cookie, offset, length), cost)

    def _work(self, command: int, flags: int, cookie: int, offset: int, length: int) -> None:
        """Do a request in a worker and send its reply."""
        try:
            reply = self._do(command, flags, cookie, offset, length)
        except Exception as failure:  # noqa: BLE001 - each becomes an error reply
            reply = self._failed(command, cookie, offset, length, failure)
        try:
            self._send(reply)
        except OSError:
            return  # the client went away; its connection finds out by itself

    def _failed(
        self, command: int, cookie: int, offset: int, length: int, failure: Exception
    ) -> list[Buffer]:
        """Log a failure of the device and return the reply for it."""
        name = Command(command).name
        self._failures.record(f"{name} of {length} bytes at {offset} of {self._name!r}", failure)
        return [self._error(cookie, errno_of(failure), str(failure))]

    def _error(self, cookie: int, errno: Errno, text: str) -> bytes:
        """Return an error reply; a simple one has no room for the text."""
        if self._structured:
            return replies.error(cookie, errno, text)
        return replies.simple(cookie, errno)


def _whole(views: Sequence[memoryview], length: int) -> Sequence[memoryview]:
    """Return ``views``; a device that is off by a byte must not shift the whole stream."""
    if sum(map(len, views)) != length:
        raise _short(views, length)
    return views


def _short(views: Sequence[memoryview], length: int) -> Exception:
    return AssertionError(f"the device returned {sum(map(len, views))} bytes, not {length}")
