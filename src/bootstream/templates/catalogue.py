"""What a store holds: templates, their builds and tags; and taking builds out of it.

The bucket is the only source of truth. A build belongs to a template by an empty
mark, and is there when its manifest says ``published``. Deleting a build only
turns its manifest; bytes go when collection finds that nobody reads them.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

from bootstream.errors import (
    BuildNotFound,
    Conflict,
    ObjectNotFound,
    PreconditionFailed,
    TemplateNotFound,
)
from bootstream.storage.protocol import StorageObject, StorageProvider
from bootstream.templates.manifest import Manifest, read_manifest, read_published
from bootstream.templates.names import (
    TEMPLATES,
    TemplateName,
    build_of_template_path,
    builds_prefix,
    is_build_id,
    manifest_path,
    tag_path,
    tags_prefix,
)

_PARALLEL = 16
_TAG_BYTES = 64


class Tag(NamedTuple):
    """A tag's state: the build it names, None once dropped; etag None if it never was."""

    build_id: str | None
    etag: str | None


@dataclass(frozen=True, slots=True)
class ListedBuild:
    """A published build and the tags that name it."""

    manifest: Manifest
    tags: tuple[str, ...]


class Catalogue:
    """Reads and changes what the store says of templates. Safe to use from several threads."""

    def __init__(self, storage: StorageProvider) -> None:
        self.storage = storage

    # -- looking --------------------------------------------------------------------------

    def templates(self) -> list[str]:
        """Return the ids of all templates that have a build, in order."""
        return sorted({build.manifest.template_id for build in self.builds()})

    def builds(self, template_id: str | None = None) -> list[ListedBuild]:
        """Return the published builds of one template, or of all, oldest first."""
        prefix = TEMPLATES if template_id is None else builds_prefix(template_id)
        wanted = [
            (parts[1], parts[3])
            for info in self.storage.list_objects(prefix)
            if len(parts := info.path.split("/")) == 4 and parts[2] == "builds"
        ]
        tags: dict[str, list[str]] = {}
        for owner in sorted({owner for owner, _ in wanted}):
            for tag, build_id in self.tags(owner).items():
                tags.setdefault(build_id, []).append(tag)
        with ThreadPoolExecutor(_PARALLEL) as pool:
            manifests = list(pool.map(self._published_or_none, (build for _, build in wanted)))
        listed = [
            ListedBuild(manifest, tuple(sorted(tags.get(manifest.build_id, ()))))
            for manifest in manifests
            if manifest is not None
        ]
        return sorted(listed, key=lambda build: (build.manifest.created, build.manifest.build_id))

    def _published_or_none(self, build_id: str) -> Manifest | None:
        try:
            return read_published(self.storage, build_id)[0]
        except BuildNotFound:
            return None  # in progress, deleted, or on its way to either

    def tags(self, template_id: str) -> dict[str, str]:
        """Return tag -> build id, also of builds that are gone."""
        prefix = tags_prefix(template_id)
        names = [info.path[len(prefix) :] for info in self.storage.list_objects(prefix)]
        found = {name: self.tag(template_id, name).build_id for name in names}
        return {name: build_id for name, build_id in found.items() if build_id}

    def tag(self, template_id: str, tag: str) -> Tag:
        """Return one tag's state; one that never was is ``Tag(None, None)``."""
        try:
            body, etag = self._tag_object(template_id, tag).get(_TAG_BYTES)
        except ObjectNotFound:
            return Tag(None, None)
        text = bytes(body).decode("ascii", "replace").strip()
        return Tag(text if is_build_id(text) else None, etag)

    def build_of(self, reference: str) -> str:
        """Return the id of the build that ``NAME[:TAG]`` or a build id means; it may be gone.

        Raises:
            TemplateNotFound: no such template or tag; the remedy lists what there is.
        """
        if is_build_id(reference):
            return reference
        name = TemplateName.parse(reference)
        build_id = self.tag(name.template_id, name.tag_or_default).build_id
        if build_id is None:
            raise self._no_such_tag(name)
        return build_id

    def resolve(self, reference: str) -> Manifest:
        """Return the published build that ``NAME[:TAG]`` or a build id means.

        Raises:
            TemplateNotFound: no such template or tag; the remedy lists what there is.
            BuildNotFound: the build, or the build that the tag names, is gone.
        """
        build_id = self.build_of(reference)
        try:
            return read_published(self.storage, build_id)[0]
        except BuildNotFound as error:
            if is_build_id(reference):
                raise
            name = TemplateName.parse(reference)
            raise BuildNotFound(
                f"the tag names build {build_id}, which is gone",
                operation="open template",
                object=f"{name.template_id}:{name.tag_or_default}",
                remedy=f"build it again, or tag another build: "
                f"bootstream tag BUILD {name.template_id}:{name.tag_or_default}",
            ) from error

    def _no_such_tag(self, name: TemplateName) -> TemplateNotFound:
        tags = sorted(self.tags(name.template_id))
        if tags:
            remedy = f"its tags: {', '.join(tags[:20])}"
        elif self.builds(name.template_id):
            remedy = f"it has builds without a tag; 'bootstream ls {name.template_id}' lists them"
        else:
            remedy = "'bootstream ls' lists the templates of this store"
        return TemplateNotFound(
            "there is no such template" if not tags else "the template has no such tag",
            operation="open template",
            object=f"{name.template_id}:{name.tag_or_default}",
            remedy=remedy,
        )

    # -- changing -------------------------------------------------------------------------

    def set_tag(
        self, template_id: str, tag: str, build_id: str, *, if_current: str | None = None
    ) -> None:
        """Make ``tag`` name ``build_id``; the last writer wins unless ``if_current`` is given.

        Args:
            template_id: the template, which must be the build's own.
            tag: the tag.
            build_id: a published build.
            if_current: only if the tag names this build now.

        Raises:
            BuildNotFound: the build is not there, or belongs to another template.
            PreconditionFailed: the tag does not name ``if_current``.
        """
        manifest, _ = read_published(self.storage, build_id)
        if manifest.template_id != template_id:
            raise BuildNotFound(
                f"the build belongs to template {manifest.template_id}",
                operation="tag",
                object=build_id,
            )
        target = self._tag_object(template_id, tag)
        if if_current is None:
            target.put(build_id.encode())
            return
        current = self.tag(template_id, tag)
        if current.build_id != if_current or current.etag is None:
            raise self._moved(template_id, tag, current.build_id)
        try:
            target.put(build_id.encode(), if_match=current.etag)
        except PreconditionFailed:
            raise self._moved(template_id, tag, self.tag(template_id, tag).build_id) from None

    def _moved(self, template_id: str, tag: str, current: str | None) -> PreconditionFailed:
        return PreconditionFailed(
            f"the tag names {current or 'no build'} now",
            operation="tag",
            object=f"{template_id}:{tag}",
            remedy="look at the build it names, then decide again",
        )

    def drop_tag(self, template_id: str, tag: str, *, only_if: str | None = None) -> str | None:
        """Take the tag away; return the build id it named, None if it named none.

        The object is emptied, conditional on what was read, and collection removes it
        later: deleting it now could drop a tag that somebody moves at this moment.
        With ``only_if``, a tag that names another build is left alone.
        """
        while True:
            current = self.tag(template_id, tag)
            if current.build_id is None or (only_if and current.build_id != only_if):
                return None
            try:
                self._tag_object(template_id, tag).put(b"", if_match=current.etag)
            except PreconditionFailed:
                continue
            return current.build_id

    def delete_build(self, build_id: str) -> Manifest:
        """Delete a published build: it leaves every listing now, its bytes when collected.

        Idempotent: a deleted build stays deleted. Builds that read from its packs keep
        working. Raises BuildNotFound when it has no manifest.
        """
        while True:
            manifest, etag = read_manifest(self.storage, build_id)
            if manifest.state == "deleted":
                break
            buried = manifest.as_deleted(self.storage.details().now)
            try:
                target = self.storage.open_object(manifest_path(build_id))
                target.put(buried.to_json(), if_match=etag)
            except PreconditionFailed:
                continue
            manifest = buried
            break
        if manifest.template_id:
            for tag, named in self.tags(manifest.template_id).items():
                if named == build_id:
                    self.drop_tag(manifest.template_id, tag, only_if=build_id)
            self.storage.open_object(
                build_of_template_path(manifest.template_id, build_id)
            ).delete()
        return manifest

    def remove(self, reference: str, *, everything: bool = False) -> list[str]:
        """Do what ``rm`` means; return the ids of the builds that were deleted.

        A build id deletes the build. ``NAME:TAG`` drops the tag, and deletes the build if
        no other tag names it. ``NAME`` deletes all builds of the template; other tags than
        ``latest`` make it a Conflict unless ``everything`` is said.
        """
        if is_build_id(reference):
            read_published(self.storage, reference)
            self.delete_build(reference)
            return [reference]
        name = TemplateName.parse(reference)
        if name.tag is not None:
            return self._remove_tag(name)
        return self._remove_template(name, everything=everything)

    def _remove_tag(self, name: TemplateName) -> list[str]:
        build_id = self.drop_tag(name.template_id, name.tag_or_default)
        if build_id is None:
            raise self._no_such_tag(name)
        if build_id in self.tags(name.template_id).values():
            return []
        try:
            self.delete_build(build_id)
        except BuildNotFound:
            return []  # the tag outlived its build
        return [build_id]

    def _remove_template(self, name: TemplateName, *, everything: bool) -> list[str]:
        tags = self.tags(name.template_id)
        builds = [build.manifest.build_id for build in self.builds(name.template_id)]
        if not tags and not builds:
            raise self._no_such_tag(name)
        others = sorted(set(tags) - {name.tag_or_default})
        if others and not everything:
            raise Conflict(
                f"the template has other tags: {', '.join(others[:20])}",
                operation="delete template",
                object=name.template_id,
                remedy=f"name one tag, as in {name.template_id}:{others[0]}, or pass --all",
            )
        for build_id in builds:
            self.delete_build(build_id)
        for tag in tags:
            self.drop_tag(name.template_id, tag)
        return builds

    def _tag_object(self, template_id: str, tag: str) -> StorageObject:
        return self.storage.open_object(tag_path(template_id, tag))
