"""Azure Container Registry (ACR): a repository a template, a tag a build.

Images are ``NAME.azurecr.io/TEMPLATE:BUILD``. A token of Entra's, which azure-identity finds, is
exchanged for a refresh token of the registry (``POST /oauth2/exchange``), and that for tokens
of the scopes that are needed (``POST /oauth2/token``): Azure's "Authentication with Azure
Container Registry", AAD-OAuth. Tags are taken away by ``DELETE /acr/v1/NAME/_tags/TAG``.
Repositories come to be with their first image.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any
from urllib.parse import quote, urlencode

from bootstream.errors import (
    BootstreamError,
    Corrupt,
    ImageNotFound,
    InvalidInput,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from bootstream.images.client import RegistryClient
from bootstream.images.credentials import BearerSource, Credentials, CredentialSource
from bootstream.images.retry import Retry
from bootstream.images.tags import delete_manifest, next_page
from bootstream.images.transport import Transport
from bootstream.registry.api import said_by
from bootstream.registry.hosts import RegistryHost, parse_host
from bootstream.registry.names import ImageNames
from bootstream.registry.protocol import ListedImage
from bootstream.registry.remote import Access, RemoteRegistry

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?", re.IGNORECASE)
_RESOURCE = "https://containerregistry.azure.net/.default"
_SIGN_IN = (
    "az login, set AZURE_CLIENT_ID, AZURE_TENANT_ID and AZURE_CLIENT_SECRET, or give the host a "
    "managed identity"
)
_EXCHANGED_SECONDS = 3600.0  # a refresh token of the registry's is good for three hours
_MAX_ANSWER = 1 << 20
_MAX_PAGES = 10_000


class AzureArtifactsRegistry(RemoteRegistry):
    """A registry of Azure's. Safe to use from several threads.

    Deleting the image of several platforms leaves its platforms' manifests, without tags, to
    the registry's retention policy.

    Args:
        access: how it is spoken to.
        name: the registry's.
        host: another host, HOST[:PORT].
        entra: returns a token of Entra's for the registry; None: azure-identity's usual chain.

    Raises:
        InvalidInput: azure-identity is not installed, or the name cannot be.
    """

    provider = "AZURE_ACR"

    def __init__(
        self,
        access: Access,
        *,
        name: str,
        host: str | None = None,
        entra: Callable[[], str] | None = None,
    ) -> None:
        super().__init__(access, create=False)
        if _NAME.fullmatch(name) is None:
            raise InvalidInput(
                f"{ascii(name)[:80]} cannot be the name of a registry",
                operation="read",
                object="AZURE_CONTAINER_REGISTRY_NAME",
                remedy="write NAME of NAME.azurecr.io",
            )
        self._names = ImageNames("{template_id}:{build_id}", "AZURE_CONTAINER_REGISTRY_NAME")
        self._where = RegistryHost(f"{name.lower()}.azurecr.io", access.plain_http)
        if host is not None:
            self._where = parse_host(
                host,
                setting="AZURE_CONTAINER_REGISTRY_ENDPOINT",
                plain_http=access.plain_http,
                tls=access.ca_file is not None,
            )
        self._transport = Transport(ca_file=access.ca_file, proxies=access.proxies)
        self._tokens = AcrTokens(self._where, self._transport, entra or _find_credentials())

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
        return _AcrCredentials(self._tokens)

    def repositories(self) -> Iterator[str]:
        """See ``RemoteRegistry``."""
        for page in self._pages(
            self.client("bootstream"), "/acr/v1/_catalog?n=1000", ("registry:catalog:*",)
        ):
            yield from (name for name in page.get("repositories") or () if isinstance(name, str))

    def listed(self, repository: str) -> Iterator[ListedImage]:
        """See ``RemoteRegistry``."""
        client = self.client(repository)
        scopes = (f"repository:{repository}:metadata_read",)
        try:
            for page in self._pages(client, f"{_api(repository)}/_tags?n=1000", scopes):
                for item in page.get("tags") or ():
                    found = self._of(item, repository) if isinstance(item, dict) else None
                    if found is not None:
                        yield found
        except ImageNotFound:
            return

    def _of(self, item: dict[str, Any], repository: str) -> ListedImage | None:
        tag, digest = str(item.get("name") or ""), str(item.get("digest") or "")
        ids = self._names.parse(repository, tag)
        if ids is None:
            return None
        try:
            pushed = datetime.fromisoformat(str(item.get("lastUpdateTime") or ""))
        except ValueError:
            pushed = None
        return ListedImage(*ids, f"{self.host()}/{repository}:{tag}", digest, None, pushed)

    def _pages(
        self, client: RegistryClient, target: str, scopes: tuple[str, ...]
    ) -> Iterator[dict[str, Any]]:
        following: str | None = target
        for _ in range(_MAX_PAGES):
            if following is None:
                return
            page, following = self._ask(client, "GET", following, scopes, "list images")
            yield page
        raise Corrupt("the listing does not end", operation="list images", object=client.name)

    def _ask(
        self,
        client: RegistryClient,
        method: str,
        target: str,
        scopes: tuple[str, ...],
        operation: str,
    ) -> tuple[dict[str, Any], str | None]:
        """Send a request below the registry's root; return its object and the next page."""

        def ask() -> tuple[dict[str, Any], str | None]:
            with client.request(
                method, target, operation=operation, object=client.name, scopes=scopes
            ) as answer:
                data, following = answer.read_all(_MAX_ANSWER), next_page(answer)
            document = _document(data) if data.strip() else {}
            if document is None:
                raise Corrupt("the answer is no object", operation=operation, object=client.name)
            return document, following

        return Retry().run(ask, time.sleep)

    def remove(self, repository: str, tag: str) -> None:
        """See ``RemoteRegistry``: the tag first, then its manifest if nothing else names it."""
        client = self.client(repository)
        read = (f"repository:{repository}:metadata_read",)
        delete = (f"repository:{repository}:delete",)
        target = f"{_api(repository)}/_tags/{quote(tag, safe='')}"
        try:
            found, _ = self._ask(client, "GET", target, read, "look up image")
            described = found.get("tag")
            digest = described.get("digest") if isinstance(described, dict) else None
            self._ask(client, "DELETE", target, delete, "delete tag")
            if not isinstance(digest, str):
                return
            left, _ = self._ask(
                client, "GET", f"{_api(repository)}/_manifests/{digest}", read, "look up image"
            )
            manifest = left.get("manifest")
            if isinstance(manifest, dict) and not manifest.get("tags"):
                delete_manifest(client, digest)
        except NotFound:
            return  # somebody else was first
        except InvalidInput as error:
            error.remedy = "the image may be locked: az acr repository update --delete-enabled true"
            raise
        except PermissionDenied as error:
            error.remedy = "grant the role AcrDelete on the registry"
            raise

    def explain(self, error: BootstreamError, repository: str, *, writing: bool) -> None:
        """See ``RemoteRegistry``."""
        del repository
        if isinstance(error, PermissionDenied) and error.remedy != _SIGN_IN:
            error.remedy = f"grant the role {'AcrPush' if writing else 'AcrPull'} on the registry"

    def close(self) -> None:
        """See ``ArtifactsRegistry``."""
        super().close()
        self._transport.close()


