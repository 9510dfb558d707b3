"""Whether images can be signed in for, pulled and pushed, without leaving any.

Signing in is a request for the registry's root; pulling, a listing of tags; pushing, an upload
session that is begun and given up. A repository that is missing is no failure where the first
push makes it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from bootstream.doctor.finding import Context, Finding, State, failure
from bootstream.errors import BootstreamError, NotFound, PermissionDenied
from bootstream.images.scopes import PUSH, repository_scope
from bootstream.registry.remote import RemoteRegistry
from bootstream.wiring import get_artifacts_registry_provider

if TYPE_CHECKING:
    from bootstream.registry.oci import OCIArtifactsRegistry

_TEMPLATE, _BUILD = "bootstream-doctor", "00000000-0000-4000-8000-000000000000"


def check_registry(context: Context) -> Iterator[Finding]:
    """Yield findings for the token, the repository, pulling and pushing."""
    settings = context.settings
    if settings.registry.provider == "Local":
        yield _folder(context)
        return
    registry = get_artifacts_registry_provider(settings)
    assert isinstance(registry, RemoteRegistry)
    try:
        yield from _remote(registry)
    finally:
        registry.close()


def _folder(context: Context) -> Finding:
    path = context.settings.registry.local_base_path
    there = next(place for place in (path, *path.parents) if place.exists())
    if os.access(there, os.W_OK):
        return Finding("registry", State.OK, f"a folder: {path}")
    return Finding(
        "registry",
        State.FAILED,
        f"{there} may not be written to",
        f"let this user write to it: chown $(id -u) {there}; or set "
        "LOCAL_ARTIFACTS_REGISTRY_BASE_PATH",
    )


def _remote(registry: RemoteRegistry) -> Iterator[Finding]:
    try:
        repository, _ = registry.names().name(_TEMPLATE, _BUILD)
        with registry.client(repository).get(
            "/v2/", headers={}, operation="sign in", object=registry.host()
        ) as answer:
            answer.drain()
    except BootstreamError as error:
        if isinstance(error, PermissionDenied) and not error.remedy:
            error.remedy = "check the principal, or the user and the auth token"
        yield failure("registry.token", error)
        return
    who = registry.principal()
    yield Finding(
        "registry.token",
        State.OK,
        f"signed in to {registry.host()}" + (f" as {who}" if who else ""),
    )
    missing = False
    for finding, there in _repository(registry, repository):
        missing = missing or not there
        yield finding
    yield _pull(registry, repository)
    if missing and not registry.create:
        yield Finding("registry.push", State.SKIPPED, "there is no repository")
    else:
        yield _push(registry, repository)


def _repository(registry: RemoteRegistry, repository: str) -> Iterator[tuple[Finding, bool]]:
    """Look at the repository where an API tells of it; yield, too, whether it may be there."""
    name = "registry.repository"
    if registry.provider != "OCI_OCIR":
        return
    from bootstream.registry.oci import OCIArtifactsRegistry  # noqa: PLC0415 - an extra

    assert isinstance(registry, OCIArtifactsRegistry)
    try:
        yield _ocir_repository(registry, repository)
    except BootstreamError as error:
        yield failure(name, error), True


def _ocir_repository(registry: OCIArtifactsRegistry, repository: str) -> tuple[Finding, bool]:
    name = "registry.repository"
    found = registry.find_repository(repository)
    if found is None:
        remedy = (
            "terraform apply, or: oci artifacts container repository create --display-name "
            f"{repository.partition('/')[2]} --compartment-id <compartment>"
        )
        state = State.LACKING if registry.create else State.FAILED
        first = ", and is made by the first push" if registry.create else ""
        return Finding(name, state, f"{repository} is not there{first}", remedy), False
    if found.public:
        return Finding(
            name,
            State.LACKING,
            f"{repository} is public: everybody can read the images",
            f"oci artifacts container repository update --repository-id {found.id} "
            "--is-public false",
        ), True
    tags = "tags cannot move" if found.immutable else "private, tags can move"
    return Finding(name, State.OK, f"{repository}: {tags}"), True


def _pull(registry: RemoteRegistry, repository: str) -> Finding:
    try:
        with registry.client(repository).get(
            "tags/list?n=1", headers={}, operation="list tags", object=repository
        ) as answer:
            answer.drain()
    except NotFound:
        return Finding("registry.pull", State.OK, f"allowed; {repository} has no images yet")
    except BootstreamError as error:
        registry.explain(error, repository, writing=False)
        return failure("registry.pull", error)
    return Finding("registry.pull", State.OK, f"images of {repository} can be read")


def _push(registry: RemoteRegistry, repository: str) -> Finding:
    client = registry.client(repository, writing=True)
    scopes = (repository_scope(repository, PUSH),)
    operation = "begin an upload"
    try:
        with client.request(
            "POST",
            "blobs/uploads/",
            headers={"Content-Length": "0"},
            operation=operation,
            object=repository,
            scopes=scopes,
        ) as answer:
            answer.drain()
            where = client.locate(answer, operation=operation)
    except BootstreamError as error:
        if isinstance(error, NotFound) and registry.create:
            return Finding("registry.push", State.OK, f"the first push makes {repository}")
        registry.explain(error, repository, writing=True)
        return failure("registry.push", error)
    try:
        with client.request(
            "DELETE", where, operation="give up the upload", object=repository, scopes=scopes
        ) as answer:
            answer.drain()
    except BootstreamError:
        pass  # some registries know no end of it; an upload without a blob goes by itself
    return Finding("registry.push", State.OK, f"images can be pushed to {repository}")
