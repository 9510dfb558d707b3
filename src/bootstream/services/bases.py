"""What sandboxes lie on: each build is opened once on a host, held by a lease while it is used.

A build that nobody uses any more stays open for half a minute, since the next sandbox is mostly
of the same one.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass

from bootstream import wiring
from bootstream.block.cache import NodeCache
from bootstream.block.chunked import ChunkedDevice
from bootstream.errors import BootstreamError
from bootstream.storage.protocol import StorageProvider
from bootstream.templates.build import ROOTFS
from bootstream.templates.holder import Holder
from bootstream.templates.leases import Lease
from bootstream.templates.manifest import Manifest
from bootstream.templates.names import leases_prefix
from bootstream.templates.traces import TraceKeeper, TraceMode

log = logging.getLogger("bootstream.services")

IDLE_SECONDS = 30.0
_TURN_SECONDS = 5.0
_MOST_HOLDER = 4096


@dataclass(slots=True)
class Base:
    """An open build. ``users`` and ``idle_since`` change under the lock of ``BaseTable``."""

    manifest: Manifest
    device: ChunkedDevice
    stack: ExitStack
    users: int = 0
    idle_since: float = 0.0


class BaseTable:
    """The builds that are open. Thread safe.

    Args:
        storage: the store.
        cache: of chunks.
        node_id: of leases.
        patience: seconds that a read waits for a store that has trouble.
    """

    def __init__(
        self, storage: StorageProvider, cache: NodeCache, node_id: str, *, patience: float
    ) -> None:
        self._storage = storage
        self._cache = cache
        self._node_id = node_id
        self._patience = patience
        self._lock = threading.Lock()
        self._opening: dict[str, threading.Lock] = {}
        self._bases: dict[str, Base] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._tidy, name="bases", daemon=True)
        self._thread.start()

    def take(self, build_id: str) -> Base:
        """Return a build, opened if it is not, and count its user.

        Raises:
            BuildNotFound, Corrupt, Unavailable, PermissionDenied: of the build.
        """
        with self._lock:
            opening = self._opening.setdefault(build_id, threading.Lock())
        with opening:  # one opens it, the others wait
            with self._lock:
                base = self._bases.get(build_id)
                if base is not None:
                    base.users += 1
                    return base
            base = self._open(build_id)
            base.users = 1
            with self._lock:
                self._bases[build_id] = base
            return base

    def _open(self, build_id: str) -> Base:
        with ExitStack() as stack:
            lease = stack.enter_context(Lease(self._storage, build_id, self._node_id))
            device = wiring.open_device(
                self._storage, self._cache, lease.manifest, ROOTFS, patience=self._patience
            )
            stack.enter_context(closing(device))
            keeper = TraceKeeper(
                self._storage,
                lease.manifest,
                ROOTFS,
                device,
                mode=TraceMode.AUTO,
                warn=log.warning,
            )
            stack.callback(keeper.finish)
            self._remove_dead_leases(build_id)
            return Base(lease.manifest, device, stack.pop_all())

    def _remove_dead_leases(self, build_id: str) -> None:
        """Remove what processes of this host left that died; collection would, in time."""
        try:
            for info in list(self._storage.list_objects(leases_prefix(build_id))):
                body, _ = self._storage.open_object(info.path).get(_MOST_HOLDER)
                holder = Holder.from_json(bytes(body))
                if holder is not None and holder.is_surely_dead():
                    self._storage.open_object(info.path).delete()
        except BootstreamError as error:
            log.debug("leases of %s were not looked at: %s", build_id, error)

    def give_back(self, base: Base) -> None:
        """Say that one user less has it."""
        with self._lock:
            base.users -= 1
            base.idle_since = time.monotonic()

    def count(self) -> int:
        """Return how many builds are open."""
        with self._lock:
            return len(self._bases)

    def _tidy(self) -> None:
        while not self._stop.wait(_TURN_SECONDS):
            self._close(time.monotonic() - IDLE_SECONDS)

    def _close(self, before: float) -> None:
        with self._lock:
            idle = [
                build_id
                for build_id, base in self._bases.items()
                if not base.users and base.idle_since <= before
            ]
            gone = [self._bases.pop(build_id) for build_id in idle]
            for build_id in idle:
                self._opening.pop(build_id, None)
        for base in gone:
            try:
                base.stack.close()
            except BootstreamError as error:
                log.warning("closing %s: %s", base.manifest.build_id, error)

    def close(self) -> None:
        """Close all; their users are gone. Idempotent."""
        self._stop.set()
        self._thread.join()
        self._close(float("inf"))
