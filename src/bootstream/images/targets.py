"""Where images are copied to: the protocol, and a registry. A layout is in ``layoutwriter``."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Protocol

from bootstream.errors import AlreadyExists, Corrupt
from bootstream.images.client import RegistryClient
from bootstream.images.manifest import Descriptor
from bootstream.images.passing import PassingBlob
from bootstream.images.retry import Retry
from bootstream.images.scopes import PUSH, repository_scope
from bootstream.images.tags import head_manifest, version_name
from bootstream.images.transport import COMMIT_SECONDS
from bootstream.images.upload import BlobUpload

_MOUNTS = 3


class Target(Protocol):
    """A place for blobs and documents. Safe to use from several threads."""

    @property
    def name(self) -> str:
        """What it is, for people."""
        ...

    @property
    def client(self) -> RegistryClient | None:
        """Whom it talks to, if it is a registry."""
        ...

    def put_blob(self, blob: PassingBlob, neighbours: Sequence[str]) -> None:
        """Store a blob unless it is there.

        ``neighbours``: repositories of the same registry that may have it. What is wrong by
        its digest is never stored. Raises what ``BlobUpload.run`` does, or StorageFull.
        """
        ...

    def put_document(self, descriptor: Descriptor, data: bytes) -> None:
        """Store a manifest or index by its digest; all that it needs is there."""
        ...

    def put_root(self, descriptor: Descriptor, data: bytes) -> None:
        """Store a document, and give it the target's name: from now on it is seen.

        Raises:
            AlreadyExists: the name is taken for good by another document.
        """
        ...


class RegistryTarget:
    """A repository, and a tag in it.

    Args:
        client: names the repository.
        tag: what the image is called; None: it has its digest only.
        mount_from: repositories of the registry that may have blobs of the image already.
        chunk: bytes of one upload request at most; None: a blob is sent in one.
        retry: how trouble is tried again.
    """

    def __init__(
        self,
        client: RegistryClient,
        tag: str | None = None,
        *,
        mount_from: Sequence[str] = (),
        chunk: int | None = None,
        retry: Retry | None = None,
    ) -> None:
        self.client = client
        self._tag = tag
        self._mount_from = tuple(mount_from)
        self._chunk = chunk
        self._retry = retry or Retry()
        self._lock = threading.Lock()
        self._refused: set[str] = set()

    @property
    def name(self) -> str:
        """See ``Target``."""
        return f"{self.client.name}:{self._tag}" if self._tag else self.client.name

    def put_blob(self, blob: PassingBlob, neighbours: Sequence[str]) -> None:
        """See ``Target``."""
        with self._lock:
            candidates = [
                repository
                for repository in dict.fromkeys((*self._mount_from, *neighbours))
                if repository not in self._refused and repository != self.client.repository
            ]
        upload = BlobUpload(
            self.client,
            blob,
            chunk=self._chunk,
            mount_from=candidates[:_MOUNTS],
            retry=self._retry,
        )
        if self._retry.run(upload.exists, lambda seconds: _pause(blob, seconds)):
            blob.skip()
            return
        try:
            upload.run()
        finally:
            with self._lock:
                self._refused |= upload.refused_mounts

    def put_document(self, descriptor: Descriptor, data: bytes) -> None:
        """See ``Target``."""
        if head_manifest(self.client, descriptor.digest, retry=self._retry) is None:
            self._put(descriptor, data, descriptor.digest)

    def put_root(self, descriptor: Descriptor, data: bytes) -> None:
        """See ``Target``."""
        if self._tag is None:
            self.put_document(descriptor, data)
            return
        # An immutable tag may not even be set to what it is.
        if not self._is_tagged(descriptor):
            try:
                self._put(descriptor, data, self._tag)
            except AlreadyExists:
                if not self._is_tagged(descriptor):
                    raise

    def _is_tagged(self, descriptor: Descriptor) -> bool:
        assert self._tag is not None
        there = head_manifest(self.client, self._tag, retry=self._retry)
        return there is not None and there.digest == descriptor.digest

    def _put(self, descriptor: Descriptor, data: bytes, version: str) -> None:
        name = version_name(self.client, version)

        def send() -> str | None:
            with self.client.request(
                "PUT",
                f"manifests/{version}",
                operation="push manifest",
                object=name,
                headers={"Content-Type": descriptor.media_type},
                body=data,
                scopes=(repository_scope(self.client.repository, PUSH),),
                tagging=version == self._tag,
                silence=COMMIT_SECONDS,
            ) as answer:
                answer.drain()
                return answer.header("Docker-Content-Digest")

        said = self._retry.run(send, time.sleep)
        if said is not None and said != descriptor.digest and said[:7] == descriptor.digest[:7]:
            raise Corrupt(
                f"the registry calls it {said}, not {descriptor.digest}",
                operation="push manifest",
                object=name,
            )


def _pause(blob: PassingBlob, seconds: float) -> None:
    blob.stop.wait(seconds)
    blob.check()
