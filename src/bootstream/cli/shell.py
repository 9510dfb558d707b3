"""``completion`` and ``version``."""

from __future__ import annotations

import platform

import click

import bootstream
from bootstream.cli.base import json_option, verb
from bootstream.cli.output import emit_json


@verb(
    "completion",
    """
    source <(bootstream completion bash)
    bootstream completion fish > ~/.config/fish/completions/bootstream.fish
    """,
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the shell's completion script.

    It completes verbs, options, and the names of templates in the store.
    """
    from click.shell_completion import get_completion_class  # noqa: PLC0415 - only used here

    from bootstream.cli.app import root  # noqa: PLC0415 - app imports this module by name

    kind = get_completion_class(shell)
    assert kind is not None  # the choice above allows no other
    click.echo(kind(root, {}, "bootstream", "_BOOTSTREAM_COMPLETE").source())


@verb("version", "bootstream version --json")
@json_option
def version(as_json: bool) -> None:
    """Print the version.

    With --json also the Python that runs it and the machine.
    """
    if not as_json:
        click.echo(f"bootstream {bootstream.__version__}")
        return
    emit_json(
        {
            "version": bootstream.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
        }
    )
