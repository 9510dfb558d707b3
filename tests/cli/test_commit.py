"""``commit``, ``flatten``, ``compact``: of exports that are served, and of overlay files."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.cli.test_serve import line_of, run, running

from bootstream.nbd.client import connect
from bootstream.testing.cli import CommandLine
from bootstream.testing.debian import debian_layout

CHUNK = 64 << 10
SIZE = 4 << 20


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    """A store with one build of 4 MiB, half of it zeros, that does not compress."""
    folder = tmp_path_factory.mktemp("commit")
    data = random.Random(1).randbytes(SIZE // 2)
    (folder / "disk").write_bytes(data + bytes(SIZE // 2))
    cli = CommandLine(folder)
    cli.ok("import", folder / "disk", "-t", "vm:1")
    return cli


def exported(cli: CommandLine, ref: str, folder: Path) -> bytes:
    """The root file system of a build."""
    target = folder / f"{ref.replace(':', '-')}.raw"
    cli.ok("export", ref, target, "--force")
    return target.read_bytes()


def slow(seed: int) -> bytes:
    """A MiB that takes a tenth of a second to compress at level 19."""
    return random.Random(seed).randbytes(1 << 19).hex().encode()


def test_live(cli: CommandLine, tmp_path: Path) -> None:
    """A build of what clients wrote, twice, while they go on; the second costs the difference."""
    path = tmp_path / "s"
    expected = bytearray((cli.folder / "disk").read_bytes())
    with running(cli, "serve", "vm:1", "--socket", path) as (_, line):
        control = tmp_path / "s.ctl"
        assert stat.S_IMODE(control.stat().st_mode) & 0o077 == 0
        run("qemu-io", "-f", "raw", "-c", "write -P 7 64k 100k", "-c", "flush", line)
        expected[64 << 10 : 164 << 10] = b"\x07" * (100 << 10)
        with connect(line) as client:
            client.write(memoryview(b"not flushed"), 3 << 20)
            expected[3 << 20 : (3 << 20) + 11] = b"not flushed"
            first = cli.json("commit", path, "--tag", "next", "--tag", "other")
            assert exported(cli, "vm:next", tmp_path) == expected
            client.write(memoryview(b"later"), 0)
            expected[:5] = b"later"
            second = cli.json("commit", control, "--template", "copy", "--tag", "latest")
            assert bytes(client.read_views(0, 5)[0]) == b"later"
        assert exported(cli, "copy", tmp_path) == expected
        assert cli.json("commit", path)["changed_bytes"] == 0
    assert not control.exists()
    assert first["parent"] == cli.json("show", "vm:1")["build_id"]
    assert first["changed_bytes"] == (100 << 10) + 4096
    counts = first["artifacts"]["rootfs.ext4"]
    # three chunks were written to; two of them are 64 KiB of sevens
    assert (counts["new_chunks"], counts["parent_chunks"]) == (3, 30)
    assert second["parent"] == first["build_id"]
    assert second["artifacts"]["rootfs.ext4"]["new_chunks"] == 1
    assert cli.json("show", "vm:other")["build_id"] == first["build_id"]
    assert cli.json("verify", "copy")["ok"]


def test_fio_notices_nothing(cli: CommandLine, tmp_path: Path) -> None:
    """Random writes that fio verifies, while commit after commit freezes, stores and merges."""
    path = tmp_path / "s"
    (tmp_path / "disk").write_bytes(bytes(16 << 20))
    cli.ok("import", tmp_path / "disk", "-t", "fio")
    arguments = ("serve", "fio", "--socket", path, "--overlay", tmp_path / "overlay")
    with running(cli, *arguments) as (_, line):
        command = [
            "fio", "--name=verify", "--ioengine=nbd", f"--uri={line}", "--rw=randwrite",
            "--bsrange=512-64k", "--bs_unaligned", "--size=16M", "--iodepth=8",
            "--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--verify_state_save=0",
            "--randseed=5", "--fsync=64", "--rate=5M",
        ]  # fmt: skip
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as fio:
            commits = []
            while fio.poll() is None:
                commits.append(cli.json("commit", path))
            assert fio.stdout is not None
            assert fio.returncode == 0, fio.stdout.read().decode()
        assert len(commits) > 2
        assert sum(done["changed_bytes"] > 0 for done in commits) > 1
        last = cli.ok("commit", path)
        run("nbdcopy", line, tmp_path / "copy")
        assert exported(cli, last, tmp_path) == (tmp_path / "copy").read_bytes()


def test_overlay_file(cli: CommandLine, tmp_path: Path) -> None:
    """A file is refused while it is served, found by its base afterwards, and goes on."""
    path, overlay = tmp_path / "s", tmp_path / "overlay"
    arguments = ("serve", "vm:1", "--socket", path, "--overlay", overlay)
    with running(cli, *arguments) as (_, line):
        run("qemu-io", "-f", "raw", "-c", "write -P 9 1M 64k", "-c", "flush", line)
        refused = cli("commit", overlay)
        assert refused.code == 4
        assert "socket" in refused.stderr
        cli.ok("commit", path, "--tag", "live")
    first = cli.json("commit", overlay, "--tag", "file")
    assert first["changed_bytes"] == 0
    assert first["parent"] == cli.json("show", "vm:live")["build_id"]
    with running(cli, *arguments) as (_, line):
        run("qemu-io", "-f", "raw", "-c", "read -P 9 1M 64k", "-c", "write -P 8 2M 4k", line)
    second = cli.json("commit", overlay, "--parent", "vm:1", "--flat", "--tag", "alone")
    assert (second["parent"], second["changed_bytes"]) == (None, 4096)
    expected = bytearray((cli.folder / "disk").read_bytes())
    expected[1 << 20 : (1 << 20) + CHUNK] = b"\x09" * CHUNK
    assert exported(cli, "vm:file", tmp_path) == expected
    expected[2 << 20 : (2 << 20) + 4096] = b"\x08" * 4096
    assert exported(cli, "vm:alone", tmp_path) == expected
    assert cli.json("show", "vm:alone")["depends_on"] == []
    assert cli("commit", overlay, "--parent", "copy:none").code == 3


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["/no/such/socket"], 3),
        (["{file}"], 2),
        (["{folder}"], 2),
        (["{dead}"], 3),
    ],
)
def test_wrong_targets(cli: CommandLine, tmp_path: Path, arguments: list[str], code: int) -> None:
    """What is no export, and no overlay, is named with its remedy."""
    (tmp_path / "file").write_bytes(b"something else")
    (tmp_path / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead"))
    filled = [text.format(**{path.name: path for path in tmp_path.iterdir()}) for text in arguments]
    result = cli("commit", *filled)
    assert (result.code, result.stdout) == (code, ""), result.stderr


def test_wrong_requests(cli: CommandLine, tmp_path: Path) -> None:
    """The server names what is wrong, to whoever speaks to it, and goes on."""
    path = tmp_path / "s"
    with running(cli, "serve", "vm:1", "--socket", path):
        assert cli("commit", path, "--export", "other").code == 3
        assert cli("commit", path, "--template", "No Template").code == 2
        assert cli("commit", path, "--tag", "no tag").code == 2
        assert cli("commit", path, "--parent", "vm:1").code == 2
        assert cli("commit", path, "--keep", "memfile").code == 2
        for request in (
            b"\n",
            b"[]\n",
            b'{"op": "none"}\n',
            b'{"op": "commit", "tags": 5}\n',
            b"{",
        ):
            assert ask(path, request)["error"]["kind"] == "InvalidInput"
        assert cli.ok("commit", path)
    with running(cli, "serve", "vm:1", "--socket", path, "--read-only"):
        assert cli("commit", path).code == 3


def ask(path: Path, request: bytes) -> dict[str, Any]:
    """Send bytes to the control socket; the last line that comes back."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(f"{path}.ctl")
        client.sendall(request)
        client.shutdown(socket.SHUT_WR)
        with client.makefile("rb") as lines:
            answer: dict[str, Any] = json.loads(lines.readlines()[-1])
            return answer


