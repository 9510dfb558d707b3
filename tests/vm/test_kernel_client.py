"""The kernel's NBD client against our server, in a guest: the part that needs a real kernel.

One guest boots for the whole module, with Debian's kernel, its nbd module, Python, and this
package as a zip. An agent in it runs what the tests send over the guest's network, and our
server on this host's loopback address is 10.0.2.2 to it.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from bootstream.block.file import FileDevice
from bootstream.nbd.server import Export, Server
from bootstream.rootfs.ext4.reader import Ext4FileSystem
from bootstream.testing.cli import CommandLine
from bootstream.testing.vm import guest_layout, site_archive

AGENT = Path(__file__).with_name("agent.py")
SIZE = 32 << 20
PRELUDE = """
import os, signal, subprocess, sys, threading, time
from pathlib import Path
from bootstream.errors import *
from bootstream.nbd.kernel.attach import Options, attach, resume
from bootstream.nbd.kernel.control import Control
from bootstream.nbd.kernel.records import Records
from bootstream.nbd.kernel.sysfs import Sysfs
from bootstream.nbd.kernel.teardown import clean, detach
from bootstream.nbd.kernel.watch import Watch

records = Records(Path("/run/bootstream-test/attachments"))
sysfs = Sysfs()
BOOTSTREAM = [sys.executable, "-m", "bootstream"]

def until(condition, seconds=20):
    limit = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < limit, "it did not come true in time"
        time.sleep(0.02)
    return found

def refused(kind, call, *arguments, **options):
    try:
        call(*arguments, **options)
    except kind as error:
        return str(error)
    raise AssertionError(f"{kind.__name__} was expected")

def shell(command):
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout
"""


class Guest:
    """What runs in the guest, as methods."""

    def __init__(self, lines: IO[str]) -> None:
        self._lines = lines

    def shell(self, command: str) -> tuple[int, str]:
        """Run a shell command; return its code and output."""
        return self._ask(shell=command)

    def python(self, code: str) -> str:
        """Run Python, with the names of what ran before; return what it printed."""
        failed, said = self._ask(python=code)
        assert not failed, f"{said}{self.shell('dmesg | tail -n 20')[1]}"
        return said

    def _ask(self, **request: str) -> tuple[int, str]:
        self._lines.write(json.dumps(request) + "\n")
        self._lines.flush()
        answer = json.loads(self._lines.readline())
        return answer["code"], answer["out"]


class Served:
    """A disk on this host with an ext4 file system, served on one port, again and again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("wb") as file:
            file.truncate(SIZE)
        subprocess.run(["mkfs.ext4", "-q", "-F", path], check=True, timeout=20)
        self.port = 0
        self._server: Server | None = None
        self._device: FileDevice | None = None
        self.start()

    @property
    def uri(self) -> str:
        return f"nbd://10.0.2.2:{self.port}/"

    def start(self) -> None:
        self._device = FileDevice(self.path, writable=True)
        self._server = Server({"disk": Export(self._device)}, default="disk")
        uri = self._server.listen_tcp("127.0.0.1", self.port)
        self.port = int(uri.rstrip("/").rpartition(":")[2])
        self._server.start()

    def stop(self) -> None:
        if self._server is not None and self._device is not None:
            self._server.close()
            self._device.close()
        self._server = self._device = None

    def read(self, name: str) -> bytes:
        """Return a file of the file system, read by ourselves."""
        with contextlib.closing(FileDevice(self.path)) as device:
            system = Ext4FileSystem(device.read_into, device.size)
            with system.open(name.encode()) as file:
                return file.read()


@pytest.fixture(scope="module")
def template(cli: CommandLine, images: Path) -> str:
    """The guest's image as a template."""
    cli.ok("build", f"oci:{guest_layout(images)}:bookworm", "-t", "guest")
    return "guest"


