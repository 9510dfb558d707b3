"""Buckets, the namespace, actions on objects, work requests, archives, permissions."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from tests.localoci.client import Answer, Client
from tests.localoci.conftest import Clock
from tests.localoci.openserver import OpenServer

from bootstream.localoci.errors import ApiError

if TYPE_CHECKING:
    from pathlib import Path

    from bootstream.localoci.protocols import Caller

B = "/n/local/b"
O = "/n/local/b/b/o/"  # noqa: E741 - the service's own letter
A = "/n/local/b/b/actions/"


def test_namespace(client: Client) -> None:
    """The namespace is a bare string; another one is not found."""
    for target in ("/n", "/n/", "/n?compartmentId=x"):
        assert client.ask("GET", target).json() == "local"
    assert client.ask("GET", "/n/local").json()["namespace"] == "local"
    assert client.ask("GET", "/n/other/b/b/o").code == "NamespaceNotFound"
    assert client.ask("GET", "/nothing").status == 404
    assert client.ask("PATCH", "/n").status == 405
    assert client.ask("PATCH", O + "k").headers["allow"]


def test_buckets(client: Client) -> None:
    """Create, get, head, list in pages, update, rename, delete."""
    made = client.ask("POST", B, {"name": "c", "compartmentId": "x", "metadata": {"k": "v"}})
    assert made.status == 200
    assert made.json()["etag"] == made.headers["etag"]
    assert client.ask("POST", B, {"name": "c", "compartmentId": "x"}).code == "BucketAlreadyExists"
    assert client.ask("POST", B, {"name": "a b", "compartmentId": "x"}).status == 400
    assert client.ask("POST", B, {"name": "d"}).status == 400
    client.ask("POST", B, {"name": "d", "compartmentId": "x"})
    first = client.ask("GET", B + "?compartmentId=x&limit=1")
    assert [item["name"] for item in first.json()] == ["c"]
    rest = client.ask("GET", f"{B}?compartmentId=x&limit=1&page={first.headers['opc-next-page']}")
    assert [item["name"] for item in rest.json()] == ["d"]
    assert client.ask("GET", B).status == 400
    head = client.ask("HEAD", B + "/c")
    assert (head.status, head.headers["etag"]) == (200, made.headers["etag"])
    assert client.ask("GET", B + "/c", if_none_match=made.headers["etag"]).status == 304
    assert client.ask("POST", B + "/c", {"metadata": {"l": "w"}}, if_match="stale").status == 412
    changed = client.ask("POST", B + "/c", {"metadata": {"k": "", "l": "w"}, "name": "e"})
    assert changed.json()["metadata"] == {"l": "w"}
    assert client.ask("HEAD", B + "/c").status == 404
    assert client.ask("POST", B + "/e", {"versioning": "Sometimes"}).status == 400
    assert client.ask("DELETE", B + "/e", if_match="stale").status == 412
    assert client.ask("DELETE", B + "/e").status == 204
    missing = client.ask("GET", B + "/e")
    assert (missing.status, missing.code) == (404, "BucketNotFound")
    assert client.ask("PUT", B + "/e/o/k", b"x").code == "BucketNotFound"


def test_a_bucket_is_there_while_it_changes(open_server: OpenServer) -> None:
    """Who asks for a bucket while its attributes change finds it, always."""
    stop = threading.Event()

    def change() -> None:
        with Client(open_server.port) as client:
            while not stop.is_set():
                assert client.ask("POST", B + "/b", {"metadata": {"a": "b"}}).status == 200

    changing = threading.Thread(target=change)
    changing.start()
    try:
        with Client(open_server.port) as client:
            assert {client.ask("HEAD", B + "/b").status for _ in range(300)} == {200}
    finally:
        stop.set()
        changing.join()


def test_a_bucket_that_goes_meanwhile(open_server: OpenServer, client: Client) -> None:
    """What needs a bucket that was deleted a moment ago is 404, and leaves nothing."""
    service = open_server.application.service
    bucket = service.buckets.get("b")
    with service.database.write() as rows:
        rows.execute("DELETE FROM buckets WHERE id=?", (bucket.id,))
    for method, target, body in (
        ("PUT", O + "k", b"x"),
        ("POST", B + "/b/u", b'{"object": "k"}'),
        ("POST", B + "/b/p", b'{"name": "p", "accessType": "AnyObjectRead",'
         b' "timeExpires": "2099-01-01T00:00:00Z"}'),
    ):  # fmt: skip
        answer = client.ask(method, target, body)
        assert (answer.status, answer.code) == (404, "BucketNotFound")
    assert not list(service.database.files.glob("??/*"))


def test_a_bucket_with_objects_stays(client: Client) -> None:
    """Deleting needs an empty bucket; counts are shown when asked for."""
    client.ask("PUT", O + "k", b"four")
    assert client.ask("DELETE", B + "/b").code == "BucketNotEmpty"
    plain = client.ask("GET", B + "/b").json()
    assert plain["approximateCount"] is None
    counted = client.ask("GET", B + "/b?fields=approximateCount,approximateSize").json()
    assert (counted["approximateCount"], counted["approximateSize"]) == (1, 4)


def test_lifecycle_rules_are_kept(client: Client) -> None:
    """Rules come back as they were put; the bucket tells their version."""
    target = B + "/b/l"
    assert client.ask("GET", target).code == "LifecyclePolicyNotFound"
    rule = {"name": "r", "action": "DELETE", "isEnabled": True, "timeAmount": 1, "timeUnit": "DAYS"}
    put = client.ask("PUT", target, {"items": [rule]})
    assert put.json()["items"] == [rule]
    assert client.ask("GET", B + "/b").json()["objectLifecyclePolicyEtag"] == put.headers["etag"]
    assert client.ask("PUT", target, {"items": []}, if_none_match="*").status == 412
    assert client.ask("DELETE", target).status == 204
    assert client.ask("GET", target).status == 404


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"name": 1}'])
def test_bodies_that_are_not_what_they_should_be(client: Client, body: bytes) -> None:
    """What is no JSON object of the right fields is 400, never a defect."""
    for target in (B, B + "/b/u", B + "/b/p", A + "copyObject", A + "renameObject"):
        assert client.ask("POST", target, body).status == 400
    for target in (A + "batchDeleteObjects", A + "restoreObjects"):
        assert client.ask("POST", target, body).status == 400


def copy(client: Client, source: str, target: str, **more: Any) -> Answer:
    return client.ask(
        "POST",
        A + "copyObject",
        {
            "sourceObjectName": source,
            "destinationObjectName": target,
            "destinationBucket": "b",
            "destinationNamespace": "local",
            "destinationRegion": "us-ashburn-1",
            **more,
        },
    )


def work(client: Client, answer: Answer) -> dict[str, Any]:
    """A copy's work request, once it has ended."""
    assert answer.status == 202
    target = f"/workRequests/{answer.headers['opc-work-request-id']}"
    while True:
        found: dict[str, Any] = client.ask("GET", target).json()
        if found["status"] in {"COMPLETED", "FAILED", "CANCELED"}:
            return found
        time.sleep(0.001)


