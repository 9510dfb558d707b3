"""schemathesis, a program of its own, against a service that runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from bootstream.testing.services import ServiceProcess


def fuzz(service: ServiceProcess, folder: Path, *, seconds: int) -> None:
    """Run schemathesis, a program of its own, for so long."""
    program = Path(sys.executable).with_name("schemathesis")
    checks = (
        "not_a_server_error,status_code_conformance,content_type_conformance,"
        "response_schema_conformance,unsupported_method"
    )
    result = subprocess.run(
        [
            str(program),
            "run",
            f"{service.url}/openapi.json",
            *("--checks", checks),
            *("--max-examples", "40"),
            *("--seed", "1"),
            *("--phases", "examples,coverage,fuzzing"),
            *("--generation-database", "none"),
            *("--suppress-health-check", "all"),
            *("--max-time", str(seconds)),
            *("--exclude-path", "/v1/host/drain"),  # after it, readiness is 503 and is right
            "--no-color",
        ],
        cwd=folder,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=80,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
