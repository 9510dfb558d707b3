"""What every request goes through, whatever it asks: one layer of ASGI, outside the framework.

In this order: a request id; at most so many requests at a time; the body, whole and within its
limits of size and time, before anything is done for it; then the answer is counted and logged.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bootstream.services.logs import set_request_id
from bootstream.services.problems import respond

log = logging.getLogger("bootstream.access")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """What a client may ask for. Bytes and seconds.

    ``hosts``: names that the Host header may have; None: any. It keeps a web page whose name
    was made to point here from using a service that wants no token.
    """

    body: int = 1 << 20
    body_seconds: float = 20.0
    at_once: int = 256
    hosts: frozenset[str] | None = None


Observer = Callable[[str, str, int, float], None]
"""Told method, route, status and seconds of every answer."""


class Gate:
    """The outermost application.

    Args:
        app: answers.
        limits: what is refused before it.
        observe: told of every answer.
    """

    def __init__(self, app: ASGIApp, limits: RequestLimits, observe: Observer) -> None:
        self._app = app
        self._limits = limits
        self._observe = observe
        self._now = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        began = time.perf_counter()
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        set_request_id(request_id)
        status = 499  # the client went before there was an answer
        complete = False

        async def sending(message: Message) -> None:
            nonlocal status, complete
            if message["type"] == "http.response.start":
                status = message["status"]
                fields = MutableHeaders(scope=message)
                fields["X-Request-ID"] = request_id
                fields["X-Content-Type-Options"] = "nosniff"
                fields.setdefault("Cache-Control", "no-store")
            await send(message)
            if message["type"] == "http.response.body":
                complete = not message.get("more_body", False)

        self._now += 1
        try:
            await self._answer(scope, headers, receive, sending)
        except Exception:
            if not complete:  # else it was answered, and logged, as a defect
                raise
        finally:
            self._now -= 1
            route = getattr(scope.get("route"), "path", "")
            seconds = time.perf_counter() - began
            self._observe(scope["method"], route, status, seconds)
            log.info(
                "%s %s %d",
                scope["method"],
                scope["path"],
                status,
                extra={
                    "fields": {
                        "method": scope["method"],
                        "route": route,
                        "status": status,
                        "seconds": round(seconds, 6),
                        "client": (scope.get("client") or [""])[0],
                        "token": scope.get("state", {}).get("token"),
                    }
                },
            )

    async def _answer(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        refusal = self._refuse(headers)
        body = b""
        if refusal is None:
            try:
                async with asyncio.timeout(self._limits.body_seconds):
                    body = await self._read(receive)
            except TimeoutError:
                refusal = _closing(
                    respond(408, "the body did not come in time", kind="InvalidInput")
                )
            except _TooLargeError:
                refusal = self._too_large()
            except _GoneError:
                return
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        await self._app(scope, _replay(body, receive), send)

    def _refuse(self, headers: Headers) -> Response | None:
        if self._now > self._limits.at_once:
            return respond(
                503,
                "too many requests are being answered",
                kind="Throttled",
                headers={"Retry-After": "1"},
            )
        hosts = self._limits.hosts
        if hosts is not None and _host(headers.get("host", "")) not in hosts:
            return respond(
                400,
                "this service answers under the names of this host only",
                kind="InvalidInput",
            )
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length[:20]) > self._limits.body:
            return self._too_large()
        return None

    def _too_large(self) -> Response:
        return _closing(
            respond(413, f"a body has at most {self._limits.body} bytes here", kind="InvalidInput")
        )

    async def _read(self, receive: Receive) -> bytes:
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _GoneError
            part = message.get("body", b"")
            size += len(part)
            if size > self._limits.body:
                raise _TooLargeError
            parts.append(part)
            if not message.get("more_body", False):
                return b"".join(parts)


class _TooLargeError(Exception):
    """The body is larger than it may be."""


class _GoneError(Exception):
    """The client went away."""


def _host(value: str) -> str:
    if value.startswith("["):
        return value.partition("]")[0] + "]"
    return value.partition(":")[0].lower()


def _closing(response: Response) -> Response:
    """The rest of the body was not read, so nothing can follow on this connection."""
    response.headers["Connection"] = "close"
    return response


def _replay(body: bytes, receive: Receive) -> Receive:
    """Give the body once; afterwards what happens to the connection."""
    given = False

    async def replaying() -> Message:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replaying
