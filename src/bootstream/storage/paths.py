"""The one judge of object paths and prefixes."""

from __future__ import annotations

from bootstream.errors import InvalidInput

MAX_PATH_BYTES = 1024


def validate_path(path: str) -> str:
    """Return ``path`` if it may name an object; raises InvalidInput.

    1 to 1024 bytes of UTF-8; components between ``/`` are neither empty nor ``.`` nor
    ``..``; no control characters.
    """
    problem = _problem(path)
    if problem:
        raise InvalidInput(
            problem, operation="open object", object=ascii(path)[:120], remedy=_REMEDY
        )
    return path


def validate_copy(source: str, target: str) -> None:
    """Check both names of a copy within a store; raises InvalidInput, also if they are one."""
    if validate_path(source) == validate_path(target):
        raise InvalidInput(
            "an object cannot be copied onto itself", operation="copy object", object=source
        )


def is_valid_path(path: str) -> bool:
    """Tell whether ``validate_path`` would take it."""
    return _problem(path) is None


def normalize_prefix(prefix: str) -> str:
    """Return ``""``, or the prefix with one ``/`` at its end; raises InvalidInput."""
    if prefix == "":
        return ""
    return validate_path(prefix.removesuffix("/")) + "/"


_REMEDY = (
    "use relative paths like a/b, at most 1024 bytes of UTF-8, without empty, '.' or '..' "
    "components and without control characters"
)


def _problem(path: str) -> str | None:
    try:
        encoded = path.encode()
    except UnicodeEncodeError:
        return "the path is not valid Unicode"
    if not 0 < len(encoded) <= MAX_PATH_BYTES:
        return f"the path has {len(encoded)} bytes; 1 to {MAX_PATH_BYTES} are possible"
    if any(component in ("", ".", "..") for component in path.split("/")):
        return "the path has an empty, '.' or '..' component"
    if any(character < " " or "\x7f" <= character < "\xa0" for character in path):
        return "the path has control characters"
    return None
