"""What all registries that are asked over the network do in the same way.

A provider says how images are named, which host has them and with what one signs in, makes
repositories, and takes tags away. The rest is here: reading, pushing, copying, listing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Lock
from typing import TypeVar

from bootstream.errors import (
    AlreadyExists,
    BootstreamError,
    ImageNotFound,
    InvalidInput,
    NotFound,
    PermissionDenied,
)
from bootstream.ids import validate_template_id
from bootstream.images.cache import BlobCache
from bootstream.images.choice import choose, root_of
from bootstream.images.client import RegistryClient
from bootstream.images.credentials import BearerSource, CredentialSource, NoCredentials
from bootstream.images.image import Image
from bootstream.images.platform import Platform
from bootstream.images.reference import RegistryReference
from bootstream.images.remote import RemoteSource
from bootstream.images.sources import TransferSource, open_source, registry_source
from bootstream.images.tags import head_manifest, list_repositories, list_tags
from bootstream.images.targets import RegistryTarget
from bootstream.images.transfer import copy
from bootstream.progress import Progress
from bootstream.proxies import NO_PROXIES, Proxies
from bootstream.registry.names import ImageNames
from bootstream.registry.protocol import ArtifactsRegistry, ListedImage, RegistryDetails

_KEPT_CLIENTS = 64
_LOOKED_UP_AT_ONCE = 8
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Access:
    """How registries are spoken to, and what is needed to push from others.

    ``cache``: where the layers of images that are read are kept. ``plain_http``: of the
    registry itself; registries of this host are spoken to in http where they do not speak
    TLS. ``ca_file``: PEM certificates to trust beside the system's. ``keychain``: signs in to
    the registries that pushed images come from.
    """

    cache: BlobCache
    plain_http: bool = False
    ca_file: str | None = None
    proxies: Proxies = NO_PROXIES
    keychain: CredentialSource = field(default_factory=NoCredentials)


class RemoteRegistry(ABC):
    """One registry; see ``ArtifactsRegistry``. Safe to use from several threads.

    Args:
        access: how it is spoken to.
        create: whether a missing repository is made.
    """

    provider = ""

    def __init__(self, access: Access, *, create: bool = True) -> None:
        self.access = access
        self.create = create
        self._lock = Lock()
        self._clients: OrderedDict[tuple[str, bool], RegistryClient] = OrderedDict()
        self._made: set[str] = set()

    # -- what a provider says -----------------------------------------------------------------

    @abstractmethod
    def names(self) -> ImageNames:
        """Return how images are named below the host."""

    @abstractmethod
    def host(self) -> str:
        """Return the registry's host, HOST or HOST:PORT."""

    @abstractmethod
    def credentials(self, repository: str, *, writing: bool) -> CredentialSource | BearerSource:
        """Return what a client of one repository signs in with, to read from it or to push."""

    @abstractmethod
    def remove(self, repository: str, tag: str) -> None:
        """Take a tag away, and the image that it names if no other tag does. Idempotent."""

    @abstractmethod
    def explain(self, error: BootstreamError, repository: str, *, writing: bool) -> None:
        """Put a remedy on what was refused or missing while it was read, or written to."""

    def make_repository(self, repository: str) -> None:
        """Make a repository unless it is there. Registries that need none made do nothing.

        Raises:
            PermissionDenied: it may not be made; says what would make it.
        """
        del repository

    def plain_http(self) -> bool:
        """Whether it is spoken to in http."""
        return self.access.plain_http

    def repositories(self) -> Iterator[str]:
        """Yield the repositories there are, in any order."""
        return list_repositories(self.client(self.names().prefix.strip("/") or "bootstream"))

    def listed(self, repository: str) -> Iterator[ListedImage]:
        """Yield a repository's images of ours, in any order; none where there is no repository."""
        names = self.names()
        client = self.client(repository)
        try:
            ours = [tag for tag in list_tags(client) if names.parse(repository, tag)]
        except ImageNotFound:
            return
        with ThreadPoolExecutor(_LOOKED_UP_AT_ONCE, thread_name_prefix="list-images") as pool:
            found = pool.map(lambda tag: head_manifest(client, tag), ours)
            for tag, descriptor in zip(ours, found, strict=True):
                ids = names.parse(repository, tag)
                if descriptor is None or ids is None:
                    continue  # deleted meanwhile
                reference = f"{self.host()}/{repository}:{tag}"
                yield ListedImage(*ids, reference, descriptor.digest)

    def principal(self) -> str | None:
        """Return who signs in, where known without asking."""
        return None

    # -- the interface ------------------------------------------------------------------------

    def get_tag(self, template_id: str, build_id: str) -> str:
        """See ``ArtifactsRegistry``."""
        return str(self._reference(template_id, build_id))

    def get_image(
        self, template_id: str, build_id: str, platform: Platform | str | None = None
    ) -> Image:
        """See ``ArtifactsRegistry``."""
        wanted = Platform.parse(platform) if isinstance(platform, str) else platform
        reference = self._reference(template_id, build_id)

        def read() -> Image:
            source = RemoteSource(self.client(reference.repository), reference, self.access.cache)
            data, media_type = source.root()
            root = root_of(data, media_type)
            return choose(source, [root], reference=str(reference), platform=wanted, raw_root=data)

        return self._explained(read, reference.repository, writing=False)

    def open_content(self, template_id: str, build_id: str) -> TransferSource:
        """See ``ArtifactsRegistry``."""
        reference = self._reference(template_id, build_id)
        return self._explained(
            lambda: registry_source(self.client(reference.repository), reference.version),
            reference.repository,
            writing=False,
        )

    def push_image(
        self, reference: str, template_id: str, build_id: str, progress: Progress
    ) -> str:
        """See ``ArtifactsRegistry``."""
        target = self._reference(template_id, build_id)
        access = self.access
        source = open_source(
            reference,
            scratch=access.cache.scratch,
            credentials=access.keychain,
            ca_file=access.ca_file,
            proxies=access.proxies,
        )
        return self._store(source, target, progress)

    def copy_image(
        self, source: ArtifactsRegistry, template_id: str, build_id: str, progress: Progress
    ) -> str:
        """See ``ArtifactsRegistry``."""
        self._reference(template_id, build_id)
        content = source.open_content(template_id, build_id)
        return self.put_content(content, template_id, build_id, progress)

    def put_content(
        self, content: TransferSource, template_id: str, build_id: str, progress: Progress
    ) -> str:
        """See ``ArtifactsRegistry``."""
        return self._store(content, self._reference(template_id, build_id), progress)

    def list_images(self, template_id: str | None = None) -> Iterator[ListedImage]:
        """See ``ArtifactsRegistry``."""
        if template_id is not None:
            validate_template_id(template_id)
        found: list[ListedImage] = []
        for repository in self._repositories_of(template_id):
            try:
                found += self.listed(repository)
            except BootstreamError as error:
                self.explain(error, repository, writing=False)
                raise
        ours = (image for image in found if template_id in (None, image.template_id))
        yield from sorted(ours, key=lambda image: (image.template_id, image.build_id))

    def delete(self, template_id: str, build_id: str) -> None:
        """See ``ArtifactsRegistry``."""
        reference = self._reference(template_id, build_id)
        assert reference.tag is not None
        self.remove(reference.repository, reference.tag)

    def details(self) -> RegistryDetails:
        """See ``ArtifactsRegistry``."""
        location = f"{self.host()}/{self.names().prefix}".rstrip("/")
        return RegistryDetails(self.provider, location, self.principal())

    def close(self) -> None:
        """See ``ArtifactsRegistry``."""
        with self._lock:
            clients = list(self._clients.values())
            self._clients.clear()
        for client in clients:
            client.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    # -- derived ------------------------------------------------------------------------------

    def client(self, repository: str, *, writing: bool = False) -> RegistryClient:
        """Return the client of a repository; the last ones that were used stay open.

        Who only reads asks for no more than that: to who may not push, a token for both may
        be refused.
        """
        key = repository, writing
        with self._lock:
            client = self._clients.pop(key, None)
            if client is None:
                client = RegistryClient(
                    RegistryReference(self.host(), repository),
                    plain_http=self.plain_http(),
                    ca_file=self.access.ca_file,
                    credentials=self.credentials(repository, writing=writing),
                    proxies=self.access.proxies,
                )
            self._clients[key] = client
            while len(self._clients) > _KEPT_CLIENTS:
                self._clients.popitem(last=False)
            return client

    def _reference(self, template_id: str, build_id: str) -> RegistryReference:
        repository, tag = self.names().name(template_id, build_id)
        return RegistryReference(self.host(), repository, tag)

    def _repositories_of(self, template_id: str | None) -> Iterator[str]:
        names = self.names()
        if names.by_tag:
            yield names.prefix
            return
        if template_id is None:
            yield from (name for name in self.repositories() if name.startswith(names.prefix))
            return
        only = names.repository_of(template_id)
        if only is not None:
            yield only
            return
        pattern = names.repositories(template_id)
        yield from (name for name in self.repositories() if pattern.fullmatch(name))

    def _store(
        self, source: TransferSource, reference: RegistryReference, progress: Progress
    ) -> str:
        """Copy to where it belongs; a missing repository is made first."""
        repository, tag = reference.repository, reference.tag
        assert tag is not None
        not_made: PermissionDenied | None = None
        if self.create:
            try:
                self._make_once(repository)
            except PermissionDenied as error:
                not_made = error  # it may be there all the same, where one may not look

        def store() -> str:
            target = RegistryTarget(self.client(repository, writing=True), tag)
            return copy(source, target, progress=progress)

        try:
            return self._explained(store, repository, writing=True)
        except AlreadyExists:
            there = head_manifest(self.client(repository), tag)
            if there is None or there.digest != source.root.digest:
                raise
            return there.digest  # it was pushed before; tags cannot move there
        except (NotFound, PermissionDenied) as error:
            with self._lock:
                self._made.discard(repository)  # it may have been deleted since
            if not_made is not None:
                raise not_made from error
            raise

    def _make_once(self, repository: str) -> None:
        with self._lock:
            if repository in self._made:
                return
        self.make_repository(repository)
        with self._lock:
            self._made.add(repository)

    def _explained(self, work: Callable[[], _T], repository: str, *, writing: bool) -> _T:
        try:
            return work()
        except (PermissionDenied, NotFound, InvalidInput) as error:
            self.explain(error, repository, writing=writing)
            raise
