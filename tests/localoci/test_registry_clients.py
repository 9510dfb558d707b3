"""Clients that others wrote are content with the registry; and what becomes of its process."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.localoci.client import Client
from tests.localoci.registries import Docker, artifacts, skopeo

from bootstream.errors import Unavailable
from bootstream.localoci.cloud import LocalCloud, Plan
from bootstream.testing.images import LayerBuilder, write_index, write_layout
from bootstream.testing.localoci import LocalOciServer

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalOciServer]:
    folder = tmp_path_factory.mktemp("oci")
    with LocalOciServer(folder, registry=True, registry_token_seconds=60) as running:
        yield running


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image of two layers, the first one of some megabytes."""
    folder = tmp_path_factory.mktemp("layout")
    first, second = LayerBuilder(), LayerBuilder()
    first.file("large", random.Random(1).randbytes(5 << 20))
    second.file("small", b"small")
    write_layout(folder, [first.finish(), second.finish()], tag="t")
    return folder


def copy(source: str, target: str, *options: str) -> None:
    plain = ("--src-tls-verify=false", "--dest-tls-verify=false", "--quiet")
    skopeo("copy", "--insecure-policy", *plain, *options, source, target)


def manifest_of(layout: Path, tag: str = "t") -> str:
    """The digest that a layout's tag names."""
    entries = json.loads((layout / "index.json").read_bytes())["manifests"]
    (digest,) = (
        entry["digest"]
        for entry in entries
        if entry.get("annotations", {}).get("org.opencontainers.image.ref.name") == tag
    )
    return str(digest)


def test_skopeo_with_an_auth_token(server: LocalOciServer, layout: Path, tmp_path: Path) -> None:
    """Push, list, pull again: byte for byte the same image."""
    reference = f"docker://{server.registry_host}/{server.namespace}/{server.repository}"
    credentials = f"{server.registry_user}:{server.registry_password}"
    copy(f"oci:{layout}:t", f"{reference}:t1-b1", "--dest-creds", credentials)
    copy(f"oci:{layout}:t", f"{reference}:t1-b2", "--dest-creds", credentials)
    listed = skopeo("list-tags", "--tls-verify=false", "--creds", credentials, reference)
    assert {"t1-b1", "t1-b2"} <= set(json.loads(listed)["Tags"])
    copy(f"{reference}:t1-b2", f"oci:{tmp_path}:t", "--src-creds", credentials)
    assert manifest_of(tmp_path) == manifest_of(layout)
    for blob in (layout / "blobs" / "sha256").iterdir():
        assert (tmp_path / "blobs" / "sha256" / blob.name).read_bytes() == blob.read_bytes()


def test_skopeo_with_a_principals_token(
    server: LocalOciServer, layout: Path, tmp_path: Path
) -> None:
    """An instance's token logs in, and is kept in an auth file as any password."""
    port = int(server.registry_host.rpartition(":")[2])
    with Client(port) as client:
        docker = Docker(server, client)
        token = docker.get_signed(server.principal("instance_principal")).json()["token"]
    auth = tmp_path / "auth.json"
    where = ("--tls-verify=false", "--authfile", str(auth), server.registry_host)
    skopeo("login", "--username", "BEARER_TOKEN", "--password", token, *where)
    reference = f"docker://{server.registry_host}/{server.namespace}/first/push:x"
    copy(f"oci:{layout}:t", reference, "--authfile", str(auth))
    inspected = skopeo("inspect", "--tls-verify=false", "--authfile", str(auth), reference)
    assert json.loads(inspected)["Digest"] == manifest_of(layout)


def test_skopeo_of_several_platforms(server: LocalOciServer, tmp_path: Path) -> None:
    """An index and its manifests; each of them is an image of the Artifacts API."""
    source, target = tmp_path / "source", tmp_path / "target"
    layers = {}
    for architecture in ("linux/amd64", "linux/arm64"):
        layer = LayerBuilder()
        layer.file("arch", architecture.encode())
        layers[architecture] = [layer.finish()]
    write_index(source, layers, tag="t")
    credentials = f"{server.registry_user}:{server.registry_password}"
    reference = f"docker://{server.registry_host}/{server.namespace}/platforms:x"
    copy(f"oci:{source}:t", reference, "--all", "--dest-creds", credentials)
    copy(reference, f"oci:{target}:t", "--all", "--src-creds", credentials)
    assert manifest_of(target) == manifest_of(source)
    client = artifacts(server)
    tenancy = client.base_client.config["tenancy"]
    images = client.list_container_images(tenancy, repository_name="platforms").data.items
    assert sorted(image.version or "" for image in images) == ["", "", "x"]


