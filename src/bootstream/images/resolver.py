"""From a reference to an image; the one place that knows every kind of source."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bootstream.images.archive import open_docker_archive, open_oci_archive
from bootstream.images.cache import BlobCache
from bootstream.images.choice import choose, root_of
from bootstream.images.image import Image
from bootstream.images.layout import open_layout
from bootstream.images.local import Folder
from bootstream.images.platform import Platform
from bootstream.images.reference import (
    DockerArchiveReference,
    LayoutReference,
    RegistryReference,
    parse_name,
    parse_reference,
)
from bootstream.proxies import NO_PROXIES, Proxies

if TYPE_CHECKING:
    from bootstream.images.credentials import BearerSource, CredentialSource
    from bootstream.images.transport import Guard


def resolve(
    reference: str,
    *,
    cache: BlobCache,
    platform: str | Platform | None = None,
    plain_http: bool = False,
    ca_file: str | None = None,
    auth_file: Path | None = None,
    proxies: Proxies = NO_PROXIES,
    guard: Guard | None = None,
) -> Image:
    """Return the image that ``reference`` names, for one platform.

    Its manifest and configuration are read and checked now; layers come with
    ``Image.fetch``, or when they are opened. Thread safe, as is what it returns.

    Args:
        reference: as people write it; see ``bootstream.images.reference``.
        cache: where layers of registries are kept, and archives decoded.
        platform: ``OS/ARCH[/VARIANT]``; None is this host's own, with Linux.
        plain_http: speak http to the registry.
        ca_file: certificates (PEM) to trust for the registry beside the system's.
        auth_file: credentials; None looks where Docker and Podman keep theirs.
        proxies: which requests to registries go through which proxy.
        guard: told every peer before anything is sent to it; see ``Transport``.

    Raises:
        InvalidInput: reference, platform or a file named here cannot be understood, or
            what is there is no container image.
        ImageNotFound: there is no such image, or none for the platform.
        PermissionDenied: the registry wants other credentials.
        Throttled, Unavailable: the registry cannot be asked, after retries.
        Corrupt: something is not what its digest or format says.
    """
    parsed = parse_reference(reference)
    wanted = Platform.parse(platform) if isinstance(platform, str) else platform
    if isinstance(parsed, RegistryReference):
        # An HTTP client takes a while to load, and local images need none.
        from bootstream.images.credentials import open_keychain  # noqa: PLC0415

        return open_remote(
            parsed,
            cache=cache,
            credentials=open_keychain(auth_file),
            platform=wanted,
            plain_http=plain_http,
            ca_file=ca_file,
            proxies=proxies,
            guard=guard,
        )
    if isinstance(parsed, DockerArchiveReference):
        return open_docker_archive(parsed, scratch=cache.scratch, platform=wanted)
    assert isinstance(parsed, LayoutReference)
    if parsed.archive:
        return open_oci_archive(parsed, scratch=cache.scratch, platform=wanted)
    return open_layout(Folder(parsed.path), parsed, platform=wanted)


def open_remote(
    reference: str | RegistryReference,
    *,
    cache: BlobCache,
    credentials: CredentialSource | BearerSource,
    plain_http: bool = False,
    ca_file: str | None = None,
    platform: str | Platform | None = None,
    proxies: Proxies = NO_PROXIES,
    guard: Guard | None = None,
) -> Image:
    """Return a registry's image for one platform, as ``resolve`` does, with given credentials.

    Args:
        reference: ``HOST/REPOSITORY[:TAG][@DIGEST]``.
        cache: where layers are kept.
        credentials: what to sign in with.
        plain_http: speak http to the registry.
        ca_file: certificates (PEM) to trust for the registry beside the system's.
        platform: ``OS/ARCH[/VARIANT]``; None is this host's own, with Linux.
        proxies: which requests go through which proxy.
        guard: told every peer before anything is sent to it; see ``Transport``.

    Raises:
        InvalidInput, ImageNotFound, PermissionDenied, Throttled, Unavailable, Corrupt: as
            ``resolve``.
    """
    from bootstream.images.remote import RegistryClient, RemoteSource  # noqa: PLC0415 - see above

    parsed = parse_name(reference) if isinstance(reference, str) else reference
    wanted = Platform.parse(platform) if isinstance(platform, str) else platform
    client = RegistryClient(
        parsed,
        plain_http=plain_http,
        ca_file=ca_file,
        credentials=credentials,
        proxies=proxies,
        guard=guard,
    )
    source = RemoteSource(client, parsed, cache)
    data, media_type = source.root()
    root = root_of(data, media_type, digest=parsed.digest)
    return choose(source, [root], reference=str(parsed), platform=wanted, raw_root=data)
