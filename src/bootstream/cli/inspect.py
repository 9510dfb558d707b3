"""``inspect``: how an artifact is made up, as a table, a map, or a picture."""

from __future__ import annotations

import os
import shutil
import sys
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_lowercase, ascii_uppercase
from typing import TYPE_CHECKING

import click

from bootstream.chunks.fragmentation import measure
from bootstream.chunks.reader import load_index
from bootstream.chunks.report import Part, summarise
from bootstream.cli import picture
from bootstream.cli.base import REF, json_option, verb
from bootstream.cli.context import Cli, pass_cli
from bootstream.cli.localfile import appearing
from bootstream.cli.output import emit_json, human_size, percent, table
from bootstream.errors import InvalidInput
from bootstream.templates.build import ROOTFS

if TYPE_CHECKING:
    from bootstream.chunks.index import Index
    from bootstream.templates.manifest import Artifact

_DRAWINGS: dict[str, Callable[[picture.Picture], str]] = {
    ".svg": picture.svg,
    ".html": picture.html,
    ".htm": picture.html,
}
_PICTURE_ROWS = 96
_MAP_ROWS, _MAP_COLUMNS, _NARROW = 12, 64, 48
_PIPE_COLUMNS = _MAP_COLUMNS + 8
_SYMBOLS = ".#" + ascii_lowercase + ascii_uppercase
_COLOURS = ("yellow", "green", "magenta", "red", "cyan", "bright_green", "bright_red", "white")
_MOST_PARTS = len(_SYMBOLS)


@verb(
    "inspect",
    """
    bootstream inspect debian
    bootstream inspect debian:12 --picture map.html
    """,
)
@click.argument("ref", type=REF)
@click.option("--artifact", default=ROOTFS, show_default=True, help="Which artifact of the build.")
@click.option(
    "--picture",
    "drawing",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Draw the map into FILE, .svg or .html; an existing one is replaced.",
)
@json_option
@pass_cli
def inspect(cli: Cli, ref: str, artifact: str, drawing: Path | None, as_json: bool) -> None:
    """Show chunks, ratio, and where bytes live.

    Every chunk of an artifact is zero, in this build's own pack, or in the pack of an
    ancestor. Prints each part's size, how many chunks of it are distinct, what is stored
    for it, and a map of the image. Fragmentation is how many requests a cold read in order
    takes, as a multiple of the fewest that could be; 'compact' lowers it.
    """
    if drawing is not None and drawing.suffix.lower() not in _DRAWINGS:
        raise InvalidInput(
            f"pictures are .svg or .html, not {drawing.suffix or 'without a suffix'}",
            operation="draw",
            object=str(drawing),
            remedy="name a file that ends in .svg or .html",
        )
    manifest = cli.catalogue.resolve(ref)
    entry = manifest.artifact(artifact)
    index = load_index(
        cli.storage,
        manifest.build_id,
        artifact,
        sha256=entry.index_sha256,
        size=entry.index_size,
    )
    parts = summarise(index, manifest.build_id)
    layout = _Layout.of(index, manifest.build_id, parts)
    if drawing is not None:
        drawn = _picture(f"{ref} {artifact}", manifest.build_id, entry, index, layout)
        with appearing(drawing, operation="draw", replace=True) as target:
            target.write_text(_DRAWINGS[drawing.suffix.lower()](drawn), "utf-8")
        cli.tell(f"{drawing}: {human_size(drawing.stat().st_size)}")
    if as_json:
        emit_json(
            {
                "build_id": manifest.build_id,
                "artifact": artifact,
                "form": entry.form,
                "size": index.size,
                "chunk_size": index.chunk_size,
                "chunks": index.chunk_count,
                "index_size": entry.index_size,
                "fragmentation": _fragmentation_to_json(index),
                "parts": [_part_to_json(part) for part in parts],
            }
        )
        return
    _print_facts(manifest.build_id, artifact, entry, index)
    _print_parts(layout.parts, index.size)
    _print_map(index, layout)


def _fragmentation_to_json(index: Index) -> dict[str, object] | None:
    if index.raw:
        return None
    found = measure(index)
    return {
        "figure": round(found.figure, 3),
        "requests": found.requests,
        "ideal": found.ideal,
    }


def _part_to_json(part: Part) -> dict[str, object]:
    return {
        "kind": part.kind,
        "build_id": part.build_id,
        "chunks": part.chunks,
        "distinct": part.distinct,
        "size": part.size,
        "stored_size": part.stored_size,
    }


@dataclass(frozen=True, slots=True)
class _Layout:
    """The parts that are told apart, and the number of one for every chunk.

    A history may be longer than there are symbols: the builds that least is read from
    are one part together, the last.
    """

    parts: Sequence[Part]
    cells: bytes

    @classmethod
    def of(cls, index: Index, build_id: str, parts: Sequence[Part]) -> _Layout:
        ancestors = [part for part in parts if part.kind == "ancestor"]
        shown = parts
        if len(parts) > _MOST_PARTS:
            room = _MOST_PARTS - (len(parts) - len(ancestors)) - 1
            largest = sorted(ancestors, key=lambda part: part.size, reverse=True)[:room]
            rest = [part for part in ancestors if part not in largest]
            shown = [part for part in parts if part not in rest]
            shown.append(_sum(rest))
        number_of = {_key(part): number for number, part in enumerate(shown)}
        last = len(shown) - 1
        packs = [
            number_of.get("own" if pack.build_id == build_id else pack.build_id, last)
            for pack in index.packs
        ]
        return cls(shown, _translate(index.kinds(), [number_of.get("zero", 0), *packs]))


