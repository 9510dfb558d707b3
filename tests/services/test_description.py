"""The services' description, their document, and what they read are the same."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter

from bootstream.errors import InvalidInput
from bootstream.services import manager_routes, sandbox_routes
from bootstream.services.addresses import AddressPolicy
from bootstream.services.app import make_app
from bootstream.services.metrics import ServiceMetrics
from bootstream.services.settings import ListenSettings, ServiceSettings

DOCUMENT = (Path(__file__).parents[2] / "docs" / "services.md").read_text("utf-8")


def describe(router: APIRouter) -> dict[str, Any]:
    """The OpenAPI document of a service's operations."""
    app, _ = make_app(
        "test",
        "test",
        [router],
        listen=ListenSettings(),
        metrics=ServiceMetrics("test", more=lambda: ()),
        checks={},
        state={},
    )
    return app.openapi()


@pytest.mark.parametrize("router", [manager_routes.router, sandbox_routes.router])
def test_operations(router: APIRouter) -> None:
    """Every operation is in the document, wants a token, and names its problems."""
    description = describe(router)
    assert description["openapi"].startswith("3.1")
    for path, operations in description["paths"].items():
        for method, operation in operations.items():
            assert operation["description"], path
            assert "application/problem+json" in operation["responses"]["422"]["content"], path
            if path.startswith("/v1"):
                assert operation["security"] == [{"HTTPBearer": []}], path
                last = re.sub(r"\{(template|build|sandbox)_id\}", r"{\1}", path).split("/")[-1]
                assert last.replace("{sandbox}", "{id}") in DOCUMENT, path
                assert method.upper() in DOCUMENT


def test_variables() -> None:
    """Every variable that the services read is in the document."""

    class Watched(dict[str, str]):
        asked: set[str] = set()  # noqa: RUF012 - one for all on purpose

        def get(self, name: str, default: Any = None) -> Any:
            self.asked.add(name)
            return super().get(name, default)

    ServiceSettings.from_environment(Watched(), port=1)
    assert {name for name in Watched.asked if f"`{name}`" not in DOCUMENT} == set()


@pytest.mark.parametrize(
    "environ",
    [
        {"BOOTSTREAM_BUILDS": "0"},
        {"BOOTSTREAM_LISTEN_PORT": "65536"},
        {"BOOTSTREAM_PLAIN_HTTP": "perhaps"},
        {"BOOTSTREAM_ALLOWED_HOSTS": "a b"},
    ],
)
def test_settings_that_cannot_be(environ: dict[str, str]) -> None:
    """They are refused by their variable's name."""
    with pytest.raises(InvalidInput) as raised:
        ServiceSettings.from_environment(environ, port=1)
    assert raised.value.object == next(iter(environ))


@pytest.mark.parametrize(
    ("address", "good"),
    [
        ("93.184.216.34", True),
        ("2606:4700::1111", True),
        ("127.0.0.1", False),
        ("10.0.0.1", False),
        ("100.64.0.1", False),
        ("169.254.169.254", False),
        ("192.168.1.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:93.184.216.34", True),
        ("2002:7f00:1::", False),
        ("64:ff9b::a00:1", False),
    ],
)
def test_addresses(address: str, good: bool) -> None:
    """Only public addresses are connected to, however they are written."""
    policy = AddressPolicy(frozenset({"registry.internal", "10.0.0.1:5000"}))
    if good:
        policy.check_address("example.com", 443, address)
    else:
        with pytest.raises(InvalidInput):
            policy.check_address("example.com", 443, address)
    policy.check_address("registry.internal", 443, address)
    policy.check_address("10.0.0.1", 5000, "10.0.0.1")
    with pytest.raises(InvalidInput):
        policy.check_address("10.0.0.1", 5001, "10.0.0.1")


def test_plain_http() -> None:
    """Plain http is for hosts that are allowed by name; https for public ones."""
    policy = AddressPolicy(frozenset({"registry.internal:5000"}))
    policy.check_image("ghcr.io/a/b:1", plain_http=False)
    policy.check_image("debian:12", plain_http=False)
    policy.check_image("registry.internal:5000/a:1", plain_http=True)
    for reference in ("ghcr.io/a/b:1", "registry.internal:5001/a:1"):
        with pytest.raises(InvalidInput):
            policy.check_image(reference, plain_http=True)
