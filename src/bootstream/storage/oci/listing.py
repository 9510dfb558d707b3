"""Listing a bucket, deleting many objects, and collecting what uploads left.

Pages come in the order of the names' UTF-8 bytes; a page that goes backwards is refused, as
it could be asked for again and again. Names that are no paths here (a "folder" with a slash
at its end, say, made by another tool) are not listed, but do go when their prefix is deleted.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

from bootstream.errors import (
    BootstreamError,
    BucketNotFound,
    InvalidInput,
    NotFound,
    ObjectNotFound,
    PermissionDenied,
    Unavailable,
)
from bootstream.storage.oci.client import Client, Request
from bootstream.storage.paths import is_valid_path
from bootstream.storage.protocol import ObjectInfo

PAGE = 1000
PAR_NAME = "bootstream-upload"
_NAMED_FAILURES = 100
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Upload:
    """A multipart upload that is not finished."""

    name: str
    upload_id: str
    created: datetime


def list_page(
    client: Client, prefix: str, start: str, *, fields: str
) -> tuple[list[dict[str, object]], str]:
    """Return a page of the listing from the name ``start`` on, and where the next one starts."""
    query = f"limit={PAGE}&fields={fields}"
    if prefix:
        query += f"&prefix={quote(prefix, safe='')}"
    if start:
        query += f"&start={quote(start, safe='')}"
    request = Request("GET", f"{client.base()}/o?{query}", "list objects", prefix or client.bucket)
    found = client.json(request)
    objects = found.get("objects") if isinstance(found, dict) else None
    if not isinstance(found, dict) or not isinstance(objects, list):
        raise _unreadable(request)
    following = found.get("nextStartWith") or ""
    last = start.encode()
    fresh = bool(start)
    for entry in objects:
        name = entry.get("name") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not name.startswith(prefix):
            raise _unreadable(request)
        encoded = _encoded(name, request)
        if encoded < last or (encoded == last and not fresh):
            raise _unreadable(request, "the listing is not in order")
        last, fresh = encoded, False
    if not isinstance(following, str) or (following and _encoded(following, request) <= last):
        raise _unreadable(request, "the listing does not go on")
    return objects, following


def list_objects(client: Client, prefix: str) -> Iterator[ObjectInfo]:
    """Yield everything below ``prefix``, in order, over all pages."""
    start = ""
    while True:
        page, start = list_page(client, prefix, start, fields="name,size,etag,timeModified")
        for entry in page:
            name = str(entry["name"])
            if is_valid_path(name):
                yield _info(name, entry)
        if not start:
            return


def _info(name: str, entry: dict[str, object]) -> ObjectInfo:
    size, etag = entry.get("size"), entry.get("etag")
    try:
        # HEAD tells the same time in whole seconds; an object has one time, not two.
        when = parse_time(entry.get("timeModified")).replace(microsecond=0)
    except (TypeError, ValueError):
        when = None
    if when is None or not isinstance(size, int) or size < 0 or not isinstance(etag, str):
        raise Unavailable("the listing does not describe it", operation="list objects", object=name)
    return ObjectInfo(name, size, etag, when)


def parse_time(value: object) -> datetime:
    """Return an RFC 3339 time, in UTC; raises ValueError and TypeError."""
    if not isinstance(value, str):
        raise TypeError(value)
    try:
        when = datetime.fromisoformat(value)
        return when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)
    except OverflowError as error:
        raise ValueError(value) from error


# -- deleting -----------------------------------------------------------------------------------


def delete_prefix(client: Client, prefix: str, executor: Executor) -> int:
    """Delete everything below ``prefix``; return how many objects went.

    Raises:
        BootstreamError: of the first failure's kind, naming all keys that are still there.
    """
    count = 0
    failed: dict[str, BootstreamError] = {}
    start = ""
    batches = True
    while True:
        page, start = list_page(client, prefix, start, fields="name")
        names = [str(entry["name"]) for entry in page]
        if names and batches:
            left = _delete_batch(client, names)
            if left is None:
                batches = False
            else:
                count += len(names) - len(left)
                names = left
        if names:
            count += _delete_each(client, names, executor, failed)
        if not start:
            break
    if failed:
        raise _failure(prefix, failed)
    return count


def _delete_batch(client: Client, names: Sequence[str]) -> list[str] | None:
    """Delete up to 1000 objects; return those that remain, None where there are no batches."""
    body = {
        "objects": [{"objectName": name} for name in names],
        "isSkipDeletedResult": False,
    }
    request = Request(
        "POST",
        f"{client.base()}/actions/batchDeleteObjects",
        "delete objects",
        client.bucket,
        body=json.dumps(body).encode(),
        signed_body=True,
    )
    try:
        found = client.json(request)
    except BucketNotFound:
        raise
    except (NotFound, InvalidInput, PermissionDenied) as error:
        _LOG.info("deleting one by one, since batches are refused: %s", error)
        return None
    except Unavailable as error:
        if error.transient:
            raise
        return None
    deleted = found.get("deleted") if isinstance(found, dict) else None
    if not isinstance(deleted, list):
        raise _unreadable(request)
    # What is not said to be deleted is deleted by itself, which tells why it could not be.
    gone = {entry.get("objectName") for entry in deleted if isinstance(entry, dict)}
    return [name for name in names if name not in gone]


def _delete_each(
    client: Client, names: Sequence[str], executor: Executor, failed: dict[str, BootstreamError]
) -> int:
    def delete(name: str) -> BootstreamError | bool:
        request = Request(
            "DELETE", client.object_target(name), "delete object", name, success=(204, 200)
        )
        try:
            client.call(request)
        except ObjectNotFound:
            return False
        except BootstreamError as error:
            return error
        return True

    count = 0
    for name, outcome in zip(names, executor.map(delete, names), strict=True):
        if isinstance(outcome, BootstreamError):
            failed[name] = outcome
        else:
            count += outcome
    return count


def _failure(prefix: str, failed: dict[str, BootstreamError]) -> BootstreamError:
    first = next(iter(failed.values()))
    names = ", ".join(list(failed)[:_NAMED_FAILURES])
    if len(failed) > _NAMED_FAILURES:
        _LOG.warning("not deleted below %s: %s", prefix, ", ".join(failed))
        names += f" and {len(failed) - _NAMED_FAILURES} more, which are in the log"
    error = type(first)(
        f"{len(failed)} objects could not be deleted: {first.message}",
        operation="delete objects",
        object=names,
        request_id=first.request_id,
        remedy=first.remedy,
        transient=all(one.transient for one in failed.values()),
        retry_after=first.retry_after,
    )
    error.__cause__ = first
    return error


# -- what uploads left --------------------------------------------------------------------------


def unfinished_uploads(client: Client) -> Iterator[Upload]:
    """Yield the multipart uploads of the bucket that were neither committed nor aborted."""
    for entry in pages(client, "u", "list uploads"):
        name, upload_id = entry.get("object"), entry.get("uploadId")
        try:
            created = parse_time(entry.get("timeCreated"))
        except (TypeError, ValueError):
            continue  # without a time nobody can say that it is old
        if isinstance(name, str) and isinstance(upload_id, str):
            yield Upload(name, upload_id, created)


def collect_uploads(client: Client, now: datetime, older_than: timedelta, *, dry_run: bool) -> int:
    """Abort uploads that began long ago, and delete our URLs that have expired."""
    count = 0
    for upload in list(unfinished_uploads(client)):
        if upload.created > now - older_than:
            continue
        count += 1
        if not dry_run:
            target = f"{client.base()}/u/{quote(upload.name)}"
            target += f"?uploadId={quote(upload.upload_id, safe='')}"
            _remove(client, target, "abort upload", upload.name)
    for par_id, name in _expired_pars(client, now - older_than):
        count += 1
        if not dry_run:
            target = f"{client.base()}/p/{quote(par_id, safe='')}"
            _remove(client, target, "delete upload URL", name)
    return count


def _expired_pars(client: Client, before: datetime) -> list[tuple[str, str]]:
    found = []
    try:
        for entry in pages(client, "p", "list upload URLs"):
            name, par_id = entry.get("name"), entry.get("id")
            if not isinstance(name, str) or not isinstance(par_id, str):
                continue
            try:
                expires = parse_time(entry.get("timeExpires"))
            except (TypeError, ValueError):
                continue
            if name == PAR_NAME and expires <= before:
                found.append((par_id, str(entry.get("objectName") or name)))
    except PermissionDenied as error:
        # Whoever may not make upload URLs has none to collect, and expired ones do no harm.
        _LOG.info("upload URLs are not collected: %s", error)
    return found


def _remove(client: Client, target: str, operation: str, object: str) -> None:
    request = Request("DELETE", target, operation, object, success=(200, 204))
    try:
        client.call(request)
    except BucketNotFound:
        raise
    except NotFound:
        return  # somebody else was first


def pages(client: Client, what: str, operation: str) -> Iterator[dict[str, object]]:
    """Yield the entries of a listing whose answer is an array, page by page.

    ``what`` is the target below the bucket's own, with or without a query.
    """
    page = ""
    seen: set[str] = set()
    target = f"{client.base()}/{what}{'&' if '?' in what else '?'}limit={PAGE}"
    while True:
        query = f"&page={quote(page, safe='')}" if page else ""
        request = Request("GET", target + query, operation, client.bucket)
        answer = client.call(request)
        found = client.json_of(request, answer)
        if not isinstance(found, list):
            raise _unreadable(request)
        for entry in found:
            if isinstance(entry, dict):
                yield entry
        page = answer.headers.get("opc-next-page", "")
        if not page:
            return
        if page in seen:
            raise _unreadable(request, "the listing does not go on")
        seen.add(page)


def _encoded(name: str, request: Request) -> bytes:
    try:
        return name.encode()
    except UnicodeEncodeError:
        raise _unreadable(request) from None


def _unreadable(request: Request, message: str = "the answer is not a listing") -> Unavailable:
    return Unavailable(message, operation=request.operation, object=request.object)
