"""JSON requests to a cloud's own API, beside the registry's: repositories, listings, deletion.

Oracle, Google and Azure answer errors as ``{"code", "message"}``,
``{"error": {"status", "message"}}`` and ``{"errors": [{"code", "message"}]}``; one place
here reads all three. Every request may be repeated: whoever creates takes "exists" for
success, whoever deletes takes "is not there".
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Protocol
from urllib.parse import quote, urlencode

from bootstream.errors import (
    BootstreamError,
    Conflict,
    Corrupt,
    InvalidInput,
    NotFound,
    PermissionDenied,
    PreconditionFailed,
    Throttled,
    Unavailable,
)
from bootstream.images.httperrors import retry_after
from bootstream.images.retry import Retry
from bootstream.images.transport import Answer, Transport

_MAX_BODY = 8 << 20
_MAX_PAGES = 10_000
_SKEW = 300.0  # seconds that signatures may be old
_TRANSIENT = frozenset({408, 425, 500, 502, 503, 504})


class Signer(Protocol):
    """Signs requests in. Safe to use from several threads."""

    def headers(self, method: str, url: str, body: bytes | None) -> tuple[dict[str, str], object]:
        """Return the headers that sign a request in, and what they were made with."""
        ...

    def renew(self, used: object) -> bool:
        """Get something newer than ``used``, which was refused; False where there is nothing."""
        ...


@dataclass(frozen=True, slots=True)
class Reply:
    """A success: the JSON value of its body, None where it is empty; headers by lower case."""

    value: Any
    headers: Mapping[str, str]

    def text(self, name: str) -> str:
        """Return a string of the document; Corrupt where there is none."""
        found = self.value.get(name) if isinstance(self.value, dict) else None
        if not isinstance(found, str) or not found:
            raise Corrupt(f"the answer has no {name}", operation="read answer")
        return found


class Api:
    """One service. Thread safe.

    Args:
        base: its URL, without a slash at the end.
        transport: moves the bytes; closed by whoever made it.
        signer: None: nothing is signed.
        remedy: what to do about a refusal.
        pause: waits between attempts, in seconds; may raise.
    """

    def __init__(
        self,
        base: str,
        *,
        transport: Transport,
        signer: Signer | None,
        remedy: str | None = None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.base = base.rstrip("/")
        self._transport = transport
        self._signer = signer
        self._remedy = remedy
        self._pause = pause

    def call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | None] | None = None,
        body: object = None,
        headers: Mapping[str, str] | None = None,
        operation: str,
        object: str,
    ) -> Reply:
        """Send a request, again while that may help, and return its success.

        Args:
            method: in capitals.
            path: below the base, encoded.
            query: parameters; those that are None are left out.
            body: becomes JSON; None sends none.
            headers: further ones.
            operation: for errors.
            object: what it is done to, for errors.

        Raises:
            NotFound, Conflict, PreconditionFailed, PermissionDenied, InvalidInput: as it says.
            Throttled, Unavailable: it cannot be asked, after retries.
        """
        pairs = {name: value for name, value in (query or {}).items() if value is not None}
        url = f"{self.base}{path}" + (f"?{urlencode(pairs, quote_via=quote)}" if pairs else "")
        data = None if body is None else json.dumps(body).encode()
        return Retry().run(
            lambda: self._signed_in(method, url, data, headers or {}, operation, object),
            self._pause,
        )

    def pages(
        self,
        path: str,
        *,
        query: Mapping[str, str | None],
        items: str,
        operation: str,
        object: str,
        asked_by: str = "page",
        told_by: Callable[[Reply], str | None],
    ) -> Iterator[dict[str, Any]]:
        """Yield the objects of a listing, page after page; those that are none are left out.

        Args:
            path: of the listing.
            query: of every page.
            items: the name of the list in an answer.
            operation: for errors.
            object: what is listed, for errors.
            asked_by: the parameter that names a page.
            told_by: returns the name of the next page, None at the end.
        """
        page: str | None = None
        for _ in range(_MAX_PAGES):
            reply = self.call(
                "GET", path, query={**query, asked_by: page}, operation=operation, object=object
            )
            found = reply.value.get(items) if isinstance(reply.value, dict) else None
            yield from (item for item in found or () if isinstance(item, dict))
            previous, page = page, told_by(reply)
            if not page:
                return
            if page == previous:
                break
        raise Corrupt("the listing does not end", operation=operation, object=object)

    def _signed_in(
        self,
        method: str,
        url: str,
        data: bytes | None,
        headers: Mapping[str, str],
        operation: str,
        object: str,
    ) -> Reply:
        signer = self._signer
        renewed = False
        while True:
            sent = {"Accept": "application/json", **headers}
            used: object = None  # type: ignore[valid-type]  # the parameter shadows the type
            if data is not None:
                sent["content-type"] = "application/json"
            if signer is not None:
                signed, used = signer.headers(method, url, data)
                sent |= signed
            with self._transport.send(
                method, url, headers=sent, body=data, operation=operation
            ) as answer:
                if answer.status == 401 and signer is not None and not renewed:
                    answer.drain()
                    renewed = True
                    if signer.renew(used):
                        continue
                if 200 <= answer.status < 300:
                    return _reply(answer, operation, object)
                raise self._refused(answer, operation, object)

    def _refused(self, answer: Answer, operation: str, object: str) -> BootstreamError:
        error = _classify(answer.status, said_by(answer), answer.origin.host)
        if isinstance(error, PermissionDenied):
            off = _clock_off(answer.header("Date")) if answer.status == 401 else None
            error.remedy = off or self._remedy
        error.operation = operation
        error.object = object
        error.request_id = answer.header("opc-request-id") or answer.header("x-ms-request-id")
        error.retry_after = retry_after(answer.header("Retry-After"))
        return error


def _reply(answer: Answer, operation: str, object: str) -> Reply:
    data = answer.read_all(_MAX_BODY)
    names = ("etag", "opc-next-page", "link", "docker-content-digest")
    headers = {name: value for name in names if (value := answer.header(name)) is not None}
    if not data.strip():
        return Reply(None, headers)
    try:
        return Reply(json.loads(data), headers)
    except (ValueError, RecursionError) as error:
        raise Unavailable(
            "the answer is not JSON; something in between may have given it",
            operation=operation,
            object=object,
            transient=False,
        ) from error


def said_by(answer: Answer) -> str:
    """Return code and message of an error's body, printable and short; empty if it has none."""
    try:
        document = json.loads(answer.read_all(64 << 10))
    except (BootstreamError, ValueError, RecursionError):
        return ""
    if isinstance(document, dict):
        inner = document.get("error") or document.get("errors")
        if isinstance(inner, list) and inner:
            inner = inner[0]
        if isinstance(inner, dict):
            document = inner
        parts = (document.get("status") or document.get("code"), document.get("message"))
        text = ": ".join(str(part) for part in parts if part)
        return "".join(c if c.isprintable() else "?" for c in text)[:300].rstrip(".")
    return ""


def _clock_off(date: str | None) -> str | None:
    """Return a remedy where this machine's clock is so wrong that signatures are refused."""
    try:
        there = parsedate_to_datetime(date or "").timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    off = time.time() - there
    if abs(off) <= _SKEW:
        return None
    return (
        f"this machine's clock is {abs(off):.0f} seconds {'ahead of' if off > 0 else 'behind'} the "
        "server's: set it (timedatectl, chronyc makestep)"
    )


def _classify(status: int, said: str, host: str) -> BootstreamError:
    detail = f": {said}" if said else ""
    text = f"{host} answered {status}{detail}"
    if status in (401, 403):
        return PermissionDenied(f"{host} refused it ({status}){detail}")
    if status == 404:
        return NotFound(text)
    if status == 409 and "IncorrectState" not in said:
        return Conflict(text)
    if status == 412:
        return PreconditionFailed(text)
    if status == 429:
        return Throttled(text)
    if status in _TRANSIENT or status == 409:
        return Unavailable(text)
    if status >= 500 or status < 400:
        return Unavailable(text, transient=False)
    return InvalidInput(text)
