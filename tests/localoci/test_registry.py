"""The local OCI's registry, as its protocol has it: requests byte by byte."""

from __future__ import annotations

import http.client
import json
import random
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from tests.localoci.client import Client
from tests.localoci.registries import Docker, code_of, digest_of, place

from bootstream.testing.localoci import LocalOciServer

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalOciServer]:
    folder = tmp_path_factory.mktemp("oci")
    with LocalOciServer(folder, registry=True, registry_token_seconds=100) as running:
        yield running


@pytest.fixture
def docker(server: LocalOciServer) -> Iterator[Docker]:
    with Client(int(server.registry_host.rpartition(":")[2])) as client:
        docker = Docker(server, client)
        docker.sign_in()
        yield docker


def test_challenges(server: LocalOciServer, docker: Docker) -> None:
    """Without a token, and with one that is none, the answer says where to get which."""
    docker.token = ""
    host = server.registry_host
    realm = f'Bearer realm="http://{host}/20180419/docker/token",service="{host}"'
    for method, path, scope in (
        ("GET", "/v2/", ""),
        ("GET", f"/v2/{docker.name}/manifests/x", f"repository:{docker.name}:pull"),
        ("POST", f"/v2/{docker.name}/blobs/uploads/", f"repository:{docker.name}:pull,push"),
        ("PUT", "/v2/other/x/manifests/x", "repository:other/x:pull,push"),
    ):
        answer = docker.ask(method, path)
        assert (answer.status, code_of(answer)) == (401, "UNAUTHORIZED")
        assert answer.headers["www-authenticate"] == f'{realm},scope="{scope}"'
    docker.token = "e30.e30.x"
    answer = docker.ask("GET", "/v2/")
    assert answer.status == 401
    assert answer.headers["www-authenticate"] == f'{realm},scope="",error="invalid_token"'
    answer = docker.client.ask("GET", "/v2/", host='x"y')
    assert answer.status == 400  # nothing of it gets into the challenge


def test_push_and_pull(server: LocalOciServer, docker: Docker) -> None:
    """What comes back is what was pushed; HEAD tells the same; places are the client's host."""
    manifest = docker.manifest(b"layer")
    pushed = docker.put("t1", manifest)
    digest = digest_of(manifest)
    assert pushed.headers["docker-content-digest"] == digest
    assert pushed.headers["location"] == (
        f"http://{server.registry_host}/v2/{docker.name}/manifests/{digest}"
    )
    for reference in ("t1", digest):
        got = docker.get(reference)
        assert (got.body, got.headers["docker-content-digest"]) == (manifest, digest)
        head = docker.ask("HEAD", f"/v2/{docker.name}/manifests/{reference}")
        assert head.headers["content-length"] == str(len(manifest))
        assert head.headers["content-type"] == got.headers["content-type"]
    blob = f"/v2/{docker.name}/blobs/{digest_of(b'layer')}"
    assert docker.ask("GET", blob).body == b"layer"
    assert docker.ask("HEAD", blob).headers["content-length"] == "5"
    ranged = docker.ask("GET", blob, range="bytes=1-2")
    assert (ranged.status, ranged.body) == (206, b"ay")
    assert ranged.headers["content-range"] == "bytes 1-2/5"


def test_upload_in_pieces(server: LocalOciServer, docker: Docker) -> None:
    """Pieces in chunks and with a length; where it stands; an upload given up."""
    started = docker.ask("POST", f"/v2/{docker.name}/blobs/uploads/")
    prefix = f"http://{server.registry_host}/v2/{docker.name}/blobs/uploads/"
    assert started.headers["location"].startswith(prefix)
    first = docker.ask("PATCH", place(started), iter([b"ab", b"cd"]))
    assert (first.status, first.headers["range"]) == (202, "0-3")
    second = docker.ask("PATCH", place(first), b"ef", content_type="application/octet-stream")
    assert second.headers["range"] == "0-5"
    assert docker.ask("GET", place(second)).headers["range"] == "0-5"
    wrong = docker.ask("PUT", f"{place(second)}&digest={digest_of(b'other')}")
    assert (wrong.status, code_of(wrong)) == (400, "DIGEST_INVALID")
    again = docker.ask("POST", f"/v2/{docker.name}/blobs/uploads/")
    assert docker.ask("DELETE", place(again)).status == 204
    assert docker.ask("GET", place(again)).status == 404


