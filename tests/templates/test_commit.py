"""Commits of overlays, flattening and compacting: content, cost, safety."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bootstream.block.chunked import ChunkedDevice
from bootstream.block.overlay import Overlay
from bootstream.chunks.fetch import ChunkReader
from bootstream.chunks.fragmentation import measure
from bootstream.errors import BuildNotFound, Conflict, InvalidInput, Unavailable
from bootstream.storage.faults import WRITES, Fails, Fault, FaultStorageProvider
from bootstream.storage.local import LocalStorageProvider
from bootstream.storage.memory import MemoryStorageProvider
from bootstream.storage.protocol import StorageProvider
from bootstream.templates.build import ROOTFS, BuildOptions, TemplateBuilder
from bootstream.templates.catalogue import Catalogue
from bootstream.templates.collect import collect
from bootstream.templates.commit import Commit, CommitOptions, commit, find_base
from bootstream.templates.commit_artifacts import load
from bootstream.templates.flatten import compact, flatten
from bootstream.templates.manifest import Manifest
from bootstream.templates.names import TemplateName, dependent_path
from bootstream.templates.verify import verify_build
from bootstream.testing.device import read_all, sample_contents

CHUNK = 16 << 10
SIZE = 40 * CHUNK + 5000


def contents_of(storage: StorageProvider, manifest: Manifest, artifact: str = ROOTFS) -> bytes:
    """All bytes of an artifact, by way of the device."""
    index = load(storage, manifest, artifact)
    device = ChunkedDevice(ChunkReader(storage, index), None, store="s")
    with closing(device):
        return read_all(device)


@dataclass
class Host:
    """A host with a store, and an overlay over a build that it made."""

    storage: StorageProvider
    folder: Path
    contents: bytes = field(default_factory=lambda: sample_contents(SIZE, seed=3))

    def build(self, name: str = "t", **more: bytes) -> Manifest:
        """Publish the contents as a build."""
        files = {ROOTFS: self.folder / "image"}
        files[ROOTFS].write_bytes(self.contents)
        for artifact, data in more.items():
            files[artifact] = self.folder / artifact
            files[artifact].write_bytes(data)
        builder = TemplateBuilder(self.storage, scratch=self.folder / "scratch", node_id="n")
        options = BuildOptions(chunk_size=CHUNK, parent="none")
        return builder.from_files(files, TemplateName.parse(name), options=options).manifest

    @contextmanager
    def overlay(self, base: Manifest, path: Path | None = None) -> Iterator[Overlay]:
        """An overlay over the build."""
        index = load(self.storage, base, ROOTFS)
        chunked = ChunkedDevice(ChunkReader(self.storage, index), None, store="s")
        with closing(chunked):
            overlay = Overlay(chunked, path, base_digest=index.digest, folder=self.folder)
            with closing(overlay):
                yield overlay

    def commit(self, overlay: Overlay, base: Manifest, **options: object) -> Commit:
        """Commit what the overlay holds."""
        with overlay.freeze() as frozen:
            return commit(
                self.storage,
                frozen,
                base,
                node_id="n",
                scratch=self.folder / "scratch",
                options=CommitOptions(**options),  # type: ignore[arg-type]  # the test's own
            )


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(MemoryStorageProvider(), tmp_path)


ranges = st.tuples(st.integers(0, SIZE - 1), st.integers(1, 5 * CHUNK)).map(
    lambda pair: (pair[0], min(pair[1], SIZE - pair[0]))
)
aligned = st.tuples(st.integers(0, 39), st.integers(1, 6)).map(
    lambda pair: (pair[0] * CHUNK, min(pair[1] * CHUNK, SIZE - pair[0] * CHUNK))
)
steps = st.lists(
    st.tuples(
        st.sampled_from(["write", "write", "base", "zeros", "trim", "zero", "flush", "commit"]),
        ranges | aligned,
        st.integers(1, 3),
    ),
    max_size=14,
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=steps, kept=st.booleans(), flat=st.booleans())
def test_model(
    tmp_path: Path, steps: list[tuple[str, tuple[int, int], int]], kept: bool, flat: bool
) -> None:
    """Every commit of any history has the bytes that the device had, and is sound."""
    path = tmp_path / "overlay"
    path.unlink(missing_ok=True)
    host = Host(MemoryStorageProvider(), tmp_path)
    base = host.build()
    model = bytearray(host.contents)
    with host.overlay(base, path if kept else None) as overlay:
        for step, (offset, length), value in [*steps, ("commit", (0, 1), 1)]:
            data = bytes(length)
            if step in ("write", "base", "zeros"):
                if step != "zeros":
                    data = bytes([value]) * length
                if step == "base":
                    data = host.contents[offset : offset + length]
                overlay.write(memoryview(data), offset)
            elif step in ("trim", "zero"):
                overlay.zero(offset, length, may_trim=step == "trim")
            elif step == "flush":
                overlay.flush()
            if step in ("flush", "commit"):
                if step == "commit":
                    done = host.commit(overlay, base, flat=flat).published.manifest
                    assert contents_of(host.storage, done) == model
                    assert not verify_build(host.storage, done).problems
                    if flat:
                        assert done.depends_on == ()
                continue
            model[offset : offset + length] = data
        assert read_all(overlay) == model


def test_only_what_changed_is_stored_and_read(host: Host) -> None:
    """One new chunk is one frame; chunks as before, zeros and copies of others are references."""
    host.contents = random.Random(1).randbytes(SIZE)
    base = host.build()
    with host.overlay(base) as overlay:
        overlay.write(memoryview(random.Random(2).randbytes(CHUNK)), 7 * CHUNK)
        overlay.write(memoryview(bytes(CHUNK)), 9 * CHUNK)
        overlay.trim(11 * CHUNK, CHUNK)
        overlay.write(memoryview(host.contents[:CHUNK]), 13 * CHUNK)
        with mock.patch.object(
            ChunkReader, "fetch", side_effect=AssertionError("the base was read")
        ):
            done = host.commit(overlay, base)
    [summary] = done.published.summaries.values()
    assert (summary.new_chunks, summary.zero_chunks) == (1, 2)
    assert summary.parent_chunks == 41 - 3
    assert CHUNK <= summary.stored_bytes <= CHUNK + 200
    assert done.bytes_changed == 4 * CHUNK
    manifest = done.published.manifest
    assert (manifest.parent, manifest.depends_on) == (base.build_id, (base.build_id,))
    assert host.storage.open_object(dependent_path(base.build_id, manifest.build_id)).exists()


def test_second_commit_builds_on_the_first(host: Host, tmp_path: Path) -> None:
    """Its parent is the first, its cost what was written since; also after a restart."""
    host.contents = random.Random(1).randbytes(SIZE)
    base = host.build()
    path = tmp_path / "overlay"
    with host.overlay(base, path) as overlay:
        overlay.write(memoryview(random.Random(2).randbytes(20 * CHUNK)), 0)
        first = host.commit(overlay, base).published.manifest
        overlay.write(memoryview(b"second"), 30 * CHUNK)
    with host.overlay(base, path) as overlay:
        second = host.commit(overlay, base)
        assert second.parent == first.build_id
        [summary] = second.published.summaries.values()
        assert (summary.new_chunks, second.bytes_changed) == (1, 4096)
        assert contents_of(host.storage, second.published.manifest) == read_all(overlay)
        assert set(second.published.manifest.depends_on) == {base.build_id, first.build_id}


def test_parents_that_are_gone(host: Host) -> None:
    """A commit that was deleted is passed over; without the base, --flat is the way."""
    base = host.build()
    catalogue = Catalogue(host.storage)
    with host.overlay(base) as overlay:
        overlay.write(memoryview(b"first"), 0)
        first = host.commit(overlay, base).published.manifest
        catalogue.delete_build(first.build_id)
        overlay.write(memoryview(b"second"), 5 * CHUNK)
        second = host.commit(overlay, base)
        assert second.parent == base.build_id
        assert contents_of(host.storage, second.published.manifest) == read_all(overlay)
        catalogue.delete_build(second.published.manifest.build_id)
        catalogue.delete_build(base.build_id)
        before = {info.path for info in host.storage.list_objects()}
        with pytest.raises(BuildNotFound) as caught:
            host.commit(overlay, base)
        assert "--flat" in (caught.value.remedy or "")
        assert {info.path for info in host.storage.list_objects()} == before
        flat = host.commit(overlay, base, flat=True).published.manifest
        assert flat.depends_on == ()
        assert flat.parent is None
        assert contents_of(host.storage, flat) == read_all(overlay)


def test_twenty_commits_stay_flat(host: Host, tmp_path: Path) -> None:
    """However long the history, one index names all; flattened it needs nobody."""
    base = host.build()
    last = base
    with host.overlay(base, tmp_path / "overlay") as overlay:
        for turn in range(20):
            overlay.write(memoryview(bytes([turn + 1]) * 700), turn * 2 * CHUNK % SIZE)
            last = host.commit(overlay, base).published.manifest
            assert last.parent is not None
        expected = read_all(overlay)
        assert len(overlay._chain) == 2
    assert contents_of(host.storage, last) == expected
    index = load(host.storage, last, ROOTFS)
    assert len(index.packs) == 21
    assert set(last.depends_on) == {pack.build_id for pack in index.packs} - {last.build_id}
    alone = flatten(host.storage, last, node_id="n", scratch=tmp_path).manifest
    assert (alone.depends_on, alone.parent) == ((), None)
    for build in Catalogue(host.storage).builds():
        if build.manifest.build_id != alone.build_id:
            Catalogue(host.storage).delete_build(build.manifest.build_id)
    collect(host.storage, older_than=timedelta(0))
    assert {info.path.split("/")[0] for info in host.storage.list_objects()} <= {
        alone.build_id,
        "templates",
    }
    assert contents_of(host.storage, alone) == expected


def test_history_with_too_many_packs_begins_anew(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An index has room for so many packs; the commit after that stores every chunk."""
    for module in ("chunks.build", "templates.commit", "templates.commit_artifacts"):
        monkeypatch.setattr(f"bootstream.{module}.MAX_PACKS", 3)
    base = host.build(memfile=sample_contents(SIZE, seed=8))
    packs = []
    with host.overlay(base, tmp_path / "overlay") as overlay:
        for turn in range(6):
            overlay.write(memoryview(bytes([turn + 1]) * 700), turn * 2 * CHUNK)
            done = host.commit(overlay, base).published.manifest
            packs.append(len(load(host.storage, done, ROOTFS).packs))
            assert contents_of(host.storage, done) == read_all(overlay)
            assert not verify_build(host.storage, done).problems
    assert packs == [2, 3, 1, 2, 3, 1]


