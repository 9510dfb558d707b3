"""Container images, from settings: where they are read and copied, with what one signs in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bootstream.wiring.caches import open_blob_cache
from bootstream.wiring.registries import get_artifacts_registry_provider

if TYPE_CHECKING:
    from bootstream.config import Settings
    from bootstream.images.credentials import BearerSource, CredentialSource
    from bootstream.images.image import Image
    from bootstream.images.reference import LayoutReference, RegistryReference
    from bootstream.images.transfer import Target, TransferSource
    from bootstream.images.transport import Guard
    from bootstream.storage.protocol import StorageProvider
    from bootstream.templates.build import TemplateBuilder

# Imports are inside: a command pays only for the layers it uses.


def open_image(
    settings: Settings,
    reference: str,
    *,
    platform: str | None = None,
    plain_http: bool = False,
    ca_file: str | None = None,
    guard: Guard | None = None,
) -> Image:
    """Return the container image that ``reference`` names; its layers come when fetched.

    At the registry that the settings name it signs in as that does, unless Docker's or
    Podman's files have something for it; and so do the next two.
    """
    from bootstream.images import resolve  # noqa: PLC0415 - see above
    from bootstream.images.reference import RegistryReference, parse_reference  # noqa: PLC0415

    parsed = parse_reference(reference)
    if isinstance(parsed, RegistryReference):
        from bootstream.images.resolver import open_remote  # noqa: PLC0415 - see above

        return open_remote(
            parsed,
            cache=open_blob_cache(settings),
            credentials=_sign_in(settings, parsed),
            platform=platform,
            plain_http=plain_http,
            ca_file=ca_file,
            proxies=settings.proxies,
            guard=guard,
        )
    return resolve(reference, cache=open_blob_cache(settings), platform=platform)


def _sign_in(
    settings: Settings, reference: RegistryReference, *, writing: bool = False
) -> CredentialSource | BearerSource:
    """Return what to sign in with at the registry that a reference names."""
    from bootstream.images.credentials import open_keychain  # noqa: PLC0415 - see above
    from bootstream.registry.hosts import may_be  # noqa: PLC0415

    keychain = open_keychain(settings.registry_auth_file)
    ours = settings.registry
    if not may_be(ours.provider, reference.registry, endpoint=ours.endpoint):
        return keychain  # nobody is asked in vain
    if keychain.find(reference.registry, reference.repository) is not None:
        return keychain
    from bootstream.registry.remote import RemoteRegistry  # noqa: PLC0415 - see above

    registry = get_artifacts_registry_provider(settings)
    if not isinstance(registry, RemoteRegistry) or registry.host() != reference.registry:
        return keychain
    return registry.credentials(reference.repository, writing=writing)


def open_image_source(
    settings: Settings, reference: str, *, plain_http: bool = False, ca_file: str | None = None
) -> TransferSource:
    """Return what ``reference`` names, all platforms of it, to be looked at or copied."""
    from bootstream.images.credentials import NoCredentials  # noqa: PLC0415 - see above
    from bootstream.images.reference import RegistryReference, parse_reference  # noqa: PLC0415
    from bootstream.images.transfer import open_source  # noqa: PLC0415

    parsed = parse_reference(reference)
    credentials: CredentialSource | BearerSource = NoCredentials()
    if isinstance(parsed, RegistryReference):
        credentials = _sign_in(settings, parsed)
    return open_source(
        parsed,
        scratch=open_blob_cache(settings).scratch,
        credentials=credentials,
        plain_http=plain_http,
        ca_file=ca_file,
        proxies=settings.proxies,
    )


def open_image_target(
    settings: Settings,
    reference: RegistryReference | LayoutReference,
    *,
    plain_http: bool = False,
    ca_file: str | None = None,
) -> Target:
    """Return the place that ``reference`` names, for an image to be copied to."""
    from bootstream.images.reference import LayoutReference  # noqa: PLC0415 - see above
    from bootstream.images.transfer import LayoutTarget, RegistryTarget  # noqa: PLC0415

    if isinstance(reference, LayoutReference):
        return LayoutTarget(reference.path, reference.tag)
    from bootstream.images.client import RegistryClient  # noqa: PLC0415 - see above

    client = RegistryClient(
        reference,
        plain_http=plain_http,
        ca_file=ca_file,
        credentials=_sign_in(settings, reference, writing=True),
        proxies=settings.proxies,
    )
    return RegistryTarget(client, reference.tag)


def open_builder(settings: Settings, storage: StorageProvider) -> TemplateBuilder:
    """Return what makes builds on this host."""
    from bootstream.templates.build import TemplateBuilder  # noqa: PLC0415 - see above

    return TemplateBuilder(
        storage, scratch=settings.cache_dir / "scratch", node_id=settings.node_id
    )
