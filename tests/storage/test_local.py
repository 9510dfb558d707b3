"""What only the store in a folder has: files, folders and links."""

from __future__ import annotations

import os
import socket
import stat
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bootstream.errors import (
    AlreadyExists,
    InvalidInput,
    ObjectNotFound,
    PermissionDenied,
    Unavailable,
)
from bootstream.storage.local import LocalStorageProvider
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


def test_times_are_finer_than_ticks(store: LocalStorageProvider, root: Path) -> None:
    """They are of the clock's nanoseconds, so that quick writes differ in more than the inode."""
    times = []
    for _ in range(50):
        before = time.time_ns()
        store.open_object("a").put(b"")
        times.append((root / "a").stat().st_mtime_ns)
        assert before <= times[-1] <= time.time_ns()
    assert len(set(times)) == 50


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
