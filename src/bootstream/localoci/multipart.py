"""Multipart uploads: parts come in any order and number, and are assembled by their number.

A part is written where the object will probably have it (see ``inplace``), or to a file of its
own; one that is sent again replaces the former. A commit names every part that was uploaded, to
commit or to exclude. Unless the bytes are in order already, they are put together in the kernel
(``copy_file_range``), outside of any transaction; the object's row, which ends the upload, comes
last. Of two commits at once the second is refused.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import uuid
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

from bootstream.localoci.checksums import of_parts
from bootstream.localoci.conditions import Conditions
from bootstream.localoci.errors import ApiError, invalid
from bootstream.localoci.http import Response, json_response
from bootstream.localoci.inplace import split, whole
from bootstream.localoci.objects import algorithms, checksum_headers, object_tier, receive
from bootstream.localoci.service import (
    CONTENT_HEADERS,
    header_value,
    metadata,
    object_name,
    timestamp,
)

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator

    from bootstream.localoci.service import Call, Service
    from bootstream.localoci.store import Bucket, Received, StoredObject

_COPY = 64 << 20  # bytes that the kernel is asked to copy at a time


class Assembling:
    """The uploads that are being committed now. Thread safe."""

    def __init__(self) -> None:
        self._ids: set[str] = set()
        self._lock = threading.Lock()

    def check(self, upload: str) -> None:
        """Make sure that an upload is not being committed.

        Raises:
            ApiError: 409 ``ConcurrentObjectUpdate``.
        """
        if upload in self._ids:
            raise ApiError(
                409, "ConcurrentObjectUpdate", "The upload is being committed or aborted"
            )

    @contextlib.contextmanager
    def alone(self, upload: str) -> Iterator[None]:
        """Hold an upload.

        Raises:
            ApiError: 409 ``ConcurrentObjectUpdate``, somebody else does.
        """
        with self._lock:
            self.check(upload)
            self._ids.add(upload)
        try:
            yield
        finally:
            with self._lock:
                self._ids.discard(upload)


_assembling = Assembling()


def create_upload(call: Call, bucket_name: str) -> Response:
    """POST /n/{n}/b/{b}/u."""
    body = call.request.json()
    name = object_name(body.get("object"))
    call.permit(bucket_name, name, "OBJECT_CREATE")
    call.permit(bucket_name, name, "OBJECT_OVERWRITE")
    bucket = call.bucket(bucket_name)
    kept = {"content-type": "application/octet-stream"}
    for key, header in CONTENT_HEADERS.items():
        if body.get(key) is not None:
            kept[header] = header_value(body[key], key)
    given = body.get("metadata") or {}
    if not isinstance(given, dict):
        raise invalid("metadata is an object")
    kept |= metadata(
        {key if key.startswith("opc-meta-") else f"opc-meta-{key}": given[key] for key in given}
    )
    return json_response(begin(call, bucket, name, kept, body.get("storageTier")))


def begin(
    call: Call, bucket: Bucket, name: str, headers: dict[str, str], chosen: object
) -> dict[str, Any]:
    """Begin an upload; the answer's body."""
    request = call.request.headers
    conditions = Conditions.of(request)
    call.service.store.check(bucket, name, conditions)
    upload, now = str(uuid.uuid4()), call.service.clock()
    details = {
        "headers": headers,
        "tier": object_tier(bucket, chosen),
        "algorithms": sorted(algorithms(request)),
        "conditions": [conditions.if_match, conditions.if_none_match],
    }
    with call.service.database.write(()) as rows:
        rows.execute(
            "INSERT INTO uploads (id, bucket, name, created, details) VALUES (?,?,?,?,?)",
            (upload, bucket.id, name, now, json.dumps(details)),
        )
    return {
        "namespace": call.service.namespace,
        "bucket": bucket.name,
        "object": name,
        "uploadId": upload,
        "timeCreated": timestamp(now),
        "storageTier": details["tier"],
    }


def find(call: Call, bucket: Bucket, name: str, upload: str) -> sqlite3.Row:
    """An upload's row.

    Raises:
        ApiError: 404 ``UploadNotFound``: it ended, or is of another object.
    """
    row = call.service.database.row(
        "SELECT id, created, details FROM uploads WHERE id=? AND bucket=? AND name=?",
        upload, bucket.id, name,
    )  # fmt: skip
    if row is None:
        raise ApiError(404, "UploadNotFound", f"There is no upload '{upload}' of '{name}'")
    return row


def upload_part(call: Call, bucket_name: str, name: str) -> Response:
    """PUT /n/{n}/b/{b}/u/{o}?uploadId&uploadPartNum."""
    call.permit(bucket_name, name, "OBJECT_CREATE")
    call.permit(bucket_name, name, "OBJECT_OVERWRITE")
    number = call.number("uploadPartNum", 0, 1, call.service.limits.parts)
    if not number:
        raise invalid("the parameter uploadPartNum is missing", "MissingParameter")
    return take_part(call, call.bucket(bucket_name), name, call.text("uploadId"), number)


