"""Which operation of the registry a request is, for faults and counts.

Of the Artifacts API and the token service they are the names of OCI's reference. Of ``/v2/`` they
are ours: ``GetManifest``, ``HeadManifest``, ``PutManifest``, ``GetBlob``, ``HeadBlob``,
``StartUpload``, ``GetUpload``, ``PatchUpload``, ``PutUpload``, ``CancelUpload``, ``ListTags`` and
``CheckRegistry``.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

_PATH = re.compile(
    r"/v2/(?P<name>.+)/(?:(?P<tags>tags/list)|manifests/(?P<manifest>[^/]+)"
    r"|blobs/uploads/(?P<upload>[^/]*)|blobs/(?P<blob>[^/]+)|referrers/(?P<referrers>[^/]+))"
)
_NAMES = {
    ("GET", "tags"): "ListTags",
    ("GET", "manifest"): "GetManifest",
    ("HEAD", "manifest"): "HeadManifest",
    ("PUT", "manifest"): "PutManifest",
    ("DELETE", "manifest"): "DeleteManifest",
    ("GET", "blob"): "GetBlob",
    ("HEAD", "blob"): "HeadBlob",
    ("DELETE", "blob"): "DeleteBlob",
    ("POST", "upload"): "StartUpload",
    ("GET", "upload"): "GetUpload",
    ("PATCH", "upload"): "PatchUpload",
    ("PUT", "upload"): "PutUpload",
    ("DELETE", "upload"): "CancelUpload",
    ("GET", "referrers"): "ListReferrers",
}
_API = {
    ("GET", "configuration", ""): "GetContainerConfiguration",
    ("GET", "repositories", ""): "ListContainerRepositories",
    ("POST", "repositories", ""): "CreateContainerRepository",
    ("GET", "repositories", "*"): "GetContainerRepository",
    ("PUT", "repositories", "*"): "UpdateContainerRepository",
    ("DELETE", "repositories", "*"): "DeleteContainerRepository",
    ("GET", "images", ""): "ListContainerImages",
    ("GET", "images", "*"): "GetContainerImage",
    ("DELETE", "images", "*"): "DeleteContainerImage",
}
_ACTIONS = {
    "lookupImageByUri": "LookupContainerImageByUri",
    "removeVersion": "RemoveContainerVersion",
    "restore": "RestoreContainerImage",
}


def place_of(raw_path: str) -> tuple[str, str, str] | None:
    """Take a path below ``/v2/`` apart; None if it names nothing.

    Returns the repository's name with its namespace, the kind of what is in it (``tags``,
    ``manifest``, ``upload``, ``blob``, ``referrers``), and which one.
    """
    match = _PATH.fullmatch(raw_path)
    if match is None or match.lastgroup is None:
        return None
    return unquote(match["name"]), match.lastgroup, unquote(match[match.lastgroup])


def registry_operation(method: str, raw_path: str) -> tuple[str, str, str]:
    """Return an operation's name, its repository and what it is done to there."""
    parts = raw_path.rstrip("/").split("/")
    if parts[1] == "v2":
        if parts[2:] == []:
            return "CheckRegistry", "", ""
        place = place_of(raw_path)
        if place is None:
            return "Unknown", "", ""
        name, kind, item = place
        return _NAMES.get((method, kind), "Unknown"), name, item
    if parts[1] == "20180419":
        return "GetAccessToken", "", ""
    name = parts[-1] if parts[-2:-1] == ["actions"] else ""
    if name in _ACTIONS:
        return _ACTIONS[name], "", parts[4] if len(parts) > 6 else ""
    kind, item = (*parts[3:5], "", "")[:2]
    return _API.get((method, kind, "*" if item else ""), "Unknown"), "", item
