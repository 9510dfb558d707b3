"""What the operations of Object Storage share: where things are kept, who asks, what is named."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from bootstream.localoci.errors import ApiError, invalid

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from bootstream.localoci.buckets import Buckets
    from bootstream.localoci.database import Database
    from bootstream.localoci.http import Request
    from bootstream.localoci.protocols import Caller, Policies
    from bootstream.localoci.store import Bucket, Store
    from bootstream.localoci.work import Work

NAME_LIMIT = 1024  # bytes of an object's name
METADATA_LIMIT = 4000  # bytes of names and values of opc-meta-*
LIST_LIMIT = 1000  # entries of a page, and the default
TIERS = ("Standard", "InfrequentAccess", "Archive")
CONTENT_HEADERS = {
    "contentType": "content-type",
    "contentLanguage": "content-language",
    "contentEncoding": "content-encoding",
    "contentDisposition": "content-disposition",
    "cacheControl": "cache-control",
}
_KEY = re.compile(r"opc-meta-[!#$%&'*+\-.^_`|~0-9a-z]+")
_UNSAFE = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(slots=True)
class Limits:
    """Sizes in bytes at which the service refuses; smaller ones serve tests."""

    put: int = 50 << 30
    part: int = 50 << 30
    item: int = 10 << 40
    parts: int = 10_000


@dataclass(slots=True)
class Service:
    """The parts of one Object Storage."""

    namespace: str
    region: str
    database: Database
    store: Store
    buckets: Buckets
    work: Work
    policies: Policies
    clock: Callable[[], float]
    limits: Limits = field(default_factory=Limits)
    restore_seconds: float = 0.0


@dataclass(slots=True)
class Call:
    """One request to the service, by somebody who is signed in.

    ``policies`` are the service's, or what a pre-authenticated request grants.
    """

    service: Service
    request: Request
    caller: Caller
    parameters: Mapping[str, str]
    policies: Policies

    def permit(self, bucket: str | None, name: str | None, *permissions: str) -> None:
        """Check that the caller has one of the permissions.

        Raises:
            ApiError: the policies' answer to the first of them.
        """
        check = self.policies.check
        first: ApiError | None = None
        for permission in permissions:
            try:
                check(self.caller, permission, bucket, name)
            except ApiError as error:
                first = first or error
            else:
                return
        if first is not None:
            raise first

    def bucket(self, name: str) -> Bucket:
        """The bucket of a name.

        Raises:
            ApiError: 404 ``BucketNotFound``.
        """
        return self.service.buckets.get(name)

    def number(self, name: str, default: int, lowest: int, highest: int) -> int:
        """A whole number of the query.

        Raises:
            ApiError: 400, it is not one, or outside of the bounds.
        """
        text = self.parameters.get(name)
        if text is None:
            return default
        known = len(text) < 20 and text.isascii() and text.isdigit()
        if not (known and lowest <= int(text) <= highest):
            raise invalid(f"{name} is a number from {lowest} to {highest}")
        return int(text)

    def limit(self) -> int:
        """The entries of a page."""
        return self.number("limit", LIST_LIMIT, 1, LIST_LIMIT)

    def text(self, name: str) -> str:
        """A parameter of the query that must be there.

        Raises:
            ApiError: 400, it is not.
        """
        value = self.parameters.get(name)
        if not value:
            raise invalid(f"the parameter {name} is missing", "MissingParameter")
        return value


def decode(escaped: str) -> str:
    """A part of a path, unescaped.

    Raises:
        ApiError: 400, it is not UTF-8.
    """
    if "%" not in escaped and escaped.isascii():
        return escaped
    try:
        return unquote_to_bytes(escaped.encode("latin-1")).decode()
    except UnicodeError:
        raise invalid("the path is not UTF-8", "InvalidObjectName") from None


def object_name(value: object) -> str:
    """Check an object's name.

    Raises:
        ApiError: 400 ``InvalidObjectName``.
    """
    if not isinstance(value, str) or not value:
        raise invalid("an object's name is missing", "InvalidObjectName")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        size = 0
    if not 1 <= size <= NAME_LIMIT:
        raise invalid("an object's name has 1 to 1024 bytes of UTF-8", "InvalidObjectName")
    if "\n" in value or "\r" in value or "\0" in value:
        raise invalid("an object's name has no CR, LF or NUL", "InvalidObjectName")
    return value


def optional_text(body: Mapping[str, object], key: str) -> str | None:
    """A text of a body that may be missing.

    Raises:
        ApiError: 400, it is something else.
    """
    value = body.get(key)
    if value is None:
        return None
    if not isinstance(value, str) or any("\ud800" <= letter <= "\udfff" for letter in value):
        raise invalid(f"{key} is not a text")
    return value


def metadata(given: Mapping[str, object]) -> dict[str, str]:
    """The ``opc-meta-*`` among headers, or of a body's metadata.

    Raises:
        ApiError: 400 ``InvalidMetadata``: too much of it, or not for a header.
    """
    result: dict[str, str] = {}
    for name, value in given.items():
        key = name.lower()
        if key.startswith("opc-meta-"):
            if not isinstance(value, str) or _UNSAFE.search(value) or not _KEY.fullmatch(key):
                raise invalid(f"the metadata {name!r} cannot be a header", "InvalidMetadata")
            result[key] = value
    if sum(len(name) + len(value) for name, value in result.items()) > METADATA_LIMIT:
        raise invalid(f"the metadata is over {METADATA_LIMIT} bytes", "InvalidMetadata")
    return result


def header_value(value: object, name: str) -> str:
    """A value that can be sent in a header.

    Raises:
        ApiError: 400, it cannot.
    """
    if not isinstance(value, str) or _UNSAFE.search(value):
        raise invalid(f"{name} cannot be a header")
    return value


def tier(value: object) -> str:
    """A storage tier.

    Raises:
        ApiError: 400, there is none of that name.
    """
    for known in TIERS:
        if isinstance(value, str) and value.lower() == known.lower():
            return known
    raise invalid(f"the storage tier is one of {', '.join(TIERS)}", "InvalidStorageTier")


def timestamp(seconds: float) -> str:
    """A time as JSON has it: RFC 3339, UTC, milliseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"
