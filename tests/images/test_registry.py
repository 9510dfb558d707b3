"""Pulling from a real registry, also through a proxy that cuts, lies, refuses and redirects."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bootstream.errors import (
    BootstreamError,
    Cancelled,
    Corrupt,
    ImageNotFound,
    InvalidInput,
    PermissionDenied,
    Throttled,
    Unavailable,
)
from bootstream.images import BlobCache, resolve
from bootstream.images.choice import choose, root_of
from bootstream.images.credentials import open_keychain
from bootstream.images.image import Image
from bootstream.images.reference import RegistryReference
from bootstream.images.remote import RegistryClient, RemoteSource
from bootstream.images.retry import Retry
from bootstream.images.validate import validate
from bootstream.progress import NO_PROGRESS, NoProgress
from bootstream.testing.images import write_index, write_layout
from bootstream.testing.registry import DockerRegistry, TokenAuth, run

from .conftest import Proxy, ProxyHandler, sample_layers

BIG = 1 << 20


@pytest.fixture
def cache(tmp_path: Path) -> BlobCache:
    return BlobCache(tmp_path / "cache")


class Listener(NoProgress):
    """Keeps the phase's total and adds up what was advanced."""

    def __init__(self) -> None:
        self.total: int | None = None
        self.sum = 0
        self._lock = threading.Lock()

    def phase(self, name: str, total: int | None = None, unit: str = "B") -> None:
        assert name == "pull"
        self.total = total

    def advance(self, name: str, amount: int) -> None:
        assert amount >= 0
        with self._lock:
            self.sum += amount


def pull(reference: str, cache: BlobCache, **options: Any) -> Image:
    """Resolve, fetch, validate; progress adds up to its total."""
    image = resolve(reference, cache=cache, **options)
    listener = Listener()
    image.fetch(listener)
    assert listener.sum == listener.total == sum(layer.size for layer in image.layers)
    validate(image)
    return image


def contents(image: Image) -> list[bytes]:
    found = []
    for layer in image.layers:
        with layer.open() as stream:
            found.append(b"".join(iter(lambda: stream.read(1 << 20), b"")))
    return found


def is_big_blob(handler: ProxyHandler) -> bool:
    """Whether the large layer is asked for: the only blob of its size."""
    return "/blobs/" in handler.path and BIG_DIGEST[0] in handler.path


BIG_DIGEST = [""]


@pytest.fixture(autouse=True)
def big_digest(layout: Path) -> None:
    blobs = (layout / "blobs" / "sha256").iterdir()
    BIG_DIGEST[0] = max(blobs, key=lambda path: path.stat().st_size).name


# -- what is asked for --------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
@pytest.mark.parametrize("flavour", ["oci", "docker"])
def test_formats(
    registry: DockerRegistry, cache: BlobCache, tmp_path: Path, compression: Any, flavour: Any
) -> None:
    """Both kinds of manifests, every compression; the digest is what skopeo says."""
    if flavour == "docker" and compression == "zstd":
        return  # skopeo pushes no such thing
    layout = tmp_path / "layout"
    layers = sample_layers()[1:]
    write_layout(layout, layers, tag="x", compression=compression)
    name = f"formats/{flavour}:{compression}"
    kind = ["--format", "v2s2"] if flavour == "docker" else []
    reference = registry.push(f"oci:{layout}:x", name, *kind)
    image = pull(reference, cache)
    assert contents(image) == layers
    said = run("skopeo", "inspect", "--tls-verify=false", f"docker://{reference}")
    assert image.digest == json.loads(said)["Digest"]
    assert image.reference == reference
    by_digest = f"{reference.rpartition(':')[0]}@{image.digest}"
    assert pull(by_digest, cache).digest == image.digest
    assert pull(f"{reference}@{image.digest}", cache).digest == image.digest


@pytest.mark.parametrize("flavour", ["oci", "docker"])
def test_several_platforms(
    registry: DockerRegistry, cache: BlobCache, tmp_path: Path, flavour: Any
) -> None:
    """An index or manifest list; a platform that it does not have."""
    layers = sample_layers()
    layout = tmp_path / "layout"
    images = {"linux/amd64": layers[1:], "linux/arm64/v8": layers, "linux/arm/v7": []}
    write_index(layout, images, tag="x")
    options = ["--all", "--format", {"oci": "oci", "docker": "v2s2"}[flavour]]
    reference = registry.push(f"oci:{layout}:x", f"platforms/{flavour}:1", *options)
    assert contents(pull(reference, cache, platform="linux/amd64")) == layers[1:]
    assert contents(pull(reference, cache, platform="linux/arm64")) == layers
    with pytest.raises(ImageNotFound, match="linux/amd64, linux/arm/v7, linux/arm64"):
        pull(reference, cache, platform="linux/s390x")


