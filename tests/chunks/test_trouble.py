"""Trouble while an artifact is written or exported: it passes, and nothing is left."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.chunks.helpers import CHUNK, NAME, WatchedStorage, build_id, chunk_of, publish

from bootstream.chunks.export import write_at
from bootstream.chunks.names import index_path, pack_path
from bootstream.chunks.parallel import in_order
from bootstream.chunks.reader import export_artifact, verify_artifact
from bootstream.chunks.writer import ArtifactSummary, write_artifact
from bootstream.errors import (
    BootstreamError,
    Cancelled,
    Conflict,
    InvalidInput,
    StorageFull,
    Unavailable,
)
from bootstream.progress import NoProgress
from bootstream.storage.memory import MemoryStorageProvider
from bootstream.storage.protocol import ReadableBuffer, Source

MIB = 1 << 20


class Stopping(NoProgress):
    """Raises an error once so many bytes are through."""

    def __init__(self, error: BootstreamError, after: int) -> None:
        self.error = error
        self.left = after
        self.heard: list[tuple[str, object]] = []

    def phase(self, name: str, total: int | None = None, unit: str = "B") -> None:
        self.heard.append((name, total))

    def advance(self, name: str, amount: int) -> None:
        self.heard.append((name, amount))
        self.left -= amount
        if self.left < 0:
            raise self.error

    def done(self, name: str) -> None:
        self.heard.append((name, "done"))


@pytest.fixture(autouse=True)
def _no_threads_are_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A file of 12 MiB, no two chunks of it alike."""
    path = tmp_path / "image"
    path.write_bytes(b"".join(chunk_of(n) for n in range(12 * MIB // CHUNK)))
    return path


def write(image: Path, storage: MemoryStorageProvider, **options: object) -> ArtifactSummary:
    """Write it with small chunks."""
    options.setdefault("chunk_size", CHUNK)
    return write_artifact(
        image,
        build_id=build_id(1),
        artifact=NAME,
        storage=storage,
        **options,  # type: ignore[arg-type]  # the tests name them right
    )


@pytest.mark.parametrize("form", ["chunked", "raw"])
@pytest.mark.parametrize("error", [Cancelled("stop"), Conflict("taken over")], ids=type)
@pytest.mark.parametrize("after", [0, 5 * MIB, 12 * MIB - 1])
def test_what_progress_raises(image: Path, error: BootstreamError, after: int, form: str) -> None:
    """It passes out as it is, and the store is as it was."""
    storage = WatchedStorage()
    with pytest.raises(type(error)) as caught:
        write(image, storage, progress=Stopping(error, after), form=form)
    assert caught.value is error
    assert storage.contents == {}


def test_progress_hears_of_every_byte(image: Path, tmp_path: Path) -> None:
    """Of zeros, holes and known chunks too; by the artifact's name."""
    storage = WatchedStorage()
    with image.open("ab") as file:
        file.truncate(40 * MIB + 5)
    progress = Stopping(Cancelled("never"), 1 << 40)
    write(image, storage, progress=progress)
    assert progress.heard[0] == (NAME, 40 * MIB + 5)
    assert progress.heard[-1] == (NAME, "done")
    assert sum(n for _, n in progress.heard[1:-1] if isinstance(n, int)) == 40 * MIB + 5
    _, index = publish(storage, tmp_path, b"".join(map(chunk_of, range(5000))), number=2)
    for read in (
        lambda p: verify_artifact(storage, index, NAME, progress=p),
        lambda p: export_artifact(storage, index, NAME, tmp_path / "target", progress=p),
    ):
        heard = Stopping(Cancelled("never"), 1 << 40)
        read(heard)
        assert heard.heard[0] == (NAME, 5000 * CHUNK)
        assert sum(n for _, n in heard.heard[1:-1] if isinstance(n, int)) == 5000 * CHUNK
        assert heard.heard[-1] == (NAME, "done")
        with pytest.raises(Cancelled):
            read(Stopping(Cancelled("stop"), 1000))


class Breaking:
    """A source that the store stops reading after a while."""

    def __init__(self, source: Source, after: int) -> None:
        self.source = source
        self.left = after

    def read(self, size: int, /) -> ReadableBuffer:
        data = self.source.read(size)
        self.left -= len(data)
        if self.left < 0:
            raise Unavailable("the store went away")
        return data


@pytest.mark.parametrize("after", [-1, 1000, 400_000])
def test_a_store_that_fails(image: Path, after: int) -> None:
    """Its error reaches the caller at once, however full the queues are."""
    storage = WatchedStorage()
    storage.on_upload = lambda path, source: Breaking(source, after)
    with pytest.raises(Unavailable, match="went away"):
        write(image, storage)
    assert storage.contents == {}


def test_a_store_that_fails_on_the_index(image: Path) -> None:
    """The index comes last: without it the pack is litter that collection takes."""
    storage = WatchedStorage()

    def upload(path: str, source: Source) -> Source:
        if path.endswith(".index"):
            raise StorageFull("no room", operation="write object", object=path)
        return source

    storage.on_upload = upload
    with pytest.raises(StorageFull):
        write(image, storage)
    assert list(storage.contents) == [pack_path(build_id(1), NAME)]


def test_a_store_that_takes_small_bites(image: Path) -> None:
    """Any size of read gives the same pack."""
    whole, bites = WatchedStorage(), WatchedStorage()
    write(image, whole)

    class Small:
        def __init__(self, source: Source) -> None:
            self.source = source

        def read(self, size: int, /) -> ReadableBuffer:
            return self.source.read(min(size, 4099))

    bites.on_upload = lambda path, source: Small(source)
    write(image, bites)
    for path in (pack_path(build_id(1), NAME), index_path(build_id(1), NAME)):
        assert whole.contents[path][0] == bites.contents[path][0]


def during_upload(storage: WatchedStorage, action: Callable[[], object]) -> None:
    """Run ``action`` once the upload of the pack has begun."""

    def upload(path: str, source: Source) -> Source:
        action()
        return source

    storage.on_upload = upload


def test_a_file_that_changes_meanwhile(image: Path) -> None:
    """Shorter or written to: refused, for what was stored may be a mixture."""
    storage = WatchedStorage()
    with image.open("r+b") as file:
        during_upload(storage, lambda: file.truncate(7 * MIB + 3))
        with pytest.raises(InvalidInput, match="changed"):
            write(image, storage)
    assert storage.contents == {}
    with image.open("r+b", buffering=0) as file:
        during_upload(storage, lambda: file.write(b"new"))
        with pytest.raises(InvalidInput, match="changed"):
            write(image, storage)
    assert storage.contents == {}


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"chunk_size": 5000}, "not a chunk size"),
        ({"chunk_size": 0}, "not a chunk size"),
        ({"chunk_size": 2048}, "not a chunk size"),
        ({"chunk_size": 32 * MIB}, "not a chunk size"),
        ({"level": 0}, "compression level"),
        ({"level": 23}, "compression level"),
        ({"threads": 0}, "number of threads"),
        ({"threads": -1}, "number of threads"),
    ],
)
def test_bad_arguments(image: Path, options: dict[str, object], what: str) -> None:
    """They are refused before anything is read or written."""
    storage = WatchedStorage()
    with pytest.raises(InvalidInput, match=what) as caught:
        write(image, storage, **options)
    assert caught.value.remedy
    assert storage.contents == {}


