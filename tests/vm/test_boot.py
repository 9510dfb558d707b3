"""A template boots: from the store to a marker on its console, cold and warm."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bootstream.testing.cli import COMMAND, CommandLine
from bootstream.testing.debian import debian_layout
from bootstream.testing.images import LayerBuilder, write_layout

MARKER = 'perl -e \'print "up: ", 6 * 7, "\\n"\'; cat /srv/message; exit 7'


@pytest.fixture(scope="module")
def template(cli: CommandLine, images: Path) -> str:
    """The test Debian image as a template."""
    cli.ok("build", f"oci:{debian_layout(images)}:bookworm", "-t", "debian")
    return "debian"


def boot(cli: CommandLine, kernel: Path, *arguments: str) -> tuple[int, str, dict[str, Any]]:
    """Boot to the end; return exit code, console, and what happened when."""
    report = cli.folder / "report.json"
    result = cli("boot", *arguments, "--kernel", kernel, "--time-limit", "25s", "--report", report)
    assert report.exists(), result
    return result.code, result.stdout, json.loads(report.read_text())


def test_the_template_is_built(template: str, kernel: Path) -> None:
    """The image is a template, and there is a kernel: nothing of it is boot time."""
    assert template
    assert list((kernel / "boot").glob("vmlinuz-*"))


@pytest.mark.parametrize("state", ["cold", "warm"])
def test_boots_to_its_marker(cli: CommandLine, template: str, kernel: Path, state: str) -> None:
    """The console has what the template's own programs print; the exit code is the command's.

    Cold, nothing of it is on this host but the store; warm, the node cache has all.
    """
    cache = cli.folder / "cache"
    if state == "cold":
        shutil.rmtree(cache, ignore_errors=True)
    code, console, report = boot(cli, kernel, template, "--cmd", MARKER)
    assert console == "up: 42\nversion 1\n"
    assert code == 7
    assert report["exit_code"] == 7
    assert [event["stage"] for event in report["events"]] == ["start", "root", "init", "exit"]
    assert report["kernel"].endswith(f"vmlinuz-{report['version']}")
    assert any(path.is_file() for path in (cache / "node").rglob("*"))


def test_boots_on_pci_read_only_with_files(
    cli: CommandLine, template: str, kernel: Path, tmp_path: Path
) -> None:
    """The other kind of machine, a root that refuses writes, a network, files and modules."""
    (tmp_path / "note").write_text("from the host\n")
    command = (
        "cat /run/bootstream/as; echo x > /etc/x; test -d /sys/module/nbd -a -d /sys/class/net/eth0"
    )
    code, console, report = boot(
        cli,
        kernel,
        template,
        *("--machine", "pc", "--read-only", "--network", "--module", "nbd", "--cmd", command),
        *("--file", f"{tmp_path / 'note'}:as"),
    )
    assert console.splitlines()[0] == "from the host"
    assert "Read-only file system" in console
    assert code == 0
    assert report["machine"] == "pc"


@pytest.mark.timeout(60)  # two boots: 4 s alone, 28 s with four busy loops on two cores
def test_writes_are_kept_in_the_overlay(
    cli: CommandLine, template: str, kernel: Path, tmp_path: Path
) -> None:
    """What one boot writes, the next one with the same overlay reads."""
    overlay = ("--overlay", str(tmp_path / "overlay"))
    code, _, _ = boot(cli, kernel, template, *overlay, "--cmd", "echo kept > /root/note")
    assert code == 0
    code, console, _ = boot(cli, kernel, template, *overlay, "--cmd", "cat /root/note")
    assert (code, console) == (0, "kept\n")


def test_a_template_with_an_init_and_a_kernel_of_its_own(
    cli: CommandLine, kernel: Path, tmp_path: Path
) -> None:
    """Its /sbin/init runs, with its own kernel, and switches the machine off."""
    layer = LayerBuilder()
    layer.file("bin/busybox", Path("/bin/busybox").read_bytes(), mode=0o755)
    script = "#!/bin/busybox sh\n/bin/busybox echo init runs\n/bin/busybox poweroff -f\n"
    layer.file("sbin/init", script.encode(), mode=0o755)
    for path in kernel.rglob("*"):
        name = str(path.relative_to(kernel))
        wanted = ("vmlinuz-", "modules.", "virtio")
        if path.is_file() and path.name.startswith(wanted):
            layer.file(name, path.read_bytes())
    write_layout(tmp_path / "image", [layer], tag="1")
    cli.ok("build", f"oci:{tmp_path / 'image'}:1", "-t", "own")
    result = cli("boot", "own", "--json", "--time-limit", "25s")
    assert result.code == 0, result
    assert result.stdout.startswith("init runs")
    report = json.loads(result.stdout[result.stdout.index("{\n") :])
    assert report["kernel"].startswith("the template:/boot/vmlinuz-")
    assert report["exit_code"] is None
    assert report["events"][-1]["detail"] == "/sbin/init"


def test_the_terminal_is_the_console(cli: CommandLine, kernel: Path, template: str) -> None:
    """Without a command and an init there is a shell on the terminal; Ctrl-A X ends it all."""
    ours, theirs = pty.openpty()
    command = ["boot", template, "--kernel", str(kernel), "--time-limit", "25s"]
    process = subprocess.Popen(
        [*COMMAND, *command], env=cli.variables, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    try:
        assert "Ctrl-A X" in (said := until(ours, "# ")), said
        os.write(ours, b"echo typed $((6 * 7))\r")
        until(ours, "typed 42")
        os.write(ours, b"\x01x")
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def until(terminal: int, text: str) -> str:
    """Read a terminal until it shows ``text``; return all of it."""
    said = ""
    while text not in said:
        readable, _, _ = select.select([terminal], [], [], 20)
        assert readable, f"no {text!r} in {said!r}"
        said += os.read(terminal, 4096).decode("utf-8", "replace")
    return said


def test_a_killed_boot_leaves_no_machine(cli: CommandLine, kernel: Path, template: str) -> None:
    """QEMU ends with the process that serves its disk."""
    command = ("boot", template, "--kernel", kernel, "--cmd", "echo up; exec sleep 99")
    process = cli.start(*command)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    machines = [os.pidfd_open(int(pid)) for pid in children]
    assert machines
    process.kill()
    process.communicate()
    for machine in machines:
        assert select.select([machine], [], [], 20)[0], "the machine runs on"
        os.close(machine)


def test_a_guest_that_does_not_end(cli: CommandLine, template: str, kernel: Path) -> None:
    """The time limit ends it, and says how far it got."""
    command = "/run/bootstream/busybox sleep 99"
    result = cli("boot", template, "--kernel", kernel, "--time-limit", "3s", "--cmd", command)
    assert result.code == 6
    assert "did not end within 3 seconds: it" in result.stderr


def test_a_root_that_is_none(cli: CommandLine, kernel: Path, tmp_path: Path) -> None:
    """The guest's own words reach the person."""
    raw = tmp_path / "zeros"
    with raw.open("wb") as file:
        file.truncate(1 << 20)
    cli.ok("import", str(raw), "-t", "zeros")
    result = cli("boot", "zeros", "--kernel", kernel, "--time-limit", "25s", "--cmd", "true")
    assert result.code == 6
    assert "the root cannot be mounted" in result.stderr
