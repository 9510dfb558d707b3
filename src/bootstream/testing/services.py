"""A service for tests: the real command in a process of its own, on a free port of this host."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from bootstream.testing.cli import CommandLine

_START_SECONDS = 20.0
_STOP_SECONDS = 15.0


class ServiceProcess:
    """``bootstream VERB`` with everything it keeps below ``folder``, while the context lasts.

    Attributes:
        url: where it answers.

    Args:
        verb: ``template-manager`` or ``orchestrator``.
        folder: of store, cache, state and log.
        environment: further variables.
        options: of the verb.
    """

    def __init__(
        self,
        verb: str,
        folder: Path,
        *,
        environment: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
    ) -> None:
        self.url = ""
        self.state = folder / "state"
        self.log = folder / f"{verb}.log"
        self.cli = CommandLine(folder, dict(environment or {}))
        self._verb = verb
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def start(self) -> None:
        """Start it, and return when it answers. Raises RuntimeError with what it said."""
        reader, writer = os.pipe()
        command = ["-m", "bootstream", self._verb, "--port", "0", "--state", str(self.state)]
        try:
            with self.log.open("ab") as log:
                self._process = subprocess.Popen(
                    [sys.executable, *command, "--ready-fd", str(writer), *self._options],
                    env=self.cli.variables,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=[writer],
                )
        finally:
            os.close(writer)
        try:
            ready = select.select([reader], [], [], _START_SECONDS)[0]
            self.url = os.read(reader, 1000).decode().strip() if ready else ""
        finally:
            os.close(reader)
        if not self.url:
            self.kill()
            raise RuntimeError(f"{self._verb} does not start:\n{self.said()[-3000:]}")

    def said(self) -> str:
        """Return its log."""
        return self.log.read_text() if self.log.exists() else ""

    @property
    def process_id(self) -> int:
        """Of the service, while it runs."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """End it as a crash does."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def stop(self) -> None:
        """End it in order. Raises RuntimeError if it does not end well, or in time."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        if code != 0:
            raise RuntimeError(f"{self._verb} ended with {code}:\n{self.said()[-3000:]}")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.stop()
        else:
            self.kill()
