"""Azure Blob Storage through obstore."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from bootstream.errors import InvalidInput
from bootstream.proxies import NO_PROXIES, Proxies
from bootstream.storage.objectstore import BucketProvider
from bootstream.storage.objectstore_engine import (
    Engine,
    Traits,
    check_names,
    client_options,
    load_obstore,
    no_retries,
    part_retries,
)
from bootstream.storage.objectstore_errors import Remedies

_TRAITS = Traits(
    provider="AzureBlob",
    extra="azure",
    remedies=Remedies(
        credentials="set AZURE_STORAGE_ACCOUNT_KEY, AZURE_CLIENT_ID with AZURE_TENANT_ID and a "
        "secret, or give the host a managed identity",
        permission="grant the role Storage Blob Data Contributor on the container; to sign URLs "
        "without an account key also Storage Blob Delegator on the account",
        bucket="check TEMPLATE_BUCKET_NAME and AZURE_STORAGE_ACCOUNT_NAME, or create the container",
        region="check AZURE_STORAGE_ACCOUNT_NAME",
    ),
    max_parts=50_000,
    delete_batch=256,
    utf16_order=True,
    metadata_dash="_",  # keys are identifiers of C# there
    refused="\\",  # Azure takes it for a slash
)


_PLAIN = re.compile(r"[A-Za-z0-9._~/-]+")


class AzureBlobStorageProvider(BucketProvider):
    """A container of blobs. Safe to use from several threads.

    Blocks that were never committed are dropped by Azure itself after a week, and cannot be
    listed: ``collect_uploads`` finds none. A ``PUT`` to a signed URL needs the header
    ``x-ms-blob-type: BlockBlob``.

    Args:
        account: the storage account's name.
        container: the container's name.
        account_key: in base64; None looks where Azure's tools look, down to the host's
            managed identity.
        sas_token: a shared access signature instead.
        endpoint: the URL of the account's blob service, where it is another one.
        ca_file: PEM certificates to trust instead of the public ones.
        parallel: requests at once within one operation.
        proxies: for the few requests that obstore has no operation for; it reads the
            environment's proxies itself.

    Raises:
        InvalidInput: obstore is not installed, or the key is none.
    """

    def __init__(
        self,
        container: str,
        *,
        account: str,
        account_key: str | None = None,
        sas_token: str | None = None,
        endpoint: str | None = None,
        ca_file: str | None = None,
        parallel: int = 16,
        proxies: Proxies = NO_PROXIES,
    ) -> None:
        check_names(container, endpoint, account=account)
        obstore = load_obstore(_TRAITS.extra)
        base = (endpoint or f"https://{account}.blob.core.windows.net").rstrip("/")
        config: dict[str, Any] = {"account_name": account}
        if account_key is not None:
            config["account_key"] = account_key
        elif sas_token is not None:
            config["sas_key"] = sas_token
        if endpoint is not None:
            config["endpoint"] = base
        options = client_options(endpoint, ca_file)
        azure = obstore.store.AzureStore
        try:
            once = azure(container, client_options=options, retry_config=no_retries(), **config)
            parts = azure(container, client_options=options, retry_config=part_retries(), **config)
        except (obstore.exceptions.BaseError, ValueError, OSError):
            # What it says may quote the key.
            raise InvalidInput(
                "these settings make no store: the account key or token cannot be read",
                operation="open store",
                object=container,
                remedy=_TRAITS.remedies.credentials,
            ) from None
        parts_of_base = urlsplit(base)
        host = parts_of_base.netloc.rpartition("@")[2] + parts_of_base.path
        super().__init__(
            Engine(
                obstore,
                once,
                parts,
                base,
                container,
                f"az://{host}/{container}",
                parallel,
                ca_file,
                proxies,
            ),
            _TRAITS,
        )

    def signed_upload_url(self, path: str, ttl: timedelta) -> str:
        """Return a URL for one ``PUT`` with ``x-ms-blob-type: BlockBlob``; a secret.

        Raises:
            InvalidInput: the name has characters that are encoded in URLs. obstore signs the
                encoded name, Azure wants the plain one; nobody could use such a URL.
        """
        if _PLAIN.fullmatch(path) is None:
            raise InvalidInput(
                "this name cannot be signed: some of its characters are encoded in URLs",
                operation="sign URL",
                object=ascii(path)[:120],
                remedy="use letters, digits, '-', '.', '_', '~' and '/' in the name",
            )
        return super().signed_upload_url(path, ttl)
