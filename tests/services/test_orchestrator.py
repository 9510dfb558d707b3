"""The orchestrator over HTTP: sandboxes that are real exports, and survive it."""

from __future__ import annotations

import random
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.services.fuzz import fuzz

from bootstream.client import OrchestratorClient, Sandbox
from bootstream.errors import (
    AlreadyExists,
    BuildNotFound,
    Conflict,
    NotFound,
    TemplateNotFound,
    Throttled,
)
from bootstream.nbd.client import connect
from bootstream.testing.cli import CommandLine
from bootstream.testing.services import ServiceProcess

SIZE = 4 << 20
CONTENT = random.Random(3).randbytes(SIZE)
MARKER = b"written by a guest".ljust(4096, b".")
AT = 1 << 20


@pytest.fixture
def service(folder: Path) -> Iterator[ServiceProcess]:
    """An orchestrator on a store with the template ``disk``."""
    (folder / "disk.raw").write_bytes(CONTENT)
    with tempfile.TemporaryDirectory(prefix="bs-") as runtime:  # sockets want short paths
        environment = {"BOOTSTREAM_RUNTIME_DIR": runtime, "BOOTSTREAM_SANDBOXES": "60"}
        process = ServiceProcess("orchestrator", folder, environment=environment)
        process.cli.ok("import", folder / "disk.raw", "-t", "disk")
        with process:
            yield process


def write(sandbox: Sandbox, data: bytes = MARKER, offset: int = AT) -> None:
    """Write as a guest does, and flush."""
    with connect(sandbox.uri) as device:
        device.write(memoryview(data), offset)
        device.flush()


def read(sandbox: Sandbox, offset: int = AT, size: int = len(MARKER)) -> bytes:
    """Read as a guest does."""
    buffer = bytearray(size)
    with connect(sandbox.uri) as device:
        device.read_into(memoryview(buffer), offset)
    return bytes(buffer)


def exported(cli: CommandLine, build_id: str, folder: Path) -> bytes:
    """A build's root file system, as the command line gives it."""
    cli.ok("export", build_id, folder / build_id)
    return (folder / build_id).read_bytes()


def until_serving(client: OrchestratorClient, sandbox_id: str) -> Sandbox:
    """The sandbox once it is served."""
    deadline = time.monotonic() + 15
    while (sandbox := client.get(sandbox_id)).state != "serving":
        assert time.monotonic() < deadline, sandbox
    return sandbox


def test_story(service: ServiceProcess, folder: Path) -> None:
    """Make, use, commit, pause, resume, delete."""
    with OrchestratorClient(service.url) as client:
        sandbox = client.create("disk")
        assert sandbox.state == "serving"
        whole = subprocess.run(
            ["nbdcopy", sandbox.uri, "-"], check=True, capture_output=True, timeout=20
        )
        assert whole.stdout == CONTENT
        write(sandbox)
        live = client.commit(sandbox.sandbox_id, tags=["live"])
        assert live.tag_error is None
        expected = CONTENT[:AT] + MARKER + CONTENT[AT + len(MARKER) :]
        assert exported(service.cli, live.build_id, folder) == expected

        write(sandbox, b"x" * 4096, 0)
        paused = client.pause(sandbox.sandbox_id, template_id="paused")
        assert paused.template_id == "paused"
        assert paused.parent == live.build_id
        assert exported(service.cli, paused.build_id, folder) == b"x" * 4096 + expected[4096:]
        state = client.get(sandbox.sandbox_id)
        assert state.state == "paused"
        assert state.document["paused_build_id"] == paused.build_id
        assert not Path(sandbox.socket).exists()
        with pytest.raises(Conflict):
            client.pause(sandbox.sandbox_id)

        assert client.resume(sandbox.sandbox_id).state == "serving"
        assert read(sandbox) == MARKER
        child = client.create("paused", build_id=paused.build_id, sandbox_id="child")
        assert read(child, 0) == b"x" * 4096
        assert [each.sandbox_id for each in client.sandboxes()] == ["child", sandbox.sandbox_id]
        figures = client.get("child").document["figures"]
        assert figures["touched_bytes"] > 0
        for sandbox_id in ("child", sandbox.sandbox_id):
            client.delete(sandbox_id)
            with pytest.raises(NotFound):
                client.get(sandbox_id)
    assert list((service.state / "sandboxes").iterdir()) == []
    assert not Path(sandbox.socket).exists()


