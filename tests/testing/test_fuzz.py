"""The fuzzer: it finds what is planted, and nothing in the parsers of the package."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from bootstream.errors import Corrupt
from bootstream.testing import fuzz as module
from bootstream.testing.fuzz import Mutator, Target, check_samples, fuzz, main, run_once, shrink
from bootstream.testing.fuzz_targets import TARGETS

RUNS = {"archive": 150, "build": 25, "client": 400, "ext4": 400, "overlay": 300}


@pytest.mark.parametrize("name", TARGETS)
def test_parsers_answer_or_refuse(name: str) -> None:
    """Samples are read; mutants give a value or an error of the tree."""
    target = TARGETS[name]
    check_samples(name, target)
    count, failures = fuzz(name, target, seed=11, runs=RUNS.get(name, 1500))
    assert not failures, "\n".join(failure.trace for failure in failures)
    assert count == RUNS.get(name, 1500)


def fragile(data: bytes) -> None:
    """A parser with a defect: it believes a length."""
    if len(data) < 8:
        raise Corrupt("too short")
    if data[4] > 100:
        raise IndexError("planted")


def test_defects_are_found_and_shrunk() -> None:
    """A planted defect is reported once, with an input that is as short as it can be."""
    target = Target(lambda: [bytes(64)], fragile)
    count, failures = fuzz("fragile", target, runs=20_000)
    (failure,) = failures
    assert (count, failure.what.split()[0]) == (20_000, "IndexError")
    small = shrink(failure, target)
    assert len(small.data) == 8
    assert run_once("fragile", target, small.data) is not None


def test_same_seed_same_inputs() -> None:
    """A run can be repeated."""
    samples = TARGETS["manifest"].samples()

    def inputs(seed: int) -> list[bytes]:
        mutator = Mutator(samples, seed, document=True)
        return [mutator.next() for _ in range(50)]

    assert inputs(1) == inputs(1)
    assert inputs(1) != inputs(2)


def test_hangs_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not end is ended, and reported."""
    monkeypatch.setattr(module, "HANG_SECONDS", 0.05)

    def hang(_data: bytes) -> None:
        end = time.monotonic() + 20
        while time.monotonic() < end:
            pass

    failure = run_once("hang", Target(lambda: [b""], hang), b"")
    assert failure is not None
    assert failure.what.startswith("hang")


def test_errors_outside_the_tree_need_permission() -> None:
    """A contract may have exceptions of its own."""

    def run(_data: bytes) -> None:
        raise KeyError("of its own")

    assert run_once("own", Target(lambda: [b""], run, allowed=(KeyError,)), b"") is None
    assert run_once("own", Target(lambda: [b""], run), b"") is not None


def test_refused_samples_are_no_samples() -> None:
    """A sample that the parser refuses stops the run before it proves nothing."""
    with pytest.raises(AssertionError, match="sample 0"):
        check_samples("fragile", Target(lambda: [b"short"], fragile))


def test_replay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A kept input runs again by itself."""
    path = tmp_path / "input"
    path.write_bytes(b"{")
    assert main(["manifest", "--replay", str(path)]) == 0
    assert "as it should be" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["nothing"])
