"""Actions on a bucket's objects: copy, rename, restore, change of tier, deletion of many."""

from __future__ import annotations

import os
from dataclasses import replace
from email.utils import formatdate
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from bootstream.localoci.conditions import Conditions, matches
from bootstream.localoci.errors import ApiError, invalid
from bootstream.localoci.http import Response, json_response
from bootstream.localoci.objects import archival_state, object_tier, permit_put
from bootstream.localoci.service import metadata, object_name, optional_text, tier, timestamp
from bootstream.localoci.store import no_object

if TYPE_CHECKING:
    from bootstream.localoci.service import Call
    from bootstream.localoci.store import Bucket, StoredObject

_BATCH = 1000


def copy_object(call: Call, bucket_name: str) -> Response:
    """POST …/actions/copyObject: accepted now, done by a work request."""
    body, service = call.request.json(), call.service
    source = object_name(body.get("sourceObjectName"))
    target = object_name(body.get("destinationObjectName"))
    target_bucket = _destination(call, body)
    call.permit(bucket_name, source, "OBJECT_READ")
    permit_put(call, target_bucket, target)
    bucket, into = call.bucket(bucket_name), call.bucket(target_bucket)
    item = service.store.get(bucket, source, optional_text(body, "sourceVersionId"))
    if (expected := optional_text(body, "sourceObjectIfMatchETag")) and not matches(
        expected, item.etag
    ):
        raise ApiError(412, "IfMatchFailed", "The source is another version")
    if item.tier == "Archive" and archival_state(call, item)[0] != "Restored":
        raise ApiError(409, "NotRestored", f"The object '{source}' is archived: restore it")
    conditions = Conditions(
        optional_text(body, "destinationObjectIfMatchETag"),
        optional_text(body, "destinationObjectIfNoneMatchETag"),
    )
    service.store.check(into, target, conditions)
    headers = dict(item.headers)
    given = body.get("destinationObjectMetadata")
    if given is not None:
        if not isinstance(given, dict):
            raise invalid("destinationObjectMetadata is an object")
        kept = {key: value for key, value in headers.items() if not key.startswith("opc-meta-")}
        own = {
            key if key.startswith("opc-meta-") else f"opc-meta-{key}": given[key] for key in given
        }
        headers = kept | metadata(own)
    wanted = object_tier(into, body.get("destinationObjectStorageTier"))

    def copy() -> None:
        _copy(call, bucket, item, into, target, headers, wanted, conditions)

    identity = service.work.start(
        "COPY_OBJECT",
        into.details["compartmentId"],
        [_resource(call, "READ", bucket, source), _resource(call, "WRITTEN", into, target)],
        copy,
    )
    return Response(202, {"opc-work-request-id": identity})


def _destination(call: Call, body: dict[str, Any]) -> str:
    for key, own in (
        ("destinationRegion", call.service.region),
        ("destinationNamespace", call.service.namespace),
    ):
        if not body.get(key):
            raise invalid(f"{key} is missing", "MissingParameter")
        if body[key] != own:
            raise invalid(f"{key} is {body[key]!r}, and this server is of {own!r} alone")
    name = body.get("destinationBucket")
    if not isinstance(name, str):
        raise invalid("destinationBucket is missing", "MissingParameter")
    return name


def _copy(
    call: Call,
    bucket: Bucket,
    item: StoredObject,
    into: Bucket,
    target: str,
    headers: dict[str, str],
    wanted: str,
    conditions: Conditions,
) -> None:
    """Make another name of the file: files never change."""
    store, database = call.service.store, call.service.database
    file = database.new_file()
    try:
        os.link(database.path(item.file), database.path(file))
    except FileNotFoundError:
        raise no_object(bucket, item.name) from None
    store.put(
        into, target, file, item.size,
        md5=item.md5, tier=wanted, headers=headers, conditions=conditions,
    )  # fmt: skip


def _resource(call: Call, action: str, bucket: Bucket, name: str) -> dict[str, Any]:
    namespace = call.service.namespace
    uri = f"/n/{namespace}/b/{quote(bucket.name)}/o/{quote(name, safe='')}"
    return {
        "actionType": action,
        "entityType": "object",
        "identifier": uri,
        "entityUri": uri,
        "metadata": {
            "REGION": call.service.region,
            "NAMESPACE": namespace,
            "BUCKET": bucket.name,
            "OBJECT": name,
        },
    }


