"""Everything that can go wrong with a request, in the package's own errors. The one place.

Answers that are not a success come as ``{"code", "message"}`` (Object Storage API, "API
Errors"). One of them says two things: 404 ``BucketNotFound`` is a missing bucket, and also
what a principal is told that may not see it. Which one, ``client`` finds out by asking for
the bucket itself; here the two cases get their words.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from bootstream.errors import (
    AlreadyExists,
    BootstreamError,
    BucketNotFound,
    InvalidInput,
    NotFound,
    ObjectNotFound,
    PermissionDenied,
    PreconditionFailed,
    Throttled,
    Unavailable,
)

ALLOWED_SKEW = 300.0  # seconds, between a request's Date and the service's clock
_LONGEST_WAIT = 3600.0
_MESSAGE = 300


class Interrupted(Unavailable):
    """A body broke off; ``received`` of its bytes are in the buffer, of the version ``etag``.

    ``md5`` is the object's checksum as the answer's head has it, None where it has none.
    """

    received: int = 0
    etag: str = ""
    md5: str | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Where and as whom requests go, for messages and remedies."""

    bucket: str
    namespace: str
    principal: str

    @property
    def who(self) -> str:
        """The subject of a policy statement for this kind of principal."""
        if self.principal in ("instance_principal", "resource_principal"):
            return "dynamic-group <group>"
        if self.principal == "oke_workload_identity":
            return "any-user"
        return "group <group>"


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer that is no success, taken apart."""

    status: int
    code: str
    message: str
    headers: Mapping[str, str]
    foreign: bool  # not in the service's own form: a proxy's page, say

    @property
    def request_id(self) -> str | None:
        """The service's id of the request."""
        return self.headers.get("opc-request-id")


def parse_refusal(status: int, headers: Mapping[str, str], body: bytes) -> Refusal:
    """Take an answer apart; never raises, whatever the body is."""
    code = message = ""
    foreign = bool(body)
    try:
        found = json.loads(body) if body else None
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, dict) and isinstance(found.get("code"), str):
        foreign = False
        code = _printable(found["code"])
        message = _printable(found.get("message") or "")
    return Refusal(status, code, message, headers, foreign)


def error_for(
    refusal: Refusal,
    *,
    operation: str,
    object: str,
    place: Place,
    bucket_is_there: bool = False,
    of_bucket: bool = False,
) -> BootstreamError:
    """Return what to raise.

    Args:
        refusal: the answer.
        operation: what was asked.
        object: the name of what it was asked of.
        place: bucket and principal.
        bucket_is_there: the bucket was seen, so that its "absence" is a missing permission.
        of_bucket: it was asked of the bucket itself, which another statement grants than
            what is asked of its objects.
    """
    policy = bucket_policy(place) if of_bucket else objects_policy(place)
    error = _classify(refusal, object, place, policy, bucket_is_there=bucket_is_there)
    error.operation = operation
    error.object = error.object or object
    error.request_id = refusal.request_id
    return error


def _classify(
    refusal: Refusal, object: str, place: Place, policy: str, *, bucket_is_there: bool
) -> BootstreamError:
    status, code = refusal.status, refusal.code
    said = _said(refusal)
    if status < 400 or status == 407 or (refusal.foreign and status in (400, 401, 403, 405, 511)):
        return Unavailable(
            f"something between us and the storage answers: {said}",
            transient=False,
            remedy="check OCI_OBJECT_STORAGE_ENDPOINT, and proxies on the way",
        )
    if status == 401:
        return _not_authenticated(refusal, place)
    if status == 404:
        return _missing(refusal, object, place, policy, bucket_is_there=bucket_is_there)
    if status == 403:
        return PermissionDenied(f"it is not allowed: {said}", remedy=policy)
    if status == 409:
        return _conflict(refusal)
    if status == 412:
        if code == "IfNoneMatchFailed":
            return AlreadyExists("it exists already")
        return PreconditionFailed("it is not, or no longer, the version that was expected")
    if status == 429:
        return Throttled(f"too many requests: {said}", retry_after=retry_after(refusal.headers))
    if status in (408, 425) or status >= 500:
        kind = Throttled if code in ("SlowDown", "TooManyRequests") else Unavailable
        return kind(
            f"the storage has trouble: {said}",
            retry_after=retry_after(refusal.headers),
            transient=status != 501,
        )
    if status == 400 and code.startswith("UnmatchedContent"):
        return Unavailable("its bytes were damaged on their way; the storage refused them")
    if status == 413:
        return InvalidInput(f"it is too large for one request: {said}")
    return InvalidInput(f"the storage refuses the request: {said}")


def _not_authenticated(refusal: Refusal, place: Place) -> BootstreamError:
    skew = clock_skew(refusal.headers)
    if skew is not None and abs(skew) > ALLOWED_SKEW:
        side = "ahead of" if skew > 0 else "behind"
        return PermissionDenied(
            f"the signature was refused: this host's clock is {abs(skew):.0f} s {side} the "
            f"storage's; {ALLOWED_SKEW:.0f} s are allowed",
            remedy="set this host's clock, e.g. by running chrony or systemd-timesyncd",
        )
    return PermissionDenied(
        f"the signature was refused, also with fresh credentials: {_said(refusal)}",
        remedy=f"check the key, user, fingerprint and tenancy of the {place.principal} principal",
    )


