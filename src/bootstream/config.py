"""Frozen settings, and the one place that reads them from environment variables.

Only the command line and the services call ``Settings.from_environment``; the
library takes arguments. The table of variables is in ``docs/settings.md``.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from platformdirs import user_cache_path, user_data_path, user_runtime_path

from bootstream.errors import InvalidInput
from bootstream.proxies import NO_PROXIES, Proxies

STORAGE_PROVIDERS = ("Local", "OCIBucket", "AWSBucket", "GCPBucket", "AzureBlob")
REGISTRY_PROVIDERS = ("Local", "OCI_OCIR", "AWS_ECR", "GCP_ARTIFACTS", "AZURE_ACR")
DEFAULT_OCIR_REPOSITORY = "e2b-templates"

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)
_SCALE = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)?", re.IGNORECASE)
_ENDPOINT = re.compile(
    r"https?://(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?(?:/[!-~]*)?"
)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}


def parse_size(text: str, *, what: str = "size") -> int:
    """Return bytes for ``512``, ``64k``, ``1.5GiB``; powers of 1024. Raises InvalidInput."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise InvalidInput(
            f"{text!r} is not a size",
            operation="read",
            object=what,
            remedy="write a number of bytes, or one with k, M, G or T (powers of 1024): 512M, 2G",
        )
    return int(float(match[1]) * _SCALE[match[2].lower()])