def test_tag_that_moved(cli: CommandLine, tmp_path: Path) -> None:
    """With --if-current a tag that names another build stays; the build is there, by its id."""
    path = tmp_path / "s"
    one = cli.json("show", "vm:1")["build_id"]
    with running(cli, "serve", "vm:1", "--socket", path) as (_, line):
        cli.ok("tag", "vm:1", "vm:moving")
        run("qemu-io", "-f", "raw", "-c", "write -P 1 0 4k", line)
        won = cli.ok("commit", path, "--tag", "moving", "--if-current", "vm:1")
        run("qemu-io", "-f", "raw", "-c", "write -P 2 0 4k", line)
        lost = cli("commit", path, "--tag", "moving", "--if-current", one)
        assert lost.code == 4
        assert cli.json("show", lost.stdout.strip())["parent"] == won
    assert cli.json("show", "vm:moving")["build_id"] == won


def test_client_that_goes_away_cancels(cli: CommandLine, tmp_path: Path) -> None:
    """Ctrl-C in ``commit`` ends it in the server too: nothing shows, nothing is lost."""
    path = tmp_path / "s"
    (tmp_path / "big").write_bytes(bytes(64 << 20))
    cli.ok("import", tmp_path / "big", "-t", "big")
    with running(cli, "serve", "big", "--socket", path) as (_, line), connect(line) as client:
        for at in range(0, 64 << 20, 1 << 20):
            client.write(memoryview(slow(at)), at)
        process = cli.start("commit", path, "--level", "19", "--threads", "1")
        while not list(cli.store.glob("*/heartbeat")):  # until the build has begun
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
        assert process.returncode == 130
        # the server notices with its next report; until then it refuses another one
        for _ in range(100):
            done = cli("commit", path, "--tag", "done", "--level", "1")
            if done.code != 4:
                break
        assert done.code == 0, done.stderr
    assert exported(cli, "big:done", tmp_path)[: 1 << 20] == slow(0)
    assert len(cli.json("ls", "big")) == 2
    builds = {build["build_id"] for build in cli.json("ls")}
    assert {folder.name for folder in cli.store.iterdir() if len(folder.name) == 36} <= builds


