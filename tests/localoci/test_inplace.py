"""Parts that are written where the object has them, and those that do not fit."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

import pytest
from tests.localoci.client import Client
from tests.localoci.openserver import OpenServer
from tests.localoci.test_multipart import O, U, begin, commit, files, part

from bootstream.localoci.inplace import split, whole

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 64 << 10


def inodes(server: OpenServer) -> set[int]:
    """The files of a data folder."""
    folder = server.application.service.database.files
    return {path.stat().st_ino for path in folder.glob("??/*")}


def test_parts_of_one_size_are_the_object(client: Client, open_server: OpenServer) -> None:
    """In any order, with a shorter last one: there is one file all the time, and no copy of it."""
    upload = begin(client)
    bodies = {1: os.urandom(SIZE), 2: os.urandom(SIZE), 3: os.urandom(1000)}
    parts = [part(client, upload, number, bodies[number]) for number in (2, 1, 3)]
    before = inodes(open_server)
    assert len(before) == 1
    assert commit(client, upload, parts).status == 200
    assert inodes(open_server) == before
    got = client.ask("GET", O + "k")
    assert got.body == b"".join(bodies.values())
    assert client.ask("GET", O + "k", range="bytes=-1500").body == got.body[-1500:]
    assert client.ask("DELETE", O + "k").status == 204
    assert files(open_server) == 0


def test_excluded_parts_do_not_stay_behind(client: Client, open_server: OpenServer) -> None:
    """What follows the last committed part goes away, and what precedes it is not taken."""
    for chosen in ({1, 2}, {2, 3}):
        upload = begin(client)
        bodies = {number: os.urandom(SIZE) for number in (1, 2, 3)}
        parts = {number: part(client, upload, number, body) for number, body in bodies.items()}
        wanted = [parts[number] for number in chosen]
        assert commit(client, upload, wanted, list({1, 2, 3} - chosen)).status == 200
        expected = b"".join(bodies[number] for number in sorted(chosen))
        assert client.ask("GET", O + "k").body == expected
        folder = open_server.application.service.database.files
        assert [path.stat().st_size for path in folder.glob("??/*")] == [len(expected)]


def test_a_refused_commit_keeps_the_parts(client: Client, open_server: OpenServer) -> None:
    """A condition that does not hold ends neither the upload nor its parts."""
    client.ask("PUT", O + "k", b"old")
    upload = begin(client)
    bodies = [os.urandom(SIZE), os.urandom(SIZE)]
    parts = [part(client, upload, number, body) for number, body in enumerate(bodies, 1)]
    assert commit(client, upload, parts, if_none_match="*").status == 412
    assert client.ask("GET", O + "k").body == b"old"
    assert commit(client, upload, parts).status == 200
    assert client.ask("GET", O + "k").body == b"".join(bodies)
    assert files(open_server) == 1


def test_a_part_that_breaks_off_gives_its_place_back(
    client: Client, open_server: OpenServer
) -> None:
    """The next attempt writes where the first one did; an abort leaves nothing."""
    upload = begin(client)
    first = part(client, upload, 1, b"a" * SIZE)
    target = f"{U}/k?uploadId={upload}&uploadPartNum=2"
    wrong = client.ask("PUT", target, b"b" * SIZE, content_md5="AAAAAAAAAAAAAAAAAAAAAA==")
    assert wrong.code == "UnmatchedContentMD5"
    parts = [first, part(client, upload, 2, b"c" * SIZE)]
    assert files(open_server) == 1
    assert commit(client, upload, parts).status == 200
    assert client.ask("GET", O + "k").body == b"a" * SIZE + b"c" * SIZE
    upload = begin(client)
    part(client, upload, 1, b"d" * SIZE)
    part(client, upload, 1, b"e" * SIZE)
    assert client.ask("DELETE", f"{U}/k?uploadId={upload}").status == 204
    assert files(open_server) == 1


def test_only_a_wrong_part_leaves_nothing(client: Client, open_server: OpenServer) -> None:
    """The first part of all fails: its file is gone at once."""
    upload = begin(client)
    target = f"{U}/k?uploadId={upload}&uploadPartNum=1"
    wrong = client.ask("PUT", target, b"b" * SIZE, content_md5="AAAAAAAAAAAAAAAAAAAAAA==")
    assert wrong.status == 400
    assert files(open_server) == 0


def test_an_upload_goes_on_after_a_restart(tmp_path: Path) -> None:
    """Parts of before and after are put together, and no file is left over."""
    bodies = [os.urandom(SIZE) for _ in range(4)]
    with OpenServer(tmp_path) as server, Client(server.port) as client:
        server.application.ensure_bucket("b", "c")
        upload = begin(client)
        parts = [part(client, upload, number, bodies[number - 1]) for number in (1, 3)]
    with OpenServer(tmp_path) as server, Client(server.port) as client:
        parts += [part(client, upload, number, bodies[number - 1]) for number in (2, 4)]
        assert commit(client, upload, parts).status == 200
        assert client.ask("GET", O + "k").body == b"".join(bodies)
        assert files(server) == 1


@pytest.mark.parametrize("seed", range(8))
def test_any_parts(client: Client, open_server: OpenServer, seed: int) -> None:
    """Sizes, order, repetition and choice at random: the object is what was chosen."""
    chance = random.Random(seed)
    upload, bodies, etags = begin(client), {}, {}
    for _ in range(14):
        number = chance.randrange(1, 9)
        size = chance.choice([SIZE, SIZE, SIZE, SIZE - 7, SIZE + 5, 3, 0])
        bodies[number] = chance.randbytes(size)
        etags[number] = part(client, upload, number, bodies[number])
    chosen = sorted(chance.sample(sorted(bodies), chance.randint(1, len(bodies))))
    excluded = [number for number in bodies if number not in chosen]
    assert commit(client, upload, [etags[number] for number in chosen], excluded).status == 200
    assert client.ask("GET", O + "k").body == b"".join(bodies[number] for number in chosen)
    assert files(open_server) == 1


def test_names_of_parts() -> None:
    """A place is a file and an offset; parts are whole only without a gap, from the start."""
    assert split("abc") == ("abc", 0)
    assert split("abc@65536") == ("abc", 65536)
    assert whole([("a@0", 4), ("a@4", 4), ("a@8", 1)]) == "a"
    assert whole([("a@4", 4)]) is None
    assert whole([("a@0", 4), ("a@8", 4)]) is None
    assert whole([("a@0", 4), ("b@4", 4)]) is None
    assert whole([("a", 4)]) is None
