"""What builds take up: their own bytes, and those that they share with builds before them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from bootstream.chunks.reader import load_index
from bootstream.chunks.report import summarise
from bootstream.errors import BuildNotFound, ObjectNotFound
from bootstream.storage.protocol import ObjectInfo, StorageProvider
from bootstream.templates.manifest import Manifest, State, read_manifest
from bootstream.templates.names import DEPENDENTS, is_build_id

_PARALLEL = 16


@dataclass(frozen=True, slots=True)
class BuildUsage:
    """One build that still takes up room. Sizes in bytes.

    ``size`` is what a reader sees of its artifacts; ``own_size`` what lies in its own folder
    of the store; ``shared_size`` the stored bytes, each counted once, that it reads from the
    packs of other builds. ``dependents`` builds read from it. ``template_id`` is None
    where collection ended the build and nothing says any more whose it was.
    """

    build_id: str
    template_id: str | None
    state: State
    size: int
    own_size: int
    shared_size: int
    dependents: int


@dataclass(slots=True)
class _Listing:
    """The part of the store that matters, by build."""

    own: dict[str, int] = field(default_factory=dict)
    dependents: dict[str, int] = field(default_factory=dict)

    def add(self, info: ObjectInfo) -> None:
        parts = info.path.split("/")
        if is_build_id(parts[0]):
            self.own[parts[0]] = self.own.get(parts[0], 0) + info.size
        elif len(parts) == 3 and f"{parts[0]}/" == DEPENDENTS and is_build_id(parts[2]):
            self.dependents[parts[1]] = self.dependents.get(parts[1], 0) + 1


def usage(storage: StorageProvider, template_id: str | None = None) -> list[BuildUsage]:
    """Return what the builds of one template, or all builds, take up; oldest first.

    Deleted builds are in it until collection removed their objects, since they take up
    room as others do. Builds in progress are not: what they will be is not known yet.

    Raises:
        Corrupt: a manifest, or an index of a published build, is damaged.
    """
    # Deleting a build takes its mark below its template away, so that only the manifests
    # know of every build whose it was.
    listing = _Listing()
    for info in storage.list_objects():
        listing.add(info)

    def measure(build_id: str) -> tuple[Manifest, BuildUsage] | None:
        try:
            manifest, _ = read_manifest(storage, build_id)
        except BuildNotFound:
            return None  # in progress, or another tool's
        if template_id is not None and manifest.template_id != template_id:
            return None
        found = BuildUsage(
            build_id=build_id,
            template_id=manifest.template_id or None,
            state=manifest.state,
            size=manifest.size,
            own_size=listing.own.get(build_id, 0),
            shared_size=_shared_size(storage, manifest),
            dependents=listing.dependents.get(build_id, 0),
        )
        return manifest, found

    with ThreadPoolExecutor(_PARALLEL) as pool:
        measured = [found for found in pool.map(measure, sorted(listing.own)) if found is not None]
    measured.sort(key=lambda found: (found[0].created, found[0].build_id))
    return [found for _, found in measured]


def _shared_size(storage: StorageProvider, manifest: Manifest) -> int:
    if not manifest.depends_on:
        return 0  # no index needs to be loaded to know
    total = 0
    for name, artifact in manifest.artifacts.items():
        try:
            index = load_index(
                storage,
                manifest.build_id,
                name,
                sha256=artifact.index_sha256,
                size=artifact.index_size,
            )
        except ObjectNotFound:
            if manifest.state == "published":
                raise
            continue  # collection is at work on it
        parts = summarise(index, manifest.build_id)
        total += sum(part.stored_size for part in parts if part.kind == "ancestor")
    return total
