"""Put, get, head and delete: names, headers, conditions, ranges, checksums, restarts."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import subprocess
import sys
import threading
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.localoci.client import Client
from tests.localoci.openserver import OpenServer

from bootstream.errors import Conflict, Corrupt
from bootstream.localoci.checksums import Checksums, crc32c
from bootstream.localoci.errors import ApiError
from bootstream.localoci.http import Body, BytesSource, Request
from bootstream.localoci.objects import byte_range

O = "/n/local/b/b/o/"  # noqa: E741 - the service's own letter


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_put_get_head_delete(client: Client) -> None:
    """What is put is what is got, with its headers; deleted, it is missing."""
    put = client.ask(
        "PUT", O + "k", b"hello",
        content_type="text/x", cache_control="no-store", opc_meta_Colour="blue",
    )  # fmt: skip
    assert put.status == 200
    assert put.headers["opc-content-md5"] == b64(hashlib.md5(b"hello").digest())
    assert str(UUID(put.headers["etag"])) == put.headers["etag"]
    got = client.ask("GET", O + "k")
    assert (got.status, got.body) == (200, b"hello")
    assert got.headers["content-md5"] == put.headers["opc-content-md5"]
    for name, value in {
        "content-type": "text/x",
        "cache-control": "no-store",
        "opc-meta-colour": "blue",
        "storage-tier": "Standard",
        "etag": put.headers["etag"],
        "version-id": put.headers["version-id"],
        "last-modified": put.headers["last-modified"],
    }.items():
        assert got.headers[name] == value
    head = client.ask("HEAD", O + "k")
    unlike = {"opc-request-id", "date"}
    assert {k: v for k, v in head.headers.items() if k not in unlike} == {
        k: v for k, v in got.headers.items() if k not in unlike
    }
    assert client.ask("DELETE", O + "k").status == 204
    for method in ("GET", "DELETE"):
        missing = client.ask(method, O + "k")
        assert (missing.status, missing.code) == (404, "ObjectNotFound")
    missing = client.ask("HEAD", O + "k")
    assert (missing.status, missing.body) == (404, b"")


@pytest.mark.parametrize(
    ("sent", "asked"),
    [
        ("a/b", "a%2Fb"),
        ("a%2fb//c", "a/b%2F/c"),
        ("%C3%BC%20%25", "%c3%bc%20%25"),
        ("plus+plus", "plus%2Bplus"),
        ("%2Flead", "/lead"),
        ("..%2F..%2Fetc", "../../etc"),
        ("id/u/p/actions", "id%2Fu%2Fp%2Factions"),
    ],
)
def test_names_are_one_whether_slashes_are_escaped(client: Client, sent: str, asked: str) -> None:
    """A slash may be raw or escaped; the name is the same."""
    assert client.ask("PUT", O + sent, b"x").status == 200
    assert client.ask("GET", O + asked).body == b"x"
    listed = client.ask("GET", "/n/local/b/b/o").json()["objects"]
    assert len(listed) == 1


@pytest.mark.parametrize("name", ["a%00b", "a%0Ab", "a%0Db", "%FF", "x" * 1025, "%C3%BC" * 513])
def test_names_that_cannot_be(client: Client, name: str) -> None:
    """1 to 1024 bytes of UTF-8, without NUL, CR or LF."""
    answer = client.ask("PUT", O + name, b"x")
    assert (answer.status, answer.code) == (400, "InvalidObjectName")


def test_conditions_on_put(client: Client) -> None:
    """Create-only and replace-only, by etag."""
    first = client.ask("PUT", O + "k", b"1", if_none_match="*")
    assert first.status == 200
    second = client.ask("PUT", O + "k", b"2", if_none_match="*")
    assert (second.status, second.code) == (412, "IfNoneMatchFailed")
    stale = client.ask("PUT", O + "k", b"2", if_match="other")
    assert (stale.status, stale.code) == (412, "IfMatchFailed")
    assert client.ask("PUT", O + "new", b"2", if_match="*").status == 412
    assert client.ask("PUT", O + "k", b"3", if_match=first.headers["etag"]).status == 200
    assert client.ask("PUT", O + "k", b"4", if_match=first.headers["etag"]).status == 412
    assert client.ask("GET", O + "k").body == b"3"


def test_conditions_on_get_head_delete(client: Client) -> None:
    """304 for what is known, 412 for what is another version."""
    etag = client.ask("PUT", O + "k", b"1").headers["etag"]
    for method in ("GET", "HEAD"):
        known = client.ask(method, O + "k", if_none_match=etag)
        assert (known.status, known.body, known.headers["etag"]) == (304, b"", etag)
        assert client.ask(method, O + "k", if_none_match="other").status == 200
        assert client.ask(method, O + "k", if_match=etag).status == 200
        assert client.ask(method, O + "k", if_match="other").status == 412
    assert client.ask("DELETE", O + "k", if_match="other").code == "IfMatchFailed"
    assert client.ask("DELETE", O + "k", if_match=etag).status == 204


def test_one_creator_wins(open_server: OpenServer) -> None:
    """Of many who create one name at once, exactly one does, and its bytes are there."""
    start = threading.Barrier(8)
    answers: list[tuple[int, bytes]] = []

    def create(number: int) -> None:
        body = b"%d" % number * 70_000
        with Client(open_server.port) as client:
            start.wait()
            answer = client.ask("PUT", O + "one", body, if_none_match="*")
            answers.append((answer.status, body))

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(status for status, _ in answers) == [200] + [412] * 7
    with Client(open_server.port) as client:
        winner = next(body for status, body in answers if status == 200)
        assert client.ask("GET", O + "one").body == winner


def test_readers_see_whole_objects_while_they_are_replaced(open_server: OpenServer) -> None:
    """Whoever reads while others overwrite and delete sees one version, or none."""
    stop = threading.Event()

    def write() -> None:
        with Client(open_server.port) as client:
            number = 0
            while not stop.is_set():
                number += 1
                client.ask("PUT", O + "k", b"%d" % (number % 10) * 200_000)

    writers = [threading.Thread(target=write) for _ in range(2)]
    with Client(open_server.port) as client:
        client.ask("PUT", O + "k", b"0" * 200_000)
        for writer in writers:
            writer.start()
        try:
            for _ in range(150):
                got = client.ask("GET", O + "k")
                assert got.status == 200
                assert b64(hashlib.md5(got.body).digest()) == got.headers["content-md5"]
                assert len(set(got.body)) == 1
        finally:
            stop.set()
            for writer in writers:
                writer.join()


@pytest.mark.parametrize(
    ("text", "body", "where"),
    [
        ("bytes=0-0", b"0", "bytes 0-0/10"),
        ("bytes=2-4", b"234", "bytes 2-4/10"),
        ("bytes=7-", b"789", "bytes 7-9/10"),
        ("bytes=7-999", b"789", "bytes 7-9/10"),
        ("bytes=-3", b"789", "bytes 7-9/10"),
        ("bytes=-99", b"0123456789", "bytes 0-9/10"),
    ],
)
def test_ranges(client: Client, text: str, body: bytes, where: str) -> None:
    """First and last, open ends, suffixes; an end past the end is clamped."""
    client.ask("PUT", O + "k", b"0123456789")
    got = client.ask("GET", O + "k", range=text)
    assert (got.status, got.body, got.headers["content-range"]) == (206, body, where)


@pytest.mark.parametrize("text", ["bytes=10-", "bytes=99-100", "bytes=-0", "bytes=0-1,3-4"])
def test_ranges_that_are_not_there(client: Client, text: str) -> None:
    """416, with the size."""
    client.ask("PUT", O + "k", b"0123456789")
    got = client.ask("GET", O + "k", range=text)
    assert (got.status, got.code) == (416, "InvalidRange")
    assert got.headers["content-range"] == "bytes */10"


@pytest.mark.parametrize("text", ["bytes=", "bytes=-", "bytes=4-2", "lines=1-2", "bytes=a-b"])
def test_ranges_without_meaning_are_ignored(client: Client, text: str) -> None:
    """As RFC 9110 section 14.2 has it: the whole object."""
    client.ask("PUT", O + "k", b"0123456789")
    assert client.ask("GET", O + "k", range=text).status == 200


@given(st.text("0123456789-,=bytes ", max_size=30), st.integers(0, 1 << 50))
def test_any_range(text: str, size: int) -> None:
    """A range lies within the object, or is refused."""
    request = Request("GET", "/", {"range": text}, Body(BytesSource(b""), 0))
    found = None
    with contextlib.suppress(ApiError):
        found = byte_range(request, size)
    if found is not None:
        assert found[1] > 0
        assert 0 <= found[0] < found[0] + found[1] <= size


def test_large_ranges_over_one_connection(client: Client) -> None:
    """Ranges above and below what is sent by the kernel are the object's bytes."""
    data = os.urandom(3_000_000)
    client.ask("PUT", O + "k", data)
    for first, last in ((0, 2_999_999), (1, 16_384), (5, 16_389), (12_345, 2_345_678)):
        got = client.ask("GET", O + "k", range=f"bytes={first}-{last}")
        assert got.body == data[first : last + 1]


