"""The clock, who this process is to its cloud, and where: what comes before any permission."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime
from typing import TYPE_CHECKING

from bootstream.doctor.finding import Context, Finding, State
from bootstream.errors import BootstreamError, InvalidInput, NotFound

if TYPE_CHECKING:
    from bootstream.clouds.oci import Principal
    from bootstream.config import Settings

_REFUSED = 300.0
"""Seconds that a clock may be off before signatures are refused: OCI's limit, and S3's is 900."""
_DOUBTFUL = 30.0
_CLOCK_SECONDS = 10.0
_SET_CLOCK = "set the clock: timedatectl set-ntp true, or chronyc makestep"


def check_clock(context: Context) -> Iterator[Finding]:
    """Compare this host's clock with the storage's, by which age and signatures are judged."""
    settings = context.settings
    if settings.storage_provider == "Local":
        yield Finding("clock", State.UNUSED, "the store is on this host")
        return
    try:
        endpoint = _endpoint(settings)
    except BootstreamError as error:
        yield Finding("clock", State.SKIPPED, f"where to ask is not known: {error.message}")
        return
    offset = _offset(settings, endpoint)
    said = f"{abs(offset):.0f} seconds {'ahead of' if offset > 0 else 'behind'} the storage's"
    if abs(offset) > _REFUSED:
        yield Finding("clock", State.FAILED, f"{said}: signatures are refused", _SET_CLOCK)
    elif abs(offset) > _DOUBTFUL:
        yield Finding("clock", State.LACKING, said, _SET_CLOCK)
    else:
        yield Finding("clock", State.OK, f"within {max(1.0, abs(offset)):.0f} s of the storage's")


def _offset(settings: Settings, endpoint: str) -> float:
    """Return by how many seconds this host's clock is ahead of the storage's.

    The answer to a request without a signature tells it, since a signature needs the clock.
    """
    from bootstream.images.transport import Transport  # noqa: PLC0415 - not for --help

    ca_file = None if settings.ca_file is None else str(settings.ca_file)
    transport = Transport(ca_file=ca_file, proxies=settings.proxies)
    try:
        before = time.time()
        with transport.send(
            "GET", f"{endpoint}/", headers={}, operation="ask the time", silence=_CLOCK_SECONDS
        ) as answer:
            date = answer.header("Date")
            answer.drain()
        ours = (before + time.time()) / 2
    finally:
        transport.close()
    try:
        theirs = parsedate_to_datetime(date or "").timestamp()
    except (ValueError, TypeError, OverflowError, IndexError) as error:
        raise NotFound(
            "the answer does not say what time it is", operation="ask the time", object=endpoint
        ) from error
    return ours - theirs


def _endpoint(settings: Settings) -> str:
    """Return where the storage answers."""
    match settings.storage_provider:
        case "OCIBucket":
            return _oci_endpoint(settings)
        case "AWSBucket":
            region = settings.aws.region or "us-east-1"
            domain = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
            return settings.aws.endpoint_url or f"https://s3.{region}.{domain}"
        case "GCPBucket":
            return settings.gcp.endpoint_url or "https://storage.googleapis.com"
    azure = settings.azure
    if azure.endpoint_url is None and not azure.account:
        raise InvalidInput("AZURE_STORAGE_ACCOUNT_NAME is not set", operation="find storage")
    return azure.endpoint_url or f"https://{azure.account}.blob.core.windows.net"


def check_principal(context: Context) -> Iterator[Finding]:
    """Tell who signs requests, and until when."""
    settings = context.settings
    look: dict[str, Callable[[Settings], Iterator[Finding]]] = {
        "OCIBucket": _oci_principal,
        "AWSBucket": _aws_principal,
        "GCPBucket": _gcp_principal,
        "AzureBlob": _azure_principal,
    }
    found = look.get(settings.storage_provider)
    if found is None and settings.registry.provider == "OCI_OCIR":
        found = _oci_principal
    if found is None:
        yield Finding("principal", State.UNUSED, "the store is a folder: nobody signs in")
        return
    yield from found(settings)


def open_oci_principal(settings: Settings) -> Principal:
    """Return OCI's principal, as the stores use it."""
    from bootstream.clouds.oci import open_principal  # noqa: PLC0415 - an extra

    oci = settings.oci
    return open_principal(
        auth=oci.auth,
        config_file=oci.config_file,
        profile=oci.profile,
        environ=oci.environ,
        metadata_base_url=oci.metadata_base_url,
        federation_endpoint=oci.federation_endpoint,
        proxies=settings.proxies,
    )


def _oci_principal(settings: Settings) -> Iterator[Finding]:
    principal = open_oci_principal(settings)
    credentials = principal.credentials()
    parts = [principal.name]
    if principal.tenancy:
        parts.append(f"of {principal.tenancy}")
    if credentials.expires is None:
        parts.append("with a key that does not end")
    else:
        end = datetime.fromtimestamp(credentials.expires, UTC)
        parts.append(f"with a token until {format_datetime(end)[5:]}, renewed by itself")
    yield Finding("principal", State.OK, " ".join(parts))


def _aws_principal(settings: Settings) -> Iterator[Finding]:
    if settings.aws.access_key:
        yield Finding("principal", State.OK, "the key in AWS_ACCESS_KEY_ID")
        return
    try:
        botocore = importlib.import_module("botocore.session")  # an extra, without types
    except ImportError:
        yield Finding("principal", State.UNUSED, "found by obstore; storage tells whether it is")
        return
    session = botocore.Session(profile=settings.aws.profile)
    credentials = session.get_credentials()
    if credentials is None:
        yield Finding(
            "principal",
            State.FAILED,
            "neither variables, files nor this instance's role give credentials",
            "attach an instance profile with the role, or set AWS_PROFILE",
        )
    else:
        yield Finding("principal", State.OK, f"found by {credentials.method}")