def test_errors(docker: Docker) -> None:
    """Each is the specification's document, with its code."""
    name = docker.name
    unknown = digest_of(b"unknown")
    for method, path, status, code in (
        ("GET", f"/v2/{name}/manifests/none", 404, "MANIFEST_UNKNOWN"),
        ("GET", f"/v2/{name}/manifests/{unknown}", 404, "MANIFEST_UNKNOWN"),
        ("GET", f"/v2/{name}/blobs/{unknown}", 404, "BLOB_UNKNOWN"),
        ("GET", f"/v2/{name}/blobs/..", 400, "DIGEST_INVALID"),
        ("DELETE", f"/v2/{name}/manifests/{unknown}", 405, "UNSUPPORTED"),
        ("DELETE", f"/v2/{name}/blobs/{unknown}", 405, "UNSUPPORTED"),
        ("PUT", f"/v2/{name}/blobs/{unknown}", 405, "UNSUPPORTED"),
        ("POST", f"/v2/{name}/blobs/uploads/x", 405, "UNSUPPORTED"),
        ("GET", f"/v2/{name}/referrers/{unknown}", 404, "UNSUPPORTED"),
        ("GET", "/v2/_catalog", 405, "UNSUPPORTED"),
        ("GET", f"/v2/{name}/tags/list?n=x", 400, "PAGINATION_NUMBER_INVALID"),
        ("PUT", f"/v2/{name}/manifests/.x", 400, "MANIFEST_INVALID"),
        ("PUT", f"/v2/{name}/manifests/sha256:x", 400, "DIGEST_INVALID"),
        ("PUT", f"/v2/{name}/manifests/x", 400, "MANIFEST_INVALID"),
    ):
        answer = docker.ask(method, path)
        assert (answer.status, code_of(answer)) == (status, code), (method, path)
    docker.sign_in(name="local/Upper")
    answer = docker.ask("GET", "/v2/local/Upper/tags/list")
    assert (answer.status, code_of(answer)) == (400, "NAME_INVALID")
    docker.sign_in(name="other/x")
    answer = docker.ask("GET", "/v2/other/x/tags/list")
    assert (answer.status, code_of(answer)) == (404, "NAME_UNKNOWN")
    answer = docker.ask("POST", "/v2/other/x/blobs/uploads/")
    assert (answer.status, code_of(answer)) == (403, "DENIED")
    docker.sign_in(name="local/none")
    answer = docker.ask("GET", "/v2/local/none/tags/list")
    assert (answer.status, code_of(answer)) == (404, "NAME_UNKNOWN")


def test_manifest_of_missing_blobs(docker: Docker) -> None:
    """It is refused, and no tag names it."""
    manifest = docker.manifest(b"will be there")
    document = json.loads(manifest)
    document["layers"][0]["digest"] = digest_of(b"was never there")
    answer = docker.put("missing", json.dumps(document).encode())
    assert (answer.status, code_of(answer)) == (404, "MANIFEST_BLOB_UNKNOWN") or (
        answer.status == 400
    )
    assert docker.get("missing").status == 404


def test_manifest_that_is_too_large(docker: Docker) -> None:
    """Over 4 MiB is refused, in the protocol's form."""
    answer = docker.put("large", bytes((4 * MIB) + 1))
    assert (answer.status, code_of(answer)) == (413, "SIZE_INVALID")


def test_tags_in_pages(docker: Docker) -> None:
    """In order, each once, by links."""
    name = "local/paged"
    docker.sign_in(name=name)
    manifest = docker.manifest(b"paged", name)
    tags = [f"t{number:02}" for number in range(7)]
    for tag in reversed(tags):
        assert docker.put(tag, manifest, name).status == 201
    found: list[str] = []
    target = f"/v2/{name}/tags/list?n=3"
    pages = 0
    while target:
        answer = docker.ask("GET", target)
        found += answer.json()["tags"]
        pages += 1
        link = re.fullmatch(r'<(.*)>; rel="next"', answer.headers.get("link", ""))
        target = link[1] if link else ""
    assert (found, pages) == (tags, 3)


def test_tag_moves(docker: Docker) -> None:
    """A tag names the last image; the first one stays, by its digest."""
    first, second = docker.push("moving", b"one"), docker.push("moving", b"two")
    assert docker.get("moving").headers["docker-content-digest"] == second
    assert docker.get(first).status == 200


def test_mount(docker: Docker) -> None:
    """A blob comes from a repository that the token lets pull from, and from no other."""
    digest = docker.upload(b"to be mounted")
    target = f"/v2/local/mounted/blobs/uploads/?mount={digest}&from={docker.name}"
    scopes = [f"repository:{docker.name}:pull", "repository:local/mounted:pull,push"]
    docker.token = docker.get_token(scopes[1]).json()["token"]
    assert docker.ask("POST", target).status == 202  # an upload: nothing was mounted
    docker.token = docker.get_token(" ".join(scopes)).json()["token"]
    mounted = docker.ask("POST", target)
    assert mounted.status == 201
    assert place(mounted).startswith(f"/v2/local/mounted/blobs/{digest}")
    assert docker.ask("GET", place(mounted)).body == b"to be mounted"


