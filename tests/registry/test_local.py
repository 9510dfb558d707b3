"""The folder of images: the conformance suite, other tools' files, concurrent deletion, engines."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer
from urllib.parse import unquote

import pytest

from bootstream.errors import (
    Corrupt,
    ImageNotFound,
    InvalidInput,
    Unavailable,
)
from bootstream.images.cache import BlobCache
from bootstream.progress import NO_PROGRESS
from bootstream.registry.engine import Engine, find_socket
from bootstream.registry.local import LocalArtifactsRegistry
from bootstream.registry.protocol import ArtifactsRegistry
from bootstream.testing.artifacts import ArtifactsRegistryConformance, new_build, small_layers
from bootstream.testing.images import docker_archive, write_layout
from bootstream.testing.registry import run


def blobs(registry: LocalArtifactsRegistry) -> set[str]:
    return {path.name for path in registry.folder.glob(".blobs/*/*")}


class TestConformance(ArtifactsRegistryConformance):
    """All of it."""

    @pytest.fixture
    def registry(self, tmp_path: Path) -> ArtifactsRegistry:
        return LocalArtifactsRegistry(tmp_path / "one", cache=BlobCache(tmp_path / "cache"))

    @pytest.fixture
    def neighbour(self, tmp_path: Path) -> ArtifactsRegistry:
        return LocalArtifactsRegistry(tmp_path / "two:3", cache=BlobCache(tmp_path / "cache"))


@pytest.fixture
def local(tmp_path: Path) -> LocalArtifactsRegistry:
    """An empty folder."""
    return LocalArtifactsRegistry(tmp_path / "registry", cache=BlobCache(tmp_path / "cache"))


def test_blobs_are_shared_and_collected(local: LocalArtifactsRegistry, tmp_path: Path) -> None:
    """A blob is there once for all templates, and goes with the last image that has it."""
    write_layout(tmp_path / "images", small_layers(1), tag="x")
    write_layout(tmp_path / "images", [*small_layers(1), *small_layers(2)], tag="y")
    one, other, third = new_build(), new_build(), new_build()
    local.push_image(f"oci:{tmp_path}/images:x", "py", one, NO_PROGRESS)
    first = blobs(local)
    assert len(first) == 4
    local.push_image(f"oci:{tmp_path}/images:x", "js", other, NO_PROGRESS)
    assert blobs(local) == first
    local.push_image(f"oci:{tmp_path}/images:y", "js", third, NO_PROGRESS)
    assert len(blobs(local)) == 8
    local.delete("js", third)
    assert blobs(local) == first
    local.delete("py", one)
    assert blobs(local) == first
    local.delete("js", other)
    assert blobs(local) == set()


def test_replaced_images_are_collected(local: LocalArtifactsRegistry, tmp_path: Path) -> None:
    """What a build had before is not kept."""
    build = new_build()
    for seed in (1, 2):
        write_layout(tmp_path / "images", small_layers(seed), tag=f"{seed}")
        local.push_image(f"oci:{tmp_path}/images:{seed}", "py", build, NO_PROGRESS)
        assert len(blobs(local)) == 4


def test_other_tools_read_and_write_it(local: LocalArtifactsRegistry, tmp_path: Path) -> None:
    """skopeo reads what was pushed; what it copies into the layout is a build's image."""
    pushed, copied = new_build(), new_build()
    digest = write_layout(tmp_path / "images", small_layers(1), tag="x")
    local.push_image(f"oci:{tmp_path}/images:x", "py", pushed, NO_PROGRESS)
    found = run("skopeo", "inspect", "--format", "{{.Digest}}", local.get_tag("py", pushed))
    assert found.strip() == digest
    write_layout(tmp_path / "images", small_layers(2), tag="y")
    run("skopeo", "copy", "-q", f"oci:{tmp_path}/images:y", local.get_tag("py", copied))
    local.get_image("py", copied).fetch(NO_PROGRESS)
    assert {image.build_id for image in local.list_images()} == {pushed, copied}


def test_saved_archives(local: LocalArtifactsRegistry, tmp_path: Path) -> None:
    """What ``docker save`` wrote is the build's image where it is put; deletion removes it."""
    build = new_build()
    (local.folder / "py").mkdir(parents=True)
    docker_archive(local.folder / "py" / f"{build}.tar", small_layers(1), "py:saved")
    image = local.get_image("py", build)
    image.fetch(NO_PROGRESS)
    assert [found.digest for found in local.list_images()] == [image.digest]
    other = LocalArtifactsRegistry(tmp_path / "other", cache=BlobCache(tmp_path / "cache"))
    assert other.copy_image(local, "py", build, NO_PROGRESS) == image.digest
    local.delete("py", build)
    with pytest.raises(ImageNotFound):
        local.get_image("py", build)
    assert list(local.list_images()) == []


def test_foreign_files_are_left_alone(local: LocalArtifactsRegistry, tmp_path: Path) -> None:
    """Names that are no ids are not listed and not touched."""
    build = new_build()
    write_layout(tmp_path / "images", small_layers(1), tag="x")
    local.push_image(f"oci:{tmp_path}/images:x", "py", build, NO_PROGRESS)
    (local.folder / "Notes").mkdir()
    (local.folder / "readme").write_text("no layout")
    run("skopeo", "copy", "-q", f"oci:{tmp_path}/images:x", f"oci:{local.folder}/py:stable")
    assert [image.build_id for image in local.list_images()] == [build]
    local.delete("py", build)
    assert len(blobs(local)) == 4  # the tag "stable" has them
    run("skopeo", "inspect", f"oci:{local.folder}/py:stable")


