"""Amazon S3, and what speaks like it, through obstore."""

from __future__ import annotations

from collections.abc import Callable
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
from bootstream.storage.s3requests import Keys, XmlBucket, aws_signer
from bootstream.storage.s3uploads import collect_uploads

_AMAZON = (".amazonaws.com", ".amazonaws.com.cn")
_DEFAULT_REGION = "us-east-1"

_TRAITS = Traits(
    provider="AWSBucket",
    extra="aws",
    remedies=Remedies(
        credentials="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the host a role",
        permission="grant s3:GetObject, s3:PutObject, s3:DeleteObject, s3:AbortMultipartUpload "
        "on the bucket's objects and s3:ListBucket, s3:ListBucketMultipartUploads on the bucket",
        bucket="check TEMPLATE_BUCKET_NAME, AWS_REGION and AWS_ENDPOINT_URL, or create the bucket",
        region="set AWS_REGION to the region that the bucket is in",
    ),
    max_copy=5 << 30,
)


class AWSBucketStorageProvider(BucketProvider):
    """A bucket of S3. Safe to use from several threads.

    Args:
        bucket: its name.
        region: where it is; None takes AWS's own settings, then us-east-1.
        endpoint: the URL of another service that speaks S3.
        path_style: the bucket's name in the path, not in the host; None: with ``endpoint``,
            and where the bucket's name has a dot.
        access_key: with ``secret_key``; None looks where AWS's tools look, down to the
            host's role.
        secret_key: see there.
        session_token: of temporary keys.
        boto3: look for credentials with boto3, which knows profiles and SSO.
        ca_file: PEM certificates to trust instead of the public ones.
        parallel: requests at once within one operation.
        proxies: for the few requests that obstore has no operation for; it reads the
            environment's proxies itself.

    Raises:
        InvalidInput: obstore (or, if asked for, boto3) is not installed, or one key is missing.
    """

    def __init__(
        self,
        bucket: str,
        *,
        region: str | None = None,
        endpoint: str | None = None,
        path_style: bool | None = None,
        access_key: str | None = None,
        secret_key: str | None = None,
        session_token: str | None = None,
        boto3: bool = False,
        ca_file: str | None = None,
        parallel: int = 16,
        proxies: Proxies = NO_PROXIES,
    ) -> None:
        if (access_key is None) != (secret_key is None):
            raise InvalidInput(
                "an access key and its secret come together",
                operation="open store",
                object=bucket,
                remedy=_TRAITS.remedies.credentials,
            )
        check_names(bucket, endpoint, region=region)
        obstore = load_obstore(_TRAITS.extra)
        if path_style is None:
            path_style = endpoint is not None or "." in bucket  # no certificate is for two dots
        base = (endpoint or _amazon(region or _DEFAULT_REGION)).rstrip("/")
        config: dict[str, Any] = {"virtual_hosted_style_request": not path_style}
        if region is not None or endpoint is not None:
            config["region"] = region or _DEFAULT_REGION
        if endpoint is not None:
            config["endpoint"] = base if path_style else _with_bucket(base, bucket)
        keys: Callable[[], Keys | None] = _no_keys
        if access_key is not None and secret_key is not None:
            config |= {"access_key_id": access_key, "secret_access_key": secret_key}
            if session_token is not None:
                config["session_token"] = session_token
            fixed = Keys(access_key, secret_key, session_token)
            keys = _constant(fixed)
        elif boto3:
            session = _boto3_session()
            config["credential_provider"] = _Boto3Credentials(session)
            keys = _boto3_keys(session)
        options = client_options(endpoint, ca_file)
        s3 = obstore.store.S3Store
        try:
            once = s3(bucket, client_options=options, retry_config=no_retries(), **config)
            parts = s3(bucket, client_options=options, retry_config=part_retries(), **config)
        except (obstore.exceptions.BaseError, ValueError, OSError) as error:
            raise InvalidInput(
                f"these settings make no store: {str(error).partition(chr(10))[0][:200]}",
                operation="open store",
                object=bucket,
                remedy=_TRAITS.remedies.bucket,
            ) from None
        host = urlsplit(base).netloc.rpartition("@")[2]
        self._foreign = endpoint is not None and not host.split(":")[0].endswith(_AMAZON)
        identity = f"s3://{host}/{bucket}" if self._foreign else f"s3://{bucket}"
        super().__init__(
            Engine(obstore, once, parts, base, bucket, identity, parallel, ca_file, proxies),
            _TRAITS,
        )
        self._requests = XmlBucket(
            base if path_style else _with_bucket(base, bucket),
            bucket if path_style else "",
            aws_signer(region or _DEFAULT_REGION, keys),
            self.error,
            ca_file=ca_file,
            proxies=proxies,
        )

    def needs_probe(self) -> bool:
        """Amazon's own keep their conditions; others are tried."""
        return self._foreign

    def collect_uploads(self, older_than: timedelta, *, dry_run: bool = False) -> int:
        """Abort multipart uploads begun longer ago; return how many there were.

        obstore cannot list uploads, so this signs requests of its own. It can with keys that
        it was given, or boto3's. With a host's role found by obstore alone nothing is
        collected, and a lifecycle rule (``AbortIncompleteMultipartUpload``) does it instead.
        """
        with self.mapped("collect uploads", self.engine.bucket):
            return collect_uploads(self._requests, older_than, dry_run=dry_run)

    def xml_requests(self) -> XmlBucket | None:
        """Return what sends the requests that obstore cannot, where there are keys for it."""
        return self._requests if self._requests.can_sign() else None


class _Boto3Credentials:
    """Gives obstore the credentials of a boto3 session, refreshed by boto3."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def __call__(self) -> dict[str, Any]:
        """Return the keys of this moment."""
        found = self._session.get_credentials()
        if found is None:
            raise ValueError("no credentials were found by boto3")
        frozen = found.get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": getattr(found, "_expiry_time", None),
        }


def _boto3_session() -> Any:
    try:
        import boto3  # type: ignore[import-untyped,unused-ignore]  # noqa: PLC0415 - optional
    except ImportError:
        raise InvalidInput(
            "boto3, which was asked for credentials, is not installed",
            operation="open store",
            remedy="pip install boto3",
        ) from None
    return boto3.session.Session()


def _boto3_keys(session: Any) -> Callable[[], Keys | None]:
    def keys() -> Keys | None:
        found = session.get_credentials()
        if found is None:
            return None
        frozen = found.get_frozen_credentials()
        return Keys(frozen.access_key, frozen.secret_key, frozen.token)

    return keys


def _constant(keys: Keys) -> Callable[[], Keys | None]:
    return lambda: keys


def _no_keys() -> Keys | None:
    return None


def _amazon(region: str) -> str:
    suffix = ".amazonaws.com.cn" if region.startswith("cn-") else ".amazonaws.com"
    return f"https://s3.{region}{suffix}"


def _with_bucket(base: str, bucket: str) -> str:
    scheme, _, host = base.partition("://")
    return f"{scheme}://{bucket}.{host}"
