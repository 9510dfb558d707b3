"""Signing in to a registry: anonymous, basic, and bearer tokens from a token server.

Format: the distribution project's "Token Authentication Specification" and its
OAuth2 variant. A registry answers 401 with a challenge; a token server, the
challenge's ``realm``, gives a token for a scope; the token is used until shortly
before it expires, or until the registry refuses it.

A challenge comes from outside, so it may not send a password just anywhere. The
credentials kept for a registry go to

- the registry itself, and a realm on the registry's own host;
- a realm over https whose host is of the same domain, as ``auth.docker.io`` is for
  ``registry-1.docker.io``;
- any other realm over https only if the credential file has an entry for it, and
  then that entry's.

Every other realm is asked without credentials, and not at all over http.

Reading, writing and deleting need tokens of different scopes, which are kept apart.
Where the credentials are a ``BearerSource``, its tokens are sent as they are, to the
registry alone, and no token server is asked.
"""

from __future__ import annotations

import ipaddress
import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from bootstream.errors import BootstreamError, Corrupt, PermissionDenied
from bootstream.images.challenge import Challenge
from bootstream.images.credentials import (
    BearerSource,
    Credentials,
    CredentialSource,
    NoCredentials,
)
from bootstream.images.httperrors import status_error
from bootstream.images.retry import Retry
from bootstream.images.scopes import PULL, merge_scopes, repository_scope
from bootstream.images.transport import Answer, Origin, Transport

_OPERATION = "sign in"
_MAX_TOKEN_ANSWER = 1 << 20
_MAX_TOKEN = 64 << 10
_DEFAULT_SECONDS = 60.0
_MARGIN_SECONDS = 10.0
_CLIENT_ID = "bootstream"
_BEARER = "Bearer "
_COUNTRY_SUFFIXES = frozenset(
    {"ac", "co", "com", "edu", "gen", "go", "gob", "gouv", "gov", "gv", "id", "ind", "info"}
    | {"ltd", "mil", "ne", "net", "nom", "or", "org", "plc", "sch", "web"}
)
"""Second labels below which countries register domains, as in ``co.uk`` and ``com.au``."""


@dataclass(frozen=True, slots=True)
class _Token:
    header: str
    expires: float


