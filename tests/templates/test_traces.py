"""Traces beside builds: stored and checked, made of file lists, kept by servers."""

from __future__ import annotations

import io
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from bootstream.block.chunked import ChunkedDevice
from bootstream.block.trace import MAX_SIZE, Touch, Trace, fold
from bootstream.chunks.names import trace_path, validate_artifact
from bootstream.chunks.reader import ChunkReader, load_index
from bootstream.errors import Corrupt, InvalidInput, NotFound, PermissionDenied, Unavailable
from bootstream.storage.memory import MemoryStorageProvider
from bootstream.storage.protocol import StorageProvider
from bootstream.templates import traces
from bootstream.templates.build import ROOTFS, TemplateBuilder
from bootstream.templates.manifest import Manifest
from bootstream.templates.names import TemplateName
from bootstream.templates.traces import (
    TraceKeeper,
    TraceMode,
    load_trace,
    remove_trace,
    store_trace,
    trace_of_files,
)
from bootstream.testing.images import LayerBuilder

CHUNK = 64 << 10
COUNT = 32


def publish(storage: StorageProvider, image: Path, scratch: Path) -> Manifest:
    """Make a build of an image."""
    builder = TemplateBuilder(storage, scratch=scratch, node_id="node")
    return builder.from_files({ROOTFS: image}, TemplateName.parse("vm")).manifest


@pytest.fixture
def storage() -> MemoryStorageProvider:
    return MemoryStorageProvider()


@pytest.fixture
def build(storage: MemoryStorageProvider, tmp_path: Path) -> Manifest:
    """A build of 32 chunks, the last of them short."""
    (tmp_path / "disk").write_bytes(random.Random(1).randbytes(COUNT * CHUNK - 5000))
    return publish(storage, tmp_path / "disk", tmp_path / "scratch")


def device_of(storage: StorageProvider, build: Manifest) -> ChunkedDevice:
    index = load_index(storage, build.build_id, ROOTFS)
    return ChunkedDevice(ChunkReader(storage, index), None, store="s")


def trace_of(build: Manifest, *chunks: int) -> Trace:
    digest = build.artifact(ROOTFS).index_sha256
    return Trace(digest, CHUNK, fold((0, chunk) for chunk in chunks))


def read(device: ChunkedDevice, *chunks: int) -> None:
    for chunk in chunks:
        device.read_into(memoryview(bytearray(100)), chunk * CHUNK)


def test_stored_once_and_replaced(storage: MemoryStorageProvider, build: Manifest) -> None:
    """By itself only where there is none; by the verb always; gone when removed."""
    assert load_trace(storage, build, ROOTFS) is None
    assert store_trace(storage, build, ROOTFS, trace_of(build, 1, 2), replace=False)
    assert not store_trace(storage, build, ROOTFS, trace_of(build, 3), replace=False)
    assert load_trace(storage, build, ROOTFS) == trace_of(build, 1, 2)
    assert store_trace(storage, build, ROOTFS, trace_of(build, 31), replace=True)
    assert load_trace(storage, build, ROOTFS) == trace_of(build, 31)
    assert remove_trace(storage, build, ROOTFS)
    assert not remove_trace(storage, build, ROOTFS)
    with pytest.raises(InvalidInput):
        load_trace(storage, build, "memfile")


def test_only_a_trace_of_these_contents(storage: MemoryStorageProvider, build: Manifest) -> None:
    """Neither one of another index, nor one that goes beyond the image, is stored or read."""
    entry = build.artifact(ROOTFS)
    for wrong in (
        Trace("ab" * 32, CHUNK, (Touch(0, 1, 1),)),
        Trace(entry.index_sha256, CHUNK * 2, (Touch(0, 1, 1),)),
        trace_of(build, COUNT),
        Trace(entry.index_sha256, CHUNK, (Touch(0, 0, COUNT + 1),)),
    ):
        with pytest.raises(InvalidInput):
            store_trace(storage, build, ROOTFS, wrong, replace=True)
        storage.open_object(trace_path(build.build_id, ROOTFS)).put(wrong.encode())
        with pytest.raises(Corrupt, match="other contents"):
            load_trace(storage, build, ROOTFS)


def test_a_trace_of_any_size(storage: MemoryStorageProvider, build: Manifest) -> None:
    """More than one read long is read whole; more than can be is refused, not read."""
    target = storage.open_object(trace_path(build.build_id, ROOTFS))
    data = trace_of(build, 5).encode()
    for padding in (0, (64 << 10) - len(data), 200_000):
        target.put(data + b" " * padding)
        assert load_trace(storage, build, ROOTFS) == trace_of(build, 5)
    target.put(data + b" " * MAX_SIZE)
    with pytest.raises(Corrupt, match="larger"):
        load_trace(storage, build, ROOTFS)


