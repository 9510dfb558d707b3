"""The node cache: shared, bounded, private, and never the reason why a read fails."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from tests.block.helpers import largest_file

from bootstream.block.cache import NodeCache, PackCache
from bootstream.block.segment import PAGE, Layout
from bootstream.errors import InvalidInput, PermissionDenied, Unavailable

CHUNK = 16 << 10
NAMES = ("memory", "11111111-1111-4111-8111-111111111111", "rootfs.ext4")
BOOT, NEXT_BOOT = b"1" * 16, b"2" * 16


def chunk_of(number: int) -> bytes:
    """The contents of frame ``number``."""
    return random.Random(number).randbytes(CHUNK)


def digest_of(number: int) -> bytes:
    """Its sha256."""
    return hashlib.sha256(chunk_of(number)).digest()


def pack_of(cache: NodeCache, artifact: str = "rootfs.ext4") -> PackCache:
    """The part of ``cache`` that the tests use."""
    return cache.pack(*NAMES[:2], artifact, raw=False, chunk_size=CHUNK)


def copy(view: memoryview | None) -> bytes | None:
    """The bytes of a view, if there is one."""
    return None if view is None else bytes(view)


def fill(pack: PackCache, *numbers: int) -> list[bytes | None]:
    """Put frames into the cache."""
    return [copy(pack.fill(n, digest_of(n), chunk_of(n))) for n in numbers]


def find(pack: PackCache, number: int) -> bytes | None:
    """Look for a frame."""
    return copy(pack.find(number, digest_of(number), CHUNK))


def segments(folder: Path) -> list[Path]:
    """All segment files."""
    return sorted(folder.glob("v1/*/*.seg"))


def layout_of(cache: NodeCache) -> Layout:
    """Where things lie in a segment."""
    return pack_of(cache)._layout


def test_fill_and_find(tmp_path: Path) -> None:
    """What was put in is found, also by another cache over the folder, and nothing else."""
    with closing(NodeCache(tmp_path, 64 << 20)) as cache:
        pack = pack_of(cache)
        assert find(pack, 3) is None
        views = fill(pack, 3, 700, 5)
        assert views == [chunk_of(n) for n in (3, 700, 5)]
        assert find(pack, 4) is None
        with closing(NodeCache(tmp_path, 64 << 20)) as other:
            assert find(pack_of(other), 700) == chunk_of(700)
            assert find(pack_of(other, "memfile"), 700) is None


def test_short_chunk(tmp_path: Path) -> None:
    """The last chunk of an artifact may be short."""
    with closing(NodeCache(tmp_path, 64 << 20)) as cache:
        digest = hashlib.sha256(b"short").digest()
        assert copy(pack_of(cache).fill(9, digest, b"short")) == b"short"
        assert copy(pack_of(cache).find(9, digest, 5)) == b"short"


def test_other_digest(tmp_path: Path) -> None:
    """A slot answers only to the digest of its bytes, and is not taken over by others."""
    with closing(NodeCache(tmp_path, 64 << 20)) as cache:
        pack = pack_of(cache)
        fill(pack, 1)
        assert pack.find(1, digest_of(2), CHUNK) is None
        assert pack.fill(1, digest_of(2), chunk_of(2)) is None
        assert find(pack, 1) == chunk_of(1)


def test_private(tmp_path: Path) -> None:
    """Folders and files are closed to others, also where they were open before."""
    folder = tmp_path / "made" / "here"
    with closing(NodeCache(folder, 64 << 20)) as cache:
        fill(pack_of(cache), 1)
    for path in (folder, *folder.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
    (folder / "v1").chmod(0o777)
    NodeCache(folder, 1 << 20).close()
    assert stat.S_IMODE((folder / "v1").stat().st_mode) == 0o700


def test_unusable_folder(tmp_path: Path) -> None:
    """A folder that cannot be made is an error of the tree, at once."""
    with pytest.raises(PermissionDenied):
        NodeCache(Path("/sys/cache"), 1 << 20)
    (tmp_path / "file").touch()
    with pytest.raises(Unavailable):
        NodeCache(tmp_path / "file", 1 << 20)
    with pytest.raises(InvalidInput):
        NodeCache(tmp_path, -1)


def test_default_limit(tmp_path: Path) -> None:
    """Without a limit it is a tenth of the disk."""
    with closing(NodeCache(tmp_path)) as cache:
        assert cache.limit == pytest.approx(shutil.disk_usage(tmp_path).total / 10, rel=0.01)


def test_nothing_is_kept_at_limit_0(tmp_path: Path) -> None:
    """A limit of 0 serves everything uncached."""
    with closing(NodeCache(tmp_path, 0)) as cache:
        assert fill(pack_of(cache), 1) == [None]
        assert not segments(tmp_path)


def test_bounded(tmp_path: Path) -> None:
    """However much goes through, the limit holds, and the newest is there."""
    limit = 4 << 20
    with closing(NodeCache(tmp_path, limit)) as cache:
        pack = pack_of(cache)
        for number in range(1500):
            fill(pack, number)
            if number % 50 == 0:
                assert cache.used() <= limit
        assert cache.used() > limit // 3
        assert find(pack, 1499) == chunk_of(1499)
        assert find(pack, 0) is None


def test_least_recently_used_goes_first(tmp_path: Path) -> None:
    """A segment that is read stays, one that is not goes."""
    with closing(NodeCache(tmp_path, 8 << 20)) as cache:
        pack = pack_of(cache)
        slots = layout_of(cache).slots
        assert slots == 64
        for number in range(3 * slots):
            fill(pack, number)
        for at, path in enumerate(segments(tmp_path)):
            os.utime(path, (at, at))
        cache.tidy()
        for at, path in enumerate(segments(tmp_path)):
            os.utime(path, (at, at))
        assert find(pack, 5) == chunk_of(5)  # the oldest, but now in use
        for number in range(3 * slots, 8 * slots):
            fill(pack, number)
        assert find(pack, 5) == chunk_of(5)
        assert find(pack, slots) is None


def test_views_survive_eviction(tmp_path: Path) -> None:
    """A view of an evicted chunk keeps its bytes, also after close."""
    with closing(NodeCache(tmp_path, 2 << 20)) as cache:
        pack = pack_of(cache)
        view = pack.fill(0, digest_of(0), chunk_of(0))
        for number in range(64, 600):
            fill(pack, number)
        assert find(pack, 0) is None
        assert copy(view) == chunk_of(0)
    cache.close()
    assert copy(view) == chunk_of(0)


def test_reading_while_evicting(tmp_path: Path) -> None:
    """Readers and fillers of a cache that evicts all the time only ever see right bytes."""
    with closing(NodeCache(tmp_path, 2 << 20)) as cache:
        pack = pack_of(cache)
        expected = [chunk_of(n) for n in range(300)]
        digests = [hashlib.sha256(data).digest() for data in expected]

        def work(seed: int) -> int:
            source = random.Random(seed)
            for _ in range(250):
                number = source.randrange(300)
                view = pack.find(number, digests[number], CHUNK)
                if view is None:
                    view = pack.fill(number, digests[number], expected[number])
                assert view is None or bytes(view) == expected[number]
            return 1

        with ThreadPoolExecutor(4) as pool:
            assert sum(pool.map(work, range(4))) == 4
        assert cache.used() <= 2 << 20


def test_pinned_elsewhere(tmp_path: Path) -> None:
    """What another process uses is not evicted; then chunks are served uncached."""
    with closing(NodeCache(tmp_path, 2 << 20)) as cache:
        fill(pack_of(cache), *range(64))
    (path,) = segments(tmp_path)
    descriptor = os.open(path, os.O_RDWR)  # another open file, as another process has
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        with closing(NodeCache(tmp_path, 1 << 20)) as cache:
            cache.segment_size = 2 << 20
            assert fill(pack_of(cache, "memfile"), 1) == [None]
            assert path.exists()
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            cache._paused_until = 0
            assert fill(pack_of(cache, "memfile"), 1) != [None]
            assert not path.exists()
    finally:
        os.close(descriptor)


def test_idle_segments_are_let_go(tmp_path: Path) -> None:
    """A process that no longer reads a segment does not pin it for ever."""
    with closing(NodeCache(tmp_path, 64 << 20)) as cache:
        pack = pack_of(cache)
        fill(pack, 1)
        (path,) = segments(tmp_path)
        descriptor = os.open(path, os.O_RDWR)
        try:
            with pytest.raises(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for _ in range(10):
                cache.tidy()
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(descriptor)
        assert find(pack, 1) == chunk_of(1)


def test_few_descriptors(tmp_path: Path) -> None:
    """A process holds no more segments open than its limits allow for."""
    with closing(NodeCache(tmp_path, 1 << 30)) as cache:
        cache._most_open = 8
        pack = pack_of(cache)
        slots = layout_of(cache).slots
        for number in range(20):
            fill(pack, number * slots)
        assert len(pack.segments) <= 8
        assert all(find(pack, number * slots) == chunk_of(number * slots) for number in range(20))


def test_after_reboot(tmp_path: Path) -> None:
    """After a reboot a chunk is hashed before it is used; a wrong one is fetched again."""
    with closing(NodeCache(tmp_path, 64 << 20, boot_id=BOOT)) as cache:
        fill(pack_of(cache), 0, 1, 2)
        layout = layout_of(cache)
    (path,) = segments(tmp_path)
    with path.open("r+b") as file:
        file.seek(layout.data + CHUNK + 77)
        file.write(b"\0\1\2\3")
    with closing(NodeCache(tmp_path, 64 << 20, boot_id=NEXT_BOOT)) as cache:
        pack = pack_of(cache)
        assert find(pack, 0) == chunk_of(0)
        assert path.read_bytes()[PAGE : PAGE + 3] == b"\1\2\2"
        assert find(pack, 1) is None
        assert find(pack, 1) is None
        assert path.read_bytes()[PAGE : PAGE + 3] == b"\1\0\2"
        assert fill(pack, 1) == [chunk_of(1)]
    with closing(NodeCache(tmp_path, 64 << 20, boot_id=NEXT_BOOT)) as cache:
        assert [find(pack_of(cache), n) for n in range(3)] == [chunk_of(n) for n in range(3)]
        assert path.read_bytes()[PAGE : PAGE + 3] == b"\1\1\1"


def _flip(at: int) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[at] ^= 0x40
        path.write_bytes(data)

    return damage


def _replace_by_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/hostname")


@pytest.mark.parametrize(
    "damage",
    [
        *(_flip(at) for at in (0, 9, 13, 17, 30, 41, 73)),
        lambda path: os.truncate(path, 10_000),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"something else"),
        _replace_by_link,
    ],
)
def test_damage_is_made_anew(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    """Whatever lies in a segment's place, it is replaced, and nobody is told."""
    with closing(NodeCache(tmp_path, 64 << 20)) as cache:
        fill(pack_of(cache), 1)
    damage(segments(tmp_path)[0])
    with closing(NodeCache(tmp_path, 64 << 20)) as cache:
        assert find(pack_of(cache), 1) is None
        assert fill(pack_of(cache), 1) == [chunk_of(1)]
        assert find(pack_of(cache), 1) == chunk_of(1)


