"""docs/local-oci.md is true: its commands work as shown, its tables are whole."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

from bootstream.localoci.faults import EFFECTS, Rule
from bootstream.localoci.policies import PolicyFile
from bootstream.testing.localoci import LocalOciServer

PAGE = (Path(__file__).parents[2] / "docs" / "local-oci.md").read_text("utf-8")
BIN = Path(sys.executable).parent


def blocks(language: str) -> list[str]:
    """The code blocks of one language, in order."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return [body for kind, body in found if kind == language]


def rows(after: str) -> list[list[str]]:
    """The cells of the first table after a text."""
    table = PAGE.partition(after)[2].partition("\n|")[2].partition("\n\n")[0]
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]
    ]


def test_commands(tmp_path: Path) -> None:
    """The first block, and the fault that is added with curl."""
    use, fault = blocks("")
    lines = [line.split("  #")[0].strip() for line in use.splitlines()]
    assert lines[0].startswith("bootstream local-oci ")
    with LocalOciServer(tmp_path) as server:
        paths = [str(BIN), str(BIN.parent / "tools" / "bin"), os.environ["PATH"]]
        script = "\n".join(line.replace("~/oci.env", f"{tmp_path}/oci.env") for line in lines[1:])
        result = subprocess.run(
            ["sh", "-eux", "-c", script],
            env={"PATH": os.pathsep.join(paths), "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
            timeout=25,
        )
        assert result.returncode == 0, result.stderr
        (document,) = re.findall(r"-d '(.*)'", fault)
        server.faults.add(**json.loads(document))


def test_variables(tmp_path: Path) -> None:
    """Every variable of the shell file is in the table, and no other."""
    with LocalOciServer(tmp_path, workload=True) as server:
        written = set(server.variables)
    named = {name for row in rows("It has:") for name in re.findall(r"`([A-Z_*]+)`", row[0])}
    assert len(named) > 12
    for name in written:
        assert any(fnmatch.fnmatchcase(name, pattern) for pattern in named), name
    for pattern in named:
        assert fnmatch.filter(written, pattern), pattern


def test_effects() -> None:
    """Every effect is in the table, with fields that a rule has."""
    table = rows("Listed rules have")
    effects = {name for row in table for name in re.findall(r"`(\w+)`", row[0])}
    assert effects == EFFECTS
    known = {field.name for field in fields(Rule)}
    assert {name for row in table for name in re.findall(r"`(\w+)`", row[1])} <= known
    section = PAGE.partition("### Faults")[2].partition("## Python")[0]
    assert {name for name in known if f"`{name}`" not in section} == set()


def test_policies(tmp_path: Path) -> None:
    """The example is one that is understood."""
    (example,) = blocks("json")
    policies = PolicyFile(tmp_path)
    policies.replace(json.loads(example))
    assert policies.document is not None