def test_no_artifact_has_a_traces_name() -> None:
    """The raw form of one could otherwise lie where another one's trace does."""
    with pytest.raises(InvalidInput):
        validate_artifact("rootfs.ext4.trace")


# -- keepers ------------------------------------------------------------------------------------


class Warned(list[str]):
    """What was said."""

    def __call__(self, text: str) -> None:
        self.append(text)


Keep = Callable[..., tuple[TraceKeeper, ChunkedDevice]]


@pytest.fixture
def keep(storage: MemoryStorageProvider, build: Manifest, request: pytest.FixtureRequest) -> Keep:
    """Make keepers that are finished, and whose devices are closed, at the end."""

    def make(
        mode: TraceMode = TraceMode.AUTO,
        *,
        store: StorageProvider = storage,
        warned: Warned | None = None,
        seconds: float = 60.0,
    ) -> tuple[TraceKeeper, ChunkedDevice]:
        device = device_of(storage, build)
        keeper = TraceKeeper(
            store,
            build,
            ROOTFS,
            device,
            mode=mode,
            warn=Warned() if warned is None else warned,
            seconds=seconds,
        )
        request.addfinalizer(device.close)
        request.addfinalizer(keeper.finish)
        return keeper, device

    return make


def test_a_keeper_stores_at_the_end(
    storage: MemoryStorageProvider, build: Manifest, keep: Keep
) -> None:
    """What was read until then, once; finishing again changes nothing."""
    keeper, device = keep()
    read(device, *range(10, 20), 3)
    keeper.finish()
    assert keeper.state == "stored"
    found = load_trace(storage, build, ROOTFS)
    assert found is not None
    assert list(found.chunks()) == [*range(10, 20), 3]
    read(device, 4)
    keeper.finish()
    assert load_trace(storage, build, ROOTFS) == found


def test_a_keeper_stores_after_a_while(
    storage: MemoryStorageProvider, build: Manifest, keep: Keep
) -> None:
    """Some time after the first touch, without an end; later touches are not in it."""
    stored = threading.Event()

    class Telling(MemoryStorageProvider):
        def open_object(self, path: str):  # type: ignore[no-untyped-def]
            inner = storage.open_object(path)
            if path.endswith(".trace"):
                put = inner.put

                def told(data, **more):  # type: ignore[no-untyped-def]
                    put(data, **more)
                    stored.set()

                inner.put = told  # type: ignore[method-assign]
            return inner

    keeper, device = keep(store=Telling(), seconds=0.5)
    read(device, *range(9))
    assert stored.wait(20)
    keeper.finish()
    assert keeper.state == "stored"
    assert load_trace(storage, build, ROOTFS) is not None


def test_a_keeper_replays(storage: MemoryStorageProvider, build: Manifest, keep: Keep) -> None:
    """What is stored comes before anybody asks; nothing is recorded then."""
    store_trace(storage, build, ROOTFS, trace_of(build, 7, 8, 31), replace=True)
    keeper, device = keep()
    keeper.finish()
    assert keeper.state == "replayed"
    assert device.wait_for_prefetch(20)
    read(device, 7, 8, 31)
    assert (device.counters.requests, device.counters.waits) == (0, 0)
    assert load_trace(storage, build, ROOTFS) == trace_of(build, 7, 8, 31)


