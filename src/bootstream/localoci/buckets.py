"""Buckets: kept, and the operations on them. Also the namespace."""

from __future__ import annotations

import json
import re
import sqlite3
import threading
import uuid
from typing import TYPE_CHECKING, Any

from bootstream.localoci.conditions import Conditions, matches
from bootstream.localoci.errors import ApiError, invalid, not_found_or_not_authorized
from bootstream.localoci.http import Response, json_response
from bootstream.localoci.service import tier, timestamp
from bootstream.localoci.store import Bucket

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bootstream.localoci.database import Database
    from bootstream.localoci.service import Call, Service

_NAME = re.compile(r"[A-Za-z0-9._-]{1,256}")
_SUMMARY = (
    "namespace", "name", "compartmentId", "createdBy", "timeCreated", "etag", "freeformTags",
    "definedTags",
)  # fmt: skip
_CHOICES: Mapping[str, tuple[str, ...]] = {
    "publicAccessType": ("NoPublicAccess", "ObjectRead", "ObjectReadWithoutList"),
    "versioning": ("Enabled", "Suspended", "Disabled"),
    "autoTiering": ("Disabled", "InfrequentAccess"),
}
_SETTABLE = ("freeformTags", "definedTags", "objectEventsEnabled", "kmsKeyId", *_CHOICES)


