"""Every principal against the local OCI: it verifies signatures, tokens and certificates."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from pathlib import Path

import pytest
import urllib3

from bootstream.clouds.oci import (
    Credentials,
    Principal,
    body_headers,
    clock_hint,
    http_date,
    open_principal,
    sign,
)
from bootstream.clouds.oci.workload import WorkloadIdentityPrincipal
from bootstream.errors import PermissionDenied
from bootstream.testing.localoci import LocalOciServer


@pytest.fixture(scope="module")
def oci(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalOciServer]:
    """A local OCI that gives pods tokens, too."""
    with LocalOciServer(tmp_path_factory.mktemp("oci"), workload=True) as server:
        yield server


@pytest.fixture
def pool() -> Iterator[urllib3.PoolManager]:
    """Connections for sixteen threads."""
    with urllib3.PoolManager(num_pools=1, maxsize=16, block=True, retries=False) as made:
        yield made


def get(
    oci: LocalOciServer,
    pool: urllib3.PoolManager,
    credentials: Credentials,
    date: str | None = None,
) -> urllib3.BaseHTTPResponse:
    """Ask what the bucket is, in a request that is signed and dated now, or else."""
    target = f"/n/{oci.namespace}/b/{oci.bucket}"
    host = oci.endpoint.removeprefix("http://")
    date = date or http_date()
    headers = {"date": date, "authorization": sign(credentials, "GET", host, target, date=date)}
    return pool.request("GET", oci.endpoint + target, headers=headers)


def workload(oci: LocalOciServer) -> Principal:
    """The pod, whose cluster is at a port of its own."""
    return WorkloadIdentityPrincipal(
        f"https://127.0.0.1:{oci.workload_port}/resourcePrincipalSessionTokens",
        region=oci.region,
        token_file=Path(oci.variables["OCI_KUBERNETES_SERVICE_ACCOUNT_TOKEN_PATH"]),
        ca_file=Path(oci.variables["OCI_KUBERNETES_SERVICE_ACCOUNT_CERT_PATH"]),
    )


@pytest.mark.parametrize(
    ("auth", "profile"),
    [
        ("api_key", None),
        ("security_token", "SESSION"),
        ("instance_principal", None),
        ("resource_principal", None),
        ("oke_workload_identity", None),
    ],
)
def test_every_principal_is_let_in(
    oci: LocalOciServer, pool: urllib3.PoolManager, auth: str, profile: str | None
) -> None:
    """A signed GET is answered; the principal knows its region; a refresh is let in, too."""
    kind = auth == "oke_workload_identity"
    principal = workload(oci) if kind else oci.principal(auth, profile)
    assert principal.name == auth
    assert principal.region == oci.region
    assert (principal.tenancy or "").startswith("ocid1.tenancy.")
    credentials = principal.credentials()
    assert get(oci, pool, credentials).status == 200
    fresh = principal.refresh(credentials)
    assert get(oci, pool, fresh).status == 200
    assert (fresh is not credentials) == (auth in {"instance_principal", "oke_workload_identity"})


def test_bodies_are_signed(oci: LocalOciServer, pool: urllib3.PoolManager) -> None:
    """A POST is let in with the hash of its body, and refused with the hash of another."""
    credentials = oci.principal().credentials()
    host = oci.endpoint.removeprefix("http://")
    target = f"/n/{oci.namespace}/b/{oci.bucket}/actions/batchDeleteObjects"
    body = b'{"objects": []}'
    for sent, good in ((body, True), (b'{"objects" :[]}', False)):
        headers = {"date": http_date(), **body_headers(body)}
        headers["authorization"] = sign(
            credentials, "POST", host, target, date=headers["date"], body_headers=headers
        )
        answer = pool.request("POST", oci.endpoint + target, headers=headers, body=sent)
        assert (answer.status == 401) != good


def test_the_cluster_has_to_be_the_right_one(oci: LocalOciServer) -> None:
    """A token service whose certificate the cluster's authority did not sign gets no token."""
    other = oci.folder / "data" / "identity" / "root.pem"  # an authority, of instances
    with pytest.raises(PermissionDenied, match="not secure"):
        WorkloadIdentityPrincipal(
            f"https://127.0.0.1:{oci.workload_port}/resourcePrincipalSessionTokens",
            region=None,
            token_file=Path(oci.variables["OCI_KUBERNETES_SERVICE_ACCOUNT_TOKEN_PATH"]),
            ca_file=other,
            patience=0.5,
        )


def test_the_instances_certificate_is_rotated(
    oci: LocalOciServer, pool: urllib3.PoolManager
) -> None:
    """The next token is asked for with the certificate of then."""
    principal = oci.principal("instance_principal")
    oci.rotate_instance()
    fresh = principal.refresh(principal.credentials())
    assert get(oci, pool, fresh).status == 200


def test_requests_go_on_through_renewals(oci: LocalOciServer, pool: urllib3.PoolManager) -> None:
    """Sixteen threads at full speed, tokens of two seconds, one rotation: nobody is refused."""
    oci.set_token_lifetime(2)
    stop = threading.Event()
    seen: set[int] = set()
    try:
        principal = oci.principal("instance_principal")

        def work() -> list[int]:
            statuses = []
            while not stop.is_set():
                credentials = principal.credentials()
                seen.add(id(credentials.private_key))
                answer = get(oci, pool, credentials)
                if answer.status == 401 and b"expired" in answer.data:
                    # The machine was so busy that the request was on its way for too long.
                    answer = get(oci, pool, principal.refresh(credentials))
                statuses.append(answer.status)
            return statuses

        with ThreadPoolExecutor(16) as threads:
            jobs = [threads.submit(work) for _ in range(16)]
            end = time.monotonic() + 15
            keep: list[Credentials] = []
            while len(keep) < 4 and time.monotonic() < end:
                current = principal.credentials()
                if not keep or keep[-1] is not current:
                    keep.append(current)  # alive, so that no id is used twice
                    if len(keep) == 2:
                        oci.rotate_instance()
                stop.wait(0.02)
            stop.set()
            statuses = [status for job in jobs for status in job.result()]
    finally:
        stop.set()
        oci.set_token_lifetime(1200)
    assert len(keep) == 4
    assert set(statuses) == {200}
    assert len(seen) >= 3


def test_a_wrong_clock_is_told_apart(oci: LocalOciServer, pool: urllib3.PoolManager) -> None:
    """A request dated an hour ago is refused, and the answer's Date explains why."""
    credentials = oci.principal().credentials()
    answer = get(oci, pool, credentials, date=formatdate(time.time() - 3600, usegmt=True))
    assert answer.status == 401
    hint = clock_hint(answer.headers["date"], now=time.time() - 3600)
    assert re.search(r"clock is 3(599|600|601) seconds behind", str(hint))
    assert clock_hint(answer.headers["date"]) is None
    assert get(oci, pool, credentials).status == 200


def test_the_environment_alone_is_enough(oci: LocalOciServer, pool: urllib3.PoolManager) -> None:
    """What ``--write-env`` exports opens what OCI_CLI_AUTH says, and else a resource principal."""
    named = open_principal(environ=oci.variables)
    assert named.name == oci.variables["OCI_CLI_AUTH"]
    environ = {k: v for k, v in oci.variables.items() if k != "OCI_CLI_AUTH"}
    found = open_principal(environ=environ)
    assert found.name == "resource_principal"
    for principal in (named, found):
        assert get(oci, pool, principal.credentials()).status == 200
