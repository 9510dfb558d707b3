"""Hosts of Oracle's Container Registry and of the Artifacts API, and who may do what there.

The registry answers at ``KEY.ocir.io`` (``iad.ocir.io``), ``REGION.ocir.io`` and
``ocir.REGION.oci.DOMAIN``; realms other than the commercial one have the last form alone. A
private endpoint, or the local OCI, is named by ``OCIR_ENDPOINT``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from bootstream.clouds.oci.regions import Region, find_region
from bootstream.errors import InvalidInput
from bootstream.registry.hosts import RegistryHost, parse_host

_COMMERCIAL = "oraclecloud.com"
_SHORT = re.compile(r"([a-z0-9-]+)\.ocir\.io")
_LONG = re.compile(r"ocir\.([a-z0-9-]+)\.oci\.([a-z0-9.-]+)")
_VERSION = "/20160918"


@dataclass(frozen=True, slots=True)
class OcirHost(RegistryHost):
    """A registry's host, and its region where the name or a setting tells."""

    region: Region | None = None


def find_host(
    endpoint: str | None, region: str | None, *, plain_http: bool = False, tls: bool = False
) -> OcirHost:
    """Return the registry's host.

    Args:
        endpoint: HOST[:PORT], with ``https://`` or ``http://`` before it or not; None takes
            the region's own.
        region: identifier or key, e.g. ``iad``.
        plain_http: speak http. Otherwise it is spoken to loopback hosts alone, where the
            endpoint does not say https.
        tls: speak https also to loopback hosts.

    Raises:
        InvalidInput: the endpoint is none, or it is http to another host and nobody asked for
            that; or neither endpoint nor region is known.
    """
    if endpoint is None:
        if region is None:
            raise InvalidInput(
                "neither the registry's host nor its region is known",
                operation="open registry",
                object="OCI_REGION",
                remedy="set it to the registry's region, such as us-ashburn-1",
            )
        found = find_region(region)
        if found.domain == _COMMERCIAL:
            return OcirHost(f"{found.identifier}.ocir.io", plain_http, found)
        return OcirHost(f"ocir.{found.identifier}.oci.{found.domain}", plain_http, found)
    host = parse_host(endpoint, setting="OCIR_ENDPOINT", plain_http=plain_http, tls=tls)
    found_region = _region_of(host.name) or (find_region(region) if region else None)
    return OcirHost(host.name, host.plain_http, found_region)


def _region_of(name: str) -> Region | None:
    host = name.partition(":")[0].lower()
    if match := _SHORT.fullmatch(host):
        return find_region(match[1])
    if match := _LONG.fullmatch(host):
        return find_region(match[1], default_domain=match[2])
    return None


def artifacts_endpoint(override: str | None, region: Region | None) -> str:
    """Return the base URL of the Artifacts API, its version with it.

    Raises:
        InvalidInput: neither is known.
    """
    if override is not None:
        return override.rstrip("/").removesuffix(_VERSION) + _VERSION
    if region is None:
        raise InvalidInput(
            "the region is not known, whose Artifacts API makes and deletes images",
            operation="open registry",
            object="OCI_REGION",
            remedy="set it, or OCI_ARTIFACTS_ENDPOINT",
        )
    return f"https://artifacts.{region.identifier}.oci.{region.domain}{_VERSION}"


def subject(principal: str | None) -> str:
    """Return the subject of a policy statement for a kind of principal."""
    if principal in ("instance_principal", "resource_principal"):
        return "dynamic-group <group>"
    if principal == "oke_workload_identity":
        return "any-user"
    return "group <group>"


def policy(principal: str | None, repository: str, *permissions: str) -> str:
    """Return the policy statement that allows something with a repository.

    Args:
        principal: its kind.
        repository: without the namespace.
        permissions: e.g. ``REPOSITORY_READ``.
    """
    asked = ", ".join(f"request.permission='{name}'" for name in permissions)
    return (
        f"Allow {subject(principal)} to manage repos in compartment <compartment> where all "
        f"{{target.repo.name='{repository}', any {{{asked}}}}}"
    )
