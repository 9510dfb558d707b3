"""Credentials that somebody else keeps fresh in files: session tokens, resource principals.

Token and key are two files, replaced one after the other. They are read together: both
are looked at before and after, and what changed in between is read again. Where the token
names its key (``jwk``), a pair that does not fit is never used. A look costs two ``stat`` calls
and happens once a second at most, in whichever thread comes first.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bootstream.clouds.oci.credentials import Credentials
from bootstream.errors import BootstreamError, PermissionDenied

_LOG = logging.getLogger(__name__)
_EVERY = 1.0  # seconds
_TRIES = 6
_PAUSE = 0.05

Stamp = tuple[tuple[int, int, int] | None, ...]


class FileCredentials:
    """The credentials in some files, read anew when the files change. Thread safe.

    Args:
        load: reads the files; raises PermissionDenied.
        paths: the files, to see that they changed.
        name: the kind of principal, for errors and logs.
        remedy: how new files are had once the token has expired.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        load: Callable[[], Credentials],
        paths: Sequence[Path],
        *,
        name: str,
        remedy: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._load = load
        self._paths = tuple(paths)
        self._name = name
        self._remedy = remedy
        self._clock = clock
        self._lock = threading.Lock()
        self._complained: Stamp | None = None
        self._next_look = clock() + _EVERY
        self._stamp, self._current = self._read()

    def credentials(self) -> Credentials:
        """See ``Principal.credentials``; PermissionDenied once the token has expired."""
        now = self._clock()
        current = self._current
        if not now < self._next_look <= now + _EVERY and self._lock.acquire(blocking=False):
            try:
                self._next_look = now + _EVERY
                self._look()
                current = self._current
            finally:
                self._lock.release()
        if current.expires is not None and now >= current.expires:
            return self._after_the_end(now)
        return current

    def refresh(self, stale: Credentials) -> Credentials:
        """See ``Principal.refresh``; ``stale`` itself where the files are still the same."""
        with self._lock:
            if self._current is stale:
                self._look()
            return self._current

    def _after_the_end(self, now: float) -> Credentials:
        with self._lock:
            self._look()
            current = self._current
        if current.expires is not None and now >= current.expires:
            raise PermissionDenied(
                f"the token expired {now - current.expires:.0f} seconds ago",
                operation="sign request",
                object=", ".join(map(str, self._paths)),
                remedy=self._remedy,
            )
        return current

    def _look(self) -> None:
        stamp = self._stamps()
        if stamp == self._stamp:
            return
        try:
            self._stamp, self._current = self._read()
        except BootstreamError as error:
            if self._complained != stamp:
                self._complained = stamp
                _LOG.warning(
                    "%s: the changed files cannot be used, the old token stays: %s",
                    self._name,
                    error,
                )

    def _read(self) -> tuple[Stamp, Credentials]:
        for attempt in range(_TRIES):
            before = self._stamps()
            try:
                credentials = self._load()
            except BootstreamError:
                # Half-replaced files look like wrong ones; wrong ones stay wrong.
                if attempt == _TRIES - 1 or (attempt > 1 and before == self._stamps()):
                    raise
            else:
                if before == self._stamps():
                    return before, credentials
            time.sleep(_PAUSE)
        raise PermissionDenied(
            "the files change all the time",
            operation="read token",
            object=", ".join(map(str, self._paths)),
        )

    def _stamps(self) -> Stamp:
        return tuple(map(_stamp, self._paths))


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
