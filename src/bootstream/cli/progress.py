"""Progress for people: bars on a terminal, lines with ``-v`` elsewhere, else nothing."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self

from bootstream.cli.output import human_size

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

_DRAW_SECONDS = 0.1
_LINE_SECONDS = 10.0


@dataclass(slots=True)
class _Phase:
    total: int | None
    unit: str
    started: float
    spoken: float
    amount: int = 0


class Silent:
    """Says nothing, but still lets work be stopped. The base of the others."""

    def __init__(self, check: Callable[[], None]) -> None:
        self._check = check

    def phase(self, name: str, total: int | None = None, unit: str = "B") -> None:
        """Begin a phase."""

    def advance(self, name: str, amount: int) -> None:  # noqa: ARG002 - the protocol's
        """Count. Raises Cancelled when the work was interrupted."""
        self._check()

    def done(self, name: str) -> None:
        """End a phase."""

    def log(self, message: str) -> None:
        """Say one line."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        return None


class Lines(Silent):
    """One line when a phase ends, and one every ten seconds while it lasts."""

    def __init__(self, check: Callable[[], None], write: Callable[[str], None]) -> None:
        super().__init__(check)
        self._write = write
        self._lock = threading.Lock()
        self._phases: dict[str, _Phase] = {}

    def phase(self, name: str, total: int | None = None, unit: str = "B") -> None:
        """Begin, or re-total."""
        now = time.monotonic()
        with self._lock:
            known = self._phases.get(name)
            if known is None:
                self._phases[name] = _Phase(total, unit, now, now)
            else:
                known.total, known.unit = total, unit

    def advance(self, name: str, amount: int) -> None:
        """Count, and speak when it is time."""
        self._check()
        now = time.monotonic()
        with self._lock:
            phase = self._phases.setdefault(name, _Phase(None, "B", now, now))
            phase.amount += amount
            speak = now - phase.spoken >= _LINE_SECONDS
            if speak:
                phase.spoken = now
        if speak:
            self._write(f"{name}: {_amount(phase.amount, phase.unit, phase.total)}")

    def done(self, name: str) -> None:
        """End a phase and say what it was."""
        with self._lock:
            phase = self._phases.pop(name, None)
        if phase is not None:
            seconds = time.monotonic() - phase.started
            self._write(f"{name}: {_amount(phase.amount, phase.unit)} in {seconds:.1f} s")

    def part(self, name: str, part: str, amount: int, total: int) -> None:
        """Say when a part is there."""
        if amount == total:
            self._write(f"{name}: {_short(part)}, {human_size(total)}")

    def log(self, message: str) -> None:
        """Say one line."""
        self._write(message)


class Bars(Silent):
    """A bar for each phase. Counts are gathered here; the drawing library is called rarely."""

    def __init__(self, check: Callable[[], None]) -> None:
        from rich.console import Console  # noqa: PLC0415 - slow to import, rarely needed
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

        super().__init__(check)
        self._lock = threading.Lock()
        self._phases: dict[str, tuple[TaskID, _Phase]] = {}
        self._drawn = 0.0
        self._bars: RichProgress = Progress(
            TextColumn("{task.description:<14}", markup=False),
            BarColumn(bar_width=32),
            TextColumn("{task.fields[state]}", markup=False),
            TimeElapsedColumn(),
            console=Console(file=sys.stderr),
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def phase(self, name: str, total: int | None = None, unit: str = "B") -> None:
        """Begin, or re-total, a bar."""
        now = time.monotonic()
        with self._lock:
            known = self._phases.get(name)
            if known is not None:
                known[1].total, known[1].unit = total, unit
                self._bars.update(known[0], total=total)
                return
            task = self._bars.add_task(name, total=total, state="")
            self._phases[name] = task, _Phase(total, unit, now, now)

    def advance(self, name: str, amount: int) -> None:
        """Count, and draw when it is time."""
        self._check()
        with self._lock:
            known = self._phases.get(name)
            if known is None:
                return
            known[1].amount += amount
            now = time.monotonic()
            if now - self._drawn >= _DRAW_SECONDS:
                self._drawn = now
                self._draw(*known)

    def done(self, name: str) -> None:
        """Fill the bar."""
        with self._lock:
            known = self._phases.pop(name, None)
            if known is not None:
                known[1].total = known[1].amount
                self._draw(*known)

    def part(self, name: str, part: str, amount: int, total: int) -> None:
        """Draw a bar for a part while it is under way."""
        key = f"{name} {part}"
        with self._lock:
            known = self._phases.get(key)
            if amount == total:
                if known is not None:
                    del self._phases[key]
                    self._bars.remove_task(known[0])
                return
            now = time.monotonic()
            if known is None:
                task = self._bars.add_task(f"  {_short(part)}", total=total, state="")
                known = self._phases[key] = task, _Phase(total, "B", now, 0.0)
            known[1].amount = amount
            if now - known[1].spoken >= _DRAW_SECONDS:
                known[1].spoken = now
                self._draw(*known)

    def log(self, message: str) -> None:
        """Print one line above the bars."""
        self._bars.console.print(message, markup=False, highlight=False)

    def _draw(self, task: TaskID, phase: _Phase) -> None:
        total = phase.total if phase.total is None else max(phase.total, 1)
        completed = total if total is not None and phase.amount == phase.total else phase.amount
        state = _amount(phase.amount, phase.unit, phase.total)
        self._bars.update(task, completed=completed, total=total, state=state)


def _short(part: str) -> str:
    """A digest as people know it by."""
    return part.partition(":")[2][:12] or part[:12]


def _amount(amount: int, unit: str, total: int | None = None) -> str:
    def one(count: int) -> str:
        return human_size(count) if unit == "B" else f"{count} {unit}"

    return one(amount) if total is None or total == amount else f"{one(amount)} of {one(total)}"
