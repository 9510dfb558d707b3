"""``image``, and ``build`` from the registry: as users meet them, against real registries."""

from __future__ import annotations

import json
import os
import pty
import random
import signal
import subprocess
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from bootstream.testing.cli import COMMAND, CommandLine
from bootstream.testing.images import LayerBuilder, write_index, write_layout
from bootstream.testing.registry import DockerRegistry, run
from bootstream.testing.servers.scripted import Reply, scripted

MIB = 1 << 20


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    with DockerRegistry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture
def cli(tmp_path: Path) -> CommandLine:
    """With a registry of templates' images in a folder, and two images in a layout."""
    for name in ("one", "two"):
        layer = LayerBuilder()
        layer.file("etc/name", name.encode())
        write_layout(tmp_path / "images", [layer], tag=name)
    return CommandLine(
        tmp_path,
        {
            "LOCAL_ARTIFACTS_REGISTRY_BASE_PATH": str(tmp_path / "registry"),
            "DOCKER_HOST": "tcp://none.invalid",
        },
    )


def new_build() -> str:
    return str(uuid.uuid4())


def image(cli: CommandLine, name: str = "one") -> str:
    return f"oci:{cli.folder / 'images'}:{name}"


def digest_in(folder: Path, tag: str) -> str:
    """What a layout's index says that a tag is."""
    entries = json.loads((folder / "index.json").read_text())["manifests"]
    (found,) = (
        entry["digest"]
        for entry in entries
        if entry.get("annotations", {}).get("org.opencontainers.image.ref.name") == tag
    )
    return str(found)


def blob_of(folder: Path, digest: str) -> bytes:
    """A blob of a layout."""
    return (folder / "blobs" / digest.replace(":", "/")).read_bytes()


def files_below(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if not path.is_dir()}


def test_push_list_show_pull_remove(cli: CommandLine, tmp_path: Path) -> None:
    """One image through all verbs: the digest is the same everywhere, and at the end nothing is."""
    digest = digest_in(tmp_path / "images", "one")
    build = cli.ok("image", "push", image(cli), "-t", "py")
    assert str(uuid.UUID(build)) == build
    (listed,) = cli.json("image", "ls")
    assert (listed["template_id"], listed["build_id"]) == ("py", build)
    assert listed["digest"] == digest
    assert build in cli.ok("image", "ls", "py")
    assert cli.json("image", "ls", "js") == []
    shown = cli.json("image", "show", f"py/{build}")
    assert shown["digest"] == shown["image"]["digest"] == digest
    assert cli.ok("image", "pull", f"py/{build}", "-o", f"oci:{tmp_path}/out") == digest
    assert digest_in(tmp_path / "out", build) == digest
    run("skopeo", "inspect", f"oci:{tmp_path}/out:{build}")
    assert cli.ok("image", "rm", f"py/{build}") == f"py/{build}"
    assert cli.json("image", "ls") == []
    again = cli("image", "rm", f"py/{build}")
    assert again.code == 3
    assert "no such image" in again.stderr


