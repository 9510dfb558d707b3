"""Repositories, images and versions, as the catalogue gives them. Times are seconds, UTC."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Exists(Exception):
    """A repository has the name already."""


class Changed(Exception):
    """It is not any more in the state that an etag stands for."""


class Immutable(Exception):
    """The version names another image, and the repository is immutable."""


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository. ``folder`` is its name in the real registry."""

    id: str
    name: str
    folder: str
    compartment: str
    immutable: bool
    public: bool
    details: Mapping[str, Any]  # readme, freeformTags, definedTags as they were given
    created: float
    created_by: str
    pushed: float | None

    @property
    def etag(self) -> str:
        """Stands for what can be changed of it."""
        return _etag(self.id, self.immutable, self.public, self.details)


@dataclass(frozen=True, slots=True)
class Version:
    """A name of an image."""

    version: str
    created: float
    created_by: str


@dataclass(frozen=True, slots=True)
class Image:
    """A manifest of a repository. ``layers`` are digests and sizes; newest version last."""

    id: str
    repository: Repository
    digest: str
    media_type: str
    size: int
    layers: Mapping[str, int]
    created: float
    created_by: str
    state: str  # AVAILABLE, DELETED
    last_version: str | None
    pulls: int
    pulled: float | None
    versions: Sequence[Version]

    @property
    def etag(self) -> str:
        """Stands for its state and its versions."""
        return _etag(self.id, self.state, [(one.version, one.created) for one in self.versions])

    @property
    def display_name(self) -> str:
        """``REPO:VERSION``, or ``REPO:LAST@DIGEST`` of an image without one."""
        if self.versions:
            return f"{self.repository.name}:{self.versions[-1].version}"
        return f"{self.repository.name}:{self.last_version or 'unknown'}@{self.digest}"


def _etag(*state: object) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:32]