def _key(part: Part) -> str:
    return part.build_id if part.kind == "ancestor" and part.build_id else part.kind


def _sum(parts: Sequence[Part]) -> Part:
    return Part(
        kind="ancestor",
        build_id=None,
        chunks=sum(part.chunks for part in parts),
        distinct=sum(part.distinct for part in parts),
        size=sum(part.size for part in parts),
        stored_size=sum(part.stored_size for part in parts),
    )


def _translate(kinds: bytes | array[int], numbers: Sequence[int]) -> bytes:
    """Turn the index's kinds, zero or one more than a pack's number, into numbers of parts."""
    if len(numbers) <= 256 and isinstance(kinds, bytes):
        return kinds.translate(bytes(numbers).ljust(256, b"\0"))
    return bytes(map(numbers.__getitem__, kinds))


def _print_facts(build_id: str, artifact: str, entry: Artifact, index: Index) -> None:
    facts = [
        ("build", build_id),
        ("artifact", f"{artifact}, {entry.form}"),
        ("size", f"{human_size(index.size)}, {index.chunk_count} chunks"),
        ("chunk size", human_size(index.chunk_size)),
        ("index", human_size(entry.index_size)),
    ]
    if not index.raw:
        found = measure(index)
        facts.append(
            (
                "fragmentation",
                f"{found.figure:.2f}, {found.requests} requests read it in order, "
                f"{found.ideal} would do",
            )
        )
    for name, value in facts:
        click.echo(f"{name + ':':<15}{value}")
    click.echo()


def _print_parts(parts: Sequence[Part], size: int) -> None:
    rows = [
        (
            _SYMBOLS[number],
            _label(part),
            str(part.chunks),
            str(part.distinct) if part.kind != "zero" else "-",
            human_size(part.size),
            percent(part.size, size),
            human_size(part.stored_size) if part.kind != "zero" else "-",
            percent(part.stored_size, part.size) if part.kind != "zero" else "-",
        )
        for number, part in enumerate(parts)
    ]
    table(
        ("", "WHERE", "CHUNKS>", "DISTINCT>", "SIZE>", "OF ALL>", "STORED>", "OF SIZE>"),
        rows,
    )
    data = [part for part in parts if part.kind != "zero"]
    chunks, distinct = sum(p.chunks for p in data), sum(p.distinct for p in data)
    stored = sum(part.stored_size for part in data)
    click.echo()
    click.echo(
        f"{human_size(stored)} stored hold {human_size(sum(p.size for p in data))} of data "
        f"in {chunks} chunks, {chunks - distinct} of them repeated"
    )


def _label(part: Part) -> str:
    if part.kind == "zero":
        return "zeros, not stored"
    if part.kind == "own":
        return "this build"
    return f"build {part.build_id}" if part.build_id else "builds before these"


def _print_map(index: Index, layout: _Layout) -> None:
    """Draw with plain characters; a narrow terminal gets none, a pipe always the same."""
    terminal = sys.stdout.isatty()
    columns = shutil.get_terminal_size().columns if terminal else _PIPE_COLUMNS
    if not layout.cells or columns < _NARROW:
        return
    wide = min(columns - 10, 2 * _MAP_COLUMNS) if terminal else _MAP_COLUMNS
    cells, step = picture.shrink(layout.cells, wide * _MAP_ROWS)
    cell = human_size(step * index.chunk_size)
    click.echo(f"\none character is {cell}, by what most of it is:\n")
    coloured = terminal and not os.environ.get("NO_COLOR")
    for start in range(0, len(cells), wide):
        line = "".join(
            _drawn(number, length, coloured=coloured)
            for _, length, number in picture.runs(cells[start : start + wide])
        )
        click.echo(f"{human_size(start * step * index.chunk_size):>9} {line}")


def _drawn(number: int, length: int, *, coloured: bool) -> str:
    text = _SYMBOLS[number] * length
    if not coloured or number == 0:
        return text
    colour = "blue" if number == 1 else _COLOURS[(number - 2) % len(_COLOURS)]
    return click.style(text, fg=colour)


def _picture(
    title: str, build_id: str, entry: Artifact, index: Index, layout: _Layout
) -> picture.Picture:
    cells, step = picture.shrink(layout.cells, picture.COLUMNS * _PICTURE_ROWS)
    ancestors = 0
    drawn = []
    for part in layout.parts:
        if part.kind == "ancestor":
            colour = picture.ancestor_colour(ancestors)
            ancestors += 1
        else:
            colour = picture.ZERO_COLOUR if part.kind == "zero" else picture.OWN_COLOUR
        drawn.append(picture.Part(_label(part), colour, part.size, part.stored_size, part.chunks))
    facts = [
        f"build {build_id}",
        human_size(index.size),
        f"{index.chunk_count} chunks of {human_size(index.chunk_size)}",
        f"{human_size(entry.stored_size)} of its own",
    ]
    return picture.Picture(title, facts, drawn, cells, step * index.chunk_size, index.size)