class Authenticator:
    """What to send to one repository of one registry. Thread safe.

    Args:
        home: the registry's own origin.
        registry: its name, as credentials are kept under.
        repository: within it.
        credentials: where they are kept; read at the first challenge.
        transport: for the token server.
        pause: waits between attempts; may raise.
    """

    def __init__(
        self,
        home: Origin,
        registry: str,
        repository: str,
        *,
        credentials: CredentialSource | BearerSource,
        transport: Transport,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._home = home
        self._registry = registry
        self._repository = repository
        self._bearer = credentials if isinstance(credentials, BearerSource) else None
        self._keychain = NoCredentials() if isinstance(credentials, BearerSource) else credentials
        self._transport = transport
        self._pause = pause
        self._lock = threading.Lock()
        self._challenge: Challenge | None = None
        self._asked: dict[tuple[str, ...], str] = {}
        self._tokens: dict[tuple[str, ...], _Token] = {}
        self._basic: str | None = None

    def authorization(self, scopes: Sequence[str] = ()) -> str | None:
        """Return the header to send now; a token about to expire is renewed first.

        Args:
            scopes: what the token must be good for; reading the repository, if empty.
        """
        if self._bearer is not None:
            return self._own(refused=None)
        with self._lock:
            return self._current(self._wanted(scopes))

    def renew(
        self, challenges: Sequence[Challenge], used: str | None, scopes: Sequence[str] = ()
    ) -> bool:
        """Take up the challenges of a 401; False if there is nothing else to try.

        Args:
            challenges: what the registry asked for.
            used: the header that was sent with the request it refused.
            scopes: what the request needs, as for ``authorization``.

        Raises:
            PermissionDenied: the token server refuses the credentials.
            Unavailable, Throttled: the token server cannot be asked.
        """
        if self._bearer is not None:
            return self._own(refused=used) != used
        wanted = self._wanted(scopes)
        with self._lock:
            if self._challenge is not None and self._current(wanted) != used:
                return True  # another thread was first
            by_scheme = {challenge.scheme: challenge for challenge in reversed(challenges)}
            bearer, basic = by_scheme.get("bearer"), by_scheme.get("basic")
            if bearer is not None and bearer.parameters.get("realm"):
                self._challenge = bearer
                self._asked[wanted] = bearer.parameters.get("scope", "")
                self._tokens.pop(wanted, None)
                return self._current(wanted) is not None
            if basic is not None:
                self._challenge = basic
                found = self._keychain.find(self._registry, self._repository)
                self._basic = found.basic() if found else None
                return self._basic is not None and self._basic != used
            return False

    def _own(self, *, refused: str | None) -> str:
        """Return the header with a token of the bearer source."""
        assert self._bearer is not None
        token = self._bearer.token(refused=refused and refused.removeprefix(_BEARER))
        if not 0 < len(token) <= _MAX_TOKEN or not _is_plain(token):
            raise Corrupt("its token cannot be sent", operation=_OPERATION, object=self._registry)
        return _BEARER + token

    def _wanted(self, scopes: Sequence[str]) -> tuple[str, ...]:
        return tuple(scopes) or (repository_scope(self._repository, PULL),)

    def _current(self, wanted: tuple[str, ...]) -> str | None:
        challenge = self._challenge
        if challenge is None or challenge.scheme == "basic":
            return self._basic
        token = self._tokens.get(wanted)
        if token is None or time.monotonic() >= token.expires:
            scopes = self._scopes(wanted)
            token = Retry().run(lambda: self._fetch(challenge, scopes), self._pause)
            self._tokens[wanted] = token
        return token.header

    def _scopes(self, wanted: tuple[str, ...]) -> tuple[str, ...]:
        """Return what a token is asked for: what the registry said, and what it left out.

        A registry that says anything knows its own names of what is read or written best;
        what was asked for is added where there is more than one resource (mounting).
        """
        said = self._asked.get(wanted, "")
        return merge_scopes([said, *wanted] if len(wanted) > 1 or not said else [said])

    # -- the token server -------------------------------------------------------------------

    def _fetch(self, challenge: Challenge, scopes: tuple[str, ...]) -> _Token:
        realm = challenge.parameters["realm"]
        credentials = self._credentials_for(realm)
        if credentials is not None and credentials.registry_token:
            return _Token(_BEARER + credentials.registry_token, time.monotonic() + 3600)
        query: dict[str, str] = {}
        if service := challenge.parameters.get("service"):
            query["service"] = service
        with self._ask(realm, query, scopes, credentials) as answer:
            if answer.status != 200:
                raise self._refused(answer, credentials)
            return self._parse(answer.read_all(_MAX_TOKEN_ANSWER), realm)

    def _ask(
        self,
        realm: str,
        query: dict[str, str],
        scopes: tuple[str, ...],
        credentials: Credentials | None,
    ) -> Answer:
        if credentials is not None and credentials.identity_token:
            form = query | {
                "scope": " ".join(scopes),
                "grant_type": "refresh_token",
                "refresh_token": credentials.identity_token,
                "client_id": _CLIENT_ID,
            }
            return self._transport.send(
                "POST",
                realm,
                headers={"Content-Type": "application/x-www-form-urlencoded"},
                body=urlencode(form).encode(),
                operation=_OPERATION,
            )
        if credentials is not None and credentials.username:
            query = {"account": credentials.username, **query}
        try:
            parts = urlsplit(realm)
        except ValueError as error:
            raise self._bad_realm(realm, "it is not a URL") from error
        pairs = [*parse_qsl(parts.query, keep_blank_values=True), *query.items()]
        pairs += [("scope", scope) for scope in scopes]
        url = urlunsplit((parts.scheme, parts.netloc, parts.path, urlencode(pairs), ""))
        return self._transport.get(
            url,
            headers={"Accept": "application/json"},
            authorization=credentials.basic() if credentials else None,
            operation=_OPERATION,
        )

    def _credentials_for(self, realm: str) -> Credentials | None:
        """Return the credentials that may go to the realm; raises if it may not be asked."""
        try:
            origin = Origin.of(realm)
        except ValueError as error:
            raise self._bad_realm(realm, "it is not a URL") from error
        same = origin.host == self._home.host or (origin.is_loopback and self._home.is_loopback)
        if same and (origin.scheme == "https" or self._home.scheme == "http"):
            return self._keychain.find(self._registry, self._repository)
        if origin.scheme != "https":
            raise self._bad_realm(realm, "it would have to be asked over http")
        if are_related(origin.host, self._home.host):
            return self._keychain.find(self._registry, self._repository)
        return self._keychain.find(origin.host)

    def _bad_realm(self, realm: str, why: str) -> PermissionDenied:
        return PermissionDenied(
            f"the registry names the token server {ascii(realm)[1:-1][:200]}: {why}",
            operation=_OPERATION,
            object=self._registry,
        )

    def _refused(self, answer: Answer, credentials: Credentials | None) -> BootstreamError:
        error = status_error(answer, operation=_OPERATION, object=self._registry)
        if not 400 <= answer.status < 500 or error.transient:
            return error
        who = "without credentials"
        if credentials is not None:
            who = f"as {credentials.username}" if credentials.username else "with this token"
        return PermissionDenied(
            f"{error.message}, asked {who}",
            operation=_OPERATION,
            object=self._registry,
            remedy=f"log in: docker login {self._registry}, or skopeo login {self._registry}",
        )

    def _parse(self, data: bytes, realm: str) -> _Token:
        try:
            document = json.loads(data)
            token = document.get("token") or document.get("access_token")
        except (ValueError, RecursionError, AttributeError):
            token = None
        if not isinstance(token, str) or not 0 < len(token) <= _MAX_TOKEN or not _is_plain(token):
            raise Corrupt(
                "the token server's answer has no token",
                operation=_OPERATION,
                object=Origin.of(realm).host,
            )
        seconds = document.get("expires_in")
        if not isinstance(seconds, (int, float)) or not 0 < seconds < 1e9:
            seconds = _DEFAULT_SECONDS
        margin = min(_MARGIN_SECONDS, seconds / 4)
        return _Token(_BEARER + token, time.monotonic() + seconds - margin)


def _is_plain(token: str) -> bool:
    return token.isascii() and token.isprintable()


def are_related(one: str, other: str) -> bool:
    """Tell whether two host names belong to one domain, as far as names can tell.

    Their last two labels are equal; where these are a country's registration suffix
    (``co.uk``), three. Addresses are related to themselves only.
    """
    if one == other:
        return True
    if _is_address(one) or _is_address(other):
        return False
    first, second = one.rstrip(".").split("."), other.rstrip(".").split(".")
    shared = len(first[-1]) == 2 and len(first) > 1 and first[-2] in _COUNTRY_SUFFIXES
    count = 3 if shared else 2
    if min(len(first), len(second)) < count:
        return False
    return first[-count:] == second[-count:]


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True
