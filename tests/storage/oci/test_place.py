"""Large downloads into files, whose pieces come in any order: whole, or cut where they are sure."""

from __future__ import annotations

import hashlib
import random
import resource
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.storage.oci.helpers import ScriptedServer, Seen, provider_for
from tests.storage.oci.memorybucket import MemoryBucket, Stored

from bootstream.errors import Unavailable
from bootstream.storage.retry import RetryPolicy, RetryStorageProvider

PIECE = 4 << 20
SIZE = 6 * PIECE + 12_345
DATA = random.Random(5).randbytes(SIZE)


@pytest.fixture
def bucket() -> MemoryBucket:
    """A bucket with one large object, of several parts."""
    return MemoryBucket(objects={"a": Stored(DATA, "etag-0", {}, "md5-7")})


def first_of(seen: Seen) -> int:
    """The first byte that was asked for."""
    return int(seen.headers["range"].removeprefix("bytes=").partition("-")[0])


@pytest.mark.parametrize("buffering", [0, -1])
@pytest.mark.parametrize("size", [0, 1, PIECE, PIECE + 1, 2 * PIECE, 3 * PIECE - 1, SIZE])
def test_sizes(bucket: MemoryBucket, tmp_path: Path, size: int, buffering: int) -> None:
    """Whatever the size, the file has it, after what was in it; the position is its end."""
    bucket.objects["a"].data = DATA[:size]
    path = tmp_path / "file"
    with ScriptedServer(bucket) as server, path.open("wb", buffering=buffering) as file:
        provider = provider_for(server)
        file.write(b"head")
        assert provider.open_object("a").write_to(file) == size
        assert file.tell() == 4 + size
        file.write(b"tail")
        provider.close()
    assert path.read_bytes() == b"head" + DATA[:size] + b"tail"


def test_pieces_that_break_off(bucket: MemoryBucket, tmp_path: Path) -> None:
    """Bodies that are cut anywhere are gone on with; nothing is missing or twice."""
    chance = random.Random(3)
    broken = [0]

    def script(seen: Seen) -> bytes:
        answer = bucket(seen)
        if seen.method == "GET" and chance.random() < 0.4:
            broken[0] += 1
            return answer[: chance.randrange(len(answer))] + ScriptedServer.CLOSE
        return answer

    path = tmp_path / "file"
    with ScriptedServer(script) as server, path.open("wb", buffering=0) as file:
        provider = provider_for(server)
        assert provider.open_object("a").write_to(file) == SIZE
        provider.close()
    assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(DATA).digest()
    assert broken[0]


def test_the_last_piece_is_written_last(bucket: MemoryBucket, tmp_path: Path) -> None:
    """As long as one piece is missing, the file is not of the object's size."""
    path = tmp_path / "file"
    others = threading.Semaphore(0)
    sizes = []

    def script(seen: Seen) -> bytes:
        if seen.method == "GET" and first_of(seen) == PIECE:
            for _ in range(2):  # the other threads, of four, have no more room
                others.acquire(timeout=10)
            sizes.append(path.stat().st_size)
        else:
            others.release()
        return bucket(seen)

    bucket.objects["a"].data = DATA[: 4 * PIECE]
    with ScriptedServer(script) as server, path.open("wb", buffering=0) as file:
        provider = provider_for(server)
        assert provider.open_object("a").write_to(file) == 4 * PIECE
        provider.close()
    assert sizes
    assert all(size < 4 * PIECE for size in sizes)
    assert path.read_bytes() == DATA[: 4 * PIECE]


def test_replaced_meanwhile(bucket: MemoryBucket, tmp_path: Path) -> None:
    """The file ends where the bytes of the first version that came in order end."""
    reads = iter(range(1000))

    def script(seen: Seen) -> bytes:
        if seen.method == "GET" and next(reads) == 3:
            bucket.objects["a"].etag = "another"
        return bucket(seen)

    path = tmp_path / "file"
    with ScriptedServer(script) as server, path.open("wb", buffering=0) as file:
        provider = provider_for(server)
        with pytest.raises(Unavailable, match="replaced while it was read"):
            provider.open_object("a").write_to(file)
        assert file.tell() == path.stat().st_size < SIZE
        provider.close()
    assert DATA.startswith(path.read_bytes())


def test_a_piece_that_cannot_be_had_is_had_later(bucket: MemoryBucket, tmp_path: Path) -> None:
    """The retry wrapper goes on after what came in order, in the same file."""
    left = [6]

    def script(seen: Seen) -> bytes:
        if seen.method == "GET" and first_of(seen) == 2 * PIECE and left[0]:
            left[0] -= 1
            return b"HTTP/1.1 503 No\r\ncontent-length: 0\r\nopc-request-id: r\r\n\r\n"
        return bucket(seen)

    path = tmp_path / "file"
    with ScriptedServer(script) as server, path.open("wb", buffering=0) as file:
        provider = provider_for(server, sleep=lambda _: None)
        store = RetryStorageProvider(provider, RetryPolicy(4, first_wait=0.001))
        assert store.open_object("a").write_to(file) == SIZE
        provider.close()
    assert path.read_bytes() == DATA
    assert not left[0]


@pytest.fixture
def small_files() -> Iterator[int]:
    """The largest size that this process may give a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = 2 * PIECE + 1000
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("retrying", [False, True])
def test_a_full_disk(
    bucket: MemoryBucket, tmp_path: Path, small_files: int, retrying: bool
) -> None:
    """The file's own error passes as it is, and is not taken for the network's."""
    path = tmp_path / "file"
    with ScriptedServer(bucket) as server, path.open("wb", buffering=0) as file:
        provider = provider_for(server)
        store = RetryStorageProvider(provider) if retrying else provider
        with pytest.raises(OSError, match="File too large"):
            store.open_object("a").write_to(file)
        assert file.tell() == path.stat().st_size < small_files
        provider.close()
    assert DATA.startswith(path.read_bytes())
