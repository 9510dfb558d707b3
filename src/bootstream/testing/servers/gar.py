"""A stand-in for Google's Artifact Registry, made after its REST reference, version 1.

It has the token endpoint of service accounts (RFC 7523), the operations on repositories,
packages, tags and versions that bootstream uses, and docker-registry behind for images.
Nobody at Google has seen it: it shows that we do as the documents say, not that they are true.
"""

from __future__ import annotations

import base64
import json
import re
import secrets
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from bootstream.testing.registry import run
from bootstream.testing.servers.registryfront import (
    Refused,
    RegistryFront,
    Reply,
    Request,
    json_reply,
    registry_error,
)

PROJECT, REGION = "project-1", "europe-west1"
_VERSION = re.compile(r"sha256:[0-9a-f]{64}")


def _refused(status: int, code: str, message: str) -> Refused:
    return Refused(status, {"error": {"code": status, "status": code, "message": message}})


class ArtifactRegistryFront(RegistryFront):
    """The stand-in.

    Attributes:
        tokens: which access tokens are good.
        repositories: which there are.
        denied: methods of the API that this caller may not use.
    """

    def __init__(self, upstream: str) -> None:
        super().__init__(upstream)
        self.tokens: set[str] = set()
        self.repositories: set[str] = set()
        self.operations: dict[str, int] = {}
        self.denied: set[str] = set()
        self.versions: dict[str, dict[str, int]] = {}

    def write_key(self, path: Path) -> Path:
        """Write a service account's key that this server knows; return its path."""
        key = run("openssl", "genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048")
        fields = {
            "type": "service_account",
            "project_id": PROJECT,
            "private_key_id": "1",
            "private_key": key,
            "client_email": "builder@project-1.iam.gserviceaccount.com",
            "client_id": "1",
            "token_uri": f"{self.url}/token",
        }
        path.write_text(json.dumps(fields))
        return path

    def authorize(self, request: Request, repository: str | None) -> None:
        """A user ``oauth2accesstoken`` with a token, and a repository that exists."""
        sent = request.headers.get("Authorization", "")
        expected = {
            "Basic " + base64.b64encode(f"oauth2accesstoken:{token}".encode()).decode()
            for token in self.tokens
        }
        if sent not in expected:
            raise registry_error(
                401, "UNAUTHORIZED", "sign in", WWW_Authenticate='Basic realm="gar"'
            )
        if repository is not None:
            self.check_repository(repository)

    def check_repository(self, repository: str) -> None:
        """The second component is a repository that has to be there."""
        if repository.split("/")[1] not in self.repositories:
            raise registry_error(404, "NAME_UNKNOWN", f'Repository "{repository}" not found')

    def set_tag(self, repository: str, tag: str, digest: str, manifest: bytes, kind: str) -> None:
        """Keep the size, too."""
        super().set_tag(repository, tag, digest, manifest, kind)
        self.versions.setdefault(repository, {})[digest] = len(manifest)

    def api(self, request: Request) -> Reply:
        """The token endpoint, and the API for who has a token."""
        if request.path == "/token":
            return self._token(request)
        bearer = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if bearer not in self.tokens:
            raise _refused(401, "UNAUTHENTICATED", "no valid token")
        if request.method in self.denied:
            raise _refused(403, "PERMISSION_DENIED", "not allowed")
        if request.path.startswith("/v1/operations/"):
            return self._operation(request.path.rpartition("/")[2])
        base = f"/v1/projects/{PROJECT}/locations/{REGION}/repositories"
        rest = [unquote(part) for part in request.raw_path.removeprefix(base).split("/") if part]
        with self.lock:
            return self._repositories(request, rest)

    def _token(self, request: Request) -> Reply:
        form = request.form
        _, claims, _ = form["assertion"].split(".")
        claim = json.loads(base64.urlsafe_b64decode(claims + "=="))
        assert form["grant_type"] == "urn:ietf:params:oauth:grant-type:jwt-bearer"
        assert claim["aud"] == "https://oauth2.googleapis.com/token"
        assert "cloud-platform" in claim["scope"]
        token = f"ya29.{secrets.token_hex(20)}"
        self.tokens.add(token)
        return json_reply({"access_token": token, "expires_in": 3600, "token_type": "Bearer"})

    def _operation(self, name: str) -> Reply:
        with self.lock:
            self.operations[name] -= 1
            done = self.operations[name] <= 0
        return json_reply({"name": f"operations/{name}", "done": done})

    def _begin(self) -> Reply:
        name = secrets.token_hex(6)
        self.operations[name] = 2
        return json_reply({"name": f"operations/{name}"})

    def _repositories(self, request: Request, rest: list[str]) -> Reply:
        if not rest and request.method == "POST":
            name = request.query["repositoryId"]
            assert request.json() == {"format": "DOCKER"}
            if name in self.repositories:
                raise _refused(409, "ALREADY_EXISTS", "the repository already exists")
            self.repositories.add(name)
            return self._begin()
        if not rest or rest[0] not in self.repositories:
            raise _refused(404, "NOT_FOUND", "no such repository")
        if len(rest) == 1:
            return json_reply({"name": request.path.removeprefix("/v1/")})
        prefix = f"{PROJECT}/{rest[0]}/"
        parent = "/".join(["projects", PROJECT, "locations", REGION, "repositories", rest[0]])
        if rest[1:] == ["packages"]:
            names = sorted(name for name in self.versions if name.startswith(prefix))
            items = [{"name": f"{parent}/packages/{n.removeprefix(prefix)}"} for n in names]
            return self._page(request, "packages", items)
        repository = prefix + rest[2]
        if repository not in self.versions:
            raise _refused(404, "NOT_FOUND", "no such package")
        return self._package(request, repository, f"{parent}/packages/{rest[2]}", rest[3:])

    def _package(self, request: Request, repository: str, parent: str, rest: list[str]) -> Reply:
        kind, name = rest[0], rest[1:]
        tags, versions = self.tags.get(repository, {}), self.versions[repository]
        if kind == "tags":
            found = {
                tag: {"name": f"{parent}/tags/{tag}", "version": f"{parent}/versions/{digest}"}
                for tag, digest in tags.items()
            }
            if not name:
                return self._page(request, kind, [found[tag] for tag in sorted(found)])
            if name[0] not in found:
                raise _refused(404, "NOT_FOUND", "no such tag")
            if request.method == "DELETE":
                del tags[name[0]]
                return json_reply({})
            return json_reply(found[name[0]])
        items = [
            {
                "name": f"{parent}/versions/{digest}",
                "updateTime": "2026-01-02T03:04:05.678901Z",
                "metadata": {"imageSizeBytes": str(size)},
            }
            for digest, size in sorted(versions.items())
        ]
        if not name:
            return self._page(request, kind, items)
        if name[0] not in versions or not _VERSION.fullmatch(name[0]):
            raise _refused(404, "NOT_FOUND", "no such version")
        if name[0] in tags.values():
            raise _refused(400, "FAILED_PRECONDITION", "the version has tags")
        del versions[name[0]]
        self.delete_manifest(repository, name[0])
        if not versions:
            del self.versions[repository]
            self.tags.pop(repository, None)
        return self._begin()

    @staticmethod
    def _page(request: Request, key: str, items: list[dict[str, Any]]) -> Reply:
        """Two at a time."""
        start = int(request.query.get("pageToken") or 0)
        page: dict[str, Any] = {key: items[start : start + 2]}
        if start + 2 < len(items):
            page["nextPageToken"] = str(start + 2)
        return json_reply(page)
