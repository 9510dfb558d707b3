"""The one place where the stacks are assembled, from settings to working objects.

Storage, outermost first::

    prefix      every name gets TEMPLATE_BUCKET_PREFIX before anything else sees it, so
                that what retry says of an object is the name it has in the bucket
    metrics     counts what the layers above asked for, with the time that retries took: what
                a user waits for
    retry       the only layer that repeats requests; one request of the prefix is one of
                the store, so nothing above multiplies attempts
    limit       each attempt is limited by itself, and none is counted as running while
                retry waits; left out where no limit is set
    provider    raw: it maps errors and says which of them are transient

A device, outermost first::

    overlay     what a client writes; per export, so it lies above what is shared
    chunked     from image offsets to chunks; needs the index, whole, in memory
    node cache  decoded, verified chunks in segments on disk, shared by every export
    fetcher     range requests to packs, decoded and checked; goes through the stack above
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bootstream.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Callable

    from bootstream.block.cache import NodeCache
    from bootstream.block.chunked import ChunkedDevice
    from bootstream.block.device import Device
    from bootstream.block.overlay import Overlay
    from bootstream.chunks.index import Index
    from bootstream.config import Settings
    from bootstream.images.cache import BlobCache
    from bootstream.images.credentials import BearerSource, CredentialSource
    from bootstream.images.image import Image
    from bootstream.images.reference import LayoutReference, RegistryReference
    from bootstream.images.transfer import Target, TransferSource
    from bootstream.images.transport import Guard
    from bootstream.registry.protocol import ArtifactsRegistry
    from bootstream.registry.remote import Access
    from bootstream.storage.metrics import Metrics
    from bootstream.storage.protocol import StorageProvider
    from bootstream.storage.url import StoreAddress
    from bootstream.templates.build import TemplateBuilder
    from bootstream.templates.manifest import Manifest

_INDEXES = 256 << 20
"""Bytes of indexes to keep on a host, at most; and a sixteenth of what chunks may take."""

# Imports are inside: a command pays only for the layers it uses.


def with_store(settings: Settings, text: str) -> Settings:
    """Return settings whose store is the one that ``text`` names: a URL, or a folder.

    A URL says all of it: TEMPLATE_BUCKET_NAME, TEMPLATE_BUCKET_PREFIX and OCI_NAMESPACE are
    those of the URL (a namespace that it leaves out is that of the settings). A folder only
    takes the place of LOCAL_TEMPLATE_STORAGE_BASE_PATH. Raises InvalidInput.
    """
    from bootstream.storage.url import is_url, parse_store  # noqa: PLC0415 - see above

    address = parse_store(text)
    if address.provider == "Local":
        prefix = "" if is_url(text) else settings.template_bucket_prefix
        return replace(
            settings,
            storage_provider="Local",
            local_base_path=Path(address.folder),
            template_bucket_prefix=prefix,
        )
    return replace(
        settings,
        storage_provider=address.provider,
        template_bucket_name=address.bucket,
        template_bucket_prefix=address.prefix,
        oci=replace(settings.oci, namespace=address.namespace or settings.oci.namespace),
    )


def store_address(settings: Settings) -> StoreAddress:
    """Return the address of the store that the settings name, its prefix with it.

    Raises:
        InvalidInput: the bucket is not named, or it is a name that the cloud cannot have.
    """
    from bootstream.storage.url import SCHEMES, StoreAddress, parse_store  # noqa: PLC0415

    if settings.storage_provider == "Local":
        folder = settings.local_base_path / settings.template_bucket_prefix
        return StoreAddress("Local", folder=str(folder))
    if not settings.template_bucket_name:
        raise InvalidInput(
            f"the bucket of {settings.storage_provider} is not named",
            operation="open store",
            object="TEMPLATE_BUCKET_NAME",
            remedy="set it to the bucket's name, or name the whole store with --store, "
            "such as oci://namespace@bucket/prefix",
        )
    scheme = next(s for s, name in SCHEMES.items() if name == settings.storage_provider)
    address = parse_store(
        f"{scheme}://{settings.template_bucket_name}/{settings.template_bucket_prefix}"
    )
    namespace = settings.oci.namespace if scheme == "oci" else None
    return replace(address, namespace=namespace)


def get_template_storage_provider(
    settings: Settings, *, metrics: Metrics | None = None
) -> StorageProvider:
    """Return the store that the settings name, ready for use by the templates layer.

    Args:
        settings: see ``docs/settings.md``.
        metrics: where to count; None counts nowhere that anybody could see.

    Raises:
        InvalidInput: a setting is missing or wrong, or the cloud's extra is not installed.
        PermissionDenied: no way to sign in can be used.
    """
    from bootstream.storage.limit import LimitStorageProvider  # noqa: PLC0415 - see above
    from bootstream.storage.metrics import MetricsStorageProvider  # noqa: PLC0415
    from bootstream.storage.prefix import PrefixStorageProvider  # noqa: PLC0415
    from bootstream.storage.retry import RetryStorageProvider  # noqa: PLC0415

    storage = open_provider(settings)
    limits = settings.limits
    if limits.concurrency or limits.upload or limits.download:
        storage = LimitStorageProvider(
            storage,
            concurrency=limits.concurrency,
            upload=limits.upload,
            download=limits.download,
        )
    storage = RetryStorageProvider(storage)
    if metrics is not None:
        storage = MetricsStorageProvider(storage, metrics)
    if settings.template_bucket_prefix:
        storage = PrefixStorageProvider(storage, settings.template_bucket_prefix)
    return storage


def open_provider(settings: Settings) -> StorageProvider:
    """Return the bare provider of the bucket: nothing is repeated, limited or prefixed.

    Raises:
        InvalidInput, PermissionDenied: as ``get_template_storage_provider``.
    """
    kind = settings.storage_provider
    if kind == "Local":
        from bootstream.storage.local import LocalStorageProvider  # noqa: PLC0415 - see above

        return LocalStorageProvider(settings.local_base_path)
    bucket = store_address(settings).bucket
    ca_file = None if settings.ca_file is None else str(settings.ca_file)
    if kind == "OCIBucket":
        return _open_oci(settings, bucket, ca_file)
    if kind == "AWSBucket":
        from bootstream.storage.aws import AWSBucketStorageProvider  # noqa: PLC0415 - see above

        aws = settings.aws
        return AWSBucketStorageProvider(
            bucket,
            region=aws.region,
            endpoint=aws.endpoint_url,
            access_key=aws.access_key,
            secret_key=aws.secret_key,
            session_token=aws.session_token,
            boto3=aws.profile is not None and aws.access_key is None,
            ca_file=ca_file,
            proxies=settings.proxies,
        )
    if kind == "GCPBucket":
        from bootstream.storage.gcp import GCPBucketStorageProvider  # noqa: PLC0415 - see above

        gcp = settings.gcp
        return GCPBucketStorageProvider(
            bucket,
            credentials=gcp.credentials_file,
            endpoint=gcp.endpoint_url,
            anonymous=gcp.anonymous,
            ca_file=ca_file,
            proxies=settings.proxies,
        )
    from bootstream.storage.azure import AzureBlobStorageProvider  # noqa: PLC0415 - see above

    azure = settings.azure
    if not azure.account:
        raise InvalidInput(
            "the storage account is not named",
            operation="open store",
            object="AZURE_STORAGE_ACCOUNT_NAME",
            remedy="set it to the account that the container is in",
        )
    return AzureBlobStorageProvider(
        bucket,
        account=azure.account,
        account_key=azure.account_key,
        sas_token=azure.sas_token,
        endpoint=azure.endpoint_url,
        ca_file=ca_file,
        proxies=settings.proxies,
    )


def _open_oci(settings: Settings, bucket: str, ca_file: str | None) -> StorageProvider:
    from bootstream.clouds.oci import object_storage_endpoint, open_principal  # noqa: PLC0415
    from bootstream.storage.oci import OCIBucketStorageProvider  # noqa: PLC0415

    oci = settings.oci
    principal = open_principal(
        auth=oci.auth,
        config_file=oci.config_file,
        profile=oci.profile,
        environ=oci.environ,
        metadata_base_url=oci.metadata_base_url,
        federation_endpoint=oci.federation_endpoint,
        proxies=settings.proxies,
    )
    endpoint = oci.endpoint
    if endpoint is None:
        region = oci.region or principal.region
        if not region:
            raise InvalidInput(
                f"the region is not known, and {principal.name} does not tell it",
                operation="open store",
                object="OCI_REGION",
                remedy="set it to the bucket's region, such as us-ashburn-1",
            )
        endpoint = object_storage_endpoint(region)
    return OCIBucketStorageProvider(
        bucket,
        namespace=oci.namespace,
        principal=principal,
        endpoint=endpoint,
        compartment=oci.compartment_id,
        ca_file=ca_file,
        proxies=settings.proxies,
    )


def open_node_cache(settings: Settings) -> NodeCache:
    """Return the cache of decoded chunks that all exports of this host share."""
    from bootstream.block.cache import NodeCache  # noqa: PLC0415 - see above

    return NodeCache(settings.cache_dir / "node", limit=settings.cache_size)


def open_device(
    storage: StorageProvider,
    cache: NodeCache | None,
    manifest: Manifest,
    artifact: str,
    *,
    patience: float = 30.0,
) -> ChunkedDevice:
    """Return an artifact of a build as a read-only device; its index is loaded now.

    The index is kept beside the cache's chunks, and comes from there the next time. A reader
    waits ``patience`` seconds for a store that has trouble before it gets the error.

    Raises:
        InvalidInput: the build has no such artifact.
        Corrupt: the index is not the one that the manifest vouches for.
    """
    from bootstream.block.chunked import ChunkedDevice  # noqa: PLC0415 - see above
    from bootstream.block.indexes import IndexCache  # noqa: PLC0415
    from bootstream.chunks.reader import ChunkReader, load_index  # noqa: PLC0415

    entry = manifest.artifact(artifact)
    load: Callable[..., Index] = load_index
    if cache is not None:
        load = IndexCache(cache.folder / "indexes", min(_INDEXES, cache.limit // 16)).load
    index = load(
        storage,
        manifest.build_id,
        artifact,
        sha256=entry.index_sha256,
        size=entry.index_size,
    )
    reader = ChunkReader(storage, index)
    return ChunkedDevice(reader, cache, store=storage.details().identity, patience=patience)


def open_overlay(
    settings: Settings, base: Device, path: Path | None, *, manifest: Manifest, artifact: str
) -> Overlay:
    """Return a writable device over ``base``: kept in ``path``, or thrown away if None.

    Raises:
        InvalidInput: the file belongs to another base.
    """
    from bootstream.block.overlay import Overlay  # noqa: PLC0415 - see above

    return Overlay(
        base,
        path,
        base_digest=manifest.artifact(artifact).index_sha256,
        folder=settings.cache_dir / "overlays",
    )


def open_blob_cache(settings: Settings) -> BlobCache:
    """Return the cache of image layers."""
    from bootstream.images.cache import BlobCache  # noqa: PLC0415 - see above

    return BlobCache(settings.cache_dir / "blobs")


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
