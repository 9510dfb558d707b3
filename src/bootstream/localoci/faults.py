"""Faults on demand: rules that make chosen requests fail, be slow, or answer wrongly.

A rule says for which requests it holds (operation, bucket, object: patterns as in a shell),
how often (a probability drawn from the rule's own seed, a count, how many to let pass
before), and what happens. All rules that hold for a request take effect in order; the first
that gives another answer ends the search.

==============  ====================================================================
effect          what happens
==============  ====================================================================
``latency``     waits ``seconds`` and up to ``jitter`` more before anything else
``bandwidth``   sends the body at ``rate`` bytes a second
``status``      answers ``status`` with ``code``, and Retry-After where ``retry_after`` is set
``expired``     answers 401 NotAuthenticated, as for a token that has expired
``stray``       answers 404 BucketNotFound, as the cloud does now and then
``html``        answers ``status`` with a page of HTML, as a proxy would
``reset``       resets the connection; within the body where ``after`` is set
``cut``         ends the connection after ``after`` bytes of the body
``stall``       after ``after`` bytes of the body sends nothing for ``seconds``
``short``       promises and sends one byte less than there is
``long``        promises and sends one byte more than there is
``flip``        flips the lowest bit of the body's byte ``after``
==============  ====================================================================

With ``upload`` the effects ``bandwidth``, ``reset``, ``cut``, ``stall`` and ``flip`` are for the
request's body instead of the answer's. With ``late`` the answers ``status``, ``expired``,
``stray``, ``html`` and ``reset`` come when the request has taken effect already, which is what
a lost answer looks like.
"""

from __future__ import annotations

import fnmatch
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from bootstream.localoci import faultbodies as bodies
from bootstream.localoci.errors import ApiError, Disconnect, invalid, not_found_or_not_authorized
from bootstream.localoci.http import FileRange, Request, Response
from bootstream.localoci.operations import Operation, operation_of
from bootstream.localoci.signatures import refuse

EFFECTS = frozenset(
    {
        "latency",
        "bandwidth",
        "status",
        "expired",
        "stray",
        "html",
        "reset",
        "cut",
        "stall",
        "short",
        "long",
        "flip",
    }
)
_ANSWERS = frozenset({"status", "expired", "stray", "html", "reset"})
_UPLOADS = frozenset({"bandwidth", "reset", "cut", "stall", "flip"})
_BODIES = frozenset({"bandwidth", "reset", "cut", "stall", "short", "long", "flip"})
_MAX_SECONDS = 600.0
_MAX_RULES = 1000
_CODES = {
    400: "InvalidParameter",
    409: "ConcurrentObjectUpdate",
    429: "TooManyRequests",
    500: "InternalServerError",
    502: "BadGateway",
    503: "ServiceUnavailable",
    504: "GatewayTimeout",
}
_HTML = (
    b"<!DOCTYPE html><html><head><title>Gateway</title></head>"
    b"<body><h1>The proxy cannot reach the server</h1></body></html>\n"
)


