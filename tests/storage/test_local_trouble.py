"""The store in a folder in trouble: permissions, full disks, killed and racing processes."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from bootstream.errors import (
    AlreadyExists,
    BootstreamError,
    BucketNotFound,
    InvalidInput,
    ObjectNotFound,
    PermissionDenied,
    StorageFull,
    Unavailable,
)
from bootstream.storage.local import LocalStorageProvider
from bootstream.storage.oserrors import storage_error
from bootstream.testing.storage import PatternSource, content, paths

NOW = timedelta(0)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(root: Path) -> LocalStorageProvider:
    return LocalStorageProvider(root)


def everything(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


# -- permissions and disks -------------------------------------------------------------------


@pytest.fixture
def unprivileged(foreign: Path) -> Iterator[None]:
    """Root lays its powers down for a test, once the folder is made."""
    assert foreign.is_dir()
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    yield
    if before == 0:
        os.seteuid(before)


@pytest.fixture
def foreign() -> Iterator[Path]:
    """Another user's store, where everyone can reach it, which pytest's own folders are not."""
    folder = Path(tempfile.mkdtemp(prefix="bootstream-test-"))
    if os.geteuid() == 0:
        shutil.chown(folder, 65534)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.usefixtures("unprivileged")
def test_read_only_store(foreign: Path) -> None:
    """Reading works; writing is denied, with the variable to set."""
    store = LocalStorageProvider(foreign)
    store.open_object("a/b").put(b"x")
    (foreign / "a").chmod(0o500)
    foreign.chmod(0o500)
    try:
        assert content(store, "a/b") == b"x"
        assert paths(store) == ["a/b"]
        store.collect_uploads(NOW)
        for write in (
            lambda: store.open_object("c").put(b""),
            lambda: store.open_object("a/b").put(b""),
            lambda: store.open_object("a/b").delete(),
            lambda: store.delete_objects_with_prefix("a"),
        ):
            with pytest.raises(PermissionDenied) as raised:
                write()
            assert "LOCAL_TEMPLATE_STORAGE_BASE_PATH" in (raised.value.remedy or "")
            assert raised.value.object
        assert content(store, "a/b") == b"x"
    finally:
        (foreign / "a").chmod(0o700)
        foreign.chmod(0o700)


@pytest.mark.usefixtures("unprivileged")
def test_unreadable_store(foreign: Path) -> None:
    """What may not be looked into is denied, not empty."""
    store = LocalStorageProvider(foreign)
    store.open_object("a/b").put(b"x")
    (foreign / "a").chmod(0)
    try:
        with pytest.raises(PermissionDenied):
            paths(store)
        with pytest.raises(PermissionDenied):
            store.open_object("a/b").exists()
    finally:
        (foreign / "a").chmod(0o700)
    foreign.chmod(0)
    try:
        for look in (store.details, lambda: paths(store), lambda: store.open_object("a").exists()):
            with pytest.raises(PermissionDenied):
                look()
    finally:
        foreign.chmod(0o700)


def test_file_in_the_place_of_the_store(tmp_path: Path) -> None:
    """A file is no store."""
    (tmp_path / "file").write_bytes(b"")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        store = LocalStorageProvider(root)
        for use in (
            store.details,
            lambda s=store: paths(s),
            lambda s=store: s.open_object("a").put(b""),
            lambda s=store: s.open_object("a").exists(),
        ):
            with pytest.raises(BucketNotFound) as raised:
                use()
            assert raised.value.object == str(root)


@pytest.mark.parametrize(
    ("number", "kind", "transient"),
    [
        (errno.ENOSPC, StorageFull, False),
        (errno.EDQUOT, StorageFull, False),
        (errno.EFBIG, StorageFull, False),
        (errno.EACCES, PermissionDenied, False),
        (errno.EPERM, PermissionDenied, False),
        (errno.EROFS, PermissionDenied, False),
        (errno.ENOENT, ObjectNotFound, False),
        (errno.ENAMETOOLONG, InvalidInput, False),
        (errno.EXDEV, InvalidInput, False),
        (errno.EIO, Unavailable, False),
        (errno.EMFILE, Unavailable, True),
        (errno.ESTALE, Unavailable, True),
    ],
)
def test_errors(number: int, kind: type[BootstreamError], transient: bool) -> None:
    """Every errno has its class; only what waiting mends is transient."""
    error = storage_error(OSError(number, os.strerror(number)), operation="write", object="a/b")
    assert type(error) is kind
    assert error.transient is transient
    assert str(error).startswith("write a/b: ")


def test_file_size_limit(store: LocalStorageProvider, root: Path) -> None:
    """A write that the system breaks off leaves neither object nor temporary."""
    store.open_object("kept/old").put(b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        for name in ("new/object", "kept/old"):
            with pytest.raises(StorageFull):
                store.open_object(name).read_from(PatternSource(3 << 20))
            with pytest.raises(StorageFull):
                store.open_object(name).put(bytes(2 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert everything(root) == ["kept", "kept/old"]
    assert content(store, "kept/old") == b"old"


@pytest.mark.parametrize("name", ["new/deep/object", "old/deep/object", "object"])
def test_no_room_for_a_name(
    store: LocalStorageProvider, root: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A disk may be full for names when it is not for bytes: folders made in vain go again."""

    def no_room(*_args: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store.open_object("old/one").put(b"")
    monkeypatch.setattr(os, "link", no_room)
    for condition in (False, True):
        with pytest.raises(StorageFull):
            store.open_object(name).put(b"x", if_none_match=condition)
    assert everything(root) == ["old", "old/one"]


def test_full_disk(tmp_path: Path) -> None:
    """A real one, in a mount namespace of its own: nothing is left, and room is named."""
    script = """
import subprocess, sys
from bootstream.errors import StorageFull
from bootstream.storage.local import LocalStorageProvider
from bootstream.testing.storage import PatternSource, content, paths
root = sys.argv[1]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", root], check=True)
store = LocalStorageProvider(root)
store.open_object("kept").put(b"kept")
for name in ("new/object", "kept"):
    try:
        store.open_object(name).read_from(PatternSource(64 << 20))
    except StorageFull as error:
        assert error.object == name and error.remedy, error
    else:
        sys.exit("it fits")
assert paths(store) == ["kept"] and content(store, "kept") == b"kept"
store.open_object("fits").read_from(PatternSource(3 << 20))
assert subprocess.run(["ls", "-A", root], capture_output=True, text=True).stdout == "fits\\nkept\\n"
"""
    command = ["unshare", "--mount", sys.executable, "-c", script, str(tmp_path)]
    if os.geteuid() != 0:
        command[1:1] = ["--user", "--map-root-user"]
    subprocess.run(command, check=True, timeout=25)


# -- many processes, and dead ones -----------------------------------------------------------

WRITER = """
import os, sys
from bootstream.storage.local import LocalStorageProvider
store = LocalStorageProvider(sys.argv[1])
store._unnamed = sys.argv[2] == "unnamed"
print("ready", flush=True)
number = 0
while True:
    store.open_object("new/%d" % (number % 5)).put(os.urandom(300_000))
    store.open_object("whole").put(bytes([number % 256]) * 300_000)
    number += 1
"""


@pytest.mark.parametrize("form", ["unnamed", "named"])
def test_killed_writers(store: LocalStorageProvider, root: Path, form: str) -> None:
    """kill -9 at any moment: objects are whole, and collection removes all that is left."""
    store._unnamed = form == "unnamed"
    for turn in range(8):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(root), form], stdout=subprocess.PIPE
        ) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            try:
                writer.wait(0.03 + 0.011 * turn)
            except subprocess.TimeoutExpired:
                writer.kill()
        for info in store.list_objects():
            body = content(store, info.path)
            assert len(body) == 300_000
            assert info.path != "whole" or body == body[:1] * 300_000
        store.collect_uploads(NOW)
        assert not [name for name in everything(root) if "upload" in name]
    store.delete_objects_with_prefix("new")
    store.open_object("whole").delete()
    assert everything(root) == []


