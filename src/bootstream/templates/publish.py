"""A build from its claim to its manifest, so that any number of hosts may try at once.

The steps, in the order that makes each of them safe alone:

1. **Claim.** ``{build_id}/heartbeat`` is created only if absent. Of many builders
   with one build id, one goes on. A build id is used once: a claim that its owner
   left behind is ended by collection, never taken up again, for its owner may only
   be slow and still be writing. Unless who comes knows better: a service that holds a
   lock of its workers knows that one has ended, and takes the build up by its ``claim``.
2. **Mark.** Every build whose packs the parent's index names, and the parent, get
   a mark *before* the parent is checked to be published. Collection reads the state
   first and the marks afterwards; so either it sees our mark or we see its state.
3. **Write** artifacts; the heartbeat is renewed, conditional on being ours.
4. **List.** The mark under ``templates/`` is put before the manifest, so that no
   published build is ever missing from a listing. A mark without a manifest is
   skipped by listings and collected with the build.
5. **Publish.** The manifest is created only if absent. Collection ends an abandoned
   build by creating the manifest itself, so only one of them can win.
6. Marks that the finished indexes turned out not to need go, then the heartbeat.

A build that fails removes what it wrote, heartbeat last. A killed one leaves it to
collection; nothing of it shows in a listing.
"""

from __future__ import annotations

import json
import logging
import secrets
import threading
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timedelta
from types import TracebackType

from bootstream.errors import (
    AlreadyExists,
    BootstreamError,
    Conflict,
    Corrupt,
    InvalidInput,
    NotFound,
    PreconditionFailed,
    Unavailable,
)
from bootstream.progress import Progress
from bootstream.storage.protocol import StorageProvider
from bootstream.templates.holder import Holder, Renewal
from bootstream.templates.manifest import Manifest, read_manifest, read_published
from bootstream.templates.names import (
    DEPENDENTS,
    build_of_template_path,
    build_prefix,
    dependent_path,
    heartbeat_path,
    is_build_id,
    manifest_path,
)

log = logging.getLogger("bootstream.templates")

HEARTBEAT_SECONDS = 10.0
_MOST_HEARTBEAT = 4096