def test_what_is_not_there(registry: DockerRegistry, cache: BlobCache) -> None:
    """A tag, a repository, a digest, a platform of a single image."""
    zeros = f"sha256:{'0' * 64}"
    for name in ("team/app:2", "team/other:1", f"team/app@{zeros}"):
        with pytest.raises(ImageNotFound) as caught:
            resolve(f"{registry.host}/{name}", cache=cache)
        assert f"{registry.host}/{name}" in str(caught.value)
        assert caught.value.remedy
    with pytest.raises(ImageNotFound, match="s390x"):
        resolve(f"{registry.host}/team/app:1", cache=cache, platform="linux/s390x")


def test_what_is_cached_is_not_asked_for(proxy: Proxy, cache: BlobCache) -> None:
    """A second pull asks for the manifest alone; layers open without a fetch."""
    reference = f"{proxy.host}/team/app:1"
    image = resolve(reference, cache=cache)
    first = contents(image)
    count = len(proxy.blob_requests())
    assert contents(pull(reference, cache)) == first
    assert len(proxy.blob_requests()) == count == 3


# -- trouble on the way --------------------------------------------------------------------------


def test_cut_downloads_go_on(proxy: Proxy, cache: BlobCache) -> None:
    """Bodies that end early are asked for from where they ended."""
    cuts = iter([300_000, 0, 1_000_000, 1])

    def behave(handler: ProxyHandler) -> None:
        handler.forward(limit=next(cuts, None) if is_big_blob(handler) else None)

    proxy.behave = behave
    pull(f"{proxy.host}/team/app:1", cache)
    ranges = [headers["Range"] for headers in proxy.blob_requests() if headers["Range"]]
    assert ranges == ["bytes=300000-", "bytes=300000-", "bytes=1300000-", "bytes=1300001-"]


def test_a_server_without_ranges(proxy: Proxy, cache: BlobCache) -> None:
    """It sends everything again, which is taken from the start; progress counts once."""
    cuts = iter([300_000, 2_000_000])

    def behave(handler: ProxyHandler) -> None:
        limit = next(cuts, None) if is_big_blob(handler) else None
        handler.forward(limit=limit, without=("range",))

    proxy.behave = behave
    pull(f"{proxy.host}/team/app:1", cache)


def test_a_killed_download_goes_on(proxy: Proxy, cache: BlobCache, tmp_path: Path) -> None:
    """``kill -9`` in the middle: the next process asks for the rest."""
    stall, came = threading.Event(), threading.Event()

    def behave(handler: ProxyHandler) -> None:
        if is_big_blob(handler) and not stall.is_set():
            came.set()
            handler.forward(limit=2_000_000, pause=stall)
        else:
            handler.forward()

    proxy.behave = behave
    code = (
        "import sys; from pathlib import Path; from bootstream.images import *;"
        "from bootstream.progress import NO_PROGRESS;"
        "resolve(sys.argv[1], cache=BlobCache(Path(sys.argv[2]))).fetch(NO_PROGRESS)"
    )
    reference = f"{proxy.host}/team/app:1"
    with subprocess.Popen([sys.executable, "-c", code, reference, str(cache.folder)]) as process:
        try:
            assert came.wait(15)
            partial = cache.scratch() / f"sha256-{BIG_DIGEST[0]}"
            deadline = time.monotonic() + 15
            while not (partial.exists() and partial.stat().st_size > 1_900_000):
                assert time.monotonic() < deadline
                time.sleep(0.01)
        finally:
            os.kill(process.pid, signal.SIGKILL)
    stall.set()
    pull(reference, cache)
    asked = [headers["Range"] for headers in proxy.blob_requests() if headers["Range"]]
    assert [1_900_000 < int(text[6:-1]) <= 2_000_000 for text in asked] == [True]


