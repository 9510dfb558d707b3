"""What builds take up."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

import pytest

from bootstream.chunks.names import index_path
from bootstream.chunks.reader import load_index
from bootstream.chunks.writer import write_artifact
from bootstream.errors import ObjectNotFound
from bootstream.storage.memory import MemoryStorageProvider
from bootstream.templates.catalogue import Catalogue
from bootstream.templates.collect import collect
from bootstream.templates.manifest import Artifact, Manifest
from bootstream.templates.names import build_prefix, manifest_path, new_build_id
from bootstream.templates.publish import BuildSession
from bootstream.templates.usage import usage

ROOTFS = "rootfs.ext4"
CHUNK = 64 << 10


@pytest.fixture
def storage() -> MemoryStorageProvider:
    return MemoryStorageProvider()


def noise(seed: int, size: int) -> bytes:
    return Random(seed).randbytes(size)


def make(
    storage: MemoryStorageProvider,
    folder: Path,
    content: bytes,
    *,
    template: str = "t",
    parent: str | None = None,
) -> Manifest:
    """Publish ``content`` as a build; return its manifest."""
    path = folder / "image"
    path.write_bytes(content)
    with BuildSession(storage, template, new_build_id(), node_id="n", interval=3600) as session:
        above = None
        if parent is not None:
            above = load_index(storage, parent, ROOTFS)
            session.hold_parent(parent, {pack.build_id for pack in above.packs})
        summary = write_artifact(
            path,
            build_id=session.build_id,
            artifact=ROOTFS,
            storage=storage,
            parent=above,
            chunk_size=CHUNK if above is None else None,
        )
        index = load_index(storage, session.build_id, ROOTFS)
        artifact = Artifact(
            form="chunked",
            size=summary.size,
            chunk_size=summary.chunk_size,
            index_size=summary.index_size,
            index_sha256=summary.index_sha256,
            stored_size=summary.stored_bytes,
        )
        packs = {pack.build_id for pack in index.packs} - {session.build_id}
        return session.publish(
            Manifest(
                build_id=session.build_id,
                template_id=template,
                state="published",
                created=datetime.now(UTC),
                artifacts={ROOTFS: artifact},
                parent=parent,
                depends_on=tuple(sorted(packs)),
            )
        )


def folder_size(storage: MemoryStorageProvider, build_id: str) -> int:
    return sum(info.size for info in storage.list_objects(build_prefix(build_id)))


def test_nothing(storage: MemoryStorageProvider) -> None:
    """An empty store, and a template that is not there, take up nothing."""
    assert usage(storage) == usage(storage, "t") == []


def test_own_and_shared(storage: MemoryStorageProvider, tmp_path: Path) -> None:
    """Shared chunks are counted once, by what is stored, over all ancestors."""
    base = noise(1, 4 * CHUNK)
    one = make(storage, tmp_path, base)
    two = make(storage, tmp_path, base + noise(2, 2 * CHUNK), parent=one.build_id)
    three = make(
        storage, tmp_path, base * 2 + noise(2, CHUNK) + noise(3, CHUNK), parent=two.build_id
    )
    first, second, third = usage(storage, "t")
    assert [u.build_id for u in (first, second, third)] == [
        one.build_id, two.build_id, three.build_id
    ]  # fmt: skip
    assert (first.shared_size, first.dependents, first.state) == (0, 2, "published")
    stored = one.artifacts[ROOTFS].stored_size
    assert 4 * CHUNK < stored < 4 * CHUNK + 400
    assert second.shared_size == stored
    frame = two.artifacts[ROOTFS].stored_size / 2
    assert third.shared_size == stored + frame, "twice in the image, once in the pack"
    assert (second.dependents, third.dependents) == (1, 0)
    for found, manifest in ((first, one), (second, two), (third, three)):
        assert found.own_size == folder_size(storage, found.build_id)
        assert found.size == manifest.size
        assert found.template_id == "t"


def test_templates_are_told_apart(storage: MemoryStorageProvider, tmp_path: Path) -> None:
    """One template's builds, or all of them, oldest first."""
    builds = [
        make(storage, tmp_path, noise(number, CHUNK), template=template)
        for number, template in enumerate(("a", "ab", "a"))
    ]
    assert [u.build_id for u in usage(storage)] == [build.build_id for build in builds]
    assert [u.build_id for u in usage(storage, "a")] == [builds[0].build_id, builds[2].build_id]
    assert usage(storage, "ab") == [usage(storage)[1]]


def test_deleted_builds_count_until_they_are_collected(
    storage: MemoryStorageProvider, tmp_path: Path
) -> None:
    """A deleted build that another reads from takes up room, and says that it is deleted."""
    one = make(storage, tmp_path, noise(1, CHUNK))
    two = make(storage, tmp_path, noise(1, CHUNK) + noise(2, CHUNK), parent=one.build_id)
    Catalogue(storage).delete_build(one.build_id)
    collect(storage, older_than=timedelta(0))
    for found in (usage(storage), usage(storage, "t")):
        assert [(u.build_id, u.state, u.dependents) for u in found] == [
            (one.build_id, "deleted", 1),
            (two.build_id, "published", 0),
        ]
        assert found[0].own_size == folder_size(storage, one.build_id) > CHUNK
    Catalogue(storage).delete_build(two.build_id)
    collect(storage, older_than=timedelta(0))
    assert usage(storage) == []


def test_builds_in_progress_are_left_out(storage: MemoryStorageProvider, tmp_path: Path) -> None:
    """So are another tool's raw objects beside ours."""
    storage.open_object(f"{new_build_id()}/rootfs.ext4").put(b"raw")
    with BuildSession(storage, "t", new_build_id(), node_id="n", interval=3600):
        assert usage(storage) == []


def test_missing_index(storage: MemoryStorageProvider, tmp_path: Path) -> None:
    """Collection may be at work on a deleted build; a published one must have its index."""
    one = make(storage, tmp_path, noise(1, CHUNK))
    two = make(storage, tmp_path, noise(1, CHUNK) + noise(2, CHUNK), parent=one.build_id)
    storage.open_object(index_path(two.build_id, ROOTFS)).delete()
    with pytest.raises(ObjectNotFound):
        usage(storage)
    deleted = two.as_deleted(datetime.now(UTC))
    storage.open_object(manifest_path(two.build_id)).put(deleted.to_json())
    assert [(u.state, u.shared_size) for u in usage(storage)] == [("published", 0), ("deleted", 0)]
