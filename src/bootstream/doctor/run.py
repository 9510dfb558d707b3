"""Runs checks side by side, each within its limit; what rests on a failed one is skipped.

A check that waits for a network cannot be stopped from outside, so each has a daemon thread
that is left behind when its time is up: the findings do not wait for it, nor does the end of
the process.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from bootstream.doctor.finding import Check, Context, Finding, State, failure
from bootstream.errors import BootstreamError, InvalidInput, Unavailable

_STEP = 0.1


def choose(checks: Sequence[Check], only: Sequence[str], skip: Sequence[str]) -> list[Check]:
    """Return the checks that are asked for, in their order, with those that they rest on.

    Raises:
        InvalidInput: there is no check of a name.
    """
    known = {check.name: check for check in checks}
    for name in (*only, *skip):
        if name not in known:
            raise InvalidInput(
                "there is no such check",
                operation="examine",
                object=name,
                remedy=f"there are: {', '.join(known)}",
            )
    wanted = set(only or known)
    for name in list(wanted):
        wanted |= set(known[name].after)
    return [check for check in checks if check.name in wanted and check.name not in skip]


def examine(
    checks: Sequence[Check],
    context: Context,
    *,
    on_done: Callable[[Check], None] = lambda _: None,
    stop: Callable[[], None] = lambda: None,
) -> list[Finding]:
    """Run checks and return what they found, in the checks' order.

    Args:
        checks: which; one that another rests on stands before it.
        context: what they are told.
        on_done: called when one is done, in the caller's thread.
        stop: called again and again meanwhile; what it raises ends the waiting.
    """
    jobs = {check.name: _Job(check) for check in checks}
    waiting = list(jobs.values())
    changed = threading.Event()
    while waiting:
        stop()
        changed.clear()
        for job in list(waiting):
            if not job.started:
                before = [jobs[name] for name in job.check.after if name in jobs]
                if not all(other.findings is not None for other in before):
                    continue
                job.start(context, changed, [other for other in before if other.failed])
            if job.settled():
                waiting.remove(job)
                on_done(job.check)
                changed.set()
        if waiting:
            changed.wait(_STEP)
    return [finding for job in jobs.values() for finding in job.findings or ()]


class _Job:
    """One check on its way."""

    def __init__(self, check: Check) -> None:
        self.check = check
        self.started = False
        self.findings: list[Finding] | None = None
        self._found: list[Finding] | None = None
        self._partial: list[Finding] = []
        self._end = 0.0

    @property
    def failed(self) -> bool:
        """Whether what rests on it makes no sense."""
        return any(finding.state is State.FAILED for finding in self.findings or ())

    def start(self, context: Context, changed: threading.Event, without: Sequence[_Job]) -> None:
        """Begin, unless what it rests on failed."""
        self.started = True
        if without:
            names = ", ".join(job.check.name for job in without)
            self._found = [Finding(self.check.name, State.SKIPPED, f"not without {names}")]
            return
        self._end = time.monotonic() + self.check.limit
        threading.Thread(
            target=self._run,
            args=(context, changed),
            name=f"doctor-{self.check.name}",
            daemon=True,
        ).start()

    def _run(self, context: Context, changed: threading.Event) -> None:
        name = self.check.name
        try:
            for finding in self.check.run(context):
                self._partial.append(finding)
        except BootstreamError as error:
            self._partial.append(failure(name, error))
        except OSError as error:
            raised = BootstreamError(str(error), operation="examine", object=name)
            self._partial.append(failure(name, raised))
        except Exception as error:  # noqa: BLE001 - a defect of one check must not hide the others
            raised = BootstreamError(
                f"unexpected {type(error).__name__}: {error}", operation="examine", object=name
            )
            self._partial.append(failure(name, raised))
        self._found = list(self._partial)
        changed.set()

    def settled(self) -> bool:
        """Whether it is done, or its time is up; then ``findings`` are there."""
        if self.findings is None and self._found is not None:
            self.findings = self._found
        elif self.findings is None and self.started and time.monotonic() >= self._end:
            error = Unavailable(
                f"no answer within {self.check.limit:.0f} seconds",
                operation="examine",
                object=self.check.name,
                remedy="see what is slow or cannot be reached: bootstream doctor "
                f"--only {self.check.name} --time-limit {10 * self.check.limit:.0f}s",
            )
            self.findings = [*self._partial, failure(self.check.name, error)]
        return self.findings is not None
