"""Streaming under trouble, with real processes: right bytes or an error, never wrong bytes.

Storage that fails, stalls and lies, caches that went bad, clients without manners, and servers
that die: ``bootstream serve`` in front of the local OCI, and clients that we did not write.
Whatever happens, what comes next works without a restart of what did not die.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.nbd.raw import RawClient, wait_for

from bootstream.block.segment import PAGE
from bootstream.nbd.client import connect
from bootstream.nbd.protocol import Command
from bootstream.testing.cli import CommandLine
from bootstream.testing.localoci import LocalOciServer

SIZE = 12 << 20
CHUNK = 64 << 10
IMAGE = random.Random(5).randbytes(SIZE)
PACK: dict[str, Any] = {"operation": "GetObject", "object": "*.pack"}


@pytest.fixture(scope="module")
def oci(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalOciServer]:
    """A store with one build, ``vm``, that does not compress."""
    folder = tmp_path_factory.mktemp("oci")
    (folder / "image").write_bytes(IMAGE)
    with LocalOciServer(folder / "oci") as server:
        CommandLine(folder, server.variables).ok("import", folder / "image", "-t", "vm")
        yield server


@pytest.fixture
def cli(oci: LocalOciServer, tmp_path: Path) -> Iterator[CommandLine]:
    """A host with an empty cache, and a store without faults."""
    oci.take_requests()
    yield CommandLine(tmp_path, oci.variables)
    oci.faults.clear()


@dataclass
class Served:
    """A running server."""

    cli: CommandLine
    process: subprocess.Popen[str]
    socket: Path
    uri: str

    def copy(self, name: str = "copy") -> bytes:
        """All of it, read by nbdcopy."""
        target = self.cli.folder / name
        run("nbdcopy", self.uri, target)
        return target.read_bytes()

    def inside(self) -> tuple[int, int, int]:
        """Descriptors, threads, and bytes of memory of its own."""
        folder = Path(f"/proc/{self.process.pid}")
        lines = (folder / "status").read_text().splitlines()
        status = dict(line.split(":", 1) for line in lines)
        memory = int(status["RssAnon"].split()[0]) << 10
        return len(list((folder / "fd").iterdir())), int(status["Threads"]), memory

    def holds_at_most(self, before: tuple[int, int, int]) -> bool:
        """Whether it has no more descriptors and threads than before."""
        return all(now <= then for now, then in zip(self.inside()[:2], before[:2], strict=True))

    def kill(self) -> None:
        """End it as a crash does."""
        self.process.kill()
        self.process.communicate()


@contextmanager
def serving(cli: CommandLine, ref: str = "vm", *options: str | Path) -> Iterator[Served]:
    """Serve while the block lasts; it has to end well by SIGTERM, unless it was killed."""
    path = cli.folder / "s"
    process = cli.start("serve", ref, "--socket", path, "--trace", "off", *options)
    try:
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], 20)[0], "nothing was printed"
        line = process.stdout.readline().strip()
        assert line, process.communicate(timeout=10)
        yield Served(cli, process, path, line)
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=20)
            assert process.returncode == 0, said
            assert "Traceback" not in said
    finally:
        process.kill()
        process.communicate()


def run(*command: str | Path) -> str:
    """Run a client to its good end."""
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=25)
    assert result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"
    return result.stdout


# -- storage ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        {"effect": "flip", "count": 1},
        {"effect": "short"},
        {"effect": "long"},
        {"effect": "cut"},
        {"effect": "reset"},
        {"effect": "reset", "after": 100_000},
        {"effect": "status", "status": 503},
        {"effect": "status", "status": 429, "retry_after": 0},
        {"effect": "html", "status": 502},
        {"effect": "expired", "count": 1},
    ],
    ids=lambda fault: "-".join(map(str, fault.values())),
)
def test_trouble_that_passes(oci: LocalOciServer, cli: CommandLine, fault: dict[str, Any]) -> None:
    """Some requests in the middle of a copy go wrong: nobody notices."""
    fault = {"count": 3, **fault}
    with serving(cli, "vm", "--read-only") as served:
        number = oci.faults.add(**fault, **PACK, skip=1)
        assert served.copy() == IMAGE
        assert oci.faults.hits(number) == fault["count"]


@pytest.mark.parametrize(
    "fault",
    [{"effect": "flip"}, {"effect": "status", "status": 500}, {"effect": "stray"}],
    ids=lambda fault: str(fault["effect"]),
)
def test_trouble_that_stays(oci: LocalOciServer, cli: CommandLine, fault: dict[str, Any]) -> None:
    """Readers get an error; on the same connection, once the store is well, the right bytes."""
    cli = CommandLine(cli.folder, {**cli.environment, "BOOTSTREAM_READ_PATIENCE": "0s"})
    with serving(cli, "vm", "--read-only") as served, RawClient(served.socket) as client:
        client.send(Command.READ, 1, 0, 4096)
        assert client.reply()[1:] == (0, IMAGE[:4096])
        oci.faults.add(**fault, **PACK)
        for cookie in (2, 3):
            client.send(Command.READ, cookie, 4 << 20, 70_000)
        for _ in (2, 3):
            assert client.reply()[1] == 5, "EIO"
        client.send(Command.READ, 4, 0, 4096)
        assert client.reply()[2] == IMAGE[:4096], "what is cached is read all the same"
        oci.faults.clear()
        client.send(Command.READ, 5, 4 << 20, 70_000)
        assert client.reply()[2] == IMAGE[4 << 20 :][:70_000]
        assert served.copy() == IMAGE


def test_a_request_that_stalls_is_asked_again(tmp_path: Path) -> None:
    """Nothing more comes on one connection; neither its reader nor the server's end waits."""
    (tmp_path / "image").write_bytes(IMAGE)
    with LocalOciServer(tmp_path / "oci") as store:
        cli = CommandLine(tmp_path, store.variables)
        cli.ok("import", tmp_path / "image", "-t", "vm")
        with serving(cli, "vm", "--read-only") as served, connect(served.uri) as client:
            for number in range(40):
                at = number * 7 % 20 * 2 * CHUNK
                assert bytes(client.read_views(at, 512)[0]) == IMAGE[at : at + 512]
            stalled = store.faults.add("stall", seconds=600.0, after=1000, count=1, **PACK)
            for number in range(20, 40):
                at = (number * 7 % 20 + 40) * 2 * CHUNK
                assert bytes(client.read_views(at, 512)[0]) == IMAGE[at : at + 512]
            assert store.faults.hits(stalled) == 1
        store.kill()  # it would stall to its end


