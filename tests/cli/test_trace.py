"""Traces, statistics and reports, by the real command line and clients that we did not write."""

from __future__ import annotations

import io
import json
import os
import signal
import stat
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.cli.test_serve import line_of, run, running

from bootstream.cli.demo_image import TAG, write_layout
from bootstream.nbd.client import connect
from bootstream.testing.cli import CommandLine

CHUNK = 64 << 10
READ = [1, 2, 3, 40, 41, 17, 60, 61, 62, 5]
"""What our boots read, by chunk, in this order."""


@pytest.fixture
def cli(tmp_path: Path) -> CommandLine:
    """A store with one build of 8 MiB that does not compress, the second half zeros."""
    (tmp_path / "disk").write_bytes(os.urandom(4 << 20) + bytes(4 << 20))
    cli = CommandLine(tmp_path)
    cli.ok("import", tmp_path / "disk", "-t", "vm:1")
    return cli


def cold(cli: CommandLine) -> CommandLine:
    """The same store, as a host sees it that has nothing in its cache."""
    folder = cli.folder / f"cold{time.monotonic_ns()}"
    return CommandLine(
        cli.folder,
        {**cli.environment, "BOOTSTREAM_CACHE_DIR": str(folder)},
    )


def boot(uri: str, chunks: list[int]) -> None:
    """Read 4 KiB of each chunk, one after another."""
    with connect(uri) as device:
        for chunk in chunks:
            device.read_into(memoryview(bytearray(4096)), chunk * CHUNK)


def traces(cli: CommandLine) -> list[Path]:
    """The stored traces."""
    return list(cli.store.glob("*/*.trace"))


def stats_of(path: Path) -> dict[str, Any]:
    """The one device of a file of statistics."""
    document = json.loads(path.read_text())
    assert document["format"] == "bootstream/stats"
    assert set(document["exports"].values()) == {0}
    device: dict[str, Any] = document["devices"][0]
    return device


def test_serve_records_once_and_replays(cli: CommandLine, tmp_path: Path) -> None:
    """The first boot's touches are stored at the end; the second waits for nothing it knows."""
    first = ("serve", "vm:1", "--socket", tmp_path / "s", "--stats", tmp_path / "first")
    with running(cold(cli), *first) as (_, uri):
        assert traces(cli) == []
        boot(uri, READ)
    (stored,) = traces(cli)
    shown = cli.json("trace", "show", "vm:1")
    assert [c for _, first, n in shown["touches"] for c in range(first, first + n)] == READ
    assert cli.ok("trace", "show", "vm:1", "--raw").encode() == stored.read_bytes()
    assert "10 of 64.0 KiB" in cli.ok("trace", "show", "vm:1")
    before = stats_of(tmp_path / "first")
    assert before["trace"]["state"] == "stored"
    assert before["counters"]["waits"] >= 5
    assert before["counters"]["touched_chunks"] == len(READ)

    kept = stored.read_bytes()
    second = ("serve", "vm:1", "--socket", tmp_path / "s", "--stats", tmp_path / "second")
    with running(cold(cli), *second) as (process, uri):
        path = tmp_path / "second"
        deadline = time.monotonic() + 20
        while stats_of(path)["counters"]["prefetched_bytes"] < len(READ) * CHUNK:
            assert time.monotonic() < deadline
            last = path.stat().st_ino
            process.send_signal(signal.SIGUSR1)
            while path.stat().st_ino == last:
                assert time.monotonic() < deadline
        boot(uri, [*READ, 30])
    after = stats_of(tmp_path / "second")
    assert after["trace"] == {"state": "replayed", "chunks": len(READ), "boots": 1}
    assert after["counters"]["prefetch_hits"] == len(READ)
    assert (after["counters"]["waits"], after["counters"]["requests"]) == (1, 1)
    assert after["counters"]["wasted_chunks"] == 0
    assert after["counters"]["prefetches"] < before["counters"]["requests"]
    assert stored.read_bytes() == kept, "what is stored by itself never replaces another"


def test_modes(cli: CommandLine, tmp_path: Path) -> None:
    """Off stores nothing, too little stores nothing, record takes the other's place."""
    socket = tmp_path / "s"
    with running(cli, "serve", "vm:1", "--socket", socket, "--trace", "off") as (_, uri):
        boot(uri, READ)
    with running(cli, "serve", "vm:1", "--socket", socket) as (_, uri):
        boot(uri, READ[:3])
    assert traces(cli) == []
    assert cli("trace", "show", "vm:1").code == 3
    with running(cli, "serve", "vm:1", "--socket", socket) as (_, uri):
        boot(uri, READ)
    with running(cli, "serve", "vm:1", "--socket", socket, "--trace", "record") as (_, uri):
        boot(uri, [9, 8])
    assert [t[1] for t in cli.json("trace", "show", "vm:1")["touches"]] == [9, 8]
    assert cli("trace", "rm", "vm:1").code == 0
    assert cli("trace", "rm", "vm:1").code == 3
    assert traces(cli) == []


