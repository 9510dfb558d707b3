"""Pushing to a real registry, also through a proxy that cuts, forgets, refuses and redirects."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from bootstream.errors import (
    AlreadyExists,
    BootstreamError,
    Cancelled,
    Corrupt,
    ImageNotFound,
    InvalidInput,
    PermissionDenied,
    Throttled,
    Unavailable,
)
from bootstream.images.cache import BlobCache
from bootstream.images.client import RegistryClient
from bootstream.images.credentials import (
    BearerSource,
    CredentialSource,
    NoCredentials,
    open_keychain,
)
from bootstream.images.reference import parse_name
from bootstream.images.resolver import open_remote
from bootstream.images.retry import Retry
from bootstream.images.tags import delete_manifest, head_manifest, list_repositories, list_tags
from bootstream.images.transfer import RegistryTarget, copy, open_source, registry_source
from bootstream.progress import NO_PROGRESS, NoProgress
from bootstream.proxies import Proxies
from bootstream.testing.registry import DockerRegistry, TokenAuth, run

from .conftest import Proxy, ProxyHandler

QUICK = Retry(attempts=5, base=0.02, cap=0.05)


def client_of(
    name: str,
    credentials: CredentialSource | BearerSource | None = None,
    *,
    plain_http: bool = True,
    ca_file: str | None = None,
    proxies: Proxies | None = None,
) -> RegistryClient:
    return RegistryClient(
        parse_name(name),
        plain_http=plain_http,
        ca_file=ca_file,
        credentials=credentials or NoCredentials(),
        proxies=proxies or Proxies(),
    )


class Listener(NoProgress):
    """Adds up what was advanced."""

    def __init__(self) -> None:
        self.phases: list[tuple[str, int | None]] = []
        self.sum = 0
        self._lock = threading.Lock()

    def phase(self, name: str, total: int | None = None, unit: str = "B") -> None:
        self.phases.append((name, total))

    def advance(self, name: str, amount: int) -> None:
        with self._lock:
            self.sum += amount


def push(
    layout: Path,
    client: RegistryClient,
    tag: str | None = "1",
    *,
    chunk: int | None = None,
    retry: Retry | None = None,
) -> str:
    """Copy the sample image to a registry; progress adds up to its total."""
    source = open_source(f"oci:{layout}:x", scratch=_nowhere, credentials=NoCredentials())
    listener = Listener()
    target = RegistryTarget(client, tag, chunk=chunk, retry=retry or QUICK)
    digest = copy(source, target, progress=listener)
    assert listener.phases == [("push", listener.sum)]
    return digest


def _nowhere() -> Path:
    raise AssertionError("nothing has to be decoded")


def inspect(reference: str, *options: str) -> Any:
    return json.loads(run("skopeo", "inspect", "--tls-verify=false", *options, reference))


def pulls(host: str, name: str, tmp_path: Path) -> None:
    """Let skopeo pull what was pushed: it checks every digest."""
    source = f"docker://{host}/{name}"
    options = ("--insecure-policy", "--all", "--src-tls-verify=false", "--quiet")
    run("skopeo", "copy", *options, source, f"oci:{tmp_path / 'pulled'}:x")


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[DockerRegistry]:
    """A registry with nothing in it."""
    with DockerRegistry(tmp_path / "empty") as server:
        yield server


@pytest.fixture
def before(empty: DockerRegistry, start_proxy: Callable[[str], Proxy]) -> Proxy:
    """A proxy before the empty registry."""
    return start_proxy(empty.host)


# -- what is sent ---------------------------------------------------------------------------------


def test_push(layout: Path, before: Proxy, empty: DockerRegistry, tmp_path: Path) -> None:
    """Large blobs by one PATCH, small ones by PUT, the tag last; a second push sends nothing."""
    digest = push(layout, client_of(f"{before.host}/a/b"))
    assert inspect(f"docker://{empty.host}/a/b:1")["Digest"] == digest
    pulls(empty.host, "a/b:1", tmp_path)
    assert sum(call.startswith("PATCH") for call in before.calls) == 1
    assert before.calls[-1] == "PUT /v2/a/b/manifests/1"
    sent = [headers["Content-Range"] for _, headers in before.requests if headers["Content-Range"]]
    assert [text.partition("-")[0] for text in sent] == ["0"]
    before.calls.clear()
    assert push(layout, client_of(f"{before.host}/a/b")) == digest
    assert {call.partition(" ")[0] for call in before.calls} == {"HEAD"}


def test_push_in_chunks(layout: Path, before: Proxy, empty: DockerRegistry, tmp_path: Path) -> None:
    """Chunks are as large as the registry wants them at least, and lie end to end."""

    def behave(handler: ProxyHandler) -> None:
        handler.extra = {"OCI-Chunk-Min-Length": "1000000"}
        handler.forward()

    before.behave = behave
    push(layout, client_of(f"{before.host}/a/b"), chunk=400_000)
    pulls(empty.host, "a/b:1", tmp_path)
    sent = [headers["Content-Range"] for _, headers in before.requests if headers["Content-Range"]]
    edges = [tuple(map(int, text.split("-"))) for text in sent]
    assert [start for start, _ in edges] == [0, 1_000_000, 2_000_000, 3_000_000]
    assert all(end + 1 == start for (_, end), (start, _) in itertools.pairwise(edges))


def test_a_push_by_digest(layout: Path, empty: DockerRegistry) -> None:
    """Without a tag the image is there by its digest, and no tag is."""
    client = client_of(f"{empty.host}/a/b")
    digest = push(layout, client, None)
    there = head_manifest(client, digest)
    assert there is not None
    assert there.digest == digest
    assert head_manifest(client, "1") is None


def test_mounting(layout: Path, before: Proxy, empty: DockerRegistry) -> None:
    """From repository to repository of one registry no bytes are sent."""
    digest = push(layout, client_of(f"{before.host}/a/b"))
    before.calls.clear()
    source = registry_source(client_of(f"{before.host}/a/b"), "1")
    listener = Listener()
    target = RegistryTarget(client_of(f"{before.host}/c/d"), "2")
    assert copy(source, target, progress=listener) == digest
    assert listener.phases == [("copy", listener.sum)]
    assert sum("mount=sha256" in call for call in before.calls) == 3
    assert not [call for call in before.calls if call.startswith(("PATCH", "PUT /v2/c/d/blobs"))]
    assert inspect(f"docker://{empty.host}/c/d:2")["Digest"] == digest


def test_mounts_that_are_refused(layout: Path, before: Proxy, empty: DockerRegistry) -> None:
    """A registry that mounts nothing, or says no: the bytes are sent instead."""
    push(layout, client_of(f"{before.host}/a/b"))
    for number, status in enumerate((403, 404, 405)):

        def behave(handler: ProxyHandler, status: int = status) -> None:
            if "mount=" in handler.path:
                handler.answer(status)
            else:
                handler.forward()

        before.behave = behave
        source = registry_source(client_of(f"{before.host}/a/b"), "1")
        target = RegistryTarget(client_of(f"{before.host}/e/f{number}"), "1", retry=QUICK)
        digest = copy(source, target)
        assert inspect(f"docker://{empty.host}/e/f{number}:1")["Digest"] == digest


# -- trouble on the way ----------------------------------------------------------------------------


class Sessions:
    """Upload sessions as the specification has them, before a registry whose own cannot go on.

    distribution 2.8 gives a session up whose PATCH broke; here what came is kept, and told.
    """

    def __init__(self, cuts: list[int], said: str = "0-{last}") -> None:
        self.cuts = cuts
        self.said = said
        self.starts: list[int] = []
        self.bytes: dict[str, bytearray] = {}

    def behave(self, handler: ProxyHandler) -> None:
        path = handler.path.partition("?")[0]
        there = self.bytes.setdefault(path, bytearray())
        answer = {"Location": handler.path, "Range": self.said.format(last=len(there) - 1)}
        if "/uploads/" not in path or handler.command in ("POST", "DELETE"):
            handler.forward()
        elif handler.command == "GET":
            handler.answer(204, b"", **answer)
        elif handler.command == "PATCH":
            start = int(handler.headers["Content-Range"].partition("-")[0])
            self.starts.append(start)
            length = int(handler.headers["Content-Length"])
            if start != len(there):
                handler.rfile.read(length)
                handler.answer(416, b"", **answer)
                return
            cut = self.cuts.pop(0) if self.cuts else length
            there += handler.rfile.read(cut)
            if cut < length:
                handler.reset()
            else:
                handler.answer(202, Location=handler.path)
        else:
            handler.forward(body=bytes(there) or None)


def test_a_broken_patch_goes_on(
    layout: Path, before: Proxy, empty: DockerRegistry, tmp_path: Path
) -> None:
    """Broken in the middle, twice: the registry is asked what it has, and gets the rest."""
    sessions = Sessions([1_000_000, 700_000])
    before.behave = sessions.behave
    push(layout, client_of(f"{before.host}/a/b"))
    pulls(empty.host, "a/b:1", tmp_path)
    assert sessions.starts == [0, 1_000_000, 1_700_000]


@pytest.mark.parametrize("said", ["", "0-0", "0-99999999", "bytes 5-9"])
def test_sessions_that_tell_nothing_useful(
    layout: Path, before: Proxy, empty: DockerRegistry, tmp_path: Path, said: str
) -> None:
    """No range, one that may mean one byte or none, one past what was sent: begun anew."""
    sessions = Sessions([1_000_000], said)
    before.behave = sessions.behave
    push(layout, client_of(f"{before.host}/a/b"))
    pulls(empty.host, "a/b:1", tmp_path)
    assert sessions.starts == [0, 0]


def test_a_registry_that_cannot_go_on(
    layout: Path, before: Proxy, empty: DockerRegistry, tmp_path: Path
) -> None:
    """Broken in the middle, twice: this registry gives the session up, so it starts over."""
    cuts = iter([1_000_000, 700_000])

    def behave(handler: ProxyHandler) -> None:
        size = next(cuts, None) if handler.command == "PATCH" else None
        if size is None:
            handler.forward()
        else:
            handler.cut(size)

    before.behave = behave
    push(layout, client_of(f"{before.host}/a/b"))
    pulls(empty.host, "a/b:1", tmp_path)
    sent = [headers["Content-Range"] for _, headers in before.requests if headers["Content-Range"]]
    assert [text.partition("-")[0] for text in sent] == ["0", "0", "0"]


def test_a_session_that_vanishes(
    layout: Path, before: Proxy, empty: DockerRegistry, tmp_path: Path
) -> None:
    """BLOB_UPLOAD_UNKNOWN for a PATCH, then for a PUT: another session is begun."""
    gone = b'{"errors":[{"code":"BLOB_UPLOAD_UNKNOWN","message":"unknown"}]}'
    troubles = {"PATCH": 1, "PUT": 1}

    def behave(handler: ProxyHandler) -> None:
        if "/uploads/" in handler.path and troubles.get(handler.command):
            troubles[handler.command] -= 1
            handler.rfile.read(int(handler.headers["Content-Length"]))
            handler.answer(404, gone, Content_Type="application/json")
        else:
            handler.forward()

    before.behave = behave
    push(layout, client_of(f"{before.host}/a/b"))
    pulls(empty.host, "a/b:1", tmp_path)
    assert sum(call.startswith("POST") for call in before.calls) == 5


def test_an_answer_that_is_lost(layout: Path, before: Proxy, empty: DockerRegistry) -> None:
    """Every blob and the tag arrive, the answers do not: nothing is sent twice, none is missed."""
    lost: set[str] = set()

    def behave(handler: ProxyHandler) -> None:
        path = handler.path.partition("?")[0]
        if handler.command == "PUT" and path not in lost:
            lost.add(path)
            handler.forward_only()
            handler.reset()
        else:
            handler.forward()

    before.behave = behave
    digest = push(layout, client_of(f"{before.host}/a/b"))
    assert inspect(f"docker://{empty.host}/a/b:1")["Digest"] == digest
    assert sum(call.startswith("POST") for call in before.calls) == 3


def test_refusals_that_pass(layout: Path, before: Proxy, empty: DockerRegistry) -> None:
    """429 with a time to wait, 503, 502: every kind of request meets each once."""
    met: dict[tuple[str, int], int] = {}

    def behave(handler: ProxyHandler) -> None:
        for status in (429, 503, 502):
            key = (handler.command, status)
            if met.setdefault(key, 0) == 0:
                met[key] = 1
                handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
                handler.answer(status, Retry_After="0")
                return
        handler.forward()

    before.behave = behave
    retry = Retry(attempts=12, base=0.01, cap=0.02)
    digest = push(layout, client_of(f"{before.host}/a/b"), retry=retry)
    assert inspect(f"docker://{empty.host}/a/b:1")["Digest"] == digest
    assert {command for command, _ in met} >= {"HEAD", "POST", "PATCH", "PUT"}


def test_a_long_refusal_is_passed_on(layout: Path, before: Proxy) -> None:
    """Nobody waits for an hour."""

    def behave(handler: ProxyHandler) -> None:
        if handler.command == "POST":
            handler.answer(429, Retry_After="3600")
        else:
            handler.forward()

    before.behave = behave
    with pytest.raises(Throttled) as caught:
        push(layout, client_of(f"{before.host}/a/b"))
    assert caught.value.retry_after == 3600


def answer_once(body: bytes, status: int, part: str, command: str = "PUT") -> Any:
    def behave(handler: ProxyHandler) -> None:
        if handler.command == command and part in handler.path:
            handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
            handler.answer(status, body, Content_Type="application/json")
        else:
            handler.forward()

    return behave


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (
            400,
            "TAG_INVALID",
            "The image tag '1' already exists in the 'a/b' repository and cannot be overwritten "
            "because the repository is immutable.",
        ),
        (400, "ImageTagAlreadyExistsException", ""),
        (409, "TAG_IMMUTABLE", "tag is immutable"),
        (403, "DENIED", "repository is immutable: tag 1 exists"),
        (412, "PRECONDITION", "Failed to process request due to '1' configured as immutable."),
        (
            400,
            "MANIFEST_INVALID",
            "cannot update tag 1. The repository has enabled tag immutability",
        ),
    ],
)
def test_an_immutable_tag(
    layout: Path, before: Proxy, status: int, code: str, message: str
) -> None:
    """What registries say of it differs; it is AlreadyExists."""
    body = json.dumps({"errors": [{"code": code, "message": message}]}).encode()
    before.behave = answer_once(body, status, "/manifests/1")
    with pytest.raises(AlreadyExists) as caught:
        push(layout, client_of(f"{before.host}/a/b"))
    assert "a/b:1" in str(caught.value)
    assert caught.value.remedy


def test_an_immutable_tag_that_is_right_already(layout: Path, before: Proxy) -> None:
    """It may not be set again; it is what was wanted, so it is not."""
    digest = push(layout, client_of(f"{before.host}/a/b"))
    before.behave = answer_once(b'{"errors":[{"code":"TAG_IMMUTABLE"}]}', 409, "/manifests/1")
    assert push(layout, client_of(f"{before.host}/a/b")) == digest


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (403, b'{"errors":[{"code":"DENIED","message":"no"}]}', PermissionDenied),
        (404, b'{"errors":[{"code":"NAME_UNKNOWN","message":"no repository"}]}', ImageNotFound),
        (405, b'{"errors":[{"code":"UNSUPPORTED"}]}', InvalidInput),
        (413, b"too large", InvalidInput),
    ],
)
def test_pushes_that_are_refused(
    layout: Path, before: Proxy, empty: DockerRegistry, status: int, body: bytes, error: Any
) -> None:
    """Denied, no such repository, not possible, too large: said once, and no tag is left."""
    before.behave = answer_once(body, status, "/uploads/", "POST")
    with pytest.raises(error) as caught:
        push(layout, client_of(f"{before.host}/a/b"))
    assert "a/b@sha256" in str(caught.value)
    assert sum(call.startswith("POST") for call in before.calls) <= 3
    assert head_manifest(client_of(f"{empty.host}/a/b"), "1") is None


def test_a_digest_that_the_registry_denies(layout: Path, before: Proxy) -> None:
    """DIGEST_INVALID again and again: Corrupt, after some attempts."""
    before.behave = answer_once(b'{"errors":[{"code":"DIGEST_INVALID"}]}', 400, "/uploads/")
    with pytest.raises(Corrupt):
        push(layout, client_of(f"{before.host}/a/b"))


def test_uploads_sent_to_another_host(
    layout: Path, before: Proxy, empty: DockerRegistry, start_proxy: Callable[[str], Proxy]
) -> None:
    """Bytes follow a Location elsewhere, credentials do not; a redirected write is refused."""
    other = start_proxy(empty.host)

    class Token:
        def token(self, *, refused: str | None) -> str:
            assert refused is None
            return "secret"

    def behave(handler: ProxyHandler) -> None:
        if handler.command == "POST":
            handler.location_host = other.host
        handler.forward(without=("authorization",))

    before.behave = behave
    digest = push(layout, client_of(f"{before.host}/a/b", Token()))
    assert inspect(f"docker://{empty.host}/a/b:1")["Digest"] == digest
    assert {headers["Authorization"] for _, headers in before.requests} == {"Bearer secret"}
    assert other.calls
    assert {headers["Authorization"] for _, headers in other.requests} == {None}
    other.calls.clear()

    def redirect(handler: ProxyHandler) -> None:
        if handler.command == "PUT":
            handler.rfile.read(int(handler.headers["Content-Length"]))
            handler.answer(307, Location=f"http://{other.host}{handler.path}")
        else:
            handler.forward(without=("authorization",))

    before.behave = redirect
    with pytest.raises(Unavailable, match="another host"):
        push(layout, client_of(f"{before.host}/a/c", Token()))
    assert not other.calls


def test_a_redirect_at_home(layout: Path, before: Proxy, empty: DockerRegistry) -> None:
    """307 to the same host: the body is sent again, to where it says."""

    def behave(handler: ProxyHandler) -> None:
        if handler.command in ("PATCH", "PUT") and "again" not in handler.path:
            handler.rfile.read(int(handler.headers["Content-Length"]))
            mark = "&again" if "?" in handler.path else "?again"
            handler.answer(307, Location=handler.path + mark)
        else:
            handler.forward()

    before.behave = behave
    digest = push(layout, client_of(f"{before.host}/a/b"))
    assert inspect(f"docker://{empty.host}/a/b:1")["Digest"] == digest


def test_a_damaged_source(layout: Path, before: Proxy, empty: DockerRegistry) -> None:
    """Wrong bytes of the right size are noticed before the last of them is sent; no tag."""
    push(layout, client_of(f"{before.host}/a/b"))

    def behave(handler: ProxyHandler) -> None:
        large = handler.command == "GET" and "/a/b/blobs/" in handler.path
        handler.forward(change=(lambda data: b"x" + data[1:]) if large else None)

    before.behave = behave
    source = registry_source(client_of(f"{before.host}/a/b"), "1")
    with pytest.raises(Corrupt, match="digest"):
        copy(source, RegistryTarget(client_of(f"{empty.host}/c/d"), "1", retry=QUICK))
    assert head_manifest(client_of(f"{empty.host}/c/d"), "1") is None
    damaged = [call for call in before.calls if call.startswith("GET /v2/a/b/blobs/")]
    assert len(damaged) <= 6  # each at most twice


def test_a_source_that_breaks(layout: Path, before: Proxy, empty: DockerRegistry) -> None:
    """A download cut in the middle of a copy goes on by range; the upload does not notice."""
    push(layout, client_of(f"{empty.host}/a/b"))
    cuts = iter([1_000_000, 5, 600_000])

    def behave(handler: ProxyHandler) -> None:
        handler.forward(limit=next(cuts, None) if "/blobs/" in handler.path else None)

    before.behave = behave
    source = registry_source(client_of(f"{before.host}/a/b"), "1")
    digest = copy(source, RegistryTarget(client_of(f"{empty.host}/c/d"), "1", mount_from=()))
    assert inspect(f"docker://{empty.host}/c/d:1")["Digest"] == digest
    assert [headers["Range"] for _, headers in before.requests if headers["Range"]]


def test_a_stopped_push(layout: Path, before: Proxy, empty: DockerRegistry) -> None:
    """Cancelled in the middle: it passes, and there is no tag."""

    class Stopper(NoProgress):
        def advance(self, name: str, amount: int) -> None:
            if amount:
                raise Cancelled("enough")

    source = open_source(f"oci:{layout}:x", scratch=_nowhere, credentials=NoCredentials())
    with pytest.raises(Cancelled, match="enough"):
        copy(source, RegistryTarget(client_of(f"{before.host}/a/b"), "1"), progress=Stopper())
    assert head_manifest(client_of(f"{empty.host}/a/b"), "1") is None


def test_a_killed_push_leaves_no_tag(layout: Path, before: Proxy, empty: DockerRegistry) -> None:
    """``kill -9`` while a blob is sent: nothing can be seen; the next push succeeds."""
    stall, came = threading.Event(), threading.Event()

    def behave(handler: ProxyHandler) -> None:
        if handler.command == "PATCH" and not came.is_set():
            came.set()
            stall.wait(20)
            handler.reset()
        else:
            handler.forward()

    before.behave = behave
    code = (
        "import sys; from pathlib import Path; from bootstream.images.transfer import *;"
        "from bootstream.images.client import RegistryClient;"
        "from bootstream.images.credentials import NoCredentials;"
        "from bootstream.images.reference import parse_name;"
        "n = NoCredentials(); s = open_source(sys.argv[1], scratch=Path.cwd, credentials=n);"
        "c = RegistryClient(parse_name(sys.argv[2]), plain_http=True, ca_file=None, credentials=n);"
        "copy(s, RegistryTarget(c, '1'))"
    )
    arguments = [sys.executable, "-c", code, f"oci:{layout}:x", f"{before.host}/a/b"]
    with subprocess.Popen(arguments) as process:
        try:
            assert came.wait(15)
        finally:
            os.kill(process.pid, signal.SIGKILL)
    stall.set()
    assert head_manifest(client_of(f"{empty.host}/a/b"), "1") is None
    digest = push(layout, client_of(f"{before.host}/a/b"))
    assert inspect(f"docker://{empty.host}/a/b:1")["Digest"] == digest


@pytest.mark.parametrize("seed", range(6))
def test_any_trouble_at_any_time(
    layout: Path, before: Proxy, empty: DockerRegistry, tmp_path: Path, seed: int
) -> None:
    """Requests lost, answers lost, bodies cut, refusals: the image is there whole, or no tag is."""
    chance = random.Random(seed)
    lock = threading.Lock()

    def behave(handler: ProxyHandler) -> None:
        with lock:
            what = chance.choice(["reset", "cut", "lost", "503", "429", "404"] + ["forward"] * 8)
        length = int(handler.headers.get("Content-Length") or 0)
        if what == "cut" and length > 1:
            handler.cut(length // 2)
        elif what == "lost":
            handler.forward_only()
            handler.reset()
        elif what in ("503", "429") or (what == "404" and "/uploads/" in handler.path):
            handler.rfile.read(length)
            code = {"404": "BLOB_UPLOAD_UNKNOWN"}.get(what, "TOOMANYREQUESTS")
            body = json.dumps({"errors": [{"code": code}]}).encode()
            handler.answer(int(what), body, Content_Type="application/json")
        elif what == "reset":
            handler.reset()
        else:
            handler.forward()

    before.behave = behave
    retry = Retry(attempts=8, base=0.01, cap=0.02)
    try:
        digest = push(layout, client_of(f"{before.host}/a/b"), retry=retry)
    except (Unavailable, Throttled):
        assert head_manifest(client_of(f"{empty.host}/a/b"), "1") is None
    else:
        assert inspect(f"docker://{empty.host}/a/b:1")["Digest"] == digest
        pulls(empty.host, "a/b:1", tmp_path)


@pytest.mark.parametrize("limit", [2_000_000, 1_000_000])
def test_requests_that_are_too_large(
    layout: Path, before: Proxy, empty: DockerRegistry, tmp_path: Path, limit: int
) -> None:
    """413 from a proxy: smaller chunks, as small as need be."""

    def behave(handler: ProxyHandler) -> None:
        length = int(handler.headers.get("Content-Length") or 0)
        if length > limit:
            handler.rfile.read(length)
            handler.answer(413)
        else:
            handler.forward()

    before.behave = behave
    push(layout, client_of(f"{before.host}/a/b"))
    pulls(empty.host, "a/b:1", tmp_path)


def test_a_registry_without_patch(
    layout: Path, before: Proxy, empty: DockerRegistry, tmp_path: Path
) -> None:
    """It takes whole blobs only: they come by PUT, also after that broke once."""
    broken: list[str] = []

    def behave(handler: ProxyHandler) -> None:
        length = int(handler.headers.get("Content-Length") or 0)
        if handler.command == "PATCH":
            handler.rfile.read(length)
            handler.answer(405, b'{"errors":[{"code":"UNSUPPORTED"}]}')
        elif handler.command == "PUT" and length > 1_000_000 and not broken:
            broken.append(handler.path)
            handler.cut(900_000)
        else:
            handler.forward()

    before.behave = behave
    push(layout, client_of(f"{before.host}/a/b"))
    pulls(empty.host, "a/b:1", tmp_path)
    assert broken
    assert sum(call.startswith("PATCH") for call in before.calls) == 1


# -- who may --------------------------------------------------------------------------------------


def test_push_with_tls_and_a_password(
    layout: Path, tmp_path: Path, auth_file: Callable[..., Path]
) -> None:
    """htpasswd over TLS: with the right password; with none, denied."""
    with DockerRegistry(tmp_path / "r", tls=True, htpasswd=("me", "secret")) as server:
        name, ca_file = f"{server.host}/a/b", str(server.ca_file)
        keychain = open_keychain(auth_file(server.host, "me", "secret"))
        digest = push(layout, client_of(name, keychain, plain_http=False, ca_file=ca_file))
        said = inspect(f"docker://{name}:1", "--creds", "me:secret")
        assert said["Digest"] == digest
        with pytest.raises(PermissionDenied):
            push(layout, client_of(name, plain_http=False, ca_file=ca_file))


def test_a_registry_that_calls_itself_by_http(tmp_path: Path, layout: Path) -> None:
    """Behind a proxy that ends TLS: uploads go on by https, where they began."""
    with DockerRegistry(tmp_path / "r", tls=True, says_http=True) as server:
        ca_file = str(server.ca_file)
        client = client_of(f"{server.host}/a/b", plain_http=False, ca_file=ca_file)
        digest = push(layout, client)
        assert inspect(f"docker://{server.host}/a/b:1")["Digest"] == digest


def test_tokens_for_pushing(layout: Path, tmp_path: Path, auth_file: Callable[..., Path]) -> None:
    """Scopes ask for what is done: pull and push, and pull where it is mounted from."""
    auth = TokenAuth(user="me", password="secret", anonymous_pull=True)
    with DockerRegistry(tmp_path / "r", token=auth) as server:
        assert server.tokens is not None
        keychain = open_keychain(auth_file(server.host, "me", "secret"))
        name = f"{server.host}/a/b"
        digest = push(layout, client_of(name, keychain))

        def ordered(scopes: list[str]) -> set[str]:
            """The registry lists a challenge's actions, and its scopes, in any order."""
            parts = [scope.rpartition(":") for scope in scopes]
            return {f"{name}:{','.join(sorted(actions.split(',')))}" for name, _, actions in parts}

        scopes = [ordered(request.query["scope"]) for request in server.tokens.requests]
        assert {"repository:a/b:pull,push"} in scopes
        server.tokens.requests.clear()
        source = registry_source(client_of(name, keychain), "1")
        target = RegistryTarget(client_of(f"{server.host}/c/d", keychain), "1")
        assert copy(source, target) == digest
        asked = [ordered(request.query["scope"]) for request in server.tokens.requests]
        assert {"repository:c/d:pull,push", "repository:a/b:pull"} in asked
        assert len(asked) <= 5
        with pytest.raises(PermissionDenied):
            push(layout, client_of(f"{server.host}/e/f"))
        assert head_manifest(client_of(name, keychain), "1") is not None
        assert delete_manifest(client_of(name, keychain), digest)


