"""A machine whose root comes out of an object store: cold, replayed, its writes as a build."""

from __future__ import annotations

import json
import select
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bootstream.testing.cli import CommandLine
from bootstream.testing.debian import debian_layout
from bootstream.testing.localoci import LocalOciServer

PROGRAM = 'perl -e \'print "up: ", 6 * 7, "\\n"\''
LATENCY = 0.01
MIB = 1 << 20
WRITTEN = 200


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalOciServer]:
    """A local OCI."""
    with LocalOciServer(tmp_path_factory.mktemp("oci")) as server:
        yield server


@pytest.fixture(scope="module")
def cli(
    cloud: LocalOciServer, images: Path, tmp_path_factory: pytest.TempPathFactory
) -> CommandLine:
    """A command line with a Debian template in the cloud's bucket."""
    folder = tmp_path_factory.mktemp("host")
    runtime = {"BOOTSTREAM_RUNTIME_DIR": str(folder / "run"), "STORAGE_PROVIDER": "OCIBucket"}
    cli = CommandLine(folder, {**cloud.variables, **runtime})
    cli.ok("build", f"oci:{debian_layout(images)}:bookworm", "-t", "debian", "--free", "512M")
    return cli


@contextmanager
def served(cli: CommandLine, ref: str, *options: str) -> Iterator[Path]:
    """Serve with nothing in the node cache; yield the socket. Statistics are in ``stats.json``."""
    shutil.rmtree(cli.folder / "cache" / "node", ignore_errors=True)
    socket = cli.folder / "root.sock"
    stats = cli.folder / "stats.json"
    process = cli.start("serve", ref, "--socket", socket, "--stats", stats, *options)
    assert process.stdout is not None
    try:
        assert select.select([process.stdout], [], [], 20)[0]
        assert process.stdout.readline().startswith("nbd+unix://")
        yield socket
    finally:
        process.send_signal(signal.SIGTERM)
        output = process.communicate(timeout=20)
        assert process.returncode == 0, output


def counters(cli: CommandLine) -> dict[str, Any]:
    """What the root file system of the last server cost."""
    document = json.loads((cli.folder / "stats.json").read_text())
    found: dict[str, Any] = document["devices"][0]["counters"]
    return found


def boot(cli: CommandLine, kernel: Path, root: str, command: str) -> str:
    """Boot to the end of a command that succeeds; return what it printed."""
    return cli.ok("boot", root, "--kernel", kernel, "--time-limit", "27s", "--cmd", command)


@pytest.mark.timeout(60)  # two boots, as in test_boot
def test_cold_and_replayed(cli: CommandLine, cloud: LocalOciServer, kernel: Path) -> None:
    """The first boot leaves a trace; replayed, the same boot waits for next to nothing."""
    cloud.faults.add("latency", seconds=LATENCY, operation="GetObject")
    try:
        found = []
        for trace in ("record", "auto"):
            with served(cli, "debian", "--trace", trace) as socket:
                root = f"nbd+unix:///?socket={socket}"
                assert boot(cli, kernel, root, PROGRAM) == "up: 42"
            found.append(counters(cli))
    finally:
        cloud.faults.clear()
    cold, replayed = found
    assert cold["requests"] > 20
    assert cold["waits"] > 20
    assert replayed["requests"] < cold["requests"] / 4
    assert replayed["waits"] < cold["waits"] / 2
    assert replayed["prefetches"] < cold["requests"]
    parts = cli.json("inspect", "debian")["parts"]
    data = sum(part["size"] for part in parts if part["kind"] != "zero")
    assert cold["fetched_bytes"] < data / 4
    assert replayed["fetched_bytes"] < 1.5 * cold["fetched_bytes"]


@pytest.mark.timeout(60)  # two boots, as in test_boot
def test_what_a_machine_wrote_becomes_a_build(cli: CommandLine, kernel: Path) -> None:
    """200 MB are written, committed while they are served, and read from a cold cache."""
    write = f"dd if=/dev/urandom of=/big bs=1M count={WRITTEN} 2>/dev/null; sha256sum /big; sync"
    with served(cli, "debian", "--trace", "off") as socket:
        said = boot(cli, kernel, f"nbd+unix:///?socket={socket}", write)
        made = cli.json("commit", socket, "--tag", "written")
    assert WRITTEN * MIB < made["changed_bytes"] < (WRITTEN + 24) * MIB
    assert WRITTEN * MIB < made["stored_size"] < (WRITTEN + 24) * MIB
    digest = said.split()[0]
    assert len(digest) == 64
    with served(cli, "debian:written", "--trace", "off") as socket:
        read = boot(cli, kernel, f"nbd+unix:///?socket={socket}", "sha256sum /big")
    assert read.split()[0] == digest
    assert counters(cli)["fetched_bytes"] > WRITTEN * MIB
