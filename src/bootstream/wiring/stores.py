"""The stack of a store, from settings to a provider.

Outermost first::

    prefix      every name gets TEMPLATE_BUCKET_PREFIX before anything else sees it, so
                that what retry says of an object is the name it has in the bucket
    metrics     counts what the layers above asked for, with the time that retries took: what
                a user waits for
    retry       the only layer that repeats requests; one request of the prefix is one of
                the store, so nothing above multiplies attempts
    limit       each attempt is limited by itself, and none is counted as running while
                retry waits; left out where no limit is set
    provider    raw: it maps errors and says which of them are transient
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bootstream.errors import InvalidInput

if TYPE_CHECKING:
    from bootstream.config import Settings
    from bootstream.storage.metrics import Metrics
    from bootstream.storage.protocol import StorageProvider
    from bootstream.storage.url import StoreAddress

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
