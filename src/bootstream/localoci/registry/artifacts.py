"""The Artifacts API's containers, ``/20160918/container/``: repositories and images.

Source: "Artifacts and Container Images API", version 20160918, as OCI's SDK for Python has it
(``oci.artifacts.models``). Every request is signed. What is missing and what is forbidden is the
same 404 ``NotAuthorizedOrNotFound``.

A listing has what is in the compartment itself: repositories made on first push are in the root
compartment, whose OCID is the tenancy's; with ``compartmentIdInSubtree`` that has all. It has
deleted images too, as ``lifecycleState`` says. Guesses, where the service documents nothing:
the code ``NAMESPACE_CONFLICT`` of a name that is taken; deleted images can be restored for ever.
"""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING, Any

from bootstream.localoci.errors import ApiError, invalid
from bootstream.localoci.http import Response, json_response
from bootstream.localoci.registry.documents import (
    image_document,
    image_summary,
    repository_document,
    repository_summary,
    totals,
)
from bootstream.localoci.registry.listing import in_order, matches, page_of
from bootstream.localoci.registry.values import Changed, Exists, Image, Immutable, Repository

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from bootstream.localoci.http import Request
    from bootstream.localoci.keys import Names
    from bootstream.localoci.protocols import Authenticate, Caller
    from bootstream.localoci.registry.access import Gate
    from bootstream.localoci.registry.catalogue import Catalogue

API = "/20160918/container/"
_NAME = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+|/)[a-z0-9]+)*")
_DETAILS = ("readme", "freeformTags", "definedTags")
_URI = re.compile(r"[^/]+/([^/]+)/(.+?)(?::([A-Za-z0-9_][A-Za-z0-9._-]*))?(?:@([a-z0-9]+:\w+))?")


