"""The instance metadata service, version 2: ``/opc/v2/…`` with ``Authorization: Bearer Oracle``.

Source: "Instance Metadata Service v2" in Oracle's documentation of Compute. As there, a
request without the header, or one that came through a proxy, is refused with 403.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bootstream.localoci.errors import ApiError
from bootstream.localoci.http import Request, Response, json_response
from bootstream.localoci.keys import private_pem

if TYPE_CHECKING:
    from bootstream.localoci.keys import Identity

_PREFIX = "/opc/v2"
_REGION_KEYS = {
    "us-ashburn-1": "IAD",
    "us-phoenix-1": "PHX",
    "eu-frankfurt-1": "FRA",
    "uk-london-1": "LHR",
}


class Metadata:
    """What an instance can learn about itself. Thread safe.

    Args:
        identity: which instance it is.
    """

    def __init__(self, identity: Identity) -> None:
        self._identity = identity

    def handle(self, request: Request) -> Response | None:
        """Answer a request below ``/opc/v2``; None if it is for somebody else.

        Raises:
            ApiError: 403 or 404.
        """
        path = request.path.rstrip("/")
        if path != _PREFIX and not path.startswith(_PREFIX + "/"):
            return None
        if request.headers.get("authorization") != "Bearer Oracle":
            raise ApiError(403, "Forbidden", "the header Authorization: Bearer Oracle is missing")
        if "x-forwarded-for" in request.headers or "forwarded" in request.headers:
            raise ApiError(403, "Forbidden", "the request came through a proxy")
        if request.method not in {"GET", "HEAD"}:
            raise ApiError(405, "MethodNotAllowed", "only GET and HEAD are answered here")
        return self._answer(path[len(_PREFIX) :])

    def _answer(self, path: str) -> Response:
        match path:
            case "/identity/cert.pem":
                return _text(self._identity.instance().pem)
            case "/identity/key.pem":
                return _text(private_pem(self._identity.instance().key))
            case "/identity/intermediate.pem":
                return _text(self._identity.intermediate.pem)
        value: Any = {"instance": self._instance()}
        for part in path.split("/"):
            if part:
                if not isinstance(value, dict) or part not in value:
                    raise ApiError(404, "NotFound", f"no such metadata: {path}")
                value = value[part]
        return json_response(value) if isinstance(value, dict) else _text(str(value).encode())

    def _instance(self) -> dict[str, Any]:
        names = self._identity.names
        key = _REGION_KEYS.get(names.region, names.region.upper())
        return {
            "availabilityDomain": f"LOCL:{key}-AD-1",
            "faultDomain": "FAULT-DOMAIN-1",
            "compartmentId": names.compartment,
            "tenantId": names.tenancy,
            "displayName": "local",
            "hostname": "local",
            "id": names.instance,
            "image": names.instance.replace("ocid1.instance.", "ocid1.image."),
            "region": key.lower() if names.region in _REGION_KEYS else names.region,
            "canonicalRegionName": names.region,
            "ociAdName": f"{key.lower()}-ad-1",
            "regionInfo": {
                "realmKey": "oc1",
                "realmDomainComponent": "oraclecloud.com",
                "regionKey": key,
                "regionIdentifier": names.region,
            },
            "shape": "VM.Standard.E5.Flex",
            "state": "Running",
            "timeCreated": 1700000000000,
            "metadata": {},
        }


def _text(data: bytes) -> Response:
    return Response(200, {"content-type": "text/plain"}, data)
