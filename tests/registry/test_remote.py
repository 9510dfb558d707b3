"""What all registries share, on docker-registry as it comes: open, with passwords, tokens, TLS."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bootstream.errors import InvalidInput, PermissionDenied, Unavailable
from bootstream.images.cache import BlobCache
from bootstream.images.credentials import Credentials, CredentialSource
from bootstream.progress import NO_PROGRESS
from bootstream.registry.hosts import parse_host
from bootstream.registry.names import ImageNames
from bootstream.registry.ocihosts import artifacts_endpoint, find_host
from bootstream.registry.remote import Access, RemoteRegistry
from bootstream.testing.artifacts import ArtifactsRegistryConformance, CountingProgress, new_build
from bootstream.testing.registry import DockerRegistry, TokenAuth

USER = ("builder", "a password")


class _OneUser:
    def find(self, registry: str, repository: str | None = None) -> Credentials | None:
        return Credentials(*USER)


class Plain(RemoteRegistry):
    """A registry without a cloud, which deletes nothing: docker-registry takes no tag away."""

    provider = "Plain"

    def __init__(
        self, access: Access, host: str, pattern: str, user: CredentialSource | None = None
    ) -> None:
        super().__init__(access)
        self._user = user or _OneUser()
        self._names, self._host = ImageNames(pattern), host

    def names(self) -> ImageNames:
        return self._names

    def host(self) -> str:
        return self._host

    def credentials(self, repository: str, *, writing: bool) -> CredentialSource:
        return self._user

    def remove(self, repository: str, tag: str) -> None:
        raise NotImplementedError

    def explain(self, error: Exception, repository: str, *, writing: bool) -> None:
        """Nothing more is known."""


@pytest.fixture(scope="module", params=["open", "password", "token", "tls"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DockerRegistry]:
    folder = tmp_path_factory.mktemp(request.param)
    kinds = {
        "open": DockerRegistry(folder),
        "password": DockerRegistry(folder, htpasswd=USER),
        "token": DockerRegistry(folder, token=TokenAuth(user=USER[0], password=USER[1])),
        "tls": DockerRegistry(folder, tls=True, htpasswd=USER),
    }
    with kinds[request.param] as running:
        yield running


@pytest.fixture
def reached(server: DockerRegistry, tmp_path: Path) -> Access:
    ca_file = str(server.ca_file) if server.ca_file.exists() else None
    return Access(BlobCache(tmp_path / "cache"), ca_file=ca_file)


def test_push_list_copy(server: DockerRegistry, reached: Access, tmp_path: Path) -> None:
    """By each way of signing in; blobs of a neighbouring repository are mounted, not sent."""
    one = Plain(reached, server.host, f"r{new_build()}/{{template_id}}:{{build_id}}")
    other = Plain(reached, server.host, f"r{new_build()}:{{template_id}}-{{build_id}}")
    build = new_build()
    reference, digest = ArtifactsRegistryConformance.make(tmp_path / "images")
    assert one.push_image(reference, "py", build, NO_PROGRESS) == digest
    progress = CountingProgress()
    assert other.copy_image(one, "py", build, progress) == digest
    assert list(progress.totals) == ["copy"]
    for registry in (one, other):
        image = registry.get_image("py", build)
        image.fetch(NO_PROGRESS)
        assert image.digest == digest
        assert [found.digest for found in registry.list_images("py")] == [digest]
        assert list(registry.list_images("js")) == []
        registry.close()


def test_a_wrong_password(tmp_path: Path, access: Access) -> None:
    """It is PermissionDenied, without the password in it, and nothing is there afterwards."""
    with DockerRegistry(tmp_path / "server", htpasswd=USER) as server:
        registry = Plain(access, server.host, "team/{template_id}:{build_id}", _Wrong())
        reference, _ = ArtifactsRegistryConformance.make(tmp_path / "images")
        with pytest.raises(PermissionDenied) as raised:
            registry.push_image(reference, "py", new_build(), NO_PROGRESS)
        assert "wrong-password" not in f"{raised.value} {raised.value.remedy}"
        registry.close()


class _Wrong:
    def find(self, registry: str, repository: str | None = None) -> Credentials | None:
        return Credentials("builder", "wrong-password")


def test_certificates_are_checked(server: DockerRegistry, reached: Access) -> None:
    """Without its authority's certificate a registry with TLS is not spoken to."""
    if reached.ca_file is None:
        return
    registry = Plain(replace(reached, ca_file=None), server.host, "team/{template_id}:{build_id}")
    with pytest.raises(Unavailable) as raised:
        registry.get_image("py", new_build())
    assert not raised.value.transient
    registry.close()