def test_copy(client: Client) -> None:
    """A copy is its own object, with the source's bytes, and its metadata or another."""
    client.ask("PUT", O + "k", b"hello", opc_meta_a="1", content_type="text/x")
    done = work(client, copy(client, "k", "l"))
    assert (done["status"], done["percentComplete"]) == ("COMPLETED", 100.0)
    assert done["resources"][1]["metadata"]["OBJECT"] == "l"
    client.ask("DELETE", O + "k")
    got = client.ask("GET", O + "l")
    assert (got.body, got.headers["opc-meta-a"]) == (b"hello", "1")
    work(client, copy(client, "l", "m", destinationObjectMetadata={"b": "2"}))
    head = client.ask("HEAD", O + "m").headers
    assert (head["opc-meta-b"], head["content-type"]) == ("2", "text/x")
    assert "opc-meta-a" not in head
    assert copy(client, "none", "n").code == "ObjectNotFound"
    assert copy(client, "l", "m", destinationObjectIfNoneMatchETag="*").status == 412
    assert copy(client, "l", "m", sourceObjectIfMatchETag="stale").status == 412
    assert copy(client, "l", "m", destinationRegion="elsewhere").status == 400
    assert copy(client, "l", "m", destinationBucket="none").code == "BucketNotFound"
    listed = client.ask("GET", "/workRequests?compartmentId=compartment").json()
    assert len(listed) == 2
    assert client.ask("GET", f"/workRequests/{done['id']}/errors").json() == []
    assert client.ask("GET", f"/workRequests/{done['id']}/logs").json()
    assert client.ask("GET", "/workRequests/none").status == 404


