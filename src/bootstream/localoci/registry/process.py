"""The real registry: ``docker-registry`` as a child process, on a unix socket.

Its configuration is written for each start. The socket is in a folder that only we may enter:
the registry asks nobody to sign in. A shell waits beside it at a pipe of ours, and ends it when
the pipe ends, so that it never outlives us, however we end.

Its secret signs the addresses of uploads in work: it is kept, so that they go on after a restart.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from bootstream.errors import InvalidInput, Unavailable
from bootstream.localoci.keys import write_secret

PROGRAM = "docker-registry"
_START_SECONDS = 20.0
_STOP_SECONDS = 5.0
# The shell ends when the registry does; its helper reads our pipe until that ends.
_WATCH = """
exec 3<&0
"$0" serve "$1" 3<&- &
child=$!
(read -r _ <&3; kill "$child") &
wait "$child"
"""


class RegistryProcess:
    """A running registry.

    Attributes:
        socket: the path at which it answers.
        repositories: the folder of its repositories.
        secret: with which it signs the addresses of uploads.

    Args:
        folder: where everything of it is; made when missing.

    Raises:
        InvalidInput: the program is missing.
        Unavailable: it does not start.
    """

    def __init__(self, folder: Path) -> None:
        program = shutil.which(PROGRAM)
        if program is None:
            raise InvalidInput(
                f"the program {PROGRAM} is missing, which keeps the images",
                operation="start the registry",
                remedy=f"install it: apt-get install {PROGRAM}",
            )
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        storage = folder / "storage"
        self.repositories = storage / "docker" / "registry" / "v2" / "repositories"
        self._log = folder / "registry.log"
        self._place = Path(tempfile.mkdtemp(prefix="localoci-"))  # a socket's path is short
        self.socket = self._place / "registry"
        self._process: subprocess.Popen[bytes] | None = None
        try:
            config = folder / "config.json"  # JSON is YAML
            self.secret = _secret(config)
            text = json.dumps(_config(storage, self.socket, self.secret), indent=2)
            write_secret(config, text.encode())
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(
                    ["sh", "-c", _WATCH, program, str(config)],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C is for us: answers in work need it still
                )
            self._wait()
        except BaseException:
            self.close()
            raise

    def _wait(self) -> None:
        """Return when it takes connections."""
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
                probe.connect(str(self.socket))
                return
            if self._process is None or self._process.poll() is not None:
                break
            time.sleep(0.01)
        raise Unavailable(
            f"{PROGRAM} does not start: {self._log.read_text(errors='replace')[-500:].strip()}",
            operation="start the registry",
            object=str(self._log.parent),
        )

    def close(self) -> None:
        """End it. Idempotent."""
        process, self._process = self._process, None
        if process is not None:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        shutil.rmtree(self._place, ignore_errors=True)


def _secret(config: Path) -> str:
    """The secret of the last start, or a new one."""
    try:
        secret = json.loads(config.read_bytes())["http"]["secret"]
    except (OSError, ValueError, TypeError, KeyError):
        secret = None
    return secret if isinstance(secret, str) and secret else secrets.token_hex(16)


def _config(storage: Path, place: Path, secret: str) -> dict[str, Any]:
    return {
        "version": "0.1",
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {
            "filesystem": {"rootdirectory": str(storage)},
            "delete": {"enabled": True},
            "redirect": {"disable": True},
            "maintenance": {"uploadpurging": {"enabled": False}},
        },
        "http": {
            "net": "unix",
            "addr": str(place),
            "secret": secret,
            "relativeurls": True,
        },
    }