@pytest.mark.parametrize("read", [True, False])
def test_a_token_that_expires_meanwhile(
    layout: Path,
    tmp_path: Path,
    auth_file: Callable[..., Path],
    start_proxy: Callable[..., Proxy],
    read: bool,
) -> None:
    """401 in the middle of a push, for every kind of request: renewed once, and sent again."""
    auth = TokenAuth(user="me", password="secret")
    with DockerRegistry(tmp_path / "r", token=auth) as server:
        assert server.tokens is not None
        proxy = start_proxy(server.host)
        challenge = (
            f'Bearer realm="{server.tokens.url}",service="bootstream-test",'
            'scope="repository:a/b:pull,push"'
        )
        refused: set[str] = set()

        def behave(handler: ProxyHandler) -> None:
            if handler.headers["Authorization"] and handler.command not in refused:
                refused.add(handler.command)
                if read:
                    handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
                handler.answer(401, WWW_Authenticate=challenge)
            else:
                handler.forward()

        proxy.behave = behave
        keychain = open_keychain(auth_file(proxy.host, "me", "secret"))
        digest = push(layout, client_of(f"{proxy.host}/a/b", keychain))
        assert refused == {"HEAD", "POST", "PATCH", "PUT"}
        said = inspect(f"docker://{server.host}/a/b:1", "--creds", "me:secret")
        assert said["Digest"] == digest


