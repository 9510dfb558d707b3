"""Runs inside the guest: Python and shell commands that the test sends, one JSON line each."""

from __future__ import annotations

import contextlib
import io
import json
import socket
import subprocess
import sys
import traceback
from typing import Any


def answer(request: dict[str, str], names: dict[str, Any]) -> dict[str, object]:
    if "shell" in request:
        done = subprocess.run(
            ["/bin/sh", "-c", request["shell"]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        return {"code": done.returncode, "out": done.stdout.decode("utf-8", "replace")}
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            exec(request["python"], names)
    except BaseException:  # noqa: BLE001 - the test gets to see it
        return {"code": 1, "out": said.getvalue() + traceback.format_exc()}
    return {"code": 0, "out": said.getvalue()}


def main() -> None:
    names: dict[str, Any] = {}
    address = (sys.argv[1], int(sys.argv[2]))
    with socket.create_connection(address) as sock, sock.makefile("rw") as lines:
        lines.write("ready\n")
        lines.flush()
        for line in lines:
            lines.write(json.dumps(answer(json.loads(line), names)) + "\n")
            lines.flush()


main()
