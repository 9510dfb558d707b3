"""Regions and realms of Oracle Cloud Infrastructure, and the hosts of their services.

A region has an identifier (``us-ashburn-1``) and a short key (``iad``); a realm is a
separate cloud with a domain of its own. The table holds the regions known when this was
written. For others there is what ``learn`` was told, by the metadata service or the environment,
then the data of an installed SDK (its data file alone; the package is not imported); what
nobody knows belongs to the commercial realm, as in Oracle's tools.
"""

from __future__ import annotations

import json
import re
import runpy
import threading
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from bootstream.errors import InvalidInput

_COMMERCIAL = "oraclecloud.com"
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_NAMESPACE = re.compile(r"[A-Za-z0-9_-]{1,63}")

# Domain of the realm -> region keys and identifiers.
_TABLE = {
    "oraclecloud.com": (
        "aga us-saltlake-2,ams eu-amsterdam-1,arn eu-stockholm-1,auh me-abudhabi-1,"
        "bog sa-bogota-1,bom ap-mumbai-1,cdg eu-paris-1,cwl uk-cardiff-1,dxb me-dubai-1,"
        "fra eu-frankfurt-1,gru sa-saopaulo-1,hsg ap-batam-1,hyd ap-hyderabad-1,iad us-ashburn-1,"
        "icn ap-seoul-1,jbp ap-kulai-2,jed me-jeddah-1,jnb af-johannesburg-1,kix ap-osaka-1,"
        "lej af-casablanca-1,lhr uk-london-1,lin eu-milan-1,mad eu-madrid-1,mel ap-melbourne-1,"
        "mrs eu-marseille-1,mty mx-monterrey-1,mtz il-jerusalem-1,nrq eu-turin-1,nrt ap-tokyo-1,"
        "onm ap-delhi-1,ord us-chicago-1,orf eu-madrid-3,phx us-phoenix-1,qro mx-queretaro-1,"
        "ruh me-riyadh-1,scl sa-santiago-1,sin ap-singapore-1,sjc us-sanjose-1,syd ap-sydney-1,"
        "vap sa-valparaiso-1,vcp sa-vinhedo-1,xsp ap-singapore-2,yny ap-chuncheon-1,"
        "yul ca-montreal-1,yyz ca-toronto-1,zrh eu-zurich-1"
    ),
    "oraclegovcloud.com": (
        "lfi us-langley-1,luf us-luke-1,pia us-gov-chicago-1,ric us-gov-ashburn-1,"
        "tus us-gov-phoenix-1"
    ),
    "oraclegovcloud.uk": "brs uk-gov-cardiff-1,ltn uk-gov-london-1",
    "oraclecloud8.com": "nja ap-chiyoda-1,ukb ap-ibaraki-1",
    "oraclecloud9.com": "ibr me-ibri-1,mct me-dcc-muscat-1",
    "oraclecloud10.com": "wga ap-dcc-canberra-1",
    "oraclecloud14.com": (
        "bgy eu-dcc-milan-1,dtm eu-dcc-rating-2,dus eu-dcc-rating-1,mxp eu-dcc-milan-2,"
        "ork eu-dcc-dublin-1,snn eu-dcc-dublin-2"
    ),
    "oraclecloud15.com": "dac ap-dcc-gazipur-1",
    "oraclecloud.eu": "str eu-frankfurt-2,vll eu-madrid-2",
    "oraclecloud20.com": "beg eu-jovanovac-1",
    "oraclecloud21.com": "doh me-dcc-doha-1,vve me-alrayyan-1",
    "oraclecloud23.com": "ebb us-somerset-1,ebl us-thames-1",
    "oraclecloud24.com": "avf eu-crissier-1,avz eu-dcc-zurich-1",
    "oraclecloud26.com": "ahu me-abudhabi-3,rba me-alain-1",
    "oraclecloud29.com": "rkt me-abudhabi-2,shj me-abudhabi-4",
    "oraclecloud35.com": "bno ap-chuncheon-2,dln ap-suwon-1,dtz ap-seoul-2",
    "oraclecloud42.com": "pgc us-newark-1,yxj us-ashburn-2",
    "oraclecloud51.com": "jsk eu-budapest-1",
    "oraclecloud52.com": "hnw sa-riodejaneiro-1",
}


@dataclass(frozen=True, slots=True)
class Region:
    """A region: ``identifier`` (us-ashburn-1), ``key`` (iad, None if unknown), realm domain."""

    identifier: str
    key: str | None
    domain: str

    def host(self, service: str) -> str:
        """Return the host of a service, e.g. ``auth``, in this region."""
        return f"{service}.{self.identifier}.{self.domain}"


