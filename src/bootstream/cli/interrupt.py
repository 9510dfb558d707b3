"""Ctrl-C and SIGTERM during work that has something to clean up.

The first signal asks: the next report of progress raises ``Cancelled`` in whichever
thread makes it, so work stops between two steps and its context managers clean up.
Work that does not report within a few seconds (it waits for a server) has
``KeyboardInterrupt`` raised in the main thread. A second signal kills at once; what
is left then is collected by a later run.

Work that lasts until somebody ends it (an export, a mount) waits here for the signal.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType

from bootstream.errors import Cancelled

PATIENCE_SECONDS = 3.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_Handler = Callable[[int, FrameType | None], object] | int | None


class Interruption:
    """While entered, in the main thread, signals ask for an end; otherwise it does nothing.

    ``signum`` is the signal that came, None while none did.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._noticed = False
        self._settled = False
        self._previous: dict[int, _Handler] = {}
        self._pipe: tuple[int, int] | None = None
        self._wakeup = -1

    def check(self) -> None:
        """Raise Cancelled once somebody asked for an end."""
        if self.signum is not None:
            self._noticed = True
            raise Cancelled("it was interrupted")

    def wait(self, seconds: float | None = None) -> None:
        """Return once a signal asked for an end, or after ``seconds``.

        In the main thread, while entered.
        """
        assert self._pipe is not None
        deadline = None if seconds is None else time.monotonic() + seconds
        while self.signum is None:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return
            if select.select([self._pipe[0]], [], [], left)[0]:
                os.read(self._pipe[0], 1)
        self._noticed = True

    def settle(self) -> None:
        """Say that what was asked for is done, for good: an interruption comes too late.

        From here to the end of the process signals are ignored, so that the exit code
        says what is so. Called while entered.
        """
        self._settled = True
        self._noticed = True
        self.signum = None

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._pipe = os.pipe()
            # The kernel may hand a signal to any thread, which does not end a read of the main
            # one: so the interpreter writes to the pipe as well, wherever it comes.
            os.set_blocking(self._pipe[1], False)
            self._wakeup = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
            for signum in _SIGNALS:
                if signal.getsignal(signum) is not signal.SIG_IGN:  # as under nohup
                    self._previous[signum] = signal.signal(signum, self._asked)
            self._previous[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._lost_patience)
        return self

    def _asked(self, signum: int, _frame: FrameType | None) -> None:
        if self._settled:
            return
        if self.signum is not None:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
            return
        self.signum = signum
        signal.setitimer(signal.ITIMER_REAL, PATIENCE_SECONDS)

    def _lost_patience(self, _signum: int, _frame: FrameType | None) -> None:
        if not self._noticed:
            self._noticed = True
            raise KeyboardInterrupt

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._previous:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for signum, handler in self._previous.items():
            ignored = self._settled and signum in _SIGNALS
            signal.signal(signum, signal.SIG_IGN if ignored else handler)
        self._previous.clear()
        if self._pipe is not None:
            signal.set_wakeup_fd(self._wakeup)
            for descriptor in self._pipe:
                os.close(descriptor)
            self._pipe = None
