"""A build in memory, read from its folder, and as clients see it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bootstream.errors import Corrupt
from bootstream.services import worker
from bootstream.services.files import read_json
from bootstream.services.journal import tail_lines
from bootstream.services.models import Build, BuildState, Failure, Phase
from bootstream.templates.holder import Holder

ATTEMPTS, WEBHOOK = "attempts", "webhook.json"


@dataclass(slots=True)
class Job:
    """A build in memory. Changed under the lock of ``Builds`` only."""

    folder: Path
    build_id: str
    template_id: str
    accepted: datetime
    request: Mapping[str, Any]
    attempts: int = 0
    running: bool = False
    pid: int | None = None
    started: datetime | None = None
    ending: bool = False
    result: Mapping[str, Any] | None = None
    finished: datetime | None = None
    webhook: str | None = None
    phase: Phase | None = None
    seen: int = -1

    @property
    def log(self) -> Path:
        """The file of its log."""
        return self.folder / worker.LOG

    @property
    def state(self) -> BuildState:
        """Where it is."""
        if self.result is not None:
            return BuildState(self.result["state"])
        if self.ending:
            return BuildState.CANCELLING
        return BuildState.RUNNING if self.running else BuildState.QUEUED


def read_pid(folder: Path) -> int | None:
    """Return the process that a worker said it is, if it can be seen from here."""
    document = read_json(folder / worker.PROCESS)
    holder = None if document is None else Holder.from_json(json.dumps(document).encode())
    if holder is None:
        return None
    here = Holder.current(holder.node_id, holder.pid)
    return holder.pid if here == holder else None


def read_job(folder: Path) -> Job | None:
    """Read a build's files; None if it was never accepted. Raises Corrupt."""
    document = read_json(folder / worker.REQUEST)
    if document is None:
        return None
    try:
        job = Job(
            folder,
            str(document["build_id"]),
            str(document["template_id"]),
            datetime.fromisoformat(document["accepted"]),
            dict(document["request"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise Corrupt("it is no request for a build", object=str(folder)) from error
    attempts = read_json(folder / ATTEMPTS) or {}
    job.attempts = int(attempts.get("attempts", 0))
    if "started" in attempts:
        job.started = datetime.fromisoformat(attempts["started"])
    job.ending = (folder / worker.ENDING).exists()
    job.result = read_json(folder / worker.RESULT)
    if job.result is not None:
        when = (folder / worker.RESULT).stat().st_mtime
        job.finished = datetime.fromtimestamp(when, UTC)
    if job.request.get("webhook"):
        told = read_json(folder / WEBHOOK) or {}
        job.webhook = str(told.get("state", "waiting"))
    return job


def describe(job: Job) -> Build:
    """Return a build as clients see it."""
    result = job.result or {}
    error = result.get("error")
    return Build(
        template_id=job.template_id,
        build_id=job.build_id,
        state=job.state,
        accepted=job.accepted,
        started=job.started,
        finished=job.finished,
        attempts=job.attempts,
        phase=_phase(job) if job.running else None,
        error=None if error is None else Failure(**error),
        tags=list(job.request["tags"]),
        size=result.get("size"),
        stored_size=result.get("stored_size"),
        parent=result.get("parent"),
        webhook=job.webhook,  # type: ignore[arg-type]
    )


def _phase(job: Job) -> Phase | None:
    """Return how far a running build is, by the end of its log, looked at where it grew."""
    try:
        size = job.log.stat().st_size
    except OSError:
        return None
    if job.seen == size:
        return job.phase
    phase: Phase | None = None
    for line in tail_lines(job.log, size):
        match json.loads(line.data):
            case {"type": "phase", "name": name, "total": total, "unit": unit}:
                phase = Phase(name=name, done=0, total=total, unit=unit)
            case {"type": "progress" | "done", "name": name, "done": int(done)}:
                if phase is not None and phase.name == name:
                    phase.done = done
    job.phase, job.seen = phase, size
    return phase
