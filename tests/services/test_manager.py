"""The template-manager over HTTP, as clients meet it: real processes, a real registry."""

from __future__ import annotations

import json
import os
import signal
import threading
import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from bootstream.client import TemplateManagerClient
from bootstream.errors import (
    AlreadyExists,
    BuildNotFound,
    Conflict,
    InvalidInput,
    PreconditionFailed,
    StorageFull,
    TemplateNotFound,
)
from bootstream.services import builds as builds_module
from bootstream.services.builds import Builds
from bootstream.services.files import wait_for_lock, write_json
from bootstream.services.models import BuildRequest
from bootstream.storage.local import LocalStorageProvider
from bootstream.testing.registry import DockerRegistry
from bootstream.testing.services import ServiceProcess


def variables(registry: DockerRegistry, **more: str) -> dict[str, str]:
    """What a manager is told that may ask the test's registry."""
    return {"BOOTSTREAM_ALLOWED_HOSTS": registry.host, **more}


def image(registry: DockerRegistry, name: str = "app:1") -> str:
    """A reference to an image of the test's registry."""
    return f"{registry.host}/test/{name}"


@pytest.fixture
def service(folder: Path, registry: DockerRegistry) -> Iterator[ServiceProcess]:
    """A manager on a store of its own."""
    with ServiceProcess("template-manager", folder, environment=variables(registry)) as process:
        yield process


@pytest.fixture
def slow(folder: Path, registry: DockerRegistry) -> Iterator[ServiceProcess]:
    """A manager whose uploads take some seconds, and which makes one build at a time."""
    environment = variables(registry, BOOTSTREAM_UPLOAD_RATE="8M", BOOTSTREAM_BUILDS="1")
    with ServiceProcess("template-manager", folder, environment=environment) as process:
        yield process


def objects(service: ServiceProcess) -> list[str]:
    """What is in the store."""
    storage = LocalStorageProvider(service.cli.store)
    return sorted(info.path for info in storage.list_objects())


def until_uploading(client: TemplateManagerClient, template: str, build_id: str) -> None:
    """Return when the build stores chunks."""
    for event in client.events(template, build_id):
        if event.type == "phase" and event.fields["name"] == "rootfs.ext4":
            return
    raise AssertionError("it was too fast")


def worker_of(service: ServiceProcess, build_id: str) -> int:
    """The process that makes a build."""
    path = service.state / "builds" / build_id / "process.json"
    pid: int = json.loads(path.read_text())["pid"]
    return pid


def test_story(service: ServiceProcess, registry: DockerRegistry) -> None:
    """Build, follow, look, tag, verify, delete."""
    with TemplateManagerClient(service.url) as client:
        build = client.start_build("app", image=image(registry), plain_http=True, tags=["a", "b"])
        events = list(client.events("app", build.build_id))
        phases = [event.fields["name"] for event in events if event.type == "phase"]
        assert phases[0] == "pull"
        assert phases[-1] == "rootfs.ext4"
        again = list(client.events("app", build.build_id, after=events[3].id))
        assert again == events[4:]
        done = client.get_build("app", build.build_id)
        assert done.state == "published"
        assert done.document["attempts"] == 1
        assert service.cli.ok("cat", "app:a", "/etc/marker") == "hello"

        second = client.start_build("app", image=image(registry), plain_http=True, tags=["b"])
        assert client.wait("app", second.build_id).document["parent"] == build.build_id
        assert client.tags("app") == {"a": build.build_id, "b": second.build_id}
        with pytest.raises(PreconditionFailed):
            client.set_tag("app", "a", second.build_id, if_current=second.build_id)
        client.set_tag("app", "a", second.build_id, if_current=build.build_id)
        with pytest.raises(PreconditionFailed):
            client.drop_tag("app", "a", if_current=build.build_id)
        client.drop_tag("app", "a", if_current=second.build_id)
        with pytest.raises(TemplateNotFound):
            client.drop_tag("app", "a")

        assert list(client.templates()) == ["app"]
        ids = [each["build_id"] for each in client.template("app").builds]
        assert ids == [build.build_id, second.build_id]
        assert [each.build_id for each in client.builds("app")] == ids[::-1]
        assert client.verify("app", second.build_id) == []
        for build_id in ids:
            client.delete("app", build_id)
        client.delete("app", build.build_id)
        assert client.get_build("app", build.build_id).state == "deleted"
        assert list(client.templates()) == []
        service.cli.ok("gc", "--older-than", "0s")
        assert objects(service) == []


def test_idempotent(service: ServiceProcess, registry: DockerRegistry) -> None:
    """One build id is one build: the same request again is it, another one is refused."""
    build_id = str(uuid.uuid4())
    with TemplateManagerClient(service.url) as client:
        for _ in range(3):
            build = client.start_build(
                "app", image=image(registry), plain_http=True, build_id=build_id
            )
            assert build.build_id == build_id
        with pytest.raises(AlreadyExists):
            client.start_build("app", image=image(registry), build_id=build_id)
        with pytest.raises(AlreadyExists):
            client.start_build("other", image=image(registry), plain_http=True, build_id=build_id)
        assert client.wait("app", build_id).state == "published"
        service.stop()
        service.start()
    with TemplateManagerClient(service.url) as client:
        build = client.start_build("app", image=image(registry), plain_http=True, build_id=build_id)
        assert build.state == "published"
        with pytest.raises(BuildNotFound):
            client.get_build("other", build_id)