def test_checksums(client: Client) -> None:
    """Checksums that came are checked and given back; those that are asked for are made."""
    body = os.urandom(300_000)
    digests = {
        "md5": b64(hashlib.md5(body).digest()),
        "sha256": b64(hashlib.sha256(body).digest()),
        "sha384": b64(hashlib.sha384(body).digest()),
        "crc32c": b64(crc32c(body).to_bytes(4, "big")),
    }
    assert client.ask("PUT", O + "k", body, content_md5=digests["md5"]).status == 200
    for name in ("sha256", "sha384", "crc32c"):
        made = client.ask("PUT", O + "k", body, opc_checksum_algorithm=name.upper())
        assert made.headers[f"opc-content-{name}"] == digests[name]
        given = client.ask("PUT", O + "k", body, **{f"opc_content_{name}": digests[name]})
        assert given.status == 200
        assert client.ask("HEAD", O + "k").headers[f"opc-content-{name}"] == digests[name]


def test_wrong_checksums_leave_nothing(client: Client, open_server: OpenServer) -> None:
    """A body that is not what its checksum says does not become an object, or stay on disk."""
    wrong = client.ask("PUT", O + "k", b"x", content_md5=b64(hashlib.md5(b"y").digest()))
    assert (wrong.status, wrong.code) == (400, "UnmatchedContentMD5")
    assert client.ask("PUT", O + "k", b"x", opc_content_crc32c="AAAAAA==").status == 400
    assert client.ask("PUT", O + "k", b"x", content_md5="not base64").status == 400
    assert client.ask("PUT", O + "k", b"x", opc_checksum_algorithm="CRC8").status == 400
    assert client.ask("HEAD", O + "k").status == 404
    assert not list(open_server.application.service.database.files.glob("??/*"))


