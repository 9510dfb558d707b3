"""The log of one build: lines of JSON in a file that only grows.

A line has ``time``, ``type`` and what belongs to the type: ``log`` a ``message``; ``phase``
``name``, ``total``, ``unit``; ``progress`` ``name`` and ``done``; ``done`` a ``name``; ``attempt``
a ``number``; ``end`` a ``state``. The position of a line's end in the file is its id, so a reader
that comes back goes on where it was, without anything being kept about it.
"""

from __future__ import annotations

import json
import os
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from bootstream import errors
from bootstream.errors import BootstreamError, InvalidInput
from bootstream.services.files import state_error

_EVERY_SECONDS = 0.5
_MOST_MESSAGE = 4000
MOST_LINE = 16 << 10
PIECE = 256 << 10
_TAIL = 64 << 10


class Line(NamedTuple):
    """One line: the position after it, and its bytes without the line break."""

    end: int
    data: bytes


class Journal:
    """Writes a log; also the progress that a build reports to. Thread safe.

    Args:
        path: of the log; a line that a crash cut off is removed.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._amounts: dict[str, int] = {}
        self._said: dict[str, float] = {}
        try:
            self._file = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            size = os.fstat(self._file).st_size
            start = max(0, size - MOST_LINE)
            tail = os.pread(self._file, MOST_LINE, start)
            self._end = start + tail.rfind(b"\n") + 1 if b"\n" in tail else 0
            os.ftruncate(self._file, self._end)
        except OSError as error:
            raise state_error(error, path) from error

    def write(self, kind: str, **fields: Any) -> None:
        """Add a line. A full disk loses lines of the log, and nothing else."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        data = json.dumps({"time": now, "type": kind, **fields}, separators=(",", ":"))
        with self._lock:
            try:
                written = os.pwrite(self._file, data.encode() + b"\n", self._end)
            except OSError:
                return
            if written == len(data) + 1:
                self._end += written

    def phase(self, name: str, total: int | None = None, unit: str = "B") -> None:
        """Note the phase."""
        with self._lock:
            self._amounts.setdefault(name, 0)
        self.write("phase", name=name, total=total, unit=unit)

    def advance(self, name: str, amount: int) -> None:
        """Note the progress, twice a second at most."""
        now = time.monotonic()
        with self._lock:
            done = self._amounts[name] = self._amounts.get(name, 0) + amount
            if now - self._said.get(name, 0.0) < _EVERY_SECONDS:
                return
            self._said[name] = now
        self.write("progress", name=name, done=done)

    def done(self, name: str) -> None:
        """Note the phase's end."""
        with self._lock:
            done = self._amounts.get(name, 0)
        self.write("done", name=name, done=done)

    def log(self, message: str) -> None:
        """Note what a person may want to read."""
        self.write("log", message=message[:_MOST_MESSAGE])

    def close(self) -> None:
        """Make it durable."""
        with suppress(OSError):
            os.fsync(self._file)
        os.close(self._file)


def read_lines(path: Path, position: int, *, piece: int = PIECE) -> list[Line]:
    """Return whole lines from ``position`` on, some 256 KiB of them at most.

    Raises:
        InvalidInput: no line begins at ``position``.
        BootstreamError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            if position:
                beyond = position > os.fstat(file.fileno()).st_size
                file.seek(0 if beyond else position - 1)
                if beyond or file.read(1) != b"\n":
                    raise InvalidInput(
                        "no line of the log begins there",
                        operation="read log",
                        object=str(position),
                        remedy="give the id of the last event that came",
                    )
            data = file.read(piece)
    except FileNotFoundError:
        if position:
            raise InvalidInput("the log is shorter", operation="read log") from None
        return []
    except OSError as error:
        raise state_error(error, path) from error
    lines = []
    end = position
    for line in data.split(b"\n")[:-1]:
        end += len(line) + 1
        lines.append(Line(end, line))
    return lines


def tail_lines(path: Path, size: int) -> list[Line]:
    """Return the last whole lines of a file of so many bytes, 64 KiB of them at most."""
    start = max(0, size - _TAIL)
    try:
        with path.open("rb") as file:
            file.seek(start)
            data = file.read(size - start)
    except OSError as error:
        raise state_error(error, path) from error
    lines = data.split(b"\n")[:-1]
    return [Line(-1, line) for line in lines[1 if start else 0 :]]


def kind_of(error: BootstreamError) -> str:
    """Return the name of the error's class in the package's tree."""
    return next(c.__name__ for c in type(error).__mro__ if c.__module__ == errors.__name__)


def describe_error(error: BootstreamError) -> dict[str, Any]:
    """Return an error as documents have it."""
    fields = {
        "kind": next(
            c.__name__ for c in type(error).__mro__ if c.__module__ == "bootstream.errors"
        ),
        "message": error.message,
        "operation": error.operation,
        "object": error.object,
        "remedy": error.remedy,
    }
    return {key: value for key, value in fields.items() if value is not None}