def _gcp_principal(settings: Settings) -> Iterator[Finding]:
    if settings.gcp.anonymous:
        yield Finding("principal", State.UNUSED, "an emulator, to which nothing is signed")
    elif settings.gcp.credentials_file is not None:
        path = settings.gcp.credentials_file
        if path.is_file():
            yield Finding("principal", State.OK, f"the credentials in {path}")
        else:
            yield Finding(
                "principal",
                State.FAILED,
                f"{path} is no file",
                "set GOOGLE_APPLICATION_CREDENTIALS to a file, or unset it to be the host's "
                "service account",
            )
    else:
        yield _gcp_default()


def _gcp_default() -> Finding:
    try:
        google = importlib.import_module("google.auth")  # an extra, without types
    except ImportError:
        return Finding("principal", State.UNUSED, "found by obstore; storage tells whether it is")
    failed = importlib.import_module("google.auth.exceptions").DefaultCredentialsError
    try:
        credentials, _ = google.default()
    except failed:
        return Finding(
            "principal",
            State.FAILED,
            "neither GOOGLE_APPLICATION_CREDENTIALS, nor gcloud, nor this host gives credentials",
            "give the host a service account, set GOOGLE_APPLICATION_CREDENTIALS, or run "
            "gcloud auth application-default login",
        )
    who = getattr(credentials, "service_account_email", None) or "application default credentials"
    return Finding("principal", State.OK, str(who))


def _azure_principal(settings: Settings) -> Iterator[Finding]:
    azure = settings.azure
    if azure.account_key or azure.sas_token:
        what = "the account's key" if azure.account_key else "a shared access signature"
        yield Finding("principal", State.OK, what)
    else:
        yield Finding(
            "principal", State.UNUSED, "Azure's chain, down to the managed identity: see storage"
        )


def check_region(context: Context) -> Iterator[Finding]:
    """Tell the region, and whether it is one."""
    settings = context.settings
    if not _is_oci(settings):
        region = settings.aws.region if settings.storage_provider == "AWSBucket" else None
        detail = region or "the settings need none"
        yield Finding("region", State.OK if region else State.UNUSED, detail)
        return
    from bootstream.clouds.oci.regions import is_known  # noqa: PLC0415 - an extra

    own = open_oci_principal(settings).region
    region = settings.oci.region or own
    if region is None:
        yield Finding(
            "region",
            State.FAILED,
            "neither OCI_REGION nor the principal tells it",
            "set OCI_REGION to the bucket's region, such as us-ashburn-1",
        )
    elif not is_known(region) and settings.oci.endpoint is None:
        yield Finding(
            "region",
            State.LACKING,
            f"{region} is not among the regions that are known; its hosts are guessed",
            "check OCI_REGION; a region of another realm is told by OCI_REGION_METADATA",
        )
    elif own is not None and own != region and settings.oci.endpoint is None:
        yield Finding(
            "region",
            State.LACKING,
            f"the bucket is in {region}, and the principal's region is {own}: reads cross regions",
            f"set OCI_REGION={own} if the bucket is there",
        )
    else:
        yield Finding("region", State.OK, region)


def check_namespace(context: Context) -> Iterator[Finding]:
    """Tell Object Storage's namespace as the service does, beside what the settings say."""
    settings = context.settings
    if not _is_oci(settings):
        yield Finding("namespace", State.UNUSED, "only OCI has one")
        return
    from bootstream.images.transport import Transport  # noqa: PLC0415
    from bootstream.registry.api import Api  # noqa: PLC0415 - an extra
    from bootstream.registry.ocirtokens import PrincipalSigner  # noqa: PLC0415

    ca_file = None if settings.ca_file is None else str(settings.ca_file)
    transport = Transport(ca_file=ca_file, proxies=settings.proxies)
    try:
        endpoint = _oci_endpoint(settings)
        api = Api(
            endpoint, transport=transport, signer=PrincipalSigner(open_oci_principal(settings))
        )
        reply = api.call(
            "GET",
            "/n",
            query={"compartmentId": settings.oci.compartment_id},
            operation="look up namespace",
            object=endpoint.partition("://")[2],
        )
    finally:
        transport.close()
    found, said = str(reply.value), settings.oci.namespace
    if said is None:
        yield Finding("namespace", State.OK, f"{found}, looked up")
    elif said != found:
        yield Finding(
            "namespace",
            State.LACKING,
            f"OCI_NAMESPACE says {said}, and the tenancy's is {found}",
            f"set OCI_NAMESPACE={found}, unless the bucket is another tenancy's",
        )
    else:
        yield Finding("namespace", State.OK, found)


def _is_oci(settings: Settings) -> bool:
    return settings.storage_provider == "OCIBucket" or settings.registry.provider == "OCI_OCIR"


def _oci_endpoint(settings: Settings) -> str:
    if settings.oci.endpoint is not None:
        return settings.oci.endpoint
    from bootstream.clouds.oci import object_storage_endpoint  # noqa: PLC0415 - an extra

    region = settings.oci.region or open_oci_principal(settings).region
    if region is None:
        raise InvalidInput(
            "the region is not known",
            operation="find",
            object="Object Storage",
            remedy="set OCI_REGION to the bucket's region, such as us-ashburn-1",
        )
    return object_storage_endpoint(region)
