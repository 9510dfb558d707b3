"""Multipart uploads: order, gaps, replacement, commit rules, races, and what is left behind."""

from __future__ import annotations

import base64
import hashlib
import os
import threading
from typing import TYPE_CHECKING, Any

import pytest
from tests.localoci.client import Answer, Client

from bootstream.localoci.checksums import crc32c

if TYPE_CHECKING:
    from tests.localoci.openserver import OpenServer

O = "/n/local/b/b/o/"  # noqa: E741 - the service's own letter
U = "/n/local/b/b/u"


def begin(client: Client, name: str = "k", **details: Any) -> str:
    answer = client.ask("POST", U, {"object": name, **details})
    assert answer.status == 200
    return str(answer.json()["uploadId"])


def part(client: Client, upload: str, number: int, body: bytes, name: str = "k") -> dict[str, Any]:
    answer = client.ask("PUT", f"{U}/{name}?uploadId={upload}&uploadPartNum={number}", body)
    assert answer.status == 200
    return {"partNum": number, "etag": answer.headers["etag"]}


def commit(
    client: Client, upload: str, parts: list[Any], exclude: list[Any] | None = None, **headers: str
) -> Answer:
    body = {"partsToCommit": parts, "partsToExclude": exclude}
    return client.ask("POST", f"{U}/k?uploadId={upload}", body, **headers)


def files(server: OpenServer) -> int:
    return len(list(server.application.service.database.files.glob("??/*")))


def test_parts_in_any_order_with_gaps(client: Client, open_server: OpenServer) -> None:
    """Parts are put together by number; the object has what the upload began with."""
    upload = begin(
        client, contentType="text/x", cacheControl="no-store", metadata={"opc-meta-a": "1"}
    )
    bodies = {9000: os.urandom(70_000), 3: b"three", 10_000: b"", 1: os.urandom(300_000)}
    parts = [part(client, upload, number, body) for number, body in bodies.items()]
    answer = commit(client, upload, parts)
    assert answer.status == 200
    digests = b"".join(hashlib.md5(bodies[number]).digest() for number in sorted(bodies))
    whole = base64.b64encode(hashlib.md5(digests).digest()).decode() + "-4"
    assert answer.headers["opc-multipart-md5"] == whole
    got = client.ask("GET", O + "k")
    assert got.body == b"".join(bodies[number] for number in sorted(bodies))
    assert got.headers["etag"] == answer.headers["etag"]
    assert got.headers["opc-multipart-md5"] == whole
    assert "content-md5" not in got.headers
    assert got.headers["content-type"] == "text/x"
    assert got.headers["opc-meta-a"] == "1"
    assert files(open_server) == 1
    assert client.ask("GET", U).json() == []
    again = commit(client, upload, parts)
    assert (again.status, again.code) == (404, "UploadNotFound")


def test_a_part_sent_again_replaces(client: Client, open_server: OpenServer) -> None:
    """Of two bodies for one number the last counts, and the first's etag does not."""
    upload = begin(client)
    old = part(client, upload, 1, b"old")
    new = part(client, upload, 1, b"new")
    assert files(open_server) == 1
    assert commit(client, upload, [old]).code == "InvalidUploadPart"
    assert commit(client, upload, [new]).status == 200
    assert client.ask("GET", O + "k").body == b"new"


def test_every_part_is_in_one_list(client: Client) -> None:
    """What was uploaded is committed or excluded, not both, not neither."""
    upload = begin(client)
    one, two = part(client, upload, 1, b"1"), part(client, upload, 2, b"2")
    for parts, exclude in (
        ([one], None),
        ([one, two], [2]),
        ([one, one, two], None),
        ([one, two, {"partNum": 3, "etag": "x"}], None),
        ([one, {"partNum": 2, "etag": "wrong"}], None),
        ([], [1, 2]),
        (["x"], None),
        ([one], [{}]),
    ):
        refused = commit(client, upload, parts, exclude)
        assert refused.status == 400, (parts, exclude)
    assert client.ask("HEAD", O + "k").status == 404
    assert commit(client, upload, [two], [1]).status == 200
    assert client.ask("GET", O + "k").body == b"2"


def test_lists(client: Client) -> None:
    """Uploads and parts are listed in pages."""
    uploads = {begin(client, name=f"n{number}") for number in range(3)}
    first = client.ask("GET", U + "?limit=2")
    rest = client.ask("GET", f"{U}?limit=2&page={first.headers['opc-next-page']}")
    assert "opc-next-page" not in rest.headers
    assert {item["uploadId"] for item in first.json() + rest.json()} == uploads
    upload = begin(client)
    for number in (5, 2, 7):
        part(client, upload, number, b"x" * number)
    first = client.ask("GET", f"{U}/k?uploadId={upload}&limit=2")
    assert [(item["partNumber"], item["size"]) for item in first.json()] == [(2, 2), (5, 5)]
    page = first.headers["opc-next-page"]
    rest = client.ask("GET", f"{U}/k?uploadId={upload}&limit=2&page={page}")
    assert [item["partNumber"] for item in rest.json()] == [7]


