"""The sandboxes of one host: made, served, paused, deleted; and taken over after a crash.

A sandbox is a folder below ``sandboxes/``::

    sandbox.json   what was asked, and the build that it came out as; created only if absent
    overlay        what was written (docs/formats/overlay.md), if it is writable
    paused.json    the build that it was paused to; it is not served any more
    deleted        it is on its way out

Its socket lies in the host's runtime folder, under its id, so that whoever connects finds the
next process at the same place. At a start every folder is served again, in the background: while
the store is away a sandbox is ``recovering``. One orchestrator works in a folder, by a lock.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import threading
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bootstream import wiring
from bootstream.block.overlay import Overlay
from bootstream.block.stats import snapshot
from bootstream.config import Settings
from bootstream.errors import (
    AlreadyExists,
    BootstreamError,
    BuildNotFound,
    Conflict,
    Corrupt,
    InvalidInput,
    NotFound,
)
from bootstream.nbd.server import Export, Server
from bootstream.services.bases import Base, BaseTable
from bootstream.services.files import lock_state, read_json, state_error, write_json
from bootstream.services.journal import describe_error
from bootstream.services.models import Failure
from bootstream.services.problems import TooManyRequests
from bootstream.services.sandbox_models import Figures, Sandbox, SandboxState
from bootstream.storage.protocol import StorageProvider
from bootstream.templates.build import ROOTFS
from bootstream.templates.catalogue import Catalogue
from bootstream.templates.commit import Commit, CommitOptions, commit

log = logging.getLogger("bootstream.services")

_RECORD, _OVERLAY, _PAUSED, _DELETED = "sandbox.json", "overlay", "paused.json", "deleted"
_AGAIN_SECONDS = 5.0
_EXPORT = "rootfs"


@dataclass(slots=True)
class Entry:
    """A sandbox in memory. ``lock`` is held by whoever changes what it is."""

    folder: Path
    socket: Path
    sandbox_id: str
    template_id: str
    build_id: str
    writable: bool
    created: datetime
    request: Mapping[str, Any]
    state: SandboxState = SandboxState.RECOVERING
    error: BootstreamError | None = None
    paused: str | None = None
    base: Base | None = None
    overlay: Overlay | None = None
    stack: ExitStack = field(default_factory=ExitStack)
    lock: threading.Lock = field(default_factory=threading.Lock)
    deleted: bool = False

    @property
    def uri(self) -> str:
        """Of the export."""
        return f"nbd+unix:///?socket={self.socket}"


class Sandboxes:
    """Makes and serves them. Thread safe.

    Args:
        settings: of the library.
        state: the service's folder.
        storage: the store.
        bases: opens builds.
        most: how many there may be.

    Raises:
        AlreadyExists: another orchestrator works in this folder.
        StorageFull, PermissionDenied, Unavailable: the folders cannot be used.
    """

    def __init__(
        self,
        settings: Settings,
        state: Path,
        storage: StorageProvider,
        bases: BaseTable,
        *,
        most: int,
    ) -> None:
        self._settings = settings
        self._storage = storage
        self._catalogue = Catalogue(storage)
        self._bases = bases
        self.most = most
        self._folder = state / "sandboxes"
        self._sockets = settings.runtime_dir / "sandboxes"
        self._lock = threading.Lock()
        self._entries: dict[str, Entry] = {}
        self.draining = False
        self._stop = threading.Event()
        self._descriptor = lock_state(state, "orchestrator")
        try:
            for folder in (self._folder, self._sockets):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._load()
        except OSError as error:
            os.close(self._descriptor)
            raise state_error(error, state) from error
        self._thread = threading.Thread(target=self._recover, name="recovery", daemon=True)
        self._thread.start()

    # -- making ---------------------------------------------------------------------------

    def create(self, request: Mapping[str, Any], *, sandbox_id: str | None) -> tuple[Entry, bool]:
        """Make a sandbox and serve it; return it, and whether it is new.

        Raises:
            AlreadyExists: there is another one with this id.
            Conflict: the host is draining.
            TooManyRequests: it is full.
            TemplateNotFound, BuildNotFound: there is nothing to make it from.
            BootstreamError: it cannot be served; nothing is left of it.
        """
        entry = None if sandbox_id is None else self._entries.get(sandbox_id)
        if entry is None:
            build_id = self._resolve(request)
            entry, fresh = self._reserve(request, sandbox_id, build_id)
            if fresh:
                return self._make(entry), True
        if entry.request != request:
            raise AlreadyExists(
                "there is another sandbox of this name",
                operation="create sandbox",
                object=entry.sandbox_id,
                remedy="leave the id out to get a fresh one",
            )
        with entry.lock:  # whoever makes it now
            if entry.deleted:
                raise Conflict(
                    "it could not be made, or is being deleted",
                    operation="create sandbox",
                    object=entry.sandbox_id,
                )
        return entry, False

    def _reserve(
        self, request: Mapping[str, Any], sandbox_id: str | None, build_id: str
    ) -> tuple[Entry, bool]:
        """Take a name, with the entry's lock held if it is new."""
        with self._lock:
            if sandbox_id is not None and sandbox_id in self._entries:
                return self._entries[sandbox_id], False
            if self.draining or self._stop.is_set():
                raise Conflict("this host takes no more sandboxes", operation="create sandbox")
            if len(self._entries) >= self.most:
                raise TooManyRequests(
                    f"this host has {len(self._entries)} sandboxes",
                    operation="create sandbox",
                    remedy="delete some, or ask another host; BOOTSTREAM_SANDBOXES is the limit",
                )
            name = sandbox_id or f"sb-{secrets.token_hex(8)}"
            entry = Entry(
                self._folder / name,
                self._sockets / f"{name}.sock",
                name,
                str(request["template_id"]),
                build_id,
                bool(request["writable"]),
                datetime.now(UTC),
                dict(request),
            )
            entry.lock.acquire()
            self._entries[name] = entry
            return entry, True

    def _make(self, entry: Entry) -> Entry:
        try:
            try:
                entry.folder.mkdir(mode=0o700)
            except OSError as error:
                raise state_error(error, entry.folder) from error
            write_json(
                entry.folder / _RECORD,
                {
                    "format": "bootstream/sandbox",
                    "version": 1,
                    "sandbox_id": entry.sandbox_id,
                    "template_id": entry.template_id,
                    "build_id": entry.build_id,
                    "created": entry.created.isoformat(),
                    "request": dict(entry.request),
                },
                create_only=True,
            )
            self._serve(entry)
        except BaseException:
            self._forget(entry)
            raise
        finally:
            entry.lock.release()
        return entry

    def _resolve(self, request: Mapping[str, Any]) -> str:
        """Return the build that is meant."""
        if request["build_id"] is None:
            tag = request["tag"] or "latest"
            return self._catalogue.resolve(f"{request['template_id']}:{tag}").build_id
        manifest = self._catalogue.resolve(request["build_id"])
        if manifest.template_id != request["template_id"]:
            raise BuildNotFound(
                f"the build belongs to template {manifest.template_id}",
                operation="create sandbox",
                object=manifest.build_id,
            )
        return manifest.build_id

    def _serve(self, entry: Entry) -> None:
        """Open build and overlay, and listen. Raises BootstreamError; then all is closed."""
        with ExitStack() as stack:
            base = self._bases.take(entry.build_id)
            stack.callback(self._bases.give_back, base)
            device: Any = base.device
            overlay = None
            if entry.writable:
                overlay = wiring.open_overlay(
                    self._settings,
                    base.device,
                    entry.folder / _OVERLAY,
                    manifest=base.manifest,
                    artifact=ROOTFS,
                )
                device = stack.enter_context(closing(overlay))
            description = f"{entry.template_id} {entry.build_id} {entry.sandbox_id}"
            server = Server({_EXPORT: Export(device, description)}, default=_EXPORT)
            stack.callback(server.close)
            server.listen_unix(entry.socket)
            server.start()
            entry.base, entry.overlay = base, overlay
            entry.state, entry.error = SandboxState.SERVING, None
            entry.stack = stack.pop_all()

    # -- looking --------------------------------------------------------------------------

    def get(self, sandbox_id: str) -> Entry:
        """Return a sandbox. Raises NotFound."""
        entry = self._entries.get(sandbox_id)
        if entry is None:
            raise NotFound("no such sandbox", operation="find sandbox", object=sandbox_id)
        return entry

    def entries(self) -> list[Entry]:
        """Return all, in the order of their ids."""
        with self._lock:
            return sorted(self._entries.values(), key=lambda entry: entry.sandbox_id)

    # -- pausing and deleting -------------------------------------------------------------

    def commit(self, entry: Entry, options: CommitOptions) -> Commit:
        """Make a build of what was written, and go on. Raises as ``templates.commit``."""
        with entry.lock:
            return self._commit(entry, options)

    def _commit(self, entry: Entry, options: CommitOptions) -> Commit:
        if entry.state is not SandboxState.SERVING or entry.base is None:
            raise Conflict(
                f"the sandbox is {entry.state}", operation="commit", object=entry.sandbox_id
            )
        if entry.overlay is None:
            raise InvalidInput(
                "nothing can be written to this sandbox",
                operation="commit",
                object=entry.sandbox_id,
            )
        with entry.overlay.freeze() as frozen:
            return commit(
                self._storage,
                frozen,
                entry.base.manifest,
                node_id=self._settings.node_id,
                scratch=self._settings.cache_dir / "scratch",
                options=options,
            )

    def pause(self, entry: Entry, options: CommitOptions) -> Commit:
        """Make a build of what was written, and serve no more.

        Its clients are told to end first, and all they wrote is in the build. Where the build
        cannot be made the sandbox is served again, as it was.
        """
        with entry.lock:
            if entry.state is not SandboxState.SERVING or entry.overlay is None:
                return self._commit(entry, options)  # it says why not
            self._unserve(entry)
            entry.state = SandboxState.PAUSING
            try:
                done = self._commit_alone(entry, options)
                write_json(entry.folder / _PAUSED, {"build_id": done.published.manifest.build_id})
            except BaseException:
                self._try_to_serve(entry)
                raise
            entry.paused = done.published.manifest.build_id
            entry.state = SandboxState.PAUSED
            return done

    def _commit_alone(self, entry: Entry, options: CommitOptions) -> Commit:
        """Commit an overlay that is not served."""
        base = self._bases.take(entry.build_id)
        try:
            overlay = wiring.open_overlay(
                self._settings,
                base.device,
                entry.folder / _OVERLAY,
                manifest=base.manifest,
                artifact=ROOTFS,
            )
            with closing(overlay), overlay.freeze() as frozen:
                return commit(
                    self._storage,
                    frozen,
                    base.manifest,
                    node_id=self._settings.node_id,
                    scratch=self._settings.cache_dir / "scratch",
                    options=options,
                )
        finally:
            self._bases.give_back(base)

    def resume(self, entry: Entry) -> None:
        """Serve a paused sandbox again, with all that was written to it. Raises Conflict."""
        with entry.lock:
            if entry.deleted or entry.state is not SandboxState.PAUSED:
                raise Conflict(
                    f"the sandbox is {entry.state}", operation="resume", object=entry.sandbox_id
                )
            self._serve(entry)
            (entry.folder / _PAUSED).unlink(missing_ok=True)
            entry.paused = None

    def delete(self, entry: Entry) -> None:
        """End a sandbox, and remove what was written to it."""
        with entry.lock:
            if entry.deleted:
                return
            write_json(entry.folder / _DELETED, {})
            try:
                self._unserve(entry)
            except BootstreamError as error:
                log.warning("deleting %s: %s", entry.sandbox_id, error)
            self._forget(entry)

    def _unserve(self, entry: Entry) -> None:
        stack, entry.stack = entry.stack, ExitStack()
        entry.base = entry.overlay = None
        stack.close()

    def _try_to_serve(self, entry: Entry) -> None:
        try:
            self._serve(entry)
        except BootstreamError as error:
            entry.error = error
            entry.state = SandboxState.RECOVERING
            log.warning("sandbox %s is not served: %s", entry.sandbox_id, error)

    def _forget(self, entry: Entry) -> None:
        entry.deleted = True
        shutil.rmtree(entry.folder, ignore_errors=True)
        with self._lock:
            self._entries.pop(entry.sandbox_id, None)

    # -- after a start --------------------------------------------------------------------

    def _load(self) -> None:
        """Find what an earlier orchestrator left. Raises OSError."""
        for folder in sorted(self._folder.iterdir()):
            try:
                document = read_json(folder / _RECORD)
                if document is None or (folder / _DELETED).exists():
                    shutil.rmtree(folder, ignore_errors=True)
                    continue
                paused = read_json(folder / _PAUSED)
                entry = Entry(
                    folder,
                    self._sockets / f"{folder.name}.sock",
                    folder.name,
                    str(document["template_id"]),
                    str(document["build_id"]),
                    bool(document["request"]["writable"]),
                    datetime.fromisoformat(document["created"]),
                    dict(document["request"]),
                )
            except (Corrupt, KeyError, TypeError, ValueError):
                log.exception("a sandbox cannot be read, and is left alone: %s", folder.name)
                continue
            if paused is not None:
                entry.paused = str(paused.get("build_id"))
                entry.state = SandboxState.PAUSED
            self._entries[entry.sandbox_id] = entry
        for socket in self._sockets.glob("*.sock"):
            if socket.name.removesuffix(".sock") not in self._entries:
                socket.unlink(missing_ok=True)

    def _recover(self) -> None:
        """Serve what was served, as soon as the store lets us; until it is all done."""
        while not self._stop.is_set():
            for entry in self.entries():
                with entry.lock:
                    if entry.state is SandboxState.RECOVERING and not entry.deleted:
                        self._recover_one(entry)
                if self._stop.is_set():
                    return
            if self._stop.wait(_AGAIN_SECONDS):
                return

    def _recover_one(self, entry: Entry) -> None:
        try:
            self._serve(entry)
        except BootstreamError as error:
            entry.error = error
            if not error.transient:
                entry.state = SandboxState.FAILED
            log.warning("sandbox %s is not served yet: %s", entry.sandbox_id, error)
        else:
            log.info("sandbox %s is served again", entry.sandbox_id)

    def stop(self) -> None:
        """Take no more; callable from a signal handler."""
        self._stop.set()

    def close(self) -> None:
        """Serve no more; the next orchestrator takes all of them over. Idempotent."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()
        for entry in self.entries():
            with entry.lock:
                try:
                    self._unserve(entry)
                except BootstreamError as error:
                    log.warning("closing %s: %s", entry.sandbox_id, error)
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def describe_sandbox(entry: Entry, *, figures: bool = False) -> Sandbox:
    """Return a sandbox as clients see it; with figures, which take a while."""
    base = entry.base
    error = None if entry.error is None else Failure(**describe_error(entry.error))
    return Sandbox(
        sandbox_id=entry.sandbox_id,
        template_id=entry.template_id,
        build_id=entry.build_id,
        state=entry.state,
        writable=entry.writable,
        size=None if base is None else base.device.size,
        socket=str(entry.socket),
        uri=entry.uri,
        created=entry.created,
        paused_build_id=entry.paused,
        error=error,
        figures=_figures(entry, base) if figures and base is not None else None,
    )


def _figures(entry: Entry, base: Base) -> Figures:
    counters = snapshot(base.device, events=0).counters
    try:
        written = (entry.folder / _OVERLAY).stat().st_blocks * 512
    except OSError:
        written = 0
    return Figures(
        touched_bytes=int(counters["touched_bytes"]),
        fetched_bytes=int(counters["fetched_bytes"]),
        requests=int(counters["requests"]),
        waits=int(counters["waits"]),
        overlay_bytes=written,
    )