def test_storage_that_dies_and_comes_back(tmp_path: Path) -> None:
    """kill -9 in the middle of a copy, and a start at the same place: the copy ends well."""
    (tmp_path / "image").write_bytes(IMAGE)
    folder = tmp_path / "oci"
    with LocalOciServer(folder) as first:
        cli = CommandLine(tmp_path, first.variables)
        cli.ok("import", tmp_path / "image", "-t", "vm")
        with serving(cli, "vm", "--read-only") as served:
            slow = first.faults.add("bandwidth", rate=4 << 20, **PACK)
            with subprocess.Popen(["nbdcopy", served.uri, tmp_path / "copy"]) as client:
                wait_for(lambda: first.faults.hits(slow) > 0)
                first.kill()
                port = int(first.endpoint.rpartition(":")[2])
                with LocalOciServer(folder, port=port):
                    assert client.wait(20) == 0
            assert (tmp_path / "copy").read_bytes() == IMAGE


def test_counters_are_what_the_storage_saw(oci: LocalOciServer, cli: CommandLine) -> None:
    """Requests and bytes of the statistics are those that the storage was asked for."""
    stats = cli.folder / "stats"
    seen = oci.faults.add("latency", seconds=0.0, **PACK)
    with serving(cli, "vm", "--read-only", "--stats", stats) as served:
        with connect(served.uri) as client:
            for at in range(0, SIZE, 5 * CHUNK):  # pieces apart, then what is between them
                client.read_views(at, CHUNK)
        assert served.copy() == IMAGE
    counters = json.loads(stats.read_text())["devices"][0]["counters"]
    # Besides those who read: what is asked a second time by whoever is late.
    assert counters["requests"] + counters["prefetches"] == oci.faults.hits(seen)
    assert counters["fetched_bytes"] >= SIZE
    assert counters["stored_bytes"] >= counters["fetched_bytes"], "it does not compress"
    with serving(cli, "vm", "--read-only", "--stats", stats) as served:
        assert served.copy() == IMAGE
    counters = json.loads(stats.read_text())["devices"][0]["counters"]
    assert (counters["requests"], counters["stored_bytes"], counters["waits"]) == (0, 0, 0)
    assert counters["cache_hits"] == SIZE // CHUNK


