"""The command line as users meet it: a subprocess with a store and a cache of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

COMMAND = (sys.executable, "-W", "error", "-m", "bootstream")
_KEEP = ("PATH", "HOME", "LANG", "PYTHONPATH", "TMPDIR", "COVERAGE_PROCESS_START")


@dataclass(frozen=True, slots=True)
class Result:
    """How one invocation ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """The document on stdout."""
        return json.loads(self.stdout)


@dataclass(frozen=True, slots=True)
class CommandLine:
    """Runs ``bootstream`` with everything it keeps below ``folder``.

    Args:
        folder: becomes the home of store, cache and socket files.
        environment: further variables.
    """

    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def store(self) -> Path:
        """The folder of the store."""
        return self.folder / "templates"

    @property
    def variables(self) -> dict[str, str]:
        """The whole environment of an invocation; nothing of the caller's settings leaks in."""
        kept = {key: os.environ[key] for key in _KEEP if key in os.environ}
        return {
            **kept,
            "LOCAL_TEMPLATE_STORAGE_BASE_PATH": str(self.store),
            "BOOTSTREAM_CACHE_DIR": str(self.folder / "cache"),
            "BOOTSTREAM_CACHE_SIZE": "1G",
            "NODE_ID": "test-node",
            **self.environment,
        }

    def __call__(self, *arguments: str | Path, stdin: bytes | None = None) -> Result:
        """Run to the end, whatever the exit code."""
        result = subprocess.run(
            [*COMMAND, *map(str, arguments)],
            env=self.variables,
            input=stdin if stdin is not None else b"",
            capture_output=True,
            check=False,
            timeout=28,
        )
        return Result(
            result.returncode,
            result.stdout.decode("utf-8", "surrogateescape"),
            result.stderr.decode("utf-8", "surrogateescape"),
        )

    def ok(self, *arguments: str | Path) -> str:
        """Run, insist on success, and return stdout without its last line break."""
        result = self(*arguments)
        if result.code != 0:
            raise AssertionError(f"bootstream {arguments} ended with {result.code}: {result}")
        return result.stdout.rstrip("\n")

    def json(self, *arguments: str | Path) -> Any:
        """Run with ``--json``, insist on success, and return the document."""
        return json.loads(self.ok(*arguments, "--json"))

    def start(self, *arguments: str | Path, pass_fds: Sequence[int] = ()) -> subprocess.Popen[str]:
        """Start one and return its process, with pipes; the caller ends it."""
        return subprocess.Popen(
            [*COMMAND, *map(str, arguments)],
            env=self.variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=pass_fds,
        )