def test_a_damaged_partial_download_starts_over(proxy: Proxy, cache: BlobCache) -> None:
    """What an earlier process left may be wrong: it is noticed, and everything comes again."""
    (cache.scratch() / f"sha256-{BIG_DIGEST[0]}").write_bytes(b"wrong" * 1000)
    image = resolve(f"{proxy.host}/team/app:1", cache=cache)
    image.fetch(NO_PROGRESS)
    validate(image)
    asked = [headers["Range"] for path, headers in proxy.requests if BIG_DIGEST[0] in path]
    assert asked == ["bytes=5000-", None]


def test_refusals_that_pass(proxy: Proxy, cache: BlobCache) -> None:
    """429 with a time to wait, 503, 502, a connection that ends: all is asked for again."""
    troubles = iter(["429", "reset", "503", "502"])

    def behave(handler: ProxyHandler) -> None:
        match next(troubles, None):
            case "429":
                handler.answer(429, Retry_After="1")
            case "reset":
                handler.reset()
            case None:
                handler.forward()
            case status:
                handler.answer(int(status))

    proxy.behave = behave
    pull(f"{proxy.host}/team/app:1", cache, plain_http=True)


def test_a_long_refusal_is_passed_on(proxy: Proxy, cache: BlobCache) -> None:
    """Nobody waits for an hour; the caller hears how long it would be."""
    proxy.behave = lambda handler: handler.answer(
        429, b'{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}', Retry_After="3600"
    )
    with pytest.raises(Throttled, match="slow down") as caught:
        resolve(f"{proxy.host}/team/app:1", cache=cache, plain_http=True)
    assert caught.value.retry_after == 3600
    assert len(proxy.requests) == 1


def flip(data: bytes) -> bytes:
    return data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]


def test_wrong_bytes(proxy: Proxy, cache: BlobCache) -> None:
    """A layer, a manifest by digest, a manifest by tag, a configuration: never used."""
    reference = f"{proxy.host}/team/app:1"
    digest = resolve(reference, cache=BlobCache(cache.folder / "other")).digest

    def damage(part: str) -> None:
        proxy.behave = lambda handler: handler.forward(
            change=flip if part in handler.path else None
        )

    damage(BIG_DIGEST[0])
    image = resolve(reference, cache=cache)
    with pytest.raises(Corrupt) as caught:
        image.fetch(NO_PROGRESS)
    assert BIG_DIGEST[0] in str(caught.value)
    assert not list(cache.folder.glob(f"v1/sha256/*/{BIG_DIGEST[0]}"))
    damage("/manifests/")
    for name in (reference, f"{proxy.host}/team/app@{digest}"):
        with pytest.raises(Corrupt):
            resolve(name, cache=cache)
    damage("/blobs/")
    with pytest.raises(Corrupt):
        resolve(reference, cache=BlobCache(cache.folder / "third"))


def test_too_many_and_too_few_bytes(proxy: Proxy, cache: BlobCache) -> None:
    """A blob of another size than promised ends at once; a huge manifest is not read."""
    reference = f"{proxy.host}/team/app:1"

    def behave(handler: ProxyHandler, body: bytes) -> None:
        if is_big_blob(handler):
            handler.answer(200, body)
        else:
            handler.forward()

    for body in (b"x" * (5 << 20), b"x" * 10):
        proxy.behave = lambda handler, body=body: behave(handler, body)  # type: ignore[misc]  # default
        image = resolve(reference, cache=cache)
        with pytest.raises(Corrupt, match="bytes"):
            image.fetch(NO_PROGRESS)
    proxy.behave = lambda handler: handler.answer(200, b" " * (5 << 20))
    with pytest.raises(Corrupt, match="larger"):
        resolve(reference, cache=cache)


def test_answers_that_are_no_manifests(proxy: Proxy, cache: BlobCache) -> None:
    """A login page, schema 1, nothing."""
    for body, error in (
        (b"<html>please log in</html>", Corrupt),
        (b'{"schemaVersion": 1}', InvalidInput),
        (b"", Corrupt),
    ):
        proxy.behave = lambda handler, body=body: handler.answer(200, body)  # type: ignore[misc]  # default
        with pytest.raises(error):
            resolve(f"{proxy.host}/team/app:1", cache=cache, plain_http=True)


def test_a_missing_layer(proxy: Proxy, cache: BlobCache) -> None:
    """The registry lacks a blob that its manifest names."""

    def behave(handler: ProxyHandler) -> None:
        if is_big_blob(handler):
            handler.answer(404)
        else:
            handler.forward()

    proxy.behave = behave
    image = resolve(f"{proxy.host}/team/app:1", cache=cache)
    with pytest.raises(ImageNotFound, match="part of the image"):
        image.fetch(NO_PROGRESS)