# -- the cache ----------------------------------------------------------------------------------


def spoil(cli: CommandLine, seed: int) -> int:
    """Flip bits all over the cached chunks; return how many there were."""
    places = random.Random(seed)
    flipped = 0
    for path in sorted((cli.folder / "cache").rglob("*.seg")):
        with path.open("r+b") as file:
            head = file.read(20)
            chunk, slots = (int.from_bytes(head[at : at + 4], "little") for at in (8, 12))
            states = os.pread(file.fileno(), slots, PAGE)
            data = path.stat().st_size - chunk * slots
            for slot in range(slots):
                if states[slot]:
                    at = data + slot * chunk + places.randrange(chunk)
                    (byte,) = os.pread(file.fileno(), 1, at)
                    os.pwrite(file.fileno(), bytes([byte ^ 1 << places.randrange(8)]), at)
                    flipped += 1
    return flipped


def test_a_cache_that_was_damaged(oci: LocalOciServer, cli: CommandLine) -> None:
    """Bits that flipped between two runs, in every chunk: it is fetched again, and kept again."""
    with serving(cli, "vm", "--read-only") as served:
        assert served.copy() == IMAGE
    assert spoil(cli, 1) == SIZE // CHUNK
    with serving(cli, "vm", "--read-only") as served:
        assert served.copy() == IMAGE
    oci.take_requests()
    with serving(cli, "vm", "--read-only") as served:
        assert served.copy() == IMAGE
    assert oci.take_requests()["GetObject"] < 10, "all was in the cache, sound again"


def test_an_index_is_fetched_once(oci: LocalOciServer, cli: CommandLine) -> None:
    """The next server has it from the cache, unless it was damaged there."""
    seen = oci.faults.add("latency", seconds=0.0, operation="GetObject", object="*.index")
    for damaged in (False, False, True, False):
        if damaged:
            (path,) = (cli.folder / "cache").rglob("*.index")
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.write_bytes(data)
        before = oci.faults.hits(seen)
        with serving(cli, "vm", "--read-only") as served, connect(served.uri) as client:
            assert bytes(client.read_views(0, CHUNK)[0]) == IMAGE[:CHUNK]
        assert oci.faults.hits(seen) - before == (damaged or not before)


def test_a_cache_that_is_damaged_while_it_is_used(cli: CommandLine) -> None:
    """What a server has not used yet is checked when it does, also in a file that it has open."""
    with serving(cli, "vm", "--read-only") as served:
        assert served.copy() == IMAGE
    with serving(cli, "vm", "--read-only") as served:
        with connect(served.uri) as client:
            client.read_views(0, 512)
        with serving_beside(cli) as other:  # another process that shares the cache
            with connect(other) as client:
                client.read_views(SIZE - 512, 512)
            spoil(cli, 2)
            cli_copy = cli.folder / "beside"
            run("nbdcopy", f"{other}", cli_copy)
            copied = cli_copy.read_bytes()
            assert copied[: SIZE - CHUNK] == IMAGE[: SIZE - CHUNK]
        # Only the chunk that each had used already is as the disk has it now.
        assert served.copy()[CHUNK : SIZE - CHUNK] == IMAGE[CHUNK : SIZE - CHUNK]