def test_compact_keeps_to_the_budget(host: Host, tmp_path: Path) -> None:
    """Only as much is stored anew as the budget asks for; the bytes are the same."""
    source = random.Random(5)
    host.contents = source.randbytes(256 * CHUNK)
    base = host.build()
    last = base
    with host.overlay(base) as overlay:
        for _ in range(12):
            for _ in range(4):
                block = source.randrange(256)
                overlay.write(memoryview(source.randbytes(100)), block * CHUNK)
            last = host.commit(overlay, base).published.manifest
        expected = read_all(overlay)
    assert measure(load(host.storage, base, ROOTFS)).figure == 1
    scattered = measure(load(host.storage, last, ROOTFS))
    assert scattered.ideal == 2
    assert scattered.requests > 10
    stored = []
    for budget in (5.0, 2.0, 1.0):
        done = compact(host.storage, last, node_id="n", scratch=tmp_path, budget=budget)
        assert done.published is not None
        assert done.before[ROOTFS] == scattered
        assert done.after[ROOTFS].figure <= budget
        assert contents_of(host.storage, done.published.manifest) == expected
        assert done.published.manifest.parent == last.build_id
        stored.append(done.published.summaries[ROOTFS].stored_bytes)
    assert stored == sorted(stored)
    assert stored[1] < 60 * CHUNK
    again = compact(host.storage, last, node_id="n", scratch=tmp_path, budget=1000)
    assert again.published is None
    with pytest.raises(InvalidInput):
        compact(host.storage, last, node_id="n", scratch=tmp_path, budget=0.5)


