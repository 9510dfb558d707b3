"""What is kept of requests: objects, files, signatures; and when it must not be used."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import pytest
from tests.localoci.client import Client

from bootstream.localoci.database import Database
from bootstream.localoci.memo import Memo
from bootstream.localoci.recent import FILES, RecentFiles, RecentObjects
from bootstream.localoci.store import StoredObject

if TYPE_CHECKING:
    from pathlib import Path

    from tests.localoci.openserver import OpenServer

O = "/n/local/b/b/o/"  # noqa: E741 - the service's own letter
ITEM = StoredObject("k", "e", "v", "f", 1, None, 0.0, 0.0, "Standard", 0.0, 0.0, {})


def test_a_memo_is_bounded() -> None:
    """The oldest entries go."""
    memo: Memo[int, int] = Memo(3)
    for number in range(5):
        memo.keep(number, -number)
    assert [memo.get(number) for number in range(5)] == [None, None, -2, -3, -4]
    memo.drop(3)
    memo.drop(3)
    assert memo.get(3) is None


def test_a_memo_of_many_threads() -> None:
    """Threads that keep at once neither fail nor exceed the bound."""
    memo: Memo[int, int] = Memo(8)
    errors: list[BaseException] = []

    def keep(start: int) -> None:
        try:
            for number in range(start, start + 20_000):
                memo.keep(number, number)
        except BaseException as error:  # noqa: BLE001 - shown below
            errors.append(error)

    threads = [threading.Thread(target=keep, args=(start * 100_000,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert sum(memo.get(start * 100_000 + 19_999) is not None for start in range(4)) >= 1


def test_a_row_that_a_writer_made_obsolete_is_not_kept() -> None:
    """A query from before a commit, or from during it, leaves nothing."""
    recent = RecentObjects()
    before = recent.writes
    recent.begin([(1, "other")])
    recent.keep(1, ITEM, before)
    assert recent.get(1, "k") is None
    during = recent.writes
    recent.keep(1, ITEM, during)
    assert recent.get(1, "k") is None
    recent.end(kept=True)
    recent.keep(1, ITEM, during)
    recent.keep(1, ITEM, before)
    assert recent.get(1, "k") is None
    recent.keep(1, ITEM, recent.writes)
    assert recent.get(1, "k") is ITEM


@pytest.mark.parametrize("kept", [True, False])
def test_what_a_writer_makes_is_known_once_it_commits(kept: bool) -> None:
    """Not before, and not if it gives up; a later writer of anything clears all."""
    recent = RecentObjects()
    recent.begin([(1, "k")])
    recent.becomes(1, ITEM)
    assert recent.get(1, "k") is None
    recent.end(kept=kept)
    assert recent.get(1, "k") is (ITEM if kept else None)
    recent.begin(None)
    assert recent.get(1, "k") is None
    recent.end(kept=True)


def test_a_transaction_that_is_undone_keeps_nothing(tmp_path: Path) -> None:
    """An object that was never committed is not known."""
    database = Database(tmp_path)
    try:
        with pytest.raises(RuntimeError), database.write([(1, "k")]):
            database.recent.becomes(1, ITEM)
            raise RuntimeError
        assert database.recent.get(1, "k") is None
        assert database.recent.writes % 2 == 0
    finally:
        database.close()


def test_files_are_closed_when_nobody_reads_them(tmp_path: Path) -> None:
    """The bound holds; who reads reads on; a removed file is not held."""
    files = RecentFiles()
    names = [f"f{number}" for number in range(FILES + 8)]
    for name in names:
        (tmp_path / name).write_text(name)
    held = files.open(names[0], str(tmp_path / names[0]))
    open_now = [files.open(name, str(tmp_path / name)).descriptor for name in names]
    assert os.pread(held.descriptor, 9, 0) == b"f0"
    assert len(set(open_now)) <= FILES + 2  # the held one, and the next before its turn
    files.drop(names[-1])
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(open_now[-1])
    assert files.open(names[-1], str(tmp_path / names[-1])).descriptor >= 0
    files.clear()
    descriptor = held.descriptor
    del held
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    with pytest.raises(FileNotFoundError):
        files.open("none", str(tmp_path / "none"))


def test_a_reader_never_goes_back(open_server: OpenServer, client: Client) -> None:
    """While one client replaces an object, others see its versions in order."""
    client.ask("PUT", O + "k", b"%08d" % 0)
    seen: list[list[int]] = [[] for _ in range(3)]
    done = threading.Event()

    def read(numbers: list[int]) -> None:
        with Client(open_server.port) as reader:
            while not done.is_set():
                numbers.append(int(reader.ask("GET", O + "k").body))

    threads = [threading.Thread(target=read, args=(numbers,)) for numbers in seen]
    for thread in threads:
        thread.start()
    for number in range(1, 300):
        assert client.ask("PUT", O + "k", b"%08d" % number).status == 200
        assert int(client.ask("GET", O + "k").body) == number
    done.set()
    for thread in threads:
        thread.join()
    for numbers in seen:
        assert numbers
        assert numbers == sorted(numbers)


def test_every_change_of_an_object_is_seen_at_once(client: Client) -> None:
    """Rename, tier, deletion and what follows them: no answer is of before."""
    for name in ("a", "b"):
        client.ask("PUT", O + name, name.encode())
        assert client.ask("GET", O + name).body == name.encode()
    act = "/n/local/b/b/actions/"
    renaming = {"sourceName": "a", "newName": "b"}
    assert client.ask("POST", act + "renameObject", renaming).status == 200
    assert client.ask("GET", O + "a").status == 404
    assert client.ask("GET", O + "b").body == b"a"
    tier = {"objectName": "b", "storageTier": "InfrequentAccess"}
    assert client.ask("POST", act + "updateObjectStorageTier", tier).status == 200
    assert client.ask("HEAD", O + "b").headers["storage-tier"] == "InfrequentAccess"
    batch = {"objects": [{"objectName": "b"}]}
    assert client.ask("POST", act + "batchDeleteObjects", batch).status == 200
    assert client.ask("GET", O + "b").status == 404