def test_a_copy_is_no_boot(tmp_path: Path) -> None:
    """Whoever reads all of a large image leaves no trace of it."""
    cli = CommandLine(tmp_path)
    (tmp_path / "disk").write_bytes(os.urandom(33 << 20))
    cli.ok("import", tmp_path / "disk", "-t", "big")
    with running(cli, "serve", "big", "--socket", tmp_path / "s") as (_, uri):
        run("nbdcopy", uri, tmp_path / "copy")
    assert traces(cli) == []


def test_a_store_that_may_not_be_written_to(cli: CommandLine, tmp_path: Path) -> None:
    """Serving goes on, ends well, and says nothing of the trace that could not be stored."""
    build_id = cli.json("show", "vm:1")["build_id"]
    blocked = cli.store / build_id / "rootfs.ext4.trace" / "in the way"
    with running(cli, "serve", "vm:1", "--socket", tmp_path / "s") as (_, uri):
        boot(uri, READ)
        blocked.parent.mkdir()
        blocked.touch()
    blocked.unlink()
    blocked.parent.rmdir()


def test_damage_is_ignored_by_serve_and_told_by_show(cli: CommandLine, tmp_path: Path) -> None:
    """The build is served all the same, with a warning; show and verify say what to do."""
    build_id = cli.json("show", "vm:1")["build_id"]
    path = cli.store / build_id / "rootfs.ext4.trace"
    good = json.dumps(
        {"version": 1, "index_sha256": "ab" * 32, "chunk_size": CHUNK, "boots": 1, "touches": []}
    )
    for damaged in ("{", good, ""):
        path.write_text(damaged)
        process = cli.start("serve", "vm:1", "--socket", tmp_path / "s")
        uri = line_of(process)
        boot(uri, READ)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=20)
        assert process.returncode == 0
        assert said.startswith("warning: the trace is ignored: ")
        assert path.read_text() == damaged
        shown = cli("trace", "show", "vm:1")
        assert shown.code == 7
        assert "trace rm" in shown.stderr
        assert cli("verify", "vm:1").code == 7
    cli.ok("trace", "rm", "vm:1")
    assert cli.json("verify", "vm:1")["ok"]


def test_traces_go_and_travel_with_their_build(cli: CommandLine, tmp_path: Path) -> None:
    """du counts it, cp takes it along, gc removes it, other verbs do not mind it."""
    before = cli.json("du", "vm")
    with running(cli, "serve", "vm:1", "--socket", tmp_path / "s") as (_, uri):
        boot(uri, READ)
    size = traces(cli)[0].stat().st_size
    after = cli.json("du", "vm")
    assert after[0]["own_size"] == before[0]["own_size"] + size
    assert cli.json("verify", "vm:1")["ok"]
    cli.ok("inspect", "vm:1")
    cli.ok("export", "vm:1", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "disk").read_bytes()
    cli.ok("storage", "cp", "-r", "store:", tmp_path / "other")
    elsewhere = CommandLine(tmp_path, {"LOCAL_TEMPLATE_STORAGE_BASE_PATH": str(tmp_path / "other")})
    assert elsewhere.ok("trace", "show", "vm:1", "--raw") == cli.ok(
        "trace", "show", "vm:1", "--raw"
    )
    cli.ok("rm", "vm:1")
    cli.ok("gc", "--older-than", "0s")
    assert [path for path in cli.store.rglob("*") if not path.is_dir()] == []


def test_derived_builds_take_it_along(cli: CommandLine, tmp_path: Path) -> None:
    """What commit and flatten make has the trace of what it was made from, and replays it."""
    with running(cli, "serve", "vm:1", "--socket", tmp_path / "s") as (_, uri):
        boot(uri, READ)
    with running(cli, "serve", "vm:1", "--socket", tmp_path / "s", "--trace", "off") as (_, uri):
        run("qemu-io", "-f", "raw", "-c", "write -z 64k 64k", "-c", "write -P 7 6M 64k", uri)
        cli.ok("commit", tmp_path / "s", "--tag", "2")
    cli.ok("flatten", "vm:2", "--tag", "flat")
    touches = cli.json("trace", "show", "vm:1")["touches"]
    for ref in ("vm:2", "vm:flat"):
        assert cli.json("trace", "show", ref)["touches"] == touches
        assert cli.json("verify", ref)["ok"]
        arguments = ("serve", ref, "--socket", tmp_path / "s", "--stats", tmp_path / "stats")
        with running(cold(cli), *arguments) as (_, uri):
            boot(uri, READ)
        assert stats_of(tmp_path / "stats")["trace"]["state"] == "replayed"


