"""``report``: a page of what a boot read, where it came from, and what it waited for."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bootstream.cli.base import verb
from bootstream.cli.context import Cli, pass_cli
from bootstream.cli.errors import from_os_error
from bootstream.cli.output import human_size, printable
from bootstream.errors import Corrupt, InvalidInput, NotFound

if TYPE_CHECKING:
    from bootstream.cli.reportpage import Boot

_MOST_BYTES = 256 << 20
# Imports of the layers below are inside: --help needs none of them.


@verb(
    "report",
    """
    bootstream report boot.json -o boot.html
    bootstream report cold.json warm.json -o compared.html
    bootstream report /run/debian.sock -o now.html
    """,
)
@click.argument(
    "sources", metavar="STATS...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the page to FILE; replaces it.",
)
@click.option("--artifact", help="Which artifact; the one that most was read of, if left out.")
@pass_cli
def report(cli: Cli, sources: tuple[Path, ...], output: Path, artifact: str | None) -> None:
    """Make a page of what a boot read and waited for.

    STATS is a file that 'serve --stats' wrote, or the socket of a server that runs. Of two,
    or a few, a comparison is made, side by side on the same scales. The page is one HTML
    file that needs nothing else.
    """
    from bootstream.cli.localfile import appearing  # noqa: PLC0415 - see above
    from bootstream.cli.reportpage import page  # noqa: PLC0415

    if len(sources) > 4:
        raise InvalidInput("four are the most that are legible", operation="report")
    boots = [_boot(source, _load(cli, source), artifact) for source in sources]
    with appearing(output, operation="write report to", replace=True) as target:
        target.write_text(page(boots), "utf-8")
    cli.tell(f"{output}: {human_size(output.stat().st_size)}")


def _load(cli: Cli, path: Path) -> Any:
    try:
        if stat.S_ISSOCK(path.stat().st_mode):
            from bootstream.templates.commit_control import SUFFIX, ask  # noqa: PLC0415 - see above

            beside = path.with_name(path.name + SUFFIX)
            with cli.job() as progress:
                return ask(beside if beside.exists() else path, {"op": "stats"}, progress)
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise from_os_error(error, operation="read statistics", object=str(path)) from error
    try:
        if len(data) > _MOST_BYTES:
            raise _corrupt(path)
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _corrupt(path) from error


def _corrupt(path: Path) -> Corrupt:
    return Corrupt(
        "these are no statistics",
        operation="read statistics",
        object=str(path),
        remedy="name a file that 'bootstream serve --stats' wrote",
    )


def _boot(path: Path, document: Any, artifact: str | None) -> Boot:
    """Return the device of a document that is to be shown."""
    from bootstream.cli.bases import FORMAT, VERSION  # noqa: PLC0415 - see above

    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise _corrupt(path)
    version = document.get("version")
    if type(version) is not int or not isinstance(document.get("devices"), list):
        raise _corrupt(path)
    if version > VERSION:
        raise InvalidInput(
            f"it has version {version}, which is newer than this program",
            operation="read statistics",
            object=str(path),
            remedy="upgrade bootstream",
        )
    boots = [_device(path, document, device) for device in document["devices"]]
    wanted = [boot for boot in boots if artifact in (None, boot.artifact)]
    if not wanted:
        there = ", ".join(sorted({boot.artifact for boot in boots})) or "none"
        raise NotFound(
            "the server had no such artifact" if boots else "the server had no exports",
            operation="report",
            object=artifact or str(path),
            remedy=f"there are: {there}",
        )
    return max(wanted, key=lambda boot: boot.stats.counters["touched_bytes"])


def _device(path: Path, document: dict[str, Any], device: Any) -> Boot:
    from bootstream.block.stats import DeviceStats  # noqa: PLC0415 - see above
    from bootstream.cli.reportpage import Boot  # noqa: PLC0415

    stats = DeviceStats.from_json(device, name=str(path))
    try:
        trace = device["trace"]
        said = str(trace["state"])
        if trace["chunks"]:
            said += f": {int(trace['chunks'])} chunks of {int(trace['boots'])} boots"
        texts = [str(device[key]) for key in ("template_id", "build_id", "artifact")]
    except (KeyError, TypeError, ValueError) as error:
        raise _corrupt(path) from error
    template, build, artifact = map(printable, texts)
    when = printable(str(document.get("when", "-")))
    return Boot(printable(path.name), template, build, artifact, when, printable(said), stats)
