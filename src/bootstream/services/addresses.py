"""Which hosts the service may be sent to by those who ask it: public ones, and those allowed.

A name is judged twice. What it says: ``localhost`` and addresses that are not public are
refused at once, before anything is accepted. What it turns out to be: the address of every
connection, after look-ups and redirects, before anything is sent. So a name that changes its
address between the two gains nothing.
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from bootstream.errors import InvalidInput
from bootstream.images.reference import RegistryReference, parse_reference

_LOCAL_SUFFIXES = (".localhost", ".local", ".internal", ".localdomain")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class AddressPolicy:
    """Says which hosts may be asked. Immutable.

    Args:
        allowed: ``host`` or ``host:port`` in lower case, which may have any address.
    """

    def __init__(self, allowed: frozenset[str] = frozenset()) -> None:
        self._allowed = allowed

    def check_name(self, host: str, port: int | None = None) -> None:
        """Refuse a host for what its name says. Raises InvalidInput."""
        if self._is_allowed(host, port):
            return
        name = host.lower().strip("[]").rstrip(".")
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            if name == "localhost" or name.endswith(_LOCAL_SUFFIXES) or _is_number(name):
                raise _refused(host) from None
            return
        if not is_public(address):
            raise _refused(host)

    def check_address(self, host: str, port: int, address: str) -> None:
        """Refuse a connection to ``address``, as which ``host`` came out. Raises InvalidInput."""
        if self._is_allowed(host, port):
            return
        if not is_public(ipaddress.ip_address(address.partition("%")[0])):
            raise _refused(host)

    def check_image(self, reference: str, *, plain_http: bool) -> None:
        """Refuse what is not an image of a registry that may be asked. Raises InvalidInput."""
        parsed = parse_reference(reference)
        if not isinstance(parsed, RegistryReference):
            raise InvalidInput(
                "the service takes images of registries only, no files of its own host",
                operation="read image reference",
                object=reference[:200],
                remedy="write HOST/REPOSITORY[:TAG][@DIGEST]",
            )
        parts = urlsplit(f"//{parsed.registry}")
        host = parts.hostname or parsed.registry
        if plain_http and not self._is_allowed(host, parts.port):
            raise InvalidInput(
                "http is spoken to hosts that are allowed by name only",
                operation="read image reference",
                object=host,
                remedy="whoever runs the service can allow it: BOOTSTREAM_ALLOWED_HOSTS",
            )
        self.check_name(host, parts.port)

    def check_webhook(self, url: str) -> None:
        """Refuse what is not an https URL of a host that may be told. Raises InvalidInput."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            host = port = None
            parts = urlsplit("")
        plain = host is not None and self._is_allowed(host, port)
        if not host or parts.username is not None or parts.fragment:
            raise InvalidInput("it is no URL for a webhook", operation="read webhook")
        if parts.scheme != "https" and not (parts.scheme == "http" and plain):
            raise InvalidInput(
                "webhooks go over https; http to hosts that are allowed by name only",
                operation="read webhook",
                object=host,
            )
        self.check_name(host, port)

    def _is_allowed(self, host: str, port: int | None) -> bool:
        name = host.lower().rstrip(".")
        if ":" in name and not name.startswith("["):
            name = f"[{name}]"
        return name in self._allowed or (port is not None and f"{name}:{port}" in self._allowed)


def is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Tell whether an address is one of the public network, also as IPv6 wraps IPv4."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
    return address.is_global and not address.is_multicast


def _is_number(name: str) -> bool:
    """Whether resolvers would take the name for an IPv4 address in one of its old forms."""
    last = name.rpartition(".")[2]
    return last.isdecimal() or last.startswith("0x")


def _refused(host: str) -> InvalidInput:
    return InvalidInput(
        "this host is not a public one, and the service may not be sent there",
        operation="check address",
        object=host[:200],
        remedy="whoever runs the service can allow it by name: BOOTSTREAM_ALLOWED_HOSTS",
    )