def test_wrong_password(server: LocalOciServer, layout: Path) -> None:
    """A client is told that it is not let in."""
    reference = f"docker://{server.registry_host}/{server.namespace}/{server.repository}:x"
    with pytest.raises(AssertionError, match=r"(?i)unauthorized|authentication|auth token"):
        copy(f"oci:{layout}:t", reference, "--dest-creds", "local/local:wrong")


def test_commands_of_the_page(server: LocalOciServer, layout: Path) -> None:
    """docs/local-oci.md shows what works, with another image and another file."""
    page = (Path(__file__).parents[2] / "docs" / "local-oci.md").read_text("utf-8")
    (block,) = re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    start, source, commands = block.split("\n", 2)
    assert start.startswith("bootstream local-oci --registry --write-env ")
    script = f"{source}\n{commands}".replace("~/oci.env", str(server.folder / "oci.env"))
    script = script.replace("docker://debian:12", f"--insecure-policy oci:{layout}:t")
    login = {"OCIR_USERNAME": server.registry_user, "OCIR_PASSWORD": server.registry_password}
    tools = Path(sys.executable).parent.parent / "tools" / "bin"
    result = subprocess.run(
        ["sh", "-eu", "-c", script],
        env=os.environ | login | {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=28,
    )
    assert result.returncode == 0, result.stderr
    assert f'"display-name": "{server.repository}:t1"' in result.stdout


def processes_below(process: int) -> list[int]:
    """A process's descendants."""
    found: list[int] = []
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found += [child, *processes_below(child)]
    return found


def running(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def ended(processes: list[int]) -> bool:
    """Whether all of them end within some seconds."""
    deadline = time.monotonic() + 10
    while any(map(running, processes)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def test_registry_ends_with_us(tmp_path: Path) -> None:
    """However we end: a kill leaves no process behind, and neither does a regular end."""
    server = LocalOciServer(tmp_path, registry=True)
    with server:
        processes = processes_below(server.process_id)
        names = [Path(f"/proc/{process}/comm").read_text().strip() for process in processes]
        assert "docker-registry" in names
        server.kill()
        assert ended(processes)
    with server:
        processes = processes_below(server.process_id)
        assert processes
    assert ended(processes)


def test_registry_that_died(tmp_path: Path) -> None:
    """Requests that need it are answered with an error, not with silence; others go on."""
    with LocalOciServer(tmp_path, registry=True) as server:
        (registry,) = (
            process
            for process in processes_below(server.process_id)
            if Path(f"/proc/{process}/comm").read_text().strip() == "docker-registry"
        )
        with Client(int(server.registry_host.rpartition(":")[2])) as client:
            docker = Docker(server, client)
            docker.sign_in()
            os.kill(registry, signal.SIGKILL)
            assert ended([registry])
            answer = docker.ask("POST", f"/v2/{docker.name}/blobs/uploads/")
            assert answer.status == 502
            assert docker.ask("GET", "/v2/").status == 200


def test_registry_that_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error has what it said; nothing is left open."""
    programs = tmp_path / "bin"
    programs.mkdir()
    program = programs / "docker-registry"
    program.write_text("#!/bin/sh\necho no more disk >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    held = len(os.listdir("/proc/self/fd"))
    with pytest.raises(Unavailable, match="no more disk"):
        LocalCloud(Plan(tmp_path / "data", registry=True))
    assert len(os.listdir("/proc/self/fd")) <= held


def test_open_files_do_not_grow(tmp_path: Path) -> None:
    """Start and end, again and again, in one process."""
    with LocalCloud(Plan(tmp_path, registry=True)):
        pass
    held = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        with LocalCloud(Plan(tmp_path, registry=True)) as cloud:
            script = f"curl -s -o /dev/null {cloud.place.url}/v2/"
            subprocess.run(["sh", "-c", script], check=False, timeout=10)
    assert len(os.listdir("/proc/self/fd")) == held
