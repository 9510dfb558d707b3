"""What only the store in a folder has: files, links, permissions, disks, and their trouble."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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
from bootstream.storage.objects import read_small
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


# -- files -----------------------------------------------------------------------------------


def test_objects_are_plain_files(store: LocalStorageProvider, root: Path) -> None:
    """Other tools find the bytes at the path, and are found when they put a file there."""
    store.open_object("build/rootfs.ext4").put(b"bytes")
    assert (root / "build" / "rootfs.ext4").read_bytes() == b"bytes"
    (root / "other").mkdir()
    (root / "other" / "raw").write_bytes(b"theirs")
    assert content(store, "other/raw") == b"theirs"
    assert paths(store) == ["build/rootfs.ext4", "other/raw"]
    etag = store.open_object("other/raw").stat().etag
    (root / "other" / "raw").write_bytes(b"THEIRS")
    assert store.open_object("other/raw").stat().etag != etag


def test_missing_folder_is_an_empty_store(store: LocalStorageProvider, root: Path) -> None:
    """Looking makes nothing; the first write makes the folder, for its owner only."""
    assert store.details().identity == root.as_uri()
    assert paths(store) == []
    assert not store.open_object("a").exists()
    store.open_object("a").delete()
    assert store.delete_objects_with_prefix("a") == 0
    assert store.collect_uploads(NOW) == 0
    assert not root.exists()
    umask = os.umask(0o022)
    try:
        store.open_object("f/a").put(b"")
    finally:
        os.umask(umask)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (root, root / "f", root / "f" / "a")]
    assert modes == [0o700, 0o755, 0o644]


def test_emptied_store_is_an_empty_folder(store: LocalStorageProvider, root: Path) -> None:
    """No lock, no temporary, no folder stays, however objects came and went."""
    for name in ("a/b/c/d", "a/b/e", "top", "x/y"):
        etag = store.open_object(name).put(b"1")
        store.open_object(name).put(b"2", if_match=etag)
        store.open_object(name).put(b"3")
        store.open_object(name).read_from(PatternSource(100_000))
    store.open_object("a/b/c/d").delete()
    assert not (root / "a" / "b" / "c").exists()
    store.open_object("top").delete()
    assert store.delete_objects_with_prefix("a") == 1
    store.open_object("x/y").delete()
    assert everything(root) == []


def test_failed_writes_leave_no_folders(store: LocalStorageProvider, root: Path) -> None:
    """An object that could not be created has no folders either."""
    store.open_object("a").put(b"")
    with pytest.raises(InvalidInput):
        store.open_object("a/b/c").put(b"")
    (root / "dir").mkdir()
    (root / "dir" / "pipe").mkdir()
    (root / "dir" / "pipe" / "full").write_bytes(b"")
    with pytest.raises(InvalidInput):
        store.open_object("dir/pipe").put(b"")
    assert everything(root) == ["a", "dir", "dir/pipe", "dir/pipe/full"]


def test_empty_folders_are_nothing(store: LocalStorageProvider, root: Path) -> None:
    """Left by a killed process, they stand in nobody's way and are collected."""
    (root / "a" / "b" / "c").mkdir(parents=True)
    (root / "k" / "l").mkdir(parents=True)
    assert paths(store) == []
    store.open_object("a").put(b"object")
    assert (root / "a").is_file()
    assert store.collect_uploads(NOW, dry_run=True) == 0
    assert (root / "k" / "l").is_dir()
    assert store.collect_uploads(NOW) == 0
    assert everything(root) == ["a"]


def test_reserved_names(store: LocalStorageProvider, root: Path) -> None:
    """Names that mean something at the top are refused there, and nowhere else."""
    (root / "lost+found").mkdir(parents=True)
    (root / "lost+found" / "#123").write_bytes(b"")
    for name in ("lost+found", "lost+found/x", ".bootstream-upload-1", ".bootstream-upload-1/x"):
        with pytest.raises(InvalidInput):
            store.open_object(name)
        with pytest.raises(InvalidInput):
            store.list_objects(name)
    store.open_object("a/lost+found").put(b"")
    assert paths(store) == ["a/lost+found"]
    (root / "lost+found" / "#123").unlink()
    store.collect_uploads(NOW)
    assert (root / "lost+found").is_dir()


