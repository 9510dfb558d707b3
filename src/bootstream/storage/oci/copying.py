"""Copying an object within the bucket: CopyObject, and the work request that does it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from urllib.parse import quote

from bootstream.errors import (
    BootstreamError,
    Cancelled,
    ObjectNotFound,
    PermissionDenied,
    Unavailable,
)
from bootstream.storage.oci.client import Client, Request
from bootstream.storage.oci.failures import copy_policy

_FIRST_WAIT = 0.02
_LONGEST_WAIT = 5.0
_OPERATION = "copy object"


def copy_object(
    client: Client,
    source: str,
    target: str,
    region: str,
    *,
    limit: float = 6 * 3600.0,
    sleep: Callable[[float], object] = time.sleep,
) -> None:
    """Have the service copy ``source`` to ``target``, and wait until it has.

    Raises:
        ObjectNotFound: ``source`` does not exist.
        PermissionDenied: the service itself may not copy in this bucket.
        Unavailable: it failed, or is not done within ``limit`` seconds.
    """
    body = {
        "sourceObjectName": source,
        "destinationRegion": region,
        "destinationNamespace": client.namespace(),
        "destinationBucket": client.bucket,
        "destinationObjectName": target,
    }
    request = Request(
        "POST",
        f"{client.base()}/actions/copyObject",
        _OPERATION,
        source,
        body=json.dumps(body).encode(),
        signed_body=True,
        success=(200, 202),
    )
    work = client.call(request).headers.get("opc-work-request-id")
    if not work:
        raise Unavailable("the answer names no work request", operation=_OPERATION, object=source)
    _wait(client, work, source, region, limit=limit, sleep=sleep)


def _wait(
    client: Client,
    work: str,
    source: str,
    region: str,
    *,
    limit: float,
    sleep: Callable[[float], object],
) -> None:
    path = f"/workRequests/{quote(work, safe='')}"
    deadline = time.monotonic() + limit
    pause = _FIRST_WAIT
    while True:
        found = client.json(Request("GET", path, _OPERATION, source))
        status = found.get("status") if isinstance(found, dict) else None
        if status == "COMPLETED":
            return
        if status == "FAILED":
            raise _failure(client, path, source, region)
        if status in ("CANCELED", "CANCELLED"):
            raise Cancelled("the copy was cancelled", operation=_OPERATION, object=source)
        if time.monotonic() > deadline:
            raise Unavailable(
                f"the copy was not done within {limit:.0f} s; it may go on",
                operation=_OPERATION,
                object=source,
                transient=False,
            )
        sleep(pause)
        pause = min(pause * 1.5, _LONGEST_WAIT)


def _failure(client: Client, path: str, source: str, region: str) -> BootstreamError:
    found = client.json(Request("GET", f"{path}/errors", _OPERATION, source))
    entries = found.get("items") if isinstance(found, dict) else found
    first = entries[0] if isinstance(entries, list) and entries else {}
    code, message = "", ""
    if isinstance(first, dict):
        code, message = str(first.get("code") or ""), str(first.get("message") or "")[:300]
    if code == "ObjectNotFound":
        return ObjectNotFound("it does not exist", operation=_OPERATION, object=source)
    if "authori" in f"{code} {message}".lower() or code == "BucketNotFound":
        return PermissionDenied(
            f"the storage could not copy it: {message or code}",
            operation=_OPERATION,
            object=source,
            remedy=copy_policy(client.place, region),
        )
    return Unavailable(
        f"the storage could not copy it: {code} {message}".strip(),
        operation=_OPERATION,
        object=source,
    )