def test_abort(client: Client, open_server: OpenServer) -> None:
    """An aborted upload leaves nothing, and takes nothing any more."""
    upload = begin(client)
    part(client, upload, 1, b"x")
    assert client.ask("DELETE", "/n/local/b/b").code == "BucketNotEmpty"
    assert client.ask("DELETE", f"{U}/other?uploadId={upload}").status == 404
    assert client.ask("DELETE", f"{U}/k?uploadId={upload}").status == 204
    assert files(open_server) == 0
    late = client.ask("PUT", f"{U}/k?uploadId={upload}&uploadPartNum=1", b"x")
    assert (late.status, late.code) == (404, "UploadNotFound")
    assert client.ask("DELETE", f"{U}/k?uploadId={upload}").status == 404
    assert files(open_server) == 0
    assert client.ask("DELETE", "/n/local/b/b").status == 204


def test_conditions(client: Client) -> None:
    """Create-only holds from the beginning to the commit."""
    answer = client.ask("POST", U, {"object": "k"}, if_none_match="*")
    begun, later = answer.json()["uploadId"], begin(client)
    one, other = part(client, begun, 1, b"1"), part(client, later, 1, b"2")
    assert client.ask("PUT", O + "k", b"first").status == 200
    assert client.ask("POST", U, {"object": "k"}, if_none_match="*").status == 412
    assert commit(client, begun, [one]).code == "IfNoneMatchFailed"
    assert commit(client, later, [other], if_none_match="*").code == "IfNoneMatchFailed"
    etag = client.ask("HEAD", O + "k").headers["etag"]
    assert commit(client, later, [other], if_match="stale").code == "IfMatchFailed"
    assert commit(client, later, [other], if_match=etag).status == 200
    assert client.ask("GET", O + "k").body == b"2"


@pytest.mark.parametrize("number", ["0", "10001", "x", "-1", "", "99999999999999999999999"])
def test_part_numbers(client: Client, number: str) -> None:
    """1 to 10,000."""
    upload = begin(client)
    answer = client.ask("PUT", f"{U}/k?uploadId={upload}&uploadPartNum={number}", b"x")
    assert answer.status == 400


def test_checksums_of_parts(client: Client, open_server: OpenServer) -> None:
    """A part that is not what its checksum says is refused, and leaves nothing."""
    upload = begin(client)
    target = f"{U}/k?uploadId={upload}&uploadPartNum=1"
    wrong = base64.b64encode(bytes(16)).decode()
    assert client.ask("PUT", target, b"x", content_md5=wrong).code == "UnmatchedContentMD5"
    assert files(open_server) == 0
    made = client.ask("PUT", target, b"123456789", opc_checksum_algorithm="CRC32C")
    assert made.headers["opc-content-crc32c"] == "4waSgw=="


def test_limits(client: Client) -> None:
    """A part and an object have their largest size."""
    upload = begin(client)
    large = bytes(8 << 20)
    answer = client.ask("PUT", f"{U}/k?uploadId={upload}&uploadPartNum=1", large + b"x")
    assert answer.status == 413
    client.connection.close()
    parts = [part(client, upload, number, large) for number in range(1, 5)]
    assert commit(client, upload, parts).code == "RequestEntityTooLarge"
    assert commit(client, upload, parts[:3], [4]).status == 200
    assert client.ask("HEAD", O + "k").headers["content-length"] == str(24 << 20)


def test_two_commits_at_once(open_server: OpenServer) -> None:
    """One commits; the others hear of it; the object is whole."""
    with Client(open_server.port) as client:
        upload = begin(client)
        parts = [part(client, upload, number, bytes([number]) * 500_000) for number in range(1, 9)]
    start, statuses = threading.Barrier(4), []

    def run() -> None:
        with Client(open_server.port) as client:
            start.wait()
            statuses.append(commit(client, upload, parts).status)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses.count(200) == 1
    assert set(statuses) <= {200, 404, 409}
    with Client(open_server.port) as client:
        body = client.ask("GET", O + "k").body
    assert body == b"".join(bytes([number]) * 500_000 for number in range(1, 9))
    assert files(open_server) == 1


def test_metadata_cannot_break_an_answer(client: Client) -> None:
    """What comes in JSON and would end a header line is refused."""
    for details in (
        {"contentType": "a\r\nb: c"},
        {"metadata": {"opc-meta-a": "b\nc"}},
        {"metadata": {"a b": "c"}},
        {"metadata": {"a": 1}},
        {"metadata": [1]},
    ):
        assert client.ask("POST", U, {"object": "k", **details}).status == 400


@pytest.mark.parametrize("algorithm", ["CRC32C", "SHA256", "SHA384"])
def test_checksums_of_the_whole(client: Client, algorithm: str) -> None:
    """CRC32C is the whole object's; the others are digests of the parts' digests."""
    answer = client.ask("POST", U, {"object": "k"}, opc_checksum_algorithm=algorithm)
    upload = answer.json()["uploadId"]
    bodies = [os.urandom(size) for size in (100_000, 0, 33_333, 1)]
    parts = [part(client, upload, number + 1, body) for number, body in enumerate(bodies)]
    done = commit(client, upload, parts)
    head = client.ask("HEAD", O + "k").headers
    if algorithm == "CRC32C":
        header = "opc-content-crc32c"
        expected = base64.b64encode(crc32c(b"".join(bodies)).to_bytes(4, "big")).decode()
    else:
        header = f"opc-multipart-{algorithm.lower()}"
        digest = getattr(hashlib, algorithm.lower())
        whole = digest(b"".join(digest(body).digest() for body in bodies)).digest()
        expected = base64.b64encode(whole).decode() + "-4"
    assert head[header] == done.headers[header] == expected