# -- hosts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("endpoint", "region", "name", "http", "identifier"),
    [
        (None, "iad", "us-ashburn-1.ocir.io", False, "us-ashburn-1"),
        (None, "eu-frankfurt-1", "eu-frankfurt-1.ocir.io", False, "eu-frankfurt-1"),
        (
            None,
            "us-gov-ashburn-1",
            "ocir.us-gov-ashburn-1.oci.oraclegovcloud.com",
            False,
            "us-gov-ashburn-1",
        ),
        ("iad.ocir.io", None, "iad.ocir.io", False, "us-ashburn-1"),
        ("https://fra.ocir.io/", "iad", "fra.ocir.io", False, "eu-frankfurt-1"),
        (
            "ocir.us-ashburn-1.oci.oraclecloud.com",
            None,
            "ocir.us-ashburn-1.oci.oraclecloud.com",
            False,
            "us-ashburn-1",
        ),
        (
            "ocir.xx-new-1.oci.oraclecloud99.com",
            None,
            "ocir.xx-new-1.oci.oraclecloud99.com",
            False,
            "xx-new-1",
        ),
        ("127.0.0.1:5000", "iad", "127.0.0.1:5000", True, "us-ashburn-1"),
        ("http://localhost:5000", None, "localhost:5000", True, None),
        ("https://127.0.0.1:5000", None, "127.0.0.1:5000", False, None),
        (
            "registry.internal.example:8443",
            "phx",
            "registry.internal.example:8443",
            False,
            "us-phoenix-1",
        ),
    ],
)
def test_hosts_of_ocir(
    endpoint: str | None, region: str | None, name: str, http: bool, identifier: str | None
) -> None:
    """All forms of names, and whose region's they are."""
    host = find_host(endpoint, region)
    assert (host.name, host.plain_http) == (name, http)
    assert (host.region.identifier if host.region else None) == identifier
    assert host.url == f"{'http' if http else 'https'}://{name}"


def test_artifacts_endpoints() -> None:
    """The region's, in its realm; or another, with its version or without."""
    for region, expected in (
        ("iad", "https://artifacts.us-ashburn-1.oci.oraclecloud.com/20160918"),
        ("ltn", "https://artifacts.uk-gov-london-1.oci.oraclegovcloud.uk/20160918"),
    ):
        assert artifacts_endpoint(None, find_host(None, region).region) == expected
    for text in ("http://127.0.0.1:1", "http://127.0.0.1:1/20160918/"):
        assert artifacts_endpoint(text, None) == "http://127.0.0.1:1/20160918"
    with pytest.raises(InvalidInput):
        artifacts_endpoint(None, None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a/b",
        "user:hush@iad.ocir.io",
        "ftp://iad.ocir.io",
        "iad.ocir.io:99999",
        "http://iad.ocir.io",
        "a b",
    ],
)
def test_hosts_that_cannot_be(text: str) -> None:
    """They are refused, and not repeated where there may be a password; nothing goes over http."""
    with pytest.raises(InvalidInput) as raised:
        parse_host(text, setting="OCIR_ENDPOINT", plain_http=False, tls=False)
    assert "hush" not in str(raised.value)
