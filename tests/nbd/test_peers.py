"""The server, met by clients that we did not write: libnbd, QEMU, fio."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bootstream.errors import Unavailable
from bootstream.nbd.server import Export, Server
from bootstream.testing.memory_device import MemoryDevice

MIB = 1 << 20


def run(*command: str | Path, timeout: float = 25) -> str:
    result = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    assert result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"
    return result.stdout


def nbdsh(uri: str, script: str) -> str:
    """Run a script with libnbd's own handle ``h``, not yet connected, strict checks off."""
    prelude = "import nbd, sys, errno\nh = nbd.NBD()\nuri = sys.argv[1]\n"
    return run("/usr/bin/python3", "-c", prelude + script, uri)


def sparse_image() -> bytes:
    """Four MiB: data, a hole of a MiB, and short pieces of both."""
    noise = random.Random(7).randbytes(MIB)
    return noise + bytes(MIB) + (noise[:4096] + bytes(12288)) * 64 + noise[: MIB - 5] + b"tail!"


@contextmanager
def serving(folder: Path, **devices: MemoryDevice) -> Iterator[str]:
    exports = {name: Export(device, f"about {name}") for name, device in devices.items()}
    with Server(exports, default=next(iter(exports))) as server:
        uri = server.listen_unix(str(folder / "s"))
        server.start()
        yield uri


@pytest.fixture
def device() -> MemoryDevice:
    return MemoryDevice(sparse_image())


def named(uri: str, name: str) -> str:
    return uri.replace("///", f"///{name}")


def test_nbdinfo(tmp_path: Path, device: MemoryDevice) -> None:
    """Every flag of a writable and of a read-only export, names and descriptions."""
    with serving(tmp_path, disk=device, cd=MemoryDevice(513, writable=False)) as uri:
        listed = json.loads(run("nbdinfo", "--json", "--list", uri))
        assert listed["protocol"] == "newstyle-fixed"
        assert listed["structured"] is True
        disk, cd = (
            json.loads(run("nbdinfo", "--json", named(uri, name)))["exports"][0]
            for name in ("disk", "cd")
        )
        names = {e["export-name"]: e.get("description") for e in listed["exports"]}
    assert names == {"disk": "about disk", "cd": "about cd"}
    can = {key for key, value in disk.items() if value is True}
    assert can == {
        "can_cache",
        "can_df",
        "can_fast_zero",
        "can_flush",
        "can_fua",
        "can_multi_conn",
        "can_trim",
        "can_zero",
    }
    assert {k for k, v in cd.items() if v is True} == {
        "can_cache",
        "can_df",
        "can_multi_conn",
        "is_read_only",
    }
    assert (disk["export-size"], cd["export-size"]) == (4 * MIB, 513)
    assert disk["contexts"] == ["base:allocation"]
    assert (disk["block_size_minimum"], disk["block_size_maximum"]) == (1, 32 * MIB)


def test_map(tmp_path: Path, device: MemoryDevice) -> None:
    """Block status is the device's extents, whole and in order."""
    with serving(tmp_path, disk=device) as uri:
        found = json.loads(run("nbdinfo", "--map", "--json", uri))
    expected, offset = [], 0
    for extent in device.extents(0, device.size):
        expected.append((offset, extent.length, 3 if extent.zero else 0))
        offset += extent.length
    assert [(e["offset"], e["length"], e["type"]) for e in found] == expected
    assert len(expected) > 100


