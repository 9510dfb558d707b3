"""The orchestrator's documents. Sizes are bytes, times UTC."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from bootstream.services.models import BuildId, Failure, TagName, TemplateId

SANDBOX_FORM = "[a-z0-9][a-z0-9-]{0,31}"

SandboxId = Annotated[
    str, StringConstraints(pattern=f"^{SANDBOX_FORM}$", min_length=1, max_length=32)
]


class SandboxRequest(BaseModel):
    """A sandbox to be made, from a tag (``latest`` if none is named) or a build."""

    model_config = ConfigDict(extra="forbid")

    sandbox_id: SandboxId | None = Field(
        None, description="Makes the request idempotent; a fresh one if left out."
    )
    template_id: TemplateId
    tag: TagName | None = None
    build_id: BuildId | None = None
    writable: Annotated[bool, Field(strict=True)] = True

    @model_validator(mode="after")
    def _check(self) -> SandboxRequest:
        if self.tag is not None and self.build_id is not None:
            raise ValueError("'tag' and 'build_id' exclude each other")
        return self


class SandboxState(StrEnum):
    """Where a sandbox is."""

    RECOVERING = "recovering"
    SERVING = "serving"
    PAUSING = "pausing"
    PAUSED = "paused"
    FAILED = "failed"


class Figures(BaseModel):
    """What was read through the sandbox's template, by all that share it, and what was written."""

    touched_bytes: int
    fetched_bytes: int
    requests: int
    waits: int
    overlay_bytes: int


class Sandbox(BaseModel):
    """A sandbox: a root file system as a block device over NBD, at ``socket`` on this host."""

    sandbox_id: str
    template_id: str
    build_id: str
    state: SandboxState
    writable: bool
    size: int | None = None
    socket: str
    uri: str
    created: datetime
    paused_build_id: str | None = None
    error: Failure | None = None
    figures: Figures | None = None


class SandboxPage(BaseModel):
    """Sandboxes in the order of their ids; ``next`` is the id to go on after, None at the end."""

    sandboxes: list[Sandbox]
    next: str | None


class PauseRequest(BaseModel):
    """What becomes of what was written: a build of ``template_id``, the sandbox's own if None."""

    model_config = ConfigDict(extra="forbid")

    template_id: TemplateId | None = None
    build_id: BuildId | None = None
    tags: Annotated[list[TagName], Field(max_length=20)] = []
    if_current: BuildId | None = Field(
        None, description="Give the tags only if they name this build now."
    )
    flat: Annotated[bool, Field(strict=True, description="Let it read from no other build.")] = (
        False
    )


class PausedBuild(BaseModel):
    """A build that was made of a sandbox. ``tag_error``: it is published, but got not its tags."""

    template_id: str
    build_id: str
    parent: str | None
    changed_bytes: int
    stored_size: int
    tag_error: Failure | None = None


class Host(BaseModel):
    """This host. ``cache_limit`` None is a tenth of the disk."""

    node_id: str
    draining: bool
    sandboxes: int
    most_sandboxes: int
    bases: int
    cache_bytes: int
    cache_limit: int | None
    disk_free: int
