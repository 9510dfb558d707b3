"""Which operation a request is, by the names of the API's reference, e.g. ``GetObject``.

Faults are chosen by it, and requests are counted by it.
"""

from __future__ import annotations

import functools
from typing import NamedTuple
from urllib.parse import unquote

from bootstream.localoci.memo import LONG
from bootstream.localoci.registry.operations import registry_operation


class Operation(NamedTuple):
    """An operation, and what it is done to; empty where there is none.

    The registry's have the repository with its namespace as the bucket, and the digest, tag or
    upload as the object.
    """

    name: str
    bucket: str = ""
    object: str = ""


_BUCKET = {"GET": "GetBucket", "HEAD": "HeadBucket", "POST": "UpdateBucket", "PUT": "PutBucket"}
_OBJECT = {"GET": "GetObject", "HEAD": "HeadObject", "PUT": "PutObject", "DELETE": "DeleteObject"}
_UPLOAD = {
    "GET": "ListMultipartUploadParts",
    "PUT": "UploadPart",
    "POST": "CommitMultipartUpload",
    "DELETE": "AbortMultipartUpload",
}
_PAR = {
    "GET": "GetPreauthenticatedRequest",
    "DELETE": "DeletePreauthenticatedRequest",
}
_COLLECTIONS = {
    ("GET", "o"): "ListObjects",
    ("GET", "objectversions"): "ListObjectVersions",
    ("GET", "u"): "ListMultipartUploads",
    ("POST", "u"): "CreateMultipartUpload",
    ("GET", "p"): "ListPreauthenticatedRequests",
    ("POST", "p"): "CreatePreauthenticatedRequest",
}
_OTHER = (
    ("/workRequests", "GetWorkRequest"),
    ("/opc/v2", "Metadata"),
    ("/v1/x509", "Federation"),
    ("/v1/authentication/refresh", "RefreshSession"),
    ("/resourcePrincipalSessionTokens", "WorkloadIdentity"),
)


def operation_of(method: str, raw_path: str) -> Operation:
    """Return which operation a method and a path are; one of its own kind is ``Unknown``.

    Calls through a pre-authenticated request are named as without it.
    """
    return (_known if len(raw_path) <= LONG else _operation_of)(method, raw_path)


def _operation_of(method: str, raw_path: str) -> Operation:
    parts = raw_path.split("/", 7)
    if parts[1:2] == ["p"] and len(parts) > 3:  # /p/TOKEN/n/…
        parts = ("/" + raw_path.split("/", 3)[3]).split("/", 7)
    if parts[1:2] in (["v2"], ["20160918"], ["20180419"]):
        return Operation(*registry_operation(method, raw_path))
    if parts[1:2] != ["n"]:
        name = next((name for prefix, name in _OTHER if raw_path.startswith(prefix)), "Unknown")
        return Operation(name)
    if len(parts) <= 4 or parts[4:] == [""]:
        return Operation(_namespace(method, parts))
    bucket = unquote(parts[4])
    if len(parts) == 5 or parts[5:] == [""]:
        return Operation(
            "DeleteBucket" if method == "DELETE" else _BUCKET.get(method, "Unknown"), bucket
        )
    kind, rest = parts[5], "/".join(parts[6:])
    if not rest:
        return Operation(_COLLECTIONS.get((method, kind), "Unknown"), bucket)
    match kind:
        case "o":
            return Operation(_OBJECT.get(method, "Unknown"), bucket, unquote(rest))
        case "u":
            return Operation(_UPLOAD.get(method, "Unknown"), bucket, unquote(rest))
        case "p":
            return Operation(_PAR.get(method, "Unknown"), bucket)
        case "actions":
            return Operation(rest[:1].upper() + rest[1:], bucket)
    return Operation("Unknown", bucket)


_known = functools.lru_cache(1024)(_operation_of)


def _namespace(method: str, parts: list[str]) -> str:
    if len(parts) < 4:
        return "GetNamespace" if method == "GET" else "Unknown"
    return {"GET": "ListBuckets", "POST": "CreateBucket"}.get(method, "Unknown")
