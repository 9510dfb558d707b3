"""Every operation under every fault of the service: right, or an error, and nothing left."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

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


def _run(stage: Stage, operation: str, kind: str, number: int) -> None:
    pool = ThreadPoolExecutor(1)
    try:
        pool.submit(run, stage, operation, kind, number).result(_HANG)
    except BaseException as error:
        error.add_note(f"seed: {operation}/{kind}/{number}")
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_operation(stage: Stage, operation: str) -> None:
    """It ends as promised, or in an error that names what was done to what, under each fault."""
    for kind in FAULTS:
        _run(stage, operation, kind, 0)


@pytest.mark.parametrize(
    ("operation", "kind", "number"),
    [
        # A checksum that did not fit, again and again: the retry wrapper went on in pieces,
        # which have none, and passed the damaged bytes on.
        ("download small", "flip", 1),
        # A proxy's page with a status of success was taken for a deletion.
        ("delete", "cut", 2),
    ],
)
def test_regression(stage: Stage, operation: str, kind: str, number: int) -> None:
    """What the matrix found once."""
    _run(stage, operation, kind, number)