def test_sparse_file_stays_sparse(store: LocalStorageProvider, root: Path, tmp_path: Path) -> None:
    """A disk image of a gigabyte with little in it takes up little."""
    source = tmp_path / "disk"
    with source.open("wb") as file:
        file.truncate(1 << 30)
        file.seek(700 << 20)
        file.write(b"data")
    store.open_object("disk").write_from_file_system(source)
    status = (root / "disk").stat()
    assert status.st_size == 1 << 30
    assert status.st_blocks * 512 < 1 << 20
    buffer = bytearray(8)
    store.open_object("disk").read_at(buffer, (700 << 20) - 2)
    assert bytes(buffer) == b"\0\0data\0\0"


def test_file_of_another_file_system(store: LocalStorageProvider) -> None:
    """A file that the kernel cannot copy by itself is read and written."""
    source = Path("/dev/shm") / f"bootstream-test-{os.getpid()}"
    source.write_bytes(os.urandom(3 << 20))
    try:
        store.open_object("copy").write_from_file_system(source)
        assert content(store, "copy") == source.read_bytes()
    finally:
        source.unlink()


def test_changed_in_place_while_read(store: LocalStorageProvider, root: Path) -> None:
    """Another tool that writes into a file is caught, not taken for the object's bytes."""
    store.open_object("object").put(bytes(3 << 20))

    class Meddler:
        def write(self, data: memoryview, /) -> None:
            with (root / "object").open("r+b") as file:
                file.truncate(1000)

    with pytest.raises(Unavailable):
        store.open_object("object").write_to(Meddler())


def test_strange_times(store: LocalStorageProvider, root: Path) -> None:
    """A file may claim to be from before or after all time."""
    store.open_object("a").put(b"")
    for when in (-(10**10), 10**12):
        try:
            os.utime(root / "a", (when, when))
        except OSError:
            continue  # not on this file system
        assert [info.path for info in store.list_objects()] == ["a"]
        assert store.open_object("a").stat().last_modified.tzinfo is not None


# -- links and other things that are no objects ----------------------------------------------


def test_links_never_lead_outside(store: LocalStorageProvider, root: Path, tmp_path: Path) -> None:
    """Planted links are neither followed nor listed, by any operation; their targets stay."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    root.mkdir()
    (root / "folder").symlink_to(outside)
    (root / "file").symlink_to(outside / "secret")
    (root / "deep").mkdir()
    (root / "deep" / "up").symlink_to("../../outside")
    assert paths(store) == []
    for name in ("folder/secret", "deep/up/secret", "file"):
        target = store.open_object(name)
        for read in (
            lambda t=target: t.read_at(bytearray(6), 0),
            lambda t=target: t.write_to(HashNothing()),
            target.stat,
            target.exists,
        ):
            with pytest.raises(PermissionDenied) as raised:
                read()
            assert raised.value.remedy
    for name in ("folder/secret", "folder/new", "deep/up/new"):
        target = store.open_object(name)
        for write in (
            lambda t=target: t.put(b"overwritten"),
            lambda t=target: t.put(b"overwritten", if_none_match=True),
            lambda t=target: t.put(b"overwritten", if_match="x"),
            lambda t=target: t.read_from(PatternSource(10)),
            target.delete,
        ):
            with pytest.raises(PermissionDenied):
                write()
    for prefix in ("folder", "deep/up"):
        with pytest.raises(PermissionDenied):
            list(store.list_objects(prefix))
        with pytest.raises(PermissionDenied):
            store.delete_objects_with_prefix(prefix)
    with pytest.raises(AlreadyExists):
        store.open_object("file").put(b"x", if_none_match=True)
    store.open_object("file").put(b"replaces the link")
    assert not (root / "file").is_symlink()
    store.collect_uploads(NOW)
    assert [path.read_bytes() for path in outside.iterdir()] == [b"secret"]


class HashNothing:
    def write(self, data: memoryview, /) -> None:
        raise AssertionError("something was read")


def test_links_planted_at_the_wrong_moment(
    store: LocalStorageProvider, root: Path, tmp_path: Path
) -> None:
    """A folder that turns into a link and back, again and again, is never followed."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "object").write_bytes(b"secret")
    store.open_object("folder/object").put(b"inside")
    stop = threading.Event()

    def meddle() -> None:
        while not stop.is_set():
            os.rename(root / "folder", root / "aside")
            (root / "folder").symlink_to(outside)
            (root / "folder").unlink()
            os.rename(root / "aside", root / "folder")

    meddler = threading.Thread(target=meddle)
    meddler.start()
    try:
        target = store.open_object("folder/object")
        for _ in range(2000):
            buffer = bytearray(6)
            try:
                count = target.read_at(buffer, 0)
            except (ObjectNotFound, PermissionDenied):
                continue
            assert bytes(buffer[:count]) == b"inside"
    finally:
        stop.set()
        meddler.join()
    assert (outside / "object").read_bytes() == b"secret"