def test_limits(client: Client) -> None:
    """A body over the limit is 413, told or found; a size is needed; metadata is bounded."""
    large = bytes((8 << 20) + 1)
    assert client.ask("PUT", O + "k", large).code == "RequestEntityTooLarge"
    client.connection.close()
    assert client.ask("PUT", O + "k", iter([large])).code == "RequestEntityTooLarge"
    client.connection.close()
    client.connection.putrequest("PUT", O + "k")
    client.connection.endheaders()
    response = client.connection.getresponse()
    assert response.status == 411
    response.read()
    assert client.ask("PUT", O + "k", b"x", opc_meta_a="y" * 5000).code == "InvalidMetadata"
    assert client.ask("PUT", O + "k", b"x", storage_tier="Nowhere").status == 400
    assert client.ask("HEAD", O + "k").status == 404


def test_chunked_bodies(client: Client) -> None:
    """A body of unknown size is taken."""
    assert client.ask("PUT", O + "k", iter([b"ab", b"c" * 100_000, b"d"])).status == 200
    assert client.ask("GET", O + "k").body == b"ab" + b"c" * 100_000 + b"d"


def test_empty_objects(client: Client) -> None:
    """No bytes are an object too, of which no range is there."""
    assert client.ask("PUT", O + "k", b"").status == 200
    got = client.ask("GET", O + "k")
    assert (got.status, got.body, got.headers["content-length"]) == (200, b"", "0")
    assert client.ask("GET", O + "k", range="bytes=0-").status == 416


def test_answers_by_the_query(client: Client) -> None:
    """A reader may choose some headers of its answer, and break none."""
    client.ask("PUT", O + "k", b"x")
    got = client.ask("GET", O + "k?httpResponseContentType=text%2Fhtml")
    assert got.headers["content-type"] == "text/html"
    assert client.ask("GET", O + "k?httpResponseContentType=a%0D%0Ab:c").status == 400


def test_versions(client: Client) -> None:
    """A bucket with versions keeps what is overwritten and deleted."""
    assert client.ask("POST", "/n/local/b/b", {"versioning": "Enabled"}).status == 200
    first = client.ask("PUT", O + "k", b"1").headers["version-id"]
    second = client.ask("PUT", O + "k", b"2").headers["version-id"]
    assert client.ask("GET", O + f"k?versionId={first}").body == b"1"
    deleted = client.ask("DELETE", O + "k")
    assert deleted.headers["is-delete-marker"] == "true"
    assert client.ask("GET", O + "k").status == 404
    assert client.ask("GET", O + f"k?versionId={second}").body == b"2"
    items = client.ask("GET", "/n/local/b/b/objectversions").json()["items"]
    assert [item["isDeleteMarker"] for item in items] == [True, False, False]
    marker = deleted.headers["version-id"]
    assert [item["versionId"] for item in items] == [marker, second, first]
    assert client.ask("DELETE", O + f"k?versionId={marker}").status == 204
    assert client.ask("GET", O + "k").body == b"2"
    assert client.ask("DELETE", O + f"k?versionId={second}").status == 204
    assert client.ask("GET", O + "k").body == b"1"
    assert client.ask("DELETE", "/n/local/b/b").code == "BucketNotEmpty"
    assert client.ask("DELETE", O + f"k?versionId={first}").status == 204
    assert client.ask("GET", O + f"k?versionId={first}").status == 404
    assert client.ask("DELETE", "/n/local/b/b").status == 204


