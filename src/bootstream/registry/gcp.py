"""Google's Artifact Registry: one repository, a package a template, a tag a build.

Images are ``REGION-docker.pkg.dev/PROJECT/REPOSITORY/TEMPLATE:BUILD``. One signs in as the user
``oauth2accesstoken`` with an access token, which google-auth finds. Repositories are made,
images listed and tags taken away by the Artifact Registry API, version 1 ("REST reference",
``projects.locations.repositories``).
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bootstream.errors import (
    BootstreamError,
    Conflict,
    InvalidInput,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from bootstream.images.credentials import BearerSource, CredentialSource
from bootstream.images.transport import Transport
from bootstream.registry.api import Api, Reply
from bootstream.registry.googletokens import (
    GoogleCredentials,
    GoogleSigner,
    GoogleTokens,
    find_credentials,
)
from bootstream.registry.hosts import RegistryHost, parse_host
from bootstream.registry.names import ImageNames
from bootstream.registry.protocol import ListedImage
from bootstream.registry.remote import Access, RemoteRegistry

API = "https://artifactregistry.googleapis.com"
_REGION = re.compile(r"[a-z0-9-]{2,40}")
_PROJECT = re.compile(r"[a-z0-9.:-]{1,80}")
_REPOSITORY = re.compile(r"[a-z][a-z0-9-]{0,62}")
_LONGEST_OPERATION = 60.0
_REMEDY = "grant roles/artifactregistry.repoAdmin on the repository"


class GCPArtifactsRegistry(RemoteRegistry):
    """A repository of Artifact Registry. Safe to use from several threads.

    Deleting the image of several platforms leaves its platforms' manifests, without tags, to a
    cleanup policy of the repository.

    Args:
        access: how it is spoken to.
        project: its id.
        region: such as ``europe-west1``, or ``us``.
        repository: in project and region; of the format Docker.
        credentials_file: as GOOGLE_APPLICATION_CREDENTIALS names it; None looks where Google's
            tools look, down to the host's service account.
        host: another host of the registry, HOST[:PORT].
        api: another URL of the API.
        google: google-auth's credentials, in the place of those that would be found.
        create: make the repository where it is missing.

    Raises:
        InvalidInput: google-auth is not installed, a file of credentials is none, or a name.
        PermissionDenied: no credentials are found.
    """

    provider = "GCP_ARTIFACTS"

    def __init__(
        self,
        access: Access,
        *,
        project: str,
        region: str,
        repository: str,
        credentials_file: Path | None = None,
        host: str | None = None,
        api: str | None = None,
        google: Any = None,
        create: bool = True,
    ) -> None:
        super().__init__(access, create=create)
        for value, form, setting in (
            (project, _PROJECT, "GCP_PROJECT_ID"),
            (region, _REGION, "GCP_REGION"),
            (repository, _REPOSITORY, "GCP_DOCKER_REPOSITORY_NAME"),
        ):
            if form.fullmatch(value) is None:
                raise InvalidInput(
                    f"{ascii(value)[:80]} cannot be its name",
                    operation="read",
                    object=setting,
                    remedy="write it as 'gcloud artifacts repositories list' shows it",
                )
        # Projects of a domain, "example.com:project", are folders in names of images.
        self._names = ImageNames(
            f"{project.replace(':', '/')}/{repository}/{{template_id}}:{{build_id}}",
            "GCP_DOCKER_REPOSITORY_NAME",
        )
        self._where = RegistryHost(f"{region}-docker.pkg.dev", access.plain_http)
        if host is not None:
            self._where = parse_host(
                host,
                setting="GCP_DOCKER_ENDPOINT",
                plain_http=access.plain_http,
                tls=access.ca_file is not None,
            )
        self._transport = Transport(ca_file=access.ca_file, proxies=access.proxies)
        if google is None:
            google = find_credentials(credentials_file, self._transport)
        self._tokens = GoogleTokens(google, self._transport)
        self._api = Api(
            api or API,
            transport=self._transport,
            signer=GoogleSigner(self._tokens),
            remedy=_REMEDY,
        )
        self._parent = f"/v1/projects/{quote(project, safe='')}/locations/{region}/repositories"
        self._repository = repository
        self._path = f"{self._parent}/{repository}"

    def names(self) -> ImageNames:
        """See ``RemoteRegistry``."""
        return self._names

    def host(self) -> str:
        """See ``RemoteRegistry``."""
        return self._where.name

    def plain_http(self) -> bool:
        """See ``RemoteRegistry``."""
        return self._where.plain_http

    def credentials(self, repository: str, *, writing: bool) -> CredentialSource | BearerSource:
        """See ``RemoteRegistry``."""
        del repository, writing
        return GoogleCredentials(self._tokens)

    def principal(self) -> str | None:
        """See ``RemoteRegistry``."""
        return self._tokens.account

    def make_repository(self, repository: str) -> None:
        """See ``RemoteRegistry``; waits until it is made, a minute at most."""
        del repository
        name = self._repository
        try:
            self._api.call("GET", self._path, operation="look for repository", object=name)
        except NotFound:
            pass
        except PermissionDenied:
            return  # who may not look may still push to what is there
        else:
            return
        try:
            begun = self._api.call(
                "POST",
                self._parent,
                query={"repositoryId": name},
                body={"format": "DOCKER"},
                operation="create repository",
                object=name,
            )
        except Conflict:
            return
        except PermissionDenied as error:
            error.remedy = (
                "grant artifactregistry.repositories.create (roles/artifactregistry.admin), or "
                f"create it: gcloud artifacts repositories create {name} "
                "--repository-format=docker --location=REGION"
            )
            raise
        self._wait_for(begun, "create repository", name)

    def _wait_for(self, begun: Reply, operation: str, object: str) -> None:
        """Wait for a long-running operation (``google.longrunning.Operation``)."""
        deadline = time.monotonic() + _LONGEST_OPERATION
        reply, pause = begun, 0.1
        while isinstance(reply.value, dict) and not reply.value.get("done"):
            if time.monotonic() > deadline:
                raise Unavailable("it takes too long", operation=operation, object=object)
            time.sleep(pause)
            pause = min(2.0, pause * 2)
            name = quote(reply.text("name"))
            reply = self._api.call("GET", f"/v1/{name}", operation=operation, object=object)
        failed = reply.value.get("error") if isinstance(reply.value, dict) else None
        if isinstance(failed, dict):
            raise InvalidInput(
                f"it failed: {str(failed.get('message') or failed.get('code'))[:300]}",
                operation=operation,
                object=object,
            )

    def repositories(self) -> Iterator[str]:
        """See ``RemoteRegistry``: the packages of the repository."""
        for item in self._pages(f"{self._path}/packages", "packages"):
            package = str(item.get("name") or "").rpartition("/packages/")[2]
            yield self._names.prefix + package

    def listed(self, repository: str) -> Iterator[ListedImage]:
        """See ``RemoteRegistry``."""
        package = repository.removeprefix(self._names.prefix)
        versions: dict[object, dict[str, Any]] | None = None
        for item in self._tags(package):
            tag = str(item.get("name") or "").rpartition("/tags/")[2]
            ids = self._names.parse(repository, tag)
            if ids is None:
                continue
            if versions is None:
                versions = {found.get("name"): found for found in self._versions(package)}
            version = versions.get(item.get("version"), {})
            digest = str(item.get("version") or "").rpartition("/versions/")[2]
            reference = f"{self.host()}/{repository}:{tag}"
            yield ListedImage(*ids, reference, digest, _size(version), _time(version))

    def _tags(self, package: str) -> Iterator[dict[str, Any]]:
        return self._pages(f"{self._path}/packages/{quote(package, safe='')}/tags", "tags")

    def _versions(self, package: str) -> Iterator[dict[str, Any]]:
        return self._pages(f"{self._path}/packages/{quote(package, safe='')}/versions", "versions")

    def _pages(self, path: str, items: str) -> Iterator[dict[str, Any]]:
        """Yield a listing's objects; none of what is not there."""
        try:
            yield from self._api.pages(
                path,
                query={"pageSize": "1000"},
                items=items,
                operation="list images",
                object=path.rpartition("/repositories/")[2],
                asked_by="pageToken",
                told_by=_next_page,
            )
        except NotFound:
            return

    def remove(self, repository: str, tag: str) -> None:
        """See ``RemoteRegistry``: the tag first, then its version if nothing else names it."""
        package = repository.removeprefix(self._names.prefix)
        object = f"{repository}:{tag}"
        path = f"{self._path}/packages/{quote(package, safe='')}"
        target = f"{path}/tags/{quote(tag, safe='')}"
        try:
            found = self._api.call("GET", target, operation="look up image", object=object)
            version = found.text("version")
            self._api.call("DELETE", target, operation="delete tag", object=object)
        except NotFound:
            return
        if any(item.get("version") == version for item in self._tags(package)):
            return
        digest = version.rpartition("/versions/")[2]
        try:
            begun = self._api.call(
                "DELETE",
                f"{path}/versions/{quote(digest, safe=':')}",  # without force: one with tags stays
                operation="delete image",
                object=object,
            )
            self._wait_for(begun, "delete image", object)
        except (NotFound, Conflict, InvalidInput):
            return  # gone already, or it has a tag again, or an index still names it

    def explain(self, error: BootstreamError, repository: str, *, writing: bool) -> None:
        """See ``RemoteRegistry``."""
        del repository
        if isinstance(error, PermissionDenied):
            role = "writer" if writing else "reader"
            error.remedy = f"grant roles/artifactregistry.{role} on {self._repository}"
        elif isinstance(error, NotFound) and writing and error.operation != "resolve":
            error.remedy = (
                f"create it: gcloud artifacts repositories create {self._repository} "
                "--repository-format=docker --location=REGION"
            )

    def close(self) -> None:
        """See ``ArtifactsRegistry``."""
        super().close()
        self._transport.close()


def _next_page(reply: Reply) -> str | None:
    found = reply.value.get("nextPageToken") if isinstance(reply.value, dict) else None
    return found if isinstance(found, str) and found else None


def _size(version: dict[str, Any]) -> int | None:
    metadata = version.get("metadata")
    found = str(metadata.get("imageSizeBytes") or "") if isinstance(metadata, dict) else ""
    return int(found) if found.isascii() and found.isdigit() and len(found) < 20 else None


def _time(version: dict[str, Any]) -> datetime | None:
    try:
        return datetime.fromisoformat(str(version.get("updateTime") or ""))
    except ValueError:
        return None