def test_server_that_ends(cli: CommandLine, tmp_path: Path) -> None:
    """SIGTERM ends a commit that is under way; the overlay file has what was flushed."""
    path, overlay = tmp_path / "s", tmp_path / "overlay"
    (tmp_path / "big").write_bytes(bytes(64 << 20))
    cli.ok("import", tmp_path / "big", "-t", "end")
    arguments = ("serve", "end", "--socket", path, "--overlay", overlay)
    with running(cli, *arguments) as (process, line), connect(line) as client:
        for at in range(0, 64 << 20, 1 << 20):
            client.write(memoryview(slow(at)), at)
        client.flush()
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(20)
            control.connect(f"{path}.ctl")
            control.sendall(b'{"op": "commit", "level": 19, "threads": 1}\n')
            with control.makefile("rb") as lines:
                assert json.loads(lines.readline()) == {"bootstream/control": 1}
                assert "phase" in json.loads(lines.readline())
                process.send_signal(signal.SIGTERM)
                last = json.loads(lines.readlines()[-1])
            assert last.get("error", last).get("kind") == "Cancelled", last
    assert len(cli.json("ls", "end")) == 1
    done = cli.json("commit", overlay, "--level", "1")
    assert done["changed_bytes"] == 64 << 20
    assert exported(cli, done["build_id"], tmp_path)[: 1 << 20] == slow(0)


def test_kill(cli: CommandLine, tmp_path: Path) -> None:
    """kill -9 in the middle of a commit: nothing shows, the file has it, gc takes the rest."""
    path, overlay = tmp_path / "s", tmp_path / "overlay"
    (tmp_path / "big").write_bytes(bytes(32 << 20))
    cli.ok("import", tmp_path / "big", "-t", "kill")
    process = cli.start("serve", "kill", "--socket", path, "--overlay", overlay)
    try:
        line = line_of(process)
        with connect(line) as client:
            for at in range(0, 32 << 20, 1 << 20):
                client.write(memoryview(slow(at)), at)
            client.flush()
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(20)
            control.connect(f"{path}.ctl")
            control.sendall(b'{"op": "commit", "level": 19, "threads": 1}\n')
            with control.makefile("rb") as lines:
                while "advance" not in json.loads(lines.readline()):
                    pass
                process.kill()
    finally:
        process.kill()
        process.communicate(timeout=20)
    assert len(cli.json("ls", "kill")) == 1
    done = cli.json("commit", overlay, "--level", "1", "--tag", "after")
    assert done["changed_bytes"] == 32 << 20
    assert exported(cli, "kill:after", tmp_path)[: 1 << 20] == slow(0)
    cli.ok("gc", "--older-than", "0s")
    builds = {build["build_id"] for build in cli.json("ls")}
    left = {folder.name for folder in cli.store.iterdir() if len(folder.name) == 36}
    assert done["build_id"] in left
    assert {build for build in left - builds if list((cli.store / build).glob("*.pack"))} == set()


