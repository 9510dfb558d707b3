"""``trace``: what boots touch first, shown, recorded, merged, made of file lists, removed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bootstream.cli.base import AGE, REF, CommonOptions, json_option, verb
from bootstream.cli.context import Cli, pass_cli
from bootstream.cli.errors import from_os_error
from bootstream.cli.output import emit_json, human_size, percent, printable, table
from bootstream.errors import InvalidInput, NotFound

if TYPE_CHECKING:
    from bootstream.block.trace import Trace
    from bootstream.chunks.index import Index
    from bootstream.templates.manifest import Manifest

_MOST_PATHS = 16 << 20
_ROOTFS = "rootfs.ext4"
# Imports of the layers below are inside: --help needs none of them.

_EPILOG = """\b
Examples:
  bootstream trace show debian
  bootstream trace record debian --seconds 30s -- ./boot.sh {uri}
  bootstream trace warm debian /usr/bin/python3 /usr/lib/python3
"""

artifact_option = click.option(
    "--artifact", default=_ROOTFS, show_default=True, help="Which artifact of the build."
)
output_option = click.option(
    "--output",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the trace to FILE and store nothing; replaces FILE.",
)


class _Group(CommonOptions, click.Group):
    """The common options are not repeated in its help."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for parameter in self.params[-4:]:
            if isinstance(parameter, click.Option):
                parameter.hidden = True