def test_bearer_tokens_of_a_provider(layout: Path, tmp_path: Path) -> None:
    """A token that is refused is asked for anew, once; the same one again ends it."""
    with DockerRegistry(tmp_path / "r", token=TokenAuth(user="me", password="x")) as server:
        assert server.tokens is not None
        tokens = server.tokens

        class Provider:
            """Has a stale token, and gets a fresh one when that is refused."""

            def __init__(self) -> None:
                self.current = "stale"
                self.asked: list[str | None] = []
                self.lock = threading.Lock()

            def token(self, *, refused: str | None) -> str:
                with self.lock:
                    if refused is not None:
                        self.asked.append(refused)
                    if refused == self.current == "stale":
                        self.current = tokens.token(["repository:a/b:pull,push"])
                    return self.current

        provider = Provider()
        digest = push(layout, client_of(f"{server.host}/a/b", provider))
        assert head_manifest(client_of(f"{server.host}/a/b", provider), "1") is not None
        assert set(provider.asked) == {"stale"}
        cache = BlobCache(tmp_path / "cache")
        name = f"{server.host}/a/b:1"
        image = open_remote(name, cache=cache, credentials=provider, plain_http=True)
        image.fetch(NO_PROGRESS)
        assert image.digest == digest
        said = inspect(f"docker://{server.host}/a/b:1", "--creds", "me:x")
        assert said["Digest"] == digest
        with pytest.raises(PermissionDenied):
            push(layout, client_of(f"{server.host}/other", provider))
        assert len(provider.asked) < 40
        assert not [r for r in tokens.requests if r.query.get("account") != ["me"]]


