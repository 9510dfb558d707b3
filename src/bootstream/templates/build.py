"""From a container image, or from files, to a published build.

Phases, as ``Progress`` hears of them: ``pull`` (layers into the blob cache),
``rootfs`` (layers into ext4), then one per artifact while it is cut, compressed
and uploaded in one go, and ``publish``. Each may be stopped at any moment; what
that means for the store is ``bootstream.templates.publish``'s business.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import bootstream
from bootstream.chunks.index import Index
from bootstream.chunks.reader import load_index
from bootstream.chunks.writer import ArtifactSummary, write_artifact
from bootstream.errors import BuildNotFound, InvalidInput, TemplateNotFound
from bootstream.images.image import Image
from bootstream.progress import NO_PROGRESS, Progress
from bootstream.rootfs import Ext4Options, build_ext4
from bootstream.storage.protocol import StorageProvider
from bootstream.templates.catalogue import Catalogue
from bootstream.templates.manifest import Artifact, Manifest
from bootstream.templates.names import TemplateName, new_build_id
from bootstream.templates.publish import BuildSession, Guarded
from bootstream.templates.scratch import Scratch

ROOTFS = "rootfs.ext4"
RAW_ARTIFACTS = frozenset({"snapfile"})
"""Small ones that are always read whole: kept as they are, with their digest."""


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """How a build is made. None means: as the parent has it, or the measured default.

    ``parent`` is a build to share chunks with: a reference, ``"auto"`` for the build
    that the tag, or else ``latest``, names now, or ``"none"``.
    """

    rootfs: Ext4Options = field(default_factory=Ext4Options)
    parent: str = "auto"
    chunk_size: int | None = None
    level: int | None = None
    threads: int | None = None
    form: Literal["chunked", "raw"] = "chunked"


@dataclass(frozen=True, slots=True)
class Published:
    """A build that was published, and what became of its chunks."""

    manifest: Manifest
    summaries: Mapping[str, ArtifactSummary]


class TemplateBuilder:
    """Makes builds in one store.

    Args:
        storage: where they go.
        scratch: a folder with room for the image while it is made.
        node_id: this host's name.
    """

    def __init__(self, storage: StorageProvider, *, scratch: Path, node_id: str) -> None:
        self.storage = storage
        self.catalogue = Catalogue(storage)
        self._scratch = scratch
        self._node_id = node_id

    def from_image(
        self,
        image: Image,
        name: TemplateName,
        *,
        build_id: str | None = None,
        options: BuildOptions | None = None,
        progress: Progress = NO_PROGRESS,
        claim: str | None = None,
    ) -> Published:
        """Build a root file system from ``image`` and publish it as a build of ``name``.

        With ``claim``, an earlier attempt with the same one is taken up; see ``BuildSession``.

        Raises:
            AlreadyExists: the build id is taken.
            NotFound, Corrupt, Unavailable, InvalidInput: of the image, its layers, the parent.
            StorageFull: the scratch folder or the store has no room.
        """
        options = options or BuildOptions()
        with (
            self._session(name, build_id, claim) as session,
            Scratch(self._scratch) as scratch,
        ):
            parent = self._hold_parent(session, name, options)
            image.fetch(Guarded(progress, session))
            destination = scratch.path / ROOTFS
            build_ext4(
                [layer.open for layer in image.layers],
                destination,
                options.rootfs,
                Guarded(progress, session),
                seed="\n".join(layer.diff_id for layer in image.layers),
            )
            return self._publish(
                session,
                name,
                {ROOTFS: destination},
                parent,
                options,
                progress,
                image=_describe(image),
            )

    def from_files(
        self,
        files: Mapping[str, Path],
        name: TemplateName,
        *,
        build_id: str | None = None,
        options: BuildOptions | None = None,
        progress: Progress = NO_PROGRESS,
    ) -> Published:
        """Publish files that are there already, by artifact name, as a build of ``name``.

        Raises:
            InvalidInput: a file is missing or is not a regular file.
        """
        options = options or BuildOptions()
        for artifact, path in files.items():
            if not path.is_file():
                raise InvalidInput(
                    "there is no such regular file",
                    operation=f"import {artifact}",
                    object=str(path),
                )
        with self._session(name, build_id) as session:
            parent = self._hold_parent(session, name, options)
            return self._publish(session, name, files, parent, options, progress, image=None)

    def _session(
        self, name: TemplateName, build_id: str | None, claim: str | None = None
    ) -> BuildSession:
        return BuildSession(
            self.storage,
            name.template_id,
            build_id or new_build_id(),
            node_id=self._node_id,
            claim=claim,
        )

    # -- the parent -----------------------------------------------------------------------

    def _hold_parent(
        self, session: BuildSession, name: TemplateName, options: BuildOptions
    ) -> _Parent | None:
        manifest = self._find_parent(name, options)
        if manifest is None:
            return None
        indexes = {
            artifact: load_index(
                self.storage,
                manifest.build_id,
                artifact,
                sha256=entry.index_sha256,
                size=entry.index_size,
            )
            for artifact, entry in manifest.artifacts.items()
        }
        packs = {pack.build_id for index in indexes.values() for pack in index.packs}
        session.hold_parent(manifest.build_id, packs)
        return _Parent(manifest, indexes)

    def _find_parent(self, name: TemplateName, options: BuildOptions) -> Manifest | None:
        if options.parent == "none" or options.form == "raw":
            return None
        if options.parent != "auto":
            return self.catalogue.resolve(options.parent)
        for candidate in (f"{name.template_id}:{name.tag_or_default}", name.template_id):
            try:
                manifest = self.catalogue.resolve(candidate)
            except (TemplateNotFound, BuildNotFound):
                continue
            return self._usable_parent(manifest, options)
        builds = self.catalogue.builds(name.template_id)
        return self._usable_parent(builds[-1].manifest, options) if builds else None

    @staticmethod
    def _usable_parent(manifest: Manifest, options: BuildOptions) -> Manifest | None:
        """A child inherits its parent's chunk size, so another one asked for means no parent."""
        sizes = {a.chunk_size for a in manifest.artifacts.values() if a.form == "chunked"}
        wrong = options.chunk_size is not None and sizes - {options.chunk_size}
        return None if wrong else manifest

    # -- artifacts and manifest -----------------------------------------------------------

    def _publish(
        self,
        session: BuildSession,
        name: TemplateName,
        files: Mapping[str, Path],
        parent: _Parent | None,
        options: BuildOptions,
        progress: Progress,
        *,
        image: Mapping[str, Any] | None,
    ) -> Published:
        summaries: dict[str, ArtifactSummary] = {}
        entries: dict[str, Artifact] = {}
        packs: set[str] = set()
        for artifact, path in files.items():
            session.check()
            raw = artifact in RAW_ARTIFACTS or options.form == "raw"
            index = parent.indexes.get(artifact) if parent is not None and not raw else None
            summary = write_artifact(
                path,
                build_id=session.build_id,
                artifact=artifact,
                storage=self.storage,
                parent=index,
                chunk_size=options.chunk_size if index is None else index.chunk_size,
                level=options.level,
                threads=options.threads,
                progress=Guarded(progress, session),
                form="raw" if raw else "chunked",
            )
            written = load_index(
                self.storage,
                session.build_id,
                artifact,
                sha256=summary.index_sha256,
                size=summary.index_size,
            )
            packs.update(pack.build_id for pack in written.packs)
            summaries[artifact] = summary
            digest = _sha256(path) if artifact in RAW_ARTIFACTS else None
            entries[artifact] = describe(summary, sha256=digest)
        manifest = session.publish(
            Manifest(
                build_id=session.build_id,
                template_id=name.template_id,
                state="published",
                created=self.storage.details().now,
                artifacts=entries,
                parent=parent.manifest.build_id if parent else None,
                depends_on=tuple(sorted(packs - {session.build_id})),
                image=image,
                options=_describe_options(options) if image else {},
                tool=f"bootstream {bootstream.__version__}",
            )
        )
        self.catalogue.set_tag(name.template_id, name.tag_or_default, manifest.build_id)
        return Published(manifest, summaries)


