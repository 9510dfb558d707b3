"""What goes to stdout: JSON for programs, aligned text for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import click


def emit_json(value: Any) -> None:
    """Print one JSON document with a final newline."""
    click.echo(json.dumps(value, indent=2, default=_plain))


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return iso(value)
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def iso(when: datetime) -> str:
    """Return a time as ISO 8601 in UTC, e.g. ``2026-08-01T12:00:00.000000Z``."""
    text = when.astimezone(UTC).isoformat(timespec="microseconds")
    return text.replace("+00:00", "Z")


def short_time(when: datetime) -> str:
    """Return a time for a table, in UTC to the second."""
    return when.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def human_size(size: float) -> str:
    """Return bytes as people read them, in powers of 1024: ``512 B``, ``83.2 MiB``."""
    if abs(size) < 1024:
        return f"{int(size)} B"
    for unit in ("KiB", "MiB", "GiB"):
        size /= 1024
        if abs(size) < 1024:
            return f"{size:.1f} {unit}"
    return f"{size / 1024:.1f} TiB"


def percent(part: float, whole: float) -> str:
    """Return ``part`` of ``whole`` as a percentage; a dash where there is no whole."""
    return f"{100 * part / whole:.1f} %" if whole else "-"


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print aligned columns; a header that ends in ``>`` aligns its column to the right."""
    right = [header.endswith(">") for header in headers]
    lines = [[header.rstrip(">") for header in headers], *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(headers))]
    for line in lines:
        cells = [
            cell.rjust(width) if flush else cell.ljust(width)
            for cell, width, flush in zip(line, widths, right, strict=True)
        ]
        click.echo("  ".join(cells).rstrip())


def printable(name: bytes | str) -> str:
    """Return a name from outside so that it cannot steer a terminal: odd characters as hex."""
    text = name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else name
    return "".join(c if c.isprintable() else _escape(c) for c in text)


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that was not UTF-8
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def say(text: str) -> None:
    """Write one line to stderr."""
    click.echo(text, file=sys.stderr)