def take_part(call: Call, bucket: Bucket, name: str, upload: str, number: int) -> Response:
    """Take a part's body; it replaces a former part of the number."""
    details = json.loads(find(call, bucket, name, upload)["details"])
    asked = frozenset(details["algorithms"])
    store = call.service.store
    place = store.places.take(upload, number, call.request.body.length)
    try:
        received = receive(call, call.service.limits.part, asked, place)
        etag = str(uuid.uuid4())
        _record(call, upload, number, etag, received)
    except BaseException:
        if place is not None:
            store.places.give_back(upload, number)
        raise
    sums = checksum_headers(received)
    headers = {"etag": etag, "opc-content-md5": received.digests["MD5"], **sums}
    return Response(200, headers)


def _record(call: Call, upload: str, number: int, etag: str, received: Received) -> None:
    """Put a part that was received in the place of a former one."""
    store, conditions = call.service.store, Conditions.of(call.request.headers)
    try:
        with store.database.write(()) as rows:
            _assembling.check(upload)
            old = rows.execute(
                "SELECT etag, file FROM parts WHERE upload=? AND number=?", (upload, number)
            ).fetchone()
            conditions.check(None if old is None else old["etag"])
            _insert_part(rows, (upload, number, etag, received.digests["MD5"], received.size,
                                received.file, json.dumps(received.digests)))  # fmt: skip
    except BaseException:
        store.discard(received.file)
        raise
    if old is not None:
        store.discard(old["file"])


def _insert_part(rows: sqlite3.Connection, values: tuple[object, ...]) -> None:
    if rows.execute("SELECT 1 FROM uploads WHERE id=?", (values[0],)).fetchone() is None:
        raise ApiError(404, "UploadNotFound", "The upload has ended")
    rows.execute(
        "INSERT OR REPLACE INTO parts (upload, number, etag, md5, size, file, sums)"
        " VALUES (?,?,?,?,?,?,?)",
        values,
    )


def list_uploads(call: Call, bucket_name: str) -> Response:
    """GET /n/{n}/b/{b}/u: in the order of their beginning."""
    call.permit(bucket_name, None, "BUCKET_READ")
    bucket = call.bucket(bucket_name)
    limit, page = call.limit(), call.parameters.get("page", "")
    rows = call.service.database.rows(
        "SELECT id, name, created, details FROM uploads WHERE bucket=? AND id>?"
        " ORDER BY id LIMIT ?",
        bucket.id, page, limit + 1,
    )  # fmt: skip
    items = [
        {
            "namespace": call.service.namespace,
            "bucket": bucket.name,
            "object": row["name"],
            "uploadId": row["id"],
            "timeCreated": timestamp(row["created"]),
            "storageTier": json.loads(row["details"])["tier"],
        }
        for row in rows[:limit]
    ]
    headers = {"opc-next-page": items[-1]["uploadId"]} if len(rows) > limit else {}
    return json_response(items, headers=headers)


def list_parts(call: Call, bucket_name: str, name: str) -> Response:
    """GET /n/{n}/b/{b}/u/{o}?uploadId: by number."""
    call.permit(bucket_name, name, "OBJECT_INSPECT")
    upload = call.text("uploadId")
    find(call, call.bucket(bucket_name), name, upload)
    limit = call.limit()
    rows = call.service.database.rows(
        "SELECT number, etag, md5, size FROM parts WHERE upload=? AND number>?"
        " ORDER BY number LIMIT ?",
        upload, call.number("page", 0, 0, 1 << 20), limit + 1,
    )  # fmt: skip
    items = [
        {
            "etag": row["etag"],
            "md5": row["md5"],
            "size": row["size"],
            "partNumber": row["number"],
        }
        for row in rows[:limit]
    ]
    headers = {"opc-next-page": str(items[-1]["partNumber"])} if len(rows) > limit else {}
    return json_response(items, headers=headers)


def commit_upload(call: Call, bucket_name: str, name: str) -> Response:
    """POST /n/{n}/b/{b}/u/{o}?uploadId: the object comes to be."""
    call.permit(bucket_name, name, "OBJECT_CREATE")
    call.permit(bucket_name, name, "OBJECT_OVERWRITE")
    body = call.request.json()
    wanted, excluded = body.get("partsToCommit"), body.get("partsToExclude") or []
    if not isinstance(wanted, list) or not wanted or not isinstance(excluded, list):
        raise invalid("partsToCommit has at least one part")
    etags: dict[int, str] = {}
    for entry in wanted:
        if not isinstance(entry, dict) or type(entry.get("partNum")) is not int:
            raise invalid("partsToCommit has objects of partNum and etag")
        if entry["partNum"] in etags:
            raise _bad_part(entry["partNum"], "is named twice")
        etags[entry["partNum"]] = str(entry.get("etag"))
    if not all(type(number) is int for number in excluded):
        raise invalid("partsToExclude has numbers of parts")
    bucket, upload = call.bucket(bucket_name), call.text("uploadId")
    return finish(call, bucket, name, upload, (etags, set(excluded)))