def test_builds_of_others_are_seen(service: ServiceProcess, registry: DockerRegistry) -> None:
    """What the command line built can be looked at, and its id is not taken twice."""
    made = service.cli.json("build", image(registry), "-t", "app", "--plain-http")
    with TemplateManagerClient(service.url) as client:
        found = client.get_build("app", made["build_id"])
        assert (found.state, found.document["size"]) == ("published", made["size"])
        again = client.start_build(
            "app", image=image(registry), plain_http=True, build_id=made["build_id"]
        )
        ended = client.wait("app", again.build_id)
        assert ended.state == "failed"
        assert ended.error is not None
        assert "taken" in ended.error
        assert client.verify("app", made["build_id"]) == []


def test_manager_killed(slow: ServiceProcess, registry: DockerRegistry) -> None:
    """A build goes on while its manager is dead, and the next one knows it."""
    with TemplateManagerClient(slow.url) as client:
        build = client.start_build("app", image=image(registry, "big:1"), plain_http=True)
        waiting = client.start_build("app", image=image(registry), plain_http=True, tags=["x"])
        until_uploading(client, "app", build.build_id)
        slow.kill()
    slow.start()
    with TemplateManagerClient(slow.url) as client:
        assert client.get_build("app", build.build_id).state == "running"
        ended = client.wait("app", build.build_id)
        assert (ended.state, ended.document["attempts"]) == ("published", 1)
        assert client.wait("app", waiting.build_id).state == "published"


def test_both_killed(slow: ServiceProcess, registry: DockerRegistry) -> None:
    """Manager and worker are killed in the middle: the next manager has it made all the same."""
    with TemplateManagerClient(slow.url) as client:
        build = client.start_build("app", image=image(registry, "big:1"), plain_http=True)
        until_uploading(client, "app", build.build_id)
        slow.kill()
    os.kill(worker_of(slow, build.build_id), signal.SIGKILL)
    wait_for_lock(slow.state / "builds" / build.build_id / "lock")
    assert f"{build.build_id}/heartbeat" in objects(slow)
    slow.start()
    with TemplateManagerClient(slow.url) as client:
        ended = client.wait("app", build.build_id)
        assert (ended.state, ended.document["attempts"]) == ("published", 2)
        assert client.verify("app", build.build_id) == []
    assert not [path for path in objects(slow) if "heartbeat" in path]


def test_worker_that_always_dies(slow: ServiceProcess, registry: DockerRegistry) -> None:
    """A worker that dies again and again is a build that failed, and left nothing."""
    with TemplateManagerClient(slow.url) as client:
        build = client.start_build("app", image=image(registry, "big:1"), plain_http=True)
        killed: set[int] = set()
        for event in client.events("app", build.build_id):
            if event.type == "phase" and event.fields["name"] == "rootfs.ext4":
                pid = worker_of(slow, build.build_id)
                killed.add(pid)
                os.kill(pid, signal.SIGKILL)
        ended = client.get_build("app", build.build_id)
        assert ended.state == "failed"
        assert ended.error is not None
        assert "died 3 times" in ended.error
        assert len(killed) == 3
    assert objects(slow) == []


def test_cancel(slow: ServiceProcess, registry: DockerRegistry) -> None:
    """A build that runs, and one that waits, are cancelled; nothing of them stays."""
    with TemplateManagerClient(slow.url) as client:
        build = client.start_build("app", image=image(registry, "big:1"), plain_http=True)
        waiting = client.start_build("app", image=image(registry), plain_http=True)
        until_uploading(client, "app", build.build_id)
        assert client.cancel("app", waiting.build_id).state == "cancelled"
        assert client.cancel("app", build.build_id).state == "cancelling"
        assert client.wait("app", build.build_id).state == "cancelled"
        with pytest.raises(Conflict):
            client.cancel("app", build.build_id)
        assert [each.build_id for each in client.builds(state="cancelled")] == [
            waiting.build_id,
            build.build_id,
        ]
    assert objects(slow) == []


@pytest.mark.parametrize(
    "reference",
    [
        "oci:/etc",
        "docker-archive:/etc/passwd",
        "127.0.0.1:5000/x",
        "localhost/x",
        "169.254.169.254/x",
        "10.1.2.3:443/x",
        "[::1]:5000/x",
        "[::ffff:10.0.0.1]/x",
        "metadata.google.internal/x",
        "2130706433.0x7f/x",
        "192.168.0.1/x@sha256:" + "0" * 64,
    ],
)
def test_private_places_are_refused(service: ServiceProcess, reference: str) -> None:
    """Paths and private hosts are not even accepted."""
    with TemplateManagerClient(service.url) as client:
        with pytest.raises(InvalidInput):
            client.start_build("app", image=reference)
        assert list(client.builds()) == []


