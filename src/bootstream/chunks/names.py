"""The names of a build's large objects, and what may name a build or an artifact."""

from __future__ import annotations

import re

from bootstream.errors import InvalidInput
from bootstream.ids import validate_build_id

__all__ = [
    "artifact_path",
    "index_path",
    "pack_path",
    "trace_path",
    "validate_artifact",
    "validate_build_id",
]

_ARTIFACT = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_SUFFIXES = (".pack", ".index", ".trace")
_RESERVED = frozenset({"heartbeat", "manifest.json"})


def validate_artifact(text: str) -> str:
    """Return ``text`` if it may name an artifact; raises InvalidInput."""
    if _ARTIFACT.fullmatch(text) is None or text.endswith(_SUFFIXES) or text in _RESERVED:
        raise InvalidInput(
            "this cannot name an artifact",
            operation="read artifact name",
            object=ascii(text)[:80],
            remedy="use names such as rootfs.ext4, memfile, snapfile",
        )
    return text


def artifact_path(build_id: str, artifact: str) -> str:
    """The raw form: the artifact's own bytes."""
    return f"{validate_build_id(build_id)}/{validate_artifact(artifact)}"


def pack_path(build_id: str, artifact: str) -> str:
    """The build's own frames, end to end."""
    return artifact_path(build_id, artifact) + ".pack"


def index_path(build_id: str, artifact: str) -> str:
    """Where every chunk of the artifact is."""
    return artifact_path(build_id, artifact) + ".index"


def trace_path(build_id: str, artifact: str) -> str:
    """Which chunks a boot touches; not always there, and nothing needs it."""
    return artifact_path(build_id, artifact) + ".trace"
