"""What points programs at the local cloud: a config file, tokens, and a shell file to source.

The config file has the profiles ``DEFAULT`` (an API key) and ``SESSION`` (a session token).
Both files and all keys are for their owner only.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bootstream.errors import InvalidInput
from bootstream.localoci.keys import fingerprint, write_secret

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bootstream.localoci.federation import Federation
    from bootstream.localoci.keys import Identity
    from bootstream.localoci.registry.tokens import AuthTokens

_HEAD = """\
# Points bootstream, oci-cli, OCI's SDKs and rclone at the local OCI. In a shell:
#   . {path}
# rclone has the remote {remote}: rclone ls {remote}:{bucket}
"""
_UNSET = """
# A user's auth token for the registry, in the place of a principal's signature:
"""
REMOTE = "localoci"


@dataclass(frozen=True, slots=True)
class RegistryPlace:
    """What the registry has ready: a repository, and passwords for users."""

    repository: str
    auth_tokens: AuthTokens


@dataclass(frozen=True, slots=True)
class Place:
    """Where the local cloud answers, and what it has ready."""

    url: str
    bucket: str
    workload_port: int | None = None
    registry: RegistryPlace | None = None

    @property
    def metadata_base_url(self) -> str:
        """Where the metadata service is, without a slash at the end."""
        return f"{self.url}/opc/v2"

    @property
    def registry_host(self) -> str:
        """The registry's host and port."""
        return self.url.partition("://")[2]

    @property
    def federation_endpoint(self) -> str:
        """Where instances get tokens."""
        return f"{self.url}/v1/x509"


def write_config(identity: Identity) -> Path:
    """Write the config file of OCI's tools; return its path."""
    names, folder = identity.names, identity.folder.resolve()
    user = identity.user
    lines = [
        "[DEFAULT]",
        f"user={user.ocid}",
        f"fingerprint={fingerprint(identity.user_key.public_key())}",
        f"tenancy={names.tenancy}",
        f"region={names.region}",
        f"key_file={folder / 'user.key'}",
        "",
        "[SESSION]",
        f"fingerprint={fingerprint(identity.session_key.public_key())}",
        f"tenancy={names.tenancy}",
        f"region={names.region}",
        f"key_file={folder / 'session.key'}",
        f"security_token_file={folder / 'session.token'}",
        "",
    ]
    path = folder / "config"
    write_secret(path, "\n".join(lines).encode())
    return path


def write_tokens(identity: Identity, federation: Federation) -> None:
    """Write fresh tokens of the resource principal and of the session."""
    write_secret(identity.folder / "resource.token", federation.resource_token().encode())
    write_secret(identity.folder / "session.token", federation.session_token().encode())


def variables(identity: Identity, place: Place, config: Path) -> dict[str, str]:
    """Return the variables of the shell file, by name."""
    names, folder = identity.names, identity.folder.resolve()
    values = {
        # bootstream
        "STORAGE_PROVIDER": "OCIBucket",
        "TEMPLATE_BUCKET_NAME": place.bucket,
        "OCI_NAMESPACE": names.namespace,
        "OCI_REGION": names.region,
        "OCI_COMPARTMENT_ID": names.compartment,
        "OCI_OBJECT_STORAGE_ENDPOINT": place.url,
        # OCI's SDKs
        "OCI_CONFIG_FILE": str(config),
        "OCI_METADATA_BASE_URL": place.metadata_base_url,
        "OCI_SDK_AUTH_CLIENT_REGION_URL": place.url,
        "OCI_RESOURCE_PRINCIPAL_VERSION": "2.2",
        "OCI_RESOURCE_PRINCIPAL_RPST": str(folder / "resource.token"),
        "OCI_RESOURCE_PRINCIPAL_PRIVATE_PEM": str(folder / "resource.key"),
        "OCI_RESOURCE_PRINCIPAL_REGION": names.region,
        # oci-cli
        "OCI_CLI_AUTH": "api_key",
        "OCI_CLI_CONFIG_FILE": str(config),
        "OCI_CLI_REGION": names.region,
        "OCI_CLI_ENDPOINT": place.url,
        "OCI_CLI_FEDERATION_ENDPOINT": place.federation_endpoint,
    }
    values |= {
        f"RCLONE_CONFIG_{REMOTE.upper()}_{name}": value
        for name, value in (
            ("TYPE", "oracleobjectstorage"),
            ("PROVIDER", "user_principal_auth"),
            ("NAMESPACE", names.namespace),
            ("COMPARTMENT", names.compartment),
            ("REGION", names.region),
            ("ENDPOINT", place.url),
            ("CONFIG_FILE", str(config)),
            ("CONFIG_PROFILE", "DEFAULT"),
        )
    }
    if place.workload_port is not None:
        values |= {
            "BOOTSTREAM_LOCAL_OCI_WORKLOAD_PORT": str(place.workload_port),
            "KUBERNETES_SERVICE_HOST": "127.0.0.1",
            "OCI_KUBERNETES_SERVICE_ACCOUNT_CERT_PATH": str(folder / "cluster.pem"),
            "OCI_KUBERNETES_SERVICE_ACCOUNT_TOKEN_PATH": str(folder / "service-account.token"),
        }
    if place.registry is not None:
        values |= {
            "ARTIFACTS_REGISTRY_PROVIDER": "OCI_OCIR",
            "OCIR_ENDPOINT": place.registry_host,
            "OCI_ARTIFACTS_ENDPOINT": place.url,
            "OCI_CONTAINER_REPOSITORY_NAME": place.registry.repository,
        }
    return values


def secrets(identity: Identity, place: Place) -> dict[str, str]:
    """Return variables that the shell file shows, but does not set: another way to sign in."""
    if place.registry is None:
        return {}
    user = identity.user.name
    return {
        "OCIR_USERNAME": f"{identity.names.namespace}/{user}",
        "OCIR_PASSWORD": place.registry.auth_tokens.of(user),
    }


def write_environment(
    path: Path, values: Mapping[str, str], unset: Mapping[str, str] | None = None
) -> None:
    """Write a file for ``sh`` that exports variables, readable by its owner only.

    Args:
        path: the file.
        values: what it exports.
        unset: what it has in comments.

    Raises:
        InvalidInput: it cannot be written.
    """
    head = _HEAD.format(
        path=shlex.quote(str(path.absolute())),
        remote=REMOTE,
        bucket=values["TEMPLATE_BUCKET_NAME"],
    )
    lines = [f"export {name}={shlex.quote(value)}\n" for name, value in values.items()]
    if unset:
        lines.append(_UNSET)
        lines += [f"# export {name}={shlex.quote(value)}\n" for name, value in unset.items()]
    try:
        write_secret(path.absolute(), (head + "".join(lines)).encode())
    except OSError as error:
        raise InvalidInput(
            f"the file cannot be written ({error.strerror})",
            operation="write",
            object=str(path),
            remedy="name a file in a folder that exists and is yours",
        ) from error
