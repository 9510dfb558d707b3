"""``manifest.json``: the one object that is a build's state.

The document is ``docs/formats/manifest.md``. It is created only if absent, in
state ``published`` or ``deleted``, and overwritten once, from the one to the
other; so whoever creates it first decides, and nobody else needs a lock.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal

from bootstream.chunks.names import validate_artifact, validate_build_id
from bootstream.errors import BuildNotFound, Corrupt, InvalidInput, ObjectNotFound
from bootstream.storage.protocol import StorageProvider
from bootstream.templates.names import manifest_path, validate_template_id

FORMAT = "bootstream/manifest"
VERSION = 1
MAX_BYTES = 4 << 20
"""A manifest is far smaller; what is larger is not one. Thousands of ancestors fit."""

_SHA256 = re.compile(r"[0-9a-f]{64}")

State = Literal["published", "deleted"]
Form = Literal["chunked", "raw"]


@dataclass(frozen=True, slots=True)
class Artifact:
    """One file of a build. Sizes in bytes; digests are lower-case hex sha256.

    ``sha256`` is the digest of the artifact's own bytes, known for raw small ones
    (the snapfile) only. ``stored_size`` is what this build itself keeps of it.
    """

    form: Form
    size: int
    chunk_size: int
    index_size: int
    index_sha256: str
    stored_size: int
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """One build, as published or as deleted.

    ``depends_on`` are the builds whose packs its indexes name; each holds a mark
    of this build. ``image`` and ``options`` say what it was made from.
    """

    build_id: str
    template_id: str
    state: State
    created: datetime
    artifacts: Mapping[str, Artifact] = field(default_factory=dict)
    parent: str | None = None
    depends_on: tuple[str, ...] = ()
    image: Mapping[str, Any] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    tool: str = ""
    deleted: datetime | None = None
    taken_over: bool = False

    def as_deleted(self, when: datetime) -> Manifest:
        """The same build, deleted: what it holds is still known, so it can be collected."""
        return replace(self, state="deleted", deleted=when)

    @property
    def size(self) -> int:
        """Bytes of all its artifacts, as a reader sees them."""
        return sum(artifact.size for artifact in self.artifacts.values())

    @property
    def stored_size(self) -> int:
        """Bytes this build itself keeps in the bucket."""
        return sum(a.stored_size + a.index_size for a in self.artifacts.values())

    def artifact(self, name: str) -> Artifact:
        """Return one artifact; raises InvalidInput naming what there is."""
        try:
            return self.artifacts[name]
        except KeyError:
            raise InvalidInput(
                f"the build has no {name}",
                operation="open artifact",
                object=self.build_id,
                remedy=f"it has: {', '.join(sorted(self.artifacts)) or 'no artifacts'}",
            ) from None

    def to_json(self) -> bytes:
        """Serialise: UTF-8, two spaces, keys in the order of the document, final newline."""
        document: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "state": self.state,
            "build_id": self.build_id,
            "template_id": self.template_id,
            "created": _time_to_text(self.created),
        }
        if self.deleted is not None:
            document["deleted"] = _time_to_text(self.deleted)
        if self.taken_over:
            document["taken_over"] = True
        document["parent"] = self.parent
        document["depends_on"] = list(self.depends_on)
        document["artifacts"] = {
            name: _artifact_to_json(artifact) for name, artifact in sorted(self.artifacts.items())
        }
        document["image"] = self.image
        document["options"] = dict(self.options)
        document["tool"] = self.tool
        try:
            return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()
        except UnicodeEncodeError:  # an image's JSON may hold halves of surrogate pairs, as escapes
            return (json.dumps(document, indent=2) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes, *, build_id: str) -> Manifest:
        """Parse and check. Raises Corrupt, or InvalidInput for a newer version."""
        fields = _Fields.load(data, manifest_path(build_id))
        if fields.text("format") != FORMAT:
            raise fields.corrupt("it is not a manifest of this kind")
        if fields.integer("version") > VERSION:
            raise InvalidInput(
                f"the manifest has version {fields.integer('version')}; this program "
                f"reads up to {VERSION}",
                operation="read manifest",
                object=fields.name,
                remedy="upgrade bootstream on this host",
            )
        if fields.text("build_id") != build_id:
            raise fields.corrupt("it names another build")
        state = fields.text("state")
        if state not in ("published", "deleted"):
            raise fields.corrupt(f"unknown state {state!r:.40}")
        try:
            depends_on = tuple(validate_build_id(item) for item in fields.texts("depends_on"))
            parent = fields.text("parent", none=True)
            return cls(
                build_id=build_id,
                template_id=_template_id(fields, taken_over=fields.get("taken_over") is True),
                state="published" if state == "published" else "deleted",
                created=fields.time("created"),
                deleted=fields.time("deleted") if "deleted" in fields.values else None,
                taken_over=fields.get("taken_over") is True,
                parent=None if parent is None else validate_build_id(parent),
                depends_on=depends_on,
                artifacts={
                    validate_artifact(name): _artifact_from_json(_Fields.of(value, fields.name))
                    for name, value in fields.mapping("artifacts").items()
                },
                image=fields.mapping("image", none=True),
                options=fields.mapping("options") or {},
                tool=fields.text("tool", none=True) or "",
            )
        except InvalidInput as error:
            raise fields.corrupt(f"{error.message} ({error.object})") from error


def read_manifest(storage: StorageProvider, build_id: str) -> tuple[Manifest, str]:
    """Return a build's manifest, in any state, and its etag.

    Raises:
        BuildNotFound: the build has none: it never was, or is not finished.
        Corrupt: what is there is no manifest.
    """
    path = manifest_path(build_id)
    try:
        data, etag = storage.open_object(path).get(MAX_BYTES)
    except ObjectNotFound as error:
        raise BuildNotFound(
            "there is no such build",
            operation="read build",
            object=build_id,
            remedy="'bootstream ls' lists the builds of this store",
        ) from error
    return Manifest.from_json(bytes(data), build_id=build_id), etag


def read_published(storage: StorageProvider, build_id: str) -> tuple[Manifest, str]:
    """Return the manifest of a build that can be used; raises BuildNotFound for a deleted one."""
    manifest, etag = read_manifest(storage, build_id)
    if manifest.state != "published":
        raise BuildNotFound("the build was deleted", operation="read build", object=build_id)
    return manifest, etag


def taken_over(build_id: str, now: datetime) -> Manifest:
    """The manifest by which collection ends a build that nobody finished."""
    return Manifest(
        build_id=build_id,
        template_id="",
        state="deleted",
        created=now,
        deleted=now,
        taken_over=True,
    )


class _Fields:
    """A JSON object from outside: every access checks the type."""

    def __init__(self, values: dict[str, Any], name: str) -> None:
        self.values = values
        self.name = name

    @classmethod
    def load(cls, data: bytes, name: str) -> _Fields:
        try:
            return cls.of(json.loads(data), name)
        except (ValueError, RecursionError) as error:
            raise cls({}, name).corrupt("it is not JSON") from error

    @classmethod
    def of(cls, value: object, name: str) -> _Fields:
        if not isinstance(value, dict):
            raise cls({}, name).corrupt("an object was expected")
        return cls(value, name)

    def corrupt(self, message: str) -> Corrupt:
        return Corrupt(
            message,
            operation="read manifest",
            object=self.name,
            remedy="delete the build and make it again; its artifacts are not harmed by this",
        )

    def get(self, key: str) -> Any:
        return self.values.get(key)

    def text(self, key: str, *, none: bool = False) -> Any:
        value = self.get(key)
        if isinstance(value, str) or (none and value is None):
            return value
        raise self.corrupt(f"{key} must be text")

    def texts(self, key: str) -> list[str]:
        value = self.get(key)
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return value
        raise self.corrupt(f"{key} must be a list of texts")

    def mapping(self, key: str, *, none: bool = False) -> Any:
        value = self.get(key)
        if isinstance(value, dict) or (none and value is None):
            return value
        raise self.corrupt(f"{key} must be an object")

    def integer(self, key: str, *, most: int = 1 << 62) -> int:
        value = self.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most:
            return value
        raise self.corrupt(f"{key} must be a whole number from 0 to {most}")

    def sha256(self, key: str, *, none: bool = False) -> Any:
        value = self.text(key, none=none)
        if value is not None and _SHA256.fullmatch(value) is None:
            raise self.corrupt(f"{key} must be a sha256 in hex")
        return value

    def time(self, key: str) -> datetime:
        try:
            value = datetime.fromisoformat(self.text(key))
        except ValueError as error:
            raise self.corrupt(f"{key} must be a time") from error
        if value.tzinfo is None:
            raise self.corrupt(f"{key} must have a time zone")
        return value


def _template_id(fields: _Fields, *, taken_over: bool) -> str:
    text: str = fields.text("template_id")
    return text if taken_over and not text else validate_template_id(text)


def _time_to_text(when: datetime) -> str:
    return when.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _artifact_to_json(artifact: Artifact) -> dict[str, Any]:
    document: dict[str, Any] = {
        "form": artifact.form,
        "size": artifact.size,
        "chunk_size": artifact.chunk_size,
        "stored_size": artifact.stored_size,
        "index": {"size": artifact.index_size, "sha256": artifact.index_sha256},
    }
    if artifact.sha256 is not None:
        document["sha256"] = artifact.sha256
    return document


def _artifact_from_json(fields: _Fields) -> Artifact:
    form = fields.text("form")
    if form not in ("chunked", "raw"):
        raise fields.corrupt(f"unknown form {form!r:.40}")
    index = _Fields.of(fields.mapping("index"), fields.name)
    return Artifact(
        form="chunked" if form == "chunked" else "raw",
        size=fields.integer("size"),
        chunk_size=fields.integer("chunk_size"),
        stored_size=fields.integer("stored_size"),
        index_size=index.integer("size"),
        index_sha256=index.sha256("sha256"),
        sha256=fields.sha256("sha256", none=True),
    )