def parse_duration(text: str, *, what: str = "duration") -> float:
    """Return seconds for ``0s``, ``90``, ``10m``, ``24h``, ``7d``. Raises InvalidInput."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise InvalidInput(
            f"{text!r} is not a duration",
            operation="read",
            object=what,
            remedy="write a number with s, m, h, d or w: 90s, 24h, 7d",
        )
    return float(match[1]) * _SECONDS[(match[2] or "s").lower()]


@dataclass(frozen=True, slots=True)
class OCISettings:
    """What OCI's own variables say; see ``docs/clouds/oci.md``.

    ``environ``: the variables by which OCI hands principals to containers and pods
    (``OCI_*``, ``KUBERNETES_*``, ``HOME``), since some of them are credentials.
    """

    region: str | None = None
    namespace: str | None = None
    compartment_id: str | None = None
    auth: str | None = None
    config_file: Path | None = None
    profile: str | None = None
    endpoint: str | None = None
    metadata_base_url: str | None = None
    federation_endpoint: str | None = None
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class AWSSettings:
    """What AWS's own variables say; without keys, credentials are found by its usual chain.

    ``profile``: of AWS's configuration files, which boto3 reads.
    """

    region: str | None = None
    endpoint_url: str | None = None
    access_key: str | None = field(default=None, repr=False)
    secret_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    profile: str | None = None


@dataclass(frozen=True, slots=True)
class GCPSettings:
    """What Google's own variables say; without a file, credentials are the host's.

    ``anonymous``: nothing is signed, as emulators have it.
    """

    project_id: str | None = None
    region: str | None = None
    credentials_file: Path | None = None
    endpoint_url: str | None = None
    anonymous: bool = False


@dataclass(frozen=True, slots=True)
class AzureSettings:
    """What Azure's own variables say; without a key, credentials are found by its usual chain."""

    account: str | None = None
    endpoint_url: str | None = None
    account_key: str | None = field(default=None, repr=False)
    sas_token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class RegistrySettings:
    """Where template images are kept; see ``docs/registries.md``.

    ``repository``: of the provider, as its own variable names it. ``endpoint``: the host of
    another registry than the cloud's own, ``api_endpoint`` the URL of another API beside it.
    ``create``: whether a missing repository is made. ``docker_host``: where images are
    looked for that the folder of ``Local`` lacks; None: nowhere but at the usual socket.
    """

    provider: str = "Local"
    local_base_path: Path = field(
        default_factory=lambda: user_data_path("bootstream") / "artifacts-registry"
    )
    repository: str | None = None
    image_name: str | None = None
    endpoint: str | None = None
    api_endpoint: str | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    create: bool = True
    ca_file: Path | None = None
    docker_host: str | None = None


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """How gently the store is used: operations at a time, bytes a second; None: no limit."""

    concurrency: int | None = None
    upload: int | None = None
    download: int | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """What a process needs to know of the world; see ``docs/settings.md``.

    Sizes in bytes. ``cache_size`` None means a tenth of the disk it lies on.
    ``read_patience``: seconds that a read of an export waits for a store that has trouble.
    ``ca_file``: certificates to trust in the place of the system's, for storage.
    """

    storage_provider: str
    template_bucket_name: str | None
    template_bucket_prefix: str
    local_base_path: Path
    cache_dir: Path
    cache_size: int | None
    node_id: str
    registry_auth_file: Path | None
    oci: OCISettings = OCISettings()
    aws: AWSSettings = AWSSettings()
    gcp: GCPSettings = GCPSettings()
    azure: AzureSettings = AzureSettings()
    limits: LimitSettings = LimitSettings()
    ca_file: Path | None = None
    proxies: Proxies = NO_PROXIES
    runtime_dir: Path = Path("/run/bootstream")
    registry: RegistrySettings = field(default_factory=RegistrySettings)
    read_patience: float = 30.0

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Settings:
        """Read the variables; unset and empty mean the default. Raises InvalidInput."""

        def get(name: str) -> str | None:
            return environ.get(name) or None

        provider = get("STORAGE_PROVIDER") or "Local"
        if provider not in STORAGE_PROVIDERS:
            raise InvalidInput(
                f"no storage provider is called {provider!r}",
                operation="read",
                object="STORAGE_PROVIDER",
                remedy=f"set it to one of: {', '.join(STORAGE_PROVIDERS)}",
            )
        size = get("BOOTSTREAM_CACHE_SIZE")
        auth_file = get("REGISTRY_AUTH_FILE")
        patience = get("BOOTSTREAM_READ_PATIENCE") or "30s"
        return cls(
            storage_provider=provider,
            template_bucket_name=get("TEMPLATE_BUCKET_NAME"),
            template_bucket_prefix=get("TEMPLATE_BUCKET_PREFIX") or "",
            local_base_path=_folder(get("LOCAL_TEMPLATE_STORAGE_BASE_PATH"))
            or user_data_path("bootstream") / "templates",
            cache_dir=_folder(get("BOOTSTREAM_CACHE_DIR")) or user_cache_path("bootstream"),
            cache_size=None if size is None else parse_size(size, what="BOOTSTREAM_CACHE_SIZE"),
            node_id=_node_id(get("NODE_ID") or socket.gethostname()),
            registry_auth_file=Path(auth_file) if auth_file else None,
            oci=_oci(environ),
            aws=AWSSettings(
                region=get("AWS_REGION") or get("AWS_DEFAULT_REGION"),
                endpoint_url=_url(environ, "AWS_ENDPOINT_URL_S3")
                or _url(environ, "AWS_ENDPOINT_URL"),
                access_key=get("AWS_ACCESS_KEY_ID"),
                secret_key=get("AWS_SECRET_ACCESS_KEY"),
                session_token=get("AWS_SESSION_TOKEN"),
                profile=get("AWS_PROFILE"),
            ),
            gcp=_gcp(environ),
            azure=AzureSettings(
                account=get("AZURE_STORAGE_ACCOUNT_NAME"),
                endpoint_url=_url(environ, "AZURE_STORAGE_ENDPOINT"),
                account_key=get("AZURE_STORAGE_ACCOUNT_KEY"),
                sas_token=get("AZURE_STORAGE_SAS_TOKEN"),
            ),
            limits=LimitSettings(
                concurrency=_count(environ, "BOOTSTREAM_STORAGE_CONCURRENCY"),
                upload=_rate(environ, "BOOTSTREAM_UPLOAD_RATE"),
                download=_rate(environ, "BOOTSTREAM_DOWNLOAD_RATE"),
            ),
            ca_file=_folder(get("BOOTSTREAM_STORAGE_CA_FILE")),
            proxies=Proxies.from_environment(environ),
            runtime_dir=_folder(get("BOOTSTREAM_RUNTIME_DIR")) or _runtime_dir(),
            registry=_registry(environ),
            read_patience=parse_duration(patience, what="BOOTSTREAM_READ_PATIENCE"),
        )


