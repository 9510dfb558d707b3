"""Regions: every one of the SDK's, and none that could lead a request elsewhere."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from oci import regions_definitions as sdk  # type: ignore[import-untyped]

from bootstream.clouds.oci.regions import (
    Region,
    federation_endpoint,
    find_region,
    in_realm,
    is_known,
    learn_from_json,
    object_storage_endpoint,
)
from bootstream.errors import InvalidInput


def test_every_region_of_the_sdk_is_in_the_table() -> None:
    """Identifier, key and realm domain agree with Oracle's own data."""
    for key, identifier in sdk.REGIONS_SHORT_NAMES.items():
        expected = Region(identifier, key, sdk.REALMS[sdk.REGION_REALMS[identifier]])
        assert find_region(key) == find_region(identifier.upper()) == expected


def test_endpoints() -> None:
    """Shared hosts, dedicated hosts of a namespace where the realm has them, other realms."""
    assert object_storage_endpoint("iad") == "https://objectstorage.us-ashburn-1.oraclecloud.com"
    assert (
        object_storage_endpoint("us-ashburn-1", "axabc", realm_specific=True)
        == "https://axabc.objectstorage.us-ashburn-1.oci.customer-oci.com"
    )
    assert object_storage_endpoint("iad", "axabc") == object_storage_endpoint("iad")
    assert object_storage_endpoint("iad", None, realm_specific=True) == object_storage_endpoint(
        "iad"
    )
    assert (
        object_storage_endpoint("uk-gov-london-1", "ns", realm_specific=True)
        == "https://objectstorage.uk-gov-london-1.oraclegovcloud.uk"
    )
    assert (
        federation_endpoint(find_region("str"))
        == "https://auth.eu-frankfurt-2.oraclecloud.eu/v1/x509"
    )


def test_unknown_regions_belong_to_the_commercial_realm() -> None:
    """A region newer than every table is assumed where nearly all are."""
    assert not is_known("xx-future-9")
    assert find_region("xx-future-9") == Region("xx-future-9", None, "oraclecloud.com")
    assert find_region("xx-future-9", default_domain="oraclecloud8.com").domain.endswith("8.com")


def test_dedicated_regions_are_learnt() -> None:
    """What the metadata service or OCI_REGION_METADATA describes is known from then on."""
    learn_from_json(
        json.dumps(
            {
                "realmKey": "oc99",
                "realmDomainComponent": "oraclecloud99.com",
                "regionKey": "zzz",
                "regionIdentifier": "zz-dedicated-1",
            }
        )
    )
    assert (
        object_storage_endpoint("ZZZ") == "https://objectstorage.zz-dedicated-1.oraclecloud99.com"
    )
    assert is_known("zz-dedicated-1")


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", "nul", '"x"', "[" * 100_000),
        '{"regionIdentifier": "a/b", "realmDomainComponent": "c.d"}',
        '{"regionIdentifier": "ab-c-1", "realmDomainComponent": "c d/e"}',
    ],
)
def test_bad_descriptions_of_regions(text: str) -> None:
    """What is no description is InvalidInput, and nothing is learnt."""
    with pytest.raises(InvalidInput):
        learn_from_json(text)


@given(st.text(max_size=80))
def test_a_region_never_leads_elsewhere(name: str) -> None:
    """Any text is refused, or becomes labels of a host within a realm's domain."""
    try:
        url = object_storage_endpoint(name)
    except InvalidInput:
        return
    assert url.startswith("https://objectstorage.")
    assert in_realm(url, name)
    assert not set(url.removeprefix("https://")) & set("/@?#:\\ ")


@pytest.mark.parametrize("namespace", ["", "a.b", "a/b", "a@b", "a" * 64, "é"])
def test_a_namespace_never_leads_elsewhere(namespace: str) -> None:
    """A namespace becomes a host name's first label, so it has to be one."""
    with pytest.raises(InvalidInput):
        object_storage_endpoint("iad", namespace, realm_specific=True)


def test_credentials_stay_in_their_realm() -> None:
    """Hosts are compared by whole labels."""
    assert in_realm("https://objectstorage.us-ashburn-1.oraclecloud.com/n", "iad")
    assert in_realm("https://ns.objectstorage.us-ashburn-1.oci.customer-oci.com", "iad")
    assert in_realm("https://iad.ocir.io/v2", "iad")
    assert not in_realm("https://evil-oraclecloud.com/", "iad")
    assert not in_realm("https://oraclecloud.com.evil.example/", "iad")
    assert not in_realm("https://objectstorage.us-ashburn-1.oraclecloud.com/", "us-luke-1")
    assert not in_realm("nonsense", "iad")