@contextmanager
def serving_beside(cli: CommandLine) -> Iterator[str]:
    """Another server on the same host."""
    path = cli.folder / "beside.s"
    process = cli.start("serve", "vm", "--socket", path, "--trace", "off", "--read-only")
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
    finally:
        process.kill()
        process.communicate()


# -- clients ------------------------------------------------------------------------------------


def test_clients_without_manners(cli: CommandLine) -> None:
    """Garbage, silence, half a request, replies that nobody reads: bounded, and cleaned up."""
    noise = random.Random(3)
    with serving(cli) as served:
        assert served.copy() == IMAGE
        wait_for(lambda: served.inside()[1] <= 8)
        before = served.inside()
        with ExitStack() as stack:
            for number in range(24):
                client = stack.enter_context(RawClient(served.socket))
                match number % 4:
                    case 0:
                        client.socket.sendall(noise.randbytes(5000))
                    case 1:
                        client.send(Command.READ, 1, 0, SIZE)
                        client.socket.sendall(b"half a request")
                    case 2:
                        client.send(Command.WRITE, 1, 0, 1 << 20)
                        client.socket.sendall(bytes(100_000))
                    case 3:  # 128 MiB of replies each, none of which is read
                        client.socket.setblocking(False)
                        try:
                            for cookie in range(128):
                                client.send(Command.READ, cookie, 0, 1 << 20)
                        except BlockingIOError:
                            pass
            assert served.copy() == IMAGE, "others are served meanwhile"
            assert served.inside()[2] - before[2] < 64 << 20
        wait_for(lambda: served.holds_at_most(before))
        assert served.copy() == IMAGE, "a write that was broken off has written nothing"


def test_ten_thousand_clients(cli: CommandLine) -> None:
    """They come and go, some in the middle of a word: nothing of them stays."""
    with serving(cli, "vm", "--read-only") as served:
        assert served.copy() == IMAGE
        address = str(served.socket)

        def come(first: int, last: int) -> None:
            for number in range(first, last):
                if number % 20 == 0:
                    with RawClient(served.socket) as client:
                        client.send(Command.READ, 1, number % 50 * CHUNK, 512)
                        client.reply()
                    continue
                with socket.socket(socket.AF_UNIX) as sock:
                    sock.connect(address)
                    if number % 2:
                        sock.recv(18)

        come(0, 500)
        wait_for(lambda: served.inside()[1] <= 8)
        before = served.inside()
        come(500, 10_000)
        wait_for(lambda: served.holds_at_most(before))
        assert served.inside()[2] - before[2] < 4 << 20, "bytes of its own"
        assert served.copy() == IMAGE


# -- builds that go, servers that die -------------------------------------------------------------


def test_a_build_that_is_deleted_while_it_is_served(
    oci: LocalOciServer, cli: CommandLine, tmp_path: Path
) -> None:
    """Deleted and collected before anything of it was read; all of it is read nevertheless."""
    data = random.Random(6).randbytes(2 << 20)
    (tmp_path / "disk").write_bytes(data)
    build = cli.ok("import", tmp_path / "disk", "-t", "gone")
    with serving(cli, "gone", "--read-only") as served:
        other = CommandLine(tmp_path / "other", oci.variables | {"NODE_ID": "elsewhere"})
        other.ok("rm", "gone")
        assert build in other.json("gc", "--older-than", "0s")["held"]
        assert served.copy()[: len(data)] == data
    other.ok("gc", "--older-than", "0s")
    assert build not in other.ok("storage", "ls")


