"""From what a client wrote to a published build: the diff of a frozen overlay.

Only chunks with a changed block are read; what the client did not write of them comes from
the base. A chunk that came out as zeros, or with the sha256 of one that the parent's index
names, is a reference; the rest is this build's pack. All other chunks are taken over from
the parent's index, which names every pack of its history itself: so the child's index is flat,
and a chain of commits reads as fast as one build.

The parent is the build that the overlay was committed as before, else the overlay's base. If
both are gone, or a full copy is asked for, every chunk is stored: the build has no ancestors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bootstream.block.overlay import BLOCK, Frozen
from bootstream.chunks.index import MAX_PACKS, Index
from bootstream.chunks.source import Batch, Kind, split
from bootstream.errors import BootstreamError, BuildNotFound, InvalidInput
from bootstream.progress import NO_PROGRESS, Progress
from bootstream.storage.protocol import StorageProvider
from bootstream.templates.build import ROOTFS, Published
from bootstream.templates.catalogue import Catalogue
from bootstream.templates.commit_artifacts import Derivation, deriving, load
from bootstream.templates.manifest import Manifest, read_published
from bootstream.templates.names import validate_tag, validate_template_id


@dataclass(frozen=True, slots=True)
class CommitOptions:
    """What becomes of a commit. None means: as the base has it, or the measured default.

    ``template_id`` is the template of the new build. ``flat`` stores every chunk, so that the
    build has no ancestors. ``carry`` names further artifacts of the parent that are taken over:
    none by default, for a memory snapshot belongs to the disk that it was taken with. ``tags``
    are given to the build; with ``if_current`` only if they name that build (an id) now.
    """

    template_id: str | None = None
    build_id: str | None = None
    artifact: str = ROOTFS
    flat: bool = False
    carry: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    if_current: str | None = None
    level: int | None = None
    threads: int | None = None


@dataclass(frozen=True, slots=True)
class Commit:
    """A commit that was published.

    ``bytes_changed`` is what was written since the parent, in whole blocks. ``tag_error`` is
    why a tag was not given to the build; the build is published all the same.
    """

    published: Published
    parent: str | None
    bytes_changed: int
    tag_error: BootstreamError | None = None


class Changes:
    """A frozen overlay as the source of an artifact.

    Args:
        frozen: what is committed.
        chunk_size: of the artifact, in bytes.
        everything: read all of it, not what changed alone.
    """

    def __init__(self, frozen: Frozen, chunk_size: int, *, everything: bool) -> None:
        self.size = frozen.size
        self._frozen = frozen
        self._chunk_size = chunk_size
        self._runs = [(0, self.size)] if everything else list(self._changed_runs())
        self.work = sum(end - start for start, end in self._runs)

    def _changed_runs(self) -> Iterator[tuple[int, int]]:
        """Yield runs of changed chunks, as bytes from and to."""
        changed = self._frozen.changed
        step = self._chunk_size // BLOCK
        stripped = changed.translate(_FLAGS)
        first = stripped.find(1)
        while first >= 0:
            begin = first // step
            end = begin + 1
            while stripped.find(1, end * step, (end + 1) * step) >= 0:
                end += 1
            yield begin * self._chunk_size, min(end * self._chunk_size, self.size)
            first = stripped.find(1, end * step)

    def batches(self, chunk_size: int) -> Iterator[Batch]:
        """Yield all of it in order: as in the parent, known zeros, or to be read."""
        at = 0
        for start, end in self._runs:
            yield from split(at, start, chunk_size, Kind.SAME, counts=False)
            yield from self._read(start, end, chunk_size)
            at = end
        yield from split(at, self.size, chunk_size, Kind.SAME, counts=False)

    def _read(self, start: int, end: int, chunk_size: int) -> Iterator[Batch]:
        """Yield a run of chunks; whole ones that are zeros by the maps are not read."""
        at = offset = start
        for extent in self._frozen.extents(start, end - start):
            stop = offset + extent.length
            if extent.zero:
                first = -(-offset // chunk_size) * chunk_size
                last = stop if stop == self.size else stop // chunk_size * chunk_size
                if first < last:
                    yield from split(at, first, chunk_size, Kind.DATA)
                    yield from split(first, last, chunk_size, Kind.HOLE)
                    at = last
            offset = stop
        yield from split(at, end, chunk_size, Kind.DATA)

    def read(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer``; what nobody wrote comes from the base. Thread safe."""
        self._frozen.read_into(buffer, offset)

    def check_unchanged(self) -> None:
        """A frozen layer does not change."""


_FLAGS = bytes([0]) + bytes([1]) * 255


