"""Every operation under every fault of the service: right, or an error, and nothing left."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tests.storage.oci.matrix import FAULTS, OPERATIONS, Stage, run

from bootstream.testing.localoci import LocalOciServer

_HANG = 15.0  # seconds; none of them should need five


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """One local OCI for all cases."""
    folder = tmp_path_factory.mktemp("oci")
    with LocalOciServer(folder) as oci:
        principal = oci.principal()
        stage = Stage(oci, principal, folder)
        yield stage
        stage.close()


def _run(stage: Stage, seed: str, rules: list[dict[str, Any]] | None = None) -> None:
    pool = ThreadPoolExecutor(1)
    try:
        pool.submit(run, stage, seed, rules).result(_HANG)
    except BaseException as error:
        error.add_note(f"seed: {seed}")
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_operation(stage: Stage, operation: str) -> None:
    """It ends as promised, or in an error that names what was done to what, under each fault."""
    for kind in FAULTS:
        _run(stage, f"{operation}/{kind}/0")


REGRESSIONS: dict[str, tuple[str, list[dict[str, Any]]]] = {
    # The retry wrapper went on in pieces, which have no checksum, when the whole had not
    # matched its own.
    "damaged again and again": ("download small/flip/1", [{"effect": "flip", "after": 1}]),
    "damaged after a break": (
        "download small/flip/1",
        [
            {"effect": "cut", "after": 500, "operation": "GetObject", "count": 1},
            {"effect": "flip", "after": 1, "operation": "GetObject", "skip": 1, "count": 1},
        ],
    ),
    # Each attempt brought one byte, and so counted as progress.
    "byte by byte": (
        "download large/cut/1",
        [{"effect": "cut", "after": 1, "operation": "GetObject"}],
    ),
    # It was taken for a deletion, as it comes with the status of one.
    "a page answers to a deletion": (
        "delete/html/1",
        [{"effect": "html", "status": 200, "operation": "DeleteObject"}],
    ),
}


@pytest.mark.parametrize("name", REGRESSIONS)
def test_regression(stage: Stage, name: str) -> None:
    """What the matrix found once."""
    _run(stage, *REGRESSIONS[name])
