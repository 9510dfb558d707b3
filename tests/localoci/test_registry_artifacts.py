"""The Artifacts API, by OCI's own clients: the SDK and oci-cli."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import oci  # type: ignore[import-untyped]  # it has no types
import pytest
from tests.localoci.client import Client
from tests.localoci.registries import Docker, artifacts, tenancy_of

from bootstream.testing.localoci import LocalOciServer

if TYPE_CHECKING:
    from collections.abc import Iterator

TOOLS = Path(sys.prefix) / "tools" / "bin"
models = oci.artifacts.models


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalOciServer]:
    with LocalOciServer(tmp_path_factory.mktemp("oci"), registry=True) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: LocalOciServer) -> Any:
    return artifacts(server)


@pytest.fixture
def docker(server: LocalOciServer) -> Iterator[Docker]:
    with Client(int(server.registry_host.rpartition(":")[2])) as client:
        docker = Docker(server, client)
        docker.token = docker.get_token().json()["token"]
        yield docker
    server.set_policies(None)


@pytest.fixture
def name(server: LocalOciServer, client: Any, request: pytest.FixtureRequest) -> str:
    """A repository of the test's own, with its namespace."""
    short = request.node.originalname.removeprefix("test_").replace("_", "-")
    client.create_container_repository(
        models.CreateContainerRepositoryDetails(
            compartment_id=server.compartment, display_name=short
        )
    )
    return f"{server.namespace}/{short}"


def refused(status: int, code: str, operation: Any, *arguments: Any, **options: Any) -> None:
    with pytest.raises(oci.exceptions.ServiceError) as caught:
        operation(*arguments, **options)
    assert (caught.value.status, caught.value.code) == (status, code)


def image_of(client: Any, server: LocalOciServer, reference: str) -> Any:
    """The image that a reference names, looked up."""
    details = models.LookupContainerImageByUriDetails(
        image_uri=f"{server.registry_host}/{reference}"
    )
    return client.lookup_container_image_by_uri(details).data


def test_the_repository_that_is_there(server: LocalOciServer, client: Any) -> None:
    """Private, mutable, in the compartment; and how new ones are made."""
    found = client.list_container_repositories(
        server.compartment, display_name=server.repository
    ).data
    (summary,) = found.items
    repository = client.get_container_repository(summary.id).data
    assert (repository.is_public, repository.is_immutable) == (False, False)
    assert (repository.namespace, repository.lifecycle_state) == ("local", "AVAILABLE")
    configuration = client.get_container_configuration(tenancy_of(server)).data
    assert configuration.is_repository_created_on_first_push is True
    assert configuration.namespace == "local"


def test_repositories(server: LocalOciServer, client: Any) -> None:
    """Make, change, list in pages, delete; a name is taken once."""
    details = models.CreateContainerRepositoryDetails(
        compartment_id=server.compartment,
        display_name="some/name",
        is_public=True,
        readme=models.ContainerRepositoryReadme(content="hello", format="TEXT_MARKDOWN"),
        freeform_tags={"a": "b"},
    )
    made = client.create_container_repository(details)
    repository = made.data
    assert (repository.display_name, repository.is_public) == ("some/name", True)
    assert (repository.readme.content, repository.freeform_tags) == ("hello", {"a": "b"})
    assert repository.time_last_pushed is None
    refused(409, "NAMESPACE_CONFLICT", client.create_container_repository, details)
    changed = client.update_container_repository(
        repository.id,
        models.UpdateContainerRepositoryDetails(is_immutable=True, is_public=False),
        if_match=made.headers["etag"],
    )
    assert (changed.data.is_immutable, changed.data.is_public) == (True, False)
    assert changed.data.readme.content == "hello"
    refused(
        *(412, "NoEtagMatch", client.delete_container_repository, repository.id),
        if_match=made.headers["etag"],
    )
    page, names = None, []
    while True:
        listed = client.list_container_repositories(
            server.compartment, limit=1, page=page, sort_by="DISPLAYNAME"
        )
        names += [one.display_name for one in listed.data.items]
        page = listed.headers.get("opc-next-page")
        if page is None:
            break
        assert listed.data.remaining_items_count > 0
    assert names == sorted(set(names))
    assert {"some/name", server.repository} <= set(names)
    client.delete_container_repository(repository.id)
    refused(404, "NotAuthorizedOrNotFound", client.get_container_repository, repository.id)
    refused(404, "NotAuthorizedOrNotFound", client.delete_container_repository, repository.id)


