"""Who asks the registry for something, and what the policies let them do.

The token service, ``GET /20180419/docker/token?service=S&scope=X``, follows the Distribution
project's "Token Authentication Specification". Who asks shows one of:

- a signature, of any principal;
- Basic ``{namespace}/{user}`` or ``{namespace}/{domain}/{user}`` with an auth token;
- Basic ``BEARER_TOKEN`` with a token that this service gave out before;
- nothing: that is good for pulling from public repositories.

The answer has what is granted of what was asked: fewer actions, or none, but still a token. A
scope may come several times, or several in one, with spaces. Without a scope the token is its
holder, and each request asks the policies.

Permissions: pulling wants ``REPOSITORY_READ``; pushing also ``REPOSITORY_UPDATE``, and
``REPOSITORY_CREATE`` in the root compartment for a repository that is not there yet.
"""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING

from bootstream.localoci.errors import ApiError, invalid
from bootstream.localoci.http import json_response
from bootstream.localoci.protocols import Caller
from bootstream.localoci.registry.errors import RegistryError, denied
from bootstream.localoci.registry.tokens import Access, Holder
from bootstream.localoci.tokens import TokenError

if TYPE_CHECKING:
    from bootstream.localoci.http import Request, Response
    from bootstream.localoci.policies import PolicyFile
    from bootstream.localoci.protocols import Authenticate
    from bootstream.localoci.registry.catalogue import Catalogue
    from bootstream.localoci.registry.tokens import AuthTokens, RegistryTokens
    from bootstream.localoci.registry.values import Repository

TOKEN_PATH = "/20180419/docker/token"  # noqa: S105 - where tokens are got
BEARER_USER = "BEARER_TOKEN"
_ANONYMOUS = Caller("", "", "anonymous")
_ACTIONS = frozenset({"pull", "push"})
_MAX_SCOPES = 32
_HOST = re.compile(r"[A-Za-z0-9.\-_]+(?::\d{1,5})?|\[[0-9A-Fa-f:.]+\](?::\d{1,5})?")


def host_of(request: Request) -> str:
    """The host and port that a client used.

    Raises:
        ApiError: 400, that is not one.
    """
    host = request.headers.get("host", "")
    if not _HOST.fullmatch(host):
        raise invalid("the header host names no host")
    return host