def commit(
    storage: StorageProvider,
    frozen: Frozen,
    base: Manifest,
    *,
    node_id: str,
    scratch: Path,
    options: CommitOptions | None = None,
    progress: Progress = NO_PROGRESS,
) -> Commit:
    """Publish what ``frozen`` holds as a new build.

    Args:
        storage: the store that the base is in.
        frozen: the overlay; its block of ``freeze`` lasts until this returns.
        base: the build that the overlay lies on.
        node_id: this host's name.
        scratch: a folder for what ``carry`` names.
        options: what becomes of it.
        progress: hears of one phase, the artifact's, in bytes of changed chunks.

    Raises:
        BuildNotFound: neither the base nor a commit since is published any more.
        InvalidInput: the build has no such artifact.
        AlreadyExists, Conflict: as every build.
        Unavailable, Corrupt, PermissionDenied, StorageFull: of the store or the disk. Then
            nothing is published, and the overlay holds all of it still.
    """
    options = options or CommitOptions()
    if options.template_id is not None:
        validate_template_id(options.template_id)
    for tag in options.tags:
        validate_tag(tag)
    parent = base if options.flat else _find_parent(storage, frozen, base, options.artifact)
    with deriving(
        storage,
        parent,
        node_id=node_id,
        scratch=scratch,
        template_id=options.template_id or base.template_id,
        build_id=options.build_id,
        level=options.level,
        threads=options.threads,
        progress=progress,
    ) as derivation:
        if options.flat:
            _write_flat(derivation, frozen, options)
            published = derivation.publish(parent=None)
        else:
            published = _write_changes(derivation, frozen, options)
    entry = published.manifest.artifact(options.artifact)
    try:
        frozen.committed(published.manifest.build_id, entry.index_sha256)
    except BootstreamError as error:  # the next commit compares with an older build, that is all
        progress.log(f"the overlay could not note what it was committed as: {error}")
    tag_error = set_tags(storage, published.manifest, options.tags, options.if_current)
    return Commit(published, published.manifest.parent, frozen.bytes_changed, tag_error)


def set_tags(
    storage: StorageProvider, manifest: Manifest, tags: Iterable[str], if_current: str | None
) -> BootstreamError | None:
    """Give tags to a build that was published; return why one could not be given.

    The build is there, so this is not raised: its id is what the caller must get to know.
    """
    catalogue = Catalogue(storage)
    failed: BootstreamError | None = None
    for tag in tags:
        try:
            catalogue.set_tag(manifest.template_id, tag, manifest.build_id, if_current=if_current)
        except BootstreamError as error:
            failed = failed or error
    return failed


def _write_changes(derivation: Derivation, frozen: Frozen, options: CommitOptions) -> Published:
    parent = derivation.origin
    indexes = {
        artifact: load(derivation.storage, parent, artifact)
        for artifact in dict.fromkeys((options.artifact, *options.carry))
    }
    index = indexes[options.artifact]
    _check_size(index, frozen)
    derivation.hold(indexes)
    full = len(index.packs) >= MAX_PACKS
    source = Changes(frozen, index.chunk_size, everything=full)
    derivation.write(
        options.artifact,
        source,
        parent=None if full else index,
        chunk_size=index.chunk_size,
    )
    for artifact in options.carry:
        if artifact != options.artifact:
            derivation.copy(artifact, indexes[artifact], flat=False)
    return derivation.publish(parent=parent.build_id)


def _write_flat(derivation: Derivation, frozen: Frozen, options: CommitOptions) -> None:
    chunk_size = derivation.origin.artifact(options.artifact).chunk_size
    source = Changes(frozen, chunk_size, everything=True)
    derivation.write(options.artifact, source, parent=None, chunk_size=chunk_size)
    for artifact in options.carry:
        if artifact != options.artifact:
            index = load(derivation.storage, derivation.origin, artifact)
            derivation.copy(artifact, index, flat=True)


def _check_size(index: Index, frozen: Frozen) -> None:
    if index.size != frozen.size:
        raise InvalidInput(
            f"the overlay has {frozen.size} bytes, its parent {index.size}",
            operation="commit",
            object=index.name,
            remedy="name the build that the overlay was made for",
        )


def _find_parent(
    storage: StorageProvider, frozen: Frozen, base: Manifest, artifact: str
) -> Manifest:
    """Return the newest published build that the overlay is known to be equal to in part."""
    if frozen.parent is not None:
        try:
            manifest = read_published(storage, frozen.parent.build_id)[0]
        except BuildNotFound:
            pass
        else:
            entry = manifest.artifacts.get(artifact)
            if entry is not None and entry.index_sha256 == frozen.parent.index_sha256:
                return manifest
        frozen.since_base()
    try:
        return read_published(storage, base.build_id)[0]
    except BuildNotFound as error:
        raise BuildNotFound(
            "the build that the overlay lies on was deleted",
            operation="commit",
            object=base.build_id,
            remedy="commit with --flat, which stores every chunk and needs no parent",
        ) from error


def find_base(storage: StorageProvider, index_sha256: str, artifact: str = ROOTFS) -> Manifest:
    """Return the published build whose artifact has this index; the oldest of several.

    Raises:
        BuildNotFound: there is none.
    """
    for build in Catalogue(storage).builds():
        entry = build.manifest.artifacts.get(artifact)
        if entry is not None and entry.index_sha256 == index_sha256:
            return build.manifest
    raise BuildNotFound(
        "no build of this store is the overlay's base",
        operation="commit",
        object=f"index sha256:{index_sha256}",
        remedy="name the store that it was served from with --store",
    )