# -- lists and deletes ----------------------------------------------------------------------------


def test_lists_in_pages(registry: DockerRegistry, start_proxy: Callable[[str], Proxy]) -> None:
    """Links are followed at the same registry, by path or whole URL, and not for ever."""
    proxy = start_proxy(registry.host)
    pages = {
        "/v2/team/app/tags/list?n=2": (["1", "2"], "</v2/team/app/tags/list?n=2&last=2>; rel=next"),
        "/v2/team/app/tags/list?n=2&last=2": (
            ["3", "4"],
            f'<http://{proxy.host}/v2/team/app/tags/list?n=2&last=4>; rel="next"',
        ),
        "/v2/team/app/tags/list?n=2&last=4": (None, ""),
    }

    def behave(handler: ProxyHandler) -> None:
        names, link = pages[handler.path]
        body = json.dumps({"name": "team/app", "tags": names}).encode()
        handler.answer(200, body, **({"Link": link} if link else {}))

    proxy.behave = behave
    client = client_of(f"{proxy.host}/team/app")
    assert list(list_tags(client, page=2)) == ["1", "2", "3", "4"]
    for link in ("<http://other.invalid/v2/x>; rel=next", "</v2/team/app/tags/list?n=2>; rel=next"):
        proxy.behave = lambda handler, link=link: handler.answer(200, b'{"tags":["1"]}', Link=link)  # type: ignore[misc]  # default
        with pytest.raises(Corrupt):
            list(list_tags(client, page=2))
    for body in (b"[]", b"{", b'{"tags": 5}', b'{"tags": [5]}', b"x" * (9 << 20)):
        proxy.behave = lambda handler, body=body: handler.answer(200, body)  # type: ignore[misc]  # default
        with pytest.raises(Corrupt):
            list(list_tags(client))