def test_record_runs_a_command(cli: CommandLine, tmp_path: Path) -> None:
    """The command gets the URI twice; what it reads is stored; one that fails stores nothing."""
    program = (
        "import os, sys\n"
        "from bootstream.nbd.client import connect\n"
        "assert os.environ['NBD_URI'] == sys.argv[1]\n"
        "with connect(sys.argv[1]) as device:\n"
        "    device.read_into(memoryview(bytearray(10)), 5 * 65536)\n"
        "    device.read_into(memoryview(bytearray(10)), 3 * 65536)\n"
    )
    python = (sys.executable, "-c", program, "{uri}")
    failed = cli("trace", "record", "vm:1", "--", *python[:2], program + "sys.exit(4)", "{uri}")
    assert failed.code == 2
    assert "ended with 4" in failed.stderr
    assert cli("trace", "record", "vm:1", "--", "true").code == 2
    assert cli("trace", "record", "vm:1", "--", tmp_path / "no-such-program").code == 3
    assert traces(cli) == []
    cli.ok("trace", "record", "vm:1", "--", *python)
    assert [t[1] for t in cli.json("trace", "show", "vm:1")["touches"]] == [5, 3]
    endless = (*python[:2], program + "import time; print(flush=True); time.sleep(60)", "{uri}")
    cli.ok("trace", "record", "vm:1", "--seconds", "3s", "--output", tmp_path / "t", "--", *endless)
    assert json.loads((tmp_path / "t").read_text())["touches"] != []
    assert list(cli.store.glob("leases/*/*")) == []


def test_record_waits_for_a_signal(cli: CommandLine) -> None:
    """Without a command it prints the URI; Ctrl-C ends and stores."""
    process = cli.start("trace", "record", "vm:1", "--seconds", "1m")
    boot(line_of(process), [7, 6])
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20) == ("", "")
    assert process.returncode == 0
    assert [t[1] for t in cli.json("trace", "show", "vm:1")["touches"]] == [7, 6]


def test_merge(cli: CommandLine, tmp_path: Path) -> None:
    """What two of three boots read is stored; files of other builds are refused."""
    for number, chunks in enumerate(([1, 2, 3], [1, 2, 9], [1, 3, 2])):
        socket = tmp_path / f"s{number}"
        with running(cli, "serve", "vm:1", "--socket", socket, "--trace", "record") as (_, uri):
            boot(uri, chunks)
        (tmp_path / f"t{number}").write_text(cli.ok("trace", "show", "vm:1", "--raw"))
    files = [tmp_path / f"t{number}" for number in range(3)]
    cli.ok("trace", "merge", "vm:1", *files)
    shown = cli.json("trace", "show", "vm:1")
    assert sorted(c for _, f, n in shown["touches"] for c in range(f, f + n)) == [1, 2, 3]
    assert shown["boots"] == 3
    cli.ok("trace", "merge", "vm:1", "--stored", files[0], "--output", tmp_path / "out")
    assert json.loads((tmp_path / "out").read_text())["boots"] == 4
    assert cli("trace", "merge", "vm:1").code == 2
    assert cli("trace", "merge", "vm:1", tmp_path / "none").code == 3
    (tmp_path / "junk").write_text("junk")
    assert cli("trace", "merge", "vm:1", tmp_path / "junk").code == 7
    cli.ok("import", tmp_path / "disk", "-t", "other", "--chunk-size", "128k")
    assert cli("trace", "merge", "other", files[0]).code == 2
    assert cli.json("trace", "show", "vm:1")["boots"] == 3


def test_warm_names_files(tmp_path: Path) -> None:
    """With what they are found by, they are all that reading the files needs."""
    write_layout(tmp_path / "image", message="version 1")
    cli = CommandLine(tmp_path)
    cli.ok("build", f"oci:{tmp_path / 'image'}:{TAG}", "-t", "demo")
    assert cli("trace", "warm", "demo").code == 2
    assert cli("trace", "warm", "demo", "/etc/message", "/no/such/file").code == 3
    assert traces(cli) == []
    (tmp_path / "list").write_text("/etc/message\n\n/no/such/file\n")
    warned = cli("trace", "warm", "demo", "--skip-missing", "--from", tmp_path / "list")
    assert (warned.code, warned.stderr) == (0, "warning: /no/such/file is not in the image\n")
    small = cli.json("trace", "show", "demo")
    cli.ok("trace", "warm", "demo", "/usr")
    large = cli.json("trace", "show", "demo")
    assert large["chunks"] >= small["chunks"]
    cli.ok("trace", "warm", "demo", "/etc/message", "--replace")
    assert cli.json("trace", "show", "demo")["chunks"] == small["chunks"]
    with running(cold(cli), "serve", "demo", "--socket", tmp_path / "s") as (_, uri):
        control = tmp_path / "s.ctl"
        assert stat.S_ISSOCK(control.stat().st_mode)
        offset = run("nbdkit", "-U", "-", "--filter=ext2", "nbd", f"uri={uri}",
                     "ext2file=/etc/message", "--run", 'nbdcopy "$uri" -')  # fmt: skip
        assert offset == "version 1\n"


