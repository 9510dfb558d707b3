"""One handler of all services: who answers which path, and the administration of it all.

Below ``/_local/`` (JSON, unsigned, for whoever is on this machine):

- ``GET|POST|PUT|DELETE /_local/faults``: list, add, replace, or clear fault rules;
  ``DELETE /_local/faults/ID`` one of them.
- ``GET|PUT|DELETE /_local/policies``: the policies in force; see ``policies``.
- ``GET|PUT /_local/clock``: ``{"offset": SECONDS}``, how wrong the server's clock is.
- ``GET|PUT /_local/tokens``: ``{"lifetime": SECONDS}`` of tokens given out from now on.
- ``POST /_local/rotate``: another key and certificate for the instance.
- ``GET|DELETE /_local/requests``: how many requests came, by operation.
- ``GET /_local/health``.
"""

from __future__ import annotations

import collections
import json
import re
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bootstream.localoci.errors import ApiError, Disconnect, invalid
from bootstream.localoci.faults import Faults, Rule
from bootstream.localoci.http import Request, Response, json_response
from bootstream.localoci.operations import operation_of

if TYPE_CHECKING:
    from bootstream.localoci.federation import Federation
    from bootstream.localoci.http import Handler
    from bootstream.localoci.keys import Identity
    from bootstream.localoci.metadata import Metadata
    from bootstream.localoci.policies import PolicyFile
    from bootstream.localoci.tokens import Tokens

_ADMIN = "/_local/"
_MAX_LIFETIME = 86400.0 * 365
# A web page whose name was made to point here would send that name.
_LOOPBACK = re.compile(r"(?:127\.\d+\.\d+\.\d+|localhost|\[::1\])(?::\d+)?")


class Clock:
    """Seconds since the epoch, and by how many it is wrong. Thread safe."""

    def __init__(self) -> None:
        self.offset = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return time.time() + self.offset


class Services:
    """Answers every request that comes. Thread safe.

    Args:
        identity: who exists.
        tokens: for how long tokens are good.
        metadata: answers ``/opc/v2``.
        federation: gives out tokens.
        policies: what may be done.
        faults: what goes wrong.
        clock: the time that all of them go by.
        lifetime_changed: called when tokens have another lifetime.
    """

    def __init__(
        self,
        *,
        identity: Identity,
        tokens: Tokens,
        metadata: Metadata,
        federation: Federation,
        policies: PolicyFile,
        faults: Faults,
        clock: Clock,
        lifetime_changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._identity = identity
        self._tokens = tokens
        self._metadata = metadata
        self._federation = federation
        self._policies = policies
        self._faults = faults
        self._clock = clock
        self._lifetime_changed = lifetime_changed
        self._lock = threading.Lock()
        self._counts: collections.Counter[str] = collections.Counter()

    def around(self, storage: Handler) -> Handler:
        """Return the handler of everything, which leaves the object storage to another."""

        def handle(request: Request) -> Response:
            if request.raw_path.startswith(_ADMIN):
                return self._administer(request)
            operation = operation_of(request.method, request.raw_path).name
            with self._lock:
                self._counts[operation] += 1
            response = self._faults.before(request)
            if response is not None:
                return response
            try:
                response = (
                    self._metadata.handle(request)
                    or self._federation.handle(request)
                    or storage(request)
                )
            except (ApiError, Disconnect):
                self._faults.forget(request)
                raise
            return self._faults.after(request, response)

        return handle

    def _administer(self, request: Request) -> Response:
        if not _LOOPBACK.fullmatch(request.headers.get("host", "")):
            raise ApiError(403, "Forbidden", "the host is not this machine's loopback address")
        name, _, rest = request.path[len(_ADMIN) :].rstrip("/").partition("/")
        if request.method in {"POST", "PUT"} and not request.headers.get(
            "content-type", ""
        ).startswith("application/json"):
            # Also keeps web pages out, whose forms can send to this machine but not this type.
            raise ApiError(415, "UnsupportedMediaType", "content-type is not application/json")
        answers: dict[str, Callable[[Request, str], Any]] = {
            "faults": self._administer_faults,
            "policies": self._administer_policies,
            "clock": self._administer_clock,
            "tokens": self._administer_tokens,
            "rotate": self._rotate,
            "requests": self._administer_requests,
            "health": lambda _request, _rest: {"status": "ok"},
        }
        if name not in answers or (rest and name != "faults"):
            raise ApiError(404, "NotFound", f"no such page: {request.path}")
        return json_response(answers[name](request, rest))

    def _administer_faults(self, request: Request, rest: str) -> Any:
        match request.method:
            case "DELETE":
                if rest and not (rest.isascii() and rest.isdigit()):
                    raise invalid("a fault's id is a number")
                return {"removed": self._faults.clear(int(rest) if rest else None)}
            case "POST" | "PUT":
                value = _json(request)
                rules = [
                    Rule.parse(item) for item in (value if isinstance(value, list) else [value])
                ]
                if request.method == "PUT":
                    self._faults.clear()
                return {"ids": self._faults.add(rules)}
            case "GET":
                return self._faults.as_json()
        raise _not_allowed(request)

    def _administer_policies(self, request: Request, _rest: str) -> Any:
        match request.method:
            case "DELETE":
                self._policies.replace(None)
            case "PUT":
                self._policies.replace(_json(request))
            case "GET":
                pass
            case _:
                raise _not_allowed(request)
        return self._policies.document

    def _administer_clock(self, request: Request, _rest: str) -> Any:
        if request.method == "PUT":
            self._clock.offset = _number(request, "offset", -_MAX_LIFETIME)
        return {"offset": self._clock.offset, "time": self._clock()}

    def _administer_tokens(self, request: Request, _rest: str) -> Any:
        if request.method == "PUT":
            self._tokens.lifetime = _number(request, "lifetime", 0)
            self._lifetime_changed()
        return {"lifetime": self._tokens.lifetime}

    def _rotate(self, request: Request, _rest: str) -> Any:
        if request.method != "POST":
            raise _not_allowed(request)
        self._identity.rotate_instance()
        return {}

    def _administer_requests(self, request: Request, _rest: str) -> Any:
        with self._lock:
            counts = dict(self._counts)
            if request.method == "DELETE":
                self._counts.clear()
        return counts


def _json(request: Request) -> Any:
    try:
        return json.loads(request.content())
    except (ValueError, RecursionError):
        raise invalid("the body is not JSON") from None


def _number(request: Request, name: str, least: float) -> float:
    value = request.json().get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise invalid(f"{name} is a number of seconds")
    if not least <= value <= _MAX_LIFETIME:
        raise invalid(f"{name} is out of range")
    return float(value)


def _not_allowed(request: Request) -> ApiError:
    return ApiError(405, "MethodNotAllowed", f"{request.method} is not for this page")
