"""OCIR against the local OCI, as an instance and as a user with an auth token."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self

import pytest

from bootstream.clouds.oci import Principal
from bootstream.errors import AlreadyExists, ImageNotFound, PermissionDenied
from bootstream.images.cache import BlobCache
from bootstream.images.credentials import Credentials
from bootstream.images.transport import Transport
from bootstream.progress import NO_PROGRESS
from bootstream.registry.api import Api
from bootstream.registry.oci import OCIArtifactsRegistry
from bootstream.registry.ocirtokens import PrincipalSigner
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


# -- what is OCIR's own ---------------------------------------------------------------------------


def pushed(registry: OCIArtifactsRegistry, folder: Path, build: str, seed: int = 1) -> str:
    reference, _ = ArtifactsRegistryConformance.make(folder, seed)
    return registry.push_image(reference, "py", build, NO_PROGRESS)


def test_names_of_the_guide(oci: LocalOciServer, opened: Opener) -> None:
    """HOST/NAMESPACE/REPOSITORY:TEMPLATE-BUILD; the namespace is looked up."""
    build = new_build()
    registry = opened(repository="e2b-templates")
    expected = f"{oci.registry_host}/{oci.namespace}/e2b-templates:py-{build}"
    assert registry.get_tag("py", build) == expected
    elsewhere = opened(endpoint=None, namespace="ns", repository="e2b-templates")
    assert elsewhere.get_tag("py", build) == (f"{oci.region}.ocir.io/ns/e2b-templates:py-{build}")


def test_a_repository_that_may_not_be_made(
    oci: LocalOciServer, opened: Opener, tmp_path: Path
) -> None:
    """The error has the command and the statement; where it must not be made, the command."""
    oci.set_policies(
        {
            "statements": [
                "Allow any-user to manage repos in tenancy where any "
                "{request.permission='REPOSITORY_INSPECT', request.permission='REPOSITORY_READ', "
                "request.permission='REPOSITORY_UPDATE'}"
            ]
        }
    )
    try:
        registry = opened()
        with pytest.raises(PermissionDenied) as raised:
            pushed(registry, tmp_path / "images", new_build())
    finally:
        oci.set_policies(None)
    assert "oci artifacts container repository create" in (raised.value.remedy or "")
    assert "REPOSITORY_CREATE" in (raised.value.remedy or "")


def test_refusals_name_the_statement(oci: LocalOciServer, opened: Opener, tmp_path: Path) -> None:
    """Who may only look is told what pushing and pulling need."""
    registry = opened()
    build = new_build()
    pushed(registry, tmp_path / "images", build)
    name = registry.names().prefix.partition("/")[2]
    oci.set_policies(
        {
            "statements": [
                "Allow any-user to manage repos in tenancy where any "
                "{request.permission='REPOSITORY_INSPECT'}"
            ]
        }
    )
    try:
        other = opened(repository=name)
        for call in (
            lambda: other.get_image("py", build),
            lambda: pushed(other, tmp_path / "images", build, 2),
            lambda: other.delete("py", build),
        ):
            with pytest.raises(PermissionDenied) as raised:
                call()
            assert f"target.repo.name='{name}'" in (raised.value.remedy or "")
    finally:
        oci.set_policies(None)


def test_who_may_only_read(oci: LocalOciServer, opened: Opener, tmp_path: Path) -> None:
    """Pulling needs REPOSITORY_READ and nothing more."""
    registry = opened()
    build = new_build()
    digest = pushed(registry, tmp_path / "images", build)
    name = registry.names().prefix.partition("/")[2]
    statement = (
        "Allow any-user to manage repos in tenancy where all "
        f"{{target.repo.name='{name}', request.permission='REPOSITORY_READ'}}"
    )
    oci.set_policies({"statements": [statement]})
    try:
        image = opened(repository=name).get_image("py", build)
        image.fetch(NO_PROGRESS)
        assert image.digest == digest
    finally:
        oci.set_policies(None)


def test_immutable_repositories(
    oci: LocalOciServer, instance: Principal, opened: Opener, tmp_path: Path
) -> None:
    """Another image for the build is AlreadyExists, the same one is fine."""
    registry = opened()
    name = registry.names().prefix.partition("/")[2]
    transport = Transport()
    api = Api(
        f"{oci.variables['OCI_ARTIFACTS_ENDPOINT'].removesuffix('/20160918')}/20160918",
        transport=transport,
        signer=PrincipalSigner(instance),
    )
    body = {"compartmentId": oci.compartment, "displayName": name, "isImmutable": True}
    api.call("POST", "/container/repositories", body=body, operation="create", object=name)
    transport.close()
    build = new_build()
    digest = pushed(registry, tmp_path / "images", build)
    assert pushed(registry, tmp_path / "images", build) == digest
    with pytest.raises(AlreadyExists):
        pushed(registry, tmp_path / "images", build, 2)
    assert registry.get_image("py", build).digest == digest


def test_tokens_end(tmp_path: Path, instance: Principal) -> None:
    """Tokens that are good for two seconds are renewed; a wrong password is told apart."""
    with LocalOciServer(tmp_path / "oci", registry=True, registry_token_seconds=2) as server:
        principal = server.principal("instance_principal")

        def open_one(user: Credentials | None = None) -> OCIArtifactsRegistry:
            return OCIArtifactsRegistry(
                Access(BlobCache(tmp_path / "cache")),
                principal=lambda: principal,
                user=user,
                region=server.region,
                compartment=server.compartment,
                endpoint=server.registry_host,
                artifacts=server.variables["OCI_ARTIFACTS_ENDPOINT"],
                object_storage=server.endpoint,
            )

        registry = open_one()
        build = new_build()
        digest = pushed(registry, tmp_path / "images", build)
        server.set_clock(60)  # what was given out has ended
        try:
            assert registry.get_image("py", build).digest == digest
        finally:
            server.set_clock(0)
        registry.close()
        wrong = open_one(Credentials(server.registry_user, "not the token"))
        with pytest.raises(PermissionDenied) as raised:
            wrong.get_image("py", build)
        assert "OCIR_PASSWORD" in (raised.value.remedy or "")
        assert "not the token" not in f"{raised.value} {raised.value.remedy}"
        wrong.close()


def test_realms_of_strangers(instance: Principal, access: Access, tmp_path: Path) -> None:
    """A registry whose challenge names another host: no signature goes there."""
    stranger = _Listener()
    with stranger, _Challenger(stranger.url) as registry:
        found = OCIArtifactsRegistry(
            access,
            principal=lambda: instance,
            namespace="ns",
            region="us-ashburn-1",
            endpoint=registry.host,
        )
        with pytest.raises((PermissionDenied, ImageNotFound)):
            found.get_image("py", new_build())
        found.close()
    assert stranger.requests == []
    tokens = [path for path, sent in registry.requests if path.startswith("/20180419/")]
    assert tokens
    assert all(
        "Signature" not in sent for path, sent in registry.requests if path.startswith("/v2")
    )


class _Listener:
    """A server that notes path and Authorization of what comes, and answers 404."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests.append((self.path, self.headers.get("Authorization") or ""))
                status, headers, body = outer.answer(self.path)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self.host = f"127.0.0.1:{self._server.server_port}"
        self.url = f"http://{self.host}"

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        return 404, {}, b""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Challenger(_Listener):
    """Gives tokens, and refuses them with a challenge that names another host."""

    def __init__(self, realm: str) -> None:
        super().__init__()
        self.realm = realm

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        if path.startswith("/20180419/docker/token"):
            return 200, {}, json.dumps({"token": "any", "expires_in": 3600}).encode()
        challenge = f'Bearer realm="{self.realm}/20180419/docker/token",service="x",scope=""'
        return 401, {"WWW-Authenticate": challenge}, b"{}"
