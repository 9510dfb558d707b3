"""Verify a build: everything that a host could ever read of it is fetched and checked."""

from __future__ import annotations

from dataclasses import dataclass, field

from bootstream.chunks.index import Index
from bootstream.chunks.reader import load_index, verify_artifact
from bootstream.errors import Corrupt, NotFound
from bootstream.progress import NO_PROGRESS, Progress
from bootstream.storage.protocol import StorageProvider
from bootstream.templates.manifest import Artifact, Manifest
from bootstream.templates.names import dependent_path
from bootstream.templates.traces import load_trace


@dataclass(slots=True)
class Verified:
    """What a check found. ``problems`` is empty for a sound build; bytes are image bytes."""

    build_id: str
    chunks: int = 0
    size: int = 0
    problems: list[str] = field(default_factory=list)


def verify_build(
    storage: StorageProvider,
    manifest: Manifest,
    *,
    threads: int | None = None,
    progress: Progress = NO_PROGRESS,
) -> Verified:
    """Fetch and check indexes, every distinct chunk, traces, and the marks of ancestors.

    Damage is collected, so that one run names all of it; trouble with the storage
    itself is raised.
    """
    result = Verified(manifest.build_id)
    for parent in manifest.depends_on:
        if not storage.open_object(dependent_path(parent, manifest.build_id)).exists():
            result.problems.append(
                f"nothing holds build {parent}, which this build reads from: its mark is missing"
            )
    for name, artifact in manifest.artifacts.items():
        try:
            index = _sound_index(storage, manifest, name, artifact)
            report = verify_artifact(storage, index, name, threads=threads, progress=progress)
        except (Corrupt, NotFound) as error:
            result.problems.append(str(error))
            continue
        result.problems.extend(report.problems)
        try:
            load_trace(storage, manifest, name)
        except Corrupt as error:
            result.problems.append(str(error))
        result.chunks += report.chunks
        result.size += artifact.size
    return result


def _sound_index(
    storage: StorageProvider, manifest: Manifest, name: str, artifact: Artifact
) -> Index:
    """Load an index and compare it with what the manifest says of it."""
    index = load_index(
        storage,
        manifest.build_id,
        name,
        sha256=artifact.index_sha256,
        size=artifact.index_size,
    )
    if index.size != artifact.size:
        raise Corrupt(
            f"the index says {index.size} bytes, the manifest {artifact.size}",
            operation="verify",
            object=name,
        )
    known = {manifest.build_id, *manifest.depends_on}
    undeclared = {pack.build_id for pack in index.packs} - known
    if undeclared:
        raise Corrupt(
            f"it reads from {min(undeclared)}, which the manifest does not name",
            operation="verify",
            object=name,
        )
    return index
