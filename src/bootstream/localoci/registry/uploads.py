"""Blobs and uploads: passed to the real registry and back, piece by piece.

An upload's address is the real registry's, with our host and the client's name of the repository
in it; its query is the registry's own and opaque.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from bootstream.localoci.http import Response
from bootstream.localoci.registry.access import Gate, host_of
from bootstream.localoci.registry.errors import RegistryError, unsupported
from bootstream.localoci.registry.resuming import UPLOAD, Uploaded, start_of

if TYPE_CHECKING:
    from bootstream.localoci.http import Request
    from bootstream.localoci.registry.catalogue import Catalogue
    from bootstream.localoci.registry.tokens import Holder
    from bootstream.localoci.registry.turns import Turns
    from bootstream.localoci.registry.upstream import Answer, Upstream
    from bootstream.localoci.registry.values import Repository

_ASKED = ("content-type", "content-range", "range", "if-none-match")
_ANSWERED = (
    "content-type",
    "content-range",
    "accept-ranges",
    "docker-content-digest",
    "docker-upload-uuid",
    "etag",
    "range",
)
DIGEST = re.compile(r"[a-z0-9]+(?:[.+_-][a-z0-9]+)*:[0-9A-Fa-f]{32,128}")
_ERROR_LIMIT = 1 << 20  # bytes of the registry's error
_LOOKS = 5  # at an upload that grows while it is looked at
_METHODS = frozenset({"GET", "HEAD", "PATCH", "PUT", "DELETE"})


class Uploads:
    """Answers for ``blobs/`` of a repository, once it is known who asks. Thread safe.

    Args:
        gate: whether a blob may be mounted from elsewhere.
        catalogue: which repositories there are.
        upstream: the real registry.
        uploaded: how far uploads are there.
        turns: when names may be given and looked up.
    """

    def __init__(
        self,
        gate: Gate,
        catalogue: Catalogue,
        upstream: Upstream,
        uploaded: Uploaded,
        turns: Turns,
    ) -> None:
        self._turns = turns
        self._uploaded = uploaded
        self._gate = gate
        self._catalogue = catalogue
        self._upstream = upstream

    def get_blob(self, request: Request, repository: Repository, digest: str) -> Response:
        """Answer GET and HEAD of a blob, or of a range of it."""
        if not DIGEST.fullmatch(digest):
            raise RegistryError(400, "DIGEST_INVALID", "the digest is not one")
        target = f"/v2/{repository.folder}/blobs/{digest}"
        with self._turns.reading(repository.folder):
            answer = self._upstream.request(request.method, target, _headers(request))
        return passed(answer, request.method)

    def handle(
        self, request: Request, name: str, repository: Repository, upload: str, holder: Holder
    ) -> Response:
        """Answer for an upload; ``upload`` is '' for a new one."""
        method = request.method
        query = request.target.partition("?")[2]
        if not upload:
            if method != "POST":
                raise unsupported(f"{method} is not for this")
            answer = self._start(request, repository, holder)
        elif method not in _METHODS:
            raise unsupported(f"{method} is not for this")
        elif not UPLOAD.fullmatch(upload):
            raise RegistryError(404, "BLOB_UPLOAD_UNKNOWN", "there is no such upload")
        elif method in {"PATCH", "PUT"}:
            self._in_order(request, name, repository, upload)
        place = f"/v2/{repository.folder}/blobs/uploads/{upload}?{query}"
        if not upload:
            pass
        elif method in {"GET", "HEAD"}:
            answer = self._status(method, repository, upload)
        elif method == "DELETE":
            answer = self._upstream.request(method, place)
        else:
            answer = self._take(request, repository, place)
        response = passed(answer, method)
        if (location := answer.headers.get("location")) is not None:
            path = location.removeprefix(f"/v2/{repository.folder}/")
            response.headers["location"] = f"http://{host_of(request)}/v2/{name}/{path}"
        return response

    def _take(self, request: Request, repository: Repository, place: str) -> Answer:
        """Pass a piece on, and then, with PUT, give the blob its name.

        That are two requests to the real registry: the piece may take long to come.
        """
        if request.method == "PATCH" or request.body.length != 0:
            headers = _headers(request)
            if request.method == "PUT":  # a piece of any type may be the last one
                headers.pop("content-type", None)
            answer = self._upstream.request("PATCH", place, headers, request.body)
            if request.method == "PATCH" or answer.status != 202:
                return answer
            answer.close()
            digest = request.parameters().get("digest", "")
            place = f"{answer.headers['location']}&{urlencode({'digest': digest})}"
        with self._turns.writing(repository.folder):
            return self._upstream.request("PUT", place)

    def _status(self, method: str, repository: Repository, upload: str) -> Answer:
        """Ask where an upload stands, by an address that is right now."""
        place = f"/v2/{repository.folder}/blobs/uploads/{upload}"
        size = self._uploaded.size(repository.folder, upload)
        for _ in range(_LOOKS):
            query = "" if size is None else self._uploaded.query(repository.folder, upload, size)
            answer = self._upstream.request(method, f"{place}?{query}")
            before, size = size, self._uploaded.size(repository.folder, upload)
            if answer.status < 400 or size == before:
                break
            answer.close()  # a piece that broke off has only now been written
        return answer

    def _in_order(self, request: Request, name: str, repository: Repository, upload: str) -> None:
        """Refuse a piece that is not the next one, where it says where it begins.

        Raises:
            RegistryError: 416, with where to go on.
        """
        start = start_of(request.headers.get("content-range"))
        size = self._uploaded.size(repository.folder, upload)
        if start is None or size is None or start == size:
            return
        query = self._uploaded.query(repository.folder, upload, size)
        place = f"http://{host_of(request)}/v2/{name}/blobs/uploads/{upload}?{query}"
        raise RegistryError(
            416,
            "BLOB_UPLOAD_INVALID",
            f"the next piece begins at {size}",
            headers={
                "location": place,
                "range": f"0-{max(0, size - 1)}",
                "docker-upload-uuid": upload,
            },
        )

    def _start(self, request: Request, repository: Repository, holder: Holder) -> Answer:
        """Begin an upload, or have the blob from another repository, if that is allowed."""
        parameters = request.parameters()
        target = f"/v2/{repository.folder}/blobs/uploads/"
        source, digest = parameters.get("from", ""), parameters.get("mount")
        if digest is not None and source:
            granted = (
                self._gate.actions(holder.caller, source)
                if holder.access is None
                else getattr(holder.access.get(source), "granted", frozenset())
            )
            found = self._catalogue.repository(name=source.partition("/")[2])
            if "pull" in granted and found is not None:
                query = urlencode({"mount": digest, "from": found.folder})
                with self._turns.taking(found.folder, repository.folder):
                    return self._upstream.request("POST", f"{target}?{query}")
        sent = request.body.length != 0  # the real registry begins an upload all the same
        return self._upstream.request(
            "POST", target, _headers(request), request.body if sent else None
        )


def passed(answer: Answer, method: str) -> Response:
    """The registry's answer as ours: the headers that clients know, and the body in pieces.

    ``location`` is not among them: it names places as the registry does.
    """
    headers = {name: answer.headers[name] for name in _ANSWERED if name in answer.headers}
    if method == "HEAD" or answer.status in {204, 304}:
        answer.close()
        return Response(answer.status, headers, length=answer.length)
    if answer.status >= 400 or answer.length == 0:
        return Response(answer.status, headers, answer.read_all(_ERROR_LIMIT))
    return Response(answer.status, headers, answer, length=answer.length)


def _headers(request: Request) -> dict[str, str]:
    return {name: request.headers[name] for name in _ASKED if name in request.headers}
