"""Access tokens of Google's, which google-auth finds and renews.

google-auth's requests go through our own transport, with its proxies and certificates.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bootstream.errors import BootstreamError, InvalidInput, PermissionDenied, Unavailable
from bootstream.images.credentials import Credentials
from bootstream.images.transport import Transport

_SCOPES = ("https://www.googleapis.com/auth/cloud-platform",)
_USER = "oauth2accesstoken"


class GoogleTokens:
    """Access tokens of google-auth's credentials, refreshed as they say. Thread safe.

    Args:
        google: the credentials.
        transport: moves google-auth's requests.
    """

    def __init__(self, google: Any, transport: Transport) -> None:
        self._google = google
        self._request = _GoogleRequest(transport)
        self._lock = threading.Lock()

    @property
    def account(self) -> str | None:
        """The service account's address, where the credentials have one."""
        found = getattr(self._google, "service_account_email", None)
        return found if isinstance(found, str) else None

    def token(self, *, refused: str | None = None) -> str:
        """Return a token; another one than that which was refused, if there is another.

        Raises:
            PermissionDenied: the credentials give none.
            Unavailable: Google cannot be asked.
        """
        from google.auth.exceptions import (  # noqa: PLC0415 - optional
            GoogleAuthError,
            TransportError,
        )

        with self._lock:
            try:
                if not self._google.valid or self._google.token == refused:
                    self._google.refresh(self._request)
            except TransportError as error:
                raise Unavailable(
                    "no answer from Google's token service", operation="sign in", object="Google"
                ) from error
            except GoogleAuthError as error:
                raise PermissionDenied(
                    "Google gives no access token to these credentials",
                    operation="sign in",
                    object="Google",
                    remedy="gcloud auth application-default login, or set "
                    "GOOGLE_APPLICATION_CREDENTIALS to a key that is still good",
                ) from error
            return str(self._google.token)


class _GoogleRequest:
    """google-auth's ``Request``: callable, through our transport, its proxies and certificates."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def __call__(
        self,
        url: str,
        method: str = "GET",
        body: bytes | str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
        **_: object,
    ) -> _GoogleResponse:
        from google.auth.exceptions import TransportError  # noqa: PLC0415 - optional

        del timeout  # the transport has its own
        data = body.encode() if isinstance(body, str) else body
        try:
            with self._transport.send(
                method, url, headers=dict(headers or {}), body=data, operation="sign in"
            ) as answer:
                names = ("content-type", "metadata-flavor", "date")
                found = {name: value for name in names if (value := answer.header(name))}
                return _GoogleResponse(answer.status, found, answer.read_all(1 << 20))
        except BootstreamError as error:
            raise _untyped(TransportError)(str(error)) from error


class _GoogleResponse:
    """google-auth's ``Response``."""

    def __init__(self, status: int, headers: Mapping[str, str], data: bytes) -> None:
        self.status = status
        self.headers = headers
        self.data = data


class GoogleCredentials:
    """User and token; asked again, the token was refused. See ``CredentialSource``."""

    def __init__(self, tokens: GoogleTokens) -> None:
        self._tokens = tokens
        self._last: str | None = None

    def find(self, registry: str, repository: str | None = None) -> Credentials | None:
        """Return user and token."""
        del registry, repository
        self._last = self._tokens.token(refused=self._last)
        return Credentials(_USER, self._last)


class GoogleSigner:
    """Signs requests to the API in; see ``bootstream.registry.api.Signer``."""

    def __init__(self, tokens: GoogleTokens) -> None:
        self._tokens = tokens

    def headers(self, method: str, url: str, body: bytes | None) -> tuple[dict[str, str], object]:
        """Return the token's header."""
        del method, url, body
        token = self._tokens.token()
        return {"authorization": f"Bearer {token}"}, token

    def renew(self, used: object) -> bool:
        """Get another token."""
        assert isinstance(used, str)
        return self._tokens.token(refused=used) != used


def find_credentials(file: Path | None, transport: Transport) -> Any:
    """Return google-auth's credentials: those in a file, or the host's.

    Raises:
        InvalidInput: google-auth is not installed.
        PermissionDenied: there are none that can be used.
    """
    try:
        import google.auth  # noqa: PLC0415 - optional
        from google.auth.exceptions import (  # noqa: PLC0415
            DefaultCredentialsError,
            GoogleAuthError,
        )
    except ImportError:
        raise InvalidInput(
            "Google's registry needs google-auth, which is not installed",
            operation="open registry",
            object="GCP_ARTIFACTS",
            remedy="pip install 'bootstream[gcp]'",
        ) from None
    library: Any = google.auth
    try:
        if file is not None:
            # It warns of files from strangers, for the URLs in them. This one is the user's own.
            with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
                found = library.load_credentials_from_file(str(file), scopes=_SCOPES)
        else:
            found = library.default(scopes=_SCOPES, request=_GoogleRequest(transport))
        return found[0]
    except (DefaultCredentialsError, GoogleAuthError, ValueError) as error:
        # What it says may quote the key.
        raise PermissionDenied(
            "no credentials of Google's can be used",
            operation="open registry",
            object=str(file) if file else "GOOGLE_APPLICATION_CREDENTIALS",
            remedy="gcloud auth application-default login, set GOOGLE_APPLICATION_CREDENTIALS, or "
            "give the host a service account",
        ) from error


def _untyped(value: Any) -> Any:
    """Return a thing of a library without types as one that may be called."""
    return value