def test_devices_pipes_and_sockets(store: LocalStorageProvider, root: Path) -> None:
    """They are no objects, and nothing waits for them."""
    root.mkdir()
    os.mkfifo(root / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "socket"))
        assert paths(store) == []
        for name in ("pipe", "socket"):
            target = store.open_object(name)
            with pytest.raises(PermissionDenied):
                target.stat()
            with pytest.raises(PermissionDenied):
                target.read_at(bytearray(1), 0)
            target.delete()
            assert not (root / name).exists()


def test_store_behind_a_link(tmp_path: Path) -> None:
    """The store's own folder may be a link; the identity is of what it points to."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    store = LocalStorageProvider(tmp_path / "link")
    store.open_object("a/b").put(b"x")
    assert (tmp_path / "real" / "a" / "b").read_bytes() == b"x"
    assert store.details().identity == LocalStorageProvider(tmp_path / "real").details().identity


def test_names_that_are_no_unicode(store: LocalStorageProvider, root: Path) -> None:
    """Files that cannot be named as objects are not listed, and stay."""
    root.mkdir()
    for name in (b"latin-\xe9", b"new\nline"):
        Path(os.fsdecode(os.fsencode(root) + b"/" + name)).write_bytes(b"")
    store.open_object("good").put(b"")
    assert paths(store) == ["good"]


component = st.text(min_size=1, max_size=40).filter(
    lambda text: (
        text not in (".", "..")
        and "/" not in text
        and not any(c < " " or "\x7f" <= c < "\xa0" or "\ud800" <= c <= "\udfff" for c in text)
        and len(text.encode()) <= 255
    )
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(names=st.sets(st.lists(component, min_size=1, max_size=4).map("/".join), max_size=6))
def test_any_names(names: set[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever is a path is itself: nothing is mixed up, and nothing is left."""
    root = tmp_path_factory.mktemp("names")
    store = LocalStorageProvider(root)
    written: list[str] = []
    for name in sorted(names):
        try:
            store.open_object(name).put(name.encode(), if_none_match=True)
        except InvalidInput:  # another one is its folder
            assert any(name.startswith(f"{n}/") or n.startswith(f"{name}/") for n in written)
        else:
            written.append(name)
    assert paths(store) == sorted(written, key=str.encode)
    for name in written:
        assert content(store, name) == name.encode()
        store.open_object(name).delete()
    assert list(root.iterdir()) == []
    root.rmdir()


@settings(max_examples=300, deadline=None)
@given(name=st.text(st.characters(), max_size=60) | st.text("./\\ %\0a\n", max_size=12))
def test_any_text_as_a_name(name: str) -> None:
    """Anything at all is either a path below the store or InvalidInput."""
    store = LocalStorageProvider("/nonexistent/store")
    try:
        target = store.open_object(name)
    except InvalidInput:
        return
    assert target.path == name
    assert not {"", ".", ".."} & set(name.split("/"))
    assert not target.exists()


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
from bootstream.storage.objects import read_small
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
    body, etag = read_small(counter, 20)
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
    assert read_small(store.open_object("counter"), 20)[0] == b"90"
