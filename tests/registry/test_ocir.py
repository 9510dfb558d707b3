"""OCIR against the local OCI, as an instance and as a user with an auth token."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from bootstream.clouds.oci import Principal
from bootstream.images.credentials import Credentials
from bootstream.registry.oci import OCIArtifactsRegistry
from bootstream.registry.protocol import ArtifactsRegistry
from bootstream.registry.remote import Access
from bootstream.testing.artifacts import ArtifactsRegistryConformance, new_build
from bootstream.testing.localoci import LocalOciServer

Opener = Callable[..., OCIArtifactsRegistry]


@pytest.fixture(scope="module")
def oci(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalOciServer]:
    """One local OCI with a registry for all tests of this file."""
    with LocalOciServer(tmp_path_factory.mktemp("oci"), registry=True) as server:
        yield server


@pytest.fixture(scope="module")
def instance(oci: LocalOciServer) -> Principal:
    """The instance that the server's metadata describe."""
    return oci.principal("instance_principal")


@pytest.fixture
def opened(oci: LocalOciServer, instance: Principal, access: Access) -> Iterator[Opener]:
    """Open registries, each with a repository of its own, that are closed at the end."""
    registries: list[OCIArtifactsRegistry] = []

    def open_one(**changed: object) -> OCIArtifactsRegistry:
        arguments: dict[str, object] = {
            "principal": lambda: instance,
            "repository": f"r-{new_build()}",
            "compartment": oci.compartment,
            "region": oci.region,
            "endpoint": oci.registry_host,
            "artifacts": oci.variables["OCI_ARTIFACTS_ENDPOINT"],
            "object_storage": oci.endpoint,
        }
        registry = OCIArtifactsRegistry(access, **(arguments | changed))  # type: ignore[arg-type]  # as given
        registries.append(registry)
        return registry

    yield open_one
    for registry in registries:
        registry.close()


class TestInstance(ArtifactsRegistryConformance):
    """The instance makes the repository, pushes, pulls, lists and deletes."""

    @pytest.fixture
    def registry(self, opened: Opener) -> ArtifactsRegistry:
        return opened()

    @pytest.fixture
    def neighbour(self, opened: Opener) -> ArtifactsRegistry:
        return opened()


class TestUser(ArtifactsRegistryConformance):
    """A user with an auth token pushes and pulls; the instance makes and deletes."""

    @pytest.fixture
    def registry(self, opened: Opener, oci: LocalOciServer) -> ArtifactsRegistry:
        user = Credentials(oci.registry_user, oci.registry_password)
        return opened(user=user)

    @pytest.fixture
    def neighbour(self, opened: Opener) -> ArtifactsRegistry:
        return opened(image_name=f"r-{new_build()}/{{template_id}}/{{build_id}}")


class TestOtherNames(ArtifactsRegistryConformance):
    """``OCI_IMAGE_NAME``: a repository a template."""

    @pytest.fixture
    def registry(self, opened: Opener) -> ArtifactsRegistry:
        return opened(image_name=f"r-{new_build()}/{{template_id}}:{{build_id}}")

    @pytest.fixture
    def neighbour(self, opened: Opener) -> ArtifactsRegistry:
        return opened(image_name=f"r-{new_build()}:{{build_id}}.{{template_id}}")