class Reset(Disconnect):
    """The connection is reset."""

    reset = True


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule; the module says what its fields mean."""

    effect: str
    operation: str = "*"
    bucket: str = "*"
    object: str = "*"
    probability: float = 1.0
    count: int | None = None
    skip: int = 0
    seed: int = 0
    late: bool = False
    upload: bool = False
    seconds: float = 0.0
    jitter: float = 0.0
    rate: int = 1 << 20
    status: int = 503
    code: str = ""
    retry_after: int | None = None
    after: int | None = None

    @classmethod
    def parse(cls, value: Any) -> Rule:
        """Make a rule of JSON.

        Raises:
            ApiError: 400, with what is wrong.
        """
        if not isinstance(value, dict):
            raise invalid("a fault is a JSON object")
        known = {field.name: field for field in fields(cls)}
        for name, given in value.items():
            if name not in known:
                raise invalid(f"a fault has no field {name!r}; it has {', '.join(known)}")
            _check_type(name, given, str(known[name].type))
        try:
            rule = cls(**value)
        except TypeError:
            raise invalid("a fault needs an effect") from None
        rule._check()
        return rule

    def _check(self) -> None:
        if self.effect not in EFFECTS:
            raise invalid(f"no effect {self.effect!r}; there are {', '.join(sorted(EFFECTS))}")
        if self.upload and self.effect not in _UPLOADS:
            raise invalid(f"{self.effect} is not for uploads")
        wrong = {
            "probability": not 0 <= self.probability <= 1,
            "seconds": not 0 <= self.seconds <= _MAX_SECONDS,
            "jitter": not 0 <= self.jitter <= _MAX_SECONDS,
            "rate": self.rate < 1,
            "status": not 200 <= self.status <= 599,
            "count": self.count is not None and self.count < 0,
            "skip": self.skip < 0,
            "after": self.after is not None and self.after < 0,
        }
        for name, is_wrong in wrong.items():
            if is_wrong:
                raise invalid(f"{name} is out of range: {getattr(self, name)}")

    def as_json(self) -> dict[str, Any]:
        """The rule as JSON has it."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def _check_type(name: str, given: Any, declared: str) -> None:
    allowed: tuple[type, ...] = {
        "str": (str,),
        "bool": (bool,),
        "float": (int, float),
        "int": (int,),
        "int | None": (int, type(None)),
    }[declared]
    if not isinstance(given, allowed) or (isinstance(given, bool) and bool not in allowed):
        raise invalid(f"{name} is not {declared}")


class _Active:
    """A rule at work: how often it was asked, and took effect."""

    def __init__(self, number: int, rule: Rule) -> None:
        self.number = number
        self.rule = rule
        self.seen = 0
        self.hits = 0
        # Reproducible on purpose; by what the rule is too, so that two of one seed differ.
        kind = (rule.effect, rule.operation, rule.bucket, rule.object, rule.late, rule.upload)
        self.random = random.Random(f"{rule.seed} {kind}")  # noqa: S311 - not a secret

    def takes(self, operation: Operation) -> bool:
        rule = self.rule
        match = fnmatch.fnmatchcase
        if not (
            match(operation.name, rule.operation)
            and match(operation.bucket, rule.bucket)
            and match(operation.object, rule.object)
        ):
            return False
        self.seen += 1
        if self.seen <= rule.skip or (rule.count is not None and self.hits >= rule.count):
            return False
        if rule.probability < 1 and self.random.random() >= rule.probability:
            return False
        self.hits += 1
        return True