def test_bad_requests(server: LocalOciServer, client: Any) -> None:
    """Names, compartments and pages that are none."""
    create = client.create_container_repository
    for display_name in ("Upper", "a//b", "-", "a" * 201):
        details = models.CreateContainerRepositoryDetails(
            compartment_id=server.compartment, display_name=display_name
        )
        refused(400, "InvalidParameter", create, details)
    elsewhere = models.CreateContainerRepositoryDetails(
        compartment_id="ocid1.compartment.oc1..other", display_name="x"
    )
    refused(404, "NotAuthorizedOrNotFound", create, elsewhere)
    listing = client.list_container_images
    refused(400, "InvalidParameter", listing, server.compartment, limit=0)
    refused(400, "InvalidParameter", listing, server.compartment, page="x")
    refused(*(400, "InvalidParameter", listing, server.compartment), compartment_id_in_subtree=True)
    refused(404, "NotAuthorizedOrNotFound", listing, "ocid1.compartment.oc1..other")
    refused(
        *(400, "InvalidParameter", client.lookup_container_image_by_uri),
        models.LookupContainerImageByUriDetails(image_uri="x"),
    )
    refused(404, "NotAuthorizedOrNotFound", client.get_container_image, "ocid1.none")


def test_images(server: LocalOciServer, client: Any, docker: Docker, name: str) -> None:
    """An image by what names it, with its layers and versions; listed by filters."""
    digest = docker.push("v1", b"images", name)
    docker.push("w1", b"other", name)
    image = image_of(client, server, f"{name}:v1")
    assert image.digest == digest
    assert image_of(client, server, f"{name}@{digest}").id == image.id
    assert image.display_name == "images:v1"
    assert [(layer.size_in_bytes) for layer in image.layers] == [6]
    assert (image.layers_size_in_bytes, image.manifest_size_in_bytes > 100) == (6, True)
    assert [version.version for version in image.versions] == ["v1"]
    assert image.pull_count == 0
    docker.get("v1", name)
    assert client.get_container_image(image.id).data.pull_count == 1
    listing = client.list_container_images
    for filters, count in (
        ({"repository_name": "images"}, 2),
        ({"repository_name": "ima*"}, 2),
        ({"repository_id": image.repository_id}, 2),
        ({"repository_name": "images", "version": "v1"}, 1),
        ({"repository_name": "images", "version": "v*"}, 1),
        ({"image_digest": digest}, 1),
        ({"image_id": image.id}, 1),
        ({"display_name": "images:w1"}, 1),
        ({"repository_name": "images", "is_versioned": False}, 0),
        ({"repository_name": "images", "lifecycle_state": "DELETED"}, 0),
    ):
        found = listing(server.compartment, **filters).data.items
        assert len(found) == count, filters
    pages = oci.pagination.list_call_get_all_results(
        listing, server.compartment, repository_name="images", limit=1
    )
    assert [one.version for one in pages.data] == ["w1", "v1"]  # the newest first
    repository = client.get_container_repository(image.repository_id).data
    assert (repository.image_count, repository.layers_size_in_bytes) == (2, 11)
    assert repository.time_last_pushed is not None


def test_two_tags_of_one_image(
    server: LocalOciServer, client: Any, docker: Docker, name: str
) -> None:
    """Removing one leaves the image and the other; without any the image stays."""
    manifest = docker.manifest(b"shared", name)
    digest = docker.put("a", manifest, name).headers["docker-content-digest"]
    docker.put("b", manifest, name)
    image = image_of(client, server, f"{name}:a")
    assert [version.version for version in image.versions] == ["b", "a"]
    remove = client.remove_container_version
    left = remove(image.id, models.RemoveContainerVersionDetails(version="a"))
    assert [version.version for version in left.data.versions] == ["b"]
    assert docker.get("a", name).status == 404
    assert docker.get("b", name).body == manifest
    gone = models.RemoveContainerVersionDetails(version="a")
    refused(404, "NotAuthorizedOrNotFound", remove, image.id, gone)
    last = remove(image.id, models.RemoveContainerVersionDetails(version="b"))
    assert last.data.versions == []
    assert last.data.display_name == f"two-tags-of-one-image:b@{digest}"
    assert docker.get(digest, name).body == manifest
    # A tag given meanwhile keeps the image from a deletion that expected none.
    docker.put("c", manifest, name)
    etag = last.headers["etag"]
    refused(412, "NoEtagMatch", client.delete_container_image, image.id, if_match=etag)
    assert docker.get("c", name).status == 200


