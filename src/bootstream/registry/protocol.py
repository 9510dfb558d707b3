"""The interface of a registry that holds template images: one image a build.

A provider adds to the client in ``bootstream.images`` what is its cloud's own: how images
are named, with what one signs in, how repositories come to be, and how an image is deleted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from datetime import datetime

    from bootstream.images.image import Image
    from bootstream.images.platform import Platform
    from bootstream.images.sources import TransferSource
    from bootstream.progress import Progress


@dataclass(frozen=True, slots=True)
class RegistryDetails:
    """What a registry says of itself.

    ``provider`` as in ARTIFACTS_REGISTRY_PROVIDER; ``location`` names host and repository, or
    the folder; ``principal``: who signs in, as far as known.
    """

    provider: str
    location: str
    principal: str | None = None


@dataclass(frozen=True, slots=True)
class ListedImage:
    """One build's image, as a listing shows it.

    ``size`` in bytes of what is stored, and ``pushed``, where the registry tells them.
    """

    template_id: str
    build_id: str
    reference: str
    digest: str
    size: int | None = None
    pushed: datetime | None = None


@runtime_checkable
class ArtifactsRegistry(Protocol):
    """Images by template id and build id. Safe to use from several threads.

    Ids are checked before a name is formed: ``InvalidInput``. Every method may raise
    ``PermissionDenied`` (with what would grant it), ``Throttled`` and ``Unavailable``.
    """

    def get_tag(self, template_id: str, build_id: str) -> str:
        """Return the reference of a build's image, such as ``HOST/REPOSITORY:TAG``.

        It asks nobody but for what the name is made of; the image need not exist.
        """
        ...

    def get_image(
        self, template_id: str, build_id: str, platform: Platform | str | None = None
    ) -> Image:
        """Return a build's image for one platform; layers come when they are fetched.

        Raises:
            ImageNotFound: there is none, or none for the platform; never another one instead.
        """
        ...

    def push_image(
        self, reference: str, template_id: str, build_id: str, progress: Progress
    ) -> str:
        """Store what ``reference`` names as the image of a build; return its digest.

        All platforms of an index are stored, byte for byte, so that digests stay. Blobs that
        are there are not sent again. The tag comes last: until then nobody sees anything.

        Args:
            reference: a layout, an archive or another registry's image; see
                ``bootstream.images.reference``.

        Raises:
            AlreadyExists: tags are immutable there, and this one names another image.
            ImageNotFound: there is nothing at ``reference``.
            NotFound: the repository is missing and cannot be made; says how to make it.
        """
        ...

    def copy_image(
        self, source: ArtifactsRegistry, template_id: str, build_id: str, progress: Progress
    ) -> str:
        """Store another registry's image of the same build; return its digest.

        Blobs that are there, or that can be mounted from a neighbouring repository, are not sent.

        Raises:
            ImageNotFound: ``source`` has no such image.
            AlreadyExists, NotFound: as ``push_image``.
        """
        ...

    def open_content(self, template_id: str, build_id: str) -> TransferSource:
        """Return all of what is stored for a build, every platform of it, to be copied.

        ``copy_image`` of another registry needs more of this one than ``get_image`` gives,
        which chooses one platform.

        Raises:
            ImageNotFound: there is no such image.
        """
        ...

    def put_content(
        self, content: TransferSource, template_id: str, build_id: str, progress: Progress
    ) -> str:
        """Store what was opened anywhere as the image of a build; return its digest.

        ``push_image`` and ``copy_image`` are this, with content that they open.

        Raises:
            AlreadyExists, NotFound: as ``push_image``.
        """
        ...

    def list_images(self, template_id: str | None = None) -> Iterator[ListedImage]:
        """Yield the images of a template, or of all, in order of their names.

        Tags that are no build of ours are left out.
        """
        ...

    def delete(self, template_id: str, build_id: str) -> None:
        """Delete a build's image: its tag, and the contents unless another tag names them.

        Idempotent: nothing happens where there is none.
        """
        ...

    def details(self) -> RegistryDetails:
        """Return what the registry is; asks the server nothing that can fail but names."""
        ...

    def close(self) -> None:
        """Close idle connections; idempotent."""
        ...