def test_token_expires_within_a_push(server: LocalOciServer, docker: Docker) -> None:
    """The next request is refused; with another token the upload goes on where it stands."""
    started = docker.ask("POST", f"/v2/{docker.name}/blobs/uploads/")
    first = docker.ask("PATCH", place(started), b"first ")
    server.set_clock(101)
    try:
        late = docker.ask("PATCH", place(first), b"second")
        assert late.status == 401
        assert 'error="invalid_token"' in late.headers["www-authenticate"]
        docker.sign_in()
        second = docker.ask("PATCH", place(first), b"second")
        assert second.headers["range"] == "0-11"
        done = docker.ask("PUT", f"{place(second)}&digest={digest_of(b'first second')}")
        assert done.status == 201
    finally:
        server.set_clock(0)


def test_early_answer_to_a_large_body(docker: Docker) -> None:
    """An upload that is not there says so, although megabytes were sent."""
    target = f"/v2/{docker.name}/blobs/uploads/00000000-0000-0000-0000-000000000000?_state=x"
    answer = docker.ask("PATCH", target, bytes(3 * MIB))
    assert answer.status in {400, 404}
    assert docker.ask("GET", "/v2/").status == 200


def test_client_that_goes_away(server: LocalOciServer, docker: Docker) -> None:
    """Half an upload leaves a registry that works."""
    started = docker.ask("POST", f"/v2/{docker.name}/blobs/uploads/")
    host, _, port = server.registry_host.partition(":")
    with socket.create_connection((host, int(port))) as connection:
        head = f"PATCH {place(started)} HTTP/1.1\r\nhost: {server.registry_host}\r\n"
        head += f"authorization: Bearer {docker.token}\r\ncontent-length: 1000000\r\n\r\n"
        connection.sendall(head.encode() + bytes(1000))
    assert docker.push("after", b"after")


def test_upload_goes_on_after_a_break(server: LocalOciServer, docker: Docker) -> None:
    """Where it stands is asked for; a piece from elsewhere is refused, the next one is taken."""
    data = random.Random(7).randbytes(100_000)
    started = docker.ask("POST", f"/v2/{docker.name}/blobs/uploads/")
    server.faults.add("reset", operation="PatchUpload", upload=True, after=30_000, count=1)
    with pytest.raises((ConnectionError, http.client.RemoteDisconnected)):
        docker.ask("PATCH", place(started), data)
    docker.client.connection.close()
    server.faults.clear()
    deadline = time.monotonic() + 10
    while True:
        stands = docker.ask("GET", place(started))
        assert stands.status == 204
        if stands.headers["range"] == "0-29999" or time.monotonic() > deadline:
            break
    assert stands.headers["range"] == "0-29999"
    wrong = docker.ask("PATCH", place(stands), data[5:], content_range="5-99999")
    assert (wrong.status, code_of(wrong)) == (416, "BLOB_UPLOAD_INVALID")
    assert wrong.headers["range"] == "0-29999"
    rest = docker.ask("PATCH", place(wrong), data[30_000:], content_range="30000-99999")
    assert rest.headers["range"] == "0-99999"
    done = docker.ask("PUT", f"{place(rest)}&digest={digest_of(data)}")
    assert done.status == 201
    assert docker.ask("GET", f"/v2/{docker.name}/blobs/{digest_of(data)}").body == data


@pytest.mark.parametrize("upload", ["..", "../../x", "%2e%2e", "x" * 5000, "é"])
def test_strange_uploads(docker: Docker, upload: str) -> None:
    """What is no upload is answered so, wherever it would lead."""
    for method in ("GET", "PATCH", "PUT", "DELETE"):
        target = f"/v2/{docker.name}/blobs/uploads/{quote(upload, safe='%')}"
        answer = docker.ask(method, target, content_range="5-9")
        assert answer.status in {400, 404, 405}, answer.body


def test_pushes_at_once(server: LocalOciServer, docker: Docker) -> None:
    """Many first pushes make one repository; one tag has one of the images."""
    name, port = "local/at-once", int(server.registry_host.rpartition(":")[2])
    docker.sign_in(name=name)
    barrier = threading.Barrier(8)

    def push(number: int) -> str:
        with Client(port) as client:
            mine = Docker(server, client, docker.token)
            barrier.wait(10)
            return mine.push("same", b"%d" % number, name)

    with ThreadPoolExecutor(8) as pool:
        digests = list(pool.map(push, range(8)))
    assert docker.get("same", name).headers["docker-content-digest"] in digests
    assert all(docker.get(digest, name).status == 200 for digest in digests)


