"""Keeping a token fresh while many threads sign with it.

Theory: a snapshot (credentials, when to renew, until when usable) is one immutable tuple,
replaced in one assignment; readers take it without a lock. Past *renew*, the first reader
starts a flight, a short-lived thread that acquires new credentials, and everybody goes on
with the old ones. Past *usable*, readers wait for the flight. There is at most one
flight, whoever asks and why, so a thousand refused requests make one refresh. A flight
that fails while the old token is usable is logged, and the next one starts a little later;
only those who had to wait see its error. Nothing outlives its flight: no timer, no thread to
stop, nothing that grows with the number of refreshes.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from bootstream.clouds.oci.credentials import Credentials
from bootstream.errors import BootstreamError, PermissionDenied, Unavailable

_LOG = logging.getLogger(__name__)
_RENEW_AT = 2 / 3  # of the lifetime
_JITTER = 0.1  # of that: a fleet that started together shall not renew together
_MARGIN = 0.05  # of the lifetime, and at most:
_MAX_MARGIN = 15.0  # seconds: a request signed now still has to arrive
_MAX_BACKOFF = 30.0
_FLIGHT_LIMIT = 120.0  # seconds after which a flight counts as lost


class _Snapshot(NamedTuple):
    credentials: Credentials
    renew: float
    usable: float


class _Flight:
    """One acquisition, and everybody who waits for it."""

    __slots__ = ("done", "error", "result", "started")

    def __init__(self, started: float) -> None:
        self.done = threading.Event()
        self.error: Exception | None = None
        self.result: Credentials | None = None
        self.started = started


class Refresher:
    """Credentials that end, renewed ahead of their end. Thread safe.

    Args:
        acquire: gets new credentials, with ``expires`` in this machine's time; blocks, keeps
            time limits of its own, raises BootstreamError. Called by one thread at a time.
        name: of the kind of principal, for errors and logs.
        clock: seconds since 1970.
        forced: how many refreshes callers may force within ``forced_within`` seconds; beyond
            them ``refresh`` returns what it was given. Requests refused for another reason
            than their token must not become requests to the federation service.
    """

    def __init__(
        self,
        acquire: Callable[[], Credentials],
        *,
        name: str,
        clock: Callable[[], float] = time.time,
        forced: int = 10,
        forced_within: float = 10.0,
    ) -> None:
        self._acquire = acquire
        self._name = name
        self._clock = clock
        self._lock = threading.Lock()
        self._snapshot: _Snapshot | None = None
        self._flight: _Flight | None = None
        self._forced: deque[float] = deque(maxlen=forced)
        self._forced_within = forced_within

    def credentials(self) -> Credentials:
        """See ``Principal.credentials``."""
        snapshot = self._snapshot
        now = self._clock()
        if snapshot is not None:
            if now < snapshot.renew:
                return snapshot.credentials
            if now < snapshot.usable:
                self._launch(snapshot, now)
                return snapshot.credentials
        return self._wait(self._launch(snapshot, now))

    def refresh(self, stale: Credentials) -> Credentials:
        """See ``Principal.refresh``."""
        now = self._clock()
        with self._lock:
            snapshot = self._snapshot
            if snapshot is not None and snapshot.credentials is not stale and now < snapshot.usable:
                return snapshot.credentials
            if self._flight is None:
                forced = self._forced
                if len(forced) == forced.maxlen and now - forced[0] < self._forced_within:
                    return stale
                forced.append(now)
        return self._wait(self._launch(snapshot, now))

    def _launch(self, seen: _Snapshot | None, now: float) -> _Flight:
        """Return the flight under way, or start one; a landed one where ``seen`` is outdated."""
        with self._lock:
            flight = self._flight
            if flight is not None and abs(now - flight.started) < _FLIGHT_LIMIT:
                return flight
            flight = _Flight(now)
            if self._snapshot is not seen and self._snapshot is not None:
                flight.result = self._snapshot.credentials
                flight.done.set()
                return flight
            self._flight = flight
        thread = threading.Thread(
            target=self._fly, args=(flight,), name=f"bootstream-{self._name}", daemon=True
        )
        try:
            thread.start()
        except RuntimeError:  # no more threads: the caller does it
            self._fly(flight)
        return flight

    def _fly(self, flight: _Flight) -> None:
        try:
            credentials = self._acquire()
            snapshot = self._snapshot_of(credentials)
        except Exception as error:  # noqa: BLE001 - raised again by those who wait
            flight.error = error
            self._postpone(error)
        else:
            flight.result = credentials
            self._snapshot = snapshot
        finally:
            with self._lock:
                if self._flight is flight:
                    self._flight = None
            flight.done.set()

    def _snapshot_of(self, credentials: Credentials) -> _Snapshot:
        if credentials.expires is None:
            return _Snapshot(credentials, float("inf"), float("inf"))
        now = self._clock()
        lifetime = credentials.expires - now
        if lifetime <= 0:
            raise PermissionDenied(
                f"the token that came had expired {-lifetime:.0f} seconds ago by this "
                "machine's clock",
                operation="get token",
                object=self._name,
                remedy="set the clock: timedatectl, or chronyc makestep",
            )
        renew = now + lifetime * _RENEW_AT * (1 - _JITTER * random.random())  # noqa: S311 - no secret
        usable = credentials.expires - min(lifetime * _MARGIN, _MAX_MARGIN)
        return _Snapshot(credentials, renew, usable)

    def _postpone(self, error: Exception) -> None:
        snapshot = self._snapshot
        now = self._clock()
        if snapshot is None or now >= snapshot.usable:
            return
        _LOG.warning(
            "%s: the token could not be renewed, the old one is good for %.0f more seconds: %s",
            self._name,
            snapshot.usable - now,
            error,
        )
        delay = min((snapshot.usable - now) / 4, _MAX_BACKOFF)
        delay *= 0.5 + random.random() / 2  # noqa: S311 - no secret
        self._snapshot = snapshot._replace(renew=now + delay)

    def _wait(self, flight: _Flight) -> Credentials:
        if not flight.done.wait(_FLIGHT_LIMIT):
            raise Unavailable(
                "no token came in time",
                operation="get token",
                object=self._name,
                remedy="see whether the metadata and federation services answer",
            )
        if flight.error is not None:
            raise _copy(flight.error) from flight.error
        assert flight.result is not None
        return flight.result


def _copy(error: Exception) -> Exception:
    """An error of one's own for every thread: raising changes an exception."""
    if not isinstance(error, BootstreamError):
        return Unavailable(
            f"the token could not be had ({type(error).__name__})",
            operation="get token",
            transient=False,
        )
    return type(error)(
        error.message,
        operation=error.operation,
        object=error.object,
        request_id=error.request_id,
        remedy=error.remedy,
        transient=error.transient,
        retry_after=error.retry_after,
    )
