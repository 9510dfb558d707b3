"""One build in a process of its own: ``python -m bootstream.services.worker FOLDER LOCK-FD``.

The folder is the build's, as ``builds`` has it. The process holds the folder's lock by the
descriptor that it inherited, so whoever can take the lock knows that it ended. It never needs
the service: it goes on while that is being restarted, and its result is a file.

SIGTERM cancels: the work stops at its next step and what it stored is removed.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

from bootstream import wiring
from bootstream.config import Settings
from bootstream.errors import (
    AlreadyExists,
    BootstreamError,
    BuildNotFound,
    Cancelled,
    Conflict,
    InvalidInput,
)
from bootstream.images.image import Image
from bootstream.rootfs import Ext4Options
from bootstream.services.addresses import AddressPolicy
from bootstream.services.files import read_json, write_json
from bootstream.services.journal import Journal, describe_error
from bootstream.services.settings import TEMPLATE_MANAGER_PORT, ServiceSettings
from bootstream.storage.protocol import StorageProvider
from bootstream.templates.build import BuildOptions
from bootstream.templates.catalogue import Catalogue
from bootstream.templates.holder import Holder
from bootstream.templates.manifest import Manifest, read_manifest
from bootstream.templates.names import DEFAULT_TAG, TemplateName
from bootstream.templates.publish import BuildSession

REQUEST, RESULT, ENDING, LOG, LOCK = "request.json", "result.json", "ending.json", "log", "lock"
CLAIMED, PROCESS = "claimed", "process.json"
_LOOK_SECONDS = 1.0
PATIENCE_SECONDS = 3.0


class _Stop:
    """SIGTERM: the next report of progress raises; where none comes, the main thread is woken.

    A manager that cannot signal, for it is in another container by now, leaves ``ending.json``.
    """

    def __init__(self, ending: Path) -> None:
        self.asked = False
        self._ending = ending
        self._looked = time.monotonic()
        self._noticed = False
        signal.signal(signal.SIGTERM, self._ask)
        signal.signal(signal.SIGALRM, self._insist)

    def _ask(self, _signum: int, _frame: FrameType | None) -> None:
        if not self.asked:
            self.asked = True
            signal.setitimer(signal.ITIMER_REAL, PATIENCE_SECONDS)

    def _insist(self, _signum: int, _frame: FrameType | None) -> None:
        if not self._noticed:
            self._noticed = True
            raise KeyboardInterrupt

    def check(self) -> None:
        """Raise Cancelled once it was asked for."""
        now = time.monotonic()
        if now - self._looked > _LOOK_SECONDS:
            self._looked = now
            self.asked |= self._ending.exists()
        if self.asked:
            self._noticed = True
            raise Cancelled("it was cancelled", operation="build")

    def settle(self) -> None:
        """From here on the work is done, whatever comes."""
        self._noticed = True
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.setitimer(signal.ITIMER_REAL, 0)


class _Progress:
    """The journal, the signal, and the mark that the build id is ours."""

    def __init__(self, journal: Journal, stop: _Stop, claimed: Path) -> None:
        self._journal = journal
        self._stop = stop
        self._claimed = claimed
        self._lock = threading.Lock()
        self._marked = False
        self.done = journal.done
        self.log = journal.log

    def phase(self, name: str, total: int | None = None, unit: str = "B") -> None:
        """Note it. Work has phases from when its build id was claimed."""
        with self._lock:
            if not self._marked:
                self._marked = True
                write_json(self._claimed, {})
        self._journal.phase(name, total, unit)

    def advance(self, name: str, amount: int) -> None:
        """Note it. Raises Cancelled."""
        self._stop.check()
        self._journal.advance(name, amount)


class Worker:
    """The work of one folder.

    Args:
        folder: the build's.
        settings: of the library.
        service: what the manager was told.
    """

    def __init__(self, folder: Path, settings: Settings, service: ServiceSettings) -> None:
        self._folder = folder
        self._settings = settings
        self._service = service
        record = read_json(folder / REQUEST)
        assert record is not None
        self._record = record
        self._request: dict[str, Any] = record["request"]
        self._build_id: str = record["build_id"]
        self._template_id: str = record["template_id"]
        self._claim: str = record["claim"]
        self._tags: list[str] = self._request["tags"] or [DEFAULT_TAG]

    def run(self, journal: Journal, stop: _Stop) -> dict[str, Any]:
        """Do the work, whatever is left of it, and return the result's document."""
        storage = wiring.get_template_storage_provider(self._settings)
        claimed = self._folder / CLAIMED
        if claimed.exists():
            published = self._published(storage)
            if published is not None:
                journal.log("an earlier attempt published it")
                stop.settle()
                return self._finish(storage, published, self._tags)
        ending = read_json(self._folder / ENDING)
        if ending is not None:
            self._undo(storage)
            return ending
        manifest = self._build(storage, _Progress(journal, stop, claimed))
        stop.settle()
        return self._finish(storage, manifest, self._tags[1:])

    def _published(self, storage: StorageProvider) -> Manifest | None:
        try:
            manifest, _ = read_manifest(storage, self._build_id)
        except BuildNotFound:
            return None
        if manifest.state == "published":
            return manifest
        raise Conflict(
            "it was given up for dead and collected, before it could be gone on with",
            operation="build",
            object=self._build_id,
            remedy="build it again, under another build id",
        )

    def _undo(self, storage: StorageProvider) -> None:
        """Remove what earlier attempts stored; the claim keeps others' builds out of it."""
        try:
            session = BuildSession(
                storage,
                self._template_id,
                self._build_id,
                node_id=self._settings.node_id,
                claim=self._claim,
            )
        except AlreadyExists:
            return  # it is somebody else's, or collection has it
        session.abandon()

    def _build(self, storage: StorageProvider, progress: _Progress) -> Manifest:
        request = self._request
        rootfs = {
            key: request[key]
            for key in ("size", "free", "inodes", "inode_ratio", "label", "block_size")
            if request[key] is not None
        }
        builder = wiring.open_builder(self._settings, storage)
        published = builder.from_image(
            self._open_image(),
            TemplateName(self._template_id, self._tags[0]),
            build_id=self._build_id,
            options=BuildOptions(
                rootfs=Ext4Options(**rootfs),
                parent=request["parent"],
                chunk_size=request["chunk_size"],
                level=request["level"],
                threads=request["threads"],
                form=request["form"],
            ),
            progress=progress,
            claim=self._claim,
        )
        return published.manifest

    def _open_image(self) -> Image:
        request = self._request
        if request["registry"] is not None:
            source = request["registry"]
            registry = wiring.get_artifacts_registry_provider(self._settings)
            return registry.get_image(
                source["template_id"], source["build_id"], request["platform"]
            )
        policy = AddressPolicy(self._service.allowed_hosts)
        policy.check_image(request["image"], plain_http=request["plain_http"])
        return wiring.open_image(
            self._settings,
            request["image"],
            platform=request["platform"],
            plain_http=request["plain_http"],
            guard=policy.check_address,
        )

    def _finish(
        self, storage: StorageProvider, manifest: Manifest, tags: list[str]
    ) -> dict[str, Any]:
        """Give the tags that it has not yet."""
        catalogue = Catalogue(storage)
        for tag in tags:
            catalogue.set_tag(self._template_id, tag, self._build_id)
        return {
            "state": "published",
            "size": manifest.size,
            "stored_size": manifest.stored_size,
            "parent": manifest.parent,
        }


