"""Who attached what: records, and devices as a made-up ``/sys`` shows them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bootstream.errors import AlreadyExists, InvalidInput, NotFound
from bootstream.nbd.kernel import attach as attaching
from bootstream.nbd.kernel.attach import Options, resume
from bootstream.nbd.kernel.records import Record, Records, carries
from bootstream.nbd.kernel.sysfs import Device, Sysfs
from bootstream.nbd.kernel.teardown import clean

LEAVE = """
import os, signal, sys
from pathlib import Path
from dataclasses import replace
from bootstream.nbd.kernel.records import Records
owned = Records(Path(sys.argv[1])).create(uri="nbd://127.0.0.1/", label="left", thread=1)
owned.update(replace(owned.record, index=int(sys.argv[2])))
print(owned.record.identifier, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def left(folder: Path, index: int) -> str:
    """A record whose process was killed; returns its identifier."""
    result = subprocess.run(
        [sys.executable, "-c", LEAVE, str(folder), str(index)],
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )
    assert result.returncode == -signal.SIGKILL, result.stderr
    return result.stdout.strip()


def device(root: Path, index: int, *, backend: str | None = None, pid: int = 4711) -> Sysfs:
    """Add a connected device to a made-up host."""
    folder = root / "sys" / "block" / f"nbd{index}"
    (folder / "holders").mkdir(parents=True)
    (folder / "pid").write_text(f"{pid}\n")
    (folder / "size").write_text("2048\n")
    (folder / "ro").write_text("0\n")
    (folder / "dev").write_text(f"43:{32 * index}\n")
    if backend is not None:
        (folder / "backend").write_text(f"{backend}\n")
    (root / "proc" / "self").mkdir(parents=True, exist_ok=True)
    return Sysfs(root / "sys", root / "proc")


def test_a_living_process_owns_its_record(tmp_path: Path) -> None:
    """It shows as owned, is not adopted, and goes with its attachment."""
    records = Records(tmp_path / "run")
    owned = records.create(uri="nbd://127.0.0.1/", label="debian", thread=7)
    owned.update(Record(owned.record.identifier, "nbd://127.0.0.1/", "debian", os.getpid(), 7, 3))
    (found,) = records.all()
    assert found.owned
    assert found.record == owned.record
    there = Device(3, 1, owned.record.identifier, 4096, read_only=False)
    assert records.find(there) == found
    assert records.adopt(found.path) is None
    assert list(records.abandoned()) == []
    owned.close(remove=True)
    assert records.all() == []
    assert records.find(there) is None


def test_a_killed_process_leaves_its_record(tmp_path: Path) -> None:
    """Whoever looks sees that nobody owns it, and one of them may take it over."""
    identifier = left(tmp_path, 2)
    records = Records(tmp_path)
    found = records.find(Device(2, 1, identifier, 4096, read_only=False))
    assert found is not None
    assert not found.owned
    owned = records.adopt(found.path)
    assert owned is not None
    assert owned.record.identifier == identifier
    assert records.adopt(found.path) is None
    owned.close(remove=False)
    assert [one.record.index for one in records.abandoned()] == [2]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"identifier": 1}', b"\xff", b'{"identifier":"x"}']
)
def test_records_that_are_none(content: bytes, tmp_path: Path) -> None:
    """What a process left that died too soon is removed by who cleans up."""
    path = tmp_path / "bootstream-00000000-0000-4000-8000-000000000000.json"
    path.write_bytes(content)
    (tmp_path / "README").write_text("not a record")
    records = Records(tmp_path)
    assert [found.record for found in records.all()] == [None]
    assert list(records.abandoned()) == []
    assert [p.name for p in tmp_path.iterdir()] == ["README"]


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    """No folder is no records; a file in its place is an error that names it."""
    assert Records(tmp_path / "missing").all() == []
    (tmp_path / "file").write_text("")
    with pytest.raises(AlreadyExists, match="file"):
        Records(tmp_path / "file").create(uri="nbd://127.0.0.1/", label="x", thread=1)


def test_devices_of_others_are_not_ours(tmp_path: Path) -> None:
    """The identifier decides; the number and the process do where the kernel has none."""
    sysfs = device(tmp_path, 0, backend="bootstream-1", pid=10)
    device(tmp_path, 1, backend="somebody", pid=10)
    device(tmp_path, 2, pid=10)
    record = Record("bootstream-1", "nbd://127.0.0.1/", "x", 10, 10, index=2)
    assert [one.index for one in sysfs.devices() if carries(one, record)] == [0, 2]
    assert not carries(Device(2, None, "bootstream-1", 0, read_only=False), record)
    assert not carries(Device(2, 11, None, 0, read_only=False), record)


def test_who_uses_a_device(tmp_path: Path) -> None:
    """Mounts of it and its partitions, swap, devices upon it, open descriptors."""
    sysfs = device(tmp_path, 1)
    proc = tmp_path / "proc"
    part = tmp_path / "sys/block/nbd1/nbd1p2"
    part.mkdir()
    (part / "dev").write_text("43:34\n")
    (tmp_path / "sys/block/nbd1/holders/dm-0").mkdir()
    (proc / "self/mountinfo").write_text(
        "22 1 254:0 / / rw - ext4 /dev/vda rw\n"
        "30 22 43:32 / /mnt/a\\040b rw - ext4 /dev/nbd1 rw\n"
        "31 22 43:34 / /mnt/part rw - ext4 /dev/nbd1p2 rw\n"
    )
    (proc / "swaps").write_text("Filename Type\n/dev/nbd1p3 partition\n/dev/nbd10 partition\n")
    (proc / "99/fd").mkdir(parents=True)
    (proc / "99/comm").write_text("qemu\n")
    (proc / "99/fd/5").symlink_to("/dev/nbd1")
    (proc / "98/fd").mkdir(parents=True)
    (proc / "98/fd/5").symlink_to("/dev/nbd11")
    assert sysfs.users(1) == [
        "mounted on /mnt/a b",
        "mounted on /mnt/part",
        "swap /dev/nbd1p3",
        "below dm-0",
        "opened by qemu (pid 99)",
    ]


def test_cleaning_what_needs_no_kernel(tmp_path: Path) -> None:
    """A record whose device went is dropped; a device in use is reported and left."""
    gone = left(tmp_path / "run", 5)
    busy = left(tmp_path / "run", 6)
    sysfs = device(tmp_path, 6, backend=busy)
    device(tmp_path, 5, backend="somebody else's now")
    (tmp_path / "proc/77/fd").mkdir(parents=True)
    (tmp_path / "proc/77/fd/3").symlink_to("/dev/nbd6")
    records = Records(tmp_path / "run")
    done = {one.record.identifier: one for one in clean(records, sysfs=sysfs)}
    assert done[gone].state == "gone"
    assert done[busy].state == "busy"
    assert done[busy].users == ("opened by a process (pid 77)",)
    assert [found.record.identifier for found in records.all() if found.record] == [busy]


def test_resuming_what_is_not_there(tmp_path: Path) -> None:
    """A device that nobody left cannot be taken over."""
    with pytest.raises(NotFound, match="/dev/nbd4"):
        resume(4, Records(tmp_path), sysfs=device(tmp_path, 4, backend="somebody"))


@pytest.mark.parametrize("count", [0, 33])
def test_impossible_counts_of_connections(count: int, tmp_path: Path) -> None:
    """Refused before anything is touched."""
    with pytest.raises(InvalidInput, match="connections"):
        attaching.attach("nbd://127.0.0.1/", Records(tmp_path), Options(connections=count))
    assert list(tmp_path.iterdir()) == []
