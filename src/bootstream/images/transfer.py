"""Images from anywhere to a registry or a layout, byte for byte.

Everything below the document that was named is copied: all platforms of an index, nested
indexes, attestations, media types that nobody here knows. Blobs go first, several at a
time, then documents, those that are needed before those that need them, and the name last:
whoever ends in between leaves nothing that can be seen.

What is in memory is bounded: a piece a blob, and the documents.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from bootstream.errors import Corrupt, ImageNotFound
from bootstream.images.choice import MAX_DEPTH, choose
from bootstream.images.compression import RawReader
from bootstream.images.digest import verify
from bootstream.images.image import SourcedImage
from bootstream.images.layoutwriter import LayoutTarget
from bootstream.images.manifest import (
    MAX_CONFIG,
    Descriptor,
    Index,
    References,
    parse_config,
    parse_document,
    parse_references,
)
from bootstream.images.passing import PassingBlob
from bootstream.images.platform import Platform
from bootstream.images.sources import (
    TransferSource,
    layout_source,
    open_source,
    registry_source,
)
from bootstream.images.targets import RegistryTarget, Target
from bootstream.images.workers import Task, run_all
from bootstream.progress import NO_PROGRESS, DetailedProgress, Progress

__all__ = [
    "LayoutTarget",
    "Plan",
    "RegistryTarget",
    "Target",
    "TransferSource",
    "copy",
    "image_of",
    "layout_source",
    "make_plan",
    "narrowed",
    "offered",
    "open_source",
    "registry_source",
]

WORKERS = 6
MAX_DOCUMENTS = 2000
MAX_DOCUMENT_BYTES = 64 << 20
_TRIES = 2


@dataclass(frozen=True, slots=True)
class Plan:
    """What has to be copied: documents in the order in which they are written, and blobs.

    ``documents`` does not have the root.
    """

    root: Descriptor
    data: bytes
    documents: tuple[tuple[Descriptor, bytes], ...]
    blobs: tuple[Descriptor, ...]

    @property
    def size(self) -> int:
        """Bytes of all blobs."""
        return sum(blob.size for blob in self.blobs)


def copy(
    source: TransferSource,
    target: Target,
    *,
    progress: Progress = NO_PROGRESS,
    platform: Platform | None = None,
    workers: int = WORKERS,
) -> str:
    """Copy an image; return the digest of its document, which is the source's.

    Blobs that the target has are not sent; where both are one registry, they are mounted
    from repository to repository. The phase is ``pull`` into a layout, ``copy`` from one
    registry to another and ``push`` otherwise; its total is the bytes of all blobs.

    Args:
        source: see ``bootstream.images.sources``.
        target: a ``RegistryTarget`` or a ``LayoutTarget``.
        progress: told of bytes that went by or are there, and of each blob where it is a
            ``DetailedProgress``; may raise Cancelled.
        platform: copy the image for this one only; None: everything.
        workers: blobs at a time.

    Raises:
        Corrupt: something is not what its digest or format says; nothing has the name then.
        ImageNotFound: a part is missing at the source; the platform is not offered.
        AlreadyExists: the target's tag is immutable, and names something else.
        NotFound, PermissionDenied, Throttled, Unavailable, StorageFull, InvalidInput: of the
            source or the target.
        Cancelled: from ``progress``, passed on.
    """
    plan = make_plan(source, platform)
    name = "pull"
    if target.client is not None:
        name = "push" if source.client is None else "copy"
    progress.phase(name, plan.size)
    neighbours: list[str] = []
    if source.client and target.client and source.client.registry == target.client.registry:
        neighbours.append(source.client.repository)

    def task(descriptor: Descriptor) -> Task:
        return lambda stop: _pass(
            source, descriptor, target, neighbours, _Report(progress, name, descriptor), stop
        )

    # The largest first: at the end no thread is left with much while others have nothing.
    ordered = sorted(plan.blobs, key=lambda blob: -blob.size)
    run_all(
        [task(blob) for blob in ordered], workers=workers, poll=lambda: progress.advance(name, 0)
    )
    for descriptor, data in plan.documents:
        progress.advance(name, 0)
        target.put_document(descriptor, data)
    progress.advance(name, 0)
    target.put_root(plan.root, plan.data)
    progress.done(name)
    return plan.root.digest


class _Report:
    """Counts the bytes of one blob."""

    def __init__(self, progress: Progress, name: str, descriptor: Descriptor) -> None:
        self._progress = progress
        self._parts = progress if isinstance(progress, DetailedProgress) else None
        self._name = name
        self._descriptor = descriptor
        self._amount = 0

    def __call__(self, amount: int) -> None:
        self._progress.advance(self._name, amount)
        if self._parts is not None:
            self._amount += amount
            size = self._descriptor.size
            self._parts.part(self._name, self._descriptor.digest, self._amount, size)


def _pass(
    source: TransferSource,
    descriptor: Descriptor,
    target: Target,
    neighbours: Sequence[str],
    advance: Callable[[int], None],
    stop: threading.Event,
) -> None:
    """Copy one blob. Bytes that come again, since the first were wrong, count once."""
    counted = 0
    for attempt in range(_TRIES):
        seen = 0

        def report(amount: int) -> None:
            nonlocal seen, counted
            seen += amount
            if seen > counted:
                new, counted = seen - counted, seen
                advance(new)

        blob = PassingBlob(source.blobs, descriptor, report=report, stop=stop)
        try:
            if descriptor.nondistributable and blob.is_missing():
                blob.skip()
                return
            target.put_blob(blob, neighbours)
        except Corrupt as error:
            # A registry's answer may have come through something that damaged it.
            if source.client is None or attempt + 1 == _TRIES:
                error.object = f"{source.name}, blob {descriptor.digest}"
                raise
        else:
            return


# -- what there is to copy ------------------------------------------------------------------------


def make_plan(source: TransferSource, platform: Platform | None = None) -> Plan:
    """Read all documents and return what has to be copied.

    Raises:
        Corrupt: a document is damaged, or there are too many, or nested too deep.
        ImageNotFound: one is missing; or there is no image for the platform.
        PermissionDenied, Throttled, Unavailable, InvalidInput: of the source.
    """
    verify(source.data, source.root.digest, what=source.name)
    if platform is not None:
        source = narrowed(source, platform)
    root, data = source.root, source.data
    walk = _Walk(source)
    found = walk.references(root, data)
    walk.add(found, depth=1)
    return Plan(
        Descriptor(found.media_type, root.digest, len(data)),
        data,
        tuple(walk.documents.values()),
        tuple(walk.blobs.values()),
    )


def image_of(source: TransferSource, platform: Platform | None = None) -> SourcedImage:
    """Return a source's image for one platform, this host's own if None, to be looked at.

    Its layers can be opened, but not fetched.

    Raises:
        ImageNotFound: there is none for the platform; says which ones there are.
        Corrupt, InvalidInput: a document on the way is malformed or no image.
        PermissionDenied, Throttled, Unavailable: of the source.
    """
    return choose(
        _Chooser(source),
        [source.root],
        reference=source.name,
        platform=platform,
        raw_root=source.data,
    )


def offered(source: TransferSource) -> tuple[tuple[Descriptor, Platform | None], ...]:
    """Return what a source's document names: an index's entries, or the image itself.

    With each comes its platform, as the index says, or the image's configuration.

    Raises:
        Corrupt, InvalidInput: it is malformed or no image.
        PermissionDenied, Throttled, Unavailable, ImageNotFound: of the source.
    """
    name = f"{source.name}, manifest"
    document = parse_document(source.data, media_type=source.root.media_type, what=name)
    if isinstance(document, Index):
        return tuple((entry, entry.platform) for entry in document.manifests)
    data = _Chooser(source).read(document.config, MAX_CONFIG)
    found = parse_config(data, what=f"{source.name}, configuration").platform_beside(None)
    return ((source.root, found),)


def narrowed(source: TransferSource, platform: Platform) -> TransferSource:
    """Return a source of a source's image for one platform alone. Raises as ``image_of``."""
    image = image_of(source, platform)
    root = Descriptor("", image.digest, len(image.raw_manifest))
    return replace(source, root=root, data=image.raw_manifest)


