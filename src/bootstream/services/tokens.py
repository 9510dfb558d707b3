"""Bearer tokens (RFC 6750) with scopes, kept as digests in a file that may change at any time.

::

    {"tokens": [{"name": "ci", "sha256": "…", "scopes": ["templates:read"], "expires": "…"}]}

A token is 256 random bits, so a plain sha256 of it cannot be searched for. To rotate, add the
new one, hand it out, and take the old one away: the file is read again when it changed. A file
that cannot be read any more leaves the last good one in force, and the log says so.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import logging
import os
import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bootstream.errors import AlreadyExists, BootstreamError, InvalidInput
from bootstream.services.problems import Forbidden, Unauthorized

log = logging.getLogger("bootstream.services")

SCOPES = (
    "templates:read",
    "templates:write",
    "templates:delete",
    "sandboxes:read",
    "sandboxes:write",
    "metrics",
    "*",
)
PREFIX = "bst_"
_MOST_BYTES = 1 << 20
_LOOK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Token:
    """What is known of a token: not itself."""

    name: str
    sha256: str
    scopes: frozenset[str]
    expires: datetime | None = None


ANYBODY = Token("anybody", "", frozenset({"*"}))
"""Who asks a service without tokens, which listens on loopback only."""


def parse_tokens(data: bytes, name: str) -> dict[str, Token]:
    """Return tokens by their digest. Raises InvalidInput naming what is wrong."""
    try:
        tokens = [_parse(each) for each in json.loads(data)["tokens"]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidInput(
            f"it is not a file of tokens: {error!s:.100}",
            operation="read tokens",
            object=name,
            remedy="'bootstream token' writes such files",
        ) from error
    return {token.sha256: token for token in tokens}


def _parse(entry: dict[str, Any]) -> Token:
    expires = entry.get("expires")
    when = None if expires is None else datetime.fromisoformat(str(expires))
    if when is not None and when.tzinfo is None:
        raise ValueError("'expires' has no time zone")
    digest = str(entry["sha256"])
    if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise ValueError("'sha256' is not 64 hex digits")
    scopes = frozenset(str(scope) for scope in entry["scopes"])
    if scopes - set(SCOPES):
        raise ValueError(f"there is no scope {min(scopes - set(SCOPES))[:40]!r}")
    return Token(str(entry["name"])[:100], digest, scopes, when)


class Tokens:
    """The tokens of a file, read again when it changes. Thread safe.

    Raises:
        InvalidInput: the file cannot be used at the start.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._looked = time.monotonic()
        self._mark, self._tokens = self._read()

    def _read(self) -> tuple[tuple[int, int, int], dict[str, Token]]:
        try:
            with self._path.open("rb") as file:
                status = os.fstat(file.fileno())
                data = file.read(_MOST_BYTES)
        except OSError as error:
            raise InvalidInput(
                error.strerror or str(error),
                operation="read tokens",
                object=str(self._path),
                remedy="make it with 'bootstream token'",
            ) from error
        if status.st_mode & 0o007:
            raise InvalidInput(
                "others may read it",
                operation="read tokens",
                object=str(self._path),
                remedy=f"chmod 0600 {self._path}",
            )
        mark = (status.st_ino, status.st_mtime_ns, status.st_size)
        return mark, parse_tokens(data, str(self._path))

    def _refresh(self) -> None:
        now = time.monotonic()
        with self._lock:
            if now - self._looked < _LOOK_SECONDS:
                return
            self._looked = now
            try:
                status = self._path.stat()
                if (status.st_ino, status.st_mtime_ns, status.st_size) == self._mark:
                    return
                self._mark, self._tokens = self._read()
            except (OSError, BootstreamError) as error:
                log.warning("tokens stay as they were: %s", error)
                return
        log.info("tokens read again: %d", len(self._tokens))

    def check(self, authorization: str | None, scope: str) -> Token:
        """Return the token of an Authorization header that may do what ``scope`` names.

        Raises:
            Unauthorized: there is none, it is unknown, or it expired.
            Forbidden: it has not the scope.
        """
        self._refresh()
        scheme, _, value = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not value.strip():
            raise Unauthorized(
                "a token is needed",
                operation="sign in",
                remedy="send 'Authorization: Bearer TOKEN'",
            )
        digest = hashlib.sha256(value.strip().encode("utf-8", "replace")).hexdigest()
        token = self._tokens.get(digest)
        if token is None or not hmac.compare_digest(token.sha256, digest):
            raise Unauthorized("this token is unknown", operation="sign in")
        if token.expires is not None and token.expires <= datetime.now(UTC):
            raise Unauthorized("this token has expired", operation="sign in", object=token.name)
        if scope not in token.scopes and "*" not in token.scopes:
            raise Forbidden(
                f"this token has not the scope {scope}",
                operation="sign in",
                object=token.name,
                remedy=f"it has: {', '.join(sorted(token.scopes)) or 'none'}",
            )
        return token


def add_token(
    path: Path, name: str, scopes: Sequence[str], *, expires: datetime | None = None
) -> str:
    """Make a token, add its digest to a file, which is made if missing, and return it.

    Raises:
        AlreadyExists: there is one of this name.
        InvalidInput: a scope does not exist, or the file is not one of tokens.
    """
    token = PREFIX + secrets.token_urlsafe(32)
    entry: dict[str, object] = {
        "name": name,
        "sha256": hashlib.sha256(token.encode()).hexdigest(),
        "scopes": sorted(set(scopes)),
    }
    if expires is not None:
        entry["expires"] = expires.isoformat()
    parse_tokens(json.dumps({"tokens": [entry]}).encode(), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(path.with_name(path.name + ".lock"), os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        document: dict[str, list[object]] = {"tokens": []}
        if path.exists():
            data = path.read_bytes()
            if any(each.name == name for each in parse_tokens(data, str(path)).values()):
                raise AlreadyExists(
                    "there is a token of this name", operation="make token", object=name
                )
            document = json.loads(data)
        document["tokens"].append(entry)
        _replace(path, json.dumps(document, indent=2).encode() + b"\n")
    finally:
        os.close(lock)
    return token


def _replace(path: Path, data: bytes) -> None:
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
