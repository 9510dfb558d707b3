"""The builds of one template-manager: accepted, queued, run, and never lost.

A build is a folder below ``builds/``::

    request.json   what was asked, and the claim; created only if absent: from here it is accepted
    attempts       how often a worker was started for it
    lock           held by the worker that runs it
    log            see ``journal``
    claimed        the worker had the build id for itself
    ending.json    what the result is to be, once what was stored is removed: cancelled, or failed
    result.json    how it ended; from here it is final
    webhook.json   what became of telling somebody

All state is derived from these, so a manager that is killed at any moment goes on where it was.
Workers are processes that outlive it: at a start, a lock that is held is a build that runs. A
worker that dies without a result is started again, three times at most; it takes the build up by
its claim (``templates/publish``). One manager works in a folder, by a lock.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bootstream.errors import AlreadyExists, BootstreamError, BuildNotFound, Conflict, Corrupt
from bootstream.ids import is_build_id
from bootstream.services import worker
from bootstream.services.files import (
    lock_state,
    read_json,
    state_error,
    take_lock,
    wait_for_lock,
    write_json,
)
from bootstream.services.jobs import ATTEMPTS, WEBHOOK, Job, read_job, read_pid
from bootstream.services.journal import describe_error
from bootstream.services.models import BuildState
from bootstream.services.problems import TooManyRequests

log = logging.getLogger("bootstream.services")

FORMAT = "bootstream/build-request"
VERSION = 1
MOSTATTEMPTS = 3
KILL_SECONDS = 20.0
KEEP_FINISHED = 2000


class Builds:
    """Accepts builds and has them made, so many at once. Thread safe.

    Args:
        state: the service's folder.
        at_once: workers at a time.
        queue: how many may wait.
        on_end: called, in a thread of its own, with every build that came to its end, and at
            the start with those whose webhook is still to be told.
        store: the store's name for workers, where it is not that of the environment.
        environ: of workers.

    Raises:
        AlreadyExists: another manager works in this folder.
    """

    def __init__(
        self,
        state: Path,
        *,
        at_once: int,
        queue: int,
        on_end: Callable[[Job], None],
        environ: Mapping[str, str],
        store: str | None = None,
    ) -> None:
        self._folder = state / "builds"
        self._at_once = at_once
        self._queue = queue
        self._on_end = on_end
        self._environ = dict(environ)
        self._store = store
        self._lock = threading.Condition()
        self._jobs: dict[str, Job] = {}
        self._stopping = False
        self._descriptor = lock_state(state, "template-manager")
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            waiting = self._load()
        except OSError as error:
            raise state_error(error, state) from error
        self._thread = threading.Thread(target=self._schedule, name="builds", daemon=True)
        self._thread.start()
        for job in waiting:
            threading.Thread(target=self._on_end, args=(job,), daemon=True).start()

    # -- what clients ask -----------------------------------------------------------------

    def accept(
        self, template_id: str, build_id: str, request: Mapping[str, Any], *, known: bool
    ) -> tuple[Job, bool]:
        """Accept a build, for good; return it, and whether it is new.

        Args:
            template_id: of the build.
            build_id: asked for, or fresh.
            request: its options.
            known: the client named the build id, so it may be a repetition.

        Raises:
            AlreadyExists: there is another request with this build id.
            TooManyRequests: too many wait.
            StorageFull, PermissionDenied, Unavailable: it cannot be kept.
        """
        with self._lock:
            job = self._jobs.get(build_id)
            if job is not None:
                if not known or job.template_id != template_id or job.request != request:
                    raise AlreadyExists(
                        "another build was asked for under this id",
                        operation="start build",
                        object=build_id,
                        remedy="leave the build id out to get a fresh one",
                    )
                return job, False
            waiting = sum(each.result is None and not each.running for each in self._jobs.values())
            if waiting >= self._queue:
                raise TooManyRequests(
                    f"{waiting} builds wait already",
                    operation="start build",
                    retry_after=30,
                    remedy="wait until some are done; BOOTSTREAM_BUILD_QUEUE is the limit",
                )
            accepted = datetime.now(UTC)
            folder = self._folder / build_id
            document = {
                "format": FORMAT,
                "version": VERSION,
                "build_id": build_id,
                "template_id": template_id,
                "accepted": accepted.isoformat(),
                "claim": secrets.token_hex(16),
                "request": dict(request),
            }
            try:
                folder.mkdir(mode=0o700, exist_ok=True)
            except OSError as error:
                raise state_error(error, folder) from error
            write_json(folder / worker.REQUEST, document, create_only=True)
            job = Job(folder, build_id, template_id, accepted, document["request"])  # type: ignore[arg-type]
            job.webhook = "waiting" if request.get("webhook") else None
            self._jobs[build_id] = job
            self._lock.notify_all()
            return job, True

    def find(self, build_id: str) -> Job | None:
        """Return a build that was accepted here."""
        return self._jobs.get(build_id)

    def get(self, template_id: str, build_id: str) -> Job:
        """Return a template's build. Raises BuildNotFound."""
        job = self._jobs.get(build_id)
        if job is None or job.template_id != template_id:
            raise BuildNotFound(
                "no such build was accepted here", operation="find build", object=build_id
            )
        return job

    def jobs(self, template_id: str | None = None) -> list[Job]:
        """Return all builds, newest first."""
        with self._lock:
            found = [job for job in self._jobs.values() if template_id in (None, job.template_id)]
        return sorted(found, key=lambda job: (job.accepted, job.build_id), reverse=True)

    def cancel(self, job: Job) -> None:
        """Have a build end as cancelled; one that ended stays as it is, and raises Conflict."""
        with self._lock:
            if job.result is not None:
                raise Conflict(
                    f"the build is {job.state} already",
                    operation="cancel build",
                    object=job.build_id,
                )
            if job.ending:
                return
            if not job.running and job.attempts == 0:
                self._end(job, {"state": "cancelled"})  # nothing of it was stored
                return
            write_json(job.folder / worker.ENDING, {"state": "cancelled"})
            job.ending = True
            pid = job.pid
            self._lock.notify_all()
        if pid is not None:
            self._signal(job, pid, signal.SIGTERM)
            timer = threading.Timer(KILL_SECONDS, self._signal, (job, pid, signal.SIGKILL))
            timer.daemon = True
            timer.start()

    def mark_deleted(self, job: Job) -> None:
        """Note that the published build was deleted since."""
        with self._lock:
            self._end(job, {**(job.result or {}), "state": "deleted"}, tell=False)

    def note_webhook(self, job: Job, state: str) -> None:
        """Keep what became of the webhook."""
        job.webhook = state
        try:
            write_json(job.folder / WEBHOOK, {"state": state})
        except BootstreamError as error:  # after the next start it is told once more
            log.warning("the webhook of build %s: %s", job.build_id, error)

    def counts(self) -> dict[BuildState, int]:
        """Return how many builds are in each state."""
        counts = dict.fromkeys(BuildState, 0)
        with self._lock:
            for job in self._jobs.values():
                counts[job.state] += 1
        return counts

    def close(self) -> None:
        """Start nothing more. Workers go on; the next start finds them. Idempotent."""
        with self._lock:
            if self._stopping:
                return
            self._stopping = True
            self._lock.notify_all()
        self._thread.join()
        os.close(self._descriptor)

    # -- what is there at the start -------------------------------------------------------

    def _load(self) -> list[Job]:
        """Find what earlier managers left; return builds whose webhook was not told."""
        untold = []
        for folder in sorted(self._folder.iterdir()):
            if not is_build_id(folder.name):
                continue
            try:
                job = read_job(folder)
            except Corrupt:
                log.exception("a build cannot be read, and is left alone: %s", folder.name)
                continue
            if job is None:  # it was never accepted
                shutil.rmtree(folder, ignore_errors=True)
                continue
            self._jobs[job.build_id] = job
            if job.result is not None:
                if job.webhook == "waiting":
                    untold.append(job)
                continue
            descriptor = take_lock(folder / worker.LOCK)
            if descriptor is not None:
                os.close(descriptor)
                if job.attempts:
                    log.info("build %s has lost its worker", job.build_id)
                continue
            log.info("build %s runs still", job.build_id)
            job.running = True
            job.pid = read_pid(folder)
            threading.Thread(target=self._watch, args=(job, None), daemon=True).start()
        return untold

    # -- workers --------------------------------------------------------------------------

    def _schedule(self) -> None:
        while True:
            with self._lock:
                job = self._next()
                while job is None and not self._stopping:
                    self._lock.wait()
                    job = self._next()
                if self._stopping or job is None:
                    return
                job.running = True
                job.started = job.started or datetime.now(UTC)
                ending = job.ending
            try:
                self._start(job, ending=ending)
            except Exception as error:  # noqa: BLE001 - whatever it is, the others are to run
                self._cannot_start(job, error)

    def _next(self) -> Job | None:
        running = sum(job.running for job in self._jobs.values())
        if running >= self._at_once:
            return None
        waiting = (j for j in self._jobs.values() if j.result is None and not j.running)
        return min(waiting, key=lambda job: (job.accepted, job.build_id), default=None)

    def _start(self, job: Job, *, ending: bool) -> None:
        """Start a worker, which has the lock before it exists."""
        number = job.attempts + 1
        write_json(job.folder / ATTEMPTS, {"attempts": number, "started": _now()})
        job.attempts = number
        descriptor = take_lock(job.folder / worker.LOCK)
        if descriptor is None:
            raise Conflict("its lock is held", operation="start worker", object=job.build_id)
        try:
            with (job.folder / "stderr").open("ab") as stderr:
                process = subprocess.Popen(
                    [
                        sys.executable,
                        "-m",
                        "bootstream.services.worker",
                        str(job.folder),
                        str(descriptor),
                        *([] if self._store is None else [self._store]),
                    ],
                    env=self._environ,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=stderr,
                    pass_fds=[descriptor],
                    start_new_session=True,
                )
        finally:
            os.close(descriptor)
        with self._lock:
            job.pid = process.pid
            cancelled = job.ending and not ending  # meanwhile, when there was nobody to tell
        log.info("build %s: attempt %d, process %d", job.build_id, number, process.pid)
        threading.Thread(target=self._watch, args=(job, process), daemon=True).start()
        if cancelled:
            self._signal(job, process.pid, signal.SIGTERM)

    def _cannot_start(self, job: Job, error: Exception) -> None:
        log.error("no worker for build %s", job.build_id, exc_info=error)
        if isinstance(error, OSError):
            error = state_error(error, job.folder)
        if not isinstance(error, BootstreamError):
            error = BootstreamError(f"unexpected {type(error).__name__}: {error}"[:500])
        with self._lock:
            job.running = False
            self._end(job, {"state": "failed", "error": describe_error(error)})
            self._lock.notify_all()

    def _watch(self, job: Job, process: subprocess.Popen[bytes] | None) -> None:
        """Wait for a worker's end, and see what came of it."""
        if process is not None:
            process.wait()
        wait_for_lock(job.folder / worker.LOCK)
        with self._lock:
            job.running = False
            job.pid = None
            try:
                result = read_json(job.folder / worker.RESULT)
            except BootstreamError as error:
                result = {"state": "failed", "error": describe_error(error)}
            if result is not None:
                self._ended(job, result)
            else:
                self._died(job, None if process is None else process.returncode)
            self._lock.notify_all()

    def _died(self, job: Job, code: int | None) -> None:
        """A worker ended without a result: killed, or out of memory."""
        log.warning("the worker of build %s died: %s", job.build_id, code)
        if job.ending:
            if job.attempts > 2 * MOSTATTEMPTS:
                self._end(job, _ending_of(job))
            return  # another one removes what is left
        if job.attempts < MOSTATTEMPTS:
            return
        how = f"by signal {-code}" if code is not None and code < 0 else "without a result"
        error = BootstreamError(
            f"its worker died {job.attempts} times, the last time {how}",
            operation="build",
            object=job.build_id,
            remedy="look for the kernel's out-of-memory killer; BOOTSTREAM_BUILDS bounds how "
            "many builds run at once",
        )
        ending = {"state": "failed", "error": describe_error(error)}
        try:
            write_json(job.folder / worker.ENDING, ending)
        except BootstreamError:
            self._end(job, ending)  # what it stored is left to collection
        job.ending = True

    def _end(self, job: Job, result: Mapping[str, Any], *, tell: bool = True) -> None:
        try:
            write_json(job.folder / worker.RESULT, result)
        except BootstreamError as error:  # the next start will have it run again
            log.error("the end of build %s could not be kept: %s", job.build_id, error)  # noqa: TRY400
        self._ended(job, result, tell=tell)

    def _ended(self, job: Job, result: Mapping[str, Any], *, tell: bool = True) -> None:
        job.result = result
        job.finished = job.finished or datetime.now(UTC)
        if tell:
            log.info("build %s is %s", job.build_id, job.state)
            threading.Thread(target=self._on_end, args=(job,), daemon=True).start()
        self._forget()

    def _forget(self) -> None:
        """Keep the newest of those that ended."""
        done = [j for j in self._jobs.values() if j.result is not None and j.webhook != "waiting"]
        if len(done) <= KEEP_FINISHED:
            return
        for job in sorted(done, key=lambda job: job.accepted)[: len(done) - KEEP_FINISHED]:
            del self._jobs[job.build_id]
            shutil.rmtree(job.folder, ignore_errors=True)

    def _signal(self, job: Job, pid: int, signum: int) -> None:
        """Signal a worker that is surely still this one: while its lock is held, its pid is."""
        with self._lock:
            if not job.running or job.pid != pid:
                return
            descriptor = take_lock(job.folder / worker.LOCK)
            if descriptor is not None:
                os.close(descriptor)
                return
            try:
                os.kill(pid, signum)
            except ProcessLookupError:
                return


def _ending_of(job: Job) -> dict[str, Any]:
    try:
        return read_json(job.folder / worker.ENDING) or {"state": "cancelled"}
    except BootstreamError:
        return {"state": "cancelled"}


def _now() -> str:
    return datetime.now(UTC).isoformat()
