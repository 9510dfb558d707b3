"""The template-manager's documents: what a client sends and gets. Sizes are bytes, times UTC."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from bootstream.ids import BUILD_ID_FORM, TEMPLATE_ID_FORM

_TAG_FORM = "[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
_MOST = 1 << 46

TemplateId = Annotated[
    str, StringConstraints(pattern=f"^{TEMPLATE_ID_FORM}$", max_length=63, min_length=1)
]
BuildId = Annotated[
    str, StringConstraints(pattern=f"^{BUILD_ID_FORM}$", min_length=36, max_length=36)
]
TagName = Annotated[str, StringConstraints(pattern=f"^{_TAG_FORM}$", min_length=1, max_length=128)]
Size = Annotated[int, Field(ge=1, le=_MOST, strict=True)]
Reference = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9:._-]*$", max_length=200)
]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class RegistryImage(_Strict):
    """The image of a build in the service's own artifacts registry."""

    template_id: TemplateId
    build_id: BuildId


class BuildRequest(_Strict):
    """A build to be made. What is left out is as the parent has it, or the measured default.

    The image is ``image``, a reference to a registry's, or ``registry``. Of ``tags``, the first
    one says what the parent ``auto`` is; without one it is ``latest``.
    """

    build_id: BuildId | None = Field(
        None, description="Makes the request idempotent; a fresh one if left out."
    )
    image: Annotated[
        str | None,
        Field(min_length=1, max_length=1000, description="HOST/REPOSITORY[:TAG][@DIGEST]"),
    ] = None
    registry: RegistryImage | None = None
    platform: Annotated[
        str | None, StringConstraints(pattern=r"^[a-z0-9]+/[a-z0-9]+(/[a-z0-9.]+)?$", max_length=60)
    ] = None
    plain_http: Annotated[
        bool, Field(strict=True, description="Speak http; to hosts allowed by name only.")
    ] = False
    tags: Annotated[list[TagName], Field(max_length=20)] = []
    parent: Annotated[Reference, Field(description="auto, none, NAME[:TAG] or a build id.")] = (
        "auto"
    )
    size: Size | None = None
    free: Size | None = None
    inodes: Annotated[int | None, Field(ge=1, le=1 << 32, strict=True)] = None
    inode_ratio: Size | None = None
    label: Annotated[str | None, StringConstraints(max_length=16, pattern=r"^[ -~]*$")] = None
    block_size: Literal[1024, 2048, 4096] | None = None
    chunk_size: Size | None = None
    level: Annotated[int | None, Field(ge=-7, le=22, strict=True)] = None
    threads: Annotated[int | None, Field(ge=1, le=64, strict=True)] = None
    form: Literal["chunked", "raw"] = "chunked"
    webhook: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=2000,
            description="Told of the end, signed; docs/services.md has the form.",
        ),
    ] = None

    @model_validator(mode="after")
    def _check(self) -> BuildRequest:
        if (self.image is None) == (self.registry is None):
            raise ValueError("give either 'image' or 'registry'")
        if self.size is not None and self.free is not None:
            raise ValueError("'size' and 'free' exclude each other")
        if self.inodes is not None and self.inode_ratio is not None:
            raise ValueError("'inodes' and 'inode_ratio' exclude each other")
        if len(set(self.tags)) != len(self.tags):
            raise ValueError("a tag is given twice")
        return self


class BuildState(StrEnum):
    """Where a build is. The last four are final."""

    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    PUBLISHED = "published"
    FAILED = "failed"
    CANCELLED = "cancelled"
    DELETED = "deleted"


FINAL = frozenset(
    {BuildState.PUBLISHED, BuildState.FAILED, BuildState.CANCELLED, BuildState.DELETED}
)


class Failure(BaseModel):
    """Why a build failed: an error of the package."""

    kind: str
    message: str
    operation: str | None = None
    object: str | None = None
    remedy: str | None = None


class Phase(BaseModel):
    """How far a part of the work is; ``total`` is None where nobody knows."""

    name: str
    done: int
    total: int | None
    unit: str


class Build(BaseModel):
    """A build, from its acceptance on.

    One that another manager or the command line made has no ``accepted`` and no log here.
    """

    template_id: str
    build_id: str
    state: BuildState
    accepted: datetime | None = None
    started: datetime | None = None
    finished: datetime | None = None
    attempts: int = 0
    phase: Phase | None = None
    error: Failure | None = None
    tags: list[str] = []
    size: int | None = None
    stored_size: int | None = None
    parent: str | None = None
    webhook: Literal["waiting", "delivered", "given up"] | None = None


class BuildPage(BaseModel):
    """Builds, newest first; ``next`` is the cursor of the page after it, None at the end."""

    builds: list[Build]
    next: str | None


class Artifact(BaseModel):
    """One file of a build."""

    form: Literal["chunked", "raw"]
    size: int
    chunk_size: int
    stored_size: int


class StoredBuild(BaseModel):
    """A published build, as the store has it."""

    template_id: str
    build_id: str
    created: datetime
    parent: str | None
    tags: list[str]
    size: int
    stored_size: int
    artifacts: dict[str, Artifact]
    image: dict[str, Any] | None = None


class Template(BaseModel):
    """A template: its builds that are published, oldest first."""

    template_id: str
    builds: list[StoredBuild]


class TemplatePage(BaseModel):
    """Ids of templates, in order."""

    templates: list[str]
    next: str | None


class Tag(BaseModel):
    """A tag, and the build that it names."""

    template_id: str
    tag: str
    build_id: str


class TagList(BaseModel):
    """All tags of a template."""

    tags: list[Tag]


class TagRequest(_Strict):
    """What a tag is to name."""

    build_id: BuildId


class Verification(BaseModel):
    """What a check of everything found; no problems: sound."""

    build_id: str
    ok: bool
    chunks: int
    size: int
    problems: list[str]


class Health(BaseModel):
    """How the service is."""

    status: Literal["ok"]
    version: str


class Readiness(BaseModel):
    """Whether it can do its work now; ``checks`` says what was looked at."""

    ready: bool
    checks: dict[str, str]