def test_flushed_writes_survive_a_crash(cli: CommandLine) -> None:
    """fio writes and syncs, the server is killed; the next one has every byte of it."""
    options = ["--ioengine=nbd", "--rw=randwrite", "--bsrange=4k-64k", "--size=4M"]
    options += ["--iodepth=16", "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0"]
    options += ["--randseed=9", "--name=crash"]
    overlay = cli.folder / "overlay"
    for round_number in range(3):
        with serving(cli, "vm", "--overlay", overlay) as served:
            fio = ["fio", *options, f"--uri={served.uri}"]
            if round_number:
                run(*fio, "--verify_only")
                assert served.copy()[4 << 20 :] == IMAGE[4 << 20 :]
            run(*fio, "--do_verify=0", "--end_fsync=1")
            with RawClient(served.socket) as client:  # and killed with writes under way
                for cookie in range(32):
                    client.write(cookie, (5 << 20) + cookie * 4096, IMAGE[5 << 20 :][:4096])
                served.kill()


def test_a_client_that_reconnects(cli: CommandLine) -> None:
    """QEMU's block layer goes on over a server that died and came back at the same socket."""
    overlay = cli.folder / "overlay"
    image = f"driver=nbd,server.type=unix,server.path={cli.folder / 's'},reconnect-delay=20"
    with ExitStack() as stack:
        served = stack.enter_context(serving(cli, "vm", "--overlay", overlay))
        client = stack.enter_context(
            subprocess.Popen(
                ["stdbuf", "-oL", "qemu-io", "--image-opts", image],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                bufsize=1,
            )
        )
        assert client.stdin is not None
        assert client.stdout is not None

        def say(command: str, until: str) -> None:
            """One line at a time: qemu-io looks for the next one only when there is news."""
            assert client.stdin is not None
            assert client.stdout is not None
            client.stdin.write(command + "\n")
            said = ""
            while until not in said:
                said = client.stdout.readline()
                assert said, command
                assert "fail" not in said, said

        say("write -f -P 7 1M 64k", "wrote 65536/65536")
        say("read -P 7 1M 4k", "read 4096/4096")
        served.kill()
        client.stdin.write("read -P 7 1M 64k\n")
        stack.enter_context(serving(cli, "vm", "--overlay", overlay))
        say("write -P 8 2M 64k", "wrote 65536/65536")
        say("read -P 8 2M 64k", "read 65536/65536")
        client.stdin.write("quit\n")
        assert client.wait(20) == 0


def test_two_hosts_commit_to_one_template(
    oci: LocalOciServer, cli: CommandLine, tmp_path: Path
) -> None:
    """At the same moment: both builds are there and sound, the tag is one's alone."""
    cli.ok("tag", "vm", "vm:shared")
    base = cli.json("show", "vm:shared")["build_id"]
    hosts = []
    with ExitStack() as stack:
        for number in range(2):
            folder = tmp_path / f"host{number}"
            folder.mkdir()
            host = CommandLine(folder, oci.variables | {"NODE_ID": f"host{number}"})
            served = stack.enter_context(serving(host, "vm:shared"))
            run("qemu-io", "-f", "raw", "-c", f"write -P {number + 1} 1M 256k", served.uri)
            hosts.append(host)
        started = [
            host.start("commit", host.folder / "s", "--tag", "shared", "--if-current", base)
            for host in hosts
        ]
        ends = [process.communicate(timeout=25) for process in started]
    builds = [out.strip() for out, _ in ends]
    codes = [process.returncode for process in started]
    assert sorted(codes)[0] == 0
    assert sorted(codes)[1] != 0, ends
    won = codes.index(0)
    assert cli.json("show", "vm:shared")["build_id"] == builds[won]
    known = {build["build_id"]: build for build in json.loads(cli.ok("ls", "--json"))}
    mine = [build for build in known if build != base]
    assert len(mine) == 2
    for build in mine:
        assert cli.json("verify", build)["ok"]
    cli.ok("export", "vm:shared", tmp_path / "committed")
    expected = IMAGE[: 1 << 20] + bytes([won + 1]) * (256 << 10) + IMAGE[(1 << 20) + (256 << 10) :]
    assert (tmp_path / "committed").read_bytes() == expected
