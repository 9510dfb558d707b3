"""The registry as one handler: the token service, ``/v2/``, and the Artifacts API."""

from __future__ import annotations

import contextlib
from contextlib import ExitStack
from typing import TYPE_CHECKING

from bootstream.localoci.errors import ApiError
from bootstream.localoci.registry.access import TOKEN_PATH, Gate
from bootstream.localoci.registry.artifacts import API, Artifacts
from bootstream.localoci.registry.catalogue import Catalogue
from bootstream.localoci.registry.errors import RegistryError
from bootstream.localoci.registry.process import RegistryProcess
from bootstream.localoci.registry.proxy import Proxy
from bootstream.localoci.registry.resuming import Uploaded
from bootstream.localoci.registry.tokens import AuthTokens, RegistryTokens
from bootstream.localoci.registry.upstream import Upstream
from bootstream.localoci.registry.values import Exists

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bootstream.localoci.http import Request, Response
    from bootstream.localoci.keys import Identity
    from bootstream.localoci.policies import PolicyFile
    from bootstream.localoci.protocols import Authenticate

REPOSITORY = "e2b-templates"  # what the guide's Terraform makes


class Registry:
    """A container registry over a folder, with a process of its own. Thread safe.

    Attributes:
        tokens: of the token service; its ``lifetime`` may be changed.
        auth_tokens: the users' passwords.

    Args:
        folder: made when missing.
        identity: who exists.
        authenticate: who signed a request.
        policies: what may be done.
        clock: seconds since the epoch.
        token_seconds: for which tokens are good.

    Raises:
        InvalidInput: the registry's program is missing.
        Unavailable: it does not start.
        Corrupt: the folder's files are not as they were written.
    """

    def __init__(
        self,
        folder: Path,
        *,
        identity: Identity,
        authenticate: Authenticate,
        policies: PolicyFile,
        clock: Callable[[], float],
        token_seconds: float,
    ) -> None:
        names = identity.names
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.auth_tokens = AuthTokens(identity)
        self.tokens = RegistryTokens(folder, clock=clock, lifetime=token_seconds)
        with ExitStack() as parts:
            self._catalogue = Catalogue(folder / "registry.db", region=names.region, clock=clock)
            parts.callback(self._catalogue.close)
            process = RegistryProcess(folder)
            parts.callback(process.close)
            upstream = Upstream(process.socket)
            parts.callback(upstream.close)
            self._gate = Gate(
                authenticate=authenticate,
                tokens=self.tokens,
                auth_tokens=self.auth_tokens,
                policies=policies,
                catalogue=self._catalogue,
                namespace=names.namespace,
                tenancy=names.tenancy,
            )
            self._proxy = Proxy(
                self._gate,
                self._catalogue,
                upstream,
                Uploaded(process.repositories, process.secret),
                namespace=names.namespace,
                tenancy=names.tenancy,
            )
            self._artifacts = Artifacts(
                self._gate,
                self._catalogue,
                authenticate=authenticate,
                names=names,
                storage=process.repositories,
            )
            self._parts = parts.pop_all()

    def ensure(self, name: str, compartment: str, creator: str) -> None:
        """Make a private, mutable repository unless there is one of the name."""
        with contextlib.suppress(Exists):
            self._catalogue.create(name, compartment, creator)

    def handle(self, request: Request) -> Response | None:
        """Answer a request that is the registry's; None of another.

        Raises:
            ApiError: the answer is an error.
            Disconnect: there is no answer.
        """
        path = request.raw_path
        if path.startswith(API):
            return self._artifacts.handle(request)
        if path not in {TOKEN_PATH, "/v2"} and not path.startswith("/v2/"):
            return None
        try:
            if path != TOKEN_PATH:
                return self._protocol(request)
            if request.method != "GET":
                raise ApiError(405, "MethodNotAllowed", "a token is got with GET")
            return self._gate.give_token(request)
        except RegistryError as error:
            return error.response()

    def _protocol(self, request: Request) -> Response:
        """Answer ``/v2/``, where every error is the protocol's."""
        try:
            return self._proxy.handle(request)
        except ApiError as error:
            code = "SIZE_INVALID" if error.status == 413 else "UNKNOWN"
            raise RegistryError(error.status, code, error.message, headers=error.headers) from error

    def close(self) -> None:
        """End the process, and close what is open. Idempotent."""
        self._parts.close()
