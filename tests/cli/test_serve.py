"""``serve`` and ``mount``, met by clients that we did not write."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bootstream.cli.demo_image import TAG, write_layout
from bootstream.testing.cli import CommandLine


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    """A store with one build of the demo's image, tagged ``1``."""
    folder = tmp_path_factory.mktemp("serve")
    write_layout(folder / "image", message="version 1")
    cli = CommandLine(folder)
    cli.ok("build", f"oci:{folder / 'image'}:{TAG}", "-t", "demo:1")
    cli.ok("export", "demo:1", folder / "expected")
    return cli


def line_of(process: subprocess.Popen[str]) -> str:
    """The next line on stdout, within a time limit."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], 20)
    assert ready, "nothing was printed"
    return process.stdout.readline().rstrip("\n")


@contextmanager
def running(
    cli: CommandLine, *arguments: str | Path
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start, wait for the line that says ready, and end it with SIGTERM."""
    process = cli.start(*arguments)
    try:
        line = line_of(process)
        assert line, process.communicate(timeout=10)
        yield process, line
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=20)
        assert (process.returncode, said) == (0, "")
    finally:
        process.kill()
        process.communicate()


def run(*command: str | Path) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=25)
    assert result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"
    return result.stdout


def uri_of(socket: Path, name: str = "") -> str:
    return f"nbd+unix:///{name}?socket={socket}"


