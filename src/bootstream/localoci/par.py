"""Pre-authenticated requests: whoever has the address may do what it was made for.

The address holds a token, of which only a digest is kept: it is shown once, at creation. A
request that comes over it is an ordinary one whose caller is the pre-authenticated request, and
whose policies are what that grants.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from bootstream.localoci import multipart
from bootstream.localoci.errors import ApiError, invalid, not_found_or_not_authorized
from bootstream.localoci.http import Response, json_response
from bootstream.localoci.listing import list_objects
from bootstream.localoci.objects import get_object, head_object, put_object
from bootstream.localoci.protocols import Caller
from bootstream.localoci.service import (
    CONTENT_HEADERS,
    Call,
    decode,
    metadata,
    object_name,
    timestamp,
)

if TYPE_CHECKING:
    from bootstream.localoci.http import Request
    from bootstream.localoci.service import Service

_TYPES = (
    "ObjectRead",
    "ObjectWrite",
    "ObjectReadWrite",
    "AnyObjectRead",
    "AnyObjectWrite",
    "AnyObjectReadWrite",
)
_SHOWN = (
    "id", "name", "objectName", "bucketListingAction", "accessType", "timeExpires", "timeCreated",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Grant:
    """What a pre-authenticated request allows: policies for those who come with it.

    ``name`` is the object's, or the prefix of the objects' where there may be any.
    """

    bucket: str
    access: str
    name: str
    listing: bool

    def check(
        self,
        caller: Caller,  # noqa: ARG002 - the protocol's
        permission: str,
        bucket: str | None,
        object_name: str | None,
    ) -> None:
        """Grant, or answer as if there were no bucket."""
        allowed = False
        if permission == "OBJECT_INSPECT" and object_name is None:
            allowed = self.listing
        elif object_name is not None:
            many = self.access.startswith("Any")
            named = object_name.startswith(self.name) if many else object_name == self.name
            kind = "Read" if permission in {"OBJECT_READ", "OBJECT_INSPECT"} else "Write"
            known = permission in {
                "OBJECT_READ", "OBJECT_INSPECT", "OBJECT_CREATE", "OBJECT_OVERWRITE",
            }  # fmt: skip
            allowed = named and known and kind in self.access
        if not allowed or bucket != self.bucket:
            raise not_found_or_not_authorized(bucket or "")


def create_par(call: Call, bucket_name: str) -> Response:
    """POST /n/{n}/b/{b}/p."""
    call.permit(bucket_name, None, "PAR_MANAGE")
    bucket, body = call.bucket(bucket_name), call.request.json()
    access = body.get("accessType")
    if access not in _TYPES:
        raise invalid(f"accessType is one of {', '.join(_TYPES)}")
    if not isinstance(body.get("name"), str) or not body["name"]:
        raise invalid("name is missing", "MissingParameter")
    name = body.get("objectName")
    if name is not None or not access.startswith("Any"):
        name = object_name(name)
    listing = body.get("bucketListingAction") or "Deny"
    if listing not in ("Deny", "ListObjects") or (listing != "Deny" and "AnyObjectR" not in access):
        raise invalid("bucketListingAction is Deny, or ListObjects where any object is read")
    for word, needed in (("Read", "OBJECT_READ"), ("Write", "OBJECT_CREATE")):
        if word in access:
            call.permit(bucket_name, name, needed)
    if "Write" in access:
        call.permit(bucket_name, name, "OBJECT_OVERWRITE")
    expires, now = _moment(body.get("timeExpires")), call.service.clock()
    if expires <= now:
        raise invalid("timeExpires is in the past")
    token, identity = secrets.token_urlsafe(48), str(uuid.uuid4())
    details = {
        "id": identity,
        "name": body["name"],
        "objectName": name,
        "bucketListingAction": listing,
        "accessType": access,
        "timeExpires": timestamp(expires),
        "timeCreated": timestamp(now),
    }
    with call.service.database.write(()) as rows:
        rows.execute(
            "INSERT INTO pars (id, bucket, token, details, expires) VALUES (?,?,?,?,?)",
            (identity, bucket.id, _digest(token), json.dumps(details), expires),
        )
    shown = "" if access.startswith("Any") else quote(name or "", safe="/")
    uri = f"/p/{token}/n/{call.service.namespace}/b/{quote(bucket_name)}/o/{shown}"
    host = call.request.headers.get("host", "127.0.0.1")
    return json_response({**details, "accessUri": uri, "fullPath": f"http://{host}{uri}"})


def _moment(value: object) -> float:
    try:
        moment = datetime.fromisoformat(value if isinstance(value, str) else "")
        moment = moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise invalid("timeExpires is a time of RFC 3339") from None
    return moment.timestamp()


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def list_pars(call: Call, bucket_name: str) -> Response:
    """GET /n/{n}/b/{b}/p; addresses are not shown again."""
    call.permit(bucket_name, None, "PAR_MANAGE")
    limit, page = call.limit(), call.parameters.get("page", "")
    rows = call.service.database.rows(
        "SELECT id, details FROM pars WHERE bucket=? AND id>? ORDER BY id",
        call.bucket(bucket_name).id, page,
    )  # fmt: skip
    prefix = call.parameters.get("objectNamePrefix", "")
    found = [json.loads(row["details"]) for row in rows]
    found = [item for item in found if (item["objectName"] or "").startswith(prefix)]
    headers = {"opc-next-page": found[limit - 1]["id"]} if len(found) > limit else {}
    return json_response([_summary(item) for item in found[:limit]], headers=headers)


def get_par(call: Call, bucket_name: str, identity: str) -> Response:
    """GET /n/{n}/b/{b}/p/{id}."""
    call.permit(bucket_name, None, "PAR_MANAGE")
    row = call.service.database.row(
        "SELECT details FROM pars WHERE bucket=? AND id=?",
        call.bucket(bucket_name).id, identity,
    )  # fmt: skip
    if row is None:
        raise _no_par(identity)
    return json_response(_summary(json.loads(row["details"])))


def delete_par(call: Call, bucket_name: str, identity: str) -> Response:
    """DELETE /n/{n}/b/{b}/p/{id}: the address ends at once."""
    call.permit(bucket_name, None, "PAR_MANAGE")
    bucket = call.bucket(bucket_name)
    with call.service.database.write(()) as rows:
        ended = rows.execute("DELETE FROM pars WHERE bucket=? AND id=?", (bucket.id, identity))
        if not ended.rowcount:
            raise _no_par(identity)
    return Response(204)


def _no_par(identity: str) -> ApiError:
    return ApiError(
        404, "PreauthenticatedRequestNotFound", f"No pre-authenticated request '{identity}'"
    )


def _summary(details: dict[str, Any]) -> dict[str, Any]:
    return {key: details[key] for key in _SHOWN}


def handle(service: Service, request: Request) -> Response:
    """A request whose path starts with ``/p/{token}``."""
    parts = request.raw_path.split("/", 8)
    if len(parts) < 8 or parts[3] != "n" or parts[5] != "b":
        raise ApiError(404, "NotFound", "There is nothing of this path")
    bucket_name = decode(parts[6])
    row = service.database.row(
        "SELECT pars.id, pars.details, pars.expires, buckets.name FROM pars"
        " JOIN buckets ON buckets.id=pars.bucket WHERE token=?",
        _digest(parts[2]),
    )
    if (
        row is None
        or row["expires"] <= service.clock()
        or row["name"] != bucket_name
        or decode(parts[4]) != service.namespace
    ):
        raise not_found_or_not_authorized(bucket_name)
    details = json.loads(row["details"])
    grant = Grant(
        bucket_name,
        details["accessType"],
        details["objectName"] or "",
        details["bucketListingAction"] == "ListObjects",
    )
    caller = Caller(row["id"], "", "par")
    call = Call(service, request, caller, request.parameters(), grant)
    rest = parts[8] if len(parts) > 8 else ""
    if parts[7] == "u":
        return _upload(call, bucket_name, rest)
    if parts[7] != "o":
        raise ApiError(404, "NotFound", "There is nothing of this path")
    return _object(call, bucket_name, decode(rest), grant)


def _object(call: Call, bucket_name: str, name: str, grant: Grant) -> Response:
    method = call.request.method
    if not name:
        if method not in {"GET", "HEAD"}:
            raise ApiError(405, "MethodNotAllowed", f"A listing cannot be {method}")
        if not call.parameters.get("prefix", "").startswith(grant.name):
            raise not_found_or_not_authorized(bucket_name)
        return list_objects(call, bucket_name)
    if method == "GET":
        return get_object(call, bucket_name, name)
    if method == "HEAD":
        return head_object(call, bucket_name, name)
    if method == "PUT":
        if call.request.headers.get("opc-multipart", "").lower() == "true":
            return _begin(call, bucket_name, name)
        return put_object(call, bucket_name, name)
    raise ApiError(405, "MethodNotAllowed", f"An object cannot be {method} here")


def _begin(call: Call, bucket_name: str, name: str) -> Response:
    object_name(name)
    call.permit(bucket_name, name, "OBJECT_OVERWRITE")
    headers = call.request.headers
    kept = {"content-type": headers.get("content-type") or "application/octet-stream"}
    kept |= {key: headers[key] for key in CONTENT_HEADERS.values() if key in headers}
    kept |= metadata(headers)
    bucket = call.bucket(bucket_name)
    begun = multipart.begin(call, bucket, name, kept, headers.get("storage-tier"))
    token = call.request.raw_path.split("/", 3)[2]
    shown = quote(name, safe="")
    begun["accessUri"] = (
        f"/p/{token}/n/{call.service.namespace}/b/{quote(bucket_name)}"
        f"/u/{shown}/id/{begun['uploadId']}/"
    )
    return json_response(begun)


def _upload(call: Call, bucket_name: str, rest: str) -> Response:
    """``{object}/id/{uploadId}/[{part}]``."""
    escaped, _, tail = rest.rpartition("/id/")
    name, (upload, _, number) = decode(escaped), tail.partition("/")
    object_name(name)
    call.permit(bucket_name, name, "OBJECT_OVERWRITE")
    bucket, method = call.bucket(bucket_name), call.request.method
    if number:
        if not (number.isascii() and number.isdigit() and 1 <= int(number[:9]) <= 10_000):
            raise invalid("a part's number is from 1 to 10000")
        if method == "PUT":
            return multipart.take_part(call, bucket, name, upload, int(number))
    elif method == "POST":
        return multipart.finish(call, bucket, name, upload, None)
    elif method == "DELETE":
        return multipart.drop_upload(call, bucket, name, upload)
    raise ApiError(405, "MethodNotAllowed", f"An upload cannot be {method} here")
