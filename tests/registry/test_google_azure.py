"""Artifact Registry and ACR, against servers made after their documents."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bootstream.errors import InvalidInput, PermissionDenied
from bootstream.progress import NO_PROGRESS
from bootstream.registry.azure import AzureArtifactsRegistry
from bootstream.registry.gcp import GCPArtifactsRegistry
from bootstream.registry.protocol import ArtifactsRegistry
from bootstream.registry.remote import Access
from bootstream.testing.artifacts import ArtifactsRegistryConformance, new_build
from bootstream.testing.registry import DockerRegistry
from bootstream.testing.servers.acr import AcrFront
from bootstream.testing.servers.gar import PROJECT, REGION, ArtifactRegistryFront


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    with DockerRegistry(tmp_path_factory.mktemp("registry")) as server:
        yield server


@pytest.fixture(scope="module")
def google(images: DockerRegistry) -> Iterator[ArtifactRegistryFront]:
    with ArtifactRegistryFront(images.host) as front:
        yield front


@pytest.fixture(scope="module")
def key(google: ArtifactRegistryFront, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return google.write_key(tmp_path_factory.mktemp("key") / "key.json")


def open_google(
    front: ArtifactRegistryFront, key: Path, access: Access, **changed: Any
) -> GCPArtifactsRegistry:
    arguments: dict[str, Any] = {
        "project": PROJECT,
        "region": REGION,
        "repository": f"r{new_build()}",
        "credentials_file": key,
        "host": front.host,
        "api": front.url,
    }
    return GCPArtifactsRegistry(access, **(arguments | changed))


class TestGoogle(ArtifactsRegistryConformance):
    """A service account's key; the repository is made."""

    @pytest.fixture
    def registry(
        self, google: ArtifactRegistryFront, key: Path, access: Access
    ) -> Iterator[ArtifactsRegistry]:
        found = open_google(google, key, access)
        yield found
        found.close()

    @pytest.fixture
    def neighbour(
        self, google: ArtifactRegistryFront, key: Path, access: Access
    ) -> Iterator[ArtifactsRegistry]:
        found = open_google(google, key, access)
        yield found
        found.close()


def test_google_renews_tokens(
    google: ArtifactRegistryFront, key: Path, access: Access, tmp_path: Path
) -> None:
    """A token that is refused, at the registry or at the API, is replaced once."""
    registry = open_google(google, key, access)
    build = new_build()
    reference, digest = ArtifactsRegistryConformance.make(tmp_path / "images")
    assert registry.push_image(reference, "py", build, NO_PROGRESS) == digest
    google.tokens.clear()
    assert registry.get_image("py", build).digest == digest
    google.tokens.clear()
    assert [image.digest for image in registry.list_images()] == [digest]
    (image,) = registry.list_images("py")
    assert image.pushed is not None
    assert image.pushed.year == 2026
    assert registry.details().principal == "builder@project-1.iam.gserviceaccount.com"
    registry.close()


def test_google_says_what_is_missing(
    google: ArtifactRegistryFront, key: Path, access: Access, tmp_path: Path
) -> None:
    """A repository that may not be made, and one that is not to be; a name that cannot be."""
    reference, _ = ArtifactsRegistryConformance.make(tmp_path / "images")
    registry = open_google(google, key, access)
    google.denied = {"POST"}
    try:
        with pytest.raises(PermissionDenied) as raised:
            registry.push_image(reference, "py", new_build(), NO_PROGRESS)
    finally:
        google.denied = set()
    assert "gcloud artifacts repositories create" in (raised.value.remedy or "")
    registry.close()
    with pytest.raises(InvalidInput) as wrong:
        open_google(google, key, access, region="europe.west/1")
    assert wrong.value.object == "GCP_REGION"
    (tmp_path / "broken.json").write_text('{"type": "service_account", "private_key": "hush"}')
    with pytest.raises(PermissionDenied) as broken:
        open_google(google, tmp_path / "broken.json", access)
    assert "hush" not in str(broken.value)


def test_google_names(google: ArtifactRegistryFront, key: Path, access: Access) -> None:
    """The host is the region's."""
    registry = open_google(google, key, access, host=None, repository="e2b")
    build = new_build()
    assert registry.get_tag("py", build) == (
        f"europe-west1-docker.pkg.dev/project-1/e2b/py:{build}"
    )
    registry.close()


# -- Azure ----------------------------------------------------------------------------------------


@pytest.fixture
def azure(images: DockerRegistry) -> Iterator[AcrFront]:
    with AcrFront(images.host) as front:
        yield front


@pytest.fixture
def azure_neighbour(tmp_path: Path) -> Iterator[AcrFront]:
    with DockerRegistry(tmp_path / "other") as images, AcrFront(images.host) as front:
        yield front


def open_azure(front: AcrFront, access: Access) -> AzureArtifactsRegistry:
    return AzureArtifactsRegistry(
        access, name="bootstream", host=front.host, entra=lambda: front.entra
    )


class TestAzure(ArtifactsRegistryConformance):
    """Entra's token, the registry's refresh token, tokens for scopes."""

    @pytest.fixture
    def registry(self, azure: AcrFront, access: Access) -> Iterator[ArtifactsRegistry]:
        found = open_azure(azure, access)
        yield found
        found.close()

    @pytest.fixture
    def neighbour(self, azure_neighbour: AcrFront, access: Access) -> Iterator[ArtifactsRegistry]:
        found = open_azure(azure_neighbour, access)
        yield found
        found.close()


def test_azure_says_what_is_missing(azure: AcrFront, access: Access, tmp_path: Path) -> None:
    """Roles by name; what cannot sign in says how to."""
    reference, _ = ArtifactsRegistryConformance.make(tmp_path / "images")
    build = new_build()
    registry = open_azure(azure, access)
    registry.push_image(reference, "py", build, NO_PROGRESS)
    azure.denied = {"delete"}
    with pytest.raises(PermissionDenied) as raised:
        registry.delete("py", build)
    assert "AcrDelete" in (raised.value.remedy or "")
    registry.close()
    azure.entra = "another"
    stranger = AzureArtifactsRegistry(
        access, name="bootstream", host=azure.host, entra=lambda: "old"
    )
    with pytest.raises(PermissionDenied) as unknown:
        stranger.get_image("py", build)
    assert "az login" in (unknown.value.remedy or "")
    stranger.close()


def test_azure_names(access: Access) -> None:
    """The host is the registry's own; the usual chain of sign-ins is not asked yet."""
    registry = AzureArtifactsRegistry(access, name="Fleet")
    build = new_build()
    assert registry.get_tag("py", build) == f"fleet.azurecr.io/py:{build}"
    registry.close()
    with pytest.raises(InvalidInput):
        AzureArtifactsRegistry(access, name="fleet.azurecr.io")
