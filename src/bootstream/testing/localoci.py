"""A local OCI for tests: the real ``bootstream local-oci`` in a process of its own.

::

    with LocalOciServer(tmp_path) as oci:
        oci.faults.add(effect="status", status=503, operation="GetObject", count=1)
        principal = oci.principal()
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shlex
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bootstream.clouds.oci.credentials import Principal

_START_SECONDS = 25.0
_STOP_SECONDS = 10.0


class LocalOciServer:
    """A local OCI with everything below ``folder``, running while the context lasts.

    Attributes:
        endpoint: URL of the object storage, without a slash at the end.
        namespace, bucket, region, compartment: what is ready to use.
        config_file: of OCI's tools, with the profiles ``DEFAULT`` and ``SESSION``.
        metadata_base_url, federation_endpoint: for instance principals.
        variables: what the shell file exports.
        faults: what goes wrong.
        registry_host: ``127.0.0.1:PORT`` of the container registry, with ``registry``.
        repository: a repository that is there.
        registry_user, registry_password: credentials of a user, for Basic.

    Args:
        folder: existing or not. The same folder again has the same objects and keys.
        token_lifetime: seconds for which security tokens are good.
        workload: also give pods tokens over TLS, on ``workload_port``.
        registry: also run a container registry.
        registry_token_seconds: for which its tokens are good.
        port: where it listens; 0: a free one.
    """

    def __init__(
        self,
        folder: Path,
        *,
        token_lifetime: float = 1200.0,
        workload: bool = False,
        registry: bool = False,
        registry_token_seconds: int = 3600,
        port: int = 0,
    ) -> None:
        self.folder = folder
        self._options = ["--token-lifetime", f"{token_lifetime}s", "--port", str(port)]
        if workload:
            self._options += ["--workload-port", "0"]
        if registry:
            self._options += ["--registry", "--registry-token-seconds", str(registry_token_seconds)]
        self._process: subprocess.Popen[bytes] | None = None
        self.faults = FaultControl(self)
        self.variables: dict[str, str] = {}
        self.endpoint = self.namespace = self.bucket = self.region = self.compartment = ""
        self.metadata_base_url = self.federation_endpoint = ""
        self.config_file = folder / "data" / "identity" / "config"
        self.workload_port = 0
        self.registry_host = self.repository = self.registry_user = self.registry_password = ""

    def __enter__(self) -> LocalOciServer:
        self.folder.mkdir(parents=True, exist_ok=True)
        environment = self.folder / "oci.env"
        reader, writer = os.pipe()
        command = [sys.executable, "-m", "bootstream", "local-oci", "--ready-fd", str(writer)]
        places = ["--data", str(self.folder / "data"), "--write-env", str(environment)]
        try:
            with (self.folder / "server.log").open("ab") as log:
                self._process = subprocess.Popen(
                    [*command, *places, *self._options],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=[writer],
                )
        finally:
            os.close(writer)
        try:
            self._wait(reader)
        except BaseException:
            self.close()
            raise
        finally:
            os.close(reader)
        self._read(environment)
        return self

    def _wait(self, reader: int) -> None:
        """Return when it listens."""
        ready = select.select([reader], [], [], _START_SECONDS)[0]
        if not ready or os.read(reader, 1) != b"\n":
            log = (self.folder / "server.log").read_text()
            raise RuntimeError(f"bootstream local-oci does not start:\n{log[-2000:]}")

    def _read(self, environment: Path) -> None:
        self.variables = values = read_environment(environment)
        self.endpoint = values["OCI_OBJECT_STORAGE_ENDPOINT"]
        self.namespace = values["OCI_NAMESPACE"]
        self.bucket = values["TEMPLATE_BUCKET_NAME"]
        self.region = values["OCI_REGION"]
        self.compartment = values["OCI_COMPARTMENT_ID"]
        self.metadata_base_url = values["OCI_METADATA_BASE_URL"]
        self.federation_endpoint = values["OCI_CLI_FEDERATION_ENDPOINT"]
        self.workload_port = int(values.get("BOOTSTREAM_LOCAL_OCI_WORKLOAD_PORT", "0"))
        self.registry_host = values.get("OCIR_ENDPOINT", "")
        self.repository = values.get("OCI_CONTAINER_REPOSITORY_NAME", "")
        unset = read_environment(environment, "# export ")
        self.registry_user = unset.get("OCIR_USERNAME", "")
        self.registry_password = unset.get("OCIR_PASSWORD", "")

    def principal(self, auth: str = "api_key", profile: str | None = None) -> Principal:
        """Return a principal of ours that this server knows.

        Args:
            auth: its kind, as ``OCI_CLI_AUTH`` names it; ``oke_workload_identity`` needs
                ``workload``, and asks at its port in the place of 12250.
            profile: of the config file.
        """
        from bootstream.clouds.oci import open_principal  # noqa: PLC0415 - not all need it

        if auth == "oke_workload_identity":
            return self._workload()
        return open_principal(
            auth=auth,
            config_file=self.config_file,
            profile=profile,
            environ=self.variables,
            metadata_base_url=self.metadata_base_url,
            federation_endpoint=self.federation_endpoint,
        )

    def _workload(self) -> Principal:
        from bootstream.clouds.oci.workload import (  # noqa: PLC0415 - as above
            WorkloadIdentityPrincipal,
        )

        return WorkloadIdentityPrincipal(
            f"https://127.0.0.1:{self.workload_port}/resourcePrincipalSessionTokens",
            region=self.region,
            token_file=Path(self.variables["OCI_KUBERNETES_SERVICE_ACCOUNT_TOKEN_PATH"]),
            ca_file=Path(self.variables["OCI_KUBERNETES_SERVICE_ACCOUNT_CERT_PATH"]),
        )

    def set_policies(self, document: Mapping[str, Any] | None) -> None:
        """Put policies into force, as ``docs/local-oci.md`` has them; None allows everything."""
        if document is None:
            self.administer("DELETE", "policies")
        else:
            self.administer("PUT", "policies", document)

    def set_clock(self, offset: float) -> None:
        """Make the server's clock wrong by so many seconds."""
        self.administer("PUT", "clock", {"offset": offset})

    def set_token_lifetime(self, seconds: float) -> None:
        """Say how long tokens given out from now on are good."""
        self.administer("PUT", "tokens", {"lifetime": seconds})

    def rotate_instance(self) -> None:
        """Give the instance another key and certificate."""
        self.administer("POST", "rotate", {})

    def take_requests(self) -> dict[str, int]:
        """Return how many requests came since the last call, by operation."""
        counts: dict[str, int] = self.administer("DELETE", "requests")
        return counts

    def administer(self, method: str, page: str, document: Any = None) -> Any:
        """Ask a page below ``/_local/``; return its JSON.

        Raises:
            ValueError: it refuses; the message says why.
        """
        data = None if document is None else json.dumps(document).encode()
        request = urllib.request.Request(  # noqa: S310 - our own server
            f"{self.endpoint}/_local/{page}",
            data=data,
            method=method,
            headers={"content-type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - our own
                return json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                raise ValueError(json.load(error)["message"]) from error

    @property
    def process_id(self) -> int:
        """Of the server, while it runs."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """End the process as a crash does: at once, with nothing done."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def close(self) -> None:
        """End the process. Idempotent.

        Raises:
            RuntimeError: it ended with an error.
        """
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        if code != 0:
            log = (self.folder / "server.log").read_text()
            raise RuntimeError(f"bootstream local-oci ended with {code}:\n{log[-2000:]}")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            with contextlib.suppress(RuntimeError):  # the first error is the one to see
                self.close()


class FaultControl:
    """The faults of a server; the fields of a rule are in ``docs/local-oci.md``."""

    def __init__(self, server: LocalOciServer) -> None:
        self._server = server

    def add(self, effect: str, **fields: Any) -> int:
        """Put a rule into force; return its number."""
        answer = self._server.administer("POST", "faults", {"effect": effect, **fields})
        number: int = answer["ids"][0]
        return number

    def hits(self, number: int) -> int:
        """Return how often a rule took effect."""
        hits: int = next(rule["hits"] for rule in self.rules() if rule["id"] == number)
        return hits

    def rules(self) -> list[dict[str, Any]]:
        """Return all rules, with how often they were asked and took effect."""
        rules: list[dict[str, Any]] = self._server.administer("GET", "faults")
        return rules

    def clear(self) -> None:
        """Take all rules out of force."""
        self._server.administer("DELETE", "faults")


def read_environment(path: Path, start: str = "export ") -> dict[str, str]:
    """Return what a shell file of ``export NAME=VALUE`` lines exports, or has in comments."""
    values = {}
    for line in path.read_text().splitlines():
        if line.startswith(start):
            name, _, value = shlex.split(line.removeprefix(start))[0].partition("=")
            values[name] = value
    return values
