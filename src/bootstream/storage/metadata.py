"""The one judge of an object's metadata: what every store can keep, and gives back as it was.

Small on purpose, since clouds differ in what they take: keys become HTTP header names (and
on one cloud identifiers), values become header values.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from bootstream.errors import Corrupt, InvalidInput

MAX_METADATA_BYTES = 2048
MAX_METADATA_ENTRIES = 64

_KEY = re.compile(r"[a-z][a-z0-9-]{0,63}")
_VALUE = re.compile(r"[!-~]([ -~]*[!-~])?")
_REMEDY = (
    "keys are a letter, then letters, digits and '-', all lower case, at most 64; values are "
    "printable ASCII that neither begins nor ends with a space; at most "
    f"{MAX_METADATA_ENTRIES} entries and {MAX_METADATA_BYTES} bytes together"
)


def validate_metadata(metadata: Mapping[str, str] | None) -> dict[str, str]:
    """Return a copy of ``metadata``, empty for None, if every store can keep it.

    Raises:
        InvalidInput: a key or value has characters it cannot have, or it is too much.
    """
    if not metadata:
        return {}
    found = dict(metadata)
    problem = None
    for key, value in found.items():
        if _KEY.fullmatch(key) is None:
            problem = f"{ascii(key)[:80]} cannot be a key of metadata"
        elif _VALUE.fullmatch(value) is None:
            problem = f"the value of {key} cannot be metadata"
    if len(found) > MAX_METADATA_ENTRIES:
        problem = f"metadata has {len(found)} entries"
    elif sum(len(key) + len(value) for key, value in found.items()) > MAX_METADATA_BYTES:
        problem = "metadata is too long"
    if problem:
        raise InvalidInput(problem, operation="write object", remedy=_REMEDY)
    return found


def encode_metadata(metadata: Mapping[str, str]) -> bytes:
    """Return valid metadata as lines ``key=value``, each with a line feed at its end."""
    return "".join(f"{key}={value}\n" for key, value in metadata.items()).encode("ascii")


def decode_metadata(data: bytes) -> dict[str, str]:
    """Return what ``encode_metadata`` was given; raises Corrupt for anything else."""
    try:
        lines = data.decode("ascii").removesuffix("\n").split("\n")
        return validate_metadata(dict(line.split("=", 1) for line in lines if line))
    except (ValueError, InvalidInput) as error:
        raise Corrupt(
            "its metadata is not in the form that was written", operation="stat object"
        ) from error