def _runtime_dir() -> Path:
    """What goes with this boot of the host: root's is everybody's, as devices are."""
    if os.geteuid() == 0:
        return Path("/run/bootstream")
    return user_runtime_path("bootstream")


def _oci(environ: Mapping[str, str]) -> OCISettings:
    def get(name: str) -> str | None:
        return environ.get(name) or None

    return OCISettings(
        region=get("OCI_REGION") or get("OCI_CLI_REGION"),
        namespace=get("OCI_NAMESPACE"),
        compartment_id=get("OCI_COMPARTMENT_ID"),
        auth=get("OCI_CLI_AUTH"),
        config_file=_folder(get("OCI_CONFIG_FILE")),
        profile=get("OCI_CLI_PROFILE"),
        endpoint=_url(environ, "OCI_OBJECT_STORAGE_ENDPOINT"),
        metadata_base_url=_url(environ, "OCI_METADATA_BASE_URL"),
        federation_endpoint=_url(environ, "OCI_CLI_FEDERATION_ENDPOINT"),
        environ={
            name: value
            for name, value in environ.items()
            if value and (name.startswith(("OCI_", "KUBERNETES_")) or name == "HOME")
        },
    )


def _gcp(environ: Mapping[str, str]) -> GCPSettings:
    emulator = environ.get("STORAGE_EMULATOR_HOST") or ""
    if emulator and "://" not in emulator:
        emulator = f"http://{emulator}"
    return GCPSettings(
        project_id=environ.get("GCP_PROJECT_ID") or None,
        region=environ.get("GCP_REGION") or None,
        credentials_file=_folder(environ.get("GOOGLE_APPLICATION_CREDENTIALS")),
        endpoint_url=_url({"STORAGE_EMULATOR_HOST": emulator}, "STORAGE_EMULATOR_HOST")
        or _url(environ, "GCP_STORAGE_ENDPOINT"),
        anonymous=bool(emulator),
    )


# Each provider's own names for its repository, its registry's host, and its API.
_REGISTRY_NAMES = {
    "OCI_OCIR": ("OCI_CONTAINER_REPOSITORY_NAME", "OCIR_ENDPOINT", "OCI_ARTIFACTS_ENDPOINT"),
    "AWS_ECR": ("AWS_DOCKER_REPOSITORY_NAME", "AWS_ECR_ENDPOINT", "AWS_ENDPOINT_URL_ECR"),
    "GCP_ARTIFACTS": (
        "GCP_DOCKER_REPOSITORY_NAME",
        "GCP_DOCKER_ENDPOINT",
        "GCP_ARTIFACT_REGISTRY_ENDPOINT",
    ),
    "AZURE_ACR": (
        "AZURE_CONTAINER_REGISTRY_NAME",
        "AZURE_CONTAINER_REGISTRY_ENDPOINT",
        "AZURE_CONTAINER_REGISTRY_ENDPOINT",
    ),
}