class Gate:
    """Signs callers in at the registry, and decides. Thread safe.

    Args:
        authenticate: who signed a request.
        tokens: gives out and checks bearer tokens.
        auth_tokens: the users' passwords.
        policies: what may be done.
        catalogue: which repositories there are.
        namespace: the tenancy's.
        tenancy: its OCID, which is the root compartment's.
    """

    def __init__(
        self,
        *,
        authenticate: Authenticate,
        tokens: RegistryTokens,
        auth_tokens: AuthTokens,
        policies: PolicyFile,
        catalogue: Catalogue,
        namespace: str,
        tenancy: str,
    ) -> None:
        self._authenticate = authenticate
        self._tokens = tokens
        self._auth_tokens = auth_tokens
        self._policies = policies
        self._catalogue = catalogue
        self._namespace = namespace
        self._tenancy = tenancy

    # The token service

    def give_token(self, request: Request) -> Response:
        """Answer a request of the token service.

        Raises:
            ApiError: 401, the signature is wrong; 400, a scope is.
            RegistryError: 401, the password is.
        """
        scopes = [
            scope for name, value in request.query if name == "scope" for scope in value.split()
        ]
        if len(scopes) > _MAX_SCOPES:
            raise invalid(f"there are over {_MAX_SCOPES} scopes")
        holder = self._asker(request)
        access = _limited(self._asked(holder.caller, scopes), holder) if scopes else holder.access
        token, seconds = self._tokens.issue(holder.caller, access, until=holder.expires)
        granted = (
            f"repository:{name}:{','.join(sorted(one.granted))}"
            for name, one in (access or {}).items()
        )
        return json_response(
            {
                "token": token,
                "access_token": token,
                "scope": " ".join(granted),
                "expires_in": seconds,
            },
            headers={"cache-control": "no-store"},
        )

    def _asker(self, request: Request) -> Holder:
        authorization = request.headers.get("authorization")
        if authorization is None:
            return Holder(_ANONYMOUS, None, float("inf"))
        scheme, _, credentials = authorization.partition(" ")
        if scheme.lower() != "basic":
            return Holder(self._authenticate(request), None, float("inf"))
        user, password = _basic(credentials)
        if user == BEARER_USER:
            try:
                return self._tokens.holder(password)
            except TokenError as error:
                raise RegistryError(401, "UNAUTHORIZED", str(error)) from None
        namespace, _, name = user.partition("/")
        caller = None
        if namespace == self._namespace:
            caller = self._auth_tokens.user(name, password) or self._auth_tokens.user(
                name.partition("/")[2], password
            )
        if caller is None:
            raise RegistryError(
                401, "UNAUTHORIZED", "no user {namespace}/{user} has this auth token"
            )
        return Holder(caller, None, float("inf"))

    def _asked(self, caller: Caller, scopes: list[str]) -> dict[str, Access]:
        access: dict[str, Access] = {}
        for scope in scopes:
            kind, _, rest = scope.partition(":")
            name, _, actions = rest.rpartition(":")
            if not name or not actions:
                raise invalid(f"not a scope, TYPE:NAME:ACTIONS: {scope[:100]!r}")
            if kind != "repository":
                continue
            asked = frozenset(actions.split(","))
            if "*" in asked:
                asked |= _ACTIONS
            if name in access:
                asked |= access[name].asked
            access[name] = Access(asked, asked & self.actions(caller, name))
        return access

    # Decisions

    def actions(self, caller: Caller, full_name: str) -> frozenset[str]:
        """Return which of ``pull`` and ``push`` a caller may do.

        Args:
            caller: who asks.
            full_name: the repository's name with its namespace.
        """
        namespace, _, name = full_name.partition("/")
        if namespace != self._namespace or not name:
            return frozenset()
        repository = self._catalogue.repository(name=name)
        actions = set()
        readable = self.may(caller, "REPOSITORY_READ", name, repository)
        if readable or (repository is not None and repository.public):
            actions.add("pull")
        if (
            readable
            and self.may(caller, "REPOSITORY_UPDATE", name, repository)
            and (repository is not None or self.may(caller, "REPOSITORY_CREATE", name, None))
        ):
            actions.add("push")
        return frozenset(actions)

    def may(
        self, caller: Caller, permission: str, name: str | None, repository: Repository | None
    ) -> bool:
        """Return whether the policies grant a permission.

        Args:
            caller: who asks.
            permission: e.g. ``REPOSITORY_READ``.
            name: the repository's; None: of no one in particular.
            repository: it, or None for one that would be made in the root compartment.
        """
        root = repository is None or repository.compartment == self._tenancy
        return self.may_in(caller, permission, name, root=root)

    def may_in(self, caller: Caller, permission: str, name: str | None, *, root: bool) -> bool:
        """As ``may``, of the root compartment or of another."""
        if caller.kind == "anonymous":
            return False
        targets = {} if name is None else {"target.repo.name": name}
        return self._policies.grants(caller, permission, targets, root=root)

    # Requests with a token

    def holder(self, request: Request, scope: str) -> Holder:
        """Return who shows a bearer token.

        Args:
            request: one below ``/v2/``.
            scope: what the challenge is to ask for.

        Raises:
            RegistryError: 401 with the challenge.
        """
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            raise self._challenge(request, scope, "sign in with a token of the token service")
        try:
            return self._tokens.holder(token.strip())
        except TokenError as error:
            raise self._challenge(request, scope, str(error), "invalid_token") from None

    def allow(self, request: Request, holder: Holder, full_name: str, action: str) -> None:
        """Return when a holder may do an action.

        Raises:
            RegistryError: 401 when the token was not asked for it, which the client can mend; 403.
        """
        if holder.access is None:
            granted = self.actions(holder.caller, full_name)
        else:
            access = holder.access.get(full_name)
            if access is None or action not in access.asked:
                raise self._challenge(
                    request,
                    scope_of(full_name, action),
                    f"the token is not for this: {action}",
                    "insufficient_scope",
                )
            granted = access.granted
        if action not in granted:
            if holder.caller.kind == "anonymous":
                raise denied("who has not signed in may pull from public repositories only")
            raise denied(
                f"the policies do not grant this: {action}", {"name": full_name, "action": action}
            )

    @staticmethod
    def _challenge(request: Request, scope: str, message: str, error: str = "") -> RegistryError:
        host = host_of(request)
        challenge = f'Bearer realm="http://{host}{TOKEN_PATH}",service="{host}",scope="{scope}"'
        if error:
            challenge += f',error="{error}"'
        return RegistryError(401, "UNAUTHORIZED", message, headers={"www-authenticate": challenge})


def scope_of(full_name: str, action: str) -> str:
    """The scope that a challenge names for an action on a repository."""
    return f"repository:{full_name}:{'pull' if action == 'pull' else 'pull,push'}"


def _limited(access: dict[str, Access], holder: Holder) -> dict[str, Access]:
    """What a token got by another may have: no more than that one."""
    if holder.access is None:
        return access
    nothing = Access(frozenset(), frozenset())
    return {
        name: Access(one.asked, one.granted & holder.access.get(name, nothing).granted)
        for name, one in access.items()
    }


def _basic(credentials: str) -> tuple[str, str]:
    """User and password of RFC 7617."""
    try:
        text = base64.b64decode(credentials.strip(), validate=True).decode()
    except ValueError:
        raise ApiError(401, "NotAuthenticated", "Basic credentials are not base64") from None
    user, _, password = text.partition(":")
    return user, password