@dataclass(slots=True)
class _Walk:
    source: TransferSource
    documents: dict[str, tuple[Descriptor, bytes]] = field(default_factory=dict)
    blobs: dict[str, Descriptor] = field(default_factory=dict)
    total: int = 0

    def references(self, descriptor: Descriptor, data: bytes) -> References:
        name = f"{self.source.name}, manifest {descriptor.digest}"
        return parse_references(data, media_type=descriptor.media_type, what=name)

    def add(self, found: References, depth: int) -> None:
        """Take in what a document refers to, and everything below it."""
        for blob in found.blobs:
            known = self.blobs.setdefault(blob.digest, blob)
            if known.size != blob.size:
                raise self._corrupt(f"two sizes are promised of the blob {blob.digest}")
        for descriptor in found.documents:
            if descriptor.digest in self.documents:
                continue
            if depth >= MAX_DEPTH:
                raise self._corrupt(f"indexes are nested more than {MAX_DEPTH} deep")
            self.total += descriptor.size
            if len(self.documents) >= MAX_DOCUMENTS or self.total > MAX_DOCUMENT_BYTES:
                raise self._corrupt(
                    f"it has more than {MAX_DOCUMENTS} manifests, or {MAX_DOCUMENT_BYTES} "
                    "bytes of them"
                )
            self._read(descriptor, depth)

    def _read(self, descriptor: Descriptor, depth: int) -> None:
        try:
            data = self.source.blobs.read_document(descriptor)
        except ImageNotFound:
            if "manifest" in descriptor.media_type or "index" in descriptor.media_type:
                raise
            self.blobs.setdefault(descriptor.digest, descriptor)  # an index may name any blob
            return
        if len(data) != descriptor.size:
            raise self._corrupt(
                f"the manifest {descriptor.digest} has {len(data)} bytes, not {descriptor.size} "
                "as promised"
            )
        found = self.references(descriptor, data)
        self.add(found, depth + 1)
        known = Descriptor(found.media_type, descriptor.digest, descriptor.size)
        self.documents[descriptor.digest] = known, data

    def _corrupt(self, problem: str) -> Corrupt:
        return Corrupt(problem, operation="copy", object=self.source.name)