def test_a_rejected_token_is_renewed(
    layout: Path, tmp_path: Path, start_proxy: Callable[[str], Proxy], cache: BlobCache
) -> None:
    """A 401 in the middle of things: another token, and on it goes; for ever is too often."""
    behaviour = TokenAuth("me", "pass", anonymous_pull=True)
    with DockerRegistry(tmp_path / "r", token=behaviour) as registry:
        registry.push(f"oci:{layout}:x", "a:1")
        assert registry.tokens is not None
        registry.tokens.requests.clear()
        proxy = start_proxy(registry.host)
        challenge = (
            f'Bearer realm="{registry.tokens.url}",service="bootstream-test",'
            'scope="repository:a:pull",error="invalid_token"'
        )
        refusals = [1]

        def behave(handler: ProxyHandler) -> None:
            if is_big_blob(handler) and refusals[0]:
                refusals[0] -= 1
                handler.answer(401, WWW_Authenticate=challenge)
            else:
                handler.forward()

        proxy.behave = behave
        pull(f"{proxy.host}/a:1", cache)
        assert len(registry.tokens.requests) == 2
        refusals[0] = 1000
        image = resolve(f"{proxy.host}/a:1", cache=BlobCache(tmp_path / "other"))
        with pytest.raises(PermissionDenied):
            image.fetch(NO_PROGRESS)


# -- redirects ---------------------------------------------------------------------------------


@pytest.mark.parametrize("elsewhere", [True, False], ids=["another host", "the same host"])
def test_redirects(
    layout: Path,
    tmp_path: Path,
    start_proxy: Callable[[str], Proxy],
    cache: BlobCache,
    auth_file: Any,
    elsewhere: bool,
) -> None:
    """Blobs lie elsewhere: the password does not travel along, unless it is the same host."""
    with DockerRegistry(tmp_path / "r", htpasswd=("me", "pass")) as registry:
        registry.push(f"oci:{layout}:x", "a:1")
        proxy = start_proxy(registry.host)
        store = start_proxy("") if elsewhere else proxy

        def serve(handler: ProxyHandler) -> None:
            digest = handler.path.rpartition("/")[2]
            handler.answer(200, (layout / "blobs" / "sha256" / digest).read_bytes())

        def behave(handler: ProxyHandler) -> None:
            if handler.path.startswith("/store/"):
                serve(handler)
            elif "/blobs/" in handler.path and handler.headers["Authorization"]:
                digest = handler.path.rpartition(":")[2]
                target = f"http://{store.host}" if elsewhere else ""
                handler.answer(307, Location=f"{target}/store/{digest}")
            else:
                handler.forward()

        store.behave = serve
        proxy.behave = behave
        pull(f"{proxy.host}/a:1", cache, auth_file=auth_file(proxy.host, "me", "pass"))
        sent = [
            headers["Authorization"]
            for path, headers in store.requests
            if path.startswith("/store/")
        ]
        assert len(sent) == 3
        assert all(sent) is not elsewhere
        assert any(sent) is not elsewhere


def test_a_challenge_from_another_host_is_not_answered(
    proxy: Proxy, start_proxy: Callable[[str], Proxy], cache: BlobCache, auth_file: Any
) -> None:
    """Where a redirect leads, nobody gets to ask for the password."""
    store = start_proxy("")
    store.behave = lambda handler: handler.answer(401, WWW_Authenticate='Basic realm="give"')

    def behave(handler: ProxyHandler) -> None:
        if "/blobs/" in handler.path:
            handler.answer(302, Location=f"http://{store.host}/x")
        else:
            handler.forward()

    proxy.behave = behave
    with pytest.raises(PermissionDenied):
        resolve(
            f"{proxy.host}/team/app:1",
            cache=cache,
            auth_file=auth_file(proxy.host, "me", "pass"),
        )
    assert [headers["Authorization"] for _, headers in store.requests] == [None]
    assert not any(headers["Authorization"] for _, headers in proxy.requests)