def test_what_keepers_leave_alone(
    storage: MemoryStorageProvider, build: Manifest, keep: Keep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing read, too little, a copy, and --trace off store nothing."""
    for mode in TraceMode:
        keeper, _ = keep(mode)
        keeper.finish()
    keeper, device = keep()
    read(device, 1, 2, 3)
    keeper.finish()
    assert keeper.state == "not stored"
    keeper, device = keep(TraceMode.OFF)
    read(device, *range(12))
    keeper.finish()
    assert keeper.state == "off"
    monkeypatch.setattr(traces, "COPY_BYTES", 10 * CHUNK)
    keeper, device = keep()
    read(device, *range(20))
    keeper.finish()
    assert keeper.state == "not stored"
    assert load_trace(storage, build, ROOTFS) is None
    keeper, device = keep(TraceMode.RECORD)
    read(device, *range(20))
    keeper.finish()
    assert keeper.state == "stored"


def test_trouble_of_the_store(
    storage: MemoryStorageProvider, build: Manifest, keep: Keep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may not be read, or not be written to: nobody hears of it. Damage is a warning."""
    warned = Warned()

    def refuse(*_: object, **__: object) -> bool:
        raise PermissionDenied("read-only")

    def fail(*_: object, **__: object) -> None:
        raise Unavailable("not now")

    with monkeypatch.context() as patch:
        patch.setattr(traces, "store_trace", refuse)
        keeper, device = keep(warned=warned)
        read(device, *range(12))
        keeper.finish()
        assert keeper.state == "not stored"
        patch.setattr(traces, "load_trace", fail)
        keeper, device = keep(warned=warned)
        read(device, *range(12))
        keeper.finish()
        assert (keeper.state, warned) == ("ignored", [])
    storage.open_object(trace_path(build.build_id, ROOTFS)).put(b"{")
    keeper, device = keep(warned=warned)
    read(device, *range(12))
    keeper.finish()
    assert keeper.state == "ignored"
    assert len(warned) == 1
    assert "trace rm" in warned[0] or "not a trace" in warned[0]


# -- file lists ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tree(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[ChunkedDevice, dict[str, bytes]]]:
    """An image with files, a folder of them, links and a file with a hole."""
    from bootstream.progress import NO_PROGRESS  # noqa: PLC0415
    from bootstream.rootfs import Ext4Options, build_ext4  # noqa: PLC0415 - for these tests

    noise = random.Random(4)
    files = {f"data/{n}": noise.randbytes(200_000 + 7 * n) for n in range(6)}
    files["data/below/deep"] = noise.randbytes(50_000)
    files["hole"] = bytes(300_000) + noise.randbytes(5_000)
    files["other"] = noise.randbytes(300_000)
    layer = LayerBuilder().folder("data").folder("data/below")
    for name, data in files.items():
        layer = layer.file(name, data)
    layer = layer.link("link", "data/1")
    folder = tmp_path_factory.mktemp("tree")
    data = layer.finish()
    build_ext4(
        [lambda: io.BytesIO(data)],
        folder / "image",
        Ext4Options(),
        NO_PROGRESS,
        seed="1",
    )
    storage = MemoryStorageProvider()
    build = publish(storage, folder / "image", folder / "scratch")
    with closing(device_of(storage, build)) as device:
        yield device, files


def reading(device: ChunkedDevice, trace: Trace, files: dict[str, bytes]) -> None:
    """Read files of an image of which nothing but the trace's chunks can be read."""
    from bootstream.rootfs.ext4.reader import Ext4FileSystem  # noqa: PLC0415 - for these tests

    known = set(trace.chunks())

    def read_at(view: memoryview, offset: int) -> None:
        last = (offset + len(view) - 1) // CHUNK
        for chunk in range(offset // CHUNK, last + 1):
            assert chunk in known or device.index.is_zero(chunk), chunk
        device.read_into(view, offset)

    system = Ext4FileSystem(read_at, device.size)
    for name, contents in files.items():
        with system.open(name.encode()) as file:
            assert file.read() == contents


def test_file_lists(tree: tuple[ChunkedDevice, dict[str, bytes]]) -> None:
    """Everything that reading the files needs is in the trace, and not all of the image."""
    device, files = tree
    made = trace_of_files(device.index, device.read_into, [b"/other", b"hole", b"/link"])
    assert Trace.decode(made.encode(), name="t") == made
    reading(device, made, {"other": files["other"], "hole": files["hole"], "link": files["data/1"]})
    everything = trace_of_files(device.index, device.read_into, [b"/"])
    reading(device, everything, files)
    assert made.chunk_count < everything.chunk_count
    below = trace_of_files(device.index, device.read_into, [b"/data"])
    reading(device, below, {k: v for k, v in files.items() if k.startswith("data/")})
    with pytest.raises(AssertionError):
        reading(device, below, {"other": files["other"]})


def test_files_that_are_not_there(tree: tuple[ChunkedDevice, dict[str, bytes]]) -> None:
    """NotFound names the path; whoever wants to, is told and goes on."""
    device, _ = tree
    with pytest.raises(NotFound) as caught:
        trace_of_files(device.index, device.read_into, [b"/other", b"/no/file"])
    assert caught.value.object == "/no/file"
    missing: list[bytes] = []
    made = trace_of_files(
        device.index, device.read_into, [b"/no/file", b"/other"], missing=missing.append
    )
    assert missing == [b"/no/file"]
    assert made.chunk_count > 0