def test_failures_are_told(service: ServiceProcess, registry: DockerRegistry) -> None:
    """An image that is missing, and a parent that is, are a build's honest end."""
    with TemplateManagerClient(service.url) as client:
        for name, parent in (("none:1", "auto"), ("app:1", "nobody")):
            build = client.start_build(
                "app", image=image(registry, name), plain_http=True, parent=parent
            )
            ended = client.wait("app", build.build_id)
            assert ended.state == "failed"
            assert ended.document["error"]["kind"] in ("ImageNotFound", "TemplateNotFound")
            client.delete("app", build.build_id)
    assert objects(service) == []


def test_one_manager_a_folder(service: ServiceProcess, registry: DockerRegistry) -> None:
    """A second manager on the same state is refused, and disturbs nothing."""
    second = service.cli("template-manager", "--port", "0", "--state", service.state)
    assert second.code == 4
    assert "another template-manager" in second.stderr
    with TemplateManagerClient(service.url) as client:
        build = client.start_build("app", image=image(registry), plain_http=True)
        assert client.wait("app", build.build_id).state == "published"


def test_command_line_refuses_the_open(folder: Path) -> None:
    """Beyond this host there is no service without tokens, and no tokens without TLS."""
    service = ServiceProcess("template-manager", folder)
    result = service.cli("template-manager", "--host", "0.0.0.0", "--port", "0")
    assert result.code == 2
    assert "tokens" in result.stderr
    tokens = folder / "tokens.json"
    assert service.cli.ok("token", "ci", "--file", tokens, "--scope", "*").startswith("bst_")
    result = service.cli("template-manager", "--host", "0.0.0.0", "--port", "0", "--tokens", tokens)
    assert result.code == 2
    assert "BOOTSTREAM_TLS_CERT_FILE" in result.stderr


def test_full_disk_does_not_end_the_queue(
    folder: Path, registry: DockerRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build whose state cannot be written fails, and the next one is made."""
    (folder / "state").mkdir()
    ended: dict[str, threading.Event] = defaultdict(threading.Event)
    service = ServiceProcess("template-manager", folder, environment=variables(registry))
    full = True

    def write(path: Path, document: Mapping[str, Any], *, create_only: bool = False) -> None:
        if full and path.name in ("attempts", "result.json"):
            raise StorageFull("no space is left", operation="write", object=str(path))
        write_json(path, document, create_only=create_only)

    monkeypatch.setattr(builds_module, "write_json", write)
    queue = Builds(
        folder / "state",
        at_once=1,
        queue=9,
        on_end=lambda job: ended[job.build_id].set(),
        environ=service.cli.variables,
    )
    try:
        request = BuildRequest.model_validate(
            {"image": image(registry), "plain_http": True}
        ).model_dump(mode="json")
        ids = [str(uuid.uuid4()) for _ in range(2)]
        first, _ = queue.accept("app", ids[0], request, known=True)
        assert ended[ids[0]].wait(10)
        assert (first.state, (first.result or {})["error"]["kind"]) == ("failed", "StorageFull")
        full = False
        second, _ = queue.accept("app", ids[1], request, known=True)
        assert ended[ids[1]].wait(15)
        assert second.state == "published"
    finally:
        queue.close()


def test_command_line(service: ServiceProcess, registry: DockerRegistry) -> None:
    """``build``, ``ls`` and ``rm`` do by ``--server`` what they do by themselves."""
    there = ("--server", service.url)
    command = ("build", image(registry), "-t", "app:one", "--plain-http")
    first = service.cli.ok(*command, *there)
    assert service.cli.ok("cat", "app:one", "/etc/marker") == "hello"
    second = service.cli.json("build", image(registry), "-t", "app", "--plain-http", *there)
    assert second["parent"] == first
    for template in ((), ("app",), ("none",)):
        ours, theirs = (service.cli.json("ls", *template, *more) for more in ((), there))
        for each in (*ours, *theirs):
            each["created"] = each["created"].replace("+00:00", "Z")[:19]
        assert ours == theirs
    assert first in service.cli.ok("ls", *there)
    assert service.cli("rm", "app", *there).code == 4
    assert service.cli.ok("rm", "app:one", *there) == first
    assert service.cli.ok("rm", second["build_id"], *there) == second["build_id"]
    assert service.cli.json("ls") == []
    assert service.cli(*command[:1], "oci:/x", "-t", "app", *there).code == 2
    assert (
        service.cli("build", image(registry, "none:1"), "-t", "x", "--plain-http", *there).code == 3
    )
    assert service.cli("ls", "--server", "http://127.0.0.1:1").code == 6


def test_command_line_interrupted(slow: ServiceProcess, registry: DockerRegistry) -> None:
    """Ctrl-C cancels the build where it is made."""
    process = slow.cli.start(
        *("build", image(registry, "big:1"), "-t", "app", "--plain-http", "--server", slow.url)
    )
    with process, TemplateManagerClient(slow.url) as client:
        while not (builds := list(client.builds())):
            pass
        until_uploading(client, "app", builds[0].build_id)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
        assert process.returncode == 130
        assert client.wait("app", builds[0].build_id).state == "cancelled"
    assert objects(slow) == []
