"""Passwords of Amazon's registry: user ``AWS`` and a token that lasts some hours.

ECR's ``GetAuthorizationToken`` answers ``base64(AWS:TOKEN)``, when it expires (twelve hours
later), and the registry's host. Services that stand in for ECR may tell a time of expiry that
is long past, so a token's age counts as well.
"""

from __future__ import annotations

import base64
import binascii
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from bootstream.errors import Corrupt
from bootstream.images.credentials import Credentials
from bootstream.registry.awserrors import mapped

_LONGEST = 6 * 3600.0
_AHEAD = 1800.0


@dataclass(frozen=True, slots=True)
class EcrToken:
    """A password, the host it is for, and when to get another, by the given clock."""

    credentials: Credentials = field(repr=False)
    host: str
    renew: float


class EcrTokens:
    """The token of one registry, renewed ahead of its end. Thread safe.

    Args:
        client: boto3's of ECR.
        clock: seconds since 1970.
    """

    def __init__(self, client: Any, *, clock: Callable[[], float] = time.time) -> None:
        self._client = client
        self._clock = clock
        self._lock = threading.Lock()
        self._token: EcrToken | None = None

    def token(self, *, refused: Credentials | None = None) -> EcrToken:
        """Return the token; another one than that which the registry refused.

        Raises:
            PermissionDenied: nobody is signed in, or it is not allowed.
            Throttled, Unavailable: the service cannot be asked.
        """
        with self._lock:
            kept = self._token
            stale = kept is not None and kept.credentials == refused
            if kept is None or stale or not 0 <= kept.renew - self._clock() <= _LONGEST:
                kept = self._token = self._fetch()
            return kept

    def _fetch(self) -> EcrToken:
        with mapped("sign in", "Amazon ECR", needs="ecr:GetAuthorizationToken"):
            answer = self._client.get_authorization_token()
        try:
            data = answer["authorizationData"][0]
            text = base64.b64decode(data["authorizationToken"], validate=True).decode()
            user, colon, password = text.partition(":")
            host = urlsplit(data["proxyEndpoint"]).netloc
            expires = data["expiresAt"].timestamp()
        except (KeyError, IndexError, AttributeError, TypeError, ValueError, binascii.Error):
            colon = host = ""
        if not colon or not host or not password:
            raise Corrupt("the answer has no token", operation="sign in", object="Amazon ECR")
        now = self._clock()
        renew = now + _LONGEST
        if expires > now:
            renew = min(renew, max(now + 60.0, expires - _AHEAD))
        return EcrToken(Credentials(user, password), host, renew)


class EcrCredentials:
    """What one client signs in with; asked again, it was refused. See ``CredentialSource``."""

    def __init__(self, tokens: EcrTokens) -> None:
        self._tokens = tokens
        self._last: Credentials | None = None

    def find(self, registry: str, repository: str | None = None) -> Credentials | None:
        """Return user and token."""
        del registry, repository
        self._last = self._tokens.token(refused=self._last).credentials
        return self._last