def test_other_artifacts(host: Host, tmp_path: Path) -> None:
    """A memory snapshot is left out unless it is asked for; flattening takes all along."""
    memory, snapshot = sample_contents(SIZE, seed=11), b"state" * 100
    base = host.build(memfile=memory, snapfile=snapshot)
    with host.overlay(base) as overlay:
        overlay.write(memoryview(b"new"), 0)
        assert set(host.commit(overlay, base).published.manifest.artifacts) == {ROOTFS}
        overlay.write(memoryview(b"newer"), 0)
        with pytest.raises(InvalidInput, match="memfile"):
            host.commit(overlay, base, carry=("memfile",))  # its parent has none any more
    with host.overlay(base) as overlay:
        overlay.write(memoryview(b"new"), 0)
        all_of_it = host.commit(overlay, base, carry=("memfile", "snapfile")).published.manifest
    for manifest in (
        all_of_it,
        flatten(host.storage, all_of_it, node_id="n", scratch=tmp_path / "s").manifest,
    ):
        assert contents_of(host.storage, manifest, "memfile") == memory
        assert contents_of(host.storage, manifest, "snapfile") == snapshot
        assert manifest.artifact("snapfile").sha256 == base.artifact("snapfile").sha256
        assert not verify_build(host.storage, manifest).problems


