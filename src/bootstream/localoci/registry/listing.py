"""Listings of the Artifacts API: what matches, in which order, and a page of it."""

from __future__ import annotations

import fnmatch
import re
from typing import TYPE_CHECKING, Any, TypeVar

from bootstream.localoci.errors import invalid

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from bootstream.localoci.http import Request
    from bootstream.localoci.registry.values import Image

_PAGE = 100  # items, unless ``limit`` says otherwise
_PAGE_LIMIT = 1000

T = TypeVar("T")


def matches(image: Image, parameters: Mapping[str, str]) -> bool:
    """Whether an image is among those that a listing asks for."""
    versions = [version.version for version in image.versions]
    tests: Mapping[str, Callable[[str], bool]] = {
        "displayName": lambda value: image.display_name == value,
        "imageId": lambda value: image.id == value,
        "imageDigest": lambda value: image.digest == value,
        "lifecycleState": lambda value: image.state == value,
        "repositoryName": lambda value: _like(image.repository.name, value),
        "isVersioned": lambda value: bool(versions) is (value.lower() == "true"),
        "version": lambda value: any(_like(version, value) for version in versions),
    }
    return all(test(parameters[name]) for name, test in tests.items() if name in parameters)


def _like(text: str, wanted: str) -> bool:
    """``foo``, or ``foo*``."""
    return fnmatch.fnmatchcase(text, re.sub(r"([\[?])", r"[\1]", wanted))


def in_order(
    request: Request,
    found: Sequence[T],
    created: Callable[[T], float],
    name: Callable[[T], str],
) -> list[T]:
    """Sort by time, the newest first, unless the request says otherwise."""
    parameters = request.parameters()
    by_name = parameters.get("sortBy", "TIMECREATED").upper() == "DISPLAYNAME"
    order = parameters.get("sortOrder", "ASC" if by_name else "DESC").upper()
    key: Callable[[T], Any] = name if by_name else created
    return sorted(found, key=key, reverse=order == "DESC")


def page_of(request: Request, found: Sequence[T]) -> tuple[Sequence[T], int, dict[str, str]]:
    """The page that is asked for, how many come after it, and the header that names the next."""
    parameters = request.parameters()
    limit = _number(parameters.get("limit", str(_PAGE)), "limit")
    start = _number(parameters.get("page", "0"), "page")
    if not 1 <= limit <= _PAGE_LIMIT:
        raise invalid(f"limit is a number from 1 to {_PAGE_LIMIT}")
    items = found[start : start + limit]
    more = max(0, len(found) - start - len(items))
    return items, more, {"opc-next-page": str(start + limit)} if more else {}


def _number(text: str, name: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise invalid(f"{name} is not one of this service")
    return int(text)
