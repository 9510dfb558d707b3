"""The orchestrator: the sandboxes of one host, over HTTP."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

from prometheus_client.core import Metric

from bootstream import wiring
from bootstream.config import Settings
from bootstream.services.app import StoreCheck, make_app
from bootstream.services.bases import BaseTable
from bootstream.services.metrics import ServiceMetrics, gauge
from bootstream.services.middleware import Gate
from bootstream.services.sandbox_models import Host, SandboxState
from bootstream.services.sandboxes import Sandboxes
from bootstream.services.settings import ServiceSettings
from bootstream.storage.metrics import Metrics
from bootstream.templates.catalogue import Catalogue

_TEXT = """Serves templates as block devices on the host that it runs on.

Every operation but /health and /ready wants a bearer token where the service has tokens.
Errors are problem documents (RFC 9457)."""


class Orchestrator:
    """What the service does, without HTTP. Thread safe.

    Args:
        settings: of the library.
        service: of the service.

    Raises:
        BootstreamError: it cannot start; nothing is left running.
    """

    def __init__(self, settings: Settings, service: ServiceSettings) -> None:
        self._settings = settings
        self.storage_metrics = Metrics()
        storage = wiring.get_template_storage_provider(settings, metrics=self.storage_metrics)
        catalogue = Catalogue(storage)
        self._stopping = False
        self._cache = wiring.open_node_cache(settings)
        self._bases = BaseTable(
            storage, self._cache, settings.node_id, patience=settings.read_patience
        )
        try:
            self.sandboxes = Sandboxes(
                settings, service.state, storage, self._bases, most=service.sandboxes
            )
        except BaseException:
            self._bases.close()
            self._cache.close()
            raise
        self.store_check = StoreCheck(lambda: catalogue.tag("bootstream", "ready"))
        self.metrics = ServiceMetrics(
            "orchestrator", more=self._figures, storage=self.storage_metrics
        )

    def host(self) -> Host:
        """Return what this host has."""
        return Host(
            node_id=self._settings.node_id,
            draining=self.sandboxes.draining,
            sandboxes=len(self.sandboxes.entries()),
            most_sandboxes=self.sandboxes.most,
            bases=self._bases.count(),
            cache_bytes=self._cache.used(),
            cache_limit=self._settings.cache_size,
            disk_free=shutil.disk_usage(self._settings.cache_dir).free,
        )

    def state(self) -> tuple[bool, str]:
        """Return whether it takes sandboxes, and what to say of it."""
        if self._stopping:
            return False, "ending"
        if self.sandboxes.draining:
            return False, "draining"
        return True, "ok"

    def stop(self) -> None:
        """Take no more; callable from a signal handler."""
        self._stopping = True
        self.sandboxes.stop()

    def close(self) -> None:
        """Serve no more; sandboxes stay, and the next start takes them over. Idempotent."""
        self.stop()
        self.store_check.close()
        self.sandboxes.close()
        self._bases.close()
        self._cache.close()

    def _figures(self) -> Iterator[Metric]:
        counts = dict.fromkeys(SandboxState, 0)
        for entry in self.sandboxes.entries():
            counts[entry.state] += 1
        yield gauge(
            "bootstream_sandboxes",
            "Sandboxes of this host.",
            [((str(state),), count) for state, count in counts.items()],
            "state",
        )
        host = self.host()
        for name, text, value in (
            ("bootstream_bases", "Builds that are open.", host.bases),
            ("bootstream_cache_bytes", "Of the node cache.", host.cache_bytes),
            ("bootstream_disk_free_bytes", "Where cache and overlays lie.", host.disk_free),
            ("bootstream_draining", "Whether it takes no more.", int(host.draining)),
        ):
            yield gauge(name, text, [((), value)])


def make_orchestrator_app(orchestrator: Orchestrator, service: ServiceSettings) -> Gate:
    """Return the application that serves an orchestrator."""
    from bootstream.services.sandbox_routes import router  # noqa: PLC0415 - it imports this

    _, gate = make_app(
        "bootstream orchestrator",
        _TEXT,
        [router],
        listen=service.listen,
        metrics=orchestrator.metrics,
        checks={"store": orchestrator.store_check.state, "service": orchestrator.state},
        state={"orchestrator": orchestrator},
    )
    return gate