class Faults:
    """The rules in force. Thread safe.

    Args:
        sleep: waits so many seconds.
    """

    def __init__(self, sleep: Callable[[float], None] = time.sleep) -> None:
        self._sleep = sleep
        self._lock = threading.Lock()
        self._rules: list[_Active] = []
        self._numbers = 0
        self._chosen: dict[int, list[Rule]] = {}  # by the request's identity, until its answer

    def add(self, rules: list[Rule]) -> list[int]:
        """Put rules into force; return their numbers.

        Raises:
            ApiError: 400, there are too many.
        """
        with self._lock:
            if len(self._rules) + len(rules) > _MAX_RULES:
                raise invalid(f"more than {_MAX_RULES} faults")
            added = []
            for rule in rules:
                self._numbers += 1
                added.append(_Active(self._numbers, rule))
            self._rules = self._rules + added
            return [active.number for active in added]

    def clear(self, number: int | None = None) -> int:
        """Take one rule, or all, out of force; return how many there were."""
        with self._lock:
            kept = [
                active for active in self._rules if number is not None and active.number != number
            ]
            gone = len(self._rules) - len(kept)
            self._rules = kept
            return gone

    def as_json(self) -> list[dict[str, Any]]:
        """All rules, with how often each was asked (``seen``) and took effect (``hits``)."""
        with self._lock:
            return [
                {
                    "id": active.number,
                    "seen": active.seen,
                    "hits": active.hits,
                    **active.rule.as_json(),
                }
                for active in self._rules
            ]

    def before(self, request: Request) -> Response | None:
        """Choose a request's faults, and give those that come before it takes effect."""
        if self._chosen:
            self.forget(request)
        if not self._rules:
            return None
        operation = operation_of(request.method, request.raw_path)
        with self._lock:
            chosen = [active.rule for active in self._rules if active.takes(operation)]
            waits = [
                rule.seconds + random.random() * rule.jitter  # noqa: S311 - not a secret
                for rule in chosen
                if rule.effect == "latency"
            ]
        for seconds in waits:
            self._sleep(seconds)
        for rule in chosen:
            if rule.effect in _ANSWERS and not rule.late and not _is_within(rule):
                return answer(rule, operation)
        for rule in chosen:
            if rule.upload and not request.body.ended:
                self._spoil_upload(rule, request)
        if chosen:
            with self._lock:
                self._chosen[id(request)] = chosen
        return None

    def after(self, request: Request, response: Response) -> Response:
        """Give the faults that come when a request has taken effect."""
        if not self._chosen:
            return response
        with self._lock:
            chosen = self._chosen.pop(id(request), ())
        for rule in chosen:
            if rule.effect in _ANSWERS and rule.late and not _is_within(rule):
                response.close()
                return answer(rule, operation_of(request.method, request.raw_path))
        if request.method != "HEAD" and response.status < 300:
            for rule in chosen:
                if rule.effect in _BODIES and not rule.upload:
                    response = self._spoil(rule, response)
        return response

    def forget(self, request: Request) -> None:
        """Drop what was chosen for a request that failed by itself. Idempotent."""
        with self._lock:
            self._chosen.pop(id(request), None)

    def _spoil_upload(self, rule: Rule, request: Request) -> None:
        body, after = request.body, rule.after
        if after is None:
            after = (body.length or 0) // 2

        def happen() -> None:
            match rule.effect:
                case "stall":
                    self._sleep(rule.seconds)
                case "cut":
                    raise Disconnect("cut on purpose")
                case "reset":
                    raise Reset("reset on purpose")

        if rule.effect == "bandwidth":
            body.wrap(lambda source: bodies.PacedUpload(source, rule.rate, self._sleep))
        else:
            flip = rule.effect == "flip"
            body.wrap(lambda source: bodies.Upload(source, after, happen, flip=flip))

    def _spoil(self, rule: Rule, response: Response) -> Response:
        length = _length_of(response)
        if not length:
            return response
        whole = bodies.Pieces(response.body)
        pieces: Iterator[bytes] = whole
        after = min(rule.after if rule.after is not None else length // 2, length - 1)
        promised = length
        match rule.effect:
            case "bandwidth":
                pieces = bodies.paced(pieces, rule.rate, self._sleep)
            case "stall":
                pieces = bodies.stalled(pieces, after, rule.seconds, self._sleep)
            case "cut":
                pieces = bodies.cut(whole, after, Disconnect("cut on purpose"))
            case "reset":
                pieces = bodies.cut(whole, after, Reset("reset on purpose"))
            case "flip":
                pieces = bodies.flipped(pieces, after)
            case "short":
                promised = length - 1
                pieces = bodies.first(pieces, promised)
            case "long":
                promised = length + 1
                pieces = bodies.then(pieces, b"\0")
        return Response(response.status, response.headers, pieces, promised)


def _is_within(rule: Rule) -> bool:
    """Whether a reset comes within a body, rather than in the place of an answer."""
    return rule.effect == "reset" and (rule.upload or rule.after is not None)


def answer(rule: Rule, operation: Operation) -> Response:
    """Return, or raise, what a rule gives in the place of the answer.

    Raises:
        ApiError: an error as the service's own.
        Reset: the connection is reset.
    """
    match rule.effect:
        case "expired":
            raise refuse("the security token has expired")
        case "stray":
            raise not_found_or_not_authorized(operation.bucket)
        case "html":
            return Response(rule.status, {"content-type": "text/html"}, _HTML, foreign=True)
        case "reset":
            raise Reset("reset on purpose")
    headers: Mapping[str, str] = (
        {} if rule.retry_after is None else {"retry-after": str(rule.retry_after)}
    )
    code = rule.code or _CODES.get(rule.status, "InternalServerError")
    raise ApiError(rule.status, code, "a fault that was asked for", headers)


def _length_of(response: Response) -> int | None:
    """The body's size in bytes; None for one that is not known, which no fault spoils."""
    if isinstance(response.body, bytes):
        return len(response.body)
    if isinstance(response.body, FileRange):
        return response.body.length
    return response.length