def _spoil(path: Path, at: int) -> None:
    """Flip a bit of a file in its place, as a disk does."""
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 4]))


@pytest.mark.parametrize("opened", [False, True])
def test_damaged_chunks_are_found_before_their_first_use(
    tmp_path: Path, opened: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Flipped bits in a chunk, its sha256 or its state are noticed and made good."""
    with closing(NodeCache(tmp_path, 64 << 20)) as cache:
        fill(pack_of(cache), 0, 1, 2, 3, 4)
        layout = layout_of(cache)
    (path,) = segments(tmp_path)
    with closing(NodeCache(tmp_path, 64 << 20)) as cache:
        pack = pack_of(cache)
        if opened:
            assert find(pack, 0) == chunk_of(0)
        _spoil(path, layout.data + CHUNK + 77)
        _spoil(path, layout.digests + 2 * 32 + 5)
        _spoil(path, PAGE + 3)
        assert [find(pack, n) for n in range(5)] == [
            chunk_of(0), None, None, chunk_of(3), chunk_of(4)
        ]  # fmt: skip
        assert "damaged" in caplog.text
        assert fill(pack, 1, 2) == [chunk_of(1), chunk_of(2)]
        assert [find(pack, n) for n in range(5)] == [chunk_of(n) for n in range(5)]
    with closing(NodeCache(tmp_path, 64 << 20)) as cache:
        assert [find(pack_of(cache), n) for n in range(5)] == [chunk_of(n) for n in range(5)]


def test_what_the_disk_cannot_read_is_fetched(tmp_path: Path) -> None:
    """An error of the disk where a chunk lies is not the reader's: the chunk is missing."""
    with closing(NodeCache(tmp_path, 64 << 20)) as cache:
        fill(pack_of(cache), 0)
    with closing(NodeCache(tmp_path, 64 << 20)) as cache:
        pack = pack_of(cache)
        segment = pack._open(0, create=False)
        assert segment is not None
        good = os.dup(segment._descriptor)
        folder = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
        os.dup2(folder, segment._descriptor)  # reads fail with EISDIR
        assert find(pack, 0) is None
        os.dup2(good, segment._descriptor)
        os.close(folder)
        os.close(good)
        assert find(pack, 0) == chunk_of(0)


def test_foreign_things(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Folders where files should be, and files nobody knows, hurt nobody."""
    with closing(NodeCache(tmp_path, 2 << 20)) as cache:
        pack = pack_of(cache)
        (pack.folder / "00000000.seg").mkdir(parents=True)
        (tmp_path / "v1" / "stray").write_bytes(b"x")
        (tmp_path / "v0").mkdir()
        (tmp_path / "notes.txt").write_text("mine")
        assert fill(pack, 1, 2) == [None, None]
        cache._paused_until = 0
        assert fill(pack, *range(64, 400))[-1] == chunk_of(399)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert len([r for r in caplog.records if r.levelno == logging.WARNING]) == 1


def test_leftovers_of_makers(tmp_path: Path) -> None:
    """What killed makers left is cleared away, and what a living one makes stays."""
    with closing(NodeCache(tmp_path, 4 << 20)) as cache:
        pack = pack_of(cache)
        fill(pack, 0)
        (path,) = segments(tmp_path)
        os.link(path, path.with_name("linked.new"))
        for name, age in (("old.new", 3600), ("young.new", 0)):
            path.with_name(name).write_bytes(b"x")
            os.utime(path.with_name(name), (time.time() - age,) * 2)
        fill(pack, *range(1, 100))
        assert find(pack, 0) == chunk_of(0)
        assert sorted(p.name for p in path.parent.glob("*.new")) == ["young.new"]


def test_deleted_under_a_process(tmp_path: Path) -> None:
    """Somebody who removes the folder takes nothing from those who use it."""
    folder = tmp_path / "cache"
    with closing(NodeCache(folder, 64 << 20)) as cache:
        pack = pack_of(cache)
        fill(pack, 1)
        shutil.rmtree(folder)
        assert find(pack, 1) == chunk_of(1)
        slots = layout_of(cache).slots
        assert fill(pack, slots) == [chunk_of(slots)]
    with closing(NodeCache(folder, 64 << 20)) as cache:
        assert find(pack_of(cache), slots) == chunk_of(slots)


def test_full_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A full disk means uncached, with one warning; with room again, cached again."""
    with closing(NodeCache(tmp_path, 64 << 20)) as cache:
        pack = pack_of(cache)
        fill(pack, 0, 1)
        with largest_file(layout_of(cache).data + 4 * CHUNK):
            assert fill(pack, 9, 10, 11) == [None, None, None]
            assert find(pack, 9) is None
            assert find(pack, 1) == chunk_of(1)
            cache._paused_until = 0
            assert fill(pack, 9) == [None]
            cache._paused_until = 0
            assert fill(pack, layout_of(cache).slots) == [None]
        assert len([r for r in caplog.records if r.levelno == logging.WARNING]) == 1
        cache._paused_until = 0
        assert fill(pack, 9) == [chunk_of(9)]


_CHILD = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
from bootstream.block.cache import NodeCache
from tests.block.test_cache import *
cache = NodeCache(Path({folder!r}), 64 << 20)
pack = pack_of(cache)
chunks = [chunk_of(n) for n in range(40)]
digests = [digest_of(n) for n in range(40)]
print("ready", flush=True)
"""


def child(tmp_path: Path, code: str) -> subprocess.Popen[str]:
    """Start a process over the same folder."""
    root = str(Path(__file__).parents[2])
    text = _CHILD.format(root=root, folder=str(tmp_path)) + code
    return subprocess.Popen(
        [sys.executable, "-c", text], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )


def line(process: subprocess.Popen[str]) -> str:
    """Read one line of what it says."""
    assert process.stdout is not None
    return process.stdout.readline()


def test_processes_share(tmp_path: Path) -> None:
    """What one process fills while both run, the other finds."""
    code = "input(); print(all(find(pack, n) == chunks[n] for n in range(10)), flush=True)"
    with closing(NodeCache(tmp_path, 64 << 20)) as cache, child(tmp_path, code) as process:
        assert line(process) == "ready\n"
        fill(pack_of(cache), *range(10))
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        assert line(process) == "True\n"


def test_processes_fill_the_same(tmp_path: Path) -> None:
    """Two processes that make and fill the same segments at once agree."""
    code = (
        "input()\nprint(all(pack.fill(n, digests[n], chunks[n]) == chunks[n] for n in range(40)))"
    )
    with child(tmp_path, code) as one, child(tmp_path, code) as two:
        assert [line(one), line(two)] == ["ready\n", "ready\n"]
        for process in (one, two):
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        assert [line(one), line(two)] == ["True\n", "True\n"]
    assert not list(tmp_path.rglob("*.new"))
    with closing(NodeCache(tmp_path, 64 << 20)) as cache:
        assert all(find(pack_of(cache), n) == chunk_of(n) for n in range(40))


def test_processes_evict_each_others(tmp_path: Path) -> None:
    """Processes that fill and evict at once only ever see right bytes, within the limit."""
    code = (
        "cache.close(); cache = NodeCache(cache.folder, 2 << 20); pack = pack_of(cache)\n"
        "right, source = 0, random.Random(os.getpid())\n"
        "for turn in range(400):\n"
        "    n = source.randrange(40)\n"
        "    at = n * 7  # spread over several segments\n"
        "    view = pack.find(at, digests[n], CHUNK)\n"
        "    if view is None: view = pack.fill(at, digests[n], chunks[n])\n"
        "    right += view is None or view == chunks[n]\n"
        "    if turn % 20 == 0: [cache.tidy() for _ in range(8)]\n"
        "    cache._paused_until = 0\n"
        "print(right, cache.used() <= (2 << 20) + 2 * CHUNK, flush=True)\n"
    )
    with child(tmp_path, code) as one, child(tmp_path, code) as two:
        assert [line(one), line(two)] == ["ready\n", "ready\n"]
        assert [line(one), line(two)] == ["400 True\n", "400 True\n"]


@pytest.mark.parametrize("rounds", [0, 3, 9])
def test_kill_while_filling(tmp_path: Path, rounds: int) -> None:
    """After kill -9 at any moment, every chunk that is present is right."""
    code = (
        "while True:\n"
        "    for n in range(40):\n"
        "        pack.fill(n, digests[n], chunks[n])\n"
        "    print('round', flush=True)\n"
        "    import shutil; shutil.rmtree(pack.folder)\n"
        "    cache = NodeCache(cache.folder, 64 << 20); pack = pack_of(cache)\n"
    )
    with child(tmp_path, code) as process:
        assert line(process) == "ready\n"
        for _ in range(rounds):
            assert line(process) == "round\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
    with closing(NodeCache(tmp_path, 64 << 20)) as cache:
        pack = pack_of(cache)
        for path in segments(tmp_path):
            layout = layout_of(cache)
            data = path.read_bytes()
            for slot, state in enumerate(data[PAGE : PAGE + layout.slots]):
                if state:
                    at = layout.data + slot * CHUNK
                    assert data[at : at + CHUNK] == chunk_of(slot)
        assert fill(pack, *range(40)) == [chunk_of(n) for n in range(40)]


def test_many_at_once(tmp_path: Path) -> None:
    """Neighbours that are kept together are where single ones would be, across segments too."""
    with closing(NodeCache(tmp_path / "cache", 16 << 20)) as cache:
        pack = pack_of(cache)
        slots = layout_of(cache).slots
        fill(pack, 0, 5, slots)
        numbers = [0, 1, 2, 2, 3, 5, 6, slots - 1, slots, slots + 1, 4]
        chunks = [(n, digest_of(n), chunk_of(n)) for n in numbers]
        short = slots + 2
        last = chunk_of(short)[:1000]
        chunks.append((short, hashlib.sha256(last).digest(), last))
        views = pack.fill_many(chunks)
        assert [copy(view) for view in views] == [data for _, _, data in chunks]
    with closing(NodeCache(tmp_path / "cache", 16 << 20)) as cache:
        pack = pack_of(cache)
        assert [find(pack, n) for n in numbers] == [chunk_of(n) for n in numbers]
        assert copy(pack.find(short, chunks[-1][1], 1000)) == last


def test_many_on_a_full_disk(tmp_path: Path) -> None:
    """Where a run does not fit, its chunks are served uncached, and none is half there."""
    with closing(NodeCache(tmp_path / "cache", 64 << 20)) as cache:
        pack = pack_of(cache)
        fill(pack, 0)
        end = layout_of(cache).data + 4 * CHUNK
        chunks = [(n, digest_of(n), chunk_of(n)) for n in range(1, 9)]
        with largest_file(end):
            views = pack.fill_many(chunks)
        for (number, _, data), view in zip(chunks, views, strict=True):
            assert copy(view) in (None, data)
            assert find(pack, number) in (None, data)
        assert None in views