def test_deletes(layout: Path, empty: DockerRegistry) -> None:
    """A manifest goes with its tags, once; a repository that is not there has no tags."""
    client = client_of(f"{empty.host}/a/b")
    digest = push(layout, client)
    assert list(list_tags(client)) == ["1"]
    assert list(list_repositories(client)) == ["a/b"]
    assert delete_manifest(client, digest)
    assert not delete_manifest(client, digest)
    assert head_manifest(client, "1") is None
    with pytest.raises(ImageNotFound):
        list(list_tags(client_of(f"{empty.host}/none")))
    with pytest.raises(BootstreamError):
        delete_manifest(client, "1")  # this registry deletes by digest only


def test_look_ups_without_a_digest(registry: DockerRegistry, proxy: Proxy) -> None:
    """A registry that tells no digest in its headers: the manifest itself is read."""
    known = head_manifest(client_of(f"{registry.host}/team/app"), "1")
    proxy.behave = lambda handler: handler.forward(hide=("docker-content-digest",))
    assert head_manifest(client_of(f"{proxy.host}/team/app"), "1") == known


# -- ways there -----------------------------------------------------------------------------------


def test_http_proxies(layout: Path, tmp_path: Path, empty: DockerRegistry) -> None:
    """Requests of hosts beyond this one go through the proxy, with its password, not theirs."""
    del tmp_path
    seen: list[tuple[str, str | None, str | None]] = []

    def behave(handler: ProxyHandler) -> None:
        path = handler.path
        authorization = handler.headers["Proxy-Authorization"]
        seen.append((path, authorization, handler.headers["Authorization"]))
        handler.path = path.replace("http://registry.invalid", "")
        handler.forward(without=("proxy-authorization",))

    forward = Proxy(empty.host)
    try:
        forward.behave = behave
        proxies = Proxies.from_environment({"http_proxy": f"http://me:pw@{forward.host}"})
        digest = push(layout, client_of("registry.invalid/a/b", proxies=proxies))
    finally:
        forward.close()
    assert inspect(f"docker://{empty.host}/a/b:1")["Digest"] == digest
    assert all(path.startswith("http://registry.invalid/") for path, _, _ in seen)
    assert {authorization for _, authorization, _ in seen} == {"Basic bWU6cHc="}


