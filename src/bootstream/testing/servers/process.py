"""A program that serves on a port while a context lasts."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

_START_SECONDS = 25.0
_STARTS = 3


def tools_folder() -> Path:
    """Return the folder with the programs of the development environment.

    ``BOOTSTREAM_TEST_TOOLS`` names another than the running interpreter's own.
    """
    return Path(os.environ.get("BOOTSTREAM_TEST_TOOLS") or sys.prefix)


def tool(name: str) -> str:
    """Return the path of a program of the development environment."""
    return str(tools_folder() / "bin" / name)


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def answers(process: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until the port takes connections; False if the process ended instead."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return process.poll() is None
    return False


class ServerProcess:
    """One server, with its files in ``folder``; subclasses say how it is started.

    Attributes:
        url: where it listens, without a slash at its end.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = ""
        self._process: subprocess.Popen[bytes] | None = None

    def command(self, port: int) -> Sequence[str]:
        """Return the command that serves on a port of 127.0.0.1."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """Return variables beyond those of this process."""
        return {}

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        log = self.folder / "server.log"
        for _ in range(_STARTS):  # another process may take the port first
            port = free_port()
            with log.open("ab") as output:
                self._process = subprocess.Popen(
                    self.command(port),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=os.environ | self.environment(),
                    cwd=self.folder,
                )
            if answers(self._process, port):
                self.url = f"http://127.0.0.1:{port}"
                return self
            self.close()
        raise RuntimeError(f"{self.command(0)[0]} does not start:\n{log.read_text()[-2000:]}")

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
