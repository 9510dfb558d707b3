"""``bootstream doctor``: what it says of this host, of the local OCI, and of what is missing."""

from __future__ import annotations

import io
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from bootstream.config import Settings
from bootstream.doctor.checks import CHECKS
from bootstream.doctor.devices import check_fuse, check_kvm, check_nbd
from bootstream.doctor.finding import Check, Context, Finding, Host, State
from bootstream.doctor.host import check_memory, check_ports
from bootstream.doctor.run import choose, examine
from bootstream.errors import InvalidInput, Unavailable
from bootstream.testing.cli import CommandLine
from bootstream.testing.localoci import LocalOciServer

HOST_CHECKS = ("nbd", "fuse", "kvm", "e2fsprogs", "disk", "memory", "ports", "programs")
STATEMENTS = (
    "Allow dynamic-group hosts to read buckets in compartment C "
    "where target.bucket.name='{bucket}'",
    *(
        "Allow dynamic-group hosts to manage objects in compartment C where all "
        "{{target.bucket.name='{bucket}', request.permission='" + name + "'}}"
        for name in (
            "OBJECT_INSPECT",
            "OBJECT_READ",
            "OBJECT_CREATE",
            "OBJECT_OVERWRITE",
            "OBJECT_DELETE",
        )
    ),
    "Allow dynamic-group hosts to manage buckets in compartment C where all "
    "{{target.bucket.name='{bucket}', request.permission='PAR_MANAGE'}}",
    *(
        "Allow dynamic-group hosts to manage repos in compartment C where all "
        "{{target.repo.name='{repo}', request.permission='" + name + "'}}"
        for name in ("REPOSITORY_INSPECT", "REPOSITORY_READ", "REPOSITORY_UPDATE")
    ),
)


@pytest.fixture(scope="module")
def oci(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalOciServer]:
    with LocalOciServer(tmp_path_factory.mktemp("oci"), registry=True) as server:
        yield server


@pytest.fixture
def cloud(oci: LocalOciServer, tmp_path: Path) -> Iterator[CommandLine]:
    """An instance in the cloud, with no credentials but its own."""
    names = {name: value for name, value in oci.variables.items() if "RCLONE" not in name}
    yield CommandLine(tmp_path, {**names, "OCI_CLI_AUTH": "instance_principal"})
    oci.set_policies(None)
    oci.set_clock(0)


