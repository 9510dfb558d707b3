"""Images from anywhere to a registry or a layout, byte for byte.

Everything below the document that was named is copied: all platforms of an index, nested
indexes, attestations, media types that nobody here knows. Blobs go first, several at a
time, then documents, those that are needed before those that need them, and the name last:
whoever ends in between leaves nothing that can be seen.

What is in memory is bounded: a piece a blob, and the documents.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bootstream.errors import Corrupt, ImageNotFound
from bootstream.images.choice import MAX_DEPTH, choose
from bootstream.images.compression import RawReader
from bootstream.images.digest import verify
from bootstream.images.layoutwriter import LayoutTarget
from bootstream.images.manifest import Descriptor, References, parse_references
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
from bootstream.progress import NO_PROGRESS, Progress

__all__ = [
    "LayoutTarget",
    "Plan",
    "RegistryTarget",
    "Target",
    "TransferSource",
    "copy",
    "layout_source",
    "make_plan",
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
        progress: told of bytes that went by or are there; may raise Cancelled.
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
            source, descriptor, target, neighbours, lambda size: progress.advance(name, size), stop
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
    root, data = source.root, source.data
    verify(data, root.digest, what=source.name)
    if platform is not None:
        image = choose(
            _Chooser(source),
            [root],
            reference=source.name,
            platform=platform,
            raw_root=data,
        )
        root = Descriptor("", image.digest, len(image.raw_manifest))
        data = image.raw_manifest
    walk = _Walk(source)
    found = walk.references(root, data)
    walk.add(found, depth=1)
    return Plan(
        Descriptor(found.media_type, root.digest, len(data)),
        data,
        tuple(walk.documents.values()),
        tuple(walk.blobs.values()),
    )


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
    """A ``BlobSource`` for choosing: documents and configurations are read, layers are not."""

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
        blob = PassingBlob(
            self._source.blobs, descriptor, report=lambda _: None, stop=threading.Event()
        )
        try:
            return b"".join(blob.pieces(0, descriptor.size))
        finally:
            blob.close()

    def open(self, descriptor: Descriptor) -> RawReader:
        return self._source.blobs.open_at(descriptor, 0)

    def fetch(self, descriptors: Sequence[Descriptor], progress: Progress) -> None:
        raise NotImplementedError

    def damaged(self, descriptor: Descriptor) -> str:
        del descriptor
        return f"copy {self._source.name} anew"
