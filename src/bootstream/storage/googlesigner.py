"""Signs requests to Google's XML API that obstore has no operation for: with a bearer token.

The token is found, and renewed, by google-auth, which is in the extra ``gcp``. Where it is
not installed, or finds no credentials, there is nothing to sign with.
"""

from __future__ import annotations

import json
import os
import threading
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bootstream.errors import PermissionDenied, Unavailable
from bootstream.proxies import NO_PROXIES, Proxies
from bootstream.storage.s3requests import Unsigned, http_pool

_SCOPES = ("https://www.googleapis.com/auth/devstorage.read_write",)
_LATER = object()


class GoogleSigner:
    """A ``Signer``. Safe to use from several threads.

    Args:
        credentials: a file as GOOGLE_APPLICATION_CREDENTIALS names it; None looks where
            Google's tools look.
        key: the JSON text of a service account's key instead.
        anonymous: sign nothing.
        ca_file: PEM certificates to trust instead of the public ones.
        proxies: the proxies of this process.
    """

    def __init__(
        self,
        *,
        credentials: str | os.PathLike[str] | None = None,
        key: str | None = None,
        anonymous: bool = False,
        ca_file: str | None = None,
        proxies: Proxies = NO_PROXIES,
    ) -> None:
        self._file = credentials
        self._key = key
        self._anonymous = anonymous
        self._ca_file = ca_file
        self._proxies = proxies
        self._lock = threading.Lock()
        self._google: Any = _LATER

    def __call__(self, request: Unsigned, /) -> dict[str, str] | None:
        """Return the headers with a token that is good now, None where there is none.

        Raises:
            PermissionDenied: Google gives these credentials no token.
            Unavailable: Google cannot be asked for one.
        """
        headers = dict(request.headers)
        with self._lock:
            if self._google is _LATER and not self._anonymous:
                self._anonymous = self._without_tokens()
            if self._anonymous:
                return headers
            if self._google is _LATER:
                self._google = self._find()
            if self._google is None:
                return None
            if not self._google.valid:
                self._renew()
            headers["authorization"] = f"Bearer {self._google.token}"
        return headers

    def _without_tokens(self) -> bool:
        """Tell whether the key says ``disable_oauth``, obstore's own word for emulators."""
        try:
            text = self._key
            if text is None and self._file is not None:
                text = Path(self._file).read_text()
            found = json.loads(text or "null")
        except (OSError, ValueError):
            return False
        return isinstance(found, dict) and found.get("disable_oauth") is True

    def _find(self) -> Any:
        try:
            import google.auth as library  # noqa: PLC0415 - optional
            from google.auth.exceptions import GoogleAuthError  # noqa: PLC0415
            from google.oauth2 import service_account  # noqa: PLC0415
        except ImportError:
            return None
        auth: Any = library  # it has no types
        keys: Any = service_account.Credentials
        try:
            if self._key is not None:
                found = keys.from_service_account_info(json.loads(self._key), scopes=_SCOPES)
                return _signing_itself(found)
            if self._file is None:
                return _signing_itself(auth.default(scopes=_SCOPES, request=self._transport())[0])
            with warnings.catch_warnings():
                # It warns of files from strangers. This one is the operator's own, of any kind.
                warnings.simplefilter("ignore", DeprecationWarning)
                found = auth.load_credentials_from_file(os.fspath(self._file), scopes=_SCOPES)[0]
                return _signing_itself(found)
        except (GoogleAuthError, ValueError, OSError):
            return None

    def _renew(self) -> None:
        from google.auth.exceptions import (  # noqa: PLC0415 - optional
            GoogleAuthError,
            TransportError,
        )

        try:
            self._google.refresh(self._transport())
        except TransportError as error:
            raise Unavailable(
                "no answer from Google's token service", operation="sign in", object="Google"
            ) from error
        except (GoogleAuthError, ValueError) as error:
            # What it says may quote the key: it is the cause, not the message.
            raise PermissionDenied(
                "Google gives these credentials no access token",
                operation="sign in",
                object="Google",
                remedy="set GOOGLE_APPLICATION_CREDENTIALS to a key that is still good, or run "
                "gcloud auth application-default login",
            ) from error

    def _transport(self) -> Callable[..., Any]:
        """Return google-auth's ``Request``: each URL through the proxy that it has."""

        def ask(
            url: str,
            method: str = "GET",
            body: bytes | None = None,
            headers: Mapping[str, str] | None = None,
            timeout: float | None = None,
            **_: object,
        ) -> Any:
            from google.auth.transport import urllib3 as library  # noqa: PLC0415 - optional

            request: Any = library.Request
            with http_pool(url, self._ca_file, self._proxies) as pool:
                return request(pool)(url, method, body, headers, timeout or 60)

        return ask


def _signing_itself(found: Any) -> Any:
    """Return credentials whose key signs tokens here, as obstore does, if they have a key.

    Google's services take such a token as it is; no token service has to be asked.
    """
    signing = getattr(found, "with_always_use_jwt_access", None)
    return found if signing is None else signing(True)
