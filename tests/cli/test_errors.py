"""From errors to exit codes and texts."""

from __future__ import annotations

import errno
import os
import pkgutil
import signal
import subprocess
from pathlib import Path

import pytest

import bootstream
from bootstream import errors
from bootstream.cli import errors as cli_errors
from bootstream.cli.context import Cli
from bootstream.testing.cli import COMMAND, CommandLine

CODES = {
    errors.BootstreamError: 1,
    errors.InvalidInput: 2,
    errors.NotFound: 3,
    errors.ObjectNotFound: 3,
    errors.BucketNotFound: 3,
    errors.ImageNotFound: 3,
    errors.TemplateNotFound: 3,
    errors.BuildNotFound: 3,
    errors.Conflict: 4,
    errors.AlreadyExists: 4,
    errors.PreconditionFailed: 4,
    errors.OutcomeUnknown: 4,
    errors.PermissionDenied: 5,
    errors.Throttled: 6,
    errors.Unavailable: 6,
    errors.StorageFull: 6,
    errors.Corrupt: 7,
    errors.Cancelled: 130,
}


def all_errors(kind: type[errors.BootstreamError]) -> set[type[errors.BootstreamError]]:
    return {kind}.union(*(all_errors(sub) for sub in kind.__subclasses__()))


def test_every_error_has_its_exit_code() -> None:
    """The whole tree, so that a new class cannot be forgotten."""
    for module in pkgutil.walk_packages(bootstream.__path__, "bootstream."):
        assert module.name  # walking imports the packages, and with them any subclass
    kinds = all_errors(errors.BootstreamError)
    assert {kind for kind in kinds if kind.__module__ == errors.__name__} == set(CODES)
    for kind in kinds - set(CODES):  # a layer's own refinement of one of them
        assert cli_errors.exit_code(kind("x")) != 1
    for kind, code in CODES.items():
        assert cli_errors.exit_code(kind("x")) == code


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOENT, 3),
        (errno.EEXIST, 4),
        (errno.EACCES, 5),
        (errno.EROFS, 5),
        (errno.ENOSPC, 6),
        (errno.EISDIR, 2),
        (errno.EIO, 1),
    ],
)
def test_os_errors(number: int, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    """What the operating system says becomes one line with the file's name."""
    error = OSError(number, os.strerror(number), "/some/file")
    assert cli_errors.report(error, Cli()) == code
    said = capsys.readouterr().err
    assert said == f"error: /some/file: {os.strerror(number)}\n"


def test_error_says_operation_object_message_and_remedy(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Two lines, free of anything that could steer a terminal."""
    error = errors.Corrupt(
        "it is not\nwhat it was", operation="read chunk", object="7\x1b[2J", remedy="build again"
    )
    assert cli_errors.report(error, Cli()) == 7
    assert capsys.readouterr().err == (
        "error: read chunk 7\\x1b[2J: it is not what it was\n  remedy: build again\n"
    )


def test_defects_are_one_line_and_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    """An unexpected exception shows no traceback without --debug, and one with it."""
    cli = Cli()
    with pytest.raises(ZeroDivisionError) as raised:
        raise ZeroDivisionError("by nought")
    assert cli_errors.report(raised.value, cli) == 70
    quiet = capsys.readouterr().err
    cli.debug = True
    assert cli_errors.report(raised.value, cli) == 70
    assert quiet.startswith("error: unexpected ZeroDivisionError: by nought\n  remedy: ")
    assert "--debug" in quiet
    assert "Traceback" not in quiet
    assert "Traceback" in capsys.readouterr().err


def test_interruption_has_the_signals_code(capsys: pytest.CaptureFixture[str]) -> None:
    """130 for Ctrl-C, 143 for SIGTERM, whatever error the interruption surfaced as."""
    cli = Cli()
    assert cli_errors.report(KeyboardInterrupt(), cli) == 130
    cli.interruption.signum = signal.SIGTERM
    assert cli_errors.report(errors.Unavailable("cut"), cli) == 143
    assert capsys.readouterr().err == "error: interrupted\n" * 2


def test_broken_pipe_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever reads may stop reading."""
    assert cli_errors.report(BrokenPipeError(), Cli()) == 141
    assert capsys.readouterr().err == ""


def test_usage(tmp_path: Path) -> None:
    """Wrong usage names the verb and where its help is."""
    cli = CommandLine(tmp_path)
    for arguments in (
        ("nonsense",),
        ("ls", "--nonsense"),
        ("tag", "one"),
        ("gc", "--older-than", "x"),
    ):
        result = cli(*arguments)
        assert (result.code, result.stdout) == (2, "")
        assert result.stderr.startswith("error: bootstream")
        assert "--help" in result.stderr.splitlines()[-1]


def test_full_stdout_is_an_error(tmp_path: Path) -> None:
    """A full disk behind stdout is not taken for success."""
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [*COMMAND, "--help"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=CommandLine(tmp_path).variables,
            check=False,
            timeout=20,
        )
    assert result.returncode == 6
    assert result.stderr == "error: bootstream: No space left on device\n"
