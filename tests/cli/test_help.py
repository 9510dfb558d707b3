"""Help: quick, complete, and true."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from bootstream.cli.app import VERBS, root
from bootstream.cli.errors import EXIT_CODES
from bootstream.testing.cli import CommandLine

HEAVY = ("rich", "zstandard", "urllib3", "ssl", "logging", "concurrent.futures", "platformdirs")


def help_of(name: str) -> str:
    with root.make_context("bootstream", [], resilient_parsing=True) as context:
        command = root.get_command(context, name)
        assert command is not None
        with click.Context(command, info_name=name, parent=context) as inner:
            return command.get_help(inner)


def command_of(name: str) -> click.Command:
    with root.make_context("bootstream", [], resilient_parsing=True) as context:
        command = root.get_command(context, name)
    assert command is not None
    return command


def options_of(command: click.Command) -> set[str]:
    """The long options of a verb, or of all verbs of a group."""
    if isinstance(command, click.Group):
        with click.Context(command) as context:
            verbs = [command.get_command(context, name) for name in command.list_commands(context)]
        return set().union(*(options_of(verb) for verb in verbs if verb is not None))
    return {
        option
        for parameter in command.params
        if isinstance(parameter, click.Option) and not parameter.hidden
        for option in parameter.opts
        if option.startswith("--")
    }


def test_overview_imports_nothing_heavy() -> None:
    """``--help`` loads neither libraries for the work nor any layer below the command line."""
    code = (
        "import sys\n"
        "from bootstream.cli.app import run\n"
        "assert run(['--help']) == 0\n"
        "print('LOADED', *sorted(sys.modules))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=20
    )
    loaded = set(result.stdout.partition("LOADED ")[2].split())
    assert "bootstream.cli.app" in loaded
    assert not loaded & set(HEAVY)
    ours = {name.split(".")[1] for name in loaded if name.startswith("bootstream.")}
    assert ours == {"cli", "errors"}


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_teaches(name: str) -> None:
    """A verb's help opens with what the overview says, and ends with worked examples."""
    text = help_of(name)
    assert VERBS[name].help in text
    assert "Examples:" in text
    examples = re.findall(rf"\bbootstream {name}\b", text.partition("Examples:")[2])
    assert examples, "no example shows the verb itself"


@pytest.mark.parametrize("name", VERBS)
def test_every_option_is_described(name: str) -> None:
    """No option without help."""
    for parameter in command_of(name).params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.name}"


@pytest.mark.parametrize("name", VERBS)
def test_help_from_the_shell(name: str, tmp_path: Path) -> None:
    """``bootstream VERB --help`` works and touches neither store nor cache."""
    text = CommandLine(tmp_path).ok(name, "--help")
    assert text.startswith(f"Usage: bootstream {name}")
    assert list(tmp_path.iterdir()) == []


def test_no_arguments_is_the_overview(tmp_path: Path) -> None:
    """``bootstream`` alone helps."""
    assert CommandLine(tmp_path).ok().startswith("Usage: bootstream")


def test_document_names_every_verb_option_and_code() -> None:
    """docs/cli.md stays true: every verb, option and exit code is in it, and no other."""
    document = (Path(__file__).parents[2] / "docs" / "cli.md").read_text("utf-8")
    for name in VERBS:
        section = re.search(rf"^### {name}\n(.*?)(?=^##|\Z)", document, re.S | re.M)
        assert section is not None, f"docs/cli.md has no section on {name}"
        known = options_of(command_of(name))
        said = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", section[1]))
        assert known <= said, f"{name}: not described: {known - said}"
        elsewhere = {"--help", "--version", "--json", "--debug", "--store", "--quiet", "--verbose"}
        assert said - known <= elsewhere, f"{name}: no such option: {said - known}"
    for code, _what in EXIT_CODES:
        assert re.search(rf"^\| {code} \|", document, re.M), f"exit code {code}"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str, tmp_path: Path) -> None:
    """Every shell gets a script."""
    assert "_BOOTSTREAM_COMPLETE" in CommandLine(tmp_path).ok("completion", shell)


def test_completion_offers_verbs(tmp_path: Path) -> None:
    """What bash asks for is answered from the table."""
    variables = {
        "_BOOTSTREAM_COMPLETE": "bash_complete",
        "COMP_WORDS": "bootstream se",
        "COMP_CWORD": "1",
    }
    assert CommandLine(tmp_path, variables).ok() == "plain,serve"


def test_version(tmp_path: Path) -> None:
    """The option and the verb agree."""
    cli = CommandLine(tmp_path)
    assert cli.ok("--version") == cli.ok("version")
    assert cli.json("version")["version"] in cli.ok("version")