def test_large_blob_in_bounded_memory(server: LocalOciServer, docker: Docker) -> None:
    """Both ways; the server's peak grows by less than the blob's eighth."""
    process = server.process_id
    started = docker.ask("POST", f"/v2/{docker.name}/blobs/uploads/")
    piece = random.Random(5).randbytes(MIB)
    data = piece * 96
    before = peak(process)
    target = f"{place(started)}&digest={digest_of(data)}"
    answer = docker.ask("PUT", target, data)
    assert answer.status == 201, answer.body
    connection = docker.client.connection
    connection.request(
        "GET",
        f"/v2/{docker.name}/blobs/{digest_of(data)}",
        headers={"authorization": f"Bearer {docker.token}"},
    )
    response = connection.getresponse()
    assert response.getheader("content-length") == str(len(data))
    assert all(response.read(MIB) == piece for _ in range(96))
    assert response.read() == b""
    assert peak(process) - before < 12 * MIB


def peak(process: int) -> int:
    """The most memory that a process had, in bytes."""
    status = Path(f"/proc/{process}/status").read_text()
    match = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert match is not None
    return int(match[1]) * 1024


@pytest.mark.parametrize("effect", ["reset", "cut", "status"])
def test_faults(server: LocalOciServer, docker: Docker, effect: str) -> None:
    """Faults meet the registry's operations too, by repository and digest."""
    data = random.Random(6).randbytes(MIB)
    digest = docker.upload(data)
    server.faults.add(effect, operation="GetBlob", bucket=docker.name, object=digest, count=1)
    try:
        try:
            failed = docker.ask("GET", f"/v2/{docker.name}/blobs/{digest}").status == 503
        except (OSError, http.client.IncompleteRead):
            failed = True
        assert failed
        docker.client.connection.close()
        assert docker.ask("GET", f"/v2/{docker.name}/blobs/{digest}").body == data
    finally:
        server.faults.clear()
    assert server.take_requests()["GetBlob"] >= 2


def test_registry_is_there_again(tmp_path: Path) -> None:
    """Images, tags, passwords and uploads in work outlive a kill."""
    with LocalOciServer(tmp_path, registry=True) as first:
        password = first.registry_password
        with Client(int(first.registry_host.rpartition(":")[2])) as client:
            docker = Docker(first, client)
            docker.sign_in()
            digest = docker.push("kept", b"kept")
            upload = docker.ask("POST", f"/v2/{docker.name}/blobs/uploads/")
            started = docker.ask("PATCH", place(upload), b"up")
        first.kill()
    with LocalOciServer(tmp_path, registry=True) as second:
        assert second.registry_password == password
        with Client(int(second.registry_host.rpartition(":")[2])) as client:
            docker = Docker(second, client)
            docker.sign_in()
            assert docker.get("kept").headers["docker-content-digest"] == digest
            target = f"{place(started)}&digest={digest_of(b'upload')}"
            assert docker.ask("PUT", target, b"load").status == 201


def test_readers_while_one_image_is_pushed_again(server: LocalOciServer, docker: Docker) -> None:
    """Many push the same at once, many read: nobody is told that it is not there, or is wrong."""
    name, port = "local/again", int(server.registry_host.rpartition(":")[2])
    docker.sign_in(name=name)
    digest = docker.push("same", b"layer", name)
    layer = digest_of(b"layer")
    ended = threading.Event()
    barrier = threading.Barrier(8)

    def push() -> None:
        with Client(port) as client:
            mine = Docker(server, client, docker.token)
            barrier.wait(10)
            for _ in range(6):
                assert mine.push("same", b"layer", name) == digest

    def read() -> int:
        count = 0
        with Client(port) as client:
            mine = Docker(server, client, docker.token)
            barrier.wait(10)
            while not ended.is_set():
                for place in (f"manifests/{digest}", "manifests/same", f"blobs/{layer}"):
                    answer = mine.ask("GET", f"/v2/{name}/{place}")
                    assert answer.status == 200, answer.body
                    count += 1
        return count

    with ThreadPoolExecutor(8) as pool:
        readers = [pool.submit(read) for _ in range(4)]
        pushes = [pool.submit(push) for _ in range(4)]
        try:
            for one in pushes:
                one.result()
        finally:
            ended.set()
        assert all(reader.result() for reader in readers)


def test_what_is_behind_fails(server: LocalOciServer, docker: Docker) -> None:
    """Its trouble is 503, which clients try again, never a missing image."""
    manifest = docker.manifest(b"behind")
    docker.put("behind", manifest)
    (data,) = server.folder.glob(f"data/registry/storage/**/{digest_of(manifest)[7:]}/data")
    there = data.read_bytes()
    data.write_bytes(b"{")
    try:
        answer = docker.get("behind")
        assert (answer.status, code_of(answer)) == (503, "UNAVAILABLE")
    finally:
        data.write_bytes(there)
    assert docker.get("behind").body == there
