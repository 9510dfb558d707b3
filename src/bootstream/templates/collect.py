"""Collection: reclaim what deleted and abandoned builds left, while others use the bucket.

Nothing here needs a lock; every step is safe alone, and a run that is killed is
continued by the next:

- A prefix with a manifest in state ``published`` is never touched, but for the
  heartbeat that its builder had no time to remove.
- A prefix with a heartbeat and no manifest is a build in progress. When the
  heartbeat is stale the build is *taken over*: collection creates the manifest, in
  state ``deleted``, only if absent. A builder that was only slow finds it and stops.
  Such a manifest stays seven days, so that even a builder that wakes after days
  cannot publish into what was collected; it goes at once where the builder ran on
  this host and is seen to have ended.
- A prefix with neither is not ours (another tool's raw objects): it is left alone.
- Objects of a deleted build go when it was deleted long enough ago and, read *after*
  its state, no dependent's mark and no fresh lease holds it. ``manifest.json`` goes
  last, the build's own marks on its ancestors after its objects; then those may go
  in the same run.
- A mark whose child neither is nor becomes a build is taken over like one.

Ages are judged by the storage's clock alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from bootstream.errors import AlreadyExists, BuildNotFound, ObjectNotFound
from bootstream.progress import NO_PROGRESS, Progress
from bootstream.storage.protocol import ObjectInfo, StorageProvider
from bootstream.templates.holder import Holder
from bootstream.templates.leases import LEASE_TTL
from bootstream.templates.manifest import read_manifest, taken_over
from bootstream.templates.names import (
    DEPENDENTS,
    LEASES,
    TEMPLATES,
    build_prefix,
    dependent_path,
    dependents_prefix,
    heartbeat_path,
    is_build_id,
    leases_prefix,
    manifest_path,
)

DEFAULT_AGE = timedelta(hours=24)
HEARTBEAT_TTL = timedelta(minutes=5)
"""A heartbeat younger than this holds its build whatever age limit is asked for."""
TAKEN_OVER_TTL = timedelta(days=7)
_HOLDER_BYTES = 4096


@dataclass(slots=True)
class Collected:
    """What a run did, or with ``dry_run`` would do. Sizes in bytes."""

    builds: list[str] = field(default_factory=list)
    taken_over: list[str] = field(default_factory=list)
    held: dict[str, str] = field(default_factory=dict)
    objects: int = 0
    size: int = 0
    uploads: int = 0
    dry_run: bool = False


@dataclass(slots=True)
class _Listing:
    """The store's objects, sorted by what they are."""

    builds: dict[str, list[ObjectInfo]] = field(default_factory=dict)
    marks: dict[str, set[str]] = field(default_factory=dict)  # child -> parents
    leases: list[ObjectInfo] = field(default_factory=list)
    memberships: list[ObjectInfo] = field(default_factory=list)
    dropped_tags: list[ObjectInfo] = field(default_factory=list)


def collect(
    storage: StorageProvider,
    *,
    older_than: timedelta = DEFAULT_AGE,
    dry_run: bool = False,
    progress: Progress = NO_PROGRESS,
) -> Collected:
    """Reclaim what can be reclaimed now; see the module's own text for the rules.

    Args:
        storage: the store.
        older_than: the age that anything must have; fresh leases and heartbeats hold
            whatever it is.
        dry_run: change nothing, and say what would go.
        progress: told of every build that goes.
    """
    return _Collection(storage, older_than, dry_run, progress).run()


