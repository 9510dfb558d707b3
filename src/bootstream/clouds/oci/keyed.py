"""Principals whose key is given: API keys, session tokens, resource principals 2.2.

None of them asks a server for anything; what is renewed is renewed by somebody else, in
files.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from bootstream.clouds.oci.credentials import Credentials
from bootstream.clouds.oci.files import FileCredentials
from bootstream.clouds.oci.keys import fingerprint, load_private_key, read_file
from bootstream.clouds.oci.profile import Profile, expand
from bootstream.clouds.oci.regions import find_region
from bootstream.clouds.oci.tokens import Token, parse_token
from bootstream.errors import PermissionDenied

_LOG = logging.getLogger(__name__)
_KEY_PART = re.compile(r"[A-Za-z0-9._:-]{1,255}")
_RPST = "OCI_RESOURCE_PRINCIPAL_RPST"
_PEM = "OCI_RESOURCE_PRINCIPAL_PRIVATE_PEM"
_PEM_PASS = "OCI_RESOURCE_PRINCIPAL_PRIVATE_PEM_PASSPHRASE"  # noqa: S105 - a variable's name


class _Static:
    """Credentials that never change: part of the principals below."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    def credentials(self) -> Credentials:
        return self._credentials

    def refresh(self, stale: Credentials) -> Credentials:  # noqa: ARG002 - there is no other
        return self._credentials


class _Keyed:
    """What the principals of this module share."""

    name: str

    def __init__(
        self, source: _Static | FileCredentials, tenancy: str | None, region: str | None
    ) -> None:
        self._source = source
        self._tenancy = tenancy
        self._region = None if not region else find_region(region).identifier

    @property
    def tenancy(self) -> str | None:
        """See ``Principal``."""
        return self._tenancy

    @property
    def region(self) -> str | None:
        """See ``Principal``."""
        return self._region

    def credentials(self) -> Credentials:
        """See ``Principal``."""
        return self._source.credentials()

    def refresh(self, stale: Credentials) -> Credentials:
        """See ``Principal``."""
        return self._source.refresh(stale)


class ApiKeyPrincipal(_Keyed):
    """A user's API key, of a profile. Raises PermissionDenied where it cannot be used."""

    name = "api_key"

    def __init__(self, profile: Profile) -> None:
        tenancy, user, named = profile.require("tenancy", "user", "fingerprint")
        for part, what in ((tenancy, "tenancy"), (user, "user"), (named, "fingerprint")):
            if _KEY_PART.fullmatch(part) is None:
                raise PermissionDenied(
                    f"{what} is not written as one",
                    operation="read profile",
                    object=profile.source,
                    remedy=f"copy {what} from the console's API key page",
                )
        key = _key_of(profile)()
        if fingerprint(key) != named.lower():
            _LOG.warning(
                "%s: the fingerprint is of another key than the key file's; expect 401",
                profile.source,
            )
        credentials = Credentials(f"{tenancy}/{user}/{named}", key)
        super().__init__(_Static(credentials), tenancy, profile.get("region"))


class SessionTokenPrincipal(_Keyed):
    """A session of ``oci session authenticate``: ``security_token_file`` and a key.

    Read anew when either file changes. Raises PermissionDenied where it cannot be used.
    """

    name = "security_token"

    def __init__(self, profile: Profile) -> None:
        token_file = profile.path("security_token_file")
        key = _key_of(profile)
        paths = [token_file]
        if profile.get("key_content") is None:
            paths.append(profile.path("key_file"))
        source = FileCredentials(
            lambda: _pair(_token(token_file), key, profile.source),
            paths,
            name=self.name,
            remedy="oci session refresh, or oci session authenticate",
        )
        tenancy = profile.get("tenancy") or _token(token_file).tenancy
        super().__init__(source, tenancy, profile.get("region"))


class ResourcePrincipal(_Keyed):
    """Resource principal 2.2: what Functions and other services put into the environment.

    ``OCI_RESOURCE_PRINCIPAL_RPST``, ``_PRIVATE_PEM`` and ``_PRIVATE_PEM_PASSPHRASE`` are values, or
    absolute paths of files with them, which are read anew when they change.
    """

    name = "resource_principal"

    def __init__(self, environ: Mapping[str, str]) -> None:
        version = environ.get("OCI_RESOURCE_PRINCIPAL_VERSION") or "none"
        if version != "2.2":
            raise PermissionDenied(
                f"OCI_RESOURCE_PRINCIPAL_VERSION is {version}; 2.2 is supported",
                operation="read environment",
                object=self.name,
                remedy="use a service that offers resource principal 2.2, or another principal",
            )
        for variable in (_RPST, _PEM):
            if not environ.get(variable):
                raise PermissionDenied(
                    f"{variable} is not set",
                    operation="read environment",
                    object=self.name,
                    remedy="the service that runs this sets it: see its documentation",
                )
        values = [environ[_RPST], environ[_PEM], environ.get(_PEM_PASS) or ""]
        paths = [Path(value) for value in values if value.startswith("/")]

        def token() -> Token:
            return _token(Path(values[0])) if values[0].startswith("/") else _parsed(values[0])

        def load() -> Credentials:
            key, phrase = values[1:]
            if phrase.startswith("/"):
                phrase = _text(read_file(Path(phrase), "pass phrase", secret=True))
            if key.startswith("/"):
                pem, source = read_file(Path(key), "private key", secret=True), key
            else:
                pem, source = _inline(key), _PEM
            return _pair(token(), lambda: load_private_key(pem, phrase or None, source=source), "")

        # Values that never change still expire, and that is worth a clear error.
        remedy = "the service that runs this has to renew the token; inline ones are not renewed"
        source = FileCredentials(load, paths, name=self.name, remedy=remedy)
        region = environ.get("OCI_RESOURCE_PRINCIPAL_REGION")
        super().__init__(source, token().tenancy, region)


def _key_of(profile: Profile) -> Callable[[], RSAPrivateKey]:
    """How the key of a profile is loaded; what it is loaded from is checked now."""
    phrase = profile.get("pass_phrase")
    if content := profile.get("key_content"):
        where = f"key_content of {profile.source}"
        return lambda: load_private_key(_inline(content), phrase, source=where)
    text = profile.require("key_file")[0]
    path = expand(text, profile.home)

    def load() -> RSAPrivateKey:
        return load_private_key(read_file(path, "key file", secret=True), phrase, source=str(path))

    return load


def _inline(text: str) -> bytes:
    """PEM in a variable or one line of a file may have newlines written as two characters."""
    return text.replace("\\n", "\n").encode()


def _text(data: bytes) -> str:
    try:
        return data.decode().strip("\r\n")
    except UnicodeDecodeError:
        raise PermissionDenied("the pass phrase is not UTF-8 text", operation="load key") from None


def _token(path: Path) -> Token:
    return _parsed(read_file(path, "token file", secret=True), str(path))


def _parsed(data: str | bytes, source: str = _RPST) -> Token:
    try:
        return parse_token(data)
    except ValueError as error:
        raise PermissionDenied(
            str(error),
            operation="read token",
            object=source,
            remedy="oci session authenticate writes a new one" if source != _RPST else None,
        ) from None


def _pair(token: Token, load_key: Callable[[], RSAPrivateKey], source: str) -> Credentials:
    key = load_key()
    if not token.fits(key):
        raise PermissionDenied(
            "the token was made for another key",
            operation="read token",
            object=source or None,
            remedy="token and key have to be of the same session: make both anew",
        )
    return Credentials(token.key_id, key, token.expires)
