"""Mutation fuzzing of everything that parses bytes from outside, in bounded time.

::

    python -m bootstream.testing.fuzz                          all targets, ten seconds each
    python -m bootstream.testing.fuzz index ext4 --seconds 60 --seed 7
    python -m bootstream.testing.fuzz ext4 --replay fuzz-failures/ext4-0123456789ab

A target has valid samples and runs one input through a parser and what uses its
result. Inputs are samples with some mutations: flipped bits, cuts, splices, repeats,
numbers at the edges of their ranges; documents are also mutated as JSON. Where a
checksum would stop every mutant at the door, the target seals mutants anew.

A run fails on an exception outside the error tree, after ``HANG_SECONDS``, or when it
takes more memory than ``MEMORY``. The input is kept and shrunk to a size at which the
same thing still happens. The same seed gives the same inputs, whatever the machine's speed.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import random
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from bootstream.errors import BootstreamError

HANG_SECONDS = 2.0
MEMORY = 1 << 30
"""How much address space one process of fuzzing may take beyond what it has at the start."""

_MOST_FAILURES = 20
_MOST_PLACES = 2000
_EDGES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF,
          1 << 40, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)  # fmt: skip
_ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1 << 31, 1 << 63, -(1 << 63), 10**400, 1.5, 1e308, "", "\0", "\ud800",
    "x" * 5000, "../../etc/passwd", "sha256:" + "0" * 64, [], {}, [[]], [None], {"": None},
    float("inf"), float("nan"), "2026-01-01T00:00:00Z", "9999-12-31T23:59:59.999999+23:59",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Target:
    """Something that is fuzzed.

    Attributes:
        samples: returns valid inputs.
        run: parses one input, and uses the result as its callers do.
        seal: makes checksums right again; half of the mutants go through it.
        document: whether inputs are JSON.
        allowed: exceptions outside the error tree that are part of the parser's contract.
    """

    samples: Callable[[], Sequence[bytes]]
    run: Callable[[bytes], object]
    seal: Callable[[bytes], bytes] | None = None
    document: bool = False
    allowed: tuple[type[Exception], ...] = ()


@dataclass(frozen=True, slots=True)
class Failure:
    """One defect: the input, and what happened."""

    target: str
    data: bytes
    what: str
    trace: str

    @property
    def name(self) -> str:
        """A file name for the input."""
        return f"{self.target}-{hashlib.sha256(self.data).hexdigest()[:12]}"


class _Hang(BaseException):
    """It took too long. No Exception, so that no parser takes it for one of its own."""


# -- mutation ----------------------------------------------------------------------------------


class Mutator:
    """Makes inputs from samples; the same seed makes the same ones."""

    def __init__(self, samples: Sequence[bytes], seed: int, *, document: bool = False) -> None:
        self._random = random.Random(seed)  # noqa: S311 - to be repeated, not to be secret
        self._samples = list(samples)
        self._document = document
        # Images are mostly zeros, where mutations change nothing that is read.
        self._busy = [_busy_places(sample) for sample in self._samples]

    def next(self) -> bytes:
        """Return one more mutant."""
        rng = self._random
        number = rng.randrange(len(self._samples))
        sample = self._samples[number]
        if self._document and rng.random() < 0.7:
            return self._mutate_document(sample)
        data = bytearray(sample)
        for _ in range(rng.choice((1, 1, 1, 2, 3, 5, 8))):
            self._mutate(data, self._busy[number])
        return bytes(data)

    def _place(self, data: bytearray, busy: Sequence[int]) -> int:
        if busy and self._random.random() < 0.8:
            place = self._random.choice(busy) + self._random.randrange(64)
            return min(place, max(0, len(data) - 1))
        return self._random.randrange(len(data)) if data else 0

    def _mutate(self, data: bytearray, busy: Sequence[int]) -> None:
        rng = self._random
        at = self._place(data, busy)
        kind = rng.randrange(20)
        if kind < 6 and data:
            data[at] ^= 1 << rng.randrange(8)
        elif kind < 9 and data:
            data[at] = rng.randrange(256)
        elif kind < 14:
            width = rng.choice((1, 2, 4, 8))
            at -= at % width if rng.random() < 0.7 else 0
            number = rng.choice(_EDGES) + rng.choice((0, 0, 0, 1, -1))
            order: Any = rng.choice(("little", "little", "big"))
            piece = (number % (1 << 8 * width)).to_bytes(width, order)
            data[at : at + width] = piece[: max(0, len(data) - at)]
        elif kind < 16:
            other = rng.choice(self._samples)
            start = rng.randrange(len(other) + 1)
            length = rng.choice((1, 4, 16, 64, 512, 4096))
            data[at : at + length] = other[start : start + length]
        elif kind < 17:
            del data[rng.randrange(len(data) + 1) :]
        elif kind < 18:
            del data[at : at + rng.choice((1, 2, 4, 64, 512))]
        elif kind < 19:
            length = rng.choice((1, 4, 64, 512, 1024))
            data[at:at] = data[at : at + length]
        else:
            length = min(rng.choice((4, 64, 512)), len(data) - at)
            data[at : at + length] = bytes([rng.choice((0, 0xFF, 0x20))]) * length

    def _mutate_document(self, sample: bytes) -> bytes:
        rng = self._random
        root = json.loads(sample)
        for _ in range(rng.choice((1, 1, 2, 4))):
            places = list(islice(_places(root), _MOST_PLACES))
            if not places:
                break
            parent, key = rng.choice(places)
            kind = rng.randrange(8)
            if kind < 5:
                parent[key] = copy.deepcopy(rng.choice(_ODD_VALUES))
            elif kind < 6:
                del parent[key]
            elif kind < 7:
                other, other_key = rng.choice(places)
                parent[key] = copy.deepcopy(other[other_key])
            else:
                copies = rng.choice((1, 2, 100)) if isinstance(parent[key], (str, int)) else 1
                parent[key] = [parent[key]] * copies
        return json.dumps(root).encode("utf-8", "surrogatepass")


def _busy_places(sample: bytes) -> list[int]:
    return [at for at in range(0, len(sample), 64) if any(sample[at : at + 64])]


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (container, key) of everything in a JSON document."""
    waiting = [value]
    while waiting:
        found = waiting.pop()
        keys: Any = ()
        if isinstance(found, dict):
            keys = list(found)
        elif isinstance(found, list):
            keys = range(len(found))
        for key in keys:
            yield found, key
            waiting.append(found[key])