def _missing(
    refusal: Refusal, object: str, place: Place, policy: str, *, bucket_is_there: bool
) -> BootstreamError:
    code = refusal.code
    if code in ("ObjectNotFound", "NoSuchUpload", "UploadNotFound"):
        return ObjectNotFound("it does not exist")
    if code == "NamespaceNotFound":
        return BucketNotFound(
            "there is no such namespace, or this principal may not see it",
            object=f"{place.namespace}/{place.bucket}",
            remedy="check OCI_NAMESPACE, or leave it unset to have it looked up",
        )
    if code == "BucketNotFound" or "NotAuthorized" in code:
        if bucket_is_there:
            return PermissionDenied(
                "the bucket is there, but this principal may not do this in it",
                remedy=policy,
            )
        return BucketNotFound(
            "there is no such bucket, or this principal may not see it",
            object=f"{place.namespace}/{place.bucket}" + (f" ({object})" if object else ""),
            remedy=f"check the bucket's name, namespace and region; {policy}",
        )
    if not code and not refusal.foreign and refusal.request_id:
        return ObjectNotFound("it does not exist")  # an answer to HEAD, which says no more
    if refusal.foreign or not code:
        return Unavailable(
            f"nothing that speaks like Object Storage answers: {_said(refusal)}",
            transient=False,
            remedy="check OCI_OBJECT_STORAGE_ENDPOINT and OCI_REGION",
        )
    return NotFound(f"it does not exist: {_said(refusal)}")


def _conflict(refusal: Refusal) -> BootstreamError:
    code = refusal.code
    if code == "NotRestored" or "archiv" in refusal.message.lower():
        return Unavailable(
            "it is archived, and must be restored before it can be read",
            transient=False,
            remedy="oci os object restore --bucket-name <bucket> --name <object>, and wait",
        )
    if code == "ConcurrentObjectUpdate":
        return Unavailable("others are writing it at this moment")
    if code == "IncorrectState":
        return Unavailable(f"it is in a state that passes: {_said(refusal)}")
    return InvalidInput(f"the storage refuses the request: {_said(refusal)}")


def objects_policy(place: Place) -> str:
    """Say which statement grants working with the bucket's objects."""
    permissions = ", ".join(
        f"request.permission='{name}'"
        for name in (
            "OBJECT_INSPECT",
            "OBJECT_READ",
            "OBJECT_CREATE",
            "OBJECT_OVERWRITE",
            "OBJECT_DELETE",
        )
    )
    return (
        f"add the policy: Allow {place.who} to manage objects in compartment <compartment> "
        f"where all {{target.bucket.name='{place.bucket}', any {{{permissions}}}}}"
    )


def bucket_policy(place: Place) -> str:
    """Say which statement lets a principal see the bucket."""
    return (
        f"add the policy: Allow {place.who} to read buckets in compartment <compartment> "
        f"where target.bucket.name='{place.bucket}'"
    )


def par_policy(place: Place) -> str:
    """Say which statement grants pre-authenticated requests."""
    return (
        f"add the policy: Allow {place.who} to manage buckets in compartment <compartment> "
        f"where all {{target.bucket.name='{place.bucket}', request.permission='PAR_MANAGE'}}"
    )


def copy_policy(place: Place, region: str) -> str:
    """Say which statement lets the service itself copy objects."""
    return (
        f"add the policy: Allow service objectstorage-{region} to manage object-family in "
        f"compartment <compartment> where target.bucket.name='{place.bucket}'"
    )


def http_time(value: str | None) -> datetime | None:
    """Return an HTTP date (RFC 9110, 5.6.7) in UTC, None where there is none."""
    try:
        when = parsedate_to_datetime(value or "")
        return when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def clock_skew(headers: Mapping[str, str]) -> float | None:
    """Return by how many seconds this host's clock is ahead of an answer's, if that has one."""
    theirs = http_time(headers.get("date"))
    return None if theirs is None else (datetime.now(UTC) - theirs).total_seconds()


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return how long an answer asks us to wait (RFC 9110, 10.2.3), in seconds."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        wait = float(value)
    except ValueError:
        when = http_time(value)
        if when is None:
            return None
        wait = (when - datetime.now(UTC)).total_seconds()
    return min(max(wait, 0.0), _LONGEST_WAIT) if math.isfinite(wait) else None


def _said(refusal: Refusal) -> str:
    words = f"{refusal.status} {refusal.code}".strip()
    if refusal.foreign:
        kind = _printable(refusal.headers.get("content-type", "an unknown form"))
        return f"{words}, with a body of {kind}"
    return f"{words}: {refusal.message}" if refusal.message else words


def _printable(text: object) -> str:
    return "".join(c if c.isprintable() else " " for c in str(text)[:_MESSAGE])
