"""Recording a trace: an export on a private socket, and the command that boots it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import click

from bootstream.block.trace import Trace
from bootstream.cli.bases import Base
from bootstream.cli.context import Cli
from bootstream.cli.errors import from_os_error
from bootstream.cli.serve import Served, serving_bases
from bootstream.errors import InvalidInput
from bootstream.templates.build import ROOTFS
from bootstream.templates.traces import TraceMode

_END_SECONDS = 5.0
_LOOK_SECONDS = 0.2


@contextmanager
def recorded(
    cli: Cli, ref: str, artifact: str, command: Sequence[str], seconds: float
) -> Iterator[tuple[Base, Trace]]:
    """Serve until the command ended or the time is over; yield what was touched first.

    The build is held meanwhile, and until the block ends.

    Raises:
        InvalidInput: the command failed by itself, or the build has no such artifact.
        NotFound, PermissionDenied: the command cannot be started.
        Cancelled: Ctrl-C, with a command; without one it is the regular end.
    """
    with cli.interruption, tempfile.TemporaryDirectory(prefix="bootstream-nbd-") as folder:
        cli.catalogue.resolve(ref).artifact(artifact)
        served = Served(refs=(ref,), socket=Path(folder) / "nbd.sock", trace=TraceMode.OFF)
        with serving_bases(cli, served) as (default, bases):
            export, uri = ref, default
            if artifact != ROOTFS:
                export = f"{ref}/{artifact}"
                uri = default.replace("nbd+unix:///?", f"nbd+unix:///{quote(export)}?")
            if command:
                _run(cli, command, uri, seconds)
            else:
                _wait(cli, uri, seconds)
            base = bases.exports[export]
            yield base, base.device.trace(seconds)


def _wait(cli: Cli, uri: str, seconds: float) -> None:
    click.echo(uri)
    sys.stdout.flush()
    cli.interruption.wait(seconds)
    cli.interruption.signum = None


def _run(cli: Cli, command: Sequence[str], uri: str, seconds: float) -> None:
    """Run to its end, or end it and all that it started when the time is over."""
    words = [word.replace("{uri}", uri) for word in command]
    try:
        process = subprocess.Popen(
            words, env={**os.environ, "NBD_URI": uri}, start_new_session=True
        )
    except OSError as error:
        raise from_os_error(error, operation="run", object=words[0]) from error
    deadline = time.monotonic() + seconds
    try:
        while process.poll() is None:
            cli.interruption.check()
            left = deadline - time.monotonic()
            if left <= 0:
                cli.tell("the time is over: the command is ended")
                return
            with suppress(subprocess.TimeoutExpired):
                process.wait(min(left, _LOOK_SECONDS))
    finally:
        _end(process)
    if process.returncode:
        raise InvalidInput(
            f"the command ended with {process.returncode}, so nothing is stored",
            operation="record trace",
            object=words[0],
            remedy="make it succeed; what runs on when the time is over is ended without harm",
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    for signum in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signum)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_END_SECONDS)
            return