class Buckets:
    """All buckets, in memory as on disk. Thread safe."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        rows = database.rows("SELECT id, name, details FROM buckets")
        self._known = {
            row["name"]: Bucket(row["id"], row["name"], json.loads(row["details"])) for row in rows
        }

    def get(self, name: str) -> Bucket:
        """A bucket.

        Raises:
            ApiError: 404 ``BucketNotFound``.
        """
        bucket = self._known.get(name)
        if bucket is None:
            raise not_found_or_not_authorized(name)
        return bucket

    def all(self) -> list[Bucket]:
        """Every bucket, by name."""
        return [bucket for _, bucket in sorted(self._known.copy().items())]

    def create(self, name: str, details: Mapping[str, Any]) -> Bucket:
        """Make a bucket.

        Raises:
            ApiError: 409 ``BucketAlreadyExists``.
        """
        with self._lock:
            if name in self._known:
                raise ApiError(
                    409, "BucketAlreadyExists", f"The bucket '{name}' exists in the namespace"
                )
            with self._database.write() as rows:
                cursor = rows.execute(
                    "INSERT INTO buckets (name, details) VALUES (?, ?)",
                    (name, json.dumps(details)),
                )
            bucket = Bucket(cursor.lastrowid or 0, name, dict(details))
            self._known[name] = bucket
            return bucket

    def update(self, name: str, changes: Mapping[str, Any], if_match: str | None = None) -> Bucket:
        """Change attributes, and perhaps the name; the bucket has a new etag then.

        Raises:
            ApiError: 404; 412 ``IfMatchFailed``; 409, the new name is taken.
        """
        with self._lock:
            old = self.get(name)
            Conditions(if_match).check(old.etag)
            details = {**old.details, **changes, "etag": str(uuid.uuid4())}
            new = Bucket(old.id, details["name"], details)
            if new.name != name and new.name in self._known:
                raise ApiError(409, "BucketAlreadyExists", f"The bucket '{new.name}' exists")
            with self._database.write() as rows:
                rows.execute(
                    "UPDATE buckets SET name=?, details=? WHERE id=?",
                    (new.name, json.dumps(details), old.id),
                )
            self._known[new.name] = new
            if new.name != name:
                del self._known[name]
            return new

    def delete(self, name: str, if_match: str | None) -> None:
        """Delete an empty bucket.

        Raises:
            ApiError: 404; 412; 409 ``BucketNotEmpty``.
        """
        with self._lock:
            bucket = self.get(name)
            Conditions(if_match).check(bucket.etag)
            try:
                with self._database.write() as rows:
                    rows.execute("DELETE FROM pars WHERE bucket=?", (bucket.id,))
                    rows.execute("DELETE FROM buckets WHERE id=?", (bucket.id,))
            except sqlite3.IntegrityError:
                raise ApiError(
                    409,
                    "BucketNotEmpty",
                    f"Bucket '{name}' is not empty: it has objects, versions or uploads",
                ) from None
            del self._known[name]


def new_details(
    service: Service, name: str, compartment: str, creator: str, body: Mapping[str, Any]
) -> dict[str, Any]:
    """The attributes of a new bucket.

    Raises:
        ApiError: 400, the name or an attribute is not allowed.
    """
    identity = f"ocid1.bucket.oc1.{service.region}.{uuid.uuid4().hex}"
    return {
        "namespace": service.namespace,
        "name": bucket_name(name),
        "compartmentId": compartment,
        "metadata": _strings(body.get("metadata"), "metadata"),
        "createdBy": creator,
        "timeCreated": timestamp(service.clock()),
        "etag": str(uuid.uuid4()),
        "publicAccessType": "NoPublicAccess",
        "storageTier": tier(body.get("storageTier") or "Standard"),
        "objectEventsEnabled": False,
        "freeformTags": {},
        "definedTags": {},
        "kmsKeyId": None,
        "objectLifecyclePolicyEtag": None,
        "replicationEnabled": False,
        "isReadOnly": False,
        "id": identity,
        "versioning": "Disabled",
        "autoTiering": "Disabled",
        **_settings(body),
    }


def bucket_name(value: object) -> str:
    """Check a bucket's name.

    Raises:
        ApiError: 400 ``InvalidBucketName``.
    """
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise invalid(
            "a bucket's name has 1 to 256 letters, digits, dots, hyphens and underscores",
            "InvalidBucketName",
        )
    return value


def _settings(body: Mapping[str, Any]) -> dict[str, Any]:
    result = {}
    for key in _SETTABLE:
        value = body.get(key)
        if value is None:
            continue
        if key in _CHOICES and value not in _CHOICES[key]:
            raise invalid(f"{key} is one of {', '.join(_CHOICES[key])}")
        if key.endswith("Tags") and not isinstance(value, dict):
            raise invalid(f"{key} is an object")
        result[key] = value
    return result


def _strings(value: object, name: str) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise invalid(f"{name} has strings")
    return value


def get_namespace(call: Call) -> Response:
    """GET /n: the namespace, a bare JSON string."""
    return json_response(call.service.namespace)


def get_namespace_metadata(call: Call) -> Response:
    """GET /n/{n}."""
    tenancy = call.caller.tenancy
    return json_response(
        {
            "namespace": call.service.namespace,
            "defaultS3CompartmentId": tenancy,
            "defaultSwiftCompartmentId": tenancy,
        }
    )


def list_buckets(call: Call) -> Response:
    """GET /n/{n}/b: those of a compartment, by name, in pages."""
    call.permit(None, None, "BUCKET_INSPECT")
    compartment = call.text("compartmentId")
    after = call.parameters.get("page", "")
    limit = call.limit()
    found = [
        bucket
        for bucket in call.service.buckets.all()
        if bucket.name > after and bucket.details["compartmentId"] == compartment
    ]
    headers = {"opc-next-page": found[limit - 1].name} if len(found) > limit else {}
    items = [{key: bucket.details.get(key) for key in _SUMMARY} for bucket in found[:limit]]
    if "tags" not in call.parameters.get("fields", ""):
        for item in items:
            item["freeformTags"] = item["definedTags"] = None
    return json_response(items, headers=headers)


def create_bucket(call: Call) -> Response:
    """POST /n/{n}/b."""
    body = call.request.json()
    name = bucket_name(body.get("name"))
    call.permit(name, None, "BUCKET_CREATE")
    compartment = body.get("compartmentId")
    if not isinstance(compartment, str) or not compartment:
        raise invalid("compartmentId is missing", "MissingParameter")
    details = new_details(call.service, name, compartment, call.caller.principal_ocid, body)
    return _answer(call, call.service.buckets.create(name, details))


def get_bucket(call: Call, name: str) -> Response:
    """GET /n/{n}/b/{b}; the counts are exact here, and null unless asked for."""
    call.permit(name, None, "BUCKET_READ")
    bucket = call.bucket(name)
    if _unchanged(call, bucket):
        return Response(304, {"etag": bucket.etag})
    return _answer(call, bucket)


def head_bucket(call: Call, name: str) -> Response:
    """HEAD /n/{n}/b/{b}."""
    call.permit(name, None, "BUCKET_INSPECT", "BUCKET_READ")
    bucket = call.bucket(name)
    return Response(304 if _unchanged(call, bucket) else 200, {"etag": bucket.etag})


def _unchanged(call: Call, bucket: Bucket) -> bool:
    headers = call.request.headers
    Conditions(headers.get("if-match")).check(bucket.etag)
    known = headers.get("if-none-match")
    return known is not None and matches(known, bucket.etag)


def update_bucket(call: Call, name: str) -> Response:
    """POST /n/{n}/b/{b}: what the body names is changed, the rest stays."""
    call.permit(name, None, "BUCKET_UPDATE")
    bucket = call.bucket(name)
    body = call.request.json()
    changes = _settings(body)
    if body.get("name") is not None:
        changes["name"] = bucket_name(body["name"])
    if body.get("compartmentId") is not None:
        changes["compartmentId"] = str(body["compartmentId"])
    if body.get("metadata") is not None:
        merged = {**bucket.details["metadata"], **_strings(body["metadata"], "metadata")}
        changes["metadata"] = {key: value for key, value in merged.items() if value}
    if changes.get("versioning") == "Disabled" and bucket.details["versioning"] != "Disabled":
        raise invalid("versioning can be suspended, not disabled again")
    if_match = call.request.headers.get("if-match")
    return _answer(call, call.service.buckets.update(name, changes, if_match))


def delete_bucket(call: Call, name: str) -> Response:
    """DELETE /n/{n}/b/{b}."""
    call.permit(name, None, "BUCKET_DELETE")
    call.service.buckets.delete(name, call.request.headers.get("if-match"))
    return Response(204)


def _answer(call: Call, bucket: Bucket) -> Response:
    details = {key: value for key, value in bucket.details.items() if key[0] != "_"}
    fields = call.parameters.get("fields", "").split(",")
    details["approximateCount"] = details["approximateSize"] = None
    if "approximateCount" in fields or "approximateSize" in fields:
        row = call.service.database.row(
            "SELECT count(*), coalesce(sum(size), 0) FROM objects WHERE bucket=?", bucket.id
        )
        assert row is not None
        if "approximateCount" in fields:
            details["approximateCount"] = row[0]
        if "approximateSize" in fields:
            details["approximateSize"] = row[1]
    return json_response(details, headers={"etag": bucket.etag})


def get_lifecycle(call: Call, name: str) -> Response:
    """GET /n/{n}/b/{b}/l: the rules as they were put; nothing acts on them."""
    call.permit(name, None, "BUCKET_READ")
    policy = call.bucket(name).details.get("_lifecycle")
    if policy is None:
        raise ApiError(
            404, "LifecyclePolicyNotFound", f"The bucket '{name}' has no lifecycle policy"
        )
    return json_response(policy["body"], headers={"etag": policy["etag"]})


def put_lifecycle(call: Call, name: str) -> Response:
    """PUT /n/{n}/b/{b}/l."""
    call.permit(name, None, "BUCKET_UPDATE")
    items = call.request.json().get("items")
    if not isinstance(items, list):
        raise invalid("items is a list of rules")
    old = call.bucket(name).details.get("_lifecycle")
    Conditions.of(call.request.headers).check(old["etag"] if old else None)
    body = {"timeCreated": timestamp(call.service.clock()), "items": items}
    etag = str(uuid.uuid4())
    changes = {"_lifecycle": {"etag": etag, "body": body}, "objectLifecyclePolicyEtag": etag}
    call.service.buckets.update(name, changes)
    return json_response(body, headers={"etag": etag})


def delete_lifecycle(call: Call, name: str) -> Response:
    """DELETE /n/{n}/b/{b}/l."""
    get_lifecycle(call, name)
    call.permit(name, None, "BUCKET_UPDATE")
    call.service.buckets.update(name, {"_lifecycle": None, "objectLifecyclePolicyEtag": None})
    return Response(204)