class _Collection:
    """One run."""

    def __init__(
        self, storage: StorageProvider, older_than: timedelta, dry_run: bool, progress: Progress
    ) -> None:
        self.storage = storage
        self.older_than = older_than
        self.progress = progress
        self.now = storage.details().now
        self.result = Collected(dry_run=dry_run)
        self._gone_marks: set[tuple[str, str]] = set()  # (parent, child), also in a dry run

    def run(self) -> Collected:
        listing = self._list()
        for info in listing.leases:
            if not self._lease_holds(info):
                self._delete(info)
        for info in listing.dropped_tags:
            if self._is_old(info.last_modified):
                self._delete_if_unchanged(info)
        for child in listing.marks.keys() - listing.builds.keys():
            self._take_over_orphan(child)
        waiting = set(listing.builds) | set(listing.marks)
        progressed = True
        while progressed:  # a child that goes may free its ancestors
            self.result.held.clear()
            settled = {build for build in sorted(waiting) if self._collect(build, listing)}
            waiting -= settled
            progressed = bool(settled)
        self._collect_memberships(listing)
        self.result.uploads = self.storage.collect_uploads(
            self.older_than, dry_run=self.result.dry_run
        )
        return self.result

    def _list(self) -> _Listing:
        listing = _Listing()
        for info in self.storage.list_objects():
            first, _, rest = info.path.partition("/")
            if is_build_id(first):
                listing.builds.setdefault(first, []).append(info)
            elif info.path.startswith(DEPENDENTS):
                parent, _, child = rest.partition("/")
                if is_build_id(parent) and is_build_id(child):
                    listing.marks.setdefault(child, set()).add(parent)
            elif info.path.startswith(LEASES):
                listing.leases.append(info)
            elif info.path.startswith(TEMPLATES):
                kind = rest.split("/")[1:2]
                if kind == ["builds"]:
                    listing.memberships.append(info)
                elif kind == ["tags"] and info.size == 0:
                    listing.dropped_tags.append(info)
        return listing

    # -- one build ------------------------------------------------------------------------

    def _collect(self, build_id: str, listing: _Listing) -> bool:
        """Collect one build if its state and holders allow; tell whether it is settled.

        Settled is what went and what is published; the rest may go once a child has gone.
        """
        objects = listing.builds.get(build_id, [])
        try:
            manifest, _ = read_manifest(self.storage, build_id)
        except BuildNotFound:
            if not self._is_abandoned(build_id, objects) or not self._take_over(build_id):
                return False
            manifest = taken_over(build_id, self.now)
        if manifest.state == "published":
            self._remove_leftover_heartbeat(build_id, objects)
            return True
        if build_id not in self.result.taken_over and not self._is_old(
            manifest.deleted or manifest.created
        ):
            self.result.held[build_id] = "deleted too recently"
            return False
        holder = self._holder(build_id)
        if holder is not None:
            self.result.held[build_id] = holder
            return False
        before = self.result.objects
        nobody_left = self._reclaim(build_id, listing)
        if not manifest.taken_over or nobody_left or self._age(manifest.deleted) > TAKEN_OVER_TTL:
            self._delete_path(manifest_path(build_id))
        if self.result.objects > before:
            self.result.builds.append(build_id)
            self.progress.log(f"collected {build_id}")
        return True

    def _reclaim(self, build_id: str, listing: _Listing) -> bool:
        """Delete a build's objects, its marks, and its heartbeat; the manifest stays.

        The heartbeat goes last because it tells, also to a run that continues this one,
        whether the builder can ever wake again; that is what is returned.
        """
        manifest, heartbeat = manifest_path(build_id), heartbeat_path(build_id)
        last: ObjectInfo | None = None
        for info in list(self.storage.list_objects(build_prefix(build_id))):
            if info.path == heartbeat:
                last = info
            elif info.path != manifest:
                self._delete(info)
        for parent in listing.marks.get(build_id, ()):
            self._delete_path(dependent_path(parent, build_id))
            self._gone_marks.add((parent, build_id))
        for info in listing.memberships:
            if info.path.endswith(f"/builds/{build_id}"):
                self._delete(info)
        if last is None:
            return False
        nobody_left = self._is_dead(last)
        self._delete(last)
        return nobody_left

    def _holder(self, build_id: str) -> str | None:
        """Say what holds the build, None if nothing does. Read after its state, always."""
        prefix = dependents_prefix(build_id)
        for info in self.storage.list_objects(prefix):
            child = info.path[len(prefix) :]
            if (build_id, child) not in self._gone_marks:
                return f"build {child} reads from it"
        for info in self.storage.list_objects(leases_prefix(build_id)):
            if self._lease_holds(info):
                return f"{info.path.rpartition('/')[2]} serves it"
        return None

    # -- builds that nobody finished ------------------------------------------------------

    def _is_abandoned(self, build_id: str, objects: list[ObjectInfo]) -> bool:
        heartbeat = next((o for o in objects if o.path == heartbeat_path(build_id)), None)
        if heartbeat is None:
            return False  # not ours, or just gone
        try:
            body, _ = self.storage.open_object(heartbeat.path).get(_HOLDER_BYTES)
            modified = self.storage.open_object(heartbeat.path).stat().last_modified
        except ObjectNotFound:
            return False
        holder = Holder.from_json(bytes(body))
        if holder is not None and holder.is_surely_dead():
            return self._age(modified) >= self.older_than
        if self._age(modified) > max(self.older_than, HEARTBEAT_TTL):
            return True
        self.result.held[build_id] = "in progress"
        return False

    def _take_over(self, build_id: str) -> bool:
        """End an unfinished build; False if its builder published at this very moment."""
        if build_id in self.result.taken_over:
            return True
        if not self.result.dry_run:
            manifest = taken_over(build_id, self.now)
            try:
                self.storage.open_object(manifest_path(build_id)).put(
                    manifest.to_json(), if_none_match=True
                )
            except AlreadyExists:
                return False
        self.result.taken_over.append(build_id)
        return True

    def _take_over_orphan(self, child: str) -> None:
        """A mark without any object of its child: if it is old, nobody is about to use it."""
        for info in self.storage.list_objects(build_prefix(child)):
            del info
            return  # it began meanwhile
        stats = []
        for info in self.storage.list_objects(DEPENDENTS):
            if info.path.endswith(f"/{child}"):
                stats.append(info.last_modified)
        if stats and all(self._age(when) > max(self.older_than, HEARTBEAT_TTL) for when in stats):
            self._take_over(child)

    def _collect_memberships(self, listing: _Listing) -> None:
        """Remove old marks below ``templates/`` whose build is gone altogether."""
        for info in listing.memberships:
            build_id = info.path.rpartition("/")[2]
            if not is_build_id(build_id) or build_id in listing.builds:
                continue
            if self._is_old(info.last_modified) and not any(
                True for _ in self.storage.list_objects(build_prefix(build_id))
            ):
                self._delete(info)

    def _remove_leftover_heartbeat(self, build_id: str, objects: list[ObjectInfo]) -> None:
        for info in objects:
            if info.path == heartbeat_path(build_id) and (
                self._age(info.last_modified) > max(self.older_than, HEARTBEAT_TTL)
                or self._is_dead(info)
            ):
                self._delete(info)

    # -- ages, holders, deletes -----------------------------------------------------------

    def _age(self, when: datetime | None) -> timedelta:
        return self.now - when if when is not None else timedelta(0)

    def _is_old(self, when: datetime) -> bool:
        return self._age(when) >= self.older_than

    def _is_dead(self, info: ObjectInfo) -> bool:
        try:
            body, _ = self.storage.open_object(info.path).get(_HOLDER_BYTES)
        except ObjectNotFound:
            return True
        holder = Holder.from_json(bytes(body))
        return holder is not None and holder.is_surely_dead()

    def _lease_holds(self, info: ObjectInfo) -> bool:
        return self._age(info.last_modified) <= LEASE_TTL and not self._is_dead(info)

    def _delete(self, info: ObjectInfo) -> None:
        self.result.objects += 1
        self.result.size += info.size
        if not self.result.dry_run:
            self.storage.open_object(info.path).delete()

    def _delete_path(self, path: str) -> None:
        self.result.objects += 1
        if not self.result.dry_run:
            self.storage.open_object(path).delete()

    def _delete_if_unchanged(self, info: ObjectInfo) -> None:
        try:
            if self.storage.open_object(info.path).stat().etag == info.etag:
                self._delete(info)
        except ObjectNotFound:
            return
