"""Which principal this process is: the one that is named, or the first that can be used."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from bootstream.clouds.oci.credentials import Principal
from bootstream.clouds.oci.instance import InstancePrincipal
from bootstream.clouds.oci.keyed import ApiKeyPrincipal, ResourcePrincipal, SessionTokenPrincipal
from bootstream.clouds.oci.profile import find_config_file, load_profile
from bootstream.clouds.oci.regions import learn_from_json
from bootstream.clouds.oci.workload import WorkloadIdentityPrincipal, endpoint_of
from bootstream.errors import BootstreamError, InvalidInput, PermissionDenied
from bootstream.proxies import NO_PROXIES, Proxies

_LOG = logging.getLogger(__name__)
KINDS = (
    "api_key",
    "security_token",
    "instance_principal",
    "resource_principal",
    "oke_workload_identity",
)


class _Opener:
    """Opens each kind of principal from the same arguments."""

    def __init__(
        self,
        config_file: Path | None,
        profile: str | None,
        environ: Mapping[str, str],
        metadata_base_url: str | None,
        federation_endpoint: str | None,
        proxies: Proxies,
    ) -> None:
        self.proxies = proxies
        self.config_file = config_file
        self.profile = profile
        self.environ = environ
        self.metadata_base_url = metadata_base_url or environ.get("OCI_METADATA_BASE_URL") or None
        self.federation_endpoint = (
            federation_endpoint or environ.get("OCI_CLI_FEDERATION_ENDPOINT") or None
        )
        self.ca_file = environ.get("OCI_CLI_CERT_BUNDLE") or None

    def named(self, auth: str) -> Principal:
        kind = auth.strip().lower()
        if kind == "instance_principal":
            return self.instance(probing=False)
        if kind == "resource_principal":
            return ResourcePrincipal(self.environ)
        if kind == "oke_workload_identity":
            return self.workload(patience=30.0)
        if kind == "api_key":
            return ApiKeyPrincipal(load_profile(self.config_file, self.profile, self.environ))
        if kind == "security_token":
            return SessionTokenPrincipal(load_profile(self.config_file, self.profile, self.environ))
        raise InvalidInput(
            f"no kind of principal is called {auth!r}",
            operation="open principal",
            object="OCI_CLI_AUTH",
            remedy=f"set it to one of: {', '.join(KINDS)}",
        )

    def instance(self, *, probing: bool) -> Principal:
        return InstancePrincipal(
            self.metadata_base_url,
            self.federation_endpoint,
            probing=probing,
            ca_file=self.ca_file,
            proxies=self.proxies,
        )

    def workload(self, *, patience: float) -> Principal:
        endpoint = endpoint_of(self.environ)
        if endpoint is None:
            raise PermissionDenied(
                "KUBERNETES_SERVICE_HOST is not set",
                operation="read environment",
                object="oke_workload_identity",
                remedy="workload identity exists in pods of enhanced OKE clusters only",
            )
        ca_file = self.environ.get("OCI_KUBERNETES_SERVICE_ACCOUNT_CERT_PATH")
        token_file = self.environ.get("OCI_KUBERNETES_SERVICE_ACCOUNT_TOKEN_PATH")
        return WorkloadIdentityPrincipal(
            endpoint,
            region=self.environ.get("OCI_RESOURCE_PRINCIPAL_REGION") or None,
            token_file=Path(token_file) if token_file else None,
            ca_file=Path(ca_file) if ca_file else None,
            patience=patience,
        )

    def of_profile(self) -> Principal:
        profile = load_profile(self.config_file, self.profile, self.environ)
        session = profile.get("security_token_file") is not None and (
            "security_token_file" in profile.own or "user" not in profile.own
        )
        return SessionTokenPrincipal(profile) if session else ApiKeyPrincipal(profile)


def open_principal(
    *,
    auth: str | None = None,
    config_file: Path | None = None,
    profile: str | None = None,
    environ: Mapping[str, str],
    metadata_base_url: str | None = None,
    federation_endpoint: str | None = None,
    proxies: Proxies = NO_PROXIES,
) -> Principal:
    """Return the principal, ready to sign.

    ``auth``, or ``OCI_CLI_AUTH``, names a kind, and then no other is tried. Otherwise the
    order is: resource principal, workload identity, configuration file, instance principal; each
    is passed over where it is not there or cannot be used, except that a configuration file
    or profile that somebody named has to be usable: nobody who asked for one identity shall
    act as another.

    Args:
        auth: one of ``KINDS``, or None.
        config_file: see ``profile``; None finds it.
        profile: None takes ``OCI_CLI_PROFILE``, else ``DEFAULT``.
        environ: the environment's variables; nothing else is read from it.
        metadata_base_url: else ``OCI_METADATA_BASE_URL``, else Oracle's address.
        federation_endpoint: full URL; else ``OCI_CLI_FEDERATION_ENDPOINT``, else the region's.
        proxies: for the federation service; metadata and a cluster's own services are near.

    Raises:
        InvalidInput: no such kind.
        PermissionDenied: none can be used; the remedy tells what was tried, and why not.
        Unavailable: the kind that was named got no answer.
    """
    if text := environ.get("OCI_REGION_METADATA"):
        learn_from_json(text)
    opener = _Opener(config_file, profile, environ, metadata_base_url, federation_endpoint, proxies)
    if auth := auth or environ.get("OCI_CLI_AUTH"):
        return opener.named(auth)

    path, named = find_config_file(config_file, environ)
    named = named or bool(profile or environ.get("OCI_CLI_PROFILE"))
    tried: list[str] = []
    unusable: list[str] = []
    steps: tuple[tuple[str, Callable[[], Principal | None]], ...] = (
        (
            "resource principal",
            lambda: (
                ResourcePrincipal(environ)
                if environ.get("OCI_RESOURCE_PRINCIPAL_VERSION")
                else None
            ),
        ),
        (
            "workload identity",
            lambda: opener.workload(patience=3.0) if endpoint_of(environ) else None,
        ),
        ("configuration file", opener.of_profile),
        ("instance principal", lambda: opener.instance(probing=True)),
    )
    for kind, open_one in steps:
        try:
            principal = open_one()
        except BootstreamError as error:
            if kind == "configuration file" and named:
                raise
            tried.append(f"{kind}: {error}" + (f" ({error.remedy})" if error.remedy else ""))
            if kind != "configuration file" or path.exists():
                unusable.append(f"{kind} cannot be used: {error}")
        else:
            if principal is not None:
                for problem in unusable:
                    _LOG.warning("%s; signing as %s", problem, principal.name)
                return principal
            tried.append(f"{kind}: not in the environment")
    raise PermissionDenied(
        "no principal can be used to sign requests",
        operation="open principal",
        remedy="set OCI_CLI_AUTH to the kind that should work. Tried: " + "; ".join(tried),
    )