def test_export_equals_the_file(cli: CommandLine, tmp_path: Path) -> None:
    """nbdcopy and qemu-img read what ``export`` wrote; nbdinfo sees every name."""
    socket = tmp_path / "s"
    expected = cli.folder / "expected"
    with running(cli, "serve", "demo:1", "--socket", socket) as (_, line):
        assert line == uri_of(socket)
        assert stat.S_IMODE(socket.stat().st_mode) & 0o077 == 0
        run("nbdcopy", line, tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == expected.read_bytes()
        run("qemu-img", "compare", "-f", "raw", "-F", "raw", line, str(expected))
        exports = json.loads(run("nbdinfo", "--json", "--list", line))["exports"]
        assert {e["export-name"] for e in exports} >= {"demo:1", "demo:1/rootfs.ext4"}
        assert run("nbdinfo", "--size", uri_of(socket, "demo:1")) == f"{expected.stat().st_size}\n"
    assert not socket.exists()


def test_writes_go_to_an_overlay(cli: CommandLine, tmp_path: Path) -> None:
    """What is written reads back while served, and is gone the next time."""
    socket = tmp_path / "s"
    check = ["qemu-io", "-f", "raw", "-c", "write -P 7 64k 4k", "-c", "read -P 7 64k 4k"]
    with running(cli, "serve", "demo:1", "--socket", socket) as (_, line):
        run(*check, "-c", "flush", line)
    with running(cli, "serve", "demo:1", "--socket", socket) as (_, line):
        run("qemu-img", "compare", "-f", "raw", "-F", "raw", line, str(cli.folder / "expected"))


def test_fio_verifies_what_it_writes(cli: CommandLine, tmp_path: Path) -> None:
    """Random writes over an overlay, read back and checked by fio; the base is unchanged."""
    with running(cli, "serve", "demo:1", "--socket", tmp_path / "s") as (_, line):
        run(
            "fio", "--name=verify", "--ioengine=nbd", f"--uri={line}", "--rw=randwrite",
            "--bsrange=512-128k", "--bs_unaligned", "--size=8M", "--iodepth=16",
            "--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--verify_state_save=0",
            "--randseed=3",
        )  # fmt: skip
    assert cli.json("verify", "demo:1")["ok"]
    cli.ok("export", "demo:1", tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (cli.folder / "expected").read_bytes()


def test_overlay_file_is_kept(cli: CommandLine, tmp_path: Path) -> None:
    """--overlay continues where it was; other exports refuse writes."""
    arguments = ("serve", "demo:1", "--socket", tmp_path / "s", "--overlay", tmp_path / "overlay")
    with running(cli, *arguments) as (_, line):
        run("qemu-io", "-f", "raw", "-c", "write -P 7 64k 4k", "-c", "flush", line)
    with running(cli, *arguments) as (_, line):
        run("qemu-io", "-r", "-f", "raw", "-c", "read -P 7 64k 4k", line)
        other = uri_of(tmp_path / "s", "demo:1/rootfs.ext4")
        assert json.loads(run("nbdinfo", "--json", other))["exports"][0]["is_read_only"]


def test_read_only_refuses_writes(cli: CommandLine, tmp_path: Path) -> None:
    """The client is told, and a write fails."""
    with running(cli, "serve", "demo:1", "--socket", tmp_path / "s", "--read-only") as (_, line):
        assert json.loads(run("nbdinfo", "--json", line))["exports"][0]["is_read_only"]


def test_tcp_and_a_name(cli: CommandLine) -> None:
    """A free port on loopback, which the printed URI names."""
    arguments = ("serve", "demo:1", "--tcp", "127.0.0.1:0", "--name", "disk", "--read-only")
    with running(cli, *arguments) as (_, line):
        assert re.fullmatch(r"nbd://127\.0\.0\.1:\d+/?", line)
        size = (cli.folder / "expected").stat().st_size
        assert run("nbdinfo", "--size", line.rstrip("/") + "/disk") == f"{size}\n"
    assert cli("serve", "demo:1", "--tcp", "192.0.2.1:10809").code == 2


def test_ready_descriptor(cli: CommandLine, tmp_path: Path) -> None:
    """--ready-fd gets a newline and is closed; stdout stays empty."""
    reader, writer = os.pipe()
    process = cli.start(
        "serve", "demo:1", "--socket", tmp_path / "s", "--ready-fd", str(writer), pass_fds=[writer]
    )
    try:
        os.close(writer)
        ready, _, _ = select.select([reader], [], [], 20)
        assert ready
        assert os.read(reader, 10) == b"\n"
        assert os.read(reader, 10) == b""
        assert (tmp_path / "s").exists()
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=20) == ("", "")
        assert process.returncode == 0
    finally:
        os.close(reader)
        process.kill()
        process.communicate()
    assert cli("serve", "demo:1", "--socket", tmp_path / "s", "--ready-fd", "77").code == 2


def test_a_lease_holds_what_is_served(tmp_path: Path) -> None:
    """A deleted build stays readable while it is served, and goes afterwards."""
    cli = CommandLine(tmp_path)
    disk = tmp_path / "disk"
    disk.write_bytes(os.urandom(200_000))
    build_id = cli.ok("import", disk, "-t", "vm")
    with running(cli, "serve", "vm", "--socket", tmp_path / "s", "--read-only") as (_, line):
        cli.ok("rm", "vm")
        assert "serves it" in cli.json("gc", "--older-than", "0s")["held"][build_id]
        run("nbdcopy", line, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes()[:200_000] == disk.read_bytes()
    cli.ok("gc", "--older-than", "0s")
    assert [p for p in cli.store.rglob("*") if not p.is_dir()] == []


def test_a_killed_server_leaves_what_the_next_one_takes_over(
    cli: CommandLine, tmp_path: Path
) -> None:
    """After kill -9 its socket is in nobody's way, and its lease holds nothing."""
    socket = tmp_path / "s"
    process = cli.start("serve", "demo:1", "--socket", socket)
    assert line_of(process)
    process.kill()
    process.communicate()
    assert socket.exists()
    with running(cli, "serve", "demo:1", "--socket", socket):
        busy = cli("serve", "demo:1", "--socket", socket)
        assert (busy.code, busy.stdout) == (4, "")
        assert socket.exists()
    assert list(cli.store.glob("leases/*/*")) != [], "the killed one's lease is there"
    cli.ok("gc", "--older-than", "0s")
    assert list(cli.store.glob("leases/*/*")) == []


def test_wrong_usage(cli: CommandLine, tmp_path: Path) -> None:
    """Nothing is served, no socket is left, no lease is left."""
    socket = tmp_path / "s"
    for arguments, code in (
        (("demo:1",), 2),
        (("demo:1", "--socket", socket, "--tcp", "127.0.0.1:0"), 2),
        (("demo:1", "--socket", socket, "--read-only", "--overlay", tmp_path / "o"), 2),
        (("demo:1", "--socket", tmp_path / ("x" * 120)), 2),
        (("demo:1", "--tcp", "nonsense"), 2),
        (("demo:9", "--socket", socket), 3),
        (("demo:1", "demo:1", "--socket", socket), 2),
        (("demo:1", "--socket", tmp_path / "no" / "folder"), 3),
    ):
        result = cli("serve", *arguments)
        assert (result.code, result.stdout) == (code, ""), (arguments, result)
        assert "Traceback" not in result.stderr
    assert not socket.exists()


def test_mount(cli: CommandLine, tmp_path: Path) -> None:
    """The kernel mounts it for root; whoever may not is told exactly what is missing."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    if os.geteuid() != 0 or not os.access("/dev/fuse", os.W_OK):
        refused = cli("mount", "demo:1", folder)
        assert refused.code in (3, 5)
        assert "remedy: " in refused.stderr
        return
    with running(cli, "mount", "demo:1", folder, "--read-only") as (_, line):
        assert str(folder) in line
        assert (folder / "etc/message").read_text() == "version 1\n"
        assert stat.S_IMODE((folder / "usr/bin/su").stat().st_mode) == 0o4755
        options = next(
            fields[3]
            for fields in map(str.split, Path("/proc/mounts").read_text().splitlines())
            if fields[1] == str(folder)
        )
        assert {"ro", "nosuid", "nodev"} <= set(options.split(","))
    assert not os.path.ismount(folder)
    with running(cli, "mount", "demo:1", folder):
        (folder / "new").write_text("thrown away")
    assert not os.path.ismount(folder)
    assert cli("mount", "demo:1", tmp_path / "nowhere").code == 2