# -- reports ------------------------------------------------------------------------------------


def figures(page: str) -> list[ET.Element]:
    """The pictures of a page; each has to be sound XML by itself."""
    parts = page.split("<svg ")[1:]
    return [ET.fromstring("<svg " + part.partition("</svg>")[0] + "</svg>") for part in parts]


def test_report_of_two_boots(cli: CommandLine, tmp_path: Path) -> None:
    """A page of one, of a running server, and of two; nothing in it comes from elsewhere."""
    for name in ("cold.json", "warm.json"):
        arguments = ("serve", "vm:1", "--socket", tmp_path / "s", "--stats", tmp_path / name)
        with running(cold(cli), *arguments, "--read-only") as (_, uri):
            boot(uri, READ)
            cli.ok("report", tmp_path / "s", "-o", tmp_path / "live.html")
    cli.ok("report", tmp_path / "cold.json", "-o", tmp_path / "one.html")
    cli.ok("report", tmp_path / "cold.json", tmp_path / "warm.json", "-o", tmp_path / "two.html")
    for name, pictures in (("live", 4), ("one", 4), ("two", 8)):
        page = (tmp_path / f"{name}.html").read_text()
        assert len(figures(page)) == pictures
        assert "vm rootfs.ext4" in page
        assert "http" not in page.replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert "<script" not in page
        ET.parse(io.StringIO(page.replace("<!doctype html>", "")))
    squares = figures((tmp_path / "one.html").read_text())[0].findall("{*}rect")
    assert len(squares) == len(READ)


def test_statistics_that_cannot_be(cli: CommandLine, tmp_path: Path) -> None:
    """A place that cannot be written to is said before anything is served; junk is no report."""
    nowhere = cli("serve", "vm:1", "--socket", tmp_path / "s", "--stats", tmp_path / "no" / "f")
    assert nowhere.code == 3
    assert not (tmp_path / "s").exists()
    for text in ("", "{}", "[]", '{"format": "bootstream/stats", "version": 1, "devices": [{}]}'):
        (tmp_path / "junk").write_text(text)
        result = cli("report", tmp_path / "junk", "-o", tmp_path / "o.html")
        assert (result.code, "Traceback" in result.stderr) == (7, False), text
    (tmp_path / "new").write_text('{"format": "bootstream/stats", "version": 2, "devices": []}')
    assert cli("report", tmp_path / "new", "-o", tmp_path / "o.html").code == 2
    assert cli("report", tmp_path / "none", "-o", tmp_path / "o.html").code == 3
    assert not (tmp_path / "o.html").exists()


json_values = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)


@given(st.data())
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_statistics_say_a_page_is_sound(data: st.DataObject) -> None:
    """Figures from outside are refused, or drawn, as XML that is sound."""
    from bootstream.block.stats import COUNTERS, DeviceStats  # noqa: PLC0415 - for this test
    from bootstream.cli.reportpage import Boot, page  # noqa: PLC0415
    from bootstream.errors import Corrupt  # noqa: PLC0415

    number = st.integers(0, 1 << 20) | st.floats(0, 1e9)
    chunk = st.integers(0, 70)
    document: dict[str, Any] = {
        "size": 64 * CHUNK,
        "chunk_size": CHUNK,
        "ms": 5,
        "counters": dict.fromkeys(COUNTERS, data.draw(number)),
        "touches": data.draw(
            st.lists(st.tuples(number, chunk, chunk, st.integers(0, 3)).map(list))
        ),
        "waits": data.draw(st.lists(st.tuples(number, number, chunk, chunk).map(list))),
        "requests": data.draw(
            st.lists(st.tuples(number, number, chunk, chunk, chunk, st.integers(0, 1)).map(list))
        ),
        "complete": data.draw(st.booleans()),
    }
    if data.draw(st.booleans()):
        document[data.draw(st.sampled_from(sorted(document)))] = data.draw(json_values)
    try:
        stats = DeviceStats.from_json(json.loads(json.dumps(document)), name="s")
    except Corrupt:
        return
    shown = Boot("<a>", "&", "b", "c", "d", '"', stats)
    for boots in ([shown], [shown, shown]):
        ET.fromstring(page(boots).replace("<!doctype html>", ""))