_learned: dict[str, Region] = {}
_lock = threading.Lock()


@cache
def _known() -> dict[str, Region]:
    regions: dict[str, Region] = {}
    for domain, rows in _TABLE.items():
        for row in rows.split(","):
            key, identifier = row.split(" ")
            regions[key] = regions[identifier] = Region(identifier, key, domain)
    return regions


@cache
def _of_sdk() -> dict[str, Region]:
    spec = find_spec("oci")
    regions: dict[str, Region] = {}
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "regions_definitions.py"
        if not path.is_file():
            continue
        data = runpy.run_path(str(path))
        keys = {name: key for key, name in data["REGIONS_SHORT_NAMES"].items()}
        for identifier, realm in data["REGION_REALMS"].items():
            key = keys.get(identifier)
            region = Region(identifier, key, data["REALMS"][realm])
            regions[identifier] = region
            if key:
                regions[key] = region
    return regions


def learn(region: Region) -> None:
    """Remember a region that no table has, for this process. Thread safe. Raises InvalidInput."""
    _check(region.identifier)
    if region.key is not None:
        _check(region.key)
    for label in region.domain.split("."):
        _check(label, what="realm domain")
    with _lock:
        _learned[region.identifier] = region
        if region.key is not None:
            _learned[region.key] = region


def learn_from_json(text: str | bytes) -> Region:
    """Learn the region that ``OCI_REGION_METADATA`` or the metadata service describes.

    ``{"regionIdentifier", "regionKey", "realmKey", "realmDomainComponent"}``, names in any
    case. Raises InvalidInput.
    """
    try:
        document = json.loads(text)
        fields = {str(name).lower(): str(value).lower() for name, value in document.items()}
        region = Region(
            fields["regionidentifier"], fields.get("regionkey"), fields["realmdomaincomponent"]
        )
    except (ValueError, KeyError, AttributeError, RecursionError) as error:
        raise InvalidInput(
            "the description of a region is not JSON with regionIdentifier and "
            "realmDomainComponent",
            operation="read",
            object="region metadata",
        ) from error
    learn(region)
    return region


def find_region(name: str, *, default_domain: str | None = None) -> Region:
    """Return the region of an identifier or a key, in any case.

    Unknown ones get ``default_domain``, or the commercial realm's. Raises InvalidInput for
    what cannot be a region at all, so that it never becomes part of a host name.
    """
    name = name.strip().lower()
    _check(name)
    region = _known().get(name) or _learned.get(name) or _of_sdk().get(name)
    return region or Region(name, None, default_domain or _COMMERCIAL)


def is_known(name: str) -> bool:
    """Tell whether an identifier or key is in one of the tables."""
    name = name.strip().lower()
    return name in _known() or name in _learned or name in _of_sdk()


def object_storage_endpoint(
    region: str, namespace: str | None = None, *, realm_specific: bool = False
) -> str:
    """Return the base URL of Object Storage, without a slash at its end.

    ``realm_specific`` asks for the dedicated host of a namespace, which the commercial
    realm has; others, and a None namespace, get the shared host. Raises InvalidInput.
    """
    found = find_region(region)
    if realm_specific and namespace is not None and found.domain == _COMMERCIAL:
        if _NAMESPACE.fullmatch(namespace) is None:
            raise InvalidInput(
                "this cannot be a namespace of Object Storage",
                operation="find endpoint",
                object=namespace[:80],
                remedy="`oci os ns get` prints the tenancy's namespace",
            )
        return f"https://{namespace}.objectstorage.{found.identifier}.oci.customer-oci.com"
    return f"https://{found.host('objectstorage')}"


def federation_endpoint(region: Region) -> str:
    """Return the URL where an instance's certificate is exchanged for a token."""
    return f"https://{region.host('auth')}/v1/x509"


def in_realm(url: str, region: str) -> bool:
    """Tell whether a URL's host belongs to the realm of ``region``: credentials may go there."""
    host = (urlsplit(url).hostname or "").lower()
    domain = find_region(region).domain
    domains = [domain, "customer-oci.com", "ocir.io"] if domain == _COMMERCIAL else [domain]
    return any(host == domain or host.endswith(f".{domain}") for domain in domains)


def _check(label: str, *, what: str = "region") -> None:
    if _LABEL.fullmatch(label) is None:
        raise InvalidInput(
            f"this cannot be the name of a {what}",
            operation="find endpoint",
            object=repr(label[:80]),
            remedy="name a region by its identifier or key: us-ashburn-1, iad",
        )
