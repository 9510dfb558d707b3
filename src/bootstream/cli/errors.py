"""From exceptions to exit codes and to what a person reads. Nothing else does either."""

from __future__ import annotations

import errno
import sys
import traceback
from typing import TYPE_CHECKING

import click

from bootstream.errors import (
    AlreadyExists,
    BootstreamError,
    Cancelled,
    Conflict,
    Corrupt,
    InvalidInput,
    NotFound,
    PermissionDenied,
    StorageFull,
    Throttled,
    Unavailable,
)

if TYPE_CHECKING:
    from bootstream.cli.context import Cli

OTHER, USAGE, NOT_FOUND, CONFLICT, DENIED, UNAVAILABLE, CORRUPT = 1, 2, 3, 4, 5, 6, 7
UNEXPECTED, INTERRUPTED, BROKEN_PIPE = 70, 130, 141

EXIT_CODES: tuple[tuple[int, str], ...] = (
    (0, "it worked"),
    (OTHER, "another failure"),
    (USAGE, "wrong usage or input"),
    (NOT_FOUND, "what was named is not there"),
    (CONFLICT, "it exists already, or somebody else was first"),
    (DENIED, "permission denied"),
    (UNAVAILABLE, "storage or registry unavailable, throttled or full"),
    (CORRUPT, "corrupt: bytes are not what their digest or format says"),
    (UNEXPECTED, "a defect of this program; --debug shows where"),
    (INTERRUPTED, "interrupted (Ctrl-C); 143 by SIGTERM, 129 by SIGHUP"),
)

_CODES: tuple[tuple[type[BootstreamError], int], ...] = (
    (InvalidInput, USAGE),
    (NotFound, NOT_FOUND),
    (Conflict, CONFLICT),
    (PermissionDenied, DENIED),
    (Throttled, UNAVAILABLE),
    (Unavailable, UNAVAILABLE),
    (Corrupt, CORRUPT),
    (Cancelled, INTERRUPTED),
)

_OS_ERRORS: dict[int, type[BootstreamError]] = {
    errno.ENOENT: NotFound,
    errno.EEXIST: AlreadyExists,
    errno.EACCES: PermissionDenied,
    errno.EPERM: PermissionDenied,
    errno.EROFS: PermissionDenied,
    errno.EISDIR: InvalidInput,
    errno.ENOTDIR: InvalidInput,
    errno.ENOTEMPTY: InvalidInput,
    errno.ENAMETOOLONG: InvalidInput,
    errno.EADDRNOTAVAIL: InvalidInput,
    errno.EADDRINUSE: Conflict,
    errno.ENOSPC: StorageFull,
    errno.EDQUOT: StorageFull,
}


def exit_code(error: BootstreamError) -> int:
    """Return the exit code that stands for the error's kind."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), OTHER)


def from_os_error(
    error: OSError, *, operation: str | None = None, object: str | None = None
) -> BootstreamError:
    """Map an operating system error about something that the user named."""
    kind = _OS_ERRORS.get(error.errno or 0, BootstreamError)
    name = object if object is not None else error.filename
    if isinstance(name, bytes):
        name = name.decode("utf-8", "backslashreplace")
    return kind(
        error.strerror or str(error) or type(error).__name__,
        operation=operation,
        object=None if name is None else str(name),
    )


def report(error: BaseException, cli: Cli) -> int:
    """Say what happened, on stderr, and return the exit code."""
    signal = cli.interruption.signum
    if signal is not None or isinstance(error, (KeyboardInterrupt, click.Abort, Cancelled)):
        _trace(error, cli)
        _complain("interrupted", None)
        return 128 + signal if signal is not None else INTERRUPTED
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else OTHER
    if isinstance(error, BrokenPipeError):
        return BROKEN_PIPE
    _trace(error, cli)
    if isinstance(error, click.ClickException):
        return _report_usage(error)
    if isinstance(error, OSError):
        verb = cli.verb or "bootstream"
        error = from_os_error(error, operation=None if error.filename else verb)
    if isinstance(error, BootstreamError):
        _complain(str(error), error.remedy)
        return exit_code(error)
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    _complain(
        f"unexpected {what}",
        None
        if cli.debug
        else "this is a defect; run it again with --debug and report what it says",
    )
    return UNEXPECTED


def _report_usage(error: click.ClickException) -> int:
    context = getattr(error, "ctx", None)
    path = context.command_path if isinstance(context, click.Context) else "bootstream"
    _complain(f"{path}: {error.format_message().rstrip('.')}", f"{path} --help")
    return USAGE


def _trace(error: BaseException, cli: Cli) -> None:
    if cli.debug:
        traceback.print_exception(error, file=sys.stderr)


def _complain(message: str, remedy: str | None) -> None:
    """Write to stderr, whose own trouble must not hide the exit code."""
    text = f"error: {_one_line(message)}\n"
    if remedy:
        text += f"  remedy: {_one_line(remedy)}\n"
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        return


def _one_line(text: str) -> str:
    """Names from outside are in it: no line breaks, no terminal control."""
    joined = " ".join(line.strip() for line in text.splitlines())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in joined)
