"""From errors to errno values, in one place, and into the log, at a bounded rate.

A guest learns one of a few numbers; whoever runs the host learns the cause. A device that
is broken fails every request, thousands a second, so the log says the first ones and then
how many more there were.
"""

from __future__ import annotations

import errno
import logging
import threading
import time

from bootstream.errors import BootstreamError, InvalidInput, StorageFull
from bootstream.nbd.protocol import Errno

log = logging.getLogger("bootstream.nbd")

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def errno_of(failure: Exception) -> Errno:
    """Return what a guest is told of ``failure``.

    A denied permission upstream is EIO, not EPERM: EPERM says that the export is
    read-only, which is checked before any device is asked.
    """
    if isinstance(failure, StorageFull):
        return Errno.ENOSPC
    if isinstance(failure, InvalidInput):
        return Errno.EINVAL
    if isinstance(failure, OSError) and failure.errno in _NO_ROOM:
        return Errno.ENOSPC
    return Errno.EIO


class FailureLog:
    """Logs what clients run into. Thread safe.

    Args:
        burst: how many are logged in a row.
        interval: seconds after which as many more are.
    """

    def __init__(self, burst: int = 10, interval: float = 10.0) -> None:
        self._burst = burst
        self._interval = interval
        self._lock = threading.Lock()
        self._since = 0.0
        self._logged = 0
        self._dropped = 0

    def record(self, what: str, failure: Exception) -> None:
        """Log that ``what`` failed; with a traceback where the failure is none of ours."""
        if not self._admits():
            return
        if isinstance(failure, BootstreamError):
            log.warning("%s failed: %s%s", what, failure, _causes(failure))
        else:
            log.error("%s failed unexpectedly", what, exc_info=failure)

    def warn(self, text: str) -> None:
        """Log one line."""
        if self._admits():
            log.warning("%s", text)

    def _admits(self) -> bool:
        """Whether one more entry may be logged now; says what was left out before."""
        now = time.monotonic()
        with self._lock:
            dropped = 0
            if now - self._since >= self._interval:
                self._since, self._logged = now, 0
                dropped, self._dropped = self._dropped, 0
            if self._logged >= self._burst:
                self._dropped += 1
                return False
            self._logged += 1
        if dropped:
            log.warning("%d more entries of this kind were left out", dropped)
        return True


def _causes(failure: BaseException) -> str:
    """Return the chain below ``failure`` in one line; bounded."""
    said: list[str] = []
    cause = failure.__cause__
    while cause is not None and len(said) < 5:
        said.append(f"; because {type(cause).__name__}: {cause}")
        cause = cause.__cause__
    return "".join(said)
