"""What an image is copied from: a registry, an OCI layout, an archive.

Blobs are streamed from where they are: those of a registry go through memory only.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from bootstream.errors import BootstreamError, Corrupt, InvalidInput
from bootstream.images.archive import open_archive, select_saved
from bootstream.images.choice import root_of
from bootstream.images.compression import RawReader
from bootstream.images.download import RemoteReader, blob_name, read_manifest
from bootstream.images.layout import select_roots
from bootstream.images.local import FileTree, Folder
from bootstream.images.manifest import MAX_MANIFEST, Descriptor
from bootstream.images.reference import (
    DockerArchiveReference,
    LayoutReference,
    Reference,
    RegistryReference,
    parse_reference,
)
from bootstream.images.retry import Retry
from bootstream.proxies import NO_PROXIES, Proxies

if TYPE_CHECKING:
    from bootstream.images.client import RegistryClient
    from bootstream.images.credentials import BearerSource, CredentialSource


class StreamSource(Protocol):
    """Where blobs are read from, any part of them, several at once."""

    def read_document(self, descriptor: Descriptor) -> bytes:
        """See ``BlobSource``."""
        ...

    def open_at(
        self, descriptor: Descriptor, offset: int, stop: threading.Event | None = None
    ) -> RawReader:
        """Open a blob at an offset, for one thread; its bytes are not checked.

        Raises:
            ImageNotFound: the source has no such blob; also from the first read.
        """
        ...


@dataclass(frozen=True, slots=True)
class TransferSource:
    """A document that was read by its name, and where everything below it comes from.

    ``name`` is the reference in full, ``root`` describes the document, ``data`` is it.
    ``client`` is set where the source is a registry.
    """

    name: str
    root: Descriptor
    data: bytes
    blobs: StreamSource
    client: RegistryClient | None = None


class RegistrySource:
    """The ``StreamSource`` of a repository; nothing is kept on disk."""

    def __init__(self, client: RegistryClient, *, retry: Retry | None = None) -> None:
        self._client = client
        self._retry = retry or Retry()

    def read_document(self, descriptor: Descriptor) -> bytes:
        """See ``BlobSource``."""
        name = blob_name(self._client, descriptor)
        if descriptor.size > MAX_MANIFEST:
            raise Corrupt(
                f"it has {descriptor.size} bytes where at most {MAX_MANIFEST} are possible",
                operation="read",
                object=name,
            )
        data, _ = self._retry.run(
            lambda: read_manifest(
                self._client, descriptor.digest, name=name, media_type=descriptor.media_type
            ),
            time.sleep,
        )
        return data

    def open_at(
        self, descriptor: Descriptor, offset: int, stop: threading.Event | None = None
    ) -> RawReader:
        """See ``StreamSource``."""
        return RemoteReader(self._client, descriptor, offset=offset, retry=self._retry, stop=stop)


def registry_source(
    client: RegistryClient, version: str, *, retry: Retry | None = None
) -> TransferSource:
    """Return what a tag or digest names in the client's repository.

    ``retry``: how trouble is tried again, also while blobs are read.

    Raises:
        ImageNotFound: there is no such repository, tag or digest.
        PermissionDenied, Throttled, Unavailable, InvalidInput, Corrupt: as the registry answers.
    """
    at = "@" if ":" in version else ":"
    name = f"{client.name}{at}{version}"
    data, media_type = (retry or Retry()).run(
        lambda: read_manifest(client, version, name=name), time.sleep
    )
    root = root_of(data, media_type, digest=version if at == "@" else None)
    return TransferSource(name, root, data, RegistrySource(client, retry=retry), client)


def open_source(
    reference: str | Reference,
    *,
    scratch: Callable[[], Path],
    credentials: CredentialSource | BearerSource,
    plain_http: bool = False,
    ca_file: str | None = None,
    proxies: Proxies = NO_PROXIES,
) -> TransferSource:
    """Return what a reference of any kind names, to be copied; its document is read now.

    Args:
        reference: see ``bootstream.images.reference``.
        scratch: returns a folder with room for the decoded archive, where one is
            compressed; ``BlobCache.scratch`` does.
        credentials: what to sign in with, for a registry.
        plain_http: speak http to the registry.
        ca_file: certificates (PEM) to trust for the registry beside the system's.
        proxies: which requests go through which proxy.

    Raises:
        ImageNotFound: there is no such image.
        InvalidInput: the reference cannot be understood, or fits several images.
        PermissionDenied, Throttled, Unavailable: of the registry or the file system.
        Corrupt: something is not what its digest or format says.
    """
    parsed = parse_reference(reference) if isinstance(reference, str) else reference
    if isinstance(parsed, RegistryReference):
        # An HTTP client takes a while to load, and local images need none.
        from bootstream.images.client import RegistryClient  # noqa: PLC0415

        client = RegistryClient(
            parsed, plain_http=plain_http, ca_file=ca_file, credentials=credentials, proxies=proxies
        )
        return registry_source(client, parsed.version)
    if isinstance(parsed, DockerArchiveReference):
        saved, root, data = select_saved(parsed, scratch=scratch)
        return TransferSource(str(parsed), root, data, saved)
    tree: FileTree = Folder(parsed.path)
    if parsed.archive:
        tree = open_archive(parsed.path, scratch=scratch)
    return layout_source(tree, parsed)


def layout_source(tree: FileTree, reference: LayoutReference) -> TransferSource:
    """Return what a reference names in a layout.

    Raises:
        ImageNotFound, Corrupt: as ``open_layout``.
        InvalidInput: it names several images.
    """
    blobs, roots = select_roots(tree, reference)
    if len(roots) > 1:
        raise _several(reference, roots)
    return TransferSource(str(reference), roots[0], blobs.read_document(roots[0]), blobs)


def _several(reference: LayoutReference, roots: list[Descriptor]) -> BootstreamError:
    return InvalidInput(
        f"the layout has {len(roots)} images of this name, for several platforms, and no index",
        operation="open",
        object=str(reference),
        remedy="name one by digest: "
        + " or ".join(f"{reference}@{root.digest}" for root in roots[:4]),
    )