class AcrTokens:
    """Refresh tokens of a registry, exchanged for Entra's. Thread safe.

    Args:
        where: the registry, and nobody else, is asked.
        transport: moves the bytes.
        entra: returns a token of Entra's.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        where: RegistryHost,
        transport: Transport,
        entra: Callable[[], str],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._where = where
        self._transport = transport
        self._entra = entra
        self._clock = clock
        self._lock = threading.Lock()
        self._token: str | None = None
        self._until = 0.0

    def token(self, *, refused: str | None = None) -> str:
        """Return a refresh token; another one than that which was refused.

        Raises:
            PermissionDenied: nobody is signed in to Azure, or not known to the registry.
            Throttled, Unavailable: the registry cannot be asked, after retries.
        """
        with self._lock:
            if self._token is None or self._clock() >= self._until or self._token == refused:
                self._token = Retry().run(self._exchange, time.sleep)
                self._until = self._clock() + _EXCHANGED_SECONDS
            return self._token

    def _exchange(self) -> str:
        name = self._where.name
        form = {"grant_type": "access_token", "service": name, "access_token": self._entra()}
        with self._transport.send(
            "POST",
            f"{self._where.url}/oauth2/exchange",
            headers={"Content-Type": "application/x-www-form-urlencoded"},
            body=urlencode(form).encode(),
            operation="sign in",
        ) as answer:
            if answer.status != 200:
                said = said_by(answer)
                text = f"{name} answered {answer.status}" + (f": {said}" if said else "")
                if answer.status >= 500 or answer.status == 429:
                    raise Unavailable(text, operation="sign in", object=name)
                raise PermissionDenied(text, operation="sign in", object=name, remedy=_SIGN_IN)
            document = _document(answer.read_all(_MAX_ANSWER))
        token = document.get("refresh_token") if document else None
        if not isinstance(token, str) or not (token.isascii() and token.isprintable() and token):
            raise Corrupt("the answer has no refresh token", operation="sign in", object=name)
        return token


class _AcrCredentials:
    """The refresh token; asked again, it was refused. See ``CredentialSource``."""

    def __init__(self, tokens: AcrTokens) -> None:
        self._tokens = tokens

    def find(self, registry: str, repository: str | None = None) -> Credentials | None:
        """Return the token."""
        del registry, repository
        return Credentials(identity_token=self._tokens.token())


def _find_credentials() -> Callable[[], str]:
    try:
        from azure.core.exceptions import AzureError  # noqa: PLC0415 - optional
        from azure.identity import DefaultAzureCredential  # noqa: PLC0415
    except ImportError:
        raise InvalidInput(
            "Azure's registry needs azure-identity, which is not installed",
            operation="open registry",
            object="AZURE_ACR",
            remedy="pip install 'bootstream[azure]'",
        ) from None
    found = DefaultAzureCredential()

    def token() -> str:
        try:
            return found.get_token(_RESOURCE).token
        except AzureError as error:
            raise PermissionDenied(
                "Azure gives no token: " + str(error).partition("\n")[0][:200],
                operation="sign in",
                object="Azure",
                remedy=_SIGN_IN,
            ) from error

    return token


def _api(repository: str) -> str:
    return f"/acr/v1/{quote(repository)}"


def _document(data: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
