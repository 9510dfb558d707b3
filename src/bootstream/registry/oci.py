"""Oracle's Container Registry (OCIR): one repository, a tag a build.

Images are ``HOST/NAMESPACE/REPOSITORY:TEMPLATE-BUILD``. A principal signs a request to the
registry's token service and sends the token (``ocirtokens``); or a user signs in with an auth
token. Repositories are made, and tags taken away, by the Artifacts API, which knows principals
alone. Which principal that is, is found out when it is first needed.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator

from bootstream.clouds.oci import Principal, object_storage_endpoint
from bootstream.errors import (
    BootstreamError,
    InvalidInput,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from bootstream.images.credentials import BearerSource, Credentials, CredentialSource
from bootstream.images.scopes import PULL, PUSH, repository_scope
from bootstream.images.tags import head_manifest
from bootstream.images.transport import Transport
from bootstream.registry.api import Api
from bootstream.registry.names import ImageNames
from bootstream.registry.ociartifacts import ArtifactsApi, ContainerRepository, how_to_create
from bootstream.registry.ocihosts import OcirHost, artifacts_endpoint, find_host, policy
from bootstream.registry.ocirtokens import OcirTokens, PrincipalSigner
from bootstream.registry.remote import Access, RemoteRegistry

DEFAULT_REPOSITORY = "e2b-templates"
_NAMESPACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")


class OCIArtifactsRegistry(RemoteRegistry):
    """A repository of OCIR. Safe to use from several threads.

    Args:
        access: how it is spoken to; http is spoken to loopback hosts, or where it says so.
        principal: opens the principal; called once, when it is first needed.
        user: a user, ``NAMESPACE/USER``, with an auth token, to sign in to the registry; None:
            the principal does.
        repository: without the namespace.
        image_name: a pattern ``REPOSITORY[:TAG]`` below the namespace, see ``ImageNames``;
            None: ``{repository}:{template_id}-{build_id}``.
        namespace: of the tenancy; None: the user's, or looked up.
        compartment: of the repository; None: the tenancy.
        region: identifier or key; None: the endpoint's, or the principal's.
        endpoint: another host; see ``ocihosts.find_host``.
        artifacts: another endpoint of the Artifacts API.
        object_storage: another endpoint, where the namespace is looked up.
        create: make the repository where it is missing.

    Raises:
        InvalidInput: a name or an endpoint cannot be.
    """

    provider = "OCI_OCIR"

    def __init__(
        self,
        access: Access,
        *,
        principal: Callable[[], Principal],
        user: Credentials | None = None,
        repository: str = DEFAULT_REPOSITORY,
        image_name: str | None = None,
        namespace: str | None = None,
        compartment: str | None = None,
        region: str | None = None,
        endpoint: str | None = None,
        artifacts: str | None = None,
        object_storage: str | None = None,
        create: bool = True,
    ) -> None:
        super().__init__(access, create=create)
        if namespace is None and user is not None and "/" in user.username:
            namespace = user.username.partition("/")[0]
        if namespace is not None:
            _check_namespace(namespace)
        self._pattern = image_name or f"{repository}:{{template_id}}-{{build_id}}"
        setting = "OCI_IMAGE_NAME" if image_name else "OCI_CONTAINER_REPOSITORY_NAME"
        ImageNames(f"namespace/{self._pattern}", setting)  # what cannot be is told now
        self._setting = setting
        self._open_principal = principal
        self._user = user
        self._namespace = namespace
        self._compartment = compartment
        self._region = region
        self._endpoint = endpoint
        self._artifacts = artifacts
        self._object_storage = object_storage
        self._transport = Transport(ca_file=access.ca_file, proxies=access.proxies)
        self._found = threading.RLock()
        self._principal: Principal | None = None
        self._names: ImageNames | None = None
        self._tokens: OcirTokens | None = None
        self._api: ArtifactsApi | None = None
        self._host: OcirHost | None = None
        if endpoint is not None:
            self._where()

    # -- names --------------------------------------------------------------------------------

    def names(self) -> ImageNames:
        """See ``RemoteRegistry``; looks the namespace up where it is not known."""
        with self._found:
            if self._names is None:
                if self._namespace is None:
                    self._namespace = self._look_up_namespace()
                self._names = ImageNames(
                    f"{self._namespace.lower()}/{self._pattern}", self._setting
                )
            return self._names

    def host(self) -> str:
        """See ``RemoteRegistry``."""
        return self._where().name

    def plain_http(self) -> bool:
        """See ``RemoteRegistry``."""
        return self._where().plain_http

    def principal(self) -> str | None:
        """See ``RemoteRegistry``."""
        if self._user is not None:
            return self._user.username
        return self._principal.name if self._principal is not None else None

    def _where(self) -> OcirHost:
        with self._found:
            if self._host is None:
                region = self._region
                if region is None and self._endpoint is None:
                    region = self._signs().region
                self._host = find_host(
                    self._endpoint,
                    region,
                    plain_http=self.access.plain_http,
                    tls=self.access.ca_file is not None,
                )
            return self._host

    def _look_up_namespace(self) -> str:
        base = self._object_storage
        if base is None:
            region = self._region or self._signs().region or _of(self._where())
            if region is None:
                raise InvalidInput(
                    "neither the namespace nor the region is known",
                    operation="open registry",
                    object="OCI_NAMESPACE",
                    remedy="set it to what 'oci os ns get' prints, or set OCI_REGION",
                )
            base = object_storage_endpoint(region)
        found = (
            self._signed(base)
            .call(
                "GET",
                "/n",
                query={"compartmentId": self._compartment},
                operation="look up namespace",
                object=base.partition("://")[2],
            )
            .value
        )
        if not isinstance(found, str) or _NAMESPACE.fullmatch(found) is None:
            raise Unavailable(
                "the answer is no namespace",
                operation="look up namespace",
                object=base.partition("://")[2],
                transient=False,
                remedy="set OCI_NAMESPACE; check OCI_OBJECT_STORAGE_ENDPOINT",
            )
        return found

    # -- signing in ---------------------------------------------------------------------------

    def credentials(self, repository: str, *, writing: bool) -> CredentialSource | BearerSource:
        """See ``RemoteRegistry``."""
        if self._user is not None:
            return _User(self._user)
        scope = repository_scope(repository, PUSH if writing else PULL)
        return _Bearer(self._principals_tokens(), scope)

    def _principals_tokens(self) -> OcirTokens:
        with self._found:
            if self._tokens is None:
                where = self._where()
                self._tokens = OcirTokens(self._signed(where.url), where.name)
            return self._tokens

    def _signs(self) -> Principal:
        with self._found:
            if self._principal is None:
                self._principal = self._open_principal()
            return self._principal

    def _signed(self, base: str) -> Api:
        return Api(base, transport=self._transport, signer=PrincipalSigner(self._signs()))

    # -- repositories and tags ----------------------------------------------------------------

    def make_repository(self, repository: str) -> None:
        """See ``RemoteRegistry``. Without a principal it has to be there for a user."""
        name = self._below_namespace(repository)
        try:
            api = self._artifacts_api()
            if api.find_repository(name) is not None:
                return
        except PermissionDenied:
            return  # who may not look may still push to what is there
        except BootstreamError:
            if self._user is not None:
                return  # there may be no principal, and the API nowhere near
            raise
        api.create_repository(name)

    def find_repository(self, repository: str) -> ContainerRepository | None:
        """Return what the Artifacts API tells of a repository; None: there is none.

        Args:
            repository: the namespace before it, as in references.

        Raises:
            PermissionDenied: it may not be looked at; says what would allow it.
        """
        return self._artifacts_api().find_repository(self._below_namespace(repository))

    def repositories(self) -> Iterator[str]:
        """See ``RemoteRegistry``."""
        prefix = self.names().prefix.partition("/")[0]
        for name in self._artifacts_api().repositories():
            yield f"{prefix}/{name}"

    def remove(self, repository: str, tag: str) -> None:
        """See ``RemoteRegistry``: by the Artifacts API."""
        name = self._below_namespace(repository)

        def is_there() -> bool:
            return self._explained(
                lambda: head_manifest(self.client(repository), tag) is not None,
                repository,
                writing=False,
            )

        uri = f"{self.host()}/{repository}:{tag}"
        self._artifacts_api().delete_version(uri, name, tag, is_there=is_there)

    def explain(self, error: BootstreamError, repository: str, *, writing: bool) -> None:
        """See ``RemoteRegistry``."""
        name = self._below_namespace(repository)
        if isinstance(error, PermissionDenied):
            asked = ["REPOSITORY_READ", "REPOSITORY_UPDATE"] if writing else ["REPOSITORY_READ"]
            if self._user is not None:
                error.remedy = (
                    f"check OCIR_USERNAME ({self._user.username}) and OCIR_PASSWORD, an auth token "
                    f"of that user; or allow it: {policy(None, name, *asked)}"
                )
            else:
                kind = self._principal.name if self._principal else None
                error.remedy = f"allow it: {policy(kind, name, *asked)}"
        elif isinstance(error, NotFound) and writing and error.operation != "resolve":
            error.remedy = how_to_create(name, self._compartment or "<tenancy>")

    def _artifacts_api(self) -> ArtifactsApi:
        with self._found:
            if self._api is None:
                principal = self._signs()
                base = artifacts_endpoint(self._artifacts, self._where().region)
                self._api = ArtifactsApi(
                    self._signed(base), principal=principal.name, compartment=self._in_compartment
                )
            return self._api

    def _in_compartment(self) -> str:
        found = self._compartment or self._signs().tenancy
        if not found:
            raise InvalidInput(
                "the compartment of the repository is not known",
                operation="open registry",
                object="OCI_COMPARTMENT_ID",
                remedy="set it to the OCID of the compartment, or of the tenancy",
            )
        return found

    def _below_namespace(self, repository: str) -> str:
        return repository.partition("/")[2]

    def close(self) -> None:
        """See ``ArtifactsRegistry``."""
        super().close()
        self._transport.close()


class _User:
    """A user with an auth token; see ``CredentialSource``."""

    def __init__(self, user: Credentials) -> None:
        self._user = user

    def find(self, registry: str, repository: str | None = None) -> Credentials | None:
        """Return the user."""
        del registry, repository
        return self._user


class _Bearer:
    """The principal's tokens for one scope; see ``BearerSource``."""

    def __init__(self, tokens: OcirTokens, scope: str) -> None:
        self._tokens = tokens
        self._scope = scope

    def token(self, *, refused: str | None) -> str:
        """Return the scope's token."""
        return self._tokens.token(self._scope, refused=refused)


def _of(host: OcirHost) -> str | None:
    return None if host.region is None else host.region.identifier


def _check_namespace(namespace: str) -> None:
    if _NAMESPACE.fullmatch(namespace) is None:
        raise InvalidInput(
            "this cannot be a namespace",
            operation="open registry",
            object=ascii(namespace)[:80],
            remedy="set OCI_NAMESPACE to what 'oci os ns get' prints",
        )