def test_data_survives_the_server(tmp_path: Path) -> None:
    """Another server over the folder has the same bucket and object; two at once may not be."""
    data = tmp_path / "oci"
    with OpenServer(data) as server, Client(server.port) as client:
        server.application.ensure_bucket("b", "c")
        before = client.ask("PUT", O + "k", b"kept", opc_meta_a="1")
        with pytest.raises(Conflict, match="another local OCI"):
            OpenServer(data)
    with OpenServer(data) as server, Client(server.port) as client:
        got = client.ask("GET", O + "k")
        assert (got.body, got.headers["etag"]) == (b"kept", before.headers["etag"])
        assert got.headers["opc-meta-a"] == "1"


def test_a_killed_server_leaves_whole_objects(tmp_path: Path) -> None:
    """Of uploads that a kill ends nothing is seen, and nothing stays on disk."""
    data = tmp_path / "oci"
    code = (
        "import sys, pathlib; from tests.localoci.openserver import OpenServer\n"
        "server = OpenServer(pathlib.Path(sys.argv[1])); server.start()\n"
        "server.application.ensure_bucket('b', 'c'); print(server.port, flush=True)\n"
        "sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(data)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        port = int(process.stdout.readline())
        with Client(port) as client:
            assert client.ask("PUT", O + "whole", b"x" * 100_000).status == 200
            assert client.ask("PUT", O + "old", b"old").status == 200
            client.connection.putrequest("PUT", O + "old")
            client.connection.putheader("content-length", "3000000")
            client.connection.endheaders()
            client.connection.send(b"y" * 1_000_000)
            while sum(path.stat().st_size for path in data.glob("files/??/*")) < 300_000:
                pass
            process.kill()
            process.wait()
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()
    with OpenServer(data) as server, Client(server.port) as client:
        assert client.ask("GET", O + "whole").body == b"x" * 100_000
        assert client.ask("GET", O + "old").body == b"old"
        assert len(list(data.glob("files/??/*"))) == 2


def test_a_client_that_goes_away_leaves_nothing(client: Client, open_server: OpenServer) -> None:
    """A body that ends early is no object, and its file is removed."""
    client.connection.putrequest("PUT", O + "k")
    client.connection.putheader("content-length", "1000000")
    client.connection.endheaders()
    client.connection.send(b"y" * 500_000)
    client.connection.close()
    open_server.close()
    assert not list(open_server.application.service.database.files.glob("??/*"))


def test_a_damaged_folder_is_refused(tmp_path: Path) -> None:
    """What is not a database is told, not overwritten."""
    (tmp_path / "objects.db").write_bytes(b"not a database" * 1000)
    with pytest.raises(Corrupt):
        OpenServer(tmp_path)
    assert (tmp_path / "objects.db").read_bytes().startswith(b"not a database")


@pytest.fixture(scope="module")
def reference() -> list[int]:
    """The table of RFC 3720's CRC, from its polynomial."""
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)  # noqa: PLW2901
        table.append(byte)
    return table


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=300), repeat=st.integers(1, 120), cut=st.integers(0, 40_000))
def test_crc32c(reference: list[int], data: bytes, repeat: int, cut: int) -> None:
    """The folded CRC is that of a table, in one piece or two."""
    message = data * repeat
    state = 0xFFFFFFFF
    for byte in message:
        state = (state >> 8) ^ reference[(state ^ byte) & 0xFF]
    assert crc32c(message) == state ^ 0xFFFFFFFF
    assert crc32c(message[cut:], crc32c(message[:cut])) == state ^ 0xFFFFFFFF


def test_crc32c_of_the_standard() -> None:
    """The vectors of RFC 3720 appendix B.4."""
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    assert crc32c(b"123456789") == 0xE3069283
    sums = Checksums(frozenset({"CRC32C"}))
    sums.update(memoryview(b"123456789"))
    assert sums.digests()["CRC32C"] == b64(bytes.fromhex("e3069283"))