def test_what_a_broken_commit_leaves(host: Host, tmp_path: Path) -> None:
    """A store that fails in between shows nothing, and the next commit has all of it."""
    base = host.build()
    sound = host.storage
    with host.overlay(base, tmp_path / "overlay") as overlay:
        overlay.write(memoryview(b"one"), 3 * CHUNK)
        before = {info.path for info in sound.list_objects()}
        for path in ("rootfs.ext4.pack", "rootfs.ext4.index", "manifest.json"):
            fault = Fault(Fails(lambda: Unavailable("gone")), WRITES, paths=f"*/{path}", count=1)
            host.storage = FaultStorageProvider(sound, fault)
            with pytest.raises(Unavailable):
                host.commit(overlay, base)
            assert {info.path for info in sound.list_objects()} == before
            overlay.write(memoryview(path.encode()), 20 * CHUNK)
        host.storage = sound
        done = host.commit(overlay, base).published.manifest
        assert contents_of(sound, done) == read_all(overlay)


def test_two_hosts_at_once(host: Host, tmp_path: Path) -> None:
    """Both builds are published; the tag is given to one by --if-current."""
    base = host.build()
    Catalogue(host.storage).set_tag("t", "latest", base.build_id)
    start = threading.Barrier(2)

    def work(number: int) -> tuple[Manifest, bytes, bool]:
        with host.overlay(base, tmp_path / f"overlay{number}") as overlay:
            overlay.write(memoryview(bytes([number + 1]) * 9000), number * 3 * CHUNK)
            start.wait(20)
            manifest = host.commit(overlay, base).published.manifest
            try:
                Catalogue(host.storage).set_tag(
                    "t", "latest", manifest.build_id, if_current=base.build_id
                )
                won = True
            except Conflict:
                won = False
            return manifest, read_all(overlay), won

    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(work, range(2)))
    assert [won for _, _, won in done].count(True) == 1
    for manifest, expected, won in done:
        assert contents_of(host.storage, manifest) == expected
        assert (Catalogue(host.storage).resolve("t").build_id == manifest.build_id) == won


def test_base_is_found_by_its_index(host: Host) -> None:
    """An overlay file names its base's index; that is enough to find the build."""
    base = host.build()
    digest = base.artifact(ROOTFS).index_sha256
    assert find_base(host.storage, digest).build_id == base.build_id
    with pytest.raises(BuildNotFound):
        find_base(host.storage, "0" * 64)


_CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.templates.test_commit import Host
from bootstream.storage.local import LocalStorageProvider
from bootstream.templates.manifest import read_published
folder = Path(sys.argv[2])
host = Host(LocalStorageProvider(folder / "store"), folder)
base = read_published(host.storage, sys.argv[3])[0]
with host.overlay(base, folder / "overlay") as overlay:
    overlay.write(memoryview(b"flushed"), 12345)
    overlay.flush()
    import os, bootstream.storage.local as local
    where, count = sys.argv[4], 0
    opened = LocalStorageProvider.open_object
    def open_object(self, path):
        if path.endswith(where) and "dependents" not in path:
            os.kill(os.getpid(), 9)
        return opened(self, path)
    LocalStorageProvider.open_object = open_object
    host.commit(overlay, base)
"""


@pytest.mark.parametrize("where", ["rootfs.ext4.pack", "rootfs.ext4.index", "latest"])
def test_kill(tmp_path: Path, where: str) -> None:
    """kill -9 in the middle of a commit: nothing shows, and the overlay has it all."""
    host = Host(LocalStorageProvider(tmp_path / "store"), tmp_path)
    base = host.build()
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", _CHILD, str(root), str(tmp_path), base.build_id, where]
    ended = subprocess.run(command, capture_output=True, check=False, timeout=25)
    assert ended.returncode == (-9 if where != "latest" else 0), ended.stderr.decode()
    builds = [build.manifest.build_id for build in Catalogue(host.storage).builds()]
    assert len(builds) == (1 if where != "latest" else 2)
    with host.overlay(base, tmp_path / "overlay") as overlay:
        assert read_all(overlay, 12345, 7) == b"flushed"
        overlay.write(memoryview(b"more"), 0)
        done = host.commit(overlay, base).published.manifest
        assert contents_of(host.storage, done) == read_all(overlay)