@pytest.fixture(scope="module")
def guest(cli: CommandLine, template: str, kernel: Path) -> Iterator[Guest]:
    """The guest, up, its agent connected; it ends when the connection does."""
    site = cli.folder / "site.zip"
    site.write_bytes(site_archive())
    with socket.create_server(("127.0.0.1", 0)) as listening, contextlib.ExitStack() as stack:
        port = listening.getsockname()[1]
        listening.settimeout(50)
        variables = (
            "PYTHONPATH=/run/bootstream/site.zip PYTHONDONTWRITEBYTECODE=1 "
            "BOOTSTREAM_RUNTIME_DIR=/run/bootstream-test"
        )
        process = cli.start(
            *("boot", template, "--kernel", kernel, "--network", "--module", "nbd"),
            *("--file", site, "--file", AGENT, "--memory", "256M", "--time-limit", "300s"),
            *("--cmd", f"{variables} python3 /run/bootstream/agent.py 10.0.2.2 {port}"),
        )
        try:
            connection = stack.enter_context(listening.accept()[0])
            connection.settimeout(28)
            lines = stack.enter_context(connection.makefile("rw"))
            assert lines.readline() == "ready\n"
            guest = Guest(lines)
            guest.python(PRELUDE)
            yield guest
        except TimeoutError:
            process.terminate()
            raise AssertionError(f"the guest did not come up: {process.communicate()}") from None
        finally:
            stack.close()
            if process.poll() is None:
                try:
                    process.communicate(timeout=20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.communicate()
        assert process.returncode == 0


@pytest.fixture
def served(guest: Guest, tmp_path: Path) -> Iterator[Served]:
    """A disk that is served."""
    served = Served(tmp_path / "disk")
    yield served
    # After a failure, so that it stays the only one.
    guest.shell("umount /mnt 2>/dev/null")
    guest.python(
        "for device in sysfs.devices():\n if device.pid: Control().disconnect(device.index)"
    )
    guest.python("clean(records, force=True)")
    served.stop()


def test_the_template_is_built(template: str, kernel: Path) -> None:
    """The image is a template, and there is a kernel: nothing of it is boot time."""
    assert template
    assert kernel.is_dir()


@pytest.mark.timeout(60)  # the boot of all others: 4 s alone, 24 s with four busy loops
def test_the_guest_is_up(guest: Guest) -> None:
    """The driver is there, and nothing is attached."""
    assert guest.python("print(Control().status()[0], list(records.all()))") == "False []\n"


def test_attach_mount_write_detach(guest: Guest, served: Served) -> None:
    """A device on two connections: checked, mounted, written to, and let go of.

    It is refused to be detached while mounted; what was written is in the image then.
    """
    said = guest.python(
        f"""
a = attach({served.uri!r}, records, Options(connections=2), label="disk")
device = sysfs.device(a.index)
assert device.backend == a.record.identifier, device
assert device.size == {SIZE}, device
assert records.find(sysfs.device(a.index)).owned
assert refused(AlreadyExists, attach, {served.uri!r}, records, Options(index=a.index))
assert len(records.all()) == 1
shell(f"e2fsck -fn {{a.path}}")
shell(f"mount {{a.path}} /mnt && echo from the guest > /mnt/note")
shell("head -c 3000000 /dev/zero > /mnt/big")
assert a.users() == ["mounted on /mnt"], a.users()
assert "mounted on /mnt" in refused(Conflict, detach, a.index, records)
assert a.connected
shell("umount /mnt")
a.detach()
assert sysfs.device(a.index).pid is None
assert not records.all()
print(a.record.connections)
"""
    )
    assert said == "2\n"
    served.stop()
    assert served.read("/note") == b"from the guest\n"
    assert served.read("/big") == bytes(3_000_000)
    subprocess.run(["e2fsck", "-fn", served.path], check=True, capture_output=True, timeout=20)


def test_a_device_that_may_only_be_read(guest: Guest, served: Served) -> None:
    """The kernel refuses writes where that was asked for; sizes are those of the export."""
    guest.python(
        f"""
a = attach({served.uri!r}, records, Options(read_only=True, connections=1, block_size=1024))
assert sysfs.device(a.index).read_only
shell(f"mount -o ro,noload {{a.path}} /mnt && ls /mnt/lost+found && umount /mnt")
assert open(f"/sys/block/nbd{{a.index}}/queue/logical_block_size").read() == "1024\\n"
a.detach()
assert refused(InvalidInput, attach, {served.uri!r}, records, Options(block_size=8192))
assert not records.all()
"""
    )


def test_the_server_restarts_under_a_mounted_device(guest: Guest, served: Served) -> None:
    """Writes wait while the server is gone, and nobody above the device notices."""
    guest.python(
        f"""
a = attach({served.uri!r}, records, Options(timeout=2, dead_timeout=60))
lost, back, done = threading.Event(), threading.Event(), threading.Event()
watch = Watch(a, on_lost=lost.set, on_back=back.set)
watch.__enter__()
shell(f"mount {{a.path}} /mnt && echo before > /mnt/before && sync")
"""
    )
    served.stop()
    guest.python(
        """
assert lost.wait(20)
writing = threading.Thread(target=lambda: (shell("echo during > /mnt/during && sync"), done.set()))
writing.start()
assert not back.is_set() and not done.is_set()
"""
    )
    served.start()
    guest.python(
        """
assert back.wait(20)
assert done.wait(25)
writing.join()
shell("cat /mnt/before /mnt/during && umount /mnt")
watch.__exit__(None, None, None)
a.detach()
"""
    )
    served.stop()
    assert served.read("/during") == b"during\n"


def test_served_and_attached_by_one_process(guest: Guest, served: Served) -> None:
    """The kernel's requests are answered by the process that waits for the kernel.

    Over a unix socket inside the guest; the disk is a file there.
    """
    del served  # only what it cleans up after
    guest.python(
        """
from bootstream.block.file import FileDevice
from bootstream.nbd.server import Export, Server
with open("/run/disk", "wb") as file:
    file.truncate(16 << 20)
shell("mkfs.ext4 -q -F /run/disk")
device = FileDevice(Path("/run/disk"), writable=True)
with Server({"disk": Export(device)}, default="disk") as server:
    uri = server.listen_unix("/run/disk.sock")
    server.start()
    a = attach(uri, records, Options(connections=3))
    with Watch(a):
        shell(f"mount {a.path} /mnt && head -c 4000000 /dev/urandom > /mnt/x && sync")
        summed = shell("sha256sum < /mnt/x && umount /mnt")
    a.detach()
    a = attach(uri, records, Options(connections=1, read_only=True))
    assert shell(f"mount -o ro,noload {a.path} /mnt && sha256sum < /mnt/x && umount /mnt") == summed
    a.detach()
device.close()
os.unlink("/run/disk")
"""
    )


def test_killed_before_it_knew_its_device(guest: Guest, served: Served) -> None:
    """Between the kernel's answer and the record: the identifier alone leads to the device."""
    guest.python(
        f"""
from dataclasses import replace
a = attach({served.uri!r}, records)
index = a.index
a.owned.update(replace(a.record, index=None))
a.abandon()
(done,) = clean(records)
assert (done.state, done.record.index) == ("detached", index), done
assert sysfs.device(index).pid is None
"""
    )


def test_who_may_not_attach(guest: Guest, served: Served) -> None:
    """Anyone but root is told so, and leaves nothing."""
    code, said = guest.shell(
        "BOOTSTREAM_RUNTIME_DIR=/tmp/nobody setpriv --reuid 65534 --clear-groups "
        f"python3 -m bootstream attach {served.uri}; echo $?; ls -A /tmp/nobody/attachments"
    )
    assert code == 0
    assert "only root may administer" in said
    assert said.endswith("\n5\n")


def test_what_a_killed_process_leaves(guest: Guest, served: Served) -> None:
    """Its device is found, left alone while mounted, and cleaned; others' are never touched."""
    guest.python(
        f"""
mine = attach({served.uri!r}, records, label="mine")
command = [*BOOTSTREAM, "attach", {served.uri!r}, "--read-only"]
child = subprocess.Popen(command, stdout=subprocess.PIPE)
path = child.stdout.readline().decode().strip()
index = int(path.removeprefix("/dev/nbd"))
assert index != mine.index
assert records.find(sysfs.device(index)).owned
child.kill()
child.wait()
assert not records.find(sysfs.device(index)).owned
assert sysfs.device(index).pid is not None
shell(f"mount -o ro,noload {{path}} /mnt")
(busy,) = clean(records)
assert (busy.state, busy.record.index, busy.users) == ("busy", index, ("mounted on /mnt",)), busy
shell("umount /mnt")
"""
    )
    listed = json.loads(guest.shell("python3 -m bootstream attach --list --json")[1])
    assert sorted(one["state"] for one in listed) == ["abandoned", "attached"]
    guest.python(
        """
(done,) = clean(records)
assert (done.state, done.record.index) == ("detached", index), done
assert sysfs.device(index).pid is None
assert mine.connected
mine.detach()
assert not records.all()
"""
    )


def test_a_device_of_another_program(guest: Guest, served: Served) -> None:
    """It has no record here: it is neither cleaned nor detached, with --force neither."""
    guest.python(
        f"""
from dataclasses import replace
a = attach({served.uri!r}, records)
a.owned.path.unlink()  # as if another container had it
assert clean(records, force=True) == []
assert "another program" in refused(Conflict, detach, a.index, records, force=True)
assert a.connected
a.detach()
"""
    )


def test_taking_over_what_was_left(guest: Guest, served: Served) -> None:
    """The owner was killed, the server was stopped: both come back, the mount is whole."""
    guest.python(
        f"""
code = '''
import os, signal, sys
from pathlib import Path
from bootstream.nbd.kernel.attach import Options, attach
from bootstream.nbd.kernel.records import Records
a = attach(sys.argv[1], Records(Path(sys.argv[2])), Options(timeout=2, dead_timeout=60))
print(a.index, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
'''
run = [sys.executable, "-c", code, {served.uri!r}, str(records.folder)]
index = int(subprocess.run(run, capture_output=True, text=True).stdout)
shell(f"mount /dev/nbd{{index}} /mnt && echo kept > /mnt/kept && sync")
"""
    )
    served.stop()
    served.start()
    guest.python(
        """
a = resume(index, records)
assert refused(Conflict, resume, index, records)
shell("echo more > /mnt/more && sync && umount /mnt")
a.detach()
assert not records.all()
"""
    )
    served.stop()
    assert (served.read("/kept"), served.read("/more")) == (b"kept\n", b"more\n")


def test_the_verbs(guest: Guest, served: Served) -> None:
    """``attach`` ends when ``detach`` ends its device; on SIGTERM it detaches by itself."""
    said = guest.python(
        f"""
command = [*BOOTSTREAM, "attach", {served.uri!r}]
child = subprocess.Popen([*command, "--device", "nbd7"], stdout=subprocess.PIPE)
assert child.stdout.readline() == b"/dev/nbd7\\n"
detach(7, records)
assert child.wait(20) == 0
child = subprocess.Popen(command, stdout=subprocess.PIPE)
path = child.stdout.readline().decode().strip()
child.send_signal(signal.SIGTERM)
assert child.wait(20) == 0
assert sysfs.device(int(path.removeprefix("/dev/nbd"))).pid is None
assert not records.all()
print(subprocess.run([*BOOTSTREAM, "detach", "nbd7"], capture_output=True).returncode)
"""
    )
    assert said == "3\n"
