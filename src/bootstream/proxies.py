"""Which HTTP proxy a request goes through, as the usual environment variables say.

There is no standard. These are the rules that curl, Go and Python's clients share:

- ``http_proxy``, ``https_proxy`` hold for URLs of these schemes, ``all_proxy`` for those of
  the two that are not set. A name in lower case wins over the same in upper case, also
  when it is empty, which means none.
- ``HTTP_PROXY`` does not count where ``REQUEST_METHOD`` is set: under CGI it is a header
  of whoever calls (httpoxy, CVE-2016-5385).
- ``no_proxy`` lists who is asked directly, separated by commas or blanks: ``*`` for all;
  ``example.com``, ``.example.com`` or ``*.example.com`` for this name and all below it; an
  IP address; a network, ``10.0.0.0/8``. ``:port`` at the end limits an entry to that port.
- A loopback host is always asked directly.

A variable that cannot be a proxy's address is an error when a request would go through it,
not before: who works on a local folder need not mend it.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.parse import SplitResult, unquote, urlsplit

from bootstream.errors import InvalidInput

_PORTS = {"http": 80, "https": 443}
_ENTRY = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]]+))(?::([0-9]{1,5}))?\Z")


@dataclass(frozen=True, slots=True)
class Proxies:
    """The proxies of a process; empty: there are none. Its repr has no credentials.

    ``http``, ``https``: the proxy's URL for URLs of that scheme, as it was given.
    ``direct``: the entries of ``no_proxy``.
    """

    http: str = field(default="", repr=False)
    https: str = field(default="", repr=False)
    direct: tuple[str, ...] = ()

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Proxies:
        """Read the variables that the module's text names; never raises."""

        def get(name: str) -> str:
            lower = environ.get(name)
            if lower is None and not (name == "http_proxy" and "REQUEST_METHOD" in environ):
                return environ.get(name.upper(), "").strip()
            return (lower or "").strip()

        def of_scheme(name: str) -> str:
            named = name in environ or (name.upper() in environ and bool(get(name)))
            return get(name) if named else get("all_proxy")

        listed = re.split(r"[,\s]+", get("no_proxy").lower())
        return cls(of_scheme("http_proxy"), of_scheme("https_proxy"), tuple(filter(None, listed)))

    def for_url(self, url: str) -> str | None:
        """Return the URL of the proxy to ask ``url`` through, or None: ask directly.

        The proxy's URL is ``http://`` or ``https://[user:password@]host:port``: a secret.

        Raises:
            InvalidInput: the variable is not the URL of a proxy of these kinds.
        """
        parts = urlsplit(url)
        text = {"http": self.http, "https": self.https}.get(parts.scheme, "")
        host = (parts.hostname or "").rstrip(".")
        if not text or not host or is_loopback(host):
            return None
        port = parts.port or _PORTS[parts.scheme]
        if any(_covers(entry, host, port) for entry in self.direct):
            return None
        return _proxy_url(text, parts.scheme)


NO_PROXIES = Proxies()


def is_loopback(host: str) -> bool:
    """Tell whether a host's name or address is one of this machine alone."""
    address = _address(host)
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if address is not None:
        return address.is_loopback
    return host == "localhost" or host.endswith(".localhost")


def proxy_authorization(proxy: str) -> str | None:
    """Return the value of ``proxy-authorization`` that a proxy's URL asks for, or None.

    Basic, RFC 7617, of the URL's user and password in UTF-8.
    """
    parts = urlsplit(proxy)
    if parts.username is None:
        return None
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return f"Basic {base64.b64encode(pair.encode('utf-8', 'surrogateescape')).decode()}"


def without_credentials(proxy: str) -> str:
    """Return a proxy's URL as people may see it."""
    parts = urlsplit(proxy)
    return f"{parts.scheme}://{_netloc(parts)}"


def _proxy_url(text: str, scheme: str) -> str:
    """Return a proxy's URL, whole: with a scheme and a port, and nothing after it."""
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    plain = text.isascii() and text.isprintable() and " " not in text
    if parts.scheme not in _PORTS or not parts.hostname or not plain:
        raise InvalidInput(
            "it is not the URL of an HTTP proxy",  # not repeated: there may be a password in it
            operation="read",
            object=f"{scheme.upper()}_PROXY",
            remedy="write http://host:port, with user:password@ before the host where the proxy "
            "asks for them (ALL_PROXY holds where this is unset); SOCKS is not supported; name in "
            "NO_PROXY what needs no proxy",
        )
    user, at, _ = parts.netloc.rpartition("@")
    return f"{parts.scheme}://{user}{at}{_netloc(parts, port)}"


def _netloc(parts: SplitResult, port: int | None = None) -> str:
    host = parts.hostname or ""
    bracketed = f"[{host}]" if ":" in host else host
    # Like urllib3, and unlike curl with its 1080: the port of the scheme.
    return f"{bracketed}:{port or parts.port or _PORTS[parts.scheme]}"


def _covers(entry: str, host: str, port: int) -> bool:
    """Tell whether an entry of ``no_proxy``, in lower case, means this host and port."""
    if entry == "*":
        return True
    address = _address(host)
    if "/" in entry:
        try:
            return address is not None and address in ip_network(entry, strict=False)
        except ValueError:
            return False
    listed = _address(entry)  # an IPv6 address needs no brackets
    if listed is not None:
        return listed == address
    match = _ENTRY.match(entry)
    if match is None or (match[3] and int(match[3]) != port):
        return False
    name = match[1] or match[2]
    listed = _address(name)
    if listed is not None or address is not None:
        return listed == address
    name = name.removeprefix("*").strip(".")
    return bool(name) and (host == name or host.endswith(f".{name}"))


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None