def test_dead_uploads_are_told_from_live_ones(store: LocalStorageProvider, root: Path) -> None:
    """A file without a writer goes once it is old enough; one with a writer never does."""
    store._unnamed = False
    with store.stage() as staged:
        os.write(staged.descriptor, b"alive")
        (root / ".bootstream-upload-dead").write_bytes(b"dead")
        assert len(everything(root)) == 2
        assert store.collect_uploads(timedelta(hours=1)) == 0
        assert store.collect_uploads(NOW, dry_run=True) == 1
        assert len(everything(root)) == 2
        assert store.collect_uploads(NOW) == 1
        assert len(everything(root)) == 1
        staged.publish((b"object",))
    assert content(store, "object") == b"alive"
    assert everything(root) == ["object"]


def test_without_hard_links(
    store: LocalStorageProvider, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where files cannot be linked, creating only if absent still holds."""

    def no_link(*_args: object, **_options: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    store._unnamed = False
    monkeypatch.setattr(os, "link", no_link)
    store.open_object("a/b").put(b"1", if_none_match=True)
    with pytest.raises(AlreadyExists):
        store.open_object("a/b").put(b"2", if_none_match=True)
    etag = store.open_object("a/b").put(b"3")
    store.open_object("a/b").put(b"4", if_match=etag)
    assert content(store, "a/b") == b"4"
    assert everything(root) == ["a", "a/b"]


CREATOR = """
import sys
from bootstream.errors import AlreadyExists, PreconditionFailed
from bootstream.storage.local import LocalStorageProvider
store, me = LocalStorageProvider(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
sys.stdin.readline()
won = 0
for number in range(100):
    try:
        store.open_object("race/%d/object" % number).put(me.encode(), if_none_match=True)
        won += 1
    except AlreadyExists:
        pass
counter, done = store.open_object("counter"), 0
while done < 30:
    body, etag = counter.get(20)
    try:
        counter.put(str(int(body) + 1).encode(), if_match=etag)
        done += 1
    except PreconditionFailed:
        pass
print(won, flush=True)
"""


def test_processes_race(store: LocalStorageProvider, root: Path) -> None:
    """Of several processes one creates each object, and no update is lost between them."""
    store.open_object("counter").put(b"0")
    command = [sys.executable, "-c", CREATOR, str(root)]
    racers = [
        subprocess.Popen([*command, str(n)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for n in range(3)
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == b"ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write(b"\n")
        racer.stdin.flush()
    won = [int(racer.communicate(timeout=20)[0]) for racer in racers]
    assert sum(won) == 100
    owners = [content(store, path) for path in paths(store, "race")]
    assert [owners.count(str(n).encode()) for n in range(3)] == won
    assert store.open_object("counter").get(20)[0] == b"90"