def test_work_takes_its_time_and_may_fail(tmp_path: Path) -> None:
    """A copy is accepted first; what fails later is told by the work request; work is cancelled."""
    with OpenServer(tmp_path / "oci", work_delay=20.0) as server, Client(server.port) as client:
        server.application.ensure_bucket("b", "c")
        client.ask("PUT", O + "k", b"x")
        answer = copy(client, "k", "l", destinationObjectIfNoneMatchETag="*")
        target = f"/workRequests/{answer.headers['opc-work-request-id']}"
        early = client.ask("GET", target)
        assert early.json()["status"] in {"ACCEPTED", "IN_PROGRESS"}
        assert "retry-after" in early.headers
        client.ask("PUT", O + "l", b"first")
        server.application.service.work.hurry()
        assert work(client, answer)["status"] == "FAILED"
        errors = client.ask("GET", target + "/errors").json()
        assert errors[0]["code"] == "IfNoneMatchFailed"
        assert client.ask("GET", O + "l").body == b"first"
        answer = copy(client, "k", "m")
        target = f"/workRequests/{answer.headers['opc-work-request-id']}"
        assert client.ask("DELETE", target).status == 202
        assert work(client, answer)["status"] == "CANCELED"
        assert client.ask("HEAD", O + "m").status == 404
        unfinished = copy(client, "k", "n").headers["opc-work-request-id"]
    with OpenServer(tmp_path / "oci") as server, Client(server.port) as client:
        assert client.ask("GET", f"/workRequests/{unfinished}").json()["status"] == "FAILED"


def test_rename(client: Client) -> None:
    """A rename is one step, replaces what is there, and can be conditional."""
    client.ask("PUT", O + "k", b"1")
    client.ask("PUT", O + "l", b"2")
    body = {"sourceName": "k", "newName": "l"}
    refused = client.ask("POST", A + "renameObject", {**body, "newObjIfNoneMatchETag": "*"})
    assert refused.code == "IfNoneMatchFailed"
    assert client.ask("POST", A + "renameObject", {**body, "srcObjIfMatchETag": "x"}).status == 412
    assert client.ask("POST", A + "renameObject", body).status == 200
    assert client.ask("GET", O + "l").body == b"1"
    assert client.ask("HEAD", O + "k").status == 404
    assert client.ask("POST", A + "renameObject", body).code == "ObjectNotFound"


def test_batch_delete(client: Client) -> None:
    """Each object by itself: some deleted, some failed, with the reason."""
    etag = client.ask("PUT", O + "a", b"").headers["etag"]
    client.ask("PUT", O + "b", b"")
    entries = [
        {"objectName": "a", "ifMatch": etag},
        {"objectName": "b", "ifMatch": "stale"},
        {"objectName": "c"},
    ]
    result = client.ask("POST", A + "batchDeleteObjects", {"objects": entries}).json()
    assert [item["objectName"] for item in result["deleted"]] == ["a"]
    assert [(item["objectName"], item["statusCode"]) for item in result["failed"]] == [
        ("b", 412),
        ("c", 404),
    ]
    many = [{"objectName": str(number)} for number in range(1001)]
    assert client.ask("POST", A + "batchDeleteObjects", {"objects": many}).status == 400
    skipped = {"objects": [{"objectName": "b"}], "isSkipDeletedResult": True}
    assert client.ask("POST", A + "batchDeleteObjects", skipped).json()["deleted"] is None


