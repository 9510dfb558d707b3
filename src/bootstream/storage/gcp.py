"""Google Cloud Storage through obstore, which speaks its XML API.

Conditions name a generation there, which listings do not give. An etag is therefore looked
up first, and the write names the generation that had it: a write in between fails it.
"""

from __future__ import annotations

import json
import os
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from bootstream.errors import InvalidInput
from bootstream.proxies import NO_PROXIES, Proxies
from bootstream.storage.googlesigner import GoogleSigner
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
from bootstream.storage.s3requests import XmlBucket
from bootstream.storage.s3uploads import collect_uploads

_ENDPOINT = "https://storage.googleapis.com"

_TRAITS = Traits(
    provider="GCPBucket",
    extra="gcp",
    remedies=Remedies(
        credentials="set GOOGLE_APPLICATION_CREDENTIALS, or give the host a service account",
        permission="grant the role roles/storage.objectUser on the bucket; to sign URLs also "
        "iam.serviceAccounts.signBlob",
        bucket="check TEMPLATE_BUCKET_NAME, or create the bucket",
        region="check TEMPLATE_BUCKET_NAME",
    ),
    delete_batch=100,
    versions=True,
)


def _nobody(base: str) -> str:
    """Return a service account's key that is none."""
    fields = {"client_email": "", "private_key": "", "private_key_id": ""}
    return json.dumps(fields | {"gcs_base_url": base, "disable_oauth": True})


class GCPBucketStorageProvider(BucketProvider):
    """A bucket of Google Cloud Storage. Safe to use from several threads.

    Requests about multipart uploads are sent by themselves, with a token from google-auth.

    Args:
        bucket: its name.
        credentials: a file as GOOGLE_APPLICATION_CREDENTIALS names it; None looks where
            Google's tools look, down to the host's service account.
        service_account_key: the JSON text of a service account's key.
        endpoint: the URL of another service that speaks this API.
        anonymous: sign nothing.
        ca_file: PEM certificates to trust instead of the public ones.
        parallel: requests at once within one operation.
        proxies: for the few requests that obstore has no operation for; it reads the
            environment's proxies itself.

    Raises:
        InvalidInput: obstore is not installed, or the credentials are no such file.
    """

    def __init__(
        self,
        bucket: str,
        *,
        credentials: str | os.PathLike[str] | None = None,
        service_account_key: str | None = None,
        endpoint: str | None = None,
        anonymous: bool = False,
        ca_file: str | None = None,
        parallel: int = 16,
        proxies: Proxies = NO_PROXIES,
    ) -> None:
        check_names(bucket, endpoint)
        obstore = load_obstore(_TRAITS.extra)
        base = (endpoint or _ENDPOINT).rstrip("/")
        config: dict[str, Any] = {}
        if service_account_key is not None:
            config["service_account_key"] = service_account_key
        elif credentials is not None:
            config["application_credentials"] = os.fspath(credentials)
        if endpoint is not None:
            config["base_url"] = base
        if anonymous:
            # Both are needed: without a key that says so, some requests look for credentials.
            config |= {"skip_signature": True, "service_account_key": _nobody(base)}
        options = client_options(endpoint, ca_file)
        gcs = obstore.store.GCSStore
        try:
            once = gcs(bucket, client_options=options, retry_config=no_retries(), **config)
            parts = gcs(bucket, client_options=options, retry_config=part_retries(), **config)
        except (obstore.exceptions.BaseError, ValueError, OSError):
            # What it says may quote the key.
            raise InvalidInput(
                "these settings make no store: the credentials cannot be read",
                operation="open store",
                object=bucket,
                remedy=_TRAITS.remedies.credentials,
            ) from None
        host = urlsplit(base).netloc.rpartition("@")[2]
        self._foreign = not host.split(":")[0].endswith(".googleapis.com")
        identity = f"gs://{bucket}" if endpoint is None else f"gs://{host}/{bucket}"
        super().__init__(
            Engine(obstore, once, parts, base, bucket, identity, parallel, ca_file, proxies),
            _TRAITS,
        )

        signer = GoogleSigner(
            credentials=credentials,
            key=service_account_key,
            anonymous=anonymous,
            ca_file=ca_file,
            proxies=proxies,
        )
        self._requests = XmlBucket(
            base, bucket, signer, self.error,
            meta="x-goog-meta-", ca_file=ca_file, proxies=proxies,
        )  # fmt: skip

    def collect_uploads(self, older_than: timedelta, *, dry_run: bool = False) -> int:
        """Abort multipart uploads begun longer ago; return how many there were.

        Those of the XML API, which are all that this package begins; uploads of the JSON API
        (resumable uploads) end by themselves after a week. Without google-auth, or where it
        finds no credentials, nothing is collected.
        """
        with self.mapped("collect uploads", self.engine.bucket):
            return collect_uploads(self._requests, older_than, dry_run=dry_run)

    def xml_requests(self) -> XmlBucket | None:
        """Return what sends the requests that obstore cannot, where there is a token for it."""
        return self._requests if self._requests.can_sign() else None

    def needs_probe(self) -> bool:
        """Google's own keep their conditions; others are tried."""
        return self._foreign