class Artifacts:
    """Answers the Artifacts API. Thread safe.

    Args:
        gate: who may do what.
        catalogue: what there is.
        authenticate: who signed a request.
        names: the compartments, the namespace, the region.
        storage: the real registry's folder of repositories.
    """

    def __init__(
        self,
        gate: Gate,
        catalogue: Catalogue,
        *,
        authenticate: Authenticate,
        names: Names,
        storage: Path,
    ) -> None:
        self._gate = gate
        self._catalogue = catalogue
        self._authenticate = authenticate
        self._names = names
        self._storage = storage

    def handle(self, request: Request) -> Response:
        """Answer a request.

        Raises:
            ApiError: the answer is an error.
        """
        caller = self._authenticate(request)
        try:
            return self._operate(request, caller)
        except Changed:
            raise ApiError(
                412, "NoEtagMatch", "The if-match header does not match the resource's etag"
            ) from None

    def _operate(self, request: Request, caller: Caller) -> Response:
        parts = request.path[len(API) :].rstrip("/").split("/")
        match request.method, *parts:
            case "GET", "configuration":
                return self._configuration(request, caller)
            case "GET", "repositories":
                return self._list_repositories(request, caller)
            case "POST", "repositories":
                return self._create_repository(request, caller)
            case "GET", "repositories", ocid:
                found = self._repository(caller, ocid, "REPOSITORY_READ")
                return self._answer(found)
            case "PUT", "repositories", ocid:
                return self._update_repository(request, caller, ocid)
            case "DELETE", "repositories", ocid:
                return self._delete_repository(request, caller, ocid)
            case "GET", "images":
                return self._list_images(request, caller)
            case "POST", "images", "actions", "lookupImageByUri":
                return self._lookup(request, caller)
            case "GET", "images", ocid:
                return _image(self._image(caller, ocid, "REPOSITORY_READ"))
            case "DELETE", "images", ocid:
                image = self._available(caller, ocid)
                self._catalogue.delete_image(image.id, _expected(request))
                return Response(204)
            case "POST", "images", ocid, "actions", "removeVersion":
                return self._remove_version(request, caller, ocid)
            case "POST", "images", ocid, "actions", "restore":
                return self._restore(request, caller, ocid)
        raise ApiError(404, "NotFound", "There is nothing of this path")

    def _configuration(self, request: Request, caller: Caller) -> Response:
        if _needed(request, "compartmentId") != self._names.tenancy or not self._gate.may_in(
            caller, "REPOSITORY_READ", None, root=True
        ):
            raise _hidden()
        value = {"isRepositoryCreatedOnFirstPush": True, "namespace": self._names.namespace}
        return json_response(value)

    # Repositories

    def _list_repositories(self, request: Request, caller: Caller) -> Response:
        parameters = request.parameters()
        name = parameters.get("displayName")
        inside = self._compartment(request)
        self._permit(caller, "REPOSITORY_INSPECT", name, parameters["compartmentId"])
        found = [one for one in self._catalogue.repositories() if inside(one.compartment)]
        if name is not None:
            found = [one for one in found if one.name == name]
        if (ocid := parameters.get("repositoryId")) is not None:
            found = [one for one in found if one.id == ocid]
        if (public := parameters.get("isPublic")) is not None:
            found = [one for one in found if one.public is (public.lower() == "true")]
        if parameters.get("lifecycleState", "AVAILABLE") != "AVAILABLE":
            found = []
        found = in_order(request, found, lambda one: one.created, lambda one: one.name)
        images = {one.id: self._catalogue.images(one.id) for one in found}
        everything = [image for one in found for image in images[one.id]]
        items, more, headers = page_of(request, found)
        value = {
            "items": [
                repository_summary(one, images[one.id], self._names.namespace) for one in items
            ],
            "remainingItemsCount": more,
            "repositoryCount": len(found),
            **totals(everything),
        }
        return json_response(value, headers=headers)

    def _create_repository(self, request: Request, caller: Caller) -> Response:
        body = request.json()
        name, compartment = body.get("displayName"), body.get("compartmentId")
        if not isinstance(name, str) or not _NAME.fullmatch(name) or len(name) > 200:
            raise invalid("displayName is no name of a repository")
        public, immutable = _flag(body, "isPublic"), _flag(body, "isImmutable")
        if not isinstance(compartment, str):
            raise invalid("compartmentId is missing", "MissingParameter")
        self._permit(caller, "REPOSITORY_CREATE", name, compartment)
        if public:
            self._permit(caller, "REPOSITORY_MANAGE", name, compartment)
        try:
            made = self._catalogue.create(
                name,
                compartment,
                caller.principal_ocid,
                immutable=immutable,
                public=public,
                details=_details(body),
            )
        except Exists:
            raise ApiError(
                409, "NAMESPACE_CONFLICT", f"A repository named '{name}' already exists"
            ) from None
        return self._answer(made)

    def _update_repository(self, request: Request, caller: Caller, ocid: str) -> Response:
        held = self._repository(caller, ocid, "REPOSITORY_UPDATE")
        body = request.json()
        public = _flag(body, "isPublic", default=held.public)
        if public is not held.public:
            self._permit(caller, "REPOSITORY_MANAGE", held.name, held.compartment)
        changed = self._catalogue.update(
            held.id,
            immutable=_flag(body, "isImmutable", default=held.immutable),
            public=public,
            details={**held.details, **_details(body)},
            etag=_expected(request),
        )
        if changed is None:
            raise _hidden()
        return self._answer(changed)

    def _delete_repository(self, request: Request, caller: Caller, ocid: str) -> Response:
        held = self._repository(caller, ocid, "REPOSITORY_DELETE")
        self._catalogue.delete(held.id, _expected(request))
        shutil.rmtree(self._storage / held.folder, ignore_errors=True)
        return Response(204)

    def _answer(self, repository: Repository) -> Response:
        images = self._catalogue.images(repository.id)
        document = repository_document(repository, images, self._names.namespace)
        return json_response(document, headers={"etag": repository.etag})

    # Images

    def _list_images(self, request: Request, caller: Caller) -> Response:
        parameters = request.parameters()
        inside = self._compartment(request)
        wanted, name = parameters.get("repositoryId"), parameters.get("repositoryName")
        target = name
        if wanted is not None:
            repository = self._catalogue.repository(ocid=wanted)
            target = repository.name if repository is not None else name
        self._permit(caller, "REPOSITORY_INSPECT", target, parameters["compartmentId"])
        found = [
            image
            for image in self._catalogue.images(wanted)
            if inside(image.repository.compartment) and matches(image, parameters)
        ]
        found = in_order(request, found, lambda one: one.created, lambda one: one.display_name)
        items, more, headers = page_of(request, found)
        value = {"items": [image_summary(one) for one in items], "remainingItemsCount": more}
        return json_response(value, headers=headers)

    def _lookup(self, request: Request, caller: Caller) -> Response:
        uri = request.json().get("imageUri")
        match = _URI.fullmatch(uri) if isinstance(uri, str) else None
        if match is None:
            raise invalid("imageUri is not HOST/NAMESPACE/REPOSITORY:VERSION")
        namespace, name, version, digest = match.groups()
        repository = self._catalogue.repository(name=name)
        if namespace != self._names.namespace or repository is None:
            raise _hidden()
        self._permit(caller, "REPOSITORY_READ", name, repository.compartment)
        image = self._catalogue.resolve(repository, digest or version or "latest")
        if image is None:
            raise _hidden()
        return _image(image)

    def _remove_version(self, request: Request, caller: Caller, ocid: str) -> Response:
        image = self._available(caller, ocid)
        if not self._catalogue.remove_version(image.id, _version(request), _expected(request)):
            raise _hidden()
        return _image(self._image(caller, ocid, "REPOSITORY_UPDATE"))

    def _restore(self, request: Request, caller: Caller, ocid: str) -> Response:
        image = self._image(caller, ocid, "REPOSITORY_UPDATE")
        try:
            restored = self._catalogue.restore_image(
                image.id, _version(request), caller.principal_ocid, _expected(request)
            )
        except Immutable:
            raise ApiError(
                409, "IncorrectState", "The version names another image of an immutable repository"
            ) from None
        if not restored:
            raise ApiError(409, "IncorrectState", "The image is not deleted")
        return _image(self._image(caller, ocid, "REPOSITORY_UPDATE"))

    # What is allowed

    def _repository(self, caller: Caller, ocid: str, permission: str) -> Repository:
        held = self._catalogue.repository(ocid=ocid)
        if held is None:
            raise _hidden()
        self._permit(caller, permission, held.name, held.compartment)
        return held

    def _image(self, caller: Caller, ocid: str, permission: str) -> Image:
        image = self._catalogue.image(ocid)
        if image is None:
            raise _hidden()
        self._permit(caller, permission, image.repository.name, image.repository.compartment)
        return image

    def _available(self, caller: Caller, ocid: str) -> Image:
        """An image that may be changed, and is not deleted."""
        image = self._image(caller, ocid, "REPOSITORY_UPDATE")
        if image.state != "AVAILABLE":
            raise _hidden()
        return image

    def _permit(self, caller: Caller, permission: str, name: str | None, compartment: str) -> None:
        known = compartment in {self._names.tenancy, self._names.compartment}
        root = compartment == self._names.tenancy
        if not known or not self._gate.may_in(caller, permission, name, root=root):
            raise _hidden()

    def _compartment(self, request: Request) -> Callable[[str], bool]:
        """Whether a compartment is asked for."""
        wanted = _needed(request, "compartmentId")
        subtree = request.parameters().get("compartmentIdInSubtree", "").lower() == "true"
        if subtree and wanted != self._names.tenancy:
            raise invalid("compartmentIdInSubtree is for the root compartment")
        return lambda compartment: subtree or compartment == wanted


def _needed(request: Request, name: str) -> str:
    value = request.parameters().get(name)
    if not value:
        raise invalid(f"the parameter {name} is missing", "MissingParameter")
    return value


def _flag(body: Mapping[str, Any], name: str, *, default: bool = False) -> bool:
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise invalid(f"{name} is true or false")
    return value


def _details(body: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept as it was given, and given back."""
    details = {name: body[name] for name in _DETAILS if body.get(name) is not None}
    for name, value in details.items():
        if not isinstance(value, dict):
            raise invalid(f"{name} is not an object")
    return details


def _version(request: Request) -> str:
    version = request.json().get("version")
    if not isinstance(version, str) or not version:
        raise invalid("version is missing", "MissingParameter")
    return version


def _image(image: Image) -> Response:
    return json_response(image_document(image), headers={"etag": image.etag})


def _expected(request: Request) -> str | None:
    """The etag that what is changed has to have."""
    return request.headers.get("if-match")


def _hidden() -> ApiError:
    return ApiError(
        404,
        "NotAuthorizedOrNotFound",
        "Authorization failed or requested resource not found.",
    )
