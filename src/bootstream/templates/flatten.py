"""Builds that read from fewer places: all of a build's own, or as few as a budget allows.

Both make a new build with the same bytes; the build that they were made from stays as it
is, and can be deleted afterwards. Every chunk that is stored anew is fetched and checked.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bootstream.chunks.fragmentation import Fragmentation, measure, plan
from bootstream.errors import InvalidInput
from bootstream.progress import NO_PROGRESS, Progress
from bootstream.storage.protocol import StorageProvider
from bootstream.templates.build import Published
from bootstream.templates.commit_artifacts import StoredSource, deriving, load
from bootstream.templates.manifest import Manifest

BUDGET = 2.0
"""Twice as many requests as need be: docs/decisions/commit.md."""


@dataclass(frozen=True, slots=True)
class Compacted:
    """What became of a build. ``published`` is None where it kept to the budget already.

    ``before`` and ``after`` are by artifact, those of the raw form left out.
    """

    published: Published | None
    before: dict[str, Fragmentation]
    after: dict[str, Fragmentation]


def flatten(
    storage: StorageProvider,
    manifest: Manifest,
    *,
    node_id: str,
    scratch: Path,
    build_id: str | None = None,
    level: int | None = None,
    threads: int | None = None,
    progress: Progress = NO_PROGRESS,
) -> Published:
    """Publish a build with the same artifacts whose packs hold every chunk: no ancestors.

    Raises:
        BuildNotFound: the build was deleted.
        Corrupt: a chunk of it is damaged.
        AlreadyExists, Conflict: as every build.
        Unavailable, PermissionDenied, StorageFull: of the store, or of ``scratch``, where
            artifacts of the raw form lie meanwhile.
    """
    indexes = {artifact: load(storage, manifest, artifact) for artifact in manifest.artifacts}
    with deriving(
        storage,
        manifest,
        node_id=node_id,
        scratch=scratch,
        build_id=build_id,
        level=level,
        threads=threads,
        progress=progress,
    ) as derivation:
        derivation.hold(indexes)
        for artifact, index in indexes.items():
            derivation.copy(artifact, index, flat=True)
        return derivation.publish(parent=None)


def compact(
    storage: StorageProvider,
    manifest: Manifest,
    *,
    node_id: str,
    scratch: Path,
    budget: float = BUDGET,
    build_id: str | None = None,
    level: int | None = None,
    threads: int | None = None,
    progress: Progress = NO_PROGRESS,
) -> Compacted:
    """Publish a build with the same artifacts that keeps to a fragmentation budget.

    Only chunks that fragment reads are stored anew, in the order of the artifact; all others
    are references, as in the build that it was made from, which becomes its parent.

    Args:
        storage: the store.
        manifest: the build.
        node_id: this host's name.
        scratch: a folder for artifacts of the raw form.
        budget: the figure of ``bootstream.chunks.fragmentation`` that no artifact exceeds.
        build_id: one that was never used; None makes one.
        level, threads, progress: as ``write_source`` has them.

    Raises:
        InvalidInput: a budget below 1.
        BuildNotFound, Corrupt, AlreadyExists, Conflict, Unavailable, PermissionDenied,
            StorageFull: as ``flatten``.
    """
    if not budget >= 1:
        raise InvalidInput(
            f"{budget:g} is less than one request where one is needed",
            operation="compact",
            object=manifest.build_id,
            remedy="choose a budget of 1 or more",
        )
    indexes = {artifact: load(storage, manifest, artifact) for artifact in manifest.artifacts}
    before = {name: measure(index) for name, index in indexes.items() if not index.raw}
    plans = {
        name: plan(indexes[name], budget) for name, found in before.items() if found.figure > budget
    }
    if not any(plans.values()):
        return Compacted(None, before, before)
    with deriving(
        storage,
        manifest,
        node_id=node_id,
        scratch=scratch,
        build_id=build_id,
        level=level,
        threads=threads,
        progress=progress,
    ) as derivation:
        derivation.hold(indexes)
        for name, index in indexes.items():
            rewrite = plans.get(name)
            if rewrite:
                source = StoredSource(storage, index, rewrite)
                derivation.write(name, source, parent=index, rewrite=rewrite)
            else:
                derivation.copy(name, index, flat=False)
        published = derivation.publish(parent=manifest.build_id)
    after = {name: measure(load(storage, published.manifest, name)) for name in before}
    return Compacted(published, before, after)
