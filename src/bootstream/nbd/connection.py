"""One client's socket: handshake, then transmission, in a thread of its own.

What bounds memory: a reply is sent before the next request is read, so a client that does
not read its replies is not read itself; what workers have under way is limited in number
and bytes, and the thread waits when there is no room.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress

from bootstream.nbd.export import Export, Limits
from bootstream.nbd.failures import FailureLog, log
from bootstream.nbd.handshake import Handshake
from bootstream.nbd.poll import Poll
from bootstream.nbd.protocol import Phase, ProtocolError
from bootstream.nbd.requests import RequestReader
from bootstream.nbd.transmission import Buffer, Transmission
from bootstream.nbd.workers import Workers

_IOV_MAX = 1024
_RECEIVE = 64 << 10


class Connection:
    """Serves one accepted socket until the client leaves or :meth:`stop` is called.

    Args:
        sock: a connected stream; this object closes it.
        exports: by name.
        default: the name that the empty name stands for.
        limits: what it may hold.
        failures: where failed requests are logged.
    """

    def __init__(
        self,
        sock: socket.socket,
        exports: Mapping[str, Export],
        *,
        default: str,
        limits: Limits,
        failures: FailureLog,
    ) -> None:
        self._socket = sock
        self._exports = exports
        self._default = default
        self._limits = limits
        self._failures = failures
        self._send_lock = threading.Lock()
        self._stopping = False

    def run(self) -> None:
        """Serve. Never raises; the socket is closed when it returns."""
        try:
            chosen = self._shake_hands()
            if chosen is not None:
                self._transmit(chosen)
        except ProtocolError as error:
            self._failures.warn(f"a client broke the protocol and was disconnected: {error}")
        except OSError as error:
            log.debug("a client went away: %s", error)
        except Exception:  # noqa: BLE001 - one client's trouble stays its own
            log.exception("a connection failed unexpectedly")
        finally:
            self._socket.close()

    def stop(self) -> None:
        """Read no more; what was read is answered. From any thread, returns at once."""
        self._stopping = True
        self._shutdown(socket.SHUT_RD)

    def abort(self) -> None:
        """Cut the line. From any thread, returns at once."""
        self._stopping = True
        self._shutdown(socket.SHUT_RDWR)

    def _shutdown(self, how: int) -> None:
        with suppress(OSError):  # gone already
            self._socket.shutdown(how)

    def _shake_hands(self) -> Handshake | None:
        """Return the finished handshake, or None where the client left."""
        offers = {name: export.offer() for name, export in self._exports.items()}
        handshake = Handshake(offers, default=self._default)
        self._socket.settimeout(self._limits.handshake_timeout)
        self._socket.sendall(handshake.greeting())
        while True:
            while (reply := handshake.step()) is not None:
                if reply:
                    self._socket.sendall(reply)
            if handshake.phase is Phase.TRANSMISSION:
                return handshake
            if handshake.phase is Phase.CLOSED or self._stopping:
                return None
            received = self._socket.recv(_RECEIVE)
            if not received:
                return None
            handshake.receive(received)

    def _transmit(self, chosen: Handshake) -> None:
        self._socket.settimeout(None)
        workers = Workers(
            "nbd-worker",
            threads=self._limits.workers,
            tasks=self._limits.requests,
            cost=self._limits.request_bytes,
        )
        transmission = Transmission(
            self._exports[chosen.export],
            name=chosen.export,
            structured=chosen.structured,
            allocation=chosen.allocation,
            send=self._send,
            workers=workers,
            failures=self._failures,
        )
        reader = RequestReader(chosen.leftover())
        receive = Poll(self._socket).receive
        try:
            while transmission.answer(reader) and not self._stopping:
                received = receive(reader.space(), alone=transmission.answered == 1)
                if not received:
                    if not reader.idle:
                        log.debug("a client hung up within a request")
                    break
                reader.received(received)
        except OSError:
            # The client is gone: so are those who wait for replies to reach it.
            self.abort()
            raise
        finally:
            workers.drain()
            workers.close()

    def _send(self, buffers: list[Buffer]) -> None:
        """Send a whole number of replies, uninterrupted by those of other threads."""
        total = sum(map(len, buffers))
        with self._send_lock:
            if len(buffers) <= _IOV_MAX:
                sent = self._socket.sendmsg(buffers)
                if sent == total:
                    return
                buffers = _rest(buffers, sent)
            while buffers:
                sent = self._socket.sendmsg(buffers[:_IOV_MAX])
                buffers = _rest(buffers, sent)


def _rest(buffers: Sequence[Buffer], sent: int) -> list[Buffer]:
    """Return what is left of ``buffers`` after ``sent`` bytes."""
    for number, buffer in enumerate(buffers):
        if sent < len(buffer):
            return [memoryview(buffer)[sent:], *buffers[number + 1 :]]
        sent -= len(buffer)
    return []
