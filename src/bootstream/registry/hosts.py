"""The host of a registry, as settings name it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from bootstream.errors import InvalidInput
from bootstream.images.reference import parse_name
from bootstream.images.transport import Origin, is_loopback


@dataclass(frozen=True, slots=True)
class RegistryHost:
    """Where a registry is: ``name`` is HOST or HOST:PORT as it stands in references."""

    name: str
    plain_http: bool = False

    @property
    def url(self) -> str:
        """Its URL, without a slash at the end."""
        return f"{'http' if self.plain_http else 'https'}://{self.name}"


def parse_host(text: str, *, setting: str, plain_http: bool, tls: bool) -> RegistryHost:
    """Return the host that a setting names.

    Args:
        text: HOST[:PORT], with ``https://`` or ``http://`` before it or not.
        setting: the variable's name, for errors.
        plain_http: speak http. Otherwise it is spoken to loopback hosts alone, where the
            text does not say https.
        tls: speak https also to loopback hosts.

    Raises:
        InvalidInput: it is no host, or it says http of another host than this.
    """
    scheme, separator, name = text.rpartition("://")
    name = name.rstrip("/")
    if (separator and scheme not in ("http", "https")) or not _is_host(name):
        raise InvalidInput(
            "it is not the host of a registry",  # not repeated: there may be a password in it
            operation="read",
            object=setting,
            remedy="write HOST or HOST:PORT, such as registry.example.com or 127.0.0.1:5000",
        )
    loopback = is_loopback(Origin.of(f"https://{name}").host)
    if scheme == "http" and not loopback and not plain_http:
        raise InvalidInput(
            "passwords and signed requests would go over http",
            operation="open registry",
            object=name,
            remedy="use https; http is for servers on this host",
        )
    http = plain_http or scheme == "http" or (loopback and scheme != "https" and not tls)
    return RegistryHost(name, http)


def _is_host(name: str) -> bool:
    try:
        return parse_name(f"{name}/any").registry == name
    except InvalidInput:
        return False


_FORMS = {
    "OCI_OCIR": re.compile(r"[a-z0-9-]+\.ocir\.io|ocir\.[a-z0-9-]+\.oci\.[a-z0-9.-]+"),
    "AWS_ECR": re.compile(r"[0-9]+\.dkr\.ecr\.[a-z0-9.-]+"),
    "GCP_ARTIFACTS": re.compile(r"[a-z0-9-]+-docker\.pkg\.dev"),
    "AZURE_ACR": re.compile(r"[a-z0-9-]+\.azurecr\.[a-z0-9.]+"),
}


def may_be(provider: str, host: str, *, endpoint: str | None) -> bool:
    """Tell by its form alone whether a host may be a provider's registry.

    Args:
        provider: as in ARTIFACTS_REGISTRY_PROVIDER.
        host: HOST[:PORT].
        endpoint: another host than the cloud's own, where one is set, with or without a scheme.
    """
    if endpoint is not None:
        return endpoint.rpartition("://")[2] == host
    form = _FORMS.get(provider)
    return form is not None and form.fullmatch(host) is not None
