"""Who signs in where, as other container tools keep it.

Formats: Docker's ``config.json`` (``auths``, ``credHelpers``, ``credsStore``) and
``containers-auth.json(5)``, whose keys may also name a repository or a part of it;
the longest key that fits wins. Helpers are programs ``docker-credential-NAME`` that
take a registry on standard input and answer with JSON.

Where no file is named, the usual ones are asked in turn, as the container tools do:
what ``podman login`` and ``skopeo login`` write, then what ``docker login`` writes.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from bootstream.errors import InvalidInput, PermissionDenied
from bootstream.images.reference import DOCKER_HUB

_MAX_FILE = 4 << 20
_HELPER_SECONDS = 30
_HELPER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_HUB_KEY = "https://index.docker.io/v1/"
_HUB_KEYS = ("index.docker.io", "registry-1.docker.io", "registry.hub.docker.com")
_NOT_FOUND = "credentials not found"
_TOKEN_USER = "<token>"  # noqa: S105 - the protocol's mark for an identity token


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user and a password, or an identity token to exchange, or a finished bearer token."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)

    def basic(self) -> str | None:
        """Return the value of a basic Authorization header (RFC 7617), if there is a user."""
        if not self.username:
            return None
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


class CredentialSource(Protocol):
    """Where credentials are looked up. Safe to use from several threads."""

    def find(self, registry: str, repository: str | None = None) -> Credentials | None:
        """Return what is kept for a registry, or for a repository in it; None if nothing.

        Raises:
            InvalidInput: a file is not there though it was named, or is malformed.
            PermissionDenied: it may not be read, or a helper failed.
        """
        ...


Keychain = CredentialSource
"""The same, by the name that files of credentials go by."""


@runtime_checkable
class BearerSource(Protocol):
    """Who has tokens for a registry by a way of its own, such as a signed request to a cloud.

    They are sent to the registry's own origin alone. Safe to use from several threads.
    """

    def token(self, *, refused: str | None) -> str:
        """Return a bearer token.

        Args:
            refused: a token of this source that the registry answered with 401; the one
                returned should be another. The same one again ends the attempt.

        Raises:
            PermissionDenied, Throttled, Unavailable: there is none to be had.
        """
        ...


class NoCredentials:
    """The ``CredentialSource`` that has none: everything is asked for anonymously."""

    def find(self, registry: str, repository: str | None = None) -> Credentials | None:
        """See ``CredentialSource``."""
        del registry, repository
        return None


def open_keychain(path: Path | None) -> CredentialSource:
    """Return the credentials in a file, which must exist, or in the usual ones if None."""
    if path is not None:
        return CredentialFile(path)
    user, home = os.getuid(), Path("~").expanduser()
    usual = (
        Path(f"/run/user/{user}/containers/auth.json"),
        Path(f"/run/containers/{user}/auth.json"),
        home / ".config/containers/auth.json",
        home / ".docker/config.json",
    )
    return _Files([CredentialFile(file, required=False) for file in usual])


class _Files:
    """Several files; the first that has something wins."""

    def __init__(self, files: Sequence[CredentialSource]) -> None:
        self._files = files

    def find(self, registry: str, repository: str | None = None) -> Credentials | None:
        """See ``CredentialSource``."""
        for file in self._files:
            found = file.find(registry, repository)
            if found is not None:
                return found
        return None


class CredentialFile:
    """The credentials in one file. Reads it when first asked.

    Args:
        path: the file to read.
        required: whether it is an error if there is no such file, or this user may not
            read it; otherwise that means no credentials.
    """

    def __init__(self, path: Path, *, required: bool = True) -> None:
        self._required = required
        self._path = path
        self._document: Mapping[str, Any] | None = None

    def find(self, registry: str, repository: str | None = None) -> Credentials | None:
        """See ``CredentialSource``."""
        document = self._load()
        helper = self._helper(document, registry)
        if helper is not None:
            found = self._ask(helper, registry)
            if found is not None:
                return found
        auths = _mapping(document.get("auths"))
        normalized = {_normalize(key): value for key, value in reversed(list(auths.items()))}
        normalized |= {key: auths[key] for key in auths if key in _keys(registry, repository)}
        for key in _keys(registry, repository):
            if key in normalized:
                found = self._entry(_mapping(normalized[key]), key)
                if found is not None:
                    return found
        return None

    def _load(self) -> Mapping[str, Any]:
        if self._document is None:
            self._document = self._read()
        return self._document

    def _read(self) -> Mapping[str, Any]:
        try:
            with self._path.open("rb") as file:
                data = file.read(_MAX_FILE)
        except (FileNotFoundError, NotADirectoryError) as error:
            if not self._required:
                return {}
            raise self._invalid("there is no such file") from error
        except PermissionError as error:
            if not self._required:
                return {}
            raise PermissionDenied(
                "this user may not read it",
                operation="read credentials",
                object=str(self._path),
            ) from error
        except OSError as error:
            raise self._invalid(error.strerror or str(error)) from error
        if not data.strip():
            return {}
        try:
            document = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise self._invalid("it is not valid JSON") from error
        if not isinstance(document, dict):
            raise self._invalid("it is not a JSON object")
        return document

    def _entry(self, entry: Mapping[str, Any], key: str) -> Credentials | None:
        identity = _text(entry.get("identitytoken"))
        registry_token = _text(entry.get("registrytoken"))
        username, password = _text(entry.get("username")), _text(entry.get("password"))
        encoded = _text(entry.get("auth"))
        if encoded:
            try:
                decoded = base64.b64decode(encoded, validate=False).decode().rstrip("\0")
            except (binascii.Error, ValueError) as error:
                raise self._invalid(f"the entry for {key} has no valid auth field") from error
            username, colon, password = decoded.partition(":")
            if not colon:
                raise self._invalid(f"the entry for {key} has no valid auth field")
        if not (username or identity or registry_token):
            return None
        return Credentials(username, password, identity, registry_token)

    @staticmethod
    def _helper(document: Mapping[str, Any], registry: str) -> str | None:
        helpers = _mapping(document.get("credHelpers"))
        for key in _keys(registry, None):
            if isinstance(helpers.get(key), str):
                return str(helpers[key])
        store = document.get("credsStore")
        return store if isinstance(store, str) and store else None

    def _ask(self, name: str, registry: str) -> Credentials | None:
        if not _HELPER_NAME.fullmatch(name):
            raise self._invalid(f"{ascii(name)[:80]} is not the name of a credential helper")
        program = f"docker-credential-{name}"
        server = _HUB_KEY if registry == DOCKER_HUB else registry
        try:
            result = subprocess.run(
                [program, "get"],
                input=server.encode(),
                capture_output=True,
                check=False,
                timeout=_HELPER_SECONDS,
            )
        except FileNotFoundError as error:
            raise InvalidInput(
                f"it names the credential helper {program}, which is not installed",
                operation="read credentials",
                object=str(self._path),
                remedy=f"install {program}, or log in with a file of its own "
                "(skopeo login --authfile FILE, REGISTRY_AUTH_FILE=FILE)",
            ) from error
        except (OSError, subprocess.TimeoutExpired) as error:
            raise self._failed(program, registry, type(error).__name__) from error
        if result.returncode != 0:
            said = (result.stdout or result.stderr).decode("utf-8", "replace").strip()
            if _NOT_FOUND in said.lower():
                return None
            raise self._failed(program, registry, ascii(said)[1:-1][:200])
        try:
            answer = _mapping(json.loads(result.stdout))
        except (ValueError, RecursionError) as error:
            raise self._failed(program, registry, "it answered no JSON") from error
        username, secret = _text(answer.get("Username")), _text(answer.get("Secret"))
        if username == _TOKEN_USER:
            return Credentials(identity_token=secret)
        return Credentials(username, secret) if username else None

    @staticmethod
    def _failed(program: str, registry: str, why: str) -> PermissionDenied:
        return PermissionDenied(
            f"the credential helper {program} failed: {why}",
            operation="read credentials",
            object=registry,
            remedy=f"try it: echo {registry} | {program} get",
        )

    def _invalid(self, problem: str) -> InvalidInput:
        return InvalidInput(
            problem,
            operation="read credentials",
            object=str(self._path),
            remedy="write it with skopeo login or docker login",
        )


def _keys(registry: str, repository: str | None) -> Iterator[str]:
    """Yield the keys under which credentials may be kept, the most specific first."""
    parts = repository.split("/") if repository else []
    for count in range(len(parts), 0, -1):
        yield f"{registry}/{'/'.join(parts[:count])}"
    yield registry
    if registry == DOCKER_HUB:
        yield _HUB_KEY
        yield from _HUB_KEYS


def _normalize(key: str) -> str:
    """Docker's older keys are URLs: ``https://HOST/v1/`` stands for ``HOST``."""
    plain = key
    for scheme in ("https://", "http://"):
        if plain.startswith(scheme):
            return plain.removeprefix(scheme).partition("/")[0]
    return plain.rstrip("/")


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    """Return text that can be sent; JSON can also hold halves of surrogate pairs."""
    if not isinstance(value, str) or any("\ud800" <= c <= "\udfff" for c in value):
        return ""
    return value
