"""Oracle's Artifacts API, as far as repositories and images of containers go.

"Artifacts and Container Images API", version 20160918: ``/container/repositories`` and
``/container/images``. An image is a manifest in a repository; its versions are the tags that
name it. An image without versions is kept by the service until a retention policy removes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from bootstream.errors import (
    AlreadyExists,
    Conflict,
    InvalidInput,
    NotFound,
    PermissionDenied,
    PreconditionFailed,
)
from bootstream.registry.api import Api, Reply
from bootstream.registry.ocihosts import policy

_REPOSITORIES = "/container/repositories"
_IMAGES = "/container/images"
_GONE = frozenset({"DELETED", "DELETING"})


@dataclass(frozen=True, slots=True)
class ContainerRepository:
    """A repository as the API tells of it; ``name`` without the namespace."""

    id: str
    name: str
    compartment: str
    immutable: bool
    public: bool


class ArtifactsApi:
    """What is asked of the API. Thread safe.

    Args:
        api: the endpoint, its version with it, signed in.
        principal: its kind, for the statements of policies that errors name.
        compartment: returns the compartment of the repositories, or the tenancy.
    """

    def __init__(self, api: Api, *, principal: str, compartment: Callable[[], str]) -> None:
        self._api = api
        self._principal = principal
        self._compartment = compartment

    def find_repository(self, name: str) -> ContainerRepository | None:
        """Return the repository of a name, in the compartment; None: there is none.

        Of the tenancy all compartments are looked at; the API does so of no other.
        """
        for item in self._repositories(name):
            if item.name == name:
                return item
        return None

    def repositories(self) -> Iterator[str]:
        """Yield the names of the repositories in the compartment; of the tenancy, of all of it."""
        for item in self._repositories(None):
            yield item.name

    def _repositories(self, name: str | None) -> Iterator[ContainerRepository]:
        compartment = self._compartment()
        root = compartment.startswith("ocid1.tenancy.")
        try:
            for item in self._api.pages(
                _REPOSITORIES,
                query={
                    "compartmentId": compartment,
                    "compartmentIdInSubtree": "true" if root else None,
                    "displayName": name,
                },
                items="items",
                operation="look for repository" if name else "list repositories",
                object=name or compartment,
                told_by=_next_page,
            ):
                if item.get("lifecycleState") not in _GONE:
                    yield _repository(item)
        except (PermissionDenied, NotFound) as error:
            raise self._not_allowed(error, name or "*", "REPOSITORY_INSPECT") from error

    def create_repository(self, name: str) -> None:
        """Make a private repository whose tags can move; one that is there will do.

        Raises:
            PermissionDenied: it may not be made; says what makes it, and what would allow it.
        """
        body = {
            "compartmentId": self._compartment(),
            "displayName": name,
            "isImmutable": False,
            "isPublic": False,
        }
        try:
            self._api.call(
                "POST", _REPOSITORIES, body=body, operation="create repository", object=name
            )
        except Conflict:
            return
        except (PermissionDenied, NotFound) as error:
            raise PermissionDenied(
                f"the repository is missing, and it may not be made: {error.message}",
                operation=error.operation,
                object=name,
                request_id=error.request_id,
                remedy=f"{how_to_create(name, self._compartment())}; or allow it: "
                + policy(self._principal, name, "REPOSITORY_CREATE"),
            ) from error

    def delete_version(
        self, uri: str, repository: str, version: str, *, is_there: Callable[[], bool]
    ) -> None:
        """Take a tag away from its image, and delete the image if no other tag names it.

        The image goes only in the state in which it had lost its last tag: one that somebody
        gave it meanwhile keeps it. Idempotent.

        Args:
            uri: the image's whole reference.
            repository: for errors, without the namespace.
            version: the tag.
            is_there: asks the registry itself whether the tag is there: to who may not see an
                image, the API answers that there is none.

        Raises:
            PermissionDenied: it may not be seen, or not deleted.
        """
        try:
            found = self._api.call(
                "POST",
                f"{_IMAGES}/actions/lookupImageByUri",
                body={"imageUri": uri},
                operation="look up image",
                object=uri,
            )
            self._remove(found.text("id"), version, uri)
        except (NotFound, PermissionDenied) as error:
            if isinstance(error, NotFound) and not is_there():
                return  # it never was, or somebody else was first
            # REPOSITORY_DELETE is for repositories, not for what is in them.
            raise self._not_allowed(
                error, repository, "REPOSITORY_READ", "REPOSITORY_UPDATE"
            ) from error

    def _remove(self, image: str, version: str, uri: str) -> None:
        path = f"{_IMAGES}/{quote(image, safe='')}"
        try:
            left = self._api.call(
                "POST",
                f"{path}/actions/removeVersion",
                body={"version": version},
                operation="remove tag",
                object=uri,
            )
        except (Conflict, InvalidInput):
            # Somebody else took it away, or gave it to another image. What is so now counts.
            left = self._api.call("GET", path, operation="look up image", object=uri)
            if version in _versions(left):
                raise
        if _versions(left):
            return
        etag = left.headers.get("etag")
        try:
            self._api.call(
                "DELETE",
                path,
                headers={} if etag is None else {"if-match": etag},
                operation="delete image",
                object=uri,
            )
        except PreconditionFailed:
            return  # it has got a tag again

    def _not_allowed(
        self, error: PermissionDenied | NotFound, repository: str, *permissions: str
    ) -> PermissionDenied:
        return PermissionDenied(
            error.message,
            operation=error.operation,
            object=error.object,
            request_id=error.request_id,
            remedy="allow it: " + policy(self._principal, repository, *permissions),
        )


def how_to_create(name: str, compartment: str) -> str:
    """Return the command that makes a repository, and Terraform's resource for it."""
    return (
        f"create it: oci artifacts container repository create --display-name {name} "
        f"--compartment-id {compartment}; in Terraform it is oci_artifacts_container_repository"
    )


def immutable_tag(uri: str) -> AlreadyExists:
    """Return the error of a tag that another image has, where tags cannot move."""
    return AlreadyExists(
        "the build has another image already, and the repository's tags cannot move",
        operation="push",
        object=uri,
        remedy="delete the build's image first, or give the build another id",
    )


def _repository(item: dict[str, Any]) -> ContainerRepository:
    return ContainerRepository(
        id=str(item.get("id") or ""),
        name=str(item.get("displayName") or ""),
        compartment=str(item.get("compartmentId") or ""),
        immutable=item.get("isImmutable") is True,
        public=item.get("isPublic") is True,
    )


def _versions(reply: Reply) -> list[str]:
    """Return the tags of an image; one that does not tell counts as having one."""
    found = reply.value.get("versions") if isinstance(reply.value, dict) else None
    if not isinstance(found, list):
        return ["?"]
    return [str(item.get("version")) for item in found if isinstance(item, dict)]


def _next_page(reply: Reply) -> str | None:
    return reply.headers.get("opc-next-page")
