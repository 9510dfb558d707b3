"""What all commands share: the common options, before or after the verb, and value types."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from bootstream.cli.context import Cli
from bootstream.errors import BootstreamError


def _cli(context: click.Context) -> Cli:
    return context.ensure_object(Cli)


def _set_quiet(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    _cli(context).quiet |= value


def _add_verbose(context: click.Context, _parameter: click.Parameter, value: int) -> None:
    _cli(context).verbose += value


def _set_debug(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    _cli(context).debug |= value


def _set_store(context: click.Context, _parameter: click.Parameter, value: str | None) -> None:
    if value is not None:
        _cli(context).store = value


def _common_options() -> list[click.Option]:
    kwargs: dict[str, Any] = {"expose_value": False}
    return [
        click.Option(
            ["-q", "--quiet"],
            is_flag=True,
            is_eager=True,
            callback=_set_quiet,
            help="No progress, no warnings.",
            **kwargs,
        ),
        click.Option(
            ["-v", "--verbose"],
            count=True,
            is_eager=True,
            callback=_add_verbose,
            help="Log what is done; twice for more.",
            **kwargs,
        ),
        click.Option(
            ["--debug"],
            is_flag=True,
            is_eager=True,
            callback=_set_debug,
            help="Show tracebacks of errors.",
            **kwargs,
        ),
        click.Option(
            ["--store"],
            metavar="STORE",
            callback=_set_store,
            help="The store: a folder, or oci://NAMESPACE@BUCKET/PREFIX, s3://, gs://, az://.",
            **kwargs,
        ),
    ]


class CommonOptions(click.Command):
    """A command that also takes the common options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.extend(_common_options())


class Command(CommonOptions):
    """A verb: the common options, not repeated in its help, and the log set up first."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for parameter in self.params[-4:]:
            if isinstance(parameter, click.Option):
                parameter.hidden = True

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb."""
        from bootstream.cli.logs import configure_logging  # noqa: PLC0415 - not for --help

        configure_logging(_cli(ctx))
        return super().invoke(ctx)


def verb(name: str, examples: str) -> Callable[[Callable[..., Any]], click.Command]:
    """Return a decorator that makes a function a verb whose help ends with worked examples."""
    lines = "\n".join(f"  {line.strip()}" for line in examples.strip().splitlines())
    return click.command(name, cls=Command, epilog=f"\b\nExamples:\n{lines}")


class Size(click.ParamType[int]):
    """Bytes: ``4096``, ``64k``, ``1.5G``; powers of 1024."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse, or fail as a usage error."""
        from bootstream.config import parse_size  # noqa: PLC0415 - not for --help

        if isinstance(value, int):
            return value
        try:
            return parse_size(value)
        except BootstreamError as error:
            self.fail(f"{error.message}: {error.remedy}", param, ctx)


class Age(click.ParamType[float]):
    """Seconds: ``90``, ``10m``, ``24h``, ``7d``."""

    name = "age"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Parse, or fail as a usage error."""
        from bootstream.config import parse_duration  # noqa: PLC0415 - not for --help

        if isinstance(value, float):
            return value
        try:
            return parse_duration(value)
        except BootstreamError as error:
            self.fail(f"{error.message}: {error.remedy}", param, ctx)


class Reference(click.ParamType[str]):
    """A build as people name it: ``NAME``, ``NAME:TAG`` or a build id."""

    name = "ref"

    def shell_complete(
        self,
        ctx: click.Context,
        param: click.Parameter,  # noqa: ARG002 - as click has it
        incomplete: str,
    ) -> list[Any]:
        """Offer the templates and tags of the store; trouble offers nothing."""
        from click.shell_completion import CompletionItem  # noqa: PLC0415 - only for completion

        root = ctx.find_root()
        cli = root.obj if isinstance(root.obj, Cli) else Cli()
        try:
            names = [name for name in _names(cli) if name.startswith(incomplete)]
        except (BootstreamError, OSError):
            return []
        return [CompletionItem(name) for name in names]


def _names(cli: Cli) -> list[str]:
    names = []
    for template in cli.catalogue.templates():
        tags = sorted(cli.catalogue.tags(template))
        names.append(template)
        names.extend(f"{template}:{tag}" for tag in tags)
    return names


SIZE = Size()
AGE = Age()
REF = Reference()

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
