"""From errors to errno values and log lines."""

from __future__ import annotations

import errno

import pytest

from bootstream import errors
from bootstream.errors import BootstreamError, Corrupt, Unavailable
from bootstream.nbd.failures import FailureLog, errno_of
from bootstream.nbd.protocol import Errno


def test_every_error_of_the_tree_has_an_errno() -> None:
    """Two have one of their own, all others are EIO: a denied read is not a read-only disk."""
    own = {"StorageFull": Errno.ENOSPC, "InvalidInput": Errno.EINVAL}
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, BootstreamError)
    ]
    assert len(kinds) > 10
    for kind in kinds:
        assert errno_of(kind("why")) == own.get(kind.__name__, Errno.EIO), kind


@pytest.mark.parametrize(
    ("number", "expected"),
    [(errno.ENOSPC, 28), (errno.EDQUOT, 28), (errno.EFBIG, 28), (errno.EACCES, 5), (errno.EIO, 5)],
)
def test_errors_of_the_system(number: int, expected: int) -> None:
    """No room, by any name, is ENOSPC (proto.md, "Error values")."""
    assert errno_of(OSError(number, "x")) == expected


def test_causes_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The chain below an error, in one line; a traceback where it is none of ours."""
    log = FailureLog()
    try:
        try:
            raise ConnectionResetError("by peer")
        except OSError as error:
            raise Unavailable("no answer", operation="read", object="pack") from error
    except Unavailable as failure:
        log.record("READ", failure)
    log.record("WRITE", ZeroDivisionError("oops"))
    first, second = caplog.records
    assert first.levelname == "WARNING"
    assert first.getMessage() == (
        "READ failed: read pack: no answer; because ConnectionResetError: by peer"
    )
    assert second.exc_info is not None


def test_the_log_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    """A burst, then silence, then how many were left out."""
    log = FailureLog(burst=3, interval=3600)
    for _ in range(100):
        log.record("READ", Corrupt("x"))
    assert len(caplog.records) == 3
    caplog.clear()
    log = FailureLog(burst=3, interval=0)
    for _ in range(5):
        log.warn("x")
    assert len(caplog.records) == 5
    log._dropped = 7
    log.warn("y")
    assert "7 more" in caplog.records[-2].getMessage()