def run(folder: Path, settings: Settings, service: ServiceSettings) -> None:
    """Do the work of a folder, and write its result there; errors are results too."""
    stop = _Stop(folder / ENDING)
    write_json(folder / PROCESS, asdict(Holder.current(settings.node_id)))
    journal = Journal(folder / LOG)
    worker = Worker(folder, settings, service)
    try:
        result = worker.run(journal, stop)
    except (Cancelled, KeyboardInterrupt):
        result = {"state": "cancelled"}
    except BootstreamError as error:
        result = {"state": "failed", "error": describe_error(error)}
    except Exception as error:  # a defect, too, is a result that somebody can read
        logging.getLogger("bootstream.services").exception("build %s", folder.name)
        what = BootstreamError(f"unexpected {type(error).__name__}: {error}"[:500])
        result = {"state": "failed", "error": describe_error(what)}
    stop.settle()
    if "error" in result:
        journal.log(f"failed: {result['error']['message']}")
    journal.write("end", state=result["state"])
    journal.close()
    write_json(folder / RESULT, result)


def main(arguments: list[str]) -> int:
    """Run for a folder; the second argument is the descriptor of its lock, kept open."""
    folder = Path(arguments[0])
    os.set_inheritable(int(arguments[1]), False)
    settings = Settings.from_environment(os.environ)
    if len(arguments) > 2:
        settings = wiring.with_store(settings, arguments[2])
    service = ServiceSettings.from_environment(os.environ, port=TEMPLATE_MANAGER_PORT)
    run(folder, settings, service)
    return 0


if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise InvalidInput("FOLDER and LOCK-FD are needed", operation="run worker")
    sys.exit(main(sys.argv[1:]))