def test_push_to_a_named_build(cli: CommandLine, tmp_path: Path) -> None:
    """TEMPLATE BUILD, TEMPLATE/BUILD and --build-id say the same; JSON has all of it."""
    build = new_build()
    assert cli.ok("image", "push", image(cli), "py", build) == build
    assert cli.ok("image", "push", image(cli), f"py/{build}") == build
    pushed = cli.json("image", "push", image(cli, "two"), "-t", "py", "--build-id", build)
    assert pushed == {
        "template_id": "py",
        "build_id": build,
        "reference": f"oci:{tmp_path}/registry/py:{build}",
        "digest": digest_in(tmp_path / "images", "two"),
    }


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["push", "oci:images:one"], 2, "-t TEMPLATE"),
        (["push", "oci:images:one", "py", "-t", "py"], 2, "one of TEMPLATE and -t"),
        (["push", "oci:images:one", "py", "x"], 2, "not a build id"),
        (["push", "oci:images:one", "py"], 2, "TEMPLATE/BUILD"),
        (["push", "oci:images:one", "-t", "P y"], 2, "cannot name a template"),
        (["push", "oci:images:none", "-t", "py"], 3, "its tags: one, two"),
        (["push", "oci:images:one", "-t", "py", "--platform", "linux/s390x"], 3, "linux/s390x"),
        (["pull", "oci:images:one", "-o", "registry.example/x"], 2, "write oci:DIR"),
        (["pull", "oci:images:one", "-o", "oci:out@sha256:" + "0" * 64], 2, "digest"),
        (["pull", "py/9ae4d5e6-51e1-4fe3-9ba5-a9bff2da2a83", "-o", "oci:out"], 3, "no such image"),
        (["cp", "oci:images:one"], 2, "DESTINATION"),
        (["cp", "oci:images:one", "oci-archive:x.tar"], 2, "archives are read only"),
        (["cp", "oci:images:one", "oci:out", "--from", "AWS_ECR"], 2, "--from is for a build"),
        (["cp", "oci:images:one", "oci:out", "--to", "AWS_ECR"], 2, "--to is for a build"),
        (["cp", "--all", "--to", "Nobody"], 2, "none of Local, OCI_OCIR"),
        (["cp", "--all"], 2, "both are one registry"),
        (["cp", "--all", "--from", "AWS_ECR"], 2, "AWS_DOCKER_REPOSITORY_NAME"),
        (["show", "oci:images"], 2, "more than one image"),
        (["show", "127.0.0.1:1/x:y"], 6, "127.0.0.1:1"),
        (["rm", "oci:images:one"], 2, "TEMPLATE/BUILD"),
        (["ls", "No"], 2, "cannot name a template"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input(cli: CommandLine, arguments: list[str], code: int, words: str) -> None:
    """Each gets its exit code, one line that says what, a remedy, and changes nothing."""
    before = files_below(cli.folder)
    result = subprocess.run(
        [*COMMAND, "image", *arguments],
        cwd=cli.folder,
        env=cli.variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=28,
    )
    assert result.returncode == code, result.stderr
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert files_below(cli.folder) == before


def test_two_architectures(cli: CommandLine, tmp_path: Path, registry: DockerRegistry) -> None:
    """An index is copied whole, one platform of it alone, and shown with what it offers."""
    layers = {}
    for architecture in ("amd64", "arm64"):
        layer = LayerBuilder()
        layer.file("etc/architecture", architecture.encode())
        layers[f"linux/{architecture}"] = [layer]
    index = write_index(tmp_path / "multi", layers, tag="all", compression="zstd")
    source = f"oci:{tmp_path}/multi:all"
    target = f"{registry.host}/multi:all"
    assert cli.ok("image", "cp", source, target) == index
    shown = cli.json("image", "show", target, "--platform", "arm64")
    assert [entry["platform"] for entry in shown["platforms"]] == ["linux/amd64", "linux/arm64"]
    assert shown["image"]["platform"] == "linux/arm64"
    assert shown["image"]["digest"] == shown["platforms"][1]["digest"]
    assert "linux/amd64, linux/arm64" in cli.ok("image", "show", target)
    one = cli.ok("image", "cp", target, f"{registry.host}/arm:1", "--platform", "linux/arm64")
    assert one == shown["image"]["digest"]
    # Of one architecture only, which is not this host's: shown all the same.
    assert cli.json("image", "show", f"{registry.host}/arm:1")["image"]["platform"] == "linux/arm64"
    build = cli.ok("image", "push", target, "-t", "py", "--platform", "linux/arm64")
    assert cli.json("image", "show", f"py/{build}")["digest"] == one
    missing = cli("build", "--template", "py", "--build", build)
    assert missing.code == 3
    assert "linux/arm64" in missing.stderr


def test_build_from_the_registry(cli: CommandLine) -> None:
    """--template and --build take that image and no other; a missing one is not replaced."""
    first = cli.ok("image", "push", image(cli, "one"), "-t", "py")
    second = cli.ok("image", "push", image(cli, "two"), "-t", "py")
    cli.ok("build", "--template", "py", "--build", second, "-t", "mine:2")
    assert cli.ok("cat", "mine:2:/etc/name") == "two"
    cli.ok("build", "--template", "py", "--build", first)
    assert cli.ok("cat", "py:/etc/name") == "one"
    for template, build in (("py", new_build()), ("js", first)):
        missing = cli("build", "--template", template, "--build", build)
        assert missing.code == 3
        assert f"{template}:{build}" in missing.stderr
        assert "push it" in missing.stderr
    assert len(cli.json("ls")) == 2
    for arguments in (
        ["--template", "py"],
        ["--build", first, "-t", "x"],
        [image(cli), "--template", "py", "--build", first],
        ["-t", "x"],
        [image(cli)],
    ):
        assert cli("build", *arguments).code == 2, arguments


def test_one_of_two_builds_goes(cli: CommandLine, tmp_path: Path) -> None:
    """Two builds of one image: removing one leaves the other whole."""
    builds = [cli.ok("image", "push", image(cli), "-t", "py") for _ in range(2)]
    cli.ok("image", "rm", f"py/{builds[0]}")
    pulled = cli.ok("image", "pull", f"py/{builds[1]}", "-o", f"oci:{tmp_path}/out:x")
    assert pulled == digest_in(tmp_path / "images", "one")
    cli.ok("build", f"oci:{tmp_path}/out:x", "-t", "py")


def test_pull_without_output_fills_the_cache(cli: CommandLine, registry: DockerRegistry) -> None:
    """A build afterwards asks for no layer: they are gone from the registry meanwhile."""
    reference = f"{registry.host}/cached:1"
    digest = cli.ok("image", "cp", image(cli), reference)
    assert cli.ok("image", "pull", reference) == digest
    layers = cli.json("image", "show", reference)["image"]["layers"]
    for layer in layers:
        name = layer["digest"].partition(":")[2]
        assert list((cli.folder / "cache" / "blobs").rglob(name))


def test_what_broke_off_goes_on(cli: CommandLine, tmp_path: Path) -> None:
    """A pull that meets a damaged layer gives the layout no name; mended, it goes on."""
    big = LayerBuilder()
    big.file("data", random.Random(1).randbytes(MIB))
    folder = tmp_path / "big"
    write_layout(folder, [big], tag="x", compression="none")
    blob = max((folder / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    data = blob.read_bytes()
    blob.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    broken = cli("image", "pull", f"oci:{folder}:x", "-o", f"oci:{tmp_path}/out")
    assert broken.code == 7
    assert not (tmp_path / "out" / "index.json").exists()
    blob.write_bytes(data)
    cli.ok("image", "pull", f"oci:{folder}:x", "-o", f"oci:{tmp_path}/out")
    assert digest_in(tmp_path / "out", "x") == digest_in(folder, "x")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "sigterm"]
)
def test_interrupted_pull_leaves_nothing(
    cli: CommandLine, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """While layers come from a slow registry: no layout, and the exit code says which it was."""
    layer = LayerBuilder()
    layer.file("data", bytes(100))
    folder, out = tmp_path / "slow", tmp_path / "out"
    digest = write_layout(folder, [layer], tag="x", compression="none")
    manifest = blob_of(folder, digest)
    waiting = json.loads(manifest)["layers"][0]["digest"]
    asked, released = threading.Event(), threading.Event()

    def answer(_method: str, path: str, _headers: dict[str, str], _body: bytes) -> Reply:
        name = path.rpartition("/")[2]
        if name == waiting:
            asked.set()
            released.wait(25)
        if "/manifests/" in path:
            return 200, {"Content-Type": json.loads(manifest)["mediaType"]}, manifest
        return 200, {}, blob_of(folder, name) if name else b"{}"

    with scripted(answer) as url:
        place = f"{url.removeprefix('http://')}/x:1"
        process = cli.start("image", "pull", place, "-o", f"oci:{out}")
        try:
            assert asked.wait(20)
            process.send_signal(number)
            said, complaint = process.communicate(timeout=20)
        finally:
            released.set()
    assert process.returncode == code, complaint
    assert said == ""
    assert complaint == "error: interrupted\n"
    assert not out.exists()


def test_bars_of_layers(cli: CommandLine, registry: DockerRegistry, tmp_path: Path) -> None:
    """On a terminal there is a bar; with -v elsewhere a line for each layer and the phase."""
    result = cli("image", "cp", image(cli), f"{registry.host}/bars:1", "-v")
    assert result.code == 0
    digest = digest_in(tmp_path / "images", "one")
    for layer in cli.json("image", "show", f"{registry.host}/bars:1")["image"]["layers"]:
        assert f"push: {layer['digest'][7:19]}, " in result.stderr
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "image", "cp", image(cli), f"{registry.host}/other:1"],
        env={**cli.variables, "TERM": "xterm"},
        stdout=subprocess.PIPE,
        stderr=child,
    )
    os.close(child)
    drawn = []

    def read() -> None:
        while True:
            try:
                data = os.read(parent, 4096)
            except OSError:
                return
            if not data:
                return
            drawn.append(data)

    reader = threading.Thread(target=read)
    reader.start()
    said, _ = process.communicate(timeout=20)
    reader.join(10)
    os.close(parent)
    assert said.decode().strip() == digest
    assert b"push" in b"".join(drawn)


def test_wrong_blobs_never_have_a_name(cli: CommandLine, registry: DockerRegistry) -> None:
    """A damaged layer on its way to a registry: exit code 7, and the tag does not exist."""
    layer = LayerBuilder()
    layer.file("data", b"x" * 5000)
    folder = cli.folder / "wrong"
    write_layout(folder, [layer], tag="x", compression="none")
    blob = max((folder / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    blob.write_bytes(b"y" * blob.stat().st_size)
    target = f"{registry.host}/wrong:x"
    assert cli("image", "cp", f"oci:{folder}:x", target).code == 7
    assert cli("image", "show", target).code == 3