@pytest.mark.parametrize("target", ["/v2/", "file:///etc/passwd", "http://[", "gopher://x/"])
def test_redirects_that_lead_nowhere(proxy: Proxy, cache: BlobCache, target: str) -> None:
    """A loop, another scheme, no URL."""

    def behave(handler: ProxyHandler) -> None:
        handler.answer(302, Location=target)

    proxy.behave = behave
    with pytest.raises(Unavailable, match="redirects"):
        resolve(f"{proxy.host}/team/app:1", cache=cache, plain_http=True)


# -- being called off; nobody there --------------------------------------------------------------


def test_cancelled_while_the_server_keeps_silent(proxy: Proxy, cache: BlobCache) -> None:
    """Cancelling ends a fetch that waits in the network, soon; what came is kept."""
    release, came = threading.Event(), threading.Event()

    def behave(handler: ProxyHandler) -> None:
        if is_big_blob(handler):
            came.set()
            handler.forward(limit=BIG, pause=release)
        else:
            handler.forward()

    proxy.behave = behave
    image = resolve(f"{proxy.host}/team/app:1", cache=cache)

    class Refusing(NoProgress):
        def advance(self, name: str, amount: int) -> None:
            if came.is_set():
                raise Cancelled("enough")

    started = time.monotonic()
    try:
        with pytest.raises(Cancelled):
            image.fetch(Refusing())
        assert time.monotonic() - started < 10
    finally:
        release.set()


@pytest.mark.parametrize("options", [{}, {"plain_http": True}])
def test_nobody_there(cache: BlobCache, options: dict[str, bool]) -> None:
    """After retries, in seconds, with the registry's address."""
    started = time.monotonic()
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1\b") as caught:
        resolve("127.0.0.1:1/a/b:c", cache=cache, **options)  # type: ignore[arg-type]  # a flag
    assert caught.value.transient
    assert time.monotonic() - started < 12


def test_a_host_without_an_address(cache: BlobCache) -> None:
    """A name that does not resolve is named."""
    with pytest.raises(Unavailable, match=r"nowhere\.invalid"):
        resolve("nowhere.invalid/a:b", cache=cache)


def test_a_server_that_speaks_something_else(cache: BlobCache) -> None:
    """Neither TLS nor HTTP."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def talk() -> None:
            try:
                while True:
                    connection, _ = server.accept()
                    with connection, contextlib.suppress(ConnectionError):
                        connection.sendall(b"220 mail.example ESMTP\r\n" * 100)
                        connection.shutdown(socket.SHUT_WR)
                        while connection.recv(1 << 16):
                            pass
            except OSError:
                return

        thread = threading.Thread(target=talk)
        thread.start()
        try:
            with pytest.raises(Unavailable):
                resolve(f"127.0.0.1:{server.getsockname()[1]}/a:b", cache=cache)
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.sampled_from(
        [
            b"",
            b"HTTP/1.1 200 OK\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n",
            b"HTTP/1.1 401 No\r\nWWW-Authenticate: ",
            b"HTTP/1.1 302 Found\r\nLocation: ",
            b"HTTP/1.1 429 Slow\r\nRetry-After: ",
        ]
    ),
    st.binary(max_size=60),
)
def test_any_answer(cache: BlobCache, start: bytes, rest: bytes) -> None:
    """Whatever a server sends, what comes of it is an error of ours."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def talk() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection, contextlib.suppress(ConnectionError):
                        connection.recv(1 << 16)
                        connection.sendall(start + rest + b"\r\n\r\n")

        thread = threading.Thread(target=talk)
        thread.start()
        reference = RegistryReference(f"127.0.0.1:{server.getsockname()[1]}", "a", "b")
        client = RegistryClient(
            reference, plain_http=True, ca_file=None, credentials=open_keychain(None)
        )
        try:
            with pytest.raises(BootstreamError):
                choose_from(RemoteSource(client, reference, cache, retry=Retry(attempts=1)))
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


def choose_from(source: RemoteSource) -> object:
    data, media_type = source.root()
    root = root_of(data, media_type)
    return choose(source, [root], reference="x", platform=None, raw_root=data)


# -- the cache -------------------------------------------------------------------------------------


def test_two_at_once_download_once(proxy: Proxy, cache: BlobCache) -> None:
    """Two processes' worth of caches over one folder: each blob is asked for once."""
    reference = f"{proxy.host}/team/app:1"
    errors: list[BaseException] = []

    def work() -> None:
        try:
            pull(reference, BlobCache(cache.folder))
        except BaseException as error:  # noqa: BLE001 - the test's thread looks at it
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    paths = [path for path, _ in proxy.requests if "/blobs/" in path]
    assert len(paths) == len(set(paths)) == 3