# -- running -----------------------------------------------------------------------------------


def run_once(name: str, target: Target, data: bytes) -> Failure | None:
    """Run one input; return what is wrong, None if it was answered as it should be.

    Hangs are noticed in the main thread only.
    """
    trouble: BaseException
    try:
        with _alarm():
            target.run(data)
    except BootstreamError:
        return None
    except target.allowed:
        return None
    except _Hang as error:
        trouble = error
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what we look for
        trouble = error
    else:
        return None
    trace = "".join(traceback.format_exception(trouble, limit=-8))
    what = "hang" if isinstance(trouble, _Hang) else type(trouble).__name__
    return Failure(name, data, f"{what} at {_where(trouble.__traceback__)}", trace)


def fuzz(
    name: str,
    target: Target,
    *,
    seed: int = 0,
    seconds: float | None = None,
    runs: int | None = None,
) -> tuple[int, list[Failure]]:
    """Run mutants until the time is over or so many ran; one failure for each place of failing.

    Returns:
        How many inputs ran, and what they found.
    """
    mutator = Mutator(target.samples(), seed, document=target.document)
    rng = random.Random(seed + 1)  # noqa: S311 - as above
    end = None if seconds is None else time.monotonic() + seconds
    found: dict[str, Failure] = {}
    count = 0
    while (runs is None or count < runs) and (end is None or time.monotonic() < end):
        data = mutator.next()
        if target.seal is not None and rng.random() < 0.8:
            data = target.seal(data)
        failure = run_once(name, target, data)
        count += 1
        if failure is not None and failure.what not in found:
            found[failure.what] = failure
            if len(found) >= _MOST_FAILURES:
                break
    return count, list(found.values())


def check_samples(name: str, target: Target) -> None:
    """Insist that the samples are accepted: else mutants of them would prove little."""
    for number, sample in enumerate(target.samples()):
        try:
            target.run(sample)
        except Exception as error:
            raise AssertionError(f"sample {number} of {name} is refused: {error!r}") from error


def shrink(failure: Failure, target: Target, *, seconds: float = 5.0) -> Failure:
    """Return a shorter input of the same failure: parts are cut out while it still fails."""
    end = time.monotonic() + seconds
    best = failure
    step = len(best.data) // 2
    while step >= 1 and time.monotonic() < end:
        at = 0
        while at < len(best.data) and time.monotonic() < end:
            shorter = best.data[:at] + best.data[at + step :]
            tried = run_once(best.target, target, shorter)
            if tried is not None and tried.what == failure.what:
                best = tried
            else:
                at += step
        step //= 2
    return best


def _where(trace: TracebackType | None) -> str:
    """Name the innermost place in the package that an exception went through."""
    place = "unknown"
    for frame, line in traceback.walk_tb(trace):
        path = Path(frame.f_code.co_filename)
        if "bootstream" in path.parts and "testing" not in path.parts:
            place = f"{path.name}:{line}"
    return place


@contextmanager
def _alarm() -> Iterator[None]:
    def ring(_signum: int, _frame: FrameType | None) -> None:
        raise _Hang

    try:
        previous = signal.signal(signal.SIGALRM, ring)
    except ValueError:  # not the main thread
        yield
        return
    signal.setitimer(signal.ITIMER_REAL, HANG_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))


# -- command line ------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Fuzz the targets named, all if none is; the exit code is 1 if something was found."""
    from bootstream.testing.fuzz_targets import TARGETS  # noqa: PLC0415 - it imports this module

    parser = argparse.ArgumentParser(prog="python -m bootstream.testing.fuzz")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=float, default=10.0, help="for each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("fuzz-failures"), metavar="DIR")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run one kept input")
    wanted = parser.parse_args(arguments)
    for name in wanted.targets:
        if name not in TARGETS:
            parser.error(f"there is no target {name}; there are: {', '.join(TARGETS)}")
    failed = False
    for name in wanted.targets or TARGETS:
        target = TARGETS[name]
        if wanted.replay is not None:
            failure = run_once(name, target, wanted.replay.read_bytes())
            failed |= failure is not None
            _say(failure.trace if failure is not None else f"{name}: answered as it should be")
            continue
        check_samples(name, target)
        _limit_memory()
        count, failures = fuzz(name, target, seed=wanted.seed, seconds=wanted.seconds)
        _say(f"{name}: {count} inputs, {len(failures)} failures")
        for failure in failures:
            failed = True
            small = shrink(failure, target)
            wanted.keep.mkdir(parents=True, exist_ok=True)
            path = wanted.keep / small.name
            path.write_bytes(small.data)
            _say(f"  {small.what}: {path}\n{small.trace}")
    return int(failed)


def _say(text: str) -> None:
    sys.stdout.write(text.rstrip("\n") + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    # Through the package's own module: the targets' classes are those that it knows.
    from bootstream.testing.fuzz import main as _main

    raise SystemExit(_main())
