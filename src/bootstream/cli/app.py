"""The root command. Verbs are modules that are imported when they are used.

The table below is all that ``bootstream --help`` needs, so that help and completion
answer at once; a test compares it with what the verbs say of themselves.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import click

import bootstream
from bootstream.cli import errors
from bootstream.cli.base import CommonOptions
from bootstream.cli.context import Cli


class Verb(NamedTuple):
    """Where a verb lives, and what the overview says of it."""

    section: str
    module: str
    attribute: str
    help: str


VERBS: dict[str, Verb] = {
    "build": Verb("Make", "build", "build", "Build a template from a container image."),
    "import": Verb("Make", "transfer", "import_", "Publish a raw image as a template."),
    "commit": Verb("Make", "commit", "commit_", "Make a build of what was written to an export."),
    "flatten": Verb("Make", "compact", "flatten", "Make a build that reads from no other."),
    "compact": Verb("Make", "compact", "compact", "Store anew what fragments reads."),
    "tag": Verb("Make", "tags", "tag", "Give a build another name."),
    "ls": Verb("Look", "listing", "ls", "List templates and their builds."),
    "show": Verb("Look", "listing", "show", "Show one build."),
    "inspect": Verb("Look", "inspect", "inspect", "Show chunks, ratio, and where bytes live."),
    "files": Verb("Look", "files", "files", "List files inside a template."),
    "cat": Verb("Look", "files", "cat", "Print a file of a template."),
    "cp": Verb("Look", "files", "cp", "Copy a file or folder out of a template."),
    "verify": Verb("Look", "verify", "verify", "Fetch and check everything of a build."),
    "serve": Verb("Use", "serve", "serve", "Serve templates as block devices over NBD."),
    "mount": Verb("Use", "mount", "mount", "Mount a template on a folder."),
    "boot": Verb("Use", "boot", "boot", "Boot a template in a virtual machine."),
    "attach": Verb("Use", "attach", "attach", "Attach a template as a block device, /dev/nbdN."),
    "detach": Verb("Use", "attach", "detach", "Detach a block device."),
    "trace": Verb("Use", "trace", "trace", "Show, record and merge what boots touch first."),
    "report": Verb("Look", "report", "report", "Make a page of what a boot read and waited for."),
    "export": Verb("Use", "transfer", "export", "Write an artifact to a raw file."),
    "rm": Verb("Tidy", "tags", "rm", "Remove tags and builds."),
    "prune": Verb("Tidy", "tidy", "prune", "Remove all but some builds of a template."),
    "gc": Verb("Tidy", "tidy", "gc", "Reclaim what nobody reads any more."),
    "du": Verb("Tidy", "tidy", "du", "Show own and shared bytes of builds."),
    "template-manager": Verb(
        "Services", "services", "template_manager", "Run the service that makes templates."
    ),
    "orchestrator": Verb(
        "Services", "services", "orchestrator", "Run the service that serves sandboxes."
    ),
    "token": Verb("Services", "services", "service_token", "Make a token for a client."),
    "image": Verb("Other", "image", "image", "List, push, pull and copy container images."),
    "storage": Verb("Other", "storage", "storage", "List, copy, check and measure the bucket."),
    "doctor": Verb("Other", "doctor", "doctor", "Check what this host needs; say what mends it."),
    "deploy": Verb(
        "Other", "deploy", "deploy", "Install and start the services on the hosts of a fleet."
    ),
    "demo": Verb("Other", "demo", "demo", "Run the main job on a store of its own."),
    "local-oci": Verb(
        "Other", "localoci", "local_oci", "Run a local OCI: storage, registry and sign-in."
    ),
    "completion": Verb("Other", "shell", "completion", "Print the shell's completion script."),
    "version": Verb("Other", "shell", "version", "Print the version."),
}

_EPILOG = """\b
Examples:
  bootstream build oci:debian:12 -t debian
  bootstream serve debian --socket /tmp/debian.sock

\b
The store comes from --store or STORAGE_PROVIDER and its variables, the cache from
BOOTSTREAM_CACHE_DIR. REF is NAME, NAME:TAG or a build id. -q, -v, --debug and
--store may stand before or after the verb.

\b
Exit codes:
"""


class _Root(CommonOptions, click.Group):
    """Finds verbs in the table."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - as click has it
        """Return all verbs, in the table's order."""
        return list(VERBS)

    def get_command(
        self,
        ctx: click.Context,  # noqa: ARG002 - as click has it
        cmd_name: str,
    ) -> click.Command | None:
        """Import the verb's module and return it."""
        verb = VERBS.get(cmd_name)
        if verb is None:
            return None
        module = importlib.import_module(f"bootstream.cli.{verb.module}")
        command: click.Command = getattr(module, verb.attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Remember the verb, for messages."""
        name, command, rest = super().resolve_command(ctx, args)
        ctx.ensure_object(Cli).verb = name
        return name, command, rest

    def format_commands(
        self,
        ctx: click.Context,  # noqa: ARG002 - as click has it
        formatter: click.HelpFormatter,
    ) -> None:
        """Write the overview without importing a verb."""
        for section in dict.fromkeys(verb.section for verb in VERBS.values()):
            rows = [(name, verb.help) for name, verb in VERBS.items() if verb.section == section]
            with formatter.section(section):
                formatter.write_dl(rows, col_max=12)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        """Offer verbs without importing one."""
        from click.shell_completion import CompletionItem  # noqa: PLC0415 - only for completion

        if not incomplete or incomplete[0].isalpha():
            return [
                CompletionItem(name, help=verb.help)
                for name, verb in VERBS.items()
                if name.startswith(incomplete)
            ]
        return super().shell_complete(ctx, incomplete)


def _print_version(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        click.echo(f"bootstream {bootstream.__version__}")
        context.exit()


def _epilog() -> str:
    return _EPILOG + "\n".join(f"  {code:>3}  {what}" for code, what in errors.EXIT_CODES)


@click.group(
    cls=_Root,
    epilog=_epilog(),
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version and exit.",
)
@click.pass_context
def root(context: click.Context) -> None:
    """Build microVM templates from container images, and stream them to hosts."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def run(arguments: Sequence[str]) -> int:
    """Run one command line; return its exit code. Never raises."""
    cli = Cli()
    try:
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # as ``main`` left it
            signal.signal(signal.SIGINT, signal.default_int_handler)
        _complete()
        code = _invoke(list(arguments), cli)
        sys.stdout.flush()
    except BaseException as error:  # noqa: BLE001 - the one place where every error ends
        code = errors.report(error, cli)
        _flush_quietly()
    return code


def _invoke(arguments: list[str], cli: Cli) -> int:
    try:
        with root.make_context("bootstream", arguments, obj=cli) as context:
            try:
                result: Any = root.invoke(context)
            finally:
                cli.tell_metrics()
    except click.exceptions.Exit as done:
        return done.exit_code
    return result if isinstance(result, int) else 0


def _complete() -> None:
    """Answer the shell's completion and exit, if that is what was asked."""
    instruction = os.environ.get("_BOOTSTREAM_COMPLETE")
    if not instruction:
        return
    from click.shell_completion import shell_complete  # noqa: PLC0415 - only for completion

    shell_complete(root, {}, "bootstream", "_BOOTSTREAM_COMPLETE", instruction)
    raise SystemExit(0)


def _flush_quietly() -> None:
    """Let the interpreter's own flush at exit find nothing to complain about."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
