"""The template-manager: builds, templates and tags of one store, over HTTP."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from prometheus_client.core import Metric

from bootstream import wiring
from bootstream.config import Settings
from bootstream.errors import BuildNotFound, Conflict, InvalidInput
from bootstream.services.addresses import AddressPolicy
from bootstream.services.app import StoreCheck, make_app
from bootstream.services.builds import Builds
from bootstream.services.jobs import Job, describe
from bootstream.services.metrics import ServiceMetrics, gauge
from bootstream.services.middleware import Gate
from bootstream.services.models import FINAL, BuildRequest
from bootstream.services.problems import TooManyRequests
from bootstream.services.settings import ServiceSettings
from bootstream.services.webhooks import Webhooks, read_secret
from bootstream.storage.metrics import Metrics
from bootstream.templates.catalogue import Catalogue
from bootstream.templates.manifest import Manifest, read_manifest
from bootstream.templates.names import new_build_id
from bootstream.templates.verify import Verified, verify_build

MOST_STREAMS = 200
MOST_CHECKS = 2

_TEXT = """Builds microVM templates from container images and keeps them in object storage.

Every operation but /health and /ready wants a bearer token where the service has tokens.
Errors are problem documents (RFC 9457)."""


class Manager:
    """What the service does, without HTTP. Thread safe.

    Args:
        settings: of the library.
        service: of the service.
        environ: of workers.
        store: the store's name, where it is not that of the environment.

    Raises:
        BootstreamError: it cannot start; nothing is left running.
    """

    def __init__(
        self,
        settings: Settings,
        service: ServiceSettings,
        *,
        environ: Mapping[str, str],
        store: str | None = None,
    ) -> None:
        self.stopping = threading.Event()
        self.storage_metrics = Metrics()
        self.storage = wiring.get_template_storage_provider(settings, metrics=self.storage_metrics)
        self.catalogue = Catalogue(self.storage)
        self._policy = AddressPolicy(service.allowed_hosts)
        self._webhooks: Webhooks | None = None
        if service.webhook_secret is not None:
            secret = read_secret(service.webhook_secret)
            self._webhooks = Webhooks(secret, self._policy, proxies=settings.proxies)
        self._streams = threading.Semaphore(MOST_STREAMS)
        self._checks = threading.Semaphore(MOST_CHECKS)
        self.builds = Builds(
            service.state,
            at_once=service.builds,
            queue=service.queue,
            on_end=self._tell,
            environ=environ,
            store=store,
        )
        self.store_check = StoreCheck(lambda: self.catalogue.tag("bootstream", "ready"))
        self.metrics = ServiceMetrics(
            "template-manager", more=self._figures, storage=self.storage_metrics
        )

    # -- builds ---------------------------------------------------------------------------

    def start(self, template_id: str, body: BuildRequest) -> Job:
        """Accept a build, or find the one that the same request made before."""
        if body.image is not None:
            self._policy.check_image(body.image, plain_http=body.plain_http)
        if body.webhook is not None:
            if self._webhooks is None:
                raise InvalidInput(
                    "this service has no secret to sign webhooks with",
                    operation="read webhook",
                    remedy="whoever runs it can set BOOTSTREAM_WEBHOOK_SECRET_FILE",
                )
            self._policy.check_webhook(body.webhook)
        request = body.model_dump(mode="json", exclude={"build_id"})
        job, _ = self.builds.accept(
            template_id,
            body.build_id or new_build_id(),
            request,
            known=body.build_id is not None,
        )
        return job

    def stored(self, template_id: str, build_id: str) -> Manifest:
        """Return a build's manifest, published or deleted. Raises BuildNotFound."""
        manifest, _ = read_manifest(self.storage, build_id)
        if manifest.template_id != template_id:
            raise BuildNotFound("there is no such build", operation="find build", object=build_id)
        return manifest

    def delete(self, template_id: str, build_id: str) -> None:
        """Delete a published build, or forget one that failed. Raises BuildNotFound, Conflict."""
        job = self.builds.find(build_id)
        if job is not None and job.template_id != template_id:
            job = None
        if job is not None and job.state not in FINAL:
            raise Conflict(
                f"the build is {job.state}",
                operation="delete build",
                object=build_id,
                remedy="cancel it first",
            )
        try:
            self.stored(template_id, build_id)
        except BuildNotFound:
            if job is None:
                raise
        else:
            self.catalogue.delete_build(build_id)
        if job is not None:
            self.builds.mark_deleted(job)

    def verify(self, template_id: str, build_id: str) -> Verified:
        """Check everything of a published build. Raises BuildNotFound, TooManyRequests."""
        manifest = self.stored(template_id, build_id)
        if manifest.state != "published":
            raise BuildNotFound("the build was deleted", operation="verify", object=build_id)
        if not self._checks.acquire(blocking=False):
            raise TooManyRequests(
                f"{MOST_CHECKS} builds are being verified", operation="verify", retry_after=10
            )
        try:
            return verify_build(self.storage, manifest)
        finally:
            self._checks.release()

    # -- the service ----------------------------------------------------------------------

    @contextmanager
    def stream(self) -> Iterator[None]:
        """Count a stream while the block lasts. Raises TooManyRequests."""
        if not self._streams.acquire(blocking=False):
            raise TooManyRequests(f"{MOST_STREAMS} logs are followed", operation="follow log")
        try:
            yield
        finally:
            self._streams.release()

    def stop(self) -> None:
        """Have streams end; callable from a signal handler."""
        self.stopping.set()

    def close(self) -> None:
        """End what runs here; builds go on in their processes. Idempotent."""
        self.stop()
        self.store_check.close()
        if self._webhooks is not None:
            self._webhooks.close()
        self.builds.close()

    def _tell(self, job: Job) -> None:
        url = job.request.get("webhook")
        if not url or self._webhooks is None:
            return
        body = describe(job).model_dump_json(exclude={"webhook"}).encode()
        heard = self._webhooks.deliver(url, body, f"{job.build_id}.{job.state}")
        if heard is not None:
            self.builds.note_webhook(job, "delivered" if heard else "given up")

    def _figures(self) -> Iterator[Metric]:
        counts = self.builds.counts()
        yield gauge(
            "bootstream_builds",
            "Builds that were accepted here.",
            [((str(state),), count) for state, count in counts.items()],
            "state",
        )

    def not_stopping(self) -> tuple[bool, str]:
        """Return whether it goes on, and what to say of it."""
        return (False, "ending") if self.stopping.is_set() else (True, "ok")


def make_manager_app(manager: Manager, service: ServiceSettings) -> Gate:
    """Return the application that serves a manager."""
    from bootstream.services.manager_routes import router  # noqa: PLC0415 - it imports this

    _, gate = make_app(
        "bootstream template-manager",
        _TEXT,
        [router],
        listen=service.listen,
        metrics=manager.metrics,
        checks={"store": manager.store_check.state, "service": manager.not_stopping},
        state={"manager": manager},
    )
    return gate
