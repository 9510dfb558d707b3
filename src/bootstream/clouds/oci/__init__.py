"""Oracle Cloud Infrastructure: principals, request signatures, regions.

Needs the ``cryptography`` package (the ``oci`` extra) and nothing of Oracle's SDK.
"""

from __future__ import annotations

from importlib.util import find_spec

from bootstream.errors import InvalidInput

if find_spec("cryptography") is None:
    raise InvalidInput(
        "signing needs the cryptography package, which is not installed",
        operation="load",
        object="bootstream.clouds.oci",
        remedy="pip install 'bootstream[oci]'",
    )

from bootstream.clouds.oci.chain import KINDS, open_principal
from bootstream.clouds.oci.credentials import Credentials, Principal
from bootstream.clouds.oci.regions import find_region, object_storage_endpoint
from bootstream.clouds.oci.signing import body_headers, http_date, sign
from bootstream.clouds.oci.web import clock_hint

__all__ = [
    "KINDS",
    "Credentials",
    "Principal",
    "body_headers",
    "clock_hint",
    "find_region",
    "http_date",
    "object_storage_endpoint",
    "open_principal",
    "sign",
]
