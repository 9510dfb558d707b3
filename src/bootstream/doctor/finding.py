"""What a check finds, and what it is told."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from bootstream.errors import BootstreamError

if TYPE_CHECKING:
    from bootstream.config import Settings


class State(StrEnum):
    """How something stands."""

    OK = "ok"
    FAILED = "failed"
    LACKING = "lacking"
    """It is not there or not as it should be, and much works without it."""
    SKIPPED = "skipped"
    """It rests on something that failed."""
    UNUSED = "unused"
    """The settings do not ask for it, or the store has no such thing."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: dotted, its check first: ``storage.create``.
        state: how it stands.
        detail: for people, one line.
        remedy: what mends it: a policy's statement, a command, a variable.
        error: what was raised, where something was; its kind decides the exit code.
    """

    name: str
    state: State
    detail: str
    remedy: str | None = None
    error: BootstreamError | None = None

    @property
    def check(self) -> str:
        """The name of the check it is of."""
        return self.name.partition(".")[0]


@dataclass(frozen=True, slots=True)
class Host:
    """Where this host shows itself; other folders stand in for it in tests."""

    sys: Path = Path("/sys")
    proc: Path = Path("/proc")
    dev: Path = Path("/dev")


@dataclass(frozen=True, slots=True)
class Context:
    """What checks are told.

    Attributes:
        settings: see ``docs/settings.md``.
        host: where the kernel's files are.
        kernel: to try KVM with, a file or a folder; None takes this host's own.
        ports: by what listens there.
    """

    settings: Settings
    host: Host = Host()
    kernel: Path | None = None
    ports: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Check:
    """One check.

    Attributes:
        name: see ``Finding``.
        what: for people, what it is about.
        run: yields findings; may raise BootstreamError or OSError.
        limit: seconds that it may take.
        after: checks without which it makes no sense.
    """

    name: str
    what: str
    run: Callable[[Context], Iterable[Finding]]
    limit: float = 10.0
    after: tuple[str, ...] = ()


def failure(name: str, error: BootstreamError) -> Finding:
    """Return the finding for something that was raised."""
    return Finding(name, State.FAILED, str(error), error.remedy, error)