def findings(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {finding["name"]: finding for finding in document["findings"]}


def bad(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [f for f in document["findings"] if f["state"] in ("failed", "lacking")]


def context(tmp_path: Path, **fields: Any) -> Context:
    variables = {"BOOTSTREAM_CACHE_DIR": str(tmp_path / "cache")}
    return Context(Settings.from_environment(variables), **fields)


def test_everything_of_the_cloud_is_green(cloud: CommandLine, oci: LocalOciServer) -> None:
    """With an instance principal and nothing else; nothing is left in the bucket."""
    document = cloud.json("doctor", "--skip", "kvm")
    assert document["ok"]
    found = findings(document)
    of_the_cloud = {n: f for n, f in found.items() if n.partition(".")[0] not in HOST_CHECKS}
    assert {f["state"] for f in of_the_cloud.values()} == {"ok"}, bad(document)
    assert "instance_principal" in found["principal"]["detail"]
    assert "until" in found["principal"]["detail"]
    assert found["namespace"]["detail"] == oci.namespace
    assert found["region"]["detail"] == oci.region
    assert len([name for name in found if name.startswith("storage.")]) == 9
    assert cloud.ok("storage", "ls") == ""


@pytest.mark.parametrize("missing", range(len(STATEMENTS)), ids=lambda i: STATEMENTS[i][-30:-2])
def test_each_statement_is_named_and_mends(
    missing: int, cloud: CommandLine, oci: LocalOciServer
) -> None:
    """Each statement taken away is named by a remedy, and with that remedy all is green."""
    names = {"bucket": oci.bucket, "repo": oci.repository}
    statements = [text.format(**names) for text in STATEMENTS]
    taken = statements.pop(missing)
    groups = {"hosts": ["instance"]}
    only = ("doctor", "--only", "storage", "--only", "registry")
    oci.set_policies({"groups": groups, "statements": statements})
    before = cloud(*only, "--strict", "--json")
    assert before.code in (3, 5), before
    permission = taken.partition("permission='")[2].partition("'")[0]
    remedies = [str(finding["remedy"]) for finding in bad(before.json)]
    assert any((permission or "to read buckets") in remedy for remedy in remedies), remedies
    for remedy in remedies:
        statement = "Allow " + remedy.partition("Allow ")[2]
        named = statement.replace("<group>", "hosts").replace("<compartment>", "C")
        statements.append(named)
    oci.set_policies({"groups": groups, "statements": statements})
    assert cloud.json(*only, "--strict")["ok"]


def test_nobody_is_signed_in(cloud: CommandLine) -> None:
    """Without a principal one check fails, and what rests on it is skipped, not blamed."""
    variables = {
        name: value
        for name, value in cloud.environment.items()
        if name not in ("OCI_METADATA_BASE_URL", "OCI_CLI_FEDERATION_ENDPOINT")
    }
    alone = CommandLine(cloud.folder, {**variables, "OCI_CLI_AUTH": "resource_principal"})
    for name in list(alone.environment):
        if name.startswith("OCI_RESOURCE_PRINCIPAL"):
            del alone.environment[name]  # type: ignore[attr-defined] # it is our own dict
    result = alone("doctor", "--json", "--skip", "kvm")
    found = findings(result.json)
    assert result.code == 5, result
    assert found["principal"]["state"] == "failed"
    assert found["storage"]["state"] == found["registry"]["state"] == "skipped"


def test_clock_that_is_off(cloud: CommandLine, oci: LocalOciServer) -> None:
    """More than five minutes fail, by an answer that needs no signature; the way is told."""
    oci.set_clock(-600)
    result = cloud("doctor", "--only", "clock", "--json")
    clock = findings(result.json)["clock"]
    assert result.code == 1
    assert clock["state"] == "failed"
    assert "ahead of the storage's" in clock["detail"]
    assert "timedatectl" in clock["remedy"]
    oci.set_clock(60)
    assert findings(cloud.json("doctor", "--only", "clock"))["clock"]["state"] == "lacking"


def test_wrong_names(cloud: CommandLine) -> None:
    """A bucket that is not there, another tenancy's namespace, a region that nobody knows."""
    wrong = CommandLine(
        cloud.folder,
        {**cloud.environment, "TEMPLATE_BUCKET_NAME": "typo", "OCI_NAMESPACE": "other"},
    )
    result = wrong("doctor", "--only", "storage", "--only", "namespace", "--json")
    found = findings(result.json)
    assert found["storage.open"]["state"] == "failed"
    assert found["namespace"]["state"] == "lacking"
    assert "OCI_NAMESPACE=local" in found["namespace"]["remedy"]
    repository = CommandLine(
        cloud.folder, {**cloud.environment, "OCI_CONTAINER_REPOSITORY_NAME": "nothing-here"}
    )
    found = findings(repository.json("doctor", "--only", "registry"))
    assert found["registry.repository"]["state"] == "lacking"
    assert "repository create --display-name nothing-here" in found["registry.repository"]["remedy"]


def test_folders(tmp_path: Path) -> None:
    """Without any cloud the table is for people, without colours in a pipe, and all is well."""
    cli = CommandLine(tmp_path, {"LOCAL_ARTIFACTS_REGISTRY_BASE_PATH": str(tmp_path / "images")})
    shown = cli.ok("doctor", "--skip", "kvm", "--skip", "programs")
    assert "\x1b" not in shown
    assert "storage.create " in shown
    assert "nobody signs in" in shown
    assert shown.splitlines()[-1].split()[1].startswith("ok")


def test_names_of_checks() -> None:
    """``--only`` brings what it rests on; a name that is none is told with those there are."""
    assert [check.name for check in choose(CHECKS, ["storage"], [])] == ["principal", "storage"]
    assert "kvm" not in {check.name for check in choose(CHECKS, [], ["kvm"])}
    with pytest.raises(InvalidInput) as caught:
        choose(CHECKS, ["storrage"], [])
    assert "storage" in str(caught.value.remedy)


def test_a_check_that_hangs_does_not_hold_the_others(tmp_path: Path) -> None:
    """Its time is up, what it had found stays, what rests on it is skipped, defects are told."""
    release = threading.Event()

    def hang(_: Context) -> Iterator[Finding]:
        yield Finding("slow.first", State.OK, "so far")
        release.wait(20)

    def fine(_: Context) -> Iterator[Finding]:
        yield Finding("fine", State.OK, "well")

    def broken(_: Context) -> Iterator[Finding]:
        yield Finding("broken.first", State.OK, "so far")
        raise KeyError("x")

    checks = [
        Check("slow", "", hang, limit=0.2),
        Check("rests", "", fine, after=("slow",)),
        Check("fine", "", fine),
        Check("broken", "", broken),
    ]
    try:
        found = {finding.name: finding for finding in examine(checks, context(tmp_path))}
    finally:
        release.set()
    assert found["slow.first"].state is State.OK
    assert isinstance(found["slow"].error, Unavailable)
    assert found["rests"].state is State.SKIPPED
    assert found["fine"].state is State.OK
    assert "KeyError" in found["broken"].detail


def fake_host(tmp_path: Path, *, nbd: int | None = None, used: int = 0) -> Host:
    host = Host(tmp_path / "sys", tmp_path / "proc", tmp_path / "dev")
    for folder in (host.sys / "block", host.proc / "sys" / "kernel", host.dev):
        folder.mkdir(parents=True)
    (host.proc / "sys" / "kernel" / "osrelease").write_text("0.0-none\n")
    (host.proc / "meminfo").write_text("MemTotal: 1000000 kB\nMemAvailable: 100000 kB\n")
    if nbd is not None:
        (host.sys / "module" / "nbd").mkdir(parents=True)
        for index in range(nbd):
            folder = host.sys / "block" / f"nbd{index}"
            folder.mkdir()
            (folder / "size").write_text("0\n")
            if index < used:
                (folder / "pid").write_text("1\n")
    return host


def test_devices(tmp_path: Path) -> None:
    """The NBD driver missing, there, and with all devices in use; no FUSE; no KVM."""
    there = context(tmp_path, host=fake_host(tmp_path / "a", nbd=4, used=1))
    found = {finding.name: finding for finding in check_nbd(there)}
    assert found["nbd.devices"].state is State.OK
    assert found["nbd.devices"].detail.startswith("3 of 4")
    full = context(tmp_path, host=fake_host(tmp_path / "b", nbd=2, used=2))
    assert {f.name: f.state for f in check_nbd(full)}["nbd.devices"] is State.LACKING
    bare = context(tmp_path, host=fake_host(tmp_path / "c"))
    (only,) = check_nbd(bare)
    assert (only.name, only.state) == ("nbd.module", State.LACKING)
    for look in (check_fuse, check_kvm):
        (only,) = look(bare)
        assert only.state is State.LACKING
        assert "modprobe" in str(only.remedy)
    memory = {finding.name: finding for finding in check_memory(bare)}
    assert memory["memory"].state is State.LACKING


class _Health(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b'{"status": "ok"}' if self.path == "/health" else b"{}"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        return


def test_ports(tmp_path: Path) -> None:
    """Free, taken by our service, and taken by a stranger, who says nothing of health."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (finding,) = check_ports(context(tmp_path, ports={"orchestrator": port}))
    assert finding.state is State.OK
    server = HTTPServer(("127.0.0.1", 0), _Health)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        (finding,) = check_ports(context(tmp_path, ports={"orchestrator": server.server_port}))
        assert finding.detail.startswith("orchestrator answers")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        answering = threading.Thread(target=_say_nonsense, args=(stranger,))
        answering.start()
        (finding,) = check_ports(context(tmp_path, ports={"orchestrator": port}))
        answering.join()
    assert finding.state is State.LACKING
    assert f"sport = :{port}" in str(finding.remedy)


def _say_nonsense(listening: socket.socket) -> None:
    connection, _ = listening.accept()
    with connection:
        connection.recv(io.DEFAULT_BUFFER_SIZE)
        connection.sendall(b"SSH-2.0-stranger\r\n")