class BuildSession:
    """One attempt to make one build; a context manager that cleans up unless it published.

    Args:
        storage: the store; it must be able to create only if absent.
        template_id: the template the build will belong to.
        build_id: a build id never used before.
        node_id: this host's name, for the heartbeat.
        interval: seconds between heartbeats.
        claim: a secret of whoever asked for the build. A session with the same one takes a
            build up that is not published; the caller vouches that no other session of it
            lives any more.

    Raises:
        AlreadyExists: the build id is taken: published, deleted, or in progress.
        InvalidInput: the storage cannot create only if absent.
    """

    def __init__(
        self,
        storage: StorageProvider,
        template_id: str,
        build_id: str,
        *,
        node_id: str,
        interval: float = HEARTBEAT_SECONDS,
        claim: str | None = None,
    ) -> None:
        self.storage = storage
        self.template_id = template_id
        self.build_id = build_id
        self._marks: set[str] = set()
        self._parent_created: datetime | None = None
        self._lost = threading.Event()
        self._finished = False
        details = storage.details()
        if not details.create_only:
            raise InvalidInput(
                "this storage ignores create-only writes, so builds could overwrite each other",
                operation="publish",
                object=details.identity,
                remedy="publish to a storage that honours If-None-Match",
            )
        token = secrets.token_hex(8) if claim is None else claim
        self._body = Holder.current(node_id).to_json(token=token)
        self._heartbeat = storage.open_object(heartbeat_path(build_id))
        self._etag = self._claim(claim)
        self._renewal = Renewal(
            self._renew, interval, on_lost=self._lost.set, on_trouble=lambda _error: None
        )

    def _claim(self, claim: str | None) -> str:
        taken = AlreadyExists(
            "this build id is taken",
            operation="start build",
            object=self.build_id,
            remedy="leave the build id out to get a fresh one; a build id is used once, and "
            "what a crashed build left is removed by 'bootstream gc'",
        )
        try:
            etag = self._heartbeat.put(self._body, if_none_match=True)
        except AlreadyExists:
            ours = self._our_etag()  # a retried request may have lost its answer
            if ours is None and claim is not None:
                ours = self._take_up(claim)
            if ours is None:
                raise taken from None
            etag = ours
        # The manifest is looked for after the claim: a builder that published just
        # now has removed its heartbeat after its manifest was there.
        if self.storage.open_object(manifest_path(self.build_id)).exists():
            self._heartbeat.delete()
            raise taken
        return etag

    def _take_up(self, claim: str) -> str | None:
        """Make the heartbeat of an earlier session with this claim ours, and its marks."""
        try:
            body, etag = self._heartbeat.get(_MOST_HEARTBEAT)
            if json.loads(bytes(body)).get("token") != claim:
                return None
            etag = self._heartbeat.put(self._body, if_match=etag)
        except (NotFound, Corrupt, PreconditionFailed, ValueError, AttributeError):
            return None
        for info in self.storage.list_objects(DEPENDENTS):
            parent, _, child = info.path.removeprefix(DEPENDENTS).partition("/")
            if child == self.build_id and is_build_id(parent):
                self._marks.add(parent)
        return etag

    def _our_etag(self) -> str | None:
        """Return the heartbeat's etag if it is still this session's."""
        try:
            body, etag = self._heartbeat.get(len(self._body))
        except (NotFound, Corrupt):
            return None
        return etag if body == self._body else None

    def _renew(self) -> bool:
        try:
            self._etag = self._heartbeat.put(self._body, if_match=self._etag)
        except PreconditionFailed:
            ours = self._our_etag()
            if ours is None:
                return False
            self._etag = ours
        return True

    def check(self) -> None:
        """Raise Conflict if collection took the build over; call it between steps."""
        if self._lost.is_set():
            raise Conflict(
                "this build was given up for dead and collected",
                operation="build",
                object=self.build_id,
                remedy="build again; this host could not renew its heartbeat for too long",
            )

    def hold_parent(self, parent: str, packs: Iterable[str]) -> Manifest:
        """Mark ``parent`` and every build in ``packs``, then check that it is published.

        Raises:
            BuildNotFound: the parent is gone; the marks are removed with the session.
        """
        for build_id in {parent, *packs} - {self.build_id}:
            self._marks.add(build_id)
            self.storage.open_object(dependent_path(build_id, self.build_id)).put(b"")
        manifest = read_published(self.storage, parent)[0]
        self._parent_created = manifest.created
        return manifest

    def publish(self, manifest: Manifest) -> Manifest:
        """Make the build exist, for everyone, at once; return what was published.

        Raises:
            Conflict: collection was first; nothing is published.
        """
        self._renewal.stop()
        if not self._renew():
            self._lost.set()
        self.check()
        missing = set(manifest.depends_on) - self._marks
        if missing:
            raise InvalidInput(
                f"the build reads from {min(missing)}, which it does not hold",
                operation="publish",
                object=self.build_id,
            )
        mark = self.storage.open_object(build_of_template_path(self.template_id, self.build_id))
        mark.put(b"")
        manifest = replace(manifest, state="published", created=self._now())
        target = self.storage.open_object(manifest_path(self.build_id))
        try:
            target.put(manifest.to_json(), if_none_match=True)
        except AlreadyExists:
            # A retried request may have created it and lost the answer: read what is there.
            current = read_manifest(self.storage, self.build_id)[0]
            if current != manifest:
                self._lost.set()
                self.check()
        self._finished = True
        try:
            for build_id in self._marks - set(manifest.depends_on):
                self.storage.open_object(dependent_path(build_id, self.build_id)).delete()
            self._heartbeat.delete()
        except Unavailable as error:  # it is published; what is left is collected later
            log.warning("after publishing %s: %s", self.build_id, error)
        return manifest

    def _now(self) -> datetime:
        """The storage's time; many storages tell whole seconds, and a child is the younger one."""
        now = self.storage.details().now
        if self._parent_created is not None:
            return max(now, self._parent_created + timedelta(microseconds=1))
        return now

    def abandon(self) -> None:
        """Remove everything the session wrote, the heartbeat last; idempotent."""
        self._renewal.stop()
        if self._finished:
            return
        self._finished = True
        heartbeat, manifest = self._heartbeat.path, manifest_path(self.build_id)
        if self.storage.open_object(manifest).exists():
            return  # collection took it over, and will finish
        for info in list(self.storage.list_objects(build_prefix(self.build_id))):
            if info.path not in (heartbeat, manifest):
                self.storage.open_object(info.path).delete()
        for build_id in self._marks:
            self.storage.open_object(dependent_path(build_id, self.build_id)).delete()
        self.storage.open_object(build_of_template_path(self.template_id, self.build_id)).delete()
        self._heartbeat.delete()

    def __enter__(self) -> BuildSession:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.abandon()
        except BootstreamError as trouble:
            # The first error matters more; what is left is collected later.
            if error is None:
                raise
            error.add_note(f"cleaning up failed too: {trouble}")


class Guarded:
    """Progress that also ends the work once the build was taken over."""

    def __init__(self, inner: Progress, session: BuildSession) -> None:
        self._inner = inner
        self._session = session
        self.phase = inner.phase
        self.done = inner.done
        self.log = inner.log

    def advance(self, name: str, amount: int) -> None:
        """Pass it on. Raises Conflict when collection has taken the build over."""
        self._session.check()
        self._inner.advance(name, amount)
