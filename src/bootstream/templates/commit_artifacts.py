"""A build made from another build: what commit, flatten and compact have in common.

The new build is claimed, marked and published as every build is (``publish``). Its artifacts
are written here one by one: from a source of the caller's, as the same bytes as before, or as
a copy that refers to nobody.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import bootstream
from bootstream.chunks.export import export_artifact
from bootstream.chunks.fetch import ChunkReader
from bootstream.chunks.index import MAX_PACKS, Index
from bootstream.chunks.reader import load_index
from bootstream.chunks.source import Batch, Kind, Source, split
from bootstream.chunks.writer import ArtifactSummary, write_artifact, write_source
from bootstream.progress import NO_PROGRESS, Progress
from bootstream.storage.protocol import StorageProvider
from bootstream.templates.build import Published, describe
from bootstream.templates.manifest import Artifact, Manifest
from bootstream.templates.names import new_build_id
from bootstream.templates.publish import BuildSession, Guarded
from bootstream.templates.scratch import Scratch
from bootstream.templates.traces import carry_traces


def load(storage: StorageProvider, manifest: Manifest, artifact: str) -> Index:
    """Load the index that the manifest vouches for. Raises as ``load_index``."""
    entry = manifest.artifact(artifact)
    return load_index(
        storage,
        manifest.build_id,
        artifact,
        sha256=entry.index_sha256,
        size=entry.index_size,
    )


class SameSource:
    """An artifact as the parent has it."""

    work = 0

    def __init__(self, size: int) -> None:
        self.size = size

    def batches(self, chunk_size: int) -> Iterator[Batch]:
        """Yield that everything is the same."""
        return split(0, self.size, chunk_size, Kind.SAME, counts=False)

    def read(self, buffer: memoryview, offset: int) -> None:
        """Nothing of it is read."""
        raise AssertionError(f"{len(buffer)} bytes at {offset} were to be read")

    def check_unchanged(self) -> None:
        """A published build does not change."""


class StoredSource:
    """An artifact out of the store: every chunk fetched and checked, some kept as they are.

    Args:
        storage: where the packs are.
        index: of the artifact.
        rewrite: entries whose chunks are read; None reads all.
    """

    def __init__(
        self, storage: StorageProvider, index: Index, rewrite: Container[int] | None = None
    ) -> None:
        self.size = index.size
        self._index = index
        self._reader = ChunkReader(storage, index)
        self._rewrite = rewrite
        self._batches = list(self._make_batches())
        self.work = sum(batch.work for batch in self._batches)

    def batches(self, chunk_size: int) -> Iterator[Batch]:
        """Yield the artifact in order; ``chunk_size`` is the index's own."""
        del chunk_size
        return iter(self._batches)

    def _make_batches(self) -> Iterator[Batch]:
        index = self._index
        chunk_size = index.chunk_size
        begin = position = 0
        kind: Kind | None = None
        while position < index.chunk_count:
            count, zero = index.run(position, index.chunk_count - position)
            if zero:
                pieces = [(position, count, Kind.HOLE)]
            elif self._rewrite is None:
                pieces = [(position, count, Kind.DATA)]
            else:
                pieces = [
                    (chunk, 1, self._kind(index.positions[chunk] - 1))
                    for chunk in range(position, position + count)
                ]
            for first, _, found in pieces:
                if found is not kind:
                    yield from self._cut(begin, first * chunk_size, kind)
                    begin, kind = first * chunk_size, found
            position += count
        yield from self._cut(begin, index.size, kind)

    def _kind(self, entry: int) -> Kind:
        assert self._rewrite is not None
        return Kind.DATA if entry in self._rewrite else Kind.SAME

    def _cut(self, start: int, end: int, kind: Kind | None) -> Iterator[Batch]:
        if kind is not None:
            counts = kind is Kind.DATA
            yield from split(start, end, self._index.chunk_size, kind, counts=counts)

    def read(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer`` with whole chunks. Raises Corrupt for a damaged one."""
        index = self._index
        first = offset // index.chunk_size
        count = -(-len(buffer) // index.chunk_size)

        def deliver(chunk: int, data: bytes | memoryview) -> None:
            at = chunk * index.chunk_size - offset
            buffer[at : at + len(data)] = data

        for chunk in range(first, first + count):
            if index.is_zero(chunk):
                at = chunk * index.chunk_size - offset
                length = index.chunk_length(chunk)
                buffer[at : at + length] = bytes(length)
        self._reader.fetch(
            [c for c in range(first, first + count) if not index.is_zero(c)], deliver
        )

    def check_unchanged(self) -> None:
        """A published build does not change."""


class Derivation:
    """A build in progress that is made from ``origin``; see ``deriving``."""

    def __init__(
        self,
        session: BuildSession,
        origin: Manifest,
        *,
        level: int | None,
        threads: int | None,
        progress: Progress,
        scratch: Path,
    ) -> None:
        self.session = session
        self.origin = origin
        self._level = level
        self._threads = threads
        self._progress = Guarded(progress, session)
        self._scratch = scratch
        self._summaries: dict[str, ArtifactSummary] = {}
        self._entries: dict[str, Artifact] = {}
        self._packs: set[str] = set()

    @property
    def storage(self) -> StorageProvider:
        """The store that the build is made in."""
        return self.session.storage

    def hold(self, indexes: Mapping[str, Index]) -> None:
        """Mark the origin and all that its indexes read from. Raises BuildNotFound."""
        packs = {pack.build_id for index in indexes.values() for pack in index.packs}
        self.session.hold_parent(self.origin.build_id, packs)

    def write(
        self,
        artifact: str,
        source: Source,
        *,
        parent: Index | None,
        chunk_size: int | None = None,
        rewrite: Container[int] = (),
    ) -> ArtifactSummary:
        """Write one artifact from ``source``; what ``parent`` has is referred to."""
        summary = write_source(
            source,
            build_id=self.session.build_id,
            artifact=artifact,
            storage=self.storage,
            parent=parent,
            chunk_size=chunk_size,
            rewrite=rewrite,
            level=self._level,
            threads=self._threads,
            progress=self._progress,
        )
        return self._note(artifact, summary)

    def copy(self, artifact: str, index: Index, *, flat: bool) -> None:
        """Take an artifact of the origin over, by reference or, with ``flat``, by its bytes."""
        if index.raw:
            self._copy_raw(artifact, index)
        elif flat or len(index.packs) >= MAX_PACKS:
            source = StoredSource(self.storage, index)
            self.write(artifact, source, parent=None, chunk_size=index.chunk_size)
        else:
            self.write(artifact, SameSource(index.size), parent=index)

    def _copy_raw(self, artifact: str, index: Index) -> None:
        """Copy an object of the raw form, which refers to nobody by its nature."""
        with Scratch(self._scratch) as scratch:
            path = scratch.path / artifact
            export_artifact(self.storage, index, artifact, path, progress=self._progress)
            summary = write_artifact(
                path,
                build_id=self.session.build_id,
                artifact=artifact,
                storage=self.storage,
                chunk_size=index.chunk_size,
                threads=self._threads,
                progress=self._progress,
                form="raw",
            )
        self._note(artifact, summary, sha256=self.origin.artifact(artifact).sha256)

    def _note(
        self, artifact: str, summary: ArtifactSummary, sha256: str | None = None
    ) -> ArtifactSummary:
        written = load_index(
            self.storage,
            self.session.build_id,
            artifact,
            sha256=summary.index_sha256,
            size=summary.index_size,
        )
        self._packs.update(pack.build_id for pack in written.packs)
        self._summaries[artifact] = summary
        self._entries[artifact] = describe(summary, sha256=sha256)
        return summary

    def publish(self, *, parent: str | None) -> Published:
        """Publish what was written, with the origin's traces. Raises Conflict if collected."""
        manifest = self.session.publish(
            Manifest(
                build_id=self.session.build_id,
                template_id=self.session.template_id,
                state="published",
                created=self.storage.details().now,
                artifacts=self._entries,
                parent=parent,
                depends_on=tuple(sorted(self._packs - {self.session.build_id})),
                image=self.origin.image,
                options=self.origin.options,
                tool=f"bootstream {bootstream.__version__}",
            )
        )
        carry_traces(self.storage, self.origin, manifest)
        return Published(manifest, self._summaries)


@contextmanager
def deriving(
    storage: StorageProvider,
    origin: Manifest,
    *,
    node_id: str,
    scratch: Path,
    template_id: str | None = None,
    build_id: str | None = None,
    level: int | None = None,
    threads: int | None = None,
    progress: Progress = NO_PROGRESS,
) -> Iterator[Derivation]:
    """Claim a build that is made from ``origin``; what is not published leaves nothing.

    Args:
        storage: the store; origin is in it.
        origin: the build that it is made from.
        node_id: this host's name.
        scratch: a folder with room for what has to be on disk meanwhile.
        template_id: whose build it is; None takes the origin's.
        build_id: one that was never used; None makes one.
        level, threads, progress: as ``write_source`` has them.

    Raises:
        AlreadyExists: the build id is taken.
    """
    session = BuildSession(
        storage, template_id or origin.template_id, build_id or new_build_id(), node_id=node_id
    )
    with session:
        yield Derivation(
            session, origin, level=level, threads=threads, progress=progress, scratch=scratch
        )
