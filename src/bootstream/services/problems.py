"""Errors on the wire: RFC 9457, Problem Details for HTTP APIs.

One mapping from the package's error tree to status codes. The members beyond the RFC's own:
``kind`` (the class of the error, which the client raises again), ``operation``, ``object``,
``remedy``, ``request_id``, and ``errors`` for a request that has several things wrong.
"""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from bootstream.errors import (
    BootstreamError,
    Cancelled,
    Conflict,
    Corrupt,
    InvalidInput,
    NotFound,
    PermissionDenied,
    PreconditionFailed,
    StorageFull,
    Throttled,
    Unavailable,
)
from bootstream.services.journal import kind_of
from bootstream.services.logs import current_request_id

log = logging.getLogger("bootstream.services")

MEDIA_TYPE = "application/problem+json"
_MOST_ERRORS = 20

_STATUS: tuple[tuple[type[BootstreamError], int], ...] = (
    (InvalidInput, 422),
    (NotFound, 404),
    (PreconditionFailed, 412),
    (Conflict, 409),
    (Throttled, 503),
    (StorageFull, 507),
    (Unavailable, 503),
    # The service's own principal, not the client's token, lacks something.
    (PermissionDenied, 502),
    (Corrupt, 502),
    (Cancelled, 503),
)


class TooManyRequests(Throttled):
    """The service itself has enough to do: 429, not 503."""


class Unauthorized(PermissionDenied):
    """There is no token, or no good one."""


class Forbidden(PermissionDenied):
    """The token is good, but not for this."""


class Mistake(BaseModel):
    """One thing that is wrong with a request."""

    where: str
    message: str


class Problem(BaseModel):
    """RFC 9457, section 3, and what this service adds."""

    type: str = "about:blank"
    title: str
    status: int = Field(ge=400, le=599)
    detail: str
    kind: str
    operation: str | None = None
    object: str | None = None
    remedy: str | None = None
    request_id: str | None = None
    errors: list[Mistake] | None = None


def status_of(error: BootstreamError) -> int:
    """Return the status code that stands for the error's kind."""
    if isinstance(error, TooManyRequests):
        return 429
    if isinstance(error, Unauthorized):
        return 401
    if isinstance(error, Forbidden):
        return 403
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def response_of(error: BootstreamError) -> JSONResponse:
    """Return the answer that tells a client of an error."""
    status = status_of(error)
    headers = {}
    if status in (429, 503):
        headers["Retry-After"] = str(max(1, round(error.retry_after or 1)))
    if status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="bootstream"'
    return respond(
        status,
        error.message,
        kind=kind_of(error),
        headers=headers,
        operation=error.operation,
        object=error.object,
        remedy=error.remedy,
    )


def respond(
    status: int,
    detail: str,
    *,
    kind: str,
    headers: dict[str, str] | None = None,
    **members: Any,
) -> JSONResponse:
    """Return a problem as an answer; members that are None are left out."""
    problem = Problem(
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        kind=kind,
        request_id=current_request_id(),
        **members,
    )
    return JSONResponse(
        problem.model_dump(exclude_none=True), status, headers, media_type=MEDIA_TYPE
    )


async def on_error(_request: Request, error: Exception) -> JSONResponse:
    """Answer for an error of the package."""
    assert isinstance(error, BootstreamError)
    status = status_of(error)
    if status >= 500:
        log.warning("answered %d: %s", status, error)
    return response_of(error)


async def on_invalid(_request: Request, error: Exception) -> JSONResponse:
    """Answer for a request that is not as described; what was sent is not repeated."""
    assert isinstance(error, RequestValidationError)
    mistakes = [
        Mistake(where=".".join(str(part) for part in each["loc"]), message=each["msg"])
        for each in error.errors()[:_MOST_ERRORS]
    ]
    first = mistakes[0] if mistakes else Mistake(where="request", message="it is not valid")
    return respond(422, f"{first.where}: {first.message}", kind="InvalidInput", errors=mistakes)


async def on_http(_request: Request, error: Exception) -> JSONResponse:
    """Answer for what the framework refuses: no such path, no such method."""
    assert isinstance(error, HTTPException)
    kind = "NotFound" if error.status_code == 404 else "InvalidInput"
    return respond(error.status_code, error.detail, kind=kind, headers=dict(error.headers or {}))


async def on_defect(_request: Request, error: Exception) -> JSONResponse:
    """Answer for a defect, which the log has whole and the client by its request id."""
    log.error("unexpected %s", type(error).__name__, exc_info=error)
    return respond(
        500,
        "this is a defect of the service; its log has more under this request id",
        kind="BootstreamError",
    )


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the part of an operation's description that names its problems."""
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status in sorted({*statuses, 400, 401, 403, 408, 413, 422, 429, 500, 502, 503, 507})
    }
