"""A ``systemctl`` of a few lines, for namespaces without systemd: it starts what units say.

``systemctl.py FOLDER VERB [OPTIONS] [UNIT]``; process ids and enabled units are kept in FOLDER.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

UNITS = Path("/etc/systemd/system")


def start(folder: Path, unit: str) -> int:
    """Start a unit's program with its variables; 1 if there is none."""
    path = UNITS / unit
    if not path.exists():
        return 1
    settings = [line.partition("=")[::2] for line in path.read_text().splitlines()]
    variables: dict[str, str] = {}
    for key, value in settings:
        if key == "Environment":
            name, _, text = value.partition("=")
            variables[name] = text
    for key, value in settings:
        if key == "EnvironmentFile":
            for line in shlex.split(Path(value).read_text()):
                name, _, text = line.partition("=")
                variables[name] = text
    command = next(value for key, value in settings if key == "ExecStart")
    with (folder / f"{unit}.log").open("w") as log:
        process = subprocess.Popen(
            command.split(),
            env={"PATH": os.environ["PATH"], **variables},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    (folder / f"{unit}.pid").write_text(str(process.pid))
    return 0


def active(folder: Path, unit: str) -> bool:
    """Whether its process runs."""
    try:
        pid = int((folder / f"{unit}.pid").read_text())
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except (OSError, ValueError):
        return False
    return state != "Z"


def stop(folder: Path, unit: str) -> None:
    """End its process."""
    if active(folder, unit):
        pid = int((folder / f"{unit}.pid").read_text())
        os.kill(pid, signal.SIGTERM)
        while active(folder, unit):
            time.sleep(0.01)
    (folder / f"{unit}.pid").unlink(missing_ok=True)


def main(folder: Path, verb: str, words: list[str]) -> int:
    """Do one verb."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "calls").open("a") as calls:
        calls.write(" ".join([verb, *words]) + "\n")
    units = [word for word in words if word.endswith(".service")]
    for unit in units:
        if verb in ("restart", "start"):
            stop(folder, unit)
            return start(folder, unit)
        if verb in ("stop", "disable"):
            stop(folder, unit)
        elif verb == "is-active":
            return 0 if active(folder, unit) else 3
        elif verb == "status":
            log = folder / f"{unit}.log"
            sys.stdout.write(log.read_text() if log.exists() else "")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:]))