def rename_object(call: Call, bucket_name: str) -> Response:
    """POST …/actions/renameObject: at once, in one step; a target there is replaced."""
    body, store = call.request.json(), call.service.store
    source, target = object_name(body.get("sourceName")), object_name(body.get("newName"))
    call.permit(bucket_name, source, "OBJECT_READ")
    call.permit(bucket_name, source, "OBJECT_DELETE")
    permit_put(call, bucket_name, target)
    bucket = call.bucket(bucket_name)
    conditions = Conditions(
        optional_text(body, "newObjIfMatchETag"), optional_text(body, "newObjIfNoneMatchETag")
    )
    expected = Conditions(optional_text(body, "srcObjIfMatchETag"))
    dropped: list[str] = []
    with call.service.database.write() as rows:
        item = store.current(rows, bucket, source)
        if item is None:
            raise no_object(bucket, source)
        expected.check(item.etag)
        old = store.current(rows, bucket, target)
        conditions.check(None if old is None else old.etag)
        if source != target:
            if old is not None:
                dropped = store.retire(rows, bucket, old)
            rows.execute(
                "UPDATE objects SET name=?, modified=? WHERE bucket=? AND name=?",
                (target, call.service.clock(), bucket.id, source),
            )
    call.service.database.drop(*dropped)
    moved = store.get(bucket, target)
    return Response(
        200,
        {
            "etag": moved.etag,
            "last-modified": formatdate(moved.modified, usegmt=True),
            "version-id": moved.version,
        },
    )


def restore_objects(call: Call, bucket_name: str) -> Response:
    """POST …/actions/restoreObjects: an archived object can be read for some hours."""
    body = call.request.json()
    name = object_name(body.get("objectName"))
    call.permit(bucket_name, name, "OBJECT_RESTORE")
    hours = body.get("hours") or 24
    if type(hours) is not int or not 1 <= hours <= 240:
        raise invalid("hours is a number from 1 to 240")
    bucket = call.bucket(bucket_name)
    item = call.service.store.get(bucket, name)
    if item.tier != "Archive":
        raise ApiError(409, "NotArchived", f"The object '{name}' is not archived")
    state, now = archival_state(call, item)[0], call.service.clock()
    ready = now + call.service.restore_seconds if state == "Archived" else item.ready
    until = max(now, ready) + hours * 3600
    _update(call, bucket, replace(item, ready=ready, restored=until))
    return Response(200 if state == "Restored" else 202)


def update_tier(call: Call, bucket_name: str) -> Response:
    """POST …/actions/updateObjectStorageTier."""
    body = call.request.json()
    name = object_name(body.get("objectName"))
    call.permit(bucket_name, name, "OBJECT_UPDATE_TIER")
    bucket = call.bucket(bucket_name)
    item = call.service.store.get(bucket, name)
    if item.tier == "Archive" and archival_state(call, item)[0] != "Restored":
        raise ApiError(409, "NotRestored", f"The object '{name}' is archived: restore it")
    _update(call, bucket, replace(item, tier=tier(body.get("storageTier"))))
    return Response(200)


def _update(call: Call, bucket: Bucket, item: StoredObject) -> None:
    with call.service.database.write() as rows:
        changed = rows.execute(
            "UPDATE objects SET tier=?, ready=?, restored=? WHERE bucket=? AND name=? AND etag=?",
            (item.tier, item.ready, item.restored, bucket.id, item.name, item.etag),
        )
        if not changed.rowcount:
            raise ApiError(409, "ConcurrentObjectUpdate", "The object was replaced meanwhile")


def batch_delete(call: Call, bucket_name: str) -> Response:
    """POST …/actions/batchDeleteObjects: each by itself; one that fails stops no other."""
    body = call.request.json()
    objects = body.get("objects")
    if not isinstance(objects, list) or not 1 <= len(objects) <= _BATCH:
        raise invalid(f"objects has 1 to {_BATCH} entries")
    bucket = call.bucket(bucket_name)
    deleted, failed = [], []
    for entry in objects:
        if not isinstance(entry, dict):
            raise invalid("objects has objects")
        name = object_name(entry.get("objectName"))
        conditions = Conditions(optional_text(entry, "ifMatch"))
        try:
            call.permit(bucket_name, name, "OBJECT_DELETE")
            item = call.service.store.delete(bucket, name, conditions)
        except ApiError as error:
            failed.append(
                {
                    "objectName": name,
                    "statusCode": error.status,
                    "errorMessage": error.message,
                }
            )
        else:
            deleted.append({"objectName": name, "timeLastModified": timestamp(item.modified)})
    skip = body.get("isSkipDeletedResult") is True
    return json_response({"deleted": None if skip else deleted, "failed": failed})
