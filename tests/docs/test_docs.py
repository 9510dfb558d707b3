"""The documents are true: links lead somewhere, and the commands they show work as shown."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bootstream.testing.cli import CommandLine
from bootstream.testing.images import LayerBuilder, write_layout

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("bench/*.md")])
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")


def blocks(document: str, language: str) -> list[str]:
    """The code blocks of one language, in order."""
    text = (ROOT / document).read_text("utf-8")
    return [body for kind, body in _BLOCK.findall(text) if kind == language]


def commands(document: str) -> list[str]:
    """The lines of plain blocks that call ``bootstream``, without their comments."""
    lines = [line for block in blocks(document, "") for line in block.splitlines()]
    return [line.split("  #")[0].strip() for line in lines if line.startswith("bootstream ")]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    """Every relative link is a file or folder of this project."""
    for target in _LINK.findall(document.read_text("utf-8")):
        if "://" not in target:
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


@pytest.fixture
def cli(tmp_path: Path) -> CommandLine:
    """A folder with an image layout called ``debian``, as after the tour's ``skopeo copy``."""
    layer = LayerBuilder()
    layer.file("etc/os-release", b'NAME="Debian GNU/Linux"\n')
    write_layout(tmp_path / "debian", [layer], tag="12")
    return CommandLine(tmp_path)


@pytest.fixture
def environment(cli: CommandLine) -> dict[str, str]:
    """The invocation's environment, with ``bootstream`` on the path."""
    scripts = str(Path(sys.executable).parent)
    return {**cli.variables, "PATH": f"{scripts}{os.pathsep}{cli.variables['PATH']}"}


@pytest.fixture
def servers() -> Iterator[list[subprocess.Popen[bytes]]]:
    """What a test left running in the background, which is ended here."""
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)


def test_tour_of_the_readme(
    cli: CommandLine, environment: dict[str, str], servers: list[subprocess.Popen[bytes]]
) -> None:
    """Each ``bootstream`` line of the tour, in order, and ``nbdinfo`` on what it serves."""
    socket = str(cli.folder / "debian.sock")
    tour = [line.replace("/tmp/debian.sock", socket) for line in commands("README.md")]
    assert len(tour) >= 4
    for line in tour:
        if line.endswith("&"):
            process = subprocess.Popen(
                shlex.split(line.removesuffix("&")),
                cwd=cli.folder,
                env=environment,
                stdout=subprocess.PIPE,
            )
            servers.append(process)
            assert process.stdout is not None
            assert process.stdout.readline(), line
        else:
            run(line, cli.folder, environment)
    assert servers, "the tour serves something"
    run(f"nbdinfo 'nbd+unix:///?socket={socket}'", cli.folder, environment)


def test_commands_of_operations(cli: CommandLine, environment: dict[str, str]) -> None:
    """What the operator's page shows in blocks works as it stands."""
    cli.ok("build", f"oci:{cli.folder / 'debian'}:12", "-t", "debian")
    shown = commands("docs/operations.md")
    assert shown
    for line in shown:
        run(line, cli.folder, environment)


def test_commands_of_registries(cli: CommandLine, environment: dict[str, str]) -> None:
    """The registries' page, with a folder; ``demo --oci`` has a test of its own (tests/e2e)."""
    registry = {"LOCAL_ARTIFACTS_REGISTRY_BASE_PATH": str(cli.folder / "registry")}
    shown = commands("docs/registries.md")
    assert "bootstream demo --oci" in shown
    for line in shown:
        if not line.startswith("bootstream demo"):
            run(line, cli.folder, environment | registry)
    assert (cli.folder / "pulled" / "index.json").exists()


def test_library_example_of_the_readme(cli: CommandLine, environment: dict[str, str]) -> None:
    """The Python block runs; only its folders are others."""
    (example,) = blocks("README.md", "python")
    for folder in ("/srv/templates", "/var/tmp/bootstream", "/var/cache/bootstream/blobs"):
        assert folder in example
        example = example.replace(folder, f"{cli.folder}{folder}")
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", example],
        cwd=cli.folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=25,
    )
    assert result.returncode == 0, result.stderr
    assert re.match(r"[0-9a-f-]{36} \d+\n", result.stdout)


def run(line: str, folder: Path, environment: dict[str, str]) -> None:
    """Run one line as a shell would, without one."""
    result = subprocess.run(
        shlex.split(line),
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=25,
    )
    assert result.returncode == 0, f"{line}: {result.stdout}{result.stderr}"
