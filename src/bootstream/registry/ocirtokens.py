"""Tokens of Oracle's Container Registry, for a principal.

The registry's token service, ``GET /20180419/docker/token?service=HOST&scope=SCOPE`` on the
registry's own host, takes a request that a principal signed, and answers
``{"token", "expires_in"}``. It is asked there and nowhere else: the realm that a challenge
names is not looked at, so a signature never goes to another host.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from bootstream.clouds.oci import Credentials, Principal, body_headers, http_date, sign
from bootstream.clouds.oci.web import target_of
from bootstream.errors import Corrupt
from bootstream.registry.api import Api, Reply

TOKEN_PATH = "/20180419/docker/token"  # noqa: S105 - a path
_MAX_TOKEN = 64 << 10
_DEFAULT_SECONDS = 60.0
_AHEAD_SECONDS = 60.0


class PrincipalSigner:
    """Signs requests in as a principal; see ``bootstream.registry.api.Signer``."""

    def __init__(self, principal: Principal) -> None:
        self._principal = principal

    def headers(self, method: str, url: str, body: bytes | None) -> tuple[dict[str, str], object]:
        """Return date, signature and what else is signed, for the URL as it is sent."""
        credentials = self._principal.credentials()
        host, date = urlsplit(url).netloc, http_date()
        hashed = body_headers(body or b"") if method in ("POST", "PUT", "PATCH") else None
        authorization = sign(
            credentials, method, host, target_of(url), date=date, body_headers=hashed
        )
        sent = {"host": host, "date": date, "authorization": authorization}
        return sent | (hashed or {}), credentials

    def renew(self, used: object) -> bool:
        """Have the principal make newer credentials than those that were refused."""
        assert isinstance(used, Credentials)
        return self._principal.refresh(used) is not used


@dataclass(frozen=True, slots=True)
class _Token:
    text: str = field(repr=False)
    renew: float
    expires: float


class OcirTokens:
    """The tokens of one registry by scope, each renewed ahead of its end. Thread safe.

    Args:
        api: the registry's own host, signed in.
        service: what it calls itself.
        clock: seconds that only grow.
    """

    def __init__(
        self, api: Api, service: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._api = api
        self._service = service
        self._clock = clock
        self._lock = threading.Lock()
        self._tokens: dict[str, _Token] = {}

    def token(self, scope: str, *, refused: str | None = None) -> str:
        """Return a token for a scope, not the one that was refused.

        Args:
            scope: such as ``repository:NAMESPACE/NAME:pull,push``.
            refused: the token that a request was answered with 401 for.

        Raises:
            PermissionDenied: the principal is not known there, or may not sign in.
            Throttled, Unavailable: the service cannot be asked, after retries.
            Corrupt: its answer is no token.
        """
        with self._lock:
            now = self._clock()
            kept = self._tokens.get(scope)
            if kept is not None and now < kept.renew and kept.text != refused:
                return kept.text
            try:
                fresh = self._fetch(scope)
            except Exception as error:
                good = kept is not None and now < kept.expires and kept.text != refused
                if kept is None or not good or not getattr(error, "transient", False):
                    raise
                return kept.text  # renewed ahead of its end: the old one still does
            self._tokens[scope] = fresh
            return fresh.text

    def _fetch(self, scope: str) -> _Token:
        reply = self._api.call(
            "GET",
            TOKEN_PATH,
            query={"service": self._service, "scope": scope},
            operation="sign in",
            object=self._service,
        )
        return _read(reply, self._service, self._clock())


def _read(reply: Reply, service: str, now: float) -> _Token:
    document = reply.value if isinstance(reply.value, dict) else {}
    text = document.get("token") or document.get("access_token")
    if (
        not isinstance(text, str)
        or not 0 < len(text) <= _MAX_TOKEN
        or not (text.isascii() and text.isprintable())
    ):
        raise Corrupt(
            "the token service's answer has no token", operation="sign in", object=service
        )
    seconds = document.get("expires_in")
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds < 1e9:
        seconds = _DEFAULT_SECONDS
    ahead = min(_AHEAD_SECONDS, seconds / 4)
    return _Token(text, now + seconds - ahead, now + seconds)