def blob(cache: BlobCache, digest: str) -> Path:
    return cache.folder / "v1" / "sha256" / digest[:2] / digest


def test_private_modes(proxy: Proxy, cache: BlobCache) -> None:
    """Nobody else may look into it."""
    old = os.umask(0)
    try:
        pull(f"{proxy.host}/team/app:1", cache)
    finally:
        os.umask(old)
    for path in [cache.folder, *cache.folder.rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


def test_damaged_blobs_of_the_cache(proxy: Proxy, cache: BlobCache) -> None:
    """A wrong size is noticed at once, a wrong byte when the layer is read; both heal."""
    reference = f"{proxy.host}/team/app:1"
    image = pull(reference, cache)
    path = blob(cache, BIG_DIGEST[0])
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    pull(reference, cache)
    path.write_bytes(flip(whole))
    image.fetch(NO_PROGRESS)
    with pytest.raises(Corrupt) as caught:
        contents(image)
    assert "try again" in str(caught.value.remedy)
    assert not path.exists()
    pull(reference, cache)
    assert path.read_bytes() == whole
    config = hashlib.sha256(image.raw_config).hexdigest()
    blob(cache, config).write_bytes(flip(image.raw_config))
    assert resolve(reference, cache=cache).raw_config == image.raw_config


def test_other_versions_are_left_alone(proxy: Proxy, cache: BlobCache) -> None:
    """A folder of another version of this program takes no part."""
    other = cache.folder / "v0" / "blobs"
    other.mkdir(parents=True)
    (other / "x").write_text("kept")
    pull(f"{proxy.host}/team/app:1", cache)
    cache.prune(0, recent=0)
    assert (other / "x").read_text() == "kept"


def test_prune(proxy: Proxy, cache: BlobCache) -> None:
    """The least recently used go first, recent ones and downloads in hand never."""
    image = pull(f"{proxy.host}/team/app:1", cache)
    old = time.time() - 10 * 86400
    small = image.layers[1].digest.partition(":")[2]
    os.utime(blob(cache, BIG_DIGEST[0]), (old, old))
    os.utime(blob(cache, small), (old + 5, old + 5))
    abandoned = cache.scratch() / f"sha256-{'1' * 64}"
    abandoned.write_bytes(b"x" * 10)
    os.utime(abandoned, (old, old))
    fresh = cache.scratch() / f"sha256-{'2' * 64}"
    fresh.write_bytes(b"x")
    assert cache.prune(1 << 40) == 10
    assert fresh.exists()
    assert not abandoned.exists()
    assert cache.prune(image.layers[1].size + 10_000) == image.layers[0].size
    assert blob(cache, small).exists()
    cache.prune(0)
    assert not blob(cache, small).exists()
    assert list((cache.folder / "v1").glob("sha256/*/*")), "the configuration was just used"
    pull(f"{proxy.host}/team/app:1", cache)


def test_limit(proxy: Proxy, tmp_path: Path) -> None:
    """A cache with a limit is pruned after a fetch, never of what was just fetched."""
    cache = BlobCache(tmp_path / "cache", limit=1000)
    stale = blob(cache, "3" * 64)
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"x" * 5000)
    os.utime(stale, (1, 1))
    pull(f"{proxy.host}/team/app:1", cache)
    assert not stale.exists()


def test_full_disk(proxy: Proxy, cache: BlobCache) -> None:
    """No room for a blob: said so, exit at once; it goes on when there is room."""
    code = (
        "import resource, sys; from pathlib import Path; from bootstream.images import *;"
        "from bootstream.errors import StorageFull;"
        "from bootstream.progress import NO_PROGRESS;"
        "image = resolve(sys.argv[1], cache=BlobCache(Path(sys.argv[2])));"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "try: image.fetch(NO_PROGRESS)\n"
        "except StorageFull as error: print(error.remedy)"
    )
    reference = f"{proxy.host}/team/app:1"
    assert "free some room" in run(sys.executable, "-c", code, reference, str(cache.folder))
    pull(reference, cache)


def test_folder_that_cannot_be_made(proxy: Proxy, tmp_path: Path) -> None:
    """An error of ours."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(Unavailable):
        pull(f"{proxy.host}/team/app:1", BlobCache(tmp_path / "file" / "cache"))