def test_archive(client: Client, clock: Clock, open_server: OpenServer) -> None:
    """An archived object is not read before it is restored, nor after that has ended."""
    client.ask("PUT", O + "k", b"cold", storage_tier="Archive")
    refused = client.ask("GET", O + "k")
    assert (refused.status, refused.code) == (409, "NotRestored")
    assert client.ask("HEAD", O + "k").headers["archival-state"] == "Archived"
    assert copy(client, "k", "l").code == "NotRestored"
    restore = {"objectName": "k", "hours": 2}
    assert client.ask("POST", A + "restoreObjects", restore).status == 202
    assert client.ask("GET", O + "k").body == b"cold"
    assert client.ask("HEAD", O + "k").headers["archival-state"] == "Restored"
    listed = client.ask("GET", "/n/local/b/b/o?fields=archivalState,storageTier").json()
    assert listed["objects"][0]["archivalState"] == "Restored"
    clock.now += 7201
    assert client.ask("GET", O + "k").status == 409
    open_server.application.service.restore_seconds = 60
    assert client.ask("POST", A + "restoreObjects", restore).status == 202
    assert client.ask("HEAD", O + "k").headers["archival-state"] == "Restoring"
    assert client.ask("GET", O + "k").code == "NotRestored"
    clock.now += 61
    assert client.ask("GET", O + "k").body == b"cold"
    assert client.ask("POST", A + "restoreObjects", restore).status == 200
    client.ask("PUT", O + "warm", b"x")
    assert client.ask("POST", A + "restoreObjects", {"objectName": "warm"}).status == 409
    change = {"objectName": "warm", "storageTier": "InfrequentAccess"}
    assert client.ask("POST", A + "updateObjectStorageTier", change).status == 200
    assert client.ask("HEAD", O + "warm").headers["storage-tier"] == "InfrequentAccess"


class OnlyThese:
    """Policies that grant a set of permissions, and write down what is asked."""

    def __init__(self, *granted: str) -> None:
        self.granted = set(granted)
        self.asked: list[str] = []

    def check(
        self, caller: Caller, permission: str, bucket: str | None, object_name: str | None
    ) -> None:
        """Grant, or tell nothing."""
        self.asked.append(permission)
        if permission not in self.granted:
            raise ApiError(404, "BucketNotFound", "no such bucket, or not authorized")


def test_permissions(tmp_path: Path) -> None:
    """Each operation asks for the service's own permission."""
    policies = OnlyThese("OBJECT_CREATE")
    with (
        OpenServer(tmp_path / "oci", policies=policies) as server,
        Client(server.port) as client,
    ):
        server.application.ensure_bucket("b", "c")
        assert client.ask("PUT", O + "k", b"x").status == 200
        assert client.ask("PUT", O + "k", b"x").status == 404
        assert policies.asked[-1] == "OBJECT_OVERWRITE"
        for method, target, permission in (
            ("GET", O + "k", "OBJECT_READ"),
            ("DELETE", O + "k", "OBJECT_DELETE"),
            ("GET", "/n/local/b/b/o", "OBJECT_INSPECT"),
            ("GET", "/n/local/b/b", "BUCKET_READ"),
            ("DELETE", "/n/local/b/b", "BUCKET_DELETE"),
            ("GET", "/n/local/b/b/p", "PAR_MANAGE"),
            ("GET", "/n/local/b?compartmentId=c", "BUCKET_INSPECT"),
        ):
            assert client.ask(method, target).status == 404
            assert policies.asked[-1] == permission
            policies.granted.add(permission)
        assert client.ask("POST", "/n/local/b/b/u", {"object": "k"}).status == 404
        assert policies.asked[-1] == "OBJECT_OVERWRITE"
        assert client.ask("GET", O + "k").status == 200


def test_public_buckets(tmp_path: Path) -> None:
    """A public bucket is read without signing in, and is not written."""

    def nobody(request: object) -> Caller:
        raise ApiError(401, "NotAuthenticated", "not signed")

    data = tmp_path / "oci"
    with OpenServer(data) as server, Client(server.port) as client:
        server.application.ensure_bucket("b", "c")
        client.ask("PUT", O + "k", b"x")
        client.ask("POST", B + "/b", {"publicAccessType": "ObjectReadWithoutList"})
    with OpenServer(data, authenticate=nobody) as server, Client(server.port) as client:
        assert client.ask("GET", O + "k").body == b"x"
        assert client.ask("GET", "/n/local/b/b/o").status == 401
        assert client.ask("PUT", O + "k", b"y").status == 401
        assert client.ask("GET", B + "/b").status == 401