class _Chooser:
    """A ``BlobSource`` that keeps nothing: what is read comes from the source each time."""

    def __init__(self, source: TransferSource) -> None:
        self._source = source

    def read_document(self, descriptor: Descriptor) -> bytes:
        return self._source.blobs.read_document(descriptor)

    def read(self, descriptor: Descriptor, limit: int) -> bytes:
        if descriptor.size > limit:
            raise Corrupt(
                f"it has {descriptor.size} bytes where at most {limit} are possible",
                operation="read",
                object=self._source.name,
            )
        return b"".join(self._pieces(descriptor, lambda _: None))

    def _pieces(self, descriptor: Descriptor, report: Callable[[int], None]) -> Iterator[bytes]:
        blob = PassingBlob(self._source.blobs, descriptor, report=report, stop=threading.Event())
        try:
            yield from blob.pieces(0, descriptor.size)
        finally:
            blob.close()

    def open(self, descriptor: Descriptor) -> RawReader:
        return self._source.blobs.open_at(descriptor, 0)

    def fetch(self, descriptors: Sequence[Descriptor], progress: Progress) -> None:
        """Check them, as they lie; they are in reach already."""
        for descriptor in descriptors:
            for _ in self._pieces(descriptor, lambda count: progress.advance("pull", count)):
                pass

    def damaged(self, descriptor: Descriptor) -> str:
        del descriptor
        return f"copy {self._source.name} anew"