def test_other_control_sockets(cli: CommandLine, tmp_path: Path) -> None:
    """--control names one, also for TCP; a socket whose name leaves no room says so."""
    control = tmp_path / "control"
    arguments = ("serve", "vm:1", "--tcp", "127.0.0.1:0", "--control", control)
    with running(cli, *arguments) as (_, line):
        run("qemu-io", "-f", "raw", "-c", "write -P 3 0 4k", line)
        assert cli.json("commit", control)["changed_bytes"] == 4096
    long = tmp_path / ("s" * (106 - len(str(tmp_path))))
    process = cli.start("serve", "vm:1", "--socket", long)
    try:
        assert line_of(process)
        assert cli("commit", long).code == 3
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=20)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0
    assert "--control" in said


def test_flatten_and_compact(cli: CommandLine, tmp_path: Path) -> None:
    """The figure falls to the budget, then to 1; the bytes stay, and so does the tag's name."""
    overlay = tmp_path / "overlay"
    source = random.Random(3)
    for _ in range(4):
        arguments = ("serve", "vm:1", "--socket", tmp_path / "s", "--overlay", overlay)
        with running(cli, *arguments) as (_, line), connect(line) as client:
            for _ in range(3):
                client.write(memoryview(b"scattered"), source.randrange(32) * CHUNK)
        cli.ok("commit", overlay, "--tag", "worn")
    worn = cli.json("show", "vm:worn")["build_id"]
    expected = exported(cli, worn, tmp_path)
    before = cli.json("inspect", "vm:worn")["fragmentation"]
    assert before["figure"] == before["requests"] / before["ideal"] > 3
    assert f"{before['figure']:.2f}" in cli.ok("inspect", "vm:worn")
    assert cli.ok("compact", "vm:worn", "--budget", "99") == worn
    compacted = cli.json("compact", "vm:worn", "--budget", "3")
    assert compacted["after"]["rootfs.ext4"] <= 3 < compacted["before"]["rootfs.ext4"]
    assert cli.json("show", "vm:worn")["build_id"] == compacted["build_id"]
    assert exported(cli, "vm:worn", tmp_path) == expected
    flat = cli.ok("flatten", worn, "--tag", "flat")
    assert cli.json("show", "vm:flat")["build_id"] == flat
    assert cli.json("inspect", "vm:flat")["fragmentation"]["figure"] == 1
    assert exported(cli, "vm:flat", tmp_path) == expected
    assert cli("compact", "vm:worn", "--budget", "0.5").code == 2


def test_debian(tmp_path: Path) -> None:
    """A file system that a guest changed is sound after a commit, and little was stored."""
    images = Path(os.environ.get("BOOTSTREAM_TEST_IMAGES", "/tmp/bootstream-test-images"))
    cli = CommandLine(tmp_path)
    image = f"oci:{debian_layout(images)}:bookworm"
    cli.ok("build", image, "-t", "debian", "--level", "1", "--free", "64M")
    before, after = tmp_path / "before", tmp_path / "after"
    cli.ok("export", "debian", before)
    cli.ok("export", "debian", after)
    payload = random.Random(1).randbytes(3 << 20)
    (tmp_path / "payload").write_bytes(payload)
    changes = [
        "mkdir /srv/new",
        "cd /srv/new",
        f"write {tmp_path}/payload payload",
        "rm /etc/debian_version",
    ]
    (tmp_path / "changes").write_text("\n".join(changes))
    run("debugfs", "-w", "-f", str(tmp_path / "changes"), str(after))
    with running(cli, "serve", "debian", "--socket", tmp_path / "s") as (_, line):
        with before.open("rb") as old, after.open("rb") as new, connect(line) as client:
            while block := new.read(4096):
                if old.read(4096) != block:
                    client.write(memoryview(block), new.tell() - len(block))
            client.flush()
        done = cli.json("commit", tmp_path / "s", "--tag", "changed")
    assert len(payload) <= done["changed_bytes"] < len(payload) + (1 << 20)
    stored = done["artifacts"]["rootfs.ext4"]["stored_bytes"]
    assert len(payload) < stored < len(payload) + (2 << 20)
    committed = tmp_path / "committed"
    cli.ok("export", "debian:changed", committed)
    result = subprocess.run(
        ["e2fsck", "-fn", committed], capture_output=True, text=True, check=False, timeout=25
    )
    assert result.returncode == 0, result.stdout
    run("cmp", committed, after)
    assert cli("cat", "debian:changed", "/etc/debian_version").code == 3
    copied = tmp_path / "copied"
    cli.ok("cp", "debian:changed:/srv/new/payload", copied)
    assert copied.read_bytes() == payload
