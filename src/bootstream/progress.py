"""How long work reports on itself, and how it is told to stop.

The library only speaks to this protocol; the command line draws bars, a service
fills a log, tests collect. Methods may be called from any thread.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable


class Progress(Protocol):
    """A listener for one job made of named phases."""

    def phase(self, name: str, total: int | None = None, unit: str = "B") -> None:
        """Begin, or re-total, the phase ``name``; ``total`` in ``unit`` ("B" or a plural)."""
        ...

    def advance(self, name: str, amount: int) -> None:
        """Add ``amount`` units to the phase ``name``; also the place where work is cancelled.

        Raises:
            Cancelled: the job was asked to stop; whoever calls lets it pass.
        """
        ...

    def done(self, name: str) -> None:
        """End the phase ``name``."""
        ...

    def log(self, message: str) -> None:
        """Say one line that a person may want to read later."""
        ...


@runtime_checkable
class DetailedProgress(Progress, Protocol):
    """A listener that also wants to hear of a phase's parts, such as the layers of an image."""

    def part(self, name: str, part: str, amount: int, total: int) -> None:
        """Say how far a part of the phase ``name`` is; it ends when ``amount`` is ``total``."""
        ...


class NoProgress:
    """A listener that listens to nothing; the default everywhere."""

    def phase(self, name: str, total: int | None = None, unit: str = "B") -> None:
        """Ignore it."""

    def advance(self, name: str, amount: int) -> None:
        """Ignore it."""

    def done(self, name: str) -> None:
        """Ignore it."""

    def log(self, message: str) -> None:
        """Ignore it."""


NO_PROGRESS = NoProgress()
