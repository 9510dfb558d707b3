"""What can go wrong with a store, how often, and the chance that decides it."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from bootstream.errors import BootstreamError, StorageFull, Unavailable

Operation = Literal[
    "read_at",
    "write_to",
    "stat",
    "list",
    "put",
    "read_from",
    "copy",
    "delete",
    "delete_prefix",
    "sign",
    "collect",
    "details",
]
READS: frozenset[Operation] = frozenset({"read_at", "write_to", "stat", "list"})
WRITES: frozenset[Operation] = frozenset({"put", "read_from", "copy", "delete", "delete_prefix"})
ALL: frozenset[Operation] = READS | WRITES | {"sign", "collect", "details"}


@dataclass(frozen=True, slots=True)
class Fails:
    """The operation raises ``error``, without being done or, with ``after``, having been done.

    ``error`` is a class of the tree, or anything that makes one of its errors.
    """

    error: Callable[[], BootstreamError] | type[BootstreamError] = Unavailable
    after: bool = False


@dataclass(frozen=True, slots=True)
class Delays:
    """The operation begins ``seconds`` later, and up to ``jitter`` seconds more."""

    seconds: float
    jitter: float = 0.0


@dataclass(frozen=True, slots=True)
class Cuts:
    """A read, download or listing breaks off with Unavailable.

    ``at`` says after how many bytes (or objects of a listing); None: anywhere before the
    end. What is asked for in less than that is not cut.
    """

    at: int | None = None


@dataclass(frozen=True, slots=True)
class Flips:
    """One bit of what is read is wrong, and nothing says so."""


@dataclass(frozen=True, slots=True)
class Fills:
    """The disk is full once ``at`` bytes were written: that write raises StorageFull.

    Bytes are counted from the first on, over all objects that match; deleting frees none.
    """

    at: int


Effect = Fails | Delays | Cuts | Flips | Fills


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens, to which operations, and how often.

    ``operations`` are by name: ``write_from_file_system`` counts as ``read_from``, ``size``
    and ``exists`` as ``stat``. ``paths`` is a pattern for the object's path, the prefix of
    a listing, or "" where there is none; ``*`` matches ``/`` too. Of the operations that
    match, the first ``skip`` are spared, then each is hit with ``probability``, until
    ``count`` were.
    """

    effect: Effect
    operations: frozenset[Operation] = ALL
    paths: str = "*"
    probability: float = 1.0
    skip: int = 0
    count: int | None = None


class _Armed:
    """A fault and what is left of it."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.skip = fault.skip
        self.left = fault.count
        self.written = 0

    def matches(self, operation: Operation, path: str) -> bool:
        return operation in self.fault.operations and fnmatchcase(path, self.fault.paths)

    def strikes(self, rng: random.Random) -> bool:
        if self.skip:
            self.skip -= 1
            return False
        if self.left == 0 or rng.random() >= self.fault.probability:
            return False
        if self.left is not None:
            self.left -= 1
        return True


@dataclass(slots=True)
class Plan:
    """What one operation will meet."""

    delay: float = 0.0
    before: BootstreamError | None = None
    after: BootstreamError | None = None
    cut: Cuts | None = None
    flip: bool = False

    def finish(self) -> None:
        """Raise what the operation meets once it was done."""
        if self.after is not None:
            raise self.after


class Faults:
    """Faults in force; decides what each operation meets. Safe to use from several threads."""

    def __init__(
        self, faults: tuple[Fault, ...], *, seed: int, sleep: Callable[[float], object] = time.sleep
    ) -> None:
        self._armed = [_Armed(fault) for fault in faults]
        self._random = random.Random(seed)  # noqa: S311 - reproducible on purpose
        self._lock = threading.Lock()
        self._sleep = sleep
        self.struck = 0

    def add(self, fault: Fault) -> None:
        """Let one more thing go wrong from now on."""
        with self._lock:
            self._armed.append(_Armed(fault))

    def clear(self) -> None:
        """Let nothing go wrong any more."""
        with self._lock:
            self._armed.clear()

    def begin(self, operation: Operation, path: str) -> Plan:
        """Decide what the operation meets; wait, and raise, as that says."""
        plan = Plan()
        with self._lock:
            for armed in self._armed:
                effect = armed.fault.effect
                if isinstance(effect, Fills) or not armed.matches(operation, path):
                    continue
                if not armed.strikes(self._random):
                    continue
                self.struck += 1
                self._apply(effect, plan, operation, path)
                if plan.before is not None:
                    break
        if plan.delay:
            self._sleep(plan.delay)
        if plan.before is not None:
            raise plan.before
        return plan

    def _apply(self, effect: Effect, plan: Plan, operation: Operation, path: str) -> None:
        if isinstance(effect, Delays):
            plan.delay += effect.seconds + self._random.random() * effect.jitter
        elif isinstance(effect, Cuts):
            plan.cut = effect
        elif isinstance(effect, Flips):
            plan.flip = True
        elif isinstance(effect, Fails):
            if isinstance(effect.error, type):
                error = effect.error("an injected fault", operation=operation, object=path)
            else:
                error = effect.error()
            if effect.after:
                plan.after = error
            else:
                plan.before = error

    def write(self, operation: Operation, path: str, count: int) -> None:
        """Account for ``count`` bytes that are about to be written; raises StorageFull."""
        with self._lock:
            for armed in self._armed:
                effect = armed.fault.effect
                if isinstance(effect, Fills) and armed.matches(operation, path):
                    armed.written += count
                    if armed.written > effect.at:
                        self.struck += 1
                        raise StorageFull("an injected fault", operation=operation, object=path)

    def chance(self, end: int) -> int:
        """Return a number from 0 to ``end`` - 1, or 0."""
        with self._lock:
            return self._random.randrange(max(end, 1))

    def flip(self, view: memoryview) -> None:
        """Change one bit."""
        if len(view):
            view[self.chance(len(view))] ^= 1 << self.chance(8)


def cut_error(operation: Operation, path: str) -> Unavailable:
    """The error of what was cut short."""
    return Unavailable("an injected fault cut it short", operation=operation, object=path)