@click.group("trace", cls=_Group, epilog=_EPILOG, invoke_without_command=True)
@click.pass_context
def trace(context: click.Context) -> None:
    """Show, record and merge what boots touch first.

    A trace is stored beside a build and fetched ahead whenever 'serve' begins. The first
    boot records one by itself.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def _subverb(name: str, examples: str) -> Callable[[Callable[..., Any]], click.Command]:
    """Return a decorator that makes a function a verb of this group."""

    def decorate(function: Callable[..., Any]) -> click.Command:
        command = verb(name, examples)(function)
        trace.add_command(command)
        return command

    return decorate


# -- show ---------------------------------------------------------------------------------------


@_subverb(
    "show",
    """
    bootstream trace show debian
    bootstream trace show debian --raw > boot1.trace
    """,
)
@click.argument("ref", type=REF)
@artifact_option
@click.option("--raw", is_flag=True, help="Print the trace as it is stored.")
@json_option
@pass_cli
def show(cli: Cli, ref: str, artifact: str, raw: bool, as_json: bool) -> None:
    """Show the stored trace of a build.

    How many chunks, how many bytes of the image, and when they were touched.
    """
    from bootstream.templates.traces import load_trace  # noqa: PLC0415 - see above

    manifest = cli.catalogue.resolve(ref)
    found = load_trace(cli.storage, manifest, artifact)
    if found is None:
        raise _no_trace(ref)
    if raw:
        click.echo(found.encode())
        return
    facts = _describe(manifest, artifact, found)
    if as_json:
        emit_json(facts | {"touches": [list(_touch(touch)) for touch in found.touches]})
        return
    size = manifest.artifact(artifact).size
    click.echo(f"build:      {manifest.build_id} {artifact}")
    click.echo(f"boots:      {found.boots}")
    click.echo(
        f"chunks:     {found.chunk_count} of {human_size(found.chunk_size)}, "
        f"{human_size(facts['bytes'])} ({percent(facts['bytes'], size)} of the image), "
        f"in {facts['runs']} runs of neighbours"
    )
    click.echo(f"time:       {found.seconds:.1f} s from the first touch to the last")
    click.echo()
    table(("WITHIN>", "CHUNKS>", "SIZE>", "OF ALL>"), list(_rows(found)))


def _touch(touch: Any) -> tuple[int, int, int]:
    return touch.milliseconds, touch.first, touch.count


def _describe(manifest: Manifest, artifact: str, found: Trace) -> dict[str, Any]:
    chunks = sorted(found.chunks())
    runs = sum(
        1 for before, chunk in zip([-2, *chunks], chunks, strict=False) if chunk != before + 1
    )
    return {
        "build_id": manifest.build_id,
        "artifact": artifact,
        "boots": found.boots,
        "chunk_size": found.chunk_size,
        "chunks": found.chunk_count,
        "bytes": found.chunk_count * found.chunk_size,
        "runs": runs,
        "seconds": found.seconds,
    }


def _rows(found: Trace) -> Iterator[tuple[str, str, str, str]]:
    """Yield how much was touched within a time, doubled from line to line where it is more."""
    limit, before = 125, 0
    while found.touches:
        chunks = sum(touch.count for touch in found.touches if touch.milliseconds <= limit)
        if chunks > before:
            yield (
                f"{limit / 1000:g} s",
                str(chunks),
                human_size(chunks * found.chunk_size),
                percent(chunks, found.chunk_count),
            )
        if found.seconds * 1000 <= limit:
            return
        limit, before = limit * 2, chunks


def _no_trace(ref: str) -> NotFound:
    return NotFound(
        "the build has no trace",
        operation="read trace",
        object=ref,
        remedy=f"boot it once, or record one: bootstream trace record {ref}",
    )


# -- record -------------------------------------------------------------------------------------


@_subverb(
    "record",
    """
    bootstream trace record debian --seconds 20s -- bootstream boot {uri} --cmd true
    bootstream trace record debian --seconds 1m --output boot2.trace
    """,
)
@click.argument("ref", type=REF)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option("--seconds", type=AGE, default=60.0, help="End after this time, e.g. 20s; 60s.")
@artifact_option
@output_option
@pass_cli
def record(
    cli: Cli,
    ref: str,
    command: tuple[str, ...],
    seconds: float,
    artifact: str,
    output: Path | None,
) -> None:
    """Record what a boot touches first, and store it.

    Serves the artifact on a private socket and runs COMMAND, with {uri} in it replaced by the
    export's URI, which NBD_URI has too, until it ends or the time is over; without COMMAND,
    prints the URI and waits for that time, or Ctrl-C. A COMMAND that fails stores nothing.
    """
    from bootstream.cli.tracerecord import recorded  # noqa: PLC0415 - see above
    from bootstream.templates.traces import store_trace  # noqa: PLC0415

    with recorded(cli, ref, artifact, command, seconds) as (base, found):
        if not found.chunk_count:
            raise InvalidInput(
                "nothing was read of it",
                operation="record trace",
                object=ref,
                remedy="read from the URI that is printed, or that COMMAND gets as {uri}",
            )
        if output is not None:
            _write(output, found)
        else:
            store_trace(cli.storage, base.manifest, artifact, found, replace=True)
    _tell(cli, found, output)


def _tell(cli: Cli, found: Trace, output: Path | None) -> None:
    size = human_size(found.chunk_count * found.chunk_size)
    where = "stored" if output is None else f"written to {output}"
    cli.tell(f"{found.chunk_count} chunks, {size}, {where}")


def _write(path: Path, found: Trace) -> None:
    from bootstream.cli.localfile import appearing  # noqa: PLC0415 - see above

    with appearing(path, operation="write trace to", replace=True) as target:
        target.write_bytes(found.encode())


# -- merge --------------------------------------------------------------------------------------


@_subverb(
    "merge",
    """
    bootstream trace merge debian boot1.trace boot2.trace boot3.trace
    bootstream trace merge debian --stored boot4.trace --share 0.3
    """,
)
@click.argument("ref", type=REF)
@click.argument("files", metavar="FILE...", nargs=-1, type=click.Path(path_type=Path))
@click.option("--stored", is_flag=True, help="Merge with the trace that is stored, too.")
@click.option(
    "--share",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.5,
    show_default=True,
    help="Keep what more than this part of all boots touched.",
)
@artifact_option
@output_option
@pass_cli
def merge(
    cli: Cli,
    ref: str,
    files: tuple[Path, ...],
    stored: bool,
    share: float,
    artifact: str,
    output: Path | None,
) -> None:
    """Merge recorded traces into the one that is stored.

    FILEs are of 'trace record --output' and 'trace show --raw'. A chunk stays that more than
    half of the boots touched, in the order of the middle of its moments.
    """
    from bootstream.block import trace as traces  # noqa: PLC0415 - see above
    from bootstream.templates.traces import load_trace  # noqa: PLC0415

    with _leased(cli, ref) as manifest:
        parts = [_read(path) for path in files]
        if stored:
            found = load_trace(cli.storage, manifest, artifact)
            if found is None:
                raise _no_trace(ref)
            parts.append(found)
        _put(cli, manifest, artifact, traces.merge(parts, share=share), output)


def _read(path: Path) -> Trace:
    from bootstream.block.trace import MAX_SIZE, Trace  # noqa: PLC0415 - see above

    try:
        with path.open("rb") as file:
            data = file.read(MAX_SIZE + 1)
    except OSError as error:
        raise from_os_error(error, operation="read trace", object=str(path)) from error
    return Trace.decode(data, name=str(path))


@contextmanager
def _leased(cli: Cli, ref: str) -> Iterator[Manifest]:
    """Yield a build that is not collected meanwhile."""
    from bootstream.templates.leases import Lease  # noqa: PLC0415 - see above

    build_id = cli.catalogue.resolve(ref).build_id
    with Lease(cli.storage, build_id, cli.settings.node_id) as lease:
        yield lease.manifest


def _put(cli: Cli, manifest: Manifest, artifact: str, found: Trace, output: Path | None) -> None:
    from bootstream.templates.traces import check_trace, store_trace  # noqa: PLC0415 - see above

    if output is not None:
        check_trace(found, manifest, artifact)
        _write(output, found)
    else:
        store_trace(cli.storage, manifest, artifact, found, replace=True)
    _tell(cli, found, output)


# -- warm ---------------------------------------------------------------------------------------


@_subverb(
    "warm",
    """
    bootstream trace warm debian /usr/bin/python3 /usr/lib/python3.11
    bootstream trace warm debian --from files.txt --replace
    """,
)
@click.argument("ref", type=REF)
@click.argument("paths", metavar="PATH...", nargs=-1)
@click.option(
    "--from",
    "list_",
    metavar="FILE",
    type=click.Path(path_type=Path, allow_dash=True),
    help="Read further paths from FILE, one a line; - is stdin.",
)
@click.option("--replace", is_flag=True, help="Forget what the stored trace has.")
@click.option("--skip-missing", is_flag=True, help="Warn of paths that are not there, and go on.")
@artifact_option
@output_option
@pass_cli
def warm(
    cli: Cli,
    ref: str,
    paths: tuple[str, ...],
    list_: Path | None,
    replace: bool,
    skip_missing: bool,
    artifact: str,
    output: Path | None,
) -> None:
    """Add files of the image to the trace.

    PATHs are files, or folders with everything below. What is read to find them comes
    first; what the stored trace has, comes before all of it.
    """
    from bootstream.block.trace import extend  # noqa: PLC0415 - see above
    from bootstream.templates.traces import load_trace, trace_of_files  # noqa: PLC0415

    wanted = [os.fsencode(path) for path in paths]
    if list_ is not None:
        wanted += _lines(list_)
    if not wanted:
        raise InvalidInput(
            "no path is named", operation="warm", object=ref, remedy="name files, or a --from FILE"
        )

    def missing(path: bytes) -> None:
        cli.warn(f"{printable(path)} is not in the image")

    with _leased(cli, ref) as manifest, _image(cli, manifest, artifact) as (index, read_at):
        found = trace_of_files(index, read_at, wanted, missing=missing if skip_missing else None)
        stored = None if replace else load_trace(cli.storage, manifest, artifact)
        if stored is not None:
            found = extend(stored, found.chunks())
        _put(cli, manifest, artifact, found, output)


def _lines(path: Path) -> list[bytes]:
    try:
        if str(path) == "-":
            data = sys.stdin.buffer.read(_MOST_PATHS + 1)
        else:
            with path.open("rb") as file:
                data = file.read(_MOST_PATHS + 1)
    except OSError as error:
        raise from_os_error(error, operation="read paths from", object=str(path)) from error
    if len(data) > _MOST_PATHS:
        raise InvalidInput(
            "the list is larger than 16 MiB", operation="read paths from", object=str(path)
        )
    return [line for line in data.split(b"\n") if line]


@contextmanager
def _image(cli: Cli, manifest: Manifest, artifact: str) -> Iterator[tuple[Index, Any]]:
    from bootstream import wiring  # noqa: PLC0415 - see above

    with (
        closing(wiring.open_node_cache(cli.settings)) as cache,
        closing(wiring.open_device(cli.storage, cache, manifest, artifact)) as device,
    ):
        yield device.index, device.read_into


# -- rm -----------------------------------------------------------------------------------------


@_subverb("rm", "bootstream trace rm debian")
@click.argument("ref", type=REF)
@artifact_option
@pass_cli
def rm(cli: Cli, ref: str, artifact: str) -> None:
    """Remove the stored trace of a build.

    The next boot records another one.
    """
    from bootstream.templates.traces import remove_trace  # noqa: PLC0415 - see above

    if not remove_trace(cli.storage, cli.catalogue.resolve(ref), artifact):
        raise _no_trace(ref)