@pytest.mark.parametrize("arguments", [[], ["--no-extents"], ["--request-size=65536", "-C", "4"]])
def test_nbdcopy_reads(tmp_path: Path, device: MemoryDevice, arguments: list[str]) -> None:
    """The same bytes, with block status, with sparse reads, over several connections."""
    with serving(tmp_path, disk=device) as uri:
        run("nbdcopy", *arguments, uri, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == device.data


def test_nbdcopy_writes(tmp_path: Path) -> None:
    """Data, zeroes and a flush arrive, over several connections."""
    image = sparse_image()
    (tmp_path / "image").write_bytes(image)
    target = MemoryDevice(b"\xff" * len(image))
    with serving(tmp_path, disk=target) as uri:
        run("nbdcopy", "--flush", "-C", "4", tmp_path / "image", uri)
        assert target.flushed == image


def test_cold_device(tmp_path: Path, device: MemoryDevice) -> None:
    """All through workers, whose replies come in any order."""
    device.cold_from = 0
    with serving(tmp_path, disk=device) as uri:
        run("nbdcopy", uri, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == device.data


def test_libnbd_commands(tmp_path: Path, device: MemoryDevice) -> None:
    """Every command and flag through libnbd, which checks every reply."""
    before = bytes(device.data)
    script = f"""
h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.connect_uri(uri)
h.set_strict_mode(0)
size = h.get_size()
assert size == {4 * MIB}
assert h.get_structured_replies_negotiated() and h.can_df() and h.can_fast_zero()
data = open({str(tmp_path / "image")!r}, "rb").read()

def fails(number, call, *args, **kw):
    try:
        call(*args, **kw)
    except nbd.Error as error:
        assert error.errnum == number, (error.errnum, number, error.string)
    else:
        raise AssertionError("it worked")

for offset, length in ((0, 1), (1, 4095), ({MIB} - 7, 70000), ({MIB}, {MIB}), (size - 5, 5)):
    want = data[offset:offset + length]
    assert h.pread(length, offset) == want
    assert h.pread(length, offset, nbd.CMD_FLAG_DF) == want
    chunks = []
    def chunk(buf, at, status, error):
        chunks.append((at, len(buf), status, bytes(buf)))
    h.pread_structured(length, offset, chunk)
    whole = bytearray(length)
    for at, n, status, got in chunks:
        if status == nbd.READ_DATA:
            whole[at - offset:at - offset + n] = got
    assert whole == want
    if (offset, length) == ({MIB}, {MIB}):
        assert [c[2] for c in chunks] == [nbd.READ_HOLE]
    chunks.clear()
    h.pread_structured(length, offset, chunk, nbd.CMD_FLAG_DF)
    assert len(chunks) == 1 and chunks[0][2] == nbd.READ_DATA

found = []
def extents(context, offset, entries, error):
    assert context == "base:allocation"
    found.append((offset, entries))
h.block_status(size, 0, extents)
assert sum(found[0][1][0::2]) == size
found.clear()
h.block_status(size - {MIB}, {MIB}, extents, nbd.CMD_FLAG_REQ_ONE)
assert found == [({MIB}, [{MIB}, 3])], found
fails(errno.EINVAL, h.block_status, 0, 0, extents)
fails(errno.EINVAL, h.block_status, 2, size - 1, extents)

h.pwrite(b"x" * 5000, 3)
h.pwrite(b"y" * 10, size - 10, nbd.CMD_FLAG_FUA)
assert h.pread(5000, 3) == b"x" * 5000
h.zero(100, 50)
h.zero(100, 200, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
h.zero(100, 400, nbd.CMD_FLAG_FAST_ZERO)
h.zero(2 * {MIB}, {MIB}, nbd.CMD_FLAG_FUA)
fails(errno.EOPNOTSUPP, h.zero, 100, 400, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE)
h.trim(4096, 600000, nbd.CMD_FLAG_FUA)
h.cache(size, 0)
h.flush()
fails(errno.EINVAL, h.pread, 2, size - 1)
fails(errno.ENOSPC, h.pwrite, b"zz", size - 1)
fails(errno.ENOSPC, h.zero, 2, size - 1)
fails(errno.EINVAL, h.trim, 2, size - 1)
fails(errno.EINVAL, h.cache, 2, size - 1)
fails(errno.EINVAL, h.trim, 2, 0, nbd.CMD_FLAG_NO_HOLE)
fails(errno.EINVAL, h.flush, nbd.CMD_FLAG_REQ_ONE)
assert h.pread(5, size - 15) == data[size - 15:size - 10]
h.shutdown()
"""
    (tmp_path / "image").write_bytes(before)
    with serving(tmp_path, disk=device) as uri:
        nbdsh(uri, script)
    assert device.data[3:50] == b"x" * 47
    for zeroed in (50, 200, 400):
        assert not any(device.data[zeroed : zeroed + 100])
        assert device.data[zeroed + 100 : zeroed + 150] == b"x" * 50
    assert not any(device.data[MIB : 3 * MIB])
    assert not any(device.data[600000:604096])
    assert device.flushed[-10:] == b"y" * 10


def test_libnbd_negotiations(tmp_path: Path, device: MemoryDevice) -> None:
    """Options one by one; clients with less of the protocol; names that are not there."""
    script = """
h.set_opt_mode(True)
h.connect_uri(uri)
names = []
h.opt_list(lambda name, description: names.append((name, description)))
assert names == [("disk", "about disk"), ("cd", "about cd")], names
contexts = []
h.add_meta_context("base:")
h.opt_list_meta_context(lambda name: contexts.append(name))
assert contexts == ["base:allocation"]
h.set_export_name("cd")
h.opt_info()
assert h.get_size() == 513 and h.is_read_only()
h.set_export_name("nope")
try:
    h.opt_info()
    raise AssertionError
except nbd.Error as error:
    assert error.errnum == errno.ENOENT
h.set_export_name("disk")
h.clear_meta_contexts()
h.opt_go()
assert h.get_size() == 4 << 20 and not h.can_meta_context("base:allocation")
h.shutdown()

h = nbd.NBD()
h.set_request_structured_replies(False)
h.connect_uri(uri)
assert not h.can_df()
h.set_strict_mode(0)
assert len(h.pread(1 << 20, 0)) == 1 << 20
try:
    h.pread(2, (4 << 20) - 1)
    raise AssertionError
except nbd.Error as error:
    assert error.errnum == errno.EINVAL
h.pwrite(b"q", 0)
assert h.pread(1, 0) == b"q"
h.shutdown()

h = nbd.NBD()
h.set_handshake_flags(0)
h.set_full_info(True)
h.connect_uri(uri)
assert h.pread(1, 0) == b"q"
h.shutdown()

h = nbd.NBD()
h.set_opt_mode(True)
h.connect_uri(uri)
h.opt_abort()

h = nbd.NBD()
h.set_tls(nbd.TLS_REQUIRE)
try:
    h.connect_uri(uri)
    raise AssertionError
except nbd.Error:
    pass
"""
    with serving(tmp_path, disk=device, cd=MemoryDevice(513, writable=False)) as uri:
        nbdsh(uri, script)


def test_qemu(tmp_path: Path, device: MemoryDevice) -> None:
    """qemu-img compares, converts and maps; qemu-io writes, zeroes, discards, flushes."""
    (tmp_path / "image").write_bytes(device.data)
    with serving(tmp_path, disk=device, cd=MemoryDevice(sparse_image(), writable=False)) as uri:
        raw = ("-f", "raw")
        run("qemu-img", "compare", *raw, "-F", "raw", uri, tmp_path / "image")
        run("qemu-img", "convert", *raw, "-O", "qcow2", named(uri, "cd"), tmp_path / "qcow2")
        run("qemu-img", "compare", *raw, "-F", "qcow2", uri, tmp_path / "qcow2")
        entries = json.loads(run("qemu-img", "map", *raw, "--output=json", uri))
        assert {(e["start"], e["zero"]) for e in entries} >= {(0, False), (MIB, True)}
        commands = (
            "write -P 7 64k 4k",
            "write -P 8 -f 1 512",
            "read -P 7 64k 4k",
            "write -z 128k 64k",
            "write -z -u 192k 64k",
            "discard 256k 64k",
            "flush",
            "read -P 0 128k 192k",
            "aio_write -P 9 1M 2M",
            "aio_read -P 9 1M 64k",
            "aio_flush",
        )
        arguments = [part for command in commands for part in ("-c", command)]
        said = run("qemu-io", *raw, *arguments, uri)
        assert "failed" not in said
        refused = subprocess.run(
            ["qemu-io", "-r", *raw, "-c", "write 0 512", named(uri, "cd")],
            capture_output=True,
            text=True,
            check=False,
        )
        assert refused.returncode != 0
    assert device.data[MIB : 3 * MIB] == b"\x09" * (2 * MIB)


def test_fio_verifies(tmp_path: Path) -> None:
    """Random writes of odd sizes at depth 16, read back and checked by fio."""
    device = MemoryDevice(16 * MIB)
    with serving(tmp_path, disk=device) as uri:
        job = ["fio", "--name=v", "--ioengine=nbd", f"--uri={uri}", "--rw=randrw", "--size=16m"]
        size = ["--bsrange=512-64k", "--bs_unaligned", "--iodepth=16", "--io_size=32m"]
        check = ["--verify=crc32c", "--verify_backlog=64", "--do_verify=1", "--randrepeat=1"]
        # Or it leaves a file in the current folder.
        check.append("--verify_state_save=0")
        said = run(*job, *size, *check, "--output-format=json")
    result = json.loads(said[said.index("{") :])["jobs"][0]
    assert result["error"] == 0
    assert result["read"]["total_ios"] > 100


def test_input_errors_and_recovery(tmp_path: Path, device: MemoryDevice) -> None:
    """A guest sees EIO while the device fails, and goes on afterwards on the same connection."""
    script = """
h.connect_uri(uri)
h.pread(512, 0)
print("ready", flush=True)
assert sys.stdin.readline() == "broken\\n"
for call in (lambda: h.pread(512, 0), lambda: h.pwrite(b"x" * 512, 0), lambda: h.flush()):
    try:
        call()
        raise AssertionError
    except nbd.Error as error:
        assert error.errnum == errno.EIO
print("seen", flush=True)
assert sys.stdin.readline() == "mended\\n"
assert len(h.pread(512, 0)) == 512
h.shutdown()
"""
    prelude = "import nbd, sys, errno\nh = nbd.NBD()\nuri = sys.argv[1]\n"
    with serving(tmp_path, disk=device) as uri:
        command = ["/usr/bin/python3", "-c", prelude + script, uri]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            device.failure = Unavailable("the network is down")
            process.stdin.write("broken\n")
            process.stdin.flush()
            assert process.stdout.readline() == "seen\n"
            device.failure = None
            process.stdin.write("mended\n")
            process.stdin.flush()
            assert process.wait(20) == 0


def test_close_while_nbdcopy_reads(tmp_path: Path, device: MemoryDevice) -> None:
    """The copy fails at once with an error of its own; the server is gone, cleanly."""
    device.cold_from = 2 * MIB
    device.gate.clear()
    with serving(tmp_path, disk=device) as uri:
        copy = subprocess.Popen(
            ["nbdcopy", "--no-extents", "--request-size=65536", uri, tmp_path / "copy"],
            stderr=subprocess.PIPE,
        )
        assert device.waiting.acquire(timeout=10)
        threading.Timer(0.1, device.gate.set).start()
    _, said = copy.communicate(timeout=20)
    assert copy.returncode in (0, 1), said
    assert copy.returncode == 0 or said
    assert not (tmp_path / "s").exists()


def test_a_killed_client_leaves_nothing(tmp_path: Path, device: MemoryDevice) -> None:
    """kill -9 within a read; the next client is served."""
    device.cold_from = 0
    device.gate.clear()
    with serving(tmp_path, disk=device) as uri:
        copy = subprocess.Popen(["nbdcopy", uri, tmp_path / "copy"])
        assert device.waiting.acquire(timeout=10)
        copy.send_signal(signal.SIGKILL)
        copy.wait(10)
        device.gate.set()
        run("nbdcopy", uri, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == device.data


def test_tcp(tmp_path: Path, device: MemoryDevice) -> None:
    """The same over TCP, both families, by the URI that was given."""
    with Server({"disk": Export(device)}, default="disk") as server:
        uris = [server.listen_tcp("127.0.0.1", 0), server.listen_tcp("::1", 0)]
        server.start()
        for number, uri in enumerate(uris):
            run("nbdcopy", uri + "disk", tmp_path / f"copy{number}")
            assert (tmp_path / f"copy{number}").read_bytes() == device.data
