"""The whole local cloud: sign-in, object storage, registry and what goes wrong, on one port.

A request goes through the parts in this order: administration; faults, which come before
anything is looked at, as a proxy's or a network's do; metadata and federation, which have
proofs of their own; then the registry and the object storage, which sign callers in and ask the
policies.
"""

from __future__ import annotations

import logging
import re
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from bootstream.errors import InvalidInput
from bootstream.localoci.app import Application
from bootstream.localoci.environment import (
    Place,
    RegistryPlace,
    secrets,
    variables,
    write_config,
    write_environment,
    write_tokens,
)
from bootstream.localoci.faults import Faults
from bootstream.localoci.federation import Federation
from bootstream.localoci.httpserver import HttpServer
from bootstream.localoci.keys import Identity
from bootstream.localoci.metadata import Metadata
from bootstream.localoci.policies import PolicyFile
from bootstream.localoci.registry.handler import REPOSITORY, Registry
from bootstream.localoci.services import Clock, Services
from bootstream.localoci.signatures import Authenticator
from bootstream.localoci.tokens import Tokens
from bootstream.localoci.workload import WorkloadServer

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from bootstream.localoci.http import Request, Response

log = logging.getLogger(__name__)

T = TypeVar("T")

_BUCKET_NAME = re.compile(r"[A-Za-z0-9._-]{1,256}")
_LONGEST_RENEWAL = 600.0  # seconds between two looks at the tokens' files


@dataclass(frozen=True, slots=True)
class Plan:
    """What a local cloud is like.

    Args:
        data: the folder of everything it keeps; made if it is missing.
        port: on 127.0.0.1; 0 takes a free one.
        region: used when the folder is new; otherwise its own holds.
        namespace: the same.
        bucket: is made unless it exists.
        token_lifetime: seconds for which security tokens are good.
        workload_port: where pods get tokens over TLS; 0 takes a free port, None: nowhere.
        registry: whether there is a container registry.
        registry_token_seconds: for which its tokens are good.
    """

    data: Path
    port: int = 0
    region: str = "us-ashburn-1"
    namespace: str = "local"
    bucket: str = "bootstream"
    token_lifetime: float = 1200.0
    workload_port: int | None = None
    registry: bool = False
    registry_token_seconds: float = 3600.0


class LocalCloud:
    """A running local cloud; a context manager that ends it.

    Args:
        plan: what it is like.

    Raises:
        InvalidInput: the folder's policies are wrong, the port or folder is in use, or the
            registry's program is missing.
        Unavailable: the registry does not start.
        Corrupt: the folder's files are not as they were written.
    """

    def __init__(self, plan: Plan) -> None:
        if not _BUCKET_NAME.fullmatch(plan.bucket):
            raise InvalidInput(
                "a bucket's name has letters, digits, '-', '_' and '.', 256 at most",
                operation="make the bucket",
                object=plan.bucket,
            )
        plan.data.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.clock = clock = Clock()
        self.identity = Identity(
            plan.data, region=plan.region, namespace=plan.namespace, clock=clock
        )
        self._tokens = Tokens(self.identity.token_key, clock=clock, lifetime=plan.token_lifetime)
        self.federation = Federation(self.identity, self._tokens, clock)
        self.policies = PolicyFile(plan.data)
        self.faults = Faults()
        services = Services(
            identity=self.identity,
            tokens=self._tokens,
            metadata=Metadata(self.identity),
            federation=self.federation,
            policies=self.policies,
            faults=self.faults,
            clock=clock,
            lifetime_changed=self._lifetime_changed,
        )
        authenticate = Authenticator(self.identity, self._tokens, clock)
        self._application = Application(
            plan.data,
            authenticate=authenticate,
            policies=self.policies,
            clock=clock,
            namespace=self.identity.names.namespace,
            region=self.identity.names.region,
        )
        self._ended = False
        self._woken = threading.Event()
        self._renewal = threading.Thread(target=self._renew, daemon=True)
        self._servers = ExitStack()
        self._servers.callback(self._application.close)
        try:
            self._workload: WorkloadServer | None = None
            if plan.workload_port is not None:
                self._workload = self._listen(plan.workload_port, self._listen_to_pods)
                self._servers.callback(self._workload.close)
            self._registry: Registry | None = None
            if plan.registry:
                self._registry = Registry(
                    plan.data / "registry",
                    identity=self.identity,
                    authenticate=authenticate,
                    policies=self.policies,
                    clock=clock,
                    token_seconds=plan.registry_token_seconds,
                )
                self._servers.callback(self._registry.close)
                self._registry.ensure(
                    REPOSITORY, self.identity.names.compartment, self.identity.user.ocid
                )
            handler = services.around(self._handle)
            self._server = self._listen(
                plan.port, lambda port: HttpServer(handler, port=port, clock=clock)
            )
            self._servers.callback(self._server.close)
            self.place = Place(
                self._server.url,
                plan.bucket,
                self._workload.port if self._workload else None,
                self._registry_place(),
            )
            self.config = write_config(self.identity)
            write_tokens(self.identity, self.federation)
            self._application.ensure_bucket(
                plan.bucket, self.identity.names.compartment, self.identity.user.ocid
            )
        except BaseException:
            self._servers.close()
            raise

    def _handle(self, request: Request) -> Response:
        response = self._registry.handle(request) if self._registry is not None else None
        return response if response is not None else self._application.handle(request)

    def _registry_place(self) -> RegistryPlace | None:
        if self._registry is None:
            return None
        return RegistryPlace(REPOSITORY, self._registry.auth_tokens)

    def _listen_to_pods(self, port: int) -> WorkloadServer:
        return WorkloadServer(self.federation, self.identity, port)

    @staticmethod
    def _listen(port: int, make: Callable[[int], T]) -> T:
        try:
            return make(port)
        except OSError as error:
            raise InvalidInput(
                f"the port cannot be taken ({error.strerror})",
                operation="listen on",
                object=f"127.0.0.1:{port}",
                remedy="choose another one, or 0 for a free one",
            ) from error

    def environment(self) -> dict[str, str]:
        """Return the variables that point programs here."""
        return variables(self.identity, self.place, self.config)

    def write_environment(self, path: Path) -> None:
        """Write a shell file with them."""
        write_environment(path, self.environment(), secrets(self.identity, self.place))

    def start(self) -> None:
        """Begin to answer; returns at once."""
        self._server.start()
        self._renewal.start()
        if self._workload is not None:
            self._workload.start()

    def _renew(self) -> None:
        """Replace the tokens in files at half of their lives, as the cloud's agents do."""
        while not self._ended:
            self._woken.wait(min(_LONGEST_RENEWAL, max(0.2, self._tokens.lifetime / 2)))
            self._woken.clear()
            if not self._ended:
                self._write_tokens()

    def _write_tokens(self) -> None:
        try:
            write_tokens(self.identity, self.federation)
        except OSError as error:
            log.warning("tokens: %s", error)

    def _lifetime_changed(self) -> None:
        """Replace the tokens in files at once, and go by the new lifetime from now on."""
        self._write_tokens()
        self._woken.set()

    def __enter__(self) -> LocalCloud:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End: no more answers, nothing left open. Idempotent."""
        self._ended = True
        self._woken.set()
        if self._renewal.is_alive():
            self._renewal.join()
        self._servers.close()  # the ports first, then what answers them
