"""Pre-authenticated requests: what each type grants, to whom, and until when."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from tests.localoci.client import Client
from tests.localoci.conftest import Clock
from tests.localoci.openserver import OpenServer

from bootstream.localoci.errors import ApiError

if TYPE_CHECKING:
    from pathlib import Path

O = "/n/local/b/b/o/"  # noqa: E741 - the service's own letter
P = "/n/local/b/b/p"


def create(client: Client, clock: Clock, access: str, **details: Any) -> dict[str, Any]:
    expires = datetime.fromtimestamp(clock.now + 3600, UTC).isoformat()
    body = {"name": "p", "accessType": access, "timeExpires": expires, **details}
    answer = client.ask("POST", P, body)
    assert answer.status == 200, answer.body
    made: dict[str, Any] = answer.json()
    return made


@pytest.mark.parametrize("access", ["ObjectRead", "ObjectWrite", "ObjectReadWrite"])
def test_one_object(client: Client, clock: Clock, access: str) -> None:
    """A request for one object reads, writes, or both, and reaches no other."""
    client.ask("PUT", O + "a/k", b"x")
    uri = create(client, clock, access, objectName="a/k")["accessUri"]
    assert uri.endswith("/o/a/k")
    read, write = "Read" in access, "Write" in access
    assert (client.ask("GET", uri).status == 200) is read
    assert (client.ask("HEAD", uri).status == 200) is read
    assert (client.ask("PUT", uri, b"y").status == 200) is write
    assert client.ask("GET", O + "a/k").body == (b"y" if write else b"x")
    assert client.ask("DELETE", uri).status == 405
    other = uri.removesuffix("k") + "other"
    assert client.ask("GET", other).code == "BucketNotFound"
    assert client.ask("PUT", other, b"y").status == 404
    assert client.ask("GET", uri.removesuffix("a/k")).status == 404


def test_any_object_with_a_prefix(client: Client, clock: Clock) -> None:
    """Objects under the prefix, and their listing, where that was asked for."""
    for name in ("a/1", "a/2", "b/1"):
        client.ask("PUT", O + name, b"x")
    uri = create(
        client, clock, "AnyObjectRead", objectName="a/", bucketListingAction="ListObjects"
    )["accessUri"]
    assert uri.endswith("/o/")
    assert client.ask("GET", uri + "a/1").status == 200
    assert client.ask("GET", uri + "a%2F1").status == 200
    assert client.ask("GET", uri + "b/1").status == 404
    assert client.ask("PUT", uri + "a/3", b"x").status == 404
    listed = client.ask("GET", uri + "?prefix=a/").json()["objects"]
    assert [item["name"] for item in listed] == ["a/1", "a/2"]
    assert client.ask("GET", uri).status == 404
    uri = create(client, clock, "AnyObjectReadWrite")["accessUri"]
    assert client.ask("PUT", uri + "c", b"x").status == 200
    assert client.ask("GET", uri).status == 404


def test_expiry_and_deletion(client: Client, clock: Clock) -> None:
    """An address ends at its time, and at its deletion; it is shown once."""
    client.ask("PUT", O + "k", b"x")
    made = create(client, clock, "ObjectRead", objectName="k")
    assert client.ask("GET", made["accessUri"]).status == 200
    shown = client.ask("GET", f"{P}/{made['id']}").json()
    assert shown["objectName"] == "k"
    assert "accessUri" not in shown
    assert [item["id"] for item in client.ask("GET", P).json()] == [made["id"]]
    clock.now += 3601
    assert client.ask("GET", made["accessUri"]).status == 404
    second = create(client, clock, "ObjectRead", objectName="k")
    assert client.ask("DELETE", f"{P}/{second['id']}").status == 204
    assert client.ask("GET", second["accessUri"]).status == 404
    assert client.ask("DELETE", f"{P}/{second['id']}").status == 404


def test_multipart(client: Client, clock: Clock) -> None:
    """A large object goes through an address in parts: begin, put, commit or abort."""
    uri = create(client, clock, "AnyObjectWrite")["accessUri"]
    begun = client.ask("PUT", uri + "a/big", opc_multipart="true", opc_meta_x="1").json()
    assert begun["object"] == "a/big"
    parts = begun["accessUri"]
    for number in (2, 1, 3):
        assert client.ask("PUT", f"{parts}{number}", b"%d" % number * 1000).status == 200
    done = client.ask("POST", parts)
    assert done.status == 200
    got = client.ask("GET", O + "a/big")
    assert got.body == b"1" * 1000 + b"2" * 1000 + b"3" * 1000
    assert (got.headers["opc-meta-x"], got.headers["etag"]) == ("1", done.headers["etag"])
    begun = client.ask("PUT", uri + "gone", opc_multipart="true").json()
    client.ask("PUT", begun["accessUri"] + "1", b"x")
    assert client.ask("PUT", begun["accessUri"] + "0", b"x").status == 400
    assert client.ask("DELETE", begun["accessUri"]).status == 204
    assert client.ask("POST", begun["accessUri"]).code == "UploadNotFound"
    assert client.ask("HEAD", O + "gone").status == 404
    reading = create(client, clock, "AnyObjectRead")["accessUri"]
    assert client.ask("PUT", reading + "a/big", opc_multipart="true").status == 404


@pytest.mark.parametrize(
    "details",
    [
        {"accessType": "Everything"},
        {"accessType": "ObjectRead"},
        {"accessType": "AnyObjectRead", "timeExpires": "2001-01-01T00:00:00Z"},
        {"accessType": "AnyObjectRead", "timeExpires": None},
        {"accessType": "AnyObjectRead", "timeExpires": "soon"},
        {"accessType": "AnyObjectRead", "name": ""},
        {"accessType": "AnyObjectWrite", "bucketListingAction": "ListObjects"},
    ],
)
def test_requests_that_cannot_be(client: Client, details: dict[str, Any]) -> None:
    """A type, a name and a time in the future are needed."""
    body = {"name": "p", "timeExpires": "2099-01-01T00:00:00Z", **details}
    assert client.ask("POST", P, body).status == 400


def test_the_address_is_the_signature(tmp_path: Path) -> None:
    """A holder does not sign in; everybody else does. Only a digest of the token is kept."""

    def nobody(request: object) -> Any:
        raise ApiError(401, "NotAuthenticated", "not signed")

    data = tmp_path / "oci"
    clock = Clock()
    with OpenServer(data, clock=clock) as server, Client(server.port) as client:
        server.application.ensure_bucket("b", "c")
        uri = create(client, clock, "AnyObjectReadWrite")["accessUri"]
    token = uri.split("/")[2]
    with (
        OpenServer(data, clock=clock, authenticate=nobody) as server,
        Client(server.port) as client,
    ):
        assert client.ask("GET", O + "k").status == 401
        assert client.ask("PUT", uri + "k", b"x").status == 200
        assert client.ask("GET", uri + "k").body == b"x"
        assert client.ask("GET", uri.replace(token, token[::-1]) + "k").status == 404
        assert client.ask("GET", uri.replace("/b/b/", "/b/other/") + "k").status == 404
    for path in data.iterdir():
        if path.is_file():
            assert token.encode() not in path.read_bytes()
