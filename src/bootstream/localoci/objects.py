"""Put, get, head and delete of one object: RFC 9110 conditions and ranges in the service's way."""

from __future__ import annotations

import base64
import binascii
import re
from typing import TYPE_CHECKING, Any

from bootstream.localoci.checksums import ALGORITHMS
from bootstream.localoci.conditions import NO_CONDITIONS, Conditions, matches
from bootstream.localoci.errors import ApiError, invalid
from bootstream.localoci.http import FileRange, Response, http_date
from bootstream.localoci.service import (
    CONTENT_HEADERS,
    header_value,
    metadata,
    object_name,
    tier,
    timestamp,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bootstream.localoci.http import Request
    from bootstream.localoci.service import Call
    from bootstream.localoci.store import Bucket, Received, StoredObject

_RANGE = re.compile(r"bytes=[ \t]*(\d{0,19})-(\d{0,19})[ \t]*")
_OVERRIDES = {
    "httpResponseContentType": "content-type",
    "httpResponseContentLanguage": "content-language",
    "httpResponseContentEncoding": "content-encoding",
    "httpResponseContentDisposition": "content-disposition",
    "httpResponseCacheControl": "cache-control",
    "httpResponseExpires": "expires",
}


def algorithms(headers: Mapping[str, str]) -> frozenset[str]:
    """The checksums that a body's headers ask for, besides MD5.

    Raises:
        ApiError: 400, the service knows no such algorithm.
    """
    names = {name for name, header in ALGORITHMS.items() if header in headers}
    if asked := headers.get("opc-checksum-algorithm"):  # the Go SDK sends it empty
        if asked.upper() not in ALGORITHMS:
            raise invalid(f"opc-checksum-algorithm is one of {', '.join(ALGORITHMS)}")
        names.add(asked.upper())
    return frozenset(names)


def receive(
    call: Call, limit: int, more: frozenset[str] = frozenset(), place: str | None = None
) -> Received:
    """Take the request's body to a file, and check the checksums that came with it.

    ``more`` are algorithms to compute besides those that the headers name; ``place`` is where
    the body goes, if not to a new file.

    Raises:
        ApiError: 411, the size is not known; 413; 400 ``UnmatchedContentMD5`` and the like.
    """
    headers = call.request.headers
    if "content-length" not in headers and "transfer-encoding" not in headers:
        raise ApiError(411, "MissingContentLength", "The Content-Length header is missing")
    wanted = {"MD5": headers.get("content-md5")}
    wanted |= {name: headers.get(header) for name, header in ALGORITHMS.items()}
    for name, value in wanted.items():
        if value is not None:
            _check_base64(name, value)
    store = call.service.store
    received = store.receive(call.request.body, limit, algorithms(headers) | more, place)
    for name, value in wanted.items():
        if value is not None and value != received.digests[name]:
            store.discard(received.file)
            raise invalid(
                f"The computed {name} of the body ({received.digests[name]}) does not match the"
                f" header ({value})",
                f"UnmatchedContent{name}",
            )
    return received


def _check_base64(name: str, value: str) -> None:
    sizes = {"MD5": 16, "CRC32C": 4, "SHA256": 32, "SHA384": 48}
    try:
        size = len(base64.b64decode(value, validate=True))
    except (binascii.Error, ValueError):
        size = -1
    if size != sizes[name]:
        raise invalid(f"The {name} is not {sizes[name]} bytes of base64", f"InvalidContent{name}")


def checksum_headers(received: Received) -> dict[str, str]:
    """The ``opc-content-*`` of a body, other than MD5."""
    return {
        header: received.digests[name]
        for name, header in ALGORITHMS.items()
        if name in received.digests
    }


def object_tier(bucket: Bucket, asked: object) -> str:
    """The tier of a new object: all of an archive bucket are archived."""
    if bucket.details["storageTier"] == "Archive":
        return "Archive"
    return tier(asked or "Standard")


def put_object(call: Call, bucket_name: str, name: str) -> Response:
    """PUT /n/{n}/b/{b}/o/{o}: create or replace, whole or not at all."""
    object_name(name)
    service, headers = call.service, call.request.headers
    permit_put(call, bucket_name, name)
    bucket = call.bucket(bucket_name)
    conditions = Conditions.of(headers)
    service.store.check(bucket, name, conditions)
    kept = {"content-type": headers.get("content-type") or "application/octet-stream"}
    kept |= {key: headers[key] for key in CONTENT_HEADERS.values() if key in headers}
    kept |= metadata(headers)
    chosen = object_tier(bucket, headers.get("storage-tier"))
    received = receive(call, service.limits.put)
    sums = checksum_headers(received)
    item = service.store.put(
        bucket,
        name,
        received.file,
        received.size,
        md5=received.digests["MD5"],
        tier=chosen,
        headers={**kept, **sums},
        conditions=conditions,
    )
    return Response(
        200,
        {
            "etag": item.etag,
            "opc-content-md5": received.digests["MD5"],
            "last-modified": http_date(item.modified),
            "version-id": item.version,
            **sums,
        },
    )


def permit_put(call: Call, bucket_name: str, name: str) -> None:
    """Check that the caller may create, or overwrite, as the case is."""
    try:
        bucket = call.bucket(bucket_name)
        call.service.store.get(bucket, name)
    except ApiError:
        call.permit(bucket_name, name, "OBJECT_CREATE")
    else:
        call.permit(bucket_name, name, "OBJECT_OVERWRITE")


def object_headers(call: Call, item: StoredObject) -> dict[str, str]:
    """What GET and HEAD say of an object."""
    headers = {
        "etag": item.etag,
        "last-modified": http_date(item.modified),
        "accept-ranges": "bytes",
        "storage-tier": item.tier,
        "version-id": item.version,
        **item.headers,
    }
    if item.md5 is not None:
        headers["content-md5"] = item.md5
    if item.tier == "Archive":
        state, until = archival_state(call, item)
        headers["archival-state"] = state
        if until is not None:
            headers["time-of-archival"] = http_date(until)
    return headers


def archival_state(call: Call, item: StoredObject) -> tuple[str, float | None]:
    """An archived object's state, and until when it is restored."""
    now = call.service.clock()
    if item.restored <= now:
        return "Archived", None
    if item.ready > now:
        return "Restoring", None
    return "Restored", item.restored


def _current(call: Call, bucket_name: str, name: str) -> StoredObject:
    bucket = call.bucket(bucket_name)
    return call.service.store.get(bucket, name, call.parameters.get("versionId"))


def _not_modified(headers: Mapping[str, str], item: StoredObject) -> bool:
    if (expected := headers.get("if-match")) is not None:
        Conditions(expected).check(item.etag)
    known = headers.get("if-none-match")
    return known is not None and matches(known, item.etag)


def head_object(call: Call, bucket_name: str, name: str) -> Response:
    """HEAD /n/{n}/b/{b}/o/{o}; a range does not count here."""
    call.permit(bucket_name, name, "OBJECT_READ", "OBJECT_INSPECT")
    item = _current(call, bucket_name, name)
    headers = object_headers(call, item)
    if _not_modified(call.request.headers, item):
        return Response(304, {"etag": item.etag})
    return Response(200, headers, length=item.size)


def get_object(call: Call, bucket_name: str, name: str) -> Response:
    """GET /n/{n}/b/{b}/o/{o}, or one range of it."""
    call.permit(bucket_name, name, "OBJECT_READ")
    for _ in range(100):
        item = _current(call, bucket_name, name)
        if _not_modified(call.request.headers, item):
            return Response(304, {"etag": item.etag})
        if item.tier == "Archive" and archival_state(call, item)[0] != "Restored":
            raise ApiError(409, "NotRestored", f"The object '{name}' is archived: restore it")
        try:
            return _content(call, item)
        except FileNotFoundError:
            continue  # it was replaced between its row and its file: take the new one
    raise ApiError(500, "InternalServerError", f"The file of the object '{name}' is missing")


def _content(call: Call, item: StoredObject) -> Response:
    headers = object_headers(call, item)
    for parameter, header in _OVERRIDES.items() if call.parameters else ():
        if parameter in call.parameters:
            headers[header] = header_value(call.parameters[parameter], parameter)
    found = byte_range(call.request, item.size)
    offset, length = found or (0, item.size)
    status = 200
    if found is not None:
        status = 206
        headers["content-range"] = f"bytes {offset}-{offset + length - 1}/{item.size}"
    file = call.service.store.open(item)
    return Response(status, headers, FileRange(file.descriptor, offset, length, file.release))


def byte_range(request: Request, size: int) -> tuple[int, int] | None:
    """The offset and length that a Range header asks for; None for all (RFC 9110 14.2).

    Raises:
        ApiError: 416 ``InvalidRange``, nothing of it is there, or there are several.
    """
    text = request.headers.get("range")
    if text is None:
        return None
    if text.startswith("bytes=") and "," in text:
        raise _no_range(text, size)
    match = _RANGE.fullmatch(text)
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:
        length = min(int(match[2]), size)
        if not length:
            raise _no_range(text, size)
        return size - length, length
    first = int(match[1])
    last = min(int(match[2]), size - 1) if match[2] else size - 1
    if match[2] and int(match[2]) < first:
        return None
    if first >= size:
        raise _no_range(text, size)
    return first, last - first + 1


def _no_range(text: str, size: int) -> ApiError:
    return ApiError(
        416, "InvalidRange", f"The range '{text}' is not within the object's {size} bytes",
        {"content-range": f"bytes */{size}"},
    )  # fmt: skip


def delete_object(call: Call, bucket_name: str, name: str) -> Response:
    """DELETE /n/{n}/b/{b}/o/{o}: a missing object is an error."""
    version = call.parameters.get("versionId")
    call.permit(bucket_name, name, "OBJECT_DELETE" if version is None else "OBJECT_VERSION_DELETE")
    bucket = call.bucket(bucket_name)
    expected = call.request.headers.get("if-match")
    conditions = Conditions(expected) if expected is not None else NO_CONDITIONS
    item = call.service.store.delete(bucket, name, conditions, version)
    headers = {"last-modified": http_date(item.modified)}
    if bucket.versioned or version is not None:
        headers["version-id"] = item.version
        headers["is-delete-marker"] = "false" if item.file else "true"
    return Response(204, headers)


def summary(call: Call, item: StoredObject, fields: frozenset[str]) -> dict[str, Any]:
    """An object in a listing, with the fields that were asked for."""
    result: dict[str, Any] = {"name": item.name}
    if "size" in fields:
        result["size"] = item.size
    if "md5" in fields:
        result["md5"] = item.md5
    if "etag" in fields:
        result["etag"] = item.etag
    if "timeCreated" in fields:
        result["timeCreated"] = timestamp(item.created)
    if "timeModified" in fields:
        result["timeModified"] = timestamp(item.modified)
    if "storageTier" in fields:
        result["storageTier"] = item.tier
    if "archivalState" in fields:
        archived = item.tier == "Archive"
        result["archivalState"] = archival_state(call, item)[0] if archived else None
    return result
