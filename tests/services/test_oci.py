"""Both services on the local OCI, signed in as an instance, with its registry as the source."""

from __future__ import annotations

import os
import random
import signal
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from bootstream import wiring
from bootstream.client import OrchestratorClient, TemplateManagerClient
from bootstream.config import Settings
from bootstream.errors import BootstreamError
from bootstream.nbd.client import connect
from bootstream.progress import NO_PROGRESS
from bootstream.testing.images import LayerBuilder, write_layout
from bootstream.testing.localoci import LocalOciServer
from bootstream.testing.services import ServiceProcess

MARKER = b"marker".ljust(4096, b"!")
AT = 700 << 20  # within the image's free space


class Fleet(NamedTuple):
    """A cloud, both services, and the image of a build in the registry."""

    settings: Settings
    manager: ServiceProcess
    orchestrator: ServiceProcess
    image: str


@pytest.fixture
def fleet(folder: Path) -> Iterator[Fleet]:
    """An instance principal, and nothing else."""
    with ExitStack() as stack:
        oci = stack.enter_context(LocalOciServer(folder / "oci", registry=True))
        runtime = stack.enter_context(tempfile.TemporaryDirectory(prefix="bs-"))
        environment = {
            **oci.variables,
            "OCI_CLI_AUTH": "instance_principal",
            "STORAGE_PROVIDER": "OCIBucket",
            "TEMPLATE_BUCKET_PREFIX": "fleet/",
            "ARTIFACTS_REGISTRY_PROVIDER": "OCI_OCIR",
            "OCIR_ENDPOINT": f"http://{oci.registry_host}",
            "BOOTSTREAM_RUNTIME_DIR": runtime,
            "HOME": str(folder),
        }
        del environment["OCI_CONFIG_FILE"]
        manager = ServiceProcess("template-manager", folder / "m", environment=environment)
        orchestrator = ServiceProcess("orchestrator", folder / "o", environment=environment)
        settings = Settings.from_environment(manager.cli.variables)
        image = str(uuid.uuid4())
        data = random.Random(5).randbytes(8 << 20)
        layer = LayerBuilder().file("etc/marker", b"hello\n").file("data", data)
        write_layout(folder / "image", [layer.finish()], tag="a")
        registry = wiring.get_artifacts_registry_provider(settings)
        registry.push_image(f"oci:{folder / 'image'}:a", "app", image, NO_PROGRESS)
        stack.enter_context(manager)
        stack.enter_context(orchestrator)
        yield Fleet(settings, manager, orchestrator, image)


def left(settings: Settings) -> list[str]:
    """What is in the bucket."""
    storage = wiring.get_template_storage_provider(settings)
    return sorted(info.path for info in storage.list_objects())


def story(fleet: Fleet) -> None:
    """Build, sandbox, marker, pause, sandbox of that, and away with all of it.

    Every step may be repeated, so that a service may die during any.
    """
    ids = [str(uuid.uuid4()) for _ in range(2)]

    def built() -> None:
        with TemplateManagerClient(fleet.manager.url) as client:
            client.start_build(
                "app",
                build_id=ids[0],
                registry={"template_id": "app", "build_id": fleet.image},
                parent="none",
            )
            ended = client.wait("app", ids[0])
            assert ended.state == "published", ended

    def made() -> None:
        with OrchestratorClient(fleet.orchestrator.url) as client:
            sandbox = client.create("app", build_id=ids[0], sandbox_id="one")
            with connect(sandbox.uri) as device:
                device.write(memoryview(MARKER), AT)
                device.flush()

    def paused() -> None:
        with OrchestratorClient(fleet.orchestrator.url) as client:
            if client.get("one").document["paused_build_id"] is None:
                client.pause("one", template_id="paused")
            ids[1] = client.get("one").document["paused_build_id"]

    def looked() -> None:
        with OrchestratorClient(fleet.orchestrator.url) as client:
            sandbox = client.create("paused", build_id=ids[1], sandbox_id="two", writable=False)
            buffer = bytearray(len(MARKER))
            with connect(sandbox.uri) as device:
                device.read_into(memoryview(buffer), AT)
            assert buffer == MARKER

    def deleted() -> None:
        with OrchestratorClient(fleet.orchestrator.url) as client:
            for sandbox in list(client.sandboxes()):
                client.delete(sandbox.sandbox_id)
        with TemplateManagerClient(fleet.manager.url) as client:
            for template in list(client.templates()):
                for build in client.template(template).builds:
                    client.delete(template, build["build_id"])

    for step in (built, made, paused, looked, deleted):
        deadline = time.monotonic() + 20
        while True:
            try:
                step()
            except (BootstreamError, OSError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)  # it is being started
            else:
                break


def test_story(fleet: Fleet) -> None:
    """From an image in the registry to a build of what a sandbox wrote; nothing stays."""
    story(fleet)
    assert fleet.manager.cli.json("ls") == []
    fleet.orchestrator.stop()
    fleet.manager.cli.ok("gc", "--older-than", "0s")
    assert left(fleet.settings) == []


@pytest.mark.parametrize("seed", [0])
@pytest.mark.timeout(90)
def test_killed_at_any_time(fleet: Fleet, seed: int) -> None:
    """Both are killed again and again during the story: it comes to its end all the same."""
    chance = random.Random(seed)
    done = threading.Event()

    def kill() -> None:
        for _ in range(4):
            for service in (fleet.manager, fleet.orchestrator):
                if done.wait(chance.uniform(0.02, 0.8)):
                    return
                service.kill()
                if service is fleet.manager and chance.random() < 0.5:
                    for file in service.state.glob("builds/*/process.json"):
                        if not (file.parent / "result.json").exists():
                            with suppress(OSError, ValueError):
                                _kill_worker(file)
                service.start()

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        story(fleet)
    finally:
        done.set()
        thread.join()
    fleet.orchestrator.stop()
    fleet.manager.cli.ok("gc", "--older-than", "0s")
    fleet.manager.cli.ok("gc", "--older-than", "0s")
    assert left(fleet.settings) == []


def _kill_worker(file: Path) -> None:
    """End a worker, if the process of that number is still one."""
    pid = int(file.read_text().partition('"pid":')[2].split(",")[0])
    if b"bootstream.services.worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
        os.kill(pid, signal.SIGKILL)
