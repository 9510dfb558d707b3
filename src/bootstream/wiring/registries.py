"""The registry of template images, from settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bootstream.errors import InvalidInput
from bootstream.wiring.caches import open_blob_cache

if TYPE_CHECKING:
    from bootstream.config import Settings
    from bootstream.registry.protocol import ArtifactsRegistry
    from bootstream.registry.remote import Access

# Imports are inside: a command pays only for the layers it uses.


def get_artifacts_registry_provider(settings: Settings) -> ArtifactsRegistry:
    """Return the registry of template images that the settings name.

    Nobody is asked yet; who signs in to OCI is found out when it is first needed.

    Raises:
        InvalidInput: a setting is missing or wrong, or the cloud's extra is not installed.
        PermissionDenied: no way to sign in can be used.
    """
    from bootstream.images.credentials import open_keychain  # noqa: PLC0415 - see above

    registry = settings.registry
    cache = open_blob_cache(settings)
    keychain = open_keychain(settings.registry_auth_file)
    ca_file = None if registry.ca_file is None else str(registry.ca_file)
    if registry.provider == "Local":
        from bootstream.registry.engine import Engine, find_socket  # noqa: PLC0415 - see above
        from bootstream.registry.local import LocalArtifactsRegistry  # noqa: PLC0415

        socket = find_socket(registry.docker_host)
        return LocalArtifactsRegistry(
            registry.local_base_path,
            cache=cache,
            engine=None if socket is None else Engine(socket, scratch=cache.scratch),
            keychain=keychain,
            ca_file=ca_file,
            proxies=settings.proxies,
        )
    from bootstream.registry.remote import Access  # noqa: PLC0415 - see above

    access = Access(cache, ca_file=ca_file, proxies=settings.proxies, keychain=keychain)
    return _open_registry(settings, access)


def _open_registry(settings: Settings, access: Access) -> ArtifactsRegistry:
    registry = settings.registry
    if registry.provider == "OCI_OCIR":
        return _open_ocir(settings, access)
    if registry.provider == "AWS_ECR":
        from bootstream.registry.aws import AWSArtifactsRegistry  # noqa: PLC0415 - see above

        aws = settings.aws
        return AWSArtifactsRegistry(
            access,
            repository=_needed(registry.repository, "AWS_DOCKER_REPOSITORY_NAME"),
            region=aws.region,
            endpoint=registry.api_endpoint,
            host=registry.endpoint,
            access_key=aws.access_key,
            secret_key=aws.secret_key,
            session_token=aws.session_token,
            profile=aws.profile,
            create=registry.create,
        )
    if registry.provider == "GCP_ARTIFACTS":
        from bootstream.registry.gcp import GCPArtifactsRegistry  # noqa: PLC0415 - see above

        gcp = settings.gcp
        return GCPArtifactsRegistry(
            access,
            project=_needed(gcp.project_id, "GCP_PROJECT_ID"),
            region=_needed(gcp.region, "GCP_REGION"),
            repository=_needed(registry.repository, "GCP_DOCKER_REPOSITORY_NAME"),
            credentials_file=gcp.credentials_file,
            host=registry.endpoint,
            api=registry.api_endpoint,
            create=registry.create,
        )
    from bootstream.registry.azure import AzureArtifactsRegistry  # noqa: PLC0415 - see above

    return AzureArtifactsRegistry(
        access,
        name=_needed(registry.repository, "AZURE_CONTAINER_REGISTRY_NAME"),
        host=registry.endpoint,
    )


def _open_ocir(settings: Settings, access: Access) -> ArtifactsRegistry:
    from bootstream.clouds.oci import open_principal  # noqa: PLC0415 - see above
    from bootstream.images.credentials import Credentials  # noqa: PLC0415
    from bootstream.registry.oci import OCIArtifactsRegistry  # noqa: PLC0415

    oci, registry = settings.oci, settings.registry
    user = None
    if registry.username is not None and registry.password is not None:
        user = Credentials(registry.username, registry.password)
    return OCIArtifactsRegistry(
        access,
        principal=lambda: open_principal(
            auth=oci.auth,
            config_file=oci.config_file,
            profile=oci.profile,
            environ=oci.environ,
            metadata_base_url=oci.metadata_base_url,
            federation_endpoint=oci.federation_endpoint,
            proxies=settings.proxies,
        ),
        user=user,
        repository=_needed(registry.repository, "OCI_CONTAINER_REPOSITORY_NAME"),
        image_name=registry.image_name,
        namespace=oci.namespace,
        compartment=oci.compartment_id,
        region=oci.region,
        endpoint=registry.endpoint,
        artifacts=registry.api_endpoint,
        object_storage=oci.endpoint,
        create=registry.create,
    )


def _needed(value: str | None, variable: str) -> str:
    if not value:
        raise InvalidInput(
            "it is not set", operation="open registry", object=variable, remedy=f"set {variable}"
        )
    return value
