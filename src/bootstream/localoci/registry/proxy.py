"""``/v2/``: the registry's protocol, in front of the real registry.

Source: OCI distribution specification 1.1. Manifests and tags are answered here, out of the
catalogue, with bytes of the real registry, which is asked for them by digest; blobs and uploads
are its own (``uploads``). A manifest is sent whatever types the client accepts.

What OCIR does not document and is a guess here: deleting a manifest or a blob is 405, because
the Artifacts API does that; a tag of an immutable repository that names another image is 403
``DENIED``, while naming the same image again is no change and succeeds; a page of tags has at
most 1,000.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from bootstream.localoci.http import Response, json_response
from bootstream.localoci.registry.access import Gate, host_of, scope_of
from bootstream.localoci.registry.errors import (
    RegistryError,
    denied,
    unknown_manifest,
    unknown_name,
    unsupported,
)
from bootstream.localoci.registry.operations import place_of
from bootstream.localoci.registry.turns import Turns
from bootstream.localoci.registry.uploads import DIGEST, Uploads, passed
from bootstream.localoci.registry.values import Exists, Immutable, Repository

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bootstream.localoci.http import Request
    from bootstream.localoci.registry.catalogue import Catalogue
    from bootstream.localoci.registry.resuming import Uploaded
    from bootstream.localoci.registry.tokens import Holder
    from bootstream.localoci.registry.upstream import Upstream

MANIFEST_LIMIT = 4 << 20  # bytes; the real registry's own
PAGE_LIMIT = 1000  # tags
VERSION_HEADER = {"docker-distribution-api-version": "registry/2.0"}
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME = re.compile(rf"{_PART}(?:/{_PART})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_READS = frozenset({"GET", "HEAD"})


class Place(NamedTuple):
    """What a path below ``/v2/`` names: a repository, and something in it."""

    name: str  # with the namespace
    kind: str  # tags, manifest, upload, blob, referrers
    item: str


class Proxy:
    """Answers ``/v2/``. Thread safe.

    Args:
        gate: who may do what.
        catalogue: what there is.
        upstream: the real registry.
        uploaded: how far uploads are there.
        namespace: the tenancy's.
        tenancy: its OCID: the root compartment, where repositories are made on first push.
    """

    def __init__(
        self,
        gate: Gate,
        catalogue: Catalogue,
        upstream: Upstream,
        uploaded: Uploaded,
        *,
        namespace: str,
        tenancy: str,
    ) -> None:
        self._gate = gate
        self._catalogue = catalogue
        self._upstream = upstream
        self._namespace = namespace
        self._tenancy = tenancy
        self._turns = Turns()
        self._naming = threading.Lock()  # manifests of all repositories are kept together
        self._uploads = Uploads(gate, catalogue, upstream, uploaded, self._turns)

    def handle(self, request: Request) -> Response:
        """Answer a request.

        Raises:
            RegistryError: the answer is an error.
            ApiError, Disconnect: the same, of the connection.
        """
        if request.raw_path in {"/v2", "/v2/"}:
            self._gate.holder(request, "")
            return json_response({}, headers=VERSION_HEADER)
        parts = place_of(request.raw_path)
        if parts is None:
            self._gate.holder(request, "")
            raise unsupported("there is nothing of this path")
        place = Place(*parts)
        action = "pull" if request.method in _READS and place.kind != "upload" else "push"
        holder = self._gate.holder(request, scope_of(place.name, action))
        if not _NAME.fullmatch(place.name) or len(place.name) > 255:
            raise RegistryError(
                400, "NAME_INVALID", "the repository's name is not one", {"name": place.name}
            )
        namespace, _, name = place.name.partition("/")
        if namespace != self._namespace or not name:
            if action == "push":
                raise denied(f"the tenancy's namespace is another one than {namespace}")
            raise unknown_name(place.name)
        self._gate.allow(request, holder, place.name, action)
        repository = self._catalogue.repository(name=name)
        if repository is None:
            if action == "pull":
                raise unknown_name(place.name)
            repository = self._create(name, holder)
        response = self._operate(request, place, repository, holder)
        response.headers |= VERSION_HEADER
        return response

    def _create(self, name: str, holder: Holder) -> Repository:
        """Make a repository on its first push: private, in the root compartment."""
        if not self._gate.may(holder.caller, "REPOSITORY_CREATE", name, None):
            raise denied(
                "the repository does not exist, and the policies do not let it be created in the "
                "root compartment",
                {"name": name},
            )
        try:
            return self._catalogue.create(name, self._tenancy, holder.caller.principal_ocid)
        except Exists:  # another push was first
            repository = self._catalogue.repository(name=name)
            if repository is None:
                raise unknown_name(name) from None
            return repository

    def _operate(
        self, request: Request, place: Place, repository: Repository, holder: Holder
    ) -> Response:
        method = request.method
        match place.kind:
            case "tags" if method == "GET":
                return self._tags(request, place, repository)
            case "manifest" if method in _READS:
                return self._get_manifest(request, place, repository)
            case "manifest" if method == "PUT":
                return self._put_manifest(request, place, repository, holder)
            case "blob" if method in _READS:
                return self._uploads.get_blob(request, repository, place.item)
            case "upload":
                return self._uploads.handle(request, place.name, repository, place.item, holder)
            case "referrers":
                raise RegistryError(404, "UNSUPPORTED", "there is no listing of referrers")
        if method == "DELETE":
            raise unsupported("images are deleted through the Artifacts API")
        raise unsupported(f"{method} is not for this")

    def _tags(self, request: Request, place: Place, repository: Repository) -> Response:
        parameters = request.parameters()
        limit, text = PAGE_LIMIT, parameters.get("n")
        if text is not None:
            if not (text.isascii() and text.isdigit() and len(text) < 20):
                raise RegistryError(
                    400, "PAGINATION_NUMBER_INVALID", "n is not a number of tags", {"n": text}
                )
            limit = min(PAGE_LIMIT, int(text))
        last = parameters.get("last", "")
        names = [name for name in self._catalogue.versions(repository) if name > last]
        page = names[:limit]
        headers = {}
        if page and len(names) > limit:
            query = f"n={limit}&last={quote(page[-1], safe='')}"
            headers["link"] = f'</v2/{place.name}/tags/list?{query}>; rel="next"'
        return json_response({"name": place.name, "tags": page}, headers=headers)

    def _get_manifest(self, request: Request, place: Place, repository: Repository) -> Response:
        image = self._catalogue.resolve(repository, place.item)
        if image is None:
            raise unknown_manifest(place.name, place.item)
        headers = {
            "content-type": image.media_type,
            "docker-content-digest": image.digest,
            "etag": f'"{image.digest}"',
        }
        if request.method == "HEAD":
            return Response(200, headers, length=image.size)
        with self._turns.reading(repository.folder):
            answer = self._upstream.request(
                "GET",
                f"/v2/{repository.folder}/manifests/{image.digest}",
                {"accept": image.media_type},
            )
        body = answer.read_all(MANIFEST_LIMIT)
        if answer.status == 404:
            raise unknown_manifest(place.name, place.item)
        if answer.status != 200:
            raise RegistryError(
                503,
                "UNAVAILABLE",
                f"the registry behind answered {answer.status}",
                body.decode(errors="replace")[:500],
            )
        self._catalogue.pulled(image.id)
        return Response(200, headers, body)

    def _put_manifest(
        self, request: Request, place: Place, repository: Repository, holder: Holder
    ) -> Response:
        body = request.body.read_all(MANIFEST_LIMIT)
        if ":" in place.item:
            if not DIGEST.fullmatch(place.item):
                raise RegistryError(400, "DIGEST_INVALID", "the digest is not one")
            digest, version = place.item, None
        elif _TAG.fullmatch(place.item):
            digest, version = f"sha256:{hashlib.sha256(body).hexdigest()}", place.item
        else:
            raise RegistryError(400, "MANIFEST_INVALID", "the tag is not one", {"tag": place.item})
        media_type = request.headers.get("content-type", "").partition(";")[0].strip()
        self._refuse_moving(repository, version, digest)
        if (refused := self._store(repository, digest, media_type, body)) is not None:
            return refused
        try:
            there = self._catalogue.put(
                repository,
                digest,
                version,
                media_type=media_type,
                size=len(body),
                layers=_layers(body),
                creator=holder.caller.principal_ocid,
            )
        except Immutable:
            raise _immutable(version) from None
        if not there:  # deleted meanwhile
            raise unknown_name(place.name)
        location = f"http://{host_of(request)}/v2/{place.name}/manifests/{digest}"
        return Response(201, {"location": location, "docker-content-digest": digest})

    def _store(
        self, repository: Repository, digest: str, media_type: str, body: bytes
    ) -> Response | None:
        """Have the real registry keep a manifest, unless it does; return its refusal, if any."""

        def is_there() -> bool:
            held = self._catalogue.resolve(repository, digest)
            return held is not None and _is(body, digest)

        if is_there():
            return None
        with self._turns.writing(repository.folder), self._naming:
            if is_there():
                return None
            answer = self._upstream.request(
                "PUT",
                f"/v2/{repository.folder}/manifests/{digest}",
                {"content-type": media_type},
                body,
            )
            if answer.status != 201:
                return passed(answer, "PUT")
            answer.close()
        return None

    def _refuse_moving(self, repository: Repository, version: str | None, digest: str) -> None:
        """Say early what the catalogue will say; it decides."""
        if version is not None and repository.immutable:
            held = self._catalogue.resolve(repository, version)
            if held is not None and held.digest != digest:
                raise _immutable(version)


def _immutable(version: str | None) -> RegistryError:
    return denied("the repository is immutable: the tag names another image", {"tag": version})


def _is(data: bytes, digest: str) -> bool:
    """Whether a digest that is known is that of ``data``."""
    algorithm, _, digits = digest.partition(":")
    return algorithm in {"sha256", "sha512"} and hashlib.new(algorithm, data).hexdigest() == digits


def _layers(manifest: bytes) -> Mapping[str, int]:
    """Digests and sizes of an image's layers; an index has none. The registry checked it."""
    document: Any = json.loads(manifest)
    layers = document.get("layers") if isinstance(document, dict) else None
    return {
        str(layer.get("digest")): size
        for layer in (layers if isinstance(layers, list) else [])
        if isinstance(layer, dict) and isinstance(size := layer.get("size"), int)
    }
