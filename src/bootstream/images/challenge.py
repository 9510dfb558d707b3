"""``WWW-Authenticate`` headers: what a server wants to be told (RFC 9110, 11.6.1)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_SEPARATORS = re.compile(r"[\s,]*")
_SCHEME = re.compile(rf"({_WORD})(?=[\s,]|$)")
_PARAMETER = re.compile(rf'({_WORD})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s",=][^\s",]*))')
_LUMP = re.compile(r"[A-Za-z0-9._~+/-]+=*(?=\s*(?:,|$))")
_ESCAPE = re.compile(r"\\(.)")


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way to sign in; scheme and parameter names are lower case."""

    scheme: str
    parameters: Mapping[str, str] = field(default_factory=dict)


def parse_challenges(values: Sequence[str]) -> list[Challenge]:
    """Return the challenges of all headers of that name, in order.

    One header may hold several, and commas may stand inside quotes. What cannot be
    understood ends the header it is in; nothing is raised.
    """
    found: list[Challenge] = []
    for value in values:
        position = 0
        while True:
            position = _end(_SEPARATORS.match(value, position), position)
            scheme = _SCHEME.match(value, position)
            if scheme is None:
                break
            position, parameters = _parameters(value, scheme.end())
            found.append(Challenge(scheme[1].lower(), parameters))
    return found


def _parameters(value: str, position: int) -> tuple[int, dict[str, str]]:
    parameters: dict[str, str] = {}
    while True:
        start = _end(_SEPARATORS.match(value, position), position)
        parameter = _PARAMETER.match(value, start)
        if parameter is None:
            break
        quoted, plain = parameter[2], parameter[3]
        text = plain if quoted is None else _ESCAPE.sub(r"\1", quoted)
        parameters.setdefault(parameter[1].lower(), text)
        position = parameter.end()
    if not parameters:
        start = position + len(value[position:]) - len(value[position:].lstrip())
        lump = _LUMP.match(value, start)
        if lump is not None and start > position:
            return lump.end(), parameters
    return position, parameters


def _end(match: re.Match[str] | None, position: int) -> int:
    return match.end() if match else position