def test_refusals(service: ServiceProcess) -> None:
    """What cannot be made is not, and leaves nothing."""
    with OrchestratorClient(service.url) as client:
        with pytest.raises(TemplateNotFound):
            client.create("nobody")
        with pytest.raises(BuildNotFound):
            client.create("disk", build_id="00000000-0000-4000-8000-000000000000")
        one = client.create("disk", sandbox_id="one", writable=False)
        assert client.create("disk", sandbox_id="one", writable=False) == one
        with pytest.raises(AlreadyExists):
            client.create("disk", sandbox_id="one")
        client.drain()
        with pytest.raises(Conflict):
            client.create("disk")
        assert client.host()["draining"] is True
        assert read(one) == CONTENT[AT : AT + 4096]
        client.drain(on=False)
        for number in range(59):
            client.create("disk", sandbox_id=f"n{number}")
        with pytest.raises(Throttled):
            client.create("disk")
        assert client.host()["sandboxes"] == 60
        assert client.host()["bases"] == 1
    assert len(list((service.state / "sandboxes").iterdir())) == 60


def test_killed(service: ServiceProcess) -> None:
    """After a crash every sandbox is there again: same socket, same bytes; nothing is left over."""
    with OrchestratorClient(service.url) as client:
        kept = client.create("disk", sandbox_id="kept")
        client.create("disk", sandbox_id="paused")
        write(kept)
        built = client.pause("paused")
        service.kill()
    stray = Path(kept.socket).with_name("stray.sock")
    stray.write_bytes(b"")
    service.start()
    with OrchestratorClient(service.url) as client:
        again = until_serving(client, "kept")
        assert again.socket == kept.socket
        assert read(again) == MARKER
        assert client.get("paused").document["paused_build_id"] == built.build_id
        assert not stray.exists()
        leases = list((service.cli.store / "leases").rglob("*.*"))
        assert len([lease for lease in leases if lease.is_file()]) == 1
        service.stop()
        assert not Path(kept.socket).exists()
        service.start()
    with OrchestratorClient(service.url) as client:
        assert read(until_serving(client, "kept")) == MARKER
        client.delete("kept")
        client.delete("paused")


def test_lease_holds(service: ServiceProcess) -> None:
    """What a sandbox reads is not collected, though its build was deleted."""
    with OrchestratorClient(service.url) as client:
        sandbox = client.create("disk", writable=False)
        service.cli.ok("rm", "disk", "--all")
        service.cli.ok("gc", "--older-than", "0s")
        assert read(sandbox, 2 << 20) == CONTENT[2 << 20 : (2 << 20) + 4096]


def test_build_gone_at_the_start(service: ServiceProcess) -> None:
    """A sandbox whose build is not there has failed and says so; a later start tries again."""
    with OrchestratorClient(service.url) as client:
        client.create("disk", sandbox_id="one")
        service.kill()
    manifests = list(service.cli.store.glob("*/manifest.json"))
    for manifest in manifests:
        manifest.rename(manifest.with_suffix(".away"))
    service.start()
    with OrchestratorClient(service.url) as client:
        deadline = time.monotonic() + 15
        while (sandbox := client.get("one")).document["error"] is None:
            assert time.monotonic() < deadline
        assert sandbox.state == "failed"
        assert sandbox.document["error"]["kind"] == "BuildNotFound"
        for manifest in manifests:
            manifest.with_suffix(".away").rename(manifest)
        service.stop()
        service.start()
    with OrchestratorClient(service.url) as client:
        until_serving(client, "one")


def test_no_growth(service: ServiceProcess) -> None:
    """Making and deleting sandboxes leaves neither descriptors nor files nor threads."""
    with OrchestratorClient(service.url) as client:
        client.create("disk", sandbox_id="base")
        process = Path(f"/proc/{service.process_id}")

        def held() -> tuple[int, int]:
            return len(list((process / "fd").iterdir())), len(list((process / "task").iterdir()))

        def turn() -> None:
            made = [client.create("disk") for _ in range(10)]
            for sandbox in made:
                write(sandbox)
                client.delete(sandbox.sandbox_id)

        turn()
        before = held()
        for _ in range(4):
            turn()
        after = held()
    assert after[0] <= before[0] + 3
    assert after[1] <= before[1] + 3
    assert len(list((service.state / "sandboxes").iterdir())) == 1


@pytest.mark.timeout(90)
def test_schemathesis(service: ServiceProcess, folder: Path) -> None:
    """Requests made from the description: no answer that is not described, and no 5xx."""
    fuzz(service, folder, seconds=8)