def finish(
    call: Call,
    bucket: Bucket,
    name: str,
    upload: str,
    chosen: tuple[dict[int, str], set[int]] | None,
) -> Response:
    """Assemble the chosen parts, or all; the object's answer.

    Raises:
        ApiError: 404; 400 ``InvalidUploadPart``; 409; 412.
    """
    service = call.service
    with _assembling.alone(upload):
        row = find(call, bucket, name, upload)
        details = json.loads(row["details"])
        with service.database.write(()) as rows:  # a writer's turn: no part is replaced after it
            parts = rows.execute(
                "SELECT number, etag, size, file, sums FROM parts WHERE upload=? ORDER BY number",
                (upload,),
            ).fetchall()
        if chosen is not None:
            parts = _choose(parts, *chosen)
        if not parts:
            raise invalid("the upload has no parts", "InvalidUploadPart")
        conditions = _conditions(call, details["conditions"])
        service.store.check(bucket, name, conditions)
        sums = of_parts([(json.loads(part["sums"]), part["size"]) for part in parts])
        size = sum(part["size"] for part in parts)
        if size > service.limits.item:
            raise ApiError(413, "RequestEntityTooLarge", "The object is over the limit")
        located = [(part["file"], part["size"]) for part in parts]
        shared = whole(located)
        file = shared or _assemble(service, located)
        item = service.store.put(
            bucket, name, file, size,
            md5=None, tier=details["tier"],
            headers={**details["headers"], **sums},
            conditions=conditions, upload=upload, shared=shared is not None,
        )  # fmt: skip
        if shared is not None:  # parts that were excluded stand behind
            with contextlib.suppress(OSError):
                os.truncate(service.database.path(shared), size)
    return Response(200, _commit_headers(item, sums))


def _commit_headers(item: StoredObject, sums: dict[str, str]) -> dict[str, str]:
    return {
        "etag": item.etag,
        **sums,
        "last-modified": formatdate(item.modified, usegmt=True),
        "version-id": item.version,
    }


def _conditions(call: Call, begun: list[str | None]) -> Conditions:
    """Those of the commit; where it has none, those that the upload began with."""
    own = Conditions.of(call.request.headers)
    return Conditions(own.if_match or begun[0], own.if_none_match or begun[1])


def _choose(
    parts: list[sqlite3.Row], etags: dict[int, str], excluded: set[int]
) -> list[sqlite3.Row]:
    known = {part["number"]: part for part in parts}
    for number, etag in etags.items():
        if number not in known:
            raise _bad_part(number, "was not uploaded")
        if known[number]["etag"] != etag:
            raise _bad_part(number, "has another etag")
        if number in excluded:
            raise _bad_part(number, "is to be committed and to be excluded")
    for number in known:
        if number not in etags and number not in excluded:
            raise _bad_part(number, "was uploaded, and is neither committed nor excluded")
    return [known[number] for number in sorted(etags)]


def _bad_part(number: object, what: str) -> ApiError:
    return invalid(f"The part {number} {what}", "InvalidUploadPart")


def _assemble(service: Service, parts: list[tuple[str, int]]) -> str:
    """One file of several parts, in order."""
    database = service.database
    result = database.new_file()
    if len(parts) == 1 and "@" not in parts[0][0]:
        os.link(database.path(parts[0][0]), database.path(result))
        return result
    try:
        with open(database.path(result), "xb", buffering=0) as target:
            for name, size in parts:
                file, offset = split(name)
                with open(database.path(file), "rb", buffering=0) as source:
                    end = offset + size
                    while offset < end:
                        step = min(end - offset, _COPY)
                        offset += _copy(source.fileno(), target.fileno(), offset, step)
    except OSError as error:
        database.drop(result)
        raise ApiError(
            507, "InsufficientStorage", f"The data folder cannot take more: {error}"
        ) from error
    return result


def _copy(source: int, target: int, offset: int, size: int) -> int:
    """Copy bytes from an offset to the target's position, in the kernel; at least one."""
    try:
        count = os.copy_file_range(source, target, size, offset)
    except OSError:  # not every file system can
        count = os.sendfile(target, source, offset, size)
    if not count:
        raise OSError("a part's file is shorter than it was")
    return count


def abort_upload(call: Call, bucket_name: str, name: str) -> Response:
    """DELETE /n/{n}/b/{b}/u/{o}?uploadId: the parts are gone."""
    call.permit(bucket_name, name, "OBJECT_DELETE")
    return drop_upload(call, call.bucket(bucket_name), name, call.text("uploadId"))


def drop_upload(call: Call, bucket: Bucket, name: str, upload: str) -> Response:
    """End an upload without an object."""
    database = call.service.database
    with _assembling.alone(upload):
        find(call, bucket, name, upload)
        with database.write(()) as rows:
            parts = rows.execute("SELECT file FROM parts WHERE upload=?", (upload,)).fetchall()
            rows.execute("DELETE FROM uploads WHERE id=?", (upload,))
    database.drop(*call.service.store.places.end(upload, (part["file"] for part in parts)))
    return Response(204)
