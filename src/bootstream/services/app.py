"""What both services have: errors, tokens, health, figures, a description."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException

import bootstream
from bootstream.errors import BootstreamError
from bootstream.services import problems
from bootstream.services.access import needs
from bootstream.services.metrics import CONTENT_TYPE, ServiceMetrics
from bootstream.services.middleware import Gate, RequestLimits
from bootstream.services.models import Health, Readiness
from bootstream.services.settings import ListenSettings
from bootstream.services.tokens import Token, Tokens

log = logging.getLogger("bootstream.services")

STORE_SECONDS = 10.0
STALE_SECONDS = 45.0
_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})

_common = APIRouter(tags=["service"])


class StoreCheck:
    """Asks the store, every ten seconds, for something small, to see that it is there."""

    def __init__(self, ask: Callable[[], object], *, interval: float = STORE_SECONDS) -> None:
        self._ask = ask
        self._interval = interval
        self._good: float | None = None
        self._trouble = "not asked yet"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="store-check", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                self._ask()
            except BootstreamError as error:
                self._trouble = error.message
                log.warning("the store: %s", error)
            else:
                self._good = time.monotonic()
            if self._stop.wait(self._interval):
                return

    def state(self) -> tuple[bool, str]:
        """Return whether the store answered lately, and what to say of it."""
        good = self._good
        if good is not None and time.monotonic() - good < STALE_SECONDS:
            return True, "ok"
        return False, self._trouble

    def close(self) -> None:
        """Ask no more; what asks now is not waited for."""
        self._stop.set()


@_common.get("/health", responses=problems.documented())
async def health() -> Health:
    """Tell that the service lives. Needs no token."""
    return Health(status="ok", version=bootstream.__version__)


@_common.get("/ready", responses=problems.documented() | {503: {"model": Readiness}})
async def ready(request: Request, response: Response) -> Readiness:
    """Tell whether the service can work: it is not ending, and the store answers."""
    checks: Mapping[str, Callable[[], tuple[bool, str]]] = request.app.state.checks
    found = {name: check() for name, check in checks.items()}
    result = Readiness(
        ready=all(good for good, _ in found.values()),
        checks={name: text for name, (_, text) in found.items()},
    )
    response.status_code = 200 if result.ready else 503
    return result


@_common.get(
    "/metrics",
    response_class=Response,
    responses=problems.documented()
    | {200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Figures"}},
)
def metrics(request: Request, _token: Annotated[Token, Depends(needs("metrics"))]) -> Response:
    """Return figures in Prometheus's text format."""
    page: bytes = request.app.state.metrics.page()
    return Response(page, media_type=CONTENT_TYPE)


def make_app(
    title: str,
    text: str,
    routers: list[APIRouter],
    *,
    listen: ListenSettings,
    metrics: ServiceMetrics,
    checks: Mapping[str, Callable[[], tuple[bool, str]]],
    state: Mapping[str, Any],
) -> tuple[FastAPI, Gate]:
    """Return the framework's application, and the one to serve, which is around it.

    Args:
        title: of the service.
        text: what it is for.
        routers: its operations.
        listen: says whether tokens are needed.
        metrics: figures.
        checks: what readiness looks at.
        state: what handlers find in ``request.app.state``.
    """
    app = FastAPI(
        title=title,
        description=text,
        version=bootstream.__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        redirect_slashes=False,
    )
    for router in (_common, *routers):
        app.include_router(router)
    app.add_exception_handler(BootstreamError, problems.on_error)
    app.add_exception_handler(RequestValidationError, problems.on_invalid)
    app.add_exception_handler(HTTPException, problems.on_http)
    app.add_exception_handler(Exception, problems.on_defect)
    app.state.tokens = None if listen.tokens is None else Tokens(listen.tokens)
    app.state.metrics = metrics
    app.state.checks = dict(checks)
    for name, value in state.items():
        setattr(app.state, name, value)
    app.openapi = lambda: _describe(app)  # type: ignore[method-assign]
    hosts = _LOOPBACK_NAMES | {listen.host} if listen.tokens is None else None
    return app, Gate(app, RequestLimits(hosts=hosts), metrics.observe)


def _describe(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI description, with the problem that every operation may answer with."""
    if app.openapi_schema is None:
        description = get_openapi(
            title=app.title,
            version=app.version,
            description=app.description,
            routes=app.routes,
        )
        schemas = description.setdefault("components", {}).setdefault("schemas", {})
        problem = problems.Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= problem.pop("$defs", {})
        schemas["Problem"] = problem
        app.openapi_schema = description
    return app.openapi_schema