@dataclass(frozen=True, slots=True)
class _Parent:
    manifest: Manifest
    indexes: Mapping[str, Index]


def describe(summary: ArtifactSummary, *, sha256: str | None = None) -> Artifact:
    """Return the manifest's entry of an artifact that was written."""
    return Artifact(
        form=summary.form,
        size=summary.size,
        chunk_size=summary.chunk_size,
        index_size=summary.index_size,
        index_sha256=summary.index_sha256,
        stored_size=summary.stored_bytes,
        sha256=sha256,
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _describe(image: Image) -> dict[str, Any]:
    """What the manifest keeps of the image: where it came from, and how to start it."""
    config = image.config
    return {
        "reference": image.reference,
        "digest": image.digest,
        "platform": str(image.platform),
        "layers": [layer.diff_id for layer in image.layers],
        "env": list(config.env),
        "entrypoint": list(config.entrypoint),
        "cmd": list(config.cmd),
        "user": config.user,
        "working_dir": config.working_dir,
        "labels": dict(config.labels),
    }


def _describe_options(options: BuildOptions) -> dict[str, Any]:
    """The root file system's options, those that are plain values."""
    return {
        key: value
        for key, value in asdict(options.rootfs).items()
        if value is None or isinstance(value, (str, int, float, bool))
    }
