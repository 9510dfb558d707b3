"""The names people give, and where each thing of a template lies in the bucket.

::

    {build_id}/manifest.json                     state of the build; written last
    {build_id}/heartbeat                         a build in progress
    dependents/{parent}/{child}                  empty: child reads from parent's packs
    leases/{build_id}/{holder}                   a process serves the build now
    templates/{template_id}/builds/{build_id}    empty: the build belongs to the template
    templates/{template_id}/tags/{tag}           body: a build id, or nothing once dropped

Nothing else forms these paths; every part is validated before a path is formed.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass

from bootstream.errors import InvalidInput
from bootstream.ids import is_build_id, validate_build_id, validate_template_id

__all__ = [
    "DEFAULT_TAG",
    "DEPENDENTS",
    "LEASES",
    "TEMPLATES",
    "TemplateName",
    "build_of_template_path",
    "build_prefix",
    "builds_prefix",
    "dependent_path",
    "dependents_prefix",
    "heartbeat_path",
    "is_build_id",
    "lease_path",
    "leases_prefix",
    "manifest_path",
    "new_build_id",
    "tag_path",
    "tags_prefix",
    "validate_build_id",
    "validate_tag",
    "validate_template_id",
]

DEFAULT_TAG = "latest"
DEPENDENTS = "dependents/"
LEASES = "leases/"
TEMPLATES = "templates/"

_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


def new_build_id() -> str:
    """Return a fresh build id: a random UUID in lower case."""
    return str(uuid.uuid4())


def validate_tag(text: str) -> str:
    """Return ``text`` if it may be a tag; raises InvalidInput."""
    if _TAG.fullmatch(text) is None:
        raise InvalidInput(
            "this cannot be a tag",
            operation="read tag",
            object=repr(text)[:150],
            remedy="use 1 to 128 letters, digits, '_', '.' and '-', not starting with '.' or '-'",
        )
    return text


@dataclass(frozen=True, slots=True)
class TemplateName:
    """``NAME[:TAG]`` as people write it; ``tag`` is None when none was written."""

    template_id: str
    tag: str | None

    @classmethod
    def parse(cls, text: str) -> TemplateName:
        """Raises InvalidInput when either part cannot be one."""
        template_id, colon, tag = text.partition(":")
        return cls(validate_template_id(template_id), validate_tag(tag) if colon else None)

    @property
    def tag_or_default(self) -> str:
        """The tag that is meant: ``latest`` when none was written."""
        return self.tag or DEFAULT_TAG

    def __str__(self) -> str:
        return self.template_id if self.tag is None else f"{self.template_id}:{self.tag}"


def build_prefix(build_id: str) -> str:
    """The folder of a build."""
    return f"{validate_build_id(build_id)}/"


def manifest_path(build_id: str) -> str:
    """The object that publishes, or buries, a build."""
    return build_prefix(build_id) + "manifest.json"


def heartbeat_path(build_id: str) -> str:
    """The object that a build in progress keeps fresh."""
    return build_prefix(build_id) + "heartbeat"


def dependents_prefix(parent: str) -> str:
    """Below it lies one empty mark for each build that reads from the packs of ``parent``."""
    return f"{DEPENDENTS}{validate_build_id(parent)}/"


def dependent_path(parent: str, child: str) -> str:
    """The mark that holds ``parent`` for ``child``."""
    return dependents_prefix(parent) + validate_build_id(child)


def leases_prefix(build_id: str) -> str:
    """Below it lies one lease for each process that serves the build."""
    return f"{LEASES}{validate_build_id(build_id)}/"


def lease_path(build_id: str, holder: str) -> str:
    """The lease of one serving process; ``holder`` is its node id and a token of its own."""
    return leases_prefix(build_id) + holder


def builds_prefix(template_id: str) -> str:
    """Below it lies one empty mark for each build of the template."""
    return f"{TEMPLATES}{validate_template_id(template_id)}/builds/"


def build_of_template_path(template_id: str, build_id: str) -> str:
    """The mark that makes a build one of the template's."""
    return builds_prefix(template_id) + validate_build_id(build_id)


def tags_prefix(template_id: str) -> str:
    """Below it lies one object for each tag of the template."""
    return f"{TEMPLATES}{validate_template_id(template_id)}/tags/"


def tag_path(template_id: str, tag: str) -> str:
    """The object whose body is the build id that the tag names."""
    return tags_prefix(template_id) + validate_tag(tag)
