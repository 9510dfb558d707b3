"""Submits jobs to Nomad by its HTTP API: parsed there, planned, registered.

"Nomad HTTP API": ``POST /v1/jobs/parse`` turns HCL into a job, ``POST /v1/job/ID/plan`` says
whether anything would change, ``POST /v1/jobs`` registers it, if it is still the version that was
planned (``EnforceIndex``), so that two people cannot overwrite each other unseen. The token
travels in ``X-Nomad-Token``, and is in no message.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import urllib3

from bootstream.errors import (
    BootstreamError,
    Conflict,
    Corrupt,
    InvalidInput,
    PermissionDenied,
    Unavailable,
)
from bootstream.proxies import NO_PROXIES, Proxies, proxy_authorization, without_credentials

_MAX_ANSWER = 16 << 20
_TRIES = 5
_LONGEST_WAIT = 8.0
_TROUBLE = re.compile(r"leader|rpc error|timed? ?out|connection|answered 500", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class NomadAccess:
    """Where Nomad's API is. ``address``: without a slash at its end; ``ca_file``: PEM."""

    address: str
    token: str | None = field(default=None, repr=False)
    namespace: str | None = None
    region: str | None = None
    ca_file: str | None = None
    proxies: Proxies = NO_PROXIES


class Nomad:
    """Nomad's jobs. For one thread.

    Every method raises:
        PermissionDenied: the token may not do it.
        InvalidInput: Nomad does not take the job; its own words are in the message.
        Unavailable: nobody answers, or with 5xx, after retries.
        Corrupt: the answer is not what the API's documentation says.
    """

    def __init__(self, access: NomadAccess, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._access = access
        self._sleep = sleep
        proxy = access.proxies.for_url(access.address)
        timeout = urllib3.Timeout(connect=10, read=60)
        options: dict[str, Any] = {"retries": False, "timeout": timeout, "ca_certs": access.ca_file}
        if proxy is None:
            self._pool: urllib3.PoolManager = urllib3.PoolManager(**options)
        else:
            authorization = proxy_authorization(proxy)
            headers = {"proxy-authorization": authorization} if authorization else None
            self._pool = urllib3.ProxyManager(
                without_credentials(proxy), proxy_headers=headers, **options
            )

    def close(self) -> None:
        """Close idle connections."""
        self._pool.clear()

    def submit(self, text: str, name: str) -> str:
        """Register a job unless it is as it should be; return ``unchanged`` or ``submitted``.

        Args:
            text: HCL.
            name: for errors.

        Raises:
            Conflict: somebody else changed it meanwhile.
        """
        job = self._call("POST", "/v1/jobs/parse", name, {"JobHCL": text, "Canonicalize": True})
        identifier = job.get("ID")
        if not isinstance(identifier, str):
            raise _corrupt(name)
        path = f"/v1/job/{quote(identifier, safe='')}"
        plan = self._call("POST", f"{path}/plan", name, {"Job": job, "Diff": True})
        difference = plan.get("Diff")
        index = plan.get("JobModifyIndex")
        if (
            not isinstance(difference, dict)
            or isinstance(index, bool)
            or not isinstance(index, int)
        ):
            raise _corrupt(name)
        if difference.get("Type") == "None":
            return "unchanged"
        body = {"Job": job, "EnforceIndex": True, "JobModifyIndex": index}
        self._call("POST", "/v1/jobs", name, body, repeat=False)
        return "submitted"

    def _call(
        self, method: str, path: str, name: str, body: object, *, repeat: bool = True
    ) -> dict[str, Any]:
        """Send a request; what only looks is repeated, a registration is not."""
        failures = 0
        while True:
            try:
                return self._once(method, path, name, body)
            except Unavailable as error:
                failures += 1
                if not repeat or not error.transient or failures >= _TRIES:
                    raise
                self._sleep(min(_LONGEST_WAIT, 0.5 * 2**failures))

    def _once(self, method: str, path: str, name: str, body: object) -> dict[str, Any]:
        access = self._access
        headers = {"Content-Type": "application/json"}
        if access.token is not None:
            headers["X-Nomad-Token"] = access.token
        fields = {"namespace": access.namespace, "region": access.region}
        query = "&".join(f"{k}={quote(v, safe='')}" for k, v in fields.items() if v is not None)
        url = f"{access.address}{path}{'?' if query else ''}{query}"
        try:
            answer = self._pool.request(
                method,
                url,
                body=json.dumps(body),
                headers=headers,
                redirect=False,
                preload_content=False,
            )
            try:
                data = answer.read(_MAX_ANSWER + 1)
            finally:
                answer.close()
        except urllib3.exceptions.SSLError as error:
            raise PermissionDenied(
                f"the connection is not secure: {error.__cause__ or error}",
                operation="submit job",
                object=name,
                remedy="name Nomad's authority with NOMAD_CACERT",
            ) from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Unavailable(
                f"no answer: {type(error).__name__}",
                operation="submit job",
                object=f"{name} to {access.address}",
                remedy="check NOMAD_ADDR, and that it can be reached from here",
            ) from error
        if answer.status != 200:
            raise self._refused(answer.status, data, name)
        try:
            document = json.loads(data) if len(data) <= _MAX_ANSWER else None
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict):
            raise _corrupt(name)
        return document

    def _refused(self, status: int, data: bytes, name: str) -> BootstreamError:
        said = " ".join(data[:500].decode("utf-8", "replace").split()) or f"it answered {status}"
        if status in (401, 403):
            remedy = "NOMAD_TOKEN needs the capabilities parse-job, submit-job and read-job"
            return PermissionDenied(said, operation="submit job", object=name, remedy=remedy)
        if "Enforcing job modify index" in said:
            return Conflict(
                "somebody else changed the job meanwhile",
                operation="submit job",
                object=name,
                remedy="run it again",
            )
        # A job that does not hold together is answered with 500, too; these are not of the job.
        if status in (429, 502, 503, 504) or (status == 500 and _TROUBLE.search(said)):
            return Unavailable(f"{said} ({status})", operation="submit job", object=name)
        return InvalidInput(f"{said} ({status})", operation="submit job", object=name)


def _corrupt(name: str) -> Corrupt:
    return Corrupt(
        "the answer is not Nomad's",
        operation="submit job",
        object=name,
        remedy="see that NOMAD_ADDR is the address of Nomad's API",
    )
