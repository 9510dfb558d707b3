"""Workload identity: a pod of an enhanced OKE cluster.

"Granting Workloads Access to OCI Resources" of Oracle's documentation. A service inside
the cluster, beside the Kubernetes API, takes the public half of a session key from a pod that
shows its service account's token, and answers with a resource principal's session token.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from pathlib import Path

from bootstream.clouds.oci import web
from bootstream.clouds.oci.credentials import Credentials
from bootstream.clouds.oci.instance import token_of
from bootstream.clouds.oci.keys import new_session_key, public_der_base64, read_file
from bootstream.clouds.oci.refresher import Refresher
from bootstream.clouds.oci.regions import find_region
from bootstream.errors import PermissionDenied

_FOLDER = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_PORT = 12250
_PATH = "/resourcePrincipalSessionTokens"
_GET_TOKEN = "get workload token"  # noqa: S105 - an operation's name
_REMEDY = (
    "the cluster has to be an enhanced one, and a policy has to name the workload: "
    "any-user where all {request.principal.type = 'workload', …}"
)


def endpoint_of(environ: Mapping[str, str]) -> str | None:
    """Return the URL of the cluster's token service; None outside of Kubernetes."""
    host = environ.get("KUBERNETES_SERVICE_HOST")
    if not host:
        return None
    if ":" in host and not host.startswith("["):
        host = f"[{host}]"
    return f"https://{host}:{_PORT}{_PATH}"


class WorkloadIdentityPrincipal:
    """The pod this runs in. Thread safe; see ``Principal``.

    Args:
        endpoint: URL of the token service, see ``endpoint_of``.
        region: identifier or key, where the environment has it.
        token_file: the service account's token; read for every session token, as Kubernetes
            rotates it. None takes Kubernetes' usual place.
        ca_file: the cluster's authority; None takes the usual place.
        patience: seconds to keep trying while nobody answers.

    Raises:
        PermissionDenied: refused, or not in a pod.
        Unavailable: no answer in time.
    """

    name = "oke_workload_identity"

    def __init__(
        self,
        endpoint: str,
        *,
        region: str | None,
        token_file: Path | None = None,
        ca_file: Path | None = None,
        patience: float = 30.0,
    ) -> None:
        self._endpoint = endpoint
        self._region = find_region(region).identifier if region else None
        self._token_file = token_file or _FOLDER / "token"
        self._ca_file = ca_file or _FOLDER / "ca.crt"
        self._patience = patience
        self._tenancy: str | None = None
        self._refresher = Refresher(self._acquire, name=self.name)
        self._refresher.credentials()

    @property
    def tenancy(self) -> str | None:
        """See ``Principal``."""
        return self._tenancy

    @property
    def region(self) -> str | None:
        """See ``Principal``."""
        return self._region

    def credentials(self) -> Credentials:
        """See ``Principal``."""
        return self._refresher.credentials()

    def refresh(self, stale: Credentials) -> Credentials:
        """See ``Principal``."""
        return self._refresher.refresh(stale)

    def _acquire(self) -> Credentials:
        return web.retry(self._acquire_once, patience=self._patience)

    def _acquire_once(self) -> Credentials:
        bearer = self._bearer()
        ca_file = None
        if self._endpoint.startswith("https:"):
            read_file(self._ca_file, "cluster's certificate")
            ca_file = str(self._ca_file)
        session = new_session_key()
        answer = web.request(
            "POST",
            self._endpoint,
            headers={"authorization": f"Bearer {bearer}", "content-type": "application/json"},
            body=json.dumps({"podKey": public_der_base64(session)}).encode(),
            ca_file=ca_file,
            operation=_GET_TOKEN,
        )
        web.check(answer, operation=_GET_TOKEN, object=self._endpoint, remedy=_REMEDY)
        token, offset = token_of(answer, _extract, object=self._endpoint)
        self._tenancy = token.tenancy or self._tenancy
        return Credentials(token.key_id, session, token.expires + offset)

    def _bearer(self) -> str:
        data = read_file(self._token_file, "service account token")
        try:
            text = data.decode("ascii").strip()
        except UnicodeDecodeError:
            text = ""
        if not text or not text.isprintable() or " " in text:
            raise PermissionDenied(
                "this is not a token",
                operation=_GET_TOKEN,
                object=str(self._token_file),
                remedy="mount the service account's token: automountServiceAccountToken: true",
            )
        return text


def _extract(body: bytes) -> object:
    """The answer is JSON in base64; plain JSON, as other services write it, will do."""
    text = body.strip()
    if not text.startswith(b"{"):
        try:
            text = base64.b64decode(text.strip(b'"'), validate=True)
        except binascii.Error:
            raise KeyError from None
    return json.loads(text)["token"]