def test_damaged_index(local: LocalArtifactsRegistry, tmp_path: Path) -> None:
    """Nothing is collected while nobody knows what is used, and the error says which file."""
    builds = [new_build(), new_build()]
    write_layout(tmp_path / "images", small_layers(1), tag="x")
    local.push_image(f"oci:{tmp_path}/images:x", "py", builds[0], NO_PROGRESS)
    local.push_image(f"oci:{tmp_path}/images:x", "js", builds[1], NO_PROGRESS)
    whole = (local.folder / "js" / "index.json").read_bytes()
    (local.folder / "js" / "index.json").write_bytes(whole[:-20])
    with pytest.raises(Corrupt) as raised:
        local.delete("py", builds[0])
    assert "js/index.json" in str(raised.value)
    assert len(blobs(local)) == 4
    (local.folder / "js" / "index.json").write_bytes(whole)
    local.get_image("js", builds[1]).fetch(NO_PROGRESS)
    local.delete("js", builds[1])
    assert blobs(local) == set()


def test_deletes_while_others_push(local: LocalArtifactsRegistry, tmp_path: Path) -> None:
    """However they meet, an image that was pushed is whole, and in the end nothing is left."""
    for seed in range(3):
        write_layout(tmp_path / "images", [*small_layers(0), *small_layers(seed)], tag=f"{seed}")

    def work(number: int) -> list[str]:
        kept = []
        for turn in range(6):
            build = new_build()
            reference = f"oci:{tmp_path}/images:{(number + turn) % 3}"
            local.push_image(reference, f"t{number % 2}", build, NO_PROGRESS)
            local.get_image(f"t{number % 2}", build).fetch(NO_PROGRESS)
            if turn % 2:
                local.delete(f"t{number % 2}", build)
            else:
                kept.append(build)
        return kept

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(work, range(4)))
    for number, kept in enumerate(results):
        for build in kept:
            local.get_image(f"t{number % 2}", build).fetch(NO_PROGRESS)
            local.delete(f"t{number % 2}", build)
    assert blobs(local) == set()


# -- engines --------------------------------------------------------------------------------------


class _Engine(ThreadingMixIn, UnixStreamServer):
    """Answers ``GET /images/{name}/get`` as Docker's engine does, made after its documents."""

    daemon_threads = True

    def __init__(self, path: Path, images: dict[str, bytes]) -> None:
        self.images = images
        self.asked: list[str] = []
        self.cut = False
        super().__init__(str(path), _Handler)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, _Engine)
        name = unquote(self.path).removeprefix("/images/").removesuffix("/get")
        server.asked.append(name)
        data = server.images.get(name)
        if data is None:
            self.send_response(404)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")
            return
        self.send_response(200)
        self.send_header("Content-Type", "application/x-tar")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for start in range(0, len(data), 50_000):
            piece = data[start : start + 50_000]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            if server.cut:
                self.close_connection = True
                return
        self.wfile.write(b"0\r\n\r\n")

    def address_string(self) -> str:
        return "unix"

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[_Engine]:
    """An engine with one image, ``py:BUILD``."""
    docker_archive(tmp_path / "saved.tar", small_layers(1), "py:x")
    server = _Engine(tmp_path / "docker.sock", {})
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_images_of_an_engine(engine: _Engine, tmp_path: Path) -> None:
    """What the folder lacks is asked of the engine, by template and build; what it has is not."""
    cache = BlobCache(tmp_path / "cache")
    socket = find_socket(f"unix://{tmp_path}/docker.sock")
    assert socket is not None
    registry = LocalArtifactsRegistry(
        tmp_path / "registry", cache=cache, engine=Engine(socket, scratch=cache.scratch)
    )
    build = new_build()
    engine.images[f"py:{build}"] = (tmp_path / "saved.tar").read_bytes()
    image = registry.get_image("py", build)
    image.fetch(NO_PROGRESS)
    assert engine.asked == [f"py:{build}"]
    assert list(cache.scratch().iterdir()) == []
    other = LocalArtifactsRegistry(tmp_path / "other", cache=cache)
    assert other.copy_image(registry, "py", build, NO_PROGRESS) == image.digest
    assert registry.push_image(other.get_tag("py", build), "py", build, NO_PROGRESS)
    engine.asked.clear()
    assert registry.get_image("py", build).digest == image.digest
    assert engine.asked == []
    missing = new_build()
    with pytest.raises(ImageNotFound) as raised:
        registry.get_image("py", missing)
    assert registry.get_tag("py", missing) in str(raised.value)


def test_engines_that_fail(engine: _Engine, tmp_path: Path) -> None:
    """An answer that breaks off, no engine, and no permission are errors of their own."""
    cache = BlobCache(tmp_path / "cache")
    engine.images["py:x"] = (tmp_path / "saved.tar").read_bytes()
    engine.cut = True
    with pytest.raises(Unavailable):
        Engine(tmp_path / "docker.sock", scratch=cache.scratch).open("py:x")
    assert list(cache.scratch().iterdir()) == []
    with pytest.raises(Unavailable) as raised:
        Engine(tmp_path / "none.sock", scratch=cache.scratch).open("py:x")
    assert not raised.value.transient
    engine.cut = False
    engine.images["py:y"] = b"no archive"
    with pytest.raises((Corrupt, InvalidInput, ImageNotFound)):
        Engine(tmp_path / "docker.sock", scratch=cache.scratch).open("py:y")


def test_sockets() -> None:
    """Engines over the network are passed over."""
    assert find_socket("tcp://127.0.0.1:2375") is None
    assert find_socket("ssh://host") is None
    assert find_socket("unix:///run/some.sock") == Path("/run/some.sock")
