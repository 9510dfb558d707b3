"""Requests to the clouds' APIs: signing in again, what is repeated, pages; OCIR's tokens."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from typing import Any

import pytest

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
from bootstream.images.transport import Transport
from bootstream.registry.api import Api, Reply
from bootstream.registry.ocirtokens import OcirTokens
from bootstream.testing.servers.registryfront import RegistryFront, Request

Script = Callable[[Request], tuple[int, dict[str, str], bytes]]


class _Server(RegistryFront):
    """Answers as a test says."""

    def __init__(self) -> None:
        super().__init__("")
        self.script: Script = lambda _: (200, {}, b"{}")
        self.sent: list[str] = []

    def answer(self, request: Request) -> tuple[int, dict[str, str], bytes]:
        self.sent.append(request.headers.get("Authorization") or "")
        return self.script(request)


@pytest.fixture
def server() -> Iterator[_Server]:
    with _Server() as running:
        yield running


class _Signer:
    """A new key each time it is asked."""

    def __init__(self) -> None:
        self.number = 1

    def headers(self, method: str, url: str, body: bytes | None) -> tuple[dict[str, str], object]:
        return {"authorization": f"Key {self.number}"}, self.number

    def renew(self, used: object) -> bool:
        self.number += 1
        return True


@pytest.fixture
def api(server: _Server) -> Iterator[Api]:
    transport = Transport()
    yield Api(server.url, transport=transport, signer=_Signer(), remedy="ask", pause=lambda _: None)
    transport.close()


def ask(api: Api, method: str = "GET", **given: Any) -> Reply:
    return api.call(method, "/thing", operation="look", object="thing", **given)


def error_of(status: int, body: object, **headers: str) -> Script:
    return lambda _: (status, headers, json.dumps(body).encode())


@pytest.mark.parametrize(
    ("status", "body", "kind", "times"),
    [
        (400, {"code": "InvalidParameter", "message": "no"}, InvalidInput, 1),
        (403, {"error": {"status": "PERMISSION_DENIED", "message": "no"}}, PermissionDenied, 1),
        (401, {"errors": [{"code": "UNAUTHORIZED", "message": "no"}]}, PermissionDenied, 2),
        (404, {"code": "NotAuthorizedOrNotFound", "message": "no"}, NotFound, 1),
        (409, {"code": "Conflict", "message": "no"}, Conflict, 1),
        (409, {"code": "IncorrectState", "message": "no"}, Unavailable, 5),
        (412, {"code": "NoEtagMatch", "message": "no"}, PreconditionFailed, 1),
        (429, {"code": "TooManyRequests", "message": "no"}, Throttled, 5),
        (503, {"code": "ServiceUnavailable", "message": "no"}, Unavailable, 5),
        (501, {"code": "NotImplemented", "message": "no"}, Unavailable, 1),
        (302, {}, Unavailable, 1),
    ],
)
def test_errors(
    server: _Server, api: Api, status: int, body: Any, kind: type[BootstreamError], times: int
) -> None:
    """Each has its class; what may pass is tried again, a 401 signed anew once."""
    server.script = error_of(status, body, **{"opc-request-id": "r1"})
    with pytest.raises(kind) as raised:
        ask(api)
    assert type(raised.value) is kind
    assert len(server.sent) == times
    assert raised.value.request_id == "r1"
    assert (raised.value.operation, raised.value.object) == ("look", "thing")
    if status == 401:
        assert server.sent == ["Key 1", "Key 2"]
        assert raised.value.remedy == "ask"


def test_a_renewed_signature_does(server: _Server, api: Api) -> None:
    """One that was refused is made again, and the request with it."""
    server.script = lambda request: (
        (200, {"ETag": "e"}, b'{"a": 1}')
        if request.headers["Authorization"] == "Key 2"
        else (401, {}, b"")
    )
    reply = ask(api, "POST", body={"x": 1})
    assert reply.value == {"a": 1}
    assert reply.headers["etag"] == "e"


def test_clocks_that_are_off(server: _Server, api: Api) -> None:
    """A 401 for a clock that is ten minutes off says so."""

    def late(_: Request) -> tuple[int, dict[str, str], bytes]:
        return 401, {"Date": formatdate(time.time() - 600, usegmt=True)}, b"{}"

    server.script = late
    with pytest.raises(PermissionDenied) as raised:
        ask(api)
    assert "clock" in (raised.value.remedy or "")


@pytest.mark.parametrize("body", [b"<html>", b"[" * 100_000, b"\xff"])
def test_what_is_no_json(server: _Server, api: Api, body: bytes) -> None:
    """A page from something in between is no success."""
    server.script = lambda _: (200, {}, body)
    with pytest.raises(Unavailable):
        ask(api)


def test_pages(server: _Server, api: Api) -> None:
    """All of them are read; a page that names itself again ends the listing with an error."""

    def page(request: Request) -> tuple[int, dict[str, str], bytes]:
        number = int(request.query.get("page", "0"))
        more = {"opc-next-page": str(number + 1)} if number < 3 else {}
        return 200, more, json.dumps({"items": [{"n": number}, "no object"]}).encode()

    def listed() -> list[Any]:
        return list(
            api.pages(
                "/things",
                query={"a": None},
                items="items",
                operation="list",
                object="things",
                told_by=lambda reply: reply.headers.get("opc-next-page"),
            )
        )

    server.script = page
    assert listed() == [{"n": number} for number in range(4)]
    server.script = lambda _: (200, {"opc-next-page": "same"}, b'{"items": []}')
    with pytest.raises(Corrupt):
        listed()
    assert len(server.sent) < 10


# -- OCIR's tokens --------------------------------------------------------------------------------


def test_ocir_tokens(server: _Server, api: Api) -> None:
    """By scope; renewed ahead of their end, when refused, and not sooner."""
    asked: list[str] = []

    def give(request: Request) -> tuple[int, dict[str, str], bytes]:
        asked.append(request.query["scope"])
        assert request.path == "/20180419/docker/token"
        assert request.query["service"] == "iad.ocir.io"
        return 200, {}, json.dumps({"token": f"t{len(asked)}", "expires_in": 3600}).encode()

    server.script = give
    now = [0.0]
    tokens = OcirTokens(api, "iad.ocir.io", clock=lambda: now[0])
    assert tokens.token("repository:ns/r:pull") == "t1"
    assert tokens.token("repository:ns/r:pull,push") == "t2"
    assert tokens.token("repository:ns/r:pull") == "t1"
    assert tokens.token("repository:ns/r:pull", refused="t0") == "t1"  # another was refused
    assert tokens.token("repository:ns/r:pull", refused="t1") == "t3"
    now[0] = 3539.0
    assert tokens.token("repository:ns/r:pull") == "t3"
    now[0] = 3541.0
    assert tokens.token("repository:ns/r:pull") == "t4"
    server.script = error_of(503, {})
    now[0] = 3541.0 + 3550
    assert tokens.token("repository:ns/r:pull") == "t4"  # good for some seconds still
    now[0] = 3541.0 + 3601
    with pytest.raises(Unavailable):
        tokens.token("repository:ns/r:pull")


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b"{}",
        b'{"token": ""}',
        b'{"token": 5}',
        b'{"token": "a\\nb"}',
        b'{"token": "\xc3\xa4"}',
        b'{"token": "' + b"x" * 70_000 + b'"}',
    ],
)
def test_tokens_that_cannot_be(server: _Server, api: Api, body: bytes) -> None:
    """Nothing that could not be sent in a header is taken for one."""
    server.script = lambda _: (200, {}, body)
    with pytest.raises(Corrupt):
        OcirTokens(api, "iad.ocir.io").token("any")


@pytest.mark.parametrize("seconds", [None, "soon", -1, 0, True, 1e300])
def test_odd_lifetimes(server: _Server, api: Api, seconds: Any) -> None:
    """A lifetime that is none counts as a minute."""
    server.script = lambda _: (200, {}, json.dumps({"token": "t", "expires_in": seconds}).encode())
    now = [0.0]
    tokens = OcirTokens(api, "iad.ocir.io", clock=lambda: now[0])
    tokens.token("any")
    now[0] = 44.0
    tokens.token("any")
    assert len(server.sent) == 1
    now[0] = 46.0
    tokens.token("any")
    assert len(server.sent) == 2