class Tunnel(socketserver.StreamRequestHandler):
    """A CONNECT, to a registry that is known by another name."""

    upstream = ""
    seen: ClassVar[list[str]] = []
    status = "200 OK"

    def handle(self) -> None:
        lines = iter(self.rfile.readline, b"\r\n")
        self.seen.extend(line.decode().strip() for line in lines)
        self.wfile.write(f"HTTP/1.1 {self.status}\r\n\r\n".encode())
        if not self.status.startswith("200"):
            return
        host, _, port = self.upstream.partition(":")
        with socket.create_connection((host, int(port))) as upstream:

            def pump(source: socket.socket, sink: socket.socket) -> None:
                with contextlib.suppress(OSError):
                    while data := source.recv(1 << 16):
                        sink.sendall(data)
                with contextlib.suppress(OSError):
                    sink.shutdown(socket.SHUT_WR)

            thread = threading.Thread(target=pump, args=(upstream, self.connection))
            thread.start()
            pump(self.connection, upstream)
            thread.join()


def test_https_through_a_proxy(layout: Path, tmp_path: Path) -> None:
    """CONNECT, with the proxy's password; TLS is the registry's. 407 is said at once."""
    with DockerRegistry(tmp_path / "r", tls=True) as server:

        class Handler(Tunnel):
            upstream = server.host
            seen: ClassVar[list[str]] = []

        with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as tunnel:
            tunnel.daemon_threads = True
            thread = threading.Thread(target=tunnel.serve_forever, args=(0.05,))
            thread.start()
            host = f"127.0.0.1:{tunnel.server_address[1]}"
            proxies = Proxies.from_environment({"https_proxy": f"http://me:pw@{host}"})
            client = client_of(
                "registry.invalid/a/b",
                plain_http=False,
                ca_file=str(server.ca_file),
                proxies=proxies,
            )
            try:
                digest = push(layout, client)
                client.close()
                Handler.status = "407 Proxy Authentication Required"
                with pytest.raises(Unavailable, match="407") as caught:
                    head_manifest(client, "1")
            finally:
                client.close()
                tunnel.shutdown()
                thread.join()
        assert not caught.value.transient
        assert "pw" not in str(caught.value)
        assert Handler.seen[0].startswith("CONNECT registry.invalid:443 HTTP/1.")
        assert "Proxy-Authorization: Basic bWU6cHc=" in Handler.seen
        assert inspect(f"docker://{server.host}/a/b:1")["Digest"] == digest


def test_progress_is_optional(layout: Path, empty: DockerRegistry) -> None:
    """Nobody has to listen."""
    source = open_source(f"oci:{layout}:x", scratch=_nowhere, credentials=NoCredentials())
    target = RegistryTarget(client_of(f"{empty.host}/a/b"), "1")
    assert copy(source, target, progress=NO_PROGRESS) == source.root.digest