def _registry(environ: Mapping[str, str]) -> RegistrySettings:
    def get(name: str) -> str | None:
        return environ.get(name) or None

    provider = get("ARTIFACTS_REGISTRY_PROVIDER") or "Local"
    if provider not in REGISTRY_PROVIDERS:
        raise InvalidInput(
            f"no artifacts registry is called {provider!r}",
            operation="read",
            object="ARTIFACTS_REGISTRY_PROVIDER",
            remedy=f"set it to one of: {', '.join(REGISTRY_PROVIDERS)}",
        )
    local = _folder(get("LOCAL_ARTIFACTS_REGISTRY_BASE_PATH"))
    common = RegistrySettings(
        provider=provider,
        create=_yes(environ, "BOOTSTREAM_REGISTRY_CREATE", default=True),
        ca_file=_folder(get("BOOTSTREAM_REGISTRY_CA_FILE")),
        docker_host=get("DOCKER_HOST"),
    )
    if local is not None:
        common = replace(common, local_base_path=local)
    if provider == "Local":
        return common
    repository, endpoint, api = _REGISTRY_NAMES[provider]
    common = replace(
        common,
        repository=get(repository),
        endpoint=_host(environ, endpoint),
        api_endpoint=None if api == endpoint else _url(environ, api),
    )
    if provider == "AWS_ECR":
        own = common.api_endpoint or _url(environ, "AWS_ENDPOINT_URL")
        return replace(common, api_endpoint=own)
    if provider != "OCI_OCIR":
        return common
    username, password = get("OCIR_USERNAME"), get("OCIR_PASSWORD")
    if (username is None) != (password is None):
        raise InvalidInput(
            "a user and an auth token come together",
            operation="read",
            object="OCIR_USERNAME, OCIR_PASSWORD",
            remedy="set both, or neither to sign in as the principal",
        )
    return replace(
        common,
        repository=common.repository or DEFAULT_OCIR_REPOSITORY,
        image_name=get("OCI_IMAGE_NAME"),
        username=username,
        password=password,
    )


def _host(environ: Mapping[str, str], name: str) -> str | None:
    """A registry's host, as it stands in references; a scheme before it is allowed."""
    text = environ.get(name)
    if not text:
        return None
    scheme, separator, host = text.rpartition("://")
    if not separator:
        scheme, host = "https", text
    _url({name: f"{scheme}://{host}"}, name)
    if "/" in host.rstrip("/"):
        raise InvalidInput(
            "it is not the host of a registry",
            operation="read",
            object=name,
            remedy="write HOST or HOST:PORT, without a path",
        )
    return text.rstrip("/")


def _yes(environ: Mapping[str, str], name: str, *, default: bool) -> bool:
    text = (environ.get(name) or "").strip().lower()
    if not text:
        return default
    if text not in ("yes", "no", "true", "false", "1", "0"):
        raise InvalidInput(
            f"{text[:40]!r} is neither yes nor no",
            operation="read",
            object=name,
            remedy="write yes or no",
        )
    return text in ("yes", "true", "1")


def _url(environ: Mapping[str, str], name: str) -> str | None:
    """An endpoint: http or https, a host, no credentials; without a slash at its end."""
    text = environ.get(name)
    if not text:
        return None
    if _ENDPOINT.fullmatch(text) is None:
        raise InvalidInput(
            "it is not the URL of an endpoint",  # not repeated: there may be a password in it
            operation="read",
            object=name,
            remedy="write https://host, https://host:port or, for a server on this host, "
            "http://127.0.0.1:port",
        )
    return text.rstrip("/")


def _count(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name)
    if not text:
        return None
    if re.fullmatch(r"[1-9][0-9]{0,5}", text) is None:
        raise InvalidInput(
            f"{text!r} is not a count",
            operation="read",
            object=name,
            remedy="write a number from 1 on, or unset it for no limit",
        )
    return int(text)


def _rate(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name)
    if not text:
        return None
    rate = parse_size(text, what=name)
    if rate < 1:
        raise InvalidInput(
            "nothing would ever move",
            operation="read",
            object=name,
            remedy="write bytes a second, such as 50M, or unset it for no limit",
        )
    return rate


def _folder(text: str | None) -> Path | None:
    return Path(text).expanduser().absolute() if text else None


def _node_id(text: str) -> str:
    """A node id is part of object names: anything unusual becomes ``-``."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", text)[:128].lstrip(".") or "node"