def test_bad_files(tmp_path: Path) -> None:
    """A folder, a pipe or nothing is no artifact; too large a one is refused at once."""
    storage = WatchedStorage()
    with pytest.raises(InvalidInput, match="regular"):
        write(tmp_path, storage)
    with pytest.raises(InvalidInput, match="No such file"):
        write(tmp_path / "missing", storage)
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(CHUNK * ((1 << 28) + 1))
    with pytest.raises(InvalidInput, match="more chunks"):
        write(large, storage)
    assert storage.contents == {}


def test_a_child_has_its_parents_chunk_size(tmp_path: Path) -> None:
    """Another one is refused, none is inherited."""
    storage = WatchedStorage()
    _, parent = publish(storage, tmp_path, chunk_of(1), chunk_size=2 * CHUNK)
    summary, _ = publish(storage, tmp_path, chunk_of(2), number=2, parent=parent)
    assert summary.chunk_size == 2 * CHUNK
    with pytest.raises(InvalidInput, match="parent"):
        publish(storage, tmp_path, chunk_of(2), number=3, parent=parent, chunk_size=CHUNK)


def test_export_without_room(tmp_path: Path) -> None:
    """A full disk is StorageFull; so is a limit on the size of files."""
    storage = WatchedStorage()
    _, index = publish(storage, tmp_path, b"".join(map(chunk_of, range(100))))
    full = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(StorageFull):
        write_at(full, b"x", 0, Path("/dev/full"))
    os.close(full)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50 * CHUNK, before[1]))
    try:
        with pytest.raises(StorageFull):
            export_artifact(storage, index, NAME, tmp_path / "limited")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    with pytest.raises(InvalidInput):
        export_artifact(storage, index, NAME, tmp_path)
    with pytest.raises(InvalidInput):
        export_artifact(storage, index, NAME, tmp_path / "no" / "folder")


def test_memory_of_the_writer_does_not_grow(tmp_path: Path) -> None:
    """Eight times the file takes no more memory, in a process of its own."""
    sizes = []
    for megabytes in (24, 192):
        path = tmp_path / f"{megabytes}"
        piece = b"".join(chunk_of(n, 65536) for n in range(16))
        with path.open("wb") as file:
            for number in range(megabytes):
                file.write(number.to_bytes(4, "big") * 16384 + piece[65536:])
        sizes.append(peak_of_writer(path))
    sys.stdout.write(f"{sizes}\n")
    assert sizes[1] < sizes[0] + 24 * MIB


def peak_of_writer(path: Path) -> int:
    """Peak memory of a process that writes ``path`` to nowhere."""
    result = subprocess.run(
        [sys.executable, "-c", _WRITER, str(path), build_id(1)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return int(result.stdout)


_WRITER = """
import sys
from pathlib import Path
from bootstream.chunks.writer import write_artifact

class Nowhere:
    def open_object(self, path):
        return self
    def read_from(self, source):
        count = 0
        while data := source.read(1 << 20):
            count += len(data)
        return count

write_artifact(
    Path(sys.argv[1]), build_id=sys.argv[2], artifact="memfile", storage=Nowhere(), threads=2
)
for line in open("/proc/self/status"):
    if line.startswith("VmHWM"):
        print(int(line.split()[1]) * 1024)
"""


def test_in_order() -> None:
    """Results keep their order; no more than asked for is begun ahead; errors come in place."""
    begun: list[int] = []

    def items() -> Iterator[int]:
        for number in range(100):
            begun.append(number)
            yield number

    results = in_order(lambda n: n * n, items(), threads=3, ahead=5)
    assert [next(results) for _ in range(10)] == [n * n for n in range(10)]
    assert len(begun) <= 16
    results.close()

    def fail(number: int) -> int:
        if number == 7:
            raise Cancelled("seven")
        return number

    got = []
    with pytest.raises(Cancelled):
        for result in in_order(fail, range(100), threads=3, ahead=5):
            got.append(result)
    assert got == list(range(7))
