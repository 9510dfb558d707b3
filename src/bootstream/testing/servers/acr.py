"""A stand-in for Azure's Container Registry, made after its documents.

"Authentication with Azure Container Registry": a token of Entra's is exchanged for a refresh
token, and that for access tokens of a scope, which are checked at every request. The
operations on tags and manifests are those of its REST reference ("Container Registry,
acr"). docker-registry behind has the images. Nobody at Azure has seen it.
"""

from __future__ import annotations

import secrets
from typing import Any

from bootstream.testing.servers.registryfront import (
    RegistryFront,
    Reply,
    Request,
    json_reply,
    registry_error,
)


class AcrFront(RegistryFront):
    """The stand-in.

    Attributes:
        entra: the token of Entra's that is good.
        refresh: refresh tokens that are good.
        access: access tokens to the scopes that they are good for.
        denied: actions that nobody gets, e.g. ``delete``.
    """

    def __init__(self, upstream: str) -> None:
        super().__init__(upstream)
        self.entra = f"entra-{secrets.token_hex(16)}"
        self.refresh: set[str] = set()
        self.access: dict[str, set[str]] = {}
        self.denied: set[str] = set()

    def api(self, request: Request) -> Reply:
        """The token service, and the registry's own operations."""
        if request.path == "/oauth2/exchange":
            return self._exchange(request)
        if request.path == "/oauth2/token":
            return self._token(request)
        rest = request.path.removeprefix("/acr/v1/")
        if rest == "_catalog":
            self._need(request, "registry:catalog", "*")
            with self.lock:
                names = sorted(name for name, tags in self.tags.items() if tags)
            return self._page(request, "repositories", names, "/acr/v1/_catalog")
        for mark in ("_tags", "_manifests"):
            repository, found, name = rest.partition(f"/{mark}")
            if found:
                return self._repository(request, repository, mark, name.lstrip("/"))
        raise registry_error(404, "NOT_FOUND", "no such operation")

    def _exchange(self, request: Request) -> Reply:
        form = request.form
        good = {"grant_type": "access_token", "service": self.host, "access_token": self.entra}
        if form != good:
            raise registry_error(401, "UNAUTHORIZED", "the access token is not valid")
        token = f"refresh-{secrets.token_hex(16)}"
        self.refresh.add(token)
        return json_reply({"refresh_token": token})

    def _token(self, request: Request) -> Reply:
        form = request.form
        if form.get("grant_type") != "refresh_token" or form["refresh_token"] not in self.refresh:
            raise registry_error(401, "UNAUTHORIZED", "the refresh token is not valid")
        assert form["service"] == self.host
        granted = set()
        for scope in form["scope"].split():
            resource, _, actions = scope.rpartition(":")
            granted |= {f"{resource}:{a}" for a in actions.split(",") if a not in self.denied}
        token = f"access-{secrets.token_hex(16)}"
        self.access[token] = granted
        return json_reply({"access_token": token})

    def authorize(self, request: Request, repository: str | None) -> None:
        """A token for what is asked."""
        if repository is None:
            raise self._challenge("registry:catalog:*", 401)
        action = "pull" if request.method in ("GET", "HEAD") else "push"
        self._need(
            request, f"repository:{repository}", "delete" if request.method == "DELETE" else action
        )

    def _need(self, request: Request, resource: str, action: str) -> None:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if f"{resource}:{action}" not in self.access.get(token, ()):
            actions = "pull,push" if action == "push" else action
            status = 403 if action in self.denied and token in self.access else 401
            raise self._challenge(f"{resource}:{actions}", status)

    def _challenge(self, scope: str, status: int) -> Exception:
        realm = f'Bearer realm="{self.url}/oauth2/token",service="{self.host}",scope="{scope}"'
        code = "UNAUTHORIZED" if status == 401 else "DENIED"
        return registry_error(status, code, "authentication required", WWW_Authenticate=realm)

    def _repository(self, request: Request, repository: str, mark: str, name: str) -> Reply:
        action = "delete" if request.method == "DELETE" else "metadata_read"
        self._need(request, f"repository:{repository}", action)
        with self.lock:
            tags = self.tags.get(repository, {})
            if mark == "_manifests":
                named = [tag for tag, digest in tags.items() if digest == name]
                return json_reply({"manifest": {"digest": name, "tags": named}})
            if not name:
                if not tags:
                    raise registry_error(404, "NAME_UNKNOWN", "repository is not found")
                items = [self._described(tag, tags[tag]) for tag in sorted(tags)]
                return self._page(request, "tags", items, f"/acr/v1/{repository}/_tags")
            if name not in tags:
                raise registry_error(404, "TAG_UNKNOWN", "tag is not found")
            if request.method == "DELETE":
                del tags[name]
                return 202, {}, b""
            return json_reply({"tag": self._described(name, tags[name])})

    @staticmethod
    def _described(tag: str, digest: str) -> dict[str, Any]:
        return {"name": tag, "digest": digest, "lastUpdateTime": "2026-01-02T03:04:05.1234567Z"}

    @staticmethod
    def _page(request: Request, key: str, items: list[Any], path: str) -> Reply:
        """Two at a time; the next page by its Link header, from the last name on."""
        last = request.query.get("last", "")
        left = [item for item in items if (item if isinstance(item, str) else item["name"]) > last]
        status, headers, body = json_reply({key: left[:2]})
        if len(left) > 2:
            name = left[1] if isinstance(left[1], str) else left[1]["name"]
            headers = {**headers, "Link": f'<{path}?last={name}&n=2>; rel="next"'}
        return status, headers, body
