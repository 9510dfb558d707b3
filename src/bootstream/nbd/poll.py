"""Waiting for a client that is about to speak: look a few times before going to sleep.

A client that has one request at a time under way sends the next one some microseconds after
our reply. To sleep and be woken in between takes longer than all the rest of the request, so
for a short while the socket is asked again and again, as hypervisors do for a halted guest.
How long is learnt: as long as the next request tends to come within that time, and not at
all otherwise, so that an idle client costs nothing. One connection of a process may do so at
a time: several would only take the processor from each other.
"""

from __future__ import annotations

import socket
import threading
from time import perf_counter_ns

_LONGEST = 60_000
_FIRST = 15_000
_DONTWAIT = socket.MSG_DONTWAIT
_turn = threading.Lock()


class Poll:
    """Receives from one socket. For one thread.

    Args:
        sock: blocking.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._receive = sock.recv_into
        self._window = 0

    def receive(self, buffer: memoryview, *, alone: bool) -> int:
        """Receive into ``buffer``; return the count, 0 at the end. Raises OSError.

        ``alone``: what was answered last was one request, not several.
        """
        receive = self._receive
        if not alone:
            self._window = 0
            return receive(buffer)
        began = perf_counter_ns()
        if self._window and _turn.acquire(blocking=False):
            try:
                until = began + self._window
                while perf_counter_ns() < until:
                    try:
                        return receive(buffer, 0, _DONTWAIT)
                    except BlockingIOError:
                        pass
            finally:
                _turn.release()
        count = receive(buffer)
        if perf_counter_ns() - began > _LONGEST:
            self._window = 0 if self._window <= _FIRST else self._window >> 1
        elif self._window < _LONGEST:
            self._window = min(_LONGEST, max(_FIRST, self._window << 1))
        return count