def test_delete_and_restore(server: LocalOciServer, client: Any, docker: Docker, name: str) -> None:
    """A deleted image has no tags and no manifest; it can be restored, or pushed again."""
    manifest = docker.manifest(b"deleted", name)
    docker.put("a", manifest, name)
    docker.put("b", manifest, name)
    image = image_of(client, server, f"{name}:a")
    restore = client.restore_container_image
    details = models.RestoreContainerImageDetails(version="again")
    refused(409, "IncorrectState", restore, image.id, details)
    client.delete_container_image(image.id)
    for reference in ("a", "b", image.digest):
        assert docker.get(reference, name).status == 404
    assert docker.ask("GET", f"/v2/{name}/tags/list").json()["tags"] == []
    refused(404, "NotAuthorizedOrNotFound", client.delete_container_image, image.id)
    held = client.get_container_image(image.id).data
    assert (held.lifecycle_state, held.versions) == ("DELETED", [])
    restored = restore(image.id, details).data
    assert (restored.lifecycle_state, restored.version) == ("AVAILABLE", "again")
    assert docker.get("again", name).body == manifest
    client.delete_container_image(image.id)
    assert docker.put("a", manifest, name).status == 201
    assert docker.get("a", name).body == manifest


def test_deleted_repository_begins_empty(
    server: LocalOciServer, client: Any, docker: Docker, name: str
) -> None:
    """One of the same name has neither images nor blobs of the last."""
    digest = docker.push("x", b"last time", name)
    layer = docker.upload(b"last time", name)
    repository = image_of(client, server, f"{name}:x").repository_id
    client.delete_container_repository(repository)
    assert docker.get("x", name).status == 404
    docker.push("y", b"this time", name)
    assert docker.get(digest, name).status == 404
    assert docker.ask("HEAD", f"/v2/{name}/blobs/{layer}").status == 404


def test_policies(server: LocalOciServer, client: Any, docker: Docker, name: str) -> None:
    """Each permission opens its operations, and no other; what is hidden is not found."""
    docker.push("x", b"policies", name)
    image = image_of(client, server, f"{name}:x")
    by_name: dict[str, Any] = {"repository_name": "policies"}

    def allow(*permissions: str) -> None:
        where = "in compartment C where target.repo.name='policies'"
        statement = f"Allow any-user to {{{', '.join(permissions)}}} {where}"
        server.set_policies({"statements": [statement]})

    hidden = (404, "NotAuthorizedOrNotFound")
    allow("REPOSITORY_INSPECT")
    assert client.list_container_images(server.compartment, **by_name).data.items
    refused(*hidden, client.list_container_images, server.compartment)
    refused(*hidden, client.get_container_image, image.id)
    allow("REPOSITORY_READ")
    assert client.get_container_image(image.id).data.id == image.id
    refused(*hidden, client.list_container_images, server.compartment, **by_name)
    refused(*hidden, client.delete_container_image, image.id)
    allow("REPOSITORY_UPDATE")
    public = models.UpdateContainerRepositoryDetails(is_public=True)
    refused(*hidden, client.update_container_repository, image.repository_id, public)
    refused(*hidden, client.delete_container_repository, image.repository_id)
    client.delete_container_image(image.id)
    allow("REPOSITORY_UPDATE", "REPOSITORY_MANAGE")
    client.update_container_repository(image.repository_id, public)
    allow("REPOSITORY_DELETE")
    client.delete_container_repository(image.repository_id)


def test_unsigned(server: LocalOciServer) -> None:
    """A bearer token is no signature."""
    connection = http.client.HTTPConnection(server.registry_host, timeout=10)
    try:
        for headers in ({}, {"authorization": "Bearer x"}):
            connection.request("GET", "/20160918/container/images?compartmentId=x", headers=headers)
            answer = connection.getresponse()
            assert (answer.status, json.load(answer)["code"]) == (401, "NotAuthenticated")
    finally:
        connection.close()


def test_sdk_token(server: LocalOciServer, docker: Docker) -> None:
    """The SDK's own client of the token service; its token opens the registry."""
    config = oci.config.from_file(str(server.config_file))
    client = oci.container_registry.ContainerRegistryClient(
        config, service_endpoint=server.endpoint
    )
    docker.token = client.get_access_token(
        service=server.registry_host, scope=f"repository:{docker.name}:pull,push"
    ).data.token
    assert docker.push("sdk", b"by the SDK's token")


def test_oci_cli(server: LocalOciServer, docker: Docker) -> None:
    """It lists, and deletes; the shell file is all that it needs."""
    docker.push("cli", b"cli")
    by_name = ("--display-name", f"{server.repository}:cli")
    listed = cli(server, "list", "--compartment-id", server.compartment, *by_name)
    (item,) = listed["data"]["items"]
    assert item["display-name"] == f"{server.repository}:cli"
    cli(server, "delete", "--image-id", item["id"], "--force")
    assert docker.get("cli").status == 404


def cli(server: LocalOciServer, *arguments: str) -> Any:
    command = [str(TOOLS / "oci"), "artifacts", "container", "image", *arguments]
    result = subprocess.run(
        command,
        env=os.environ | server.variables | {"OCI_CLI_SUPPRESS_FILE_PERMISSIONS_WARNING": "True"},
        capture_output=True,
        text=True,
        check=False,
        timeout=28,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout) if result.stdout.strip() else None
