"""The map of an artifact as a picture: where each of its bytes lives.

One square stands for the same number of bytes everywhere, coloured by what most of
it is: zeros, this build's own pack, or the pack of one ancestor. Neighbours of one
colour are one rectangle, so the picture of a large image stays small. It needs no
script, no font and no other file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from bootstream.cli.output import human_size, percent

COLUMNS = 128
_CELL = 7
_LEFT, _TOP, _BAR = 84, 118, 22
_PALETTE = ("#d97706", "#059669", "#7c3aed", "#db2777", "#0891b2", "#65a30d", "#b91c1c", "#4d7c0f")
ZERO_COLOUR, OWN_COLOUR = "#d8dee6", "#2563eb"


@dataclass(frozen=True, slots=True)
class Part:
    """One colour of the picture: bytes of the image, and bytes stored for them."""

    label: str
    colour: str
    size: int
    stored: int
    chunks: int


@dataclass(frozen=True, slots=True)
class Picture:
    """What is drawn. ``cells`` holds the number of a part for each square, in image order."""

    title: str
    facts: Sequence[str]
    parts: Sequence[Part]
    cells: bytes
    cell_size: int
    size: int


def ancestor_colour(number: int) -> str:
    """The colour of the ancestor ``number``, from 0; colours repeat in very long histories."""
    return _PALETTE[number % len(_PALETTE)]


def svg(picture: Picture) -> str:
    """Draw the picture as a stand-alone SVG document."""
    rows = -(-len(picture.cells) // COLUMNS)
    width = _LEFT + COLUMNS * _CELL + 24
    legend = _TOP + rows * _CELL + 36
    height = legend + 22 * len(picture.parts) + 16
    body = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" aria-label="{escape(picture.title)}">',
        f"<style>{_STYLE}</style>",
        f'<rect class="paper" width="{width}" height="{height}"/>',
        f'<text class="title" x="24" y="34">{escape(picture.title)}</text>',
        f'<text x="24" y="56">{escape(" · ".join(picture.facts))}</text>',
        *_bar(picture, width),
        *_map(picture),
        *_legend(picture, legend),
        "</svg>",
    ]
    return "\n".join(body) + "\n"


def html(picture: Picture) -> str:
    """Draw the picture as a page of its own."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{escape(picture.title)}</title>\n"
        "<style>body{margin:0}svg{display:block;max-width:100%;height:auto}</style>\n"
        f"</head>\n<body>\n{svg(picture)}</body>\n</html>\n"
    )


_STYLE = (
    "text{font:12px ui-monospace,Menlo,Consolas,monospace;fill:#334155}"
    ".title{font-size:17px;font-weight:600;fill:#0f172a}"
    ".small{font-size:10px;fill:#64748b}.paper{fill:#fff}"
    "@media(prefers-color-scheme:dark){.paper{fill:#0f172a}text{fill:#cbd5e1}"
    ".title{fill:#f1f5f9}.small{fill:#94a3b8}}"
)


def _bar(picture: Picture, width: int) -> Iterator[str]:
    """One stacked bar: the parts' shares of the image."""
    x, room = 24.0, width - 48
    for part in picture.parts:
        wide = room * part.size / picture.size if picture.size else 0
        if wide:
            what = f"{part.label}: {human_size(part.size)}, {percent(part.size, picture.size)}"
            yield (
                f'<rect x="{x:.2f}" y="72" width="{wide:.2f}" height="{_BAR}" '
                f'fill="{part.colour}"><title>{escape(what)}</title></rect>'
            )
        x += wide


def _map(picture: Picture) -> Iterator[str]:
    rows = -(-len(picture.cells) // COLUMNS)
    for row in range(rows):
        y = _TOP + row * _CELL
        if row % 8 == 0:
            offset = human_size(row * COLUMNS * picture.cell_size)
            yield (
                f'<text class="small" x="{_LEFT - 8}" y="{y + 7}" text-anchor="end">{offset}</text>'
            )
        line = picture.cells[row * COLUMNS : (row + 1) * COLUMNS]
        for start, length, number in runs(line):
            part = picture.parts[number]
            first = (row * COLUMNS + start) * picture.cell_size
            last = min(first + length * picture.cell_size, picture.size)
            what = f"{human_size(first)} to {human_size(last)}: {part.label}"
            yield (
                f'<rect x="{_LEFT + start * _CELL}" y="{y}" width="{length * _CELL - 1}" '
                f'height="{_CELL - 1}" fill="{part.colour}"><title>{escape(what)}</title></rect>'
            )


def _legend(picture: Picture, top: int) -> Iterator[str]:
    for number, part in enumerate(picture.parts):
        y = top + 22 * number
        stored = f", stored in {human_size(part.stored)}" if part.stored else ""
        text = (
            f"{part.label}: {human_size(part.size)} ({percent(part.size, picture.size)}), "
            f"{part.chunks} chunks{stored}"
        )
        yield f'<rect x="{_LEFT}" y="{y - 10}" width="12" height="12" fill="{part.colour}"/>'
        yield f'<text x="{_LEFT + 20}" y="{y}">{escape(text)}</text>'
    square = f"one square is {human_size(picture.cell_size)}, coloured by what most of it is"
    yield f'<text class="small" x="{_LEFT}" y="{top - 22}">{escape(square)}</text>'


def runs(cells: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (start, length, value) of the runs of equal cells."""
    start = 0
    for position in range(1, len(cells) + 1):
        if position == len(cells) or cells[position] != cells[start]:
            yield start, position - start, cells[start]
            start = position


def shrink(kinds: bytes, cells: int) -> tuple[bytes, int]:
    """Shrink one value a chunk to at most ``cells`` values, and say how many chunks one is.

    A cell takes the value that most of its chunks have; of equally many, the larger, so
    that data is seen next to zeros.
    """
    step = max(1, -(-len(kinds) // cells))
    if step == 1:
        return kinds, 1
    shrunk = bytearray()
    for start in range(0, len(kinds), step):
        piece = kinds[start : start + step]
        shrunk.append(max(set(piece), key=lambda value: (piece.count(value), value)))
    return bytes(shrunk), step
