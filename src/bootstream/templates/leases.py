"""Leases: what a running VM reads does not disappear.

A process that serves a build keeps an object under ``leases/{build_id}/`` and
renews it. Collection treats a fresh lease as it treats a dependent. The lease is
written first and the build's state checked afterwards, so that whichever of
collection and serving comes second sees the other.
"""

from __future__ import annotations

import logging
import secrets
from datetime import timedelta
from types import TracebackType

from bootstream.errors import BootstreamError, Unavailable
from bootstream.storage.protocol import StorageProvider
from bootstream.templates.holder import Holder, Renewal
from bootstream.templates.manifest import Manifest, read_published
from bootstream.templates.names import lease_path

log = logging.getLogger("bootstream.templates")

RENEWAL_SECONDS = 60.0
LEASE_TTL = timedelta(minutes=15)
"""How old a lease may be and still hold. It outlives an outage of the storage."""


class Lease:
    """Holds one build for this process; a context manager.

    Args:
        storage: the store.
        build_id: the build to hold.
        node_id: this host's name.
        interval: seconds between renewals.

    Raises:
        BuildNotFound: there is no such published build; no lease is left.
    """

    def __init__(
        self,
        storage: StorageProvider,
        build_id: str,
        node_id: str,
        *,
        interval: float = RENEWAL_SECONDS,
    ) -> None:
        # Several processes of one host may serve one build: each has its own lease.
        holder = f"{node_id}.{secrets.token_hex(4)}"
        self._body = Holder.current(node_id).to_json()
        self._object = storage.open_object(lease_path(build_id, holder))
        self._object.put(self._body)
        try:
            self.manifest: Manifest = read_published(storage, build_id)[0]
        except BaseException:
            self._object.delete()
            raise
        self._renewal = Renewal(
            self._renew, interval, on_lost=lambda: None, on_trouble=self._report
        )

    def _renew(self) -> bool:
        self._object.put(self._body)
        return True

    def _report(self, error: BootstreamError) -> None:
        log.warning("lease %s could not be renewed: %s", self._object.path, error)

    def release(self) -> None:
        """Give the build up; idempotent. What cannot be deleted now expires by itself."""
        self._renewal.stop()
        try:
            self._object.delete()
        except Unavailable as error:
            self._report(error)

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()
