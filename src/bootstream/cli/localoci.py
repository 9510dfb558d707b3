"""``local-oci``: OCI's storage, registry and sign-in on this machine, for tests and trials."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import click

from bootstream.cli.base import AGE, verb
from bootstream.cli.context import Cli, pass_cli
from bootstream.errors import InvalidInput

_DATA = Path("local-oci")


@verb(
    "local-oci",
    """
    bootstream local-oci --data /tmp/oci --write-env /tmp/oci.env
    . /tmp/oci.env
    bootstream local-oci --port 8474 --token-lifetime 10s
    bootstream local-oci --registry --write-env /tmp/oci.env
    """,
)
@click.option(
    "--port", metavar="N", type=click.IntRange(0, 65535), default=0, help="Port; 0: a free one."
)
@click.option(
    "--data",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    default=_DATA,
    show_default=True,
    help="Folder of all that it keeps: objects, keys, policies.",
)
@click.option(
    "--write-env",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write a shell file that points programs at it.",
)
@click.option("--bucket", default="bootstream", show_default=True, help="A bucket to have ready.")
@click.option("--namespace", default="local", show_default=True, help="Of a new folder.")
@click.option("--region", default="us-ashburn-1", show_default=True, help="Of a new folder.")
@click.option(
    "--token-lifetime",
    metavar="AGE",
    type=AGE,
    default="20m",
    show_default=True,
    help="How long security tokens are good.",
)
@click.option(
    "--workload-port",
    metavar="N",
    type=click.IntRange(0, 65535),
    help="Also give pods tokens over TLS here; OCI's SDKs ask port 12250.",
)
@click.option(
    "--registry", is_flag=True, help="Also run a container registry; needs docker-registry."
)
@click.option(
    "--registry-token-seconds",
    metavar="N",
    type=click.IntRange(1, 86400),
    default=3600,
    show_default=True,
    help="How long the registry's tokens are good.",
)
@click.option(
    "--ready-fd", metavar="N", type=int, help="Write a newline to this descriptor when it listens."
)
@pass_cli
def local_oci(
    cli: Cli,
    port: int,
    data: Path,
    write_env: Path | None,
    bucket: str,
    namespace: str,
    region: str,
    token_lifetime: float,
    workload_port: int | None,
    registry: bool,
    registry_token_seconds: int,
    ready_fd: int | None,
) -> None:
    """Run a local OCI: storage, registry and sign-in.

    Object Storage with sign-in, policies, and faults on demand, on 127.0.0.1 only; prints
    its URL. Signatures are checked as the cloud checks them; docs/local-oci.md says what
    else is as there, and what is not. SIGTERM or Ctrl-C ends it with exit code 0; the
    folder keeps everything for the next time.
    """
    if importlib.util.find_spec("cryptography") is None:
        raise InvalidInput(
            "the library cryptography is missing, which checks its signatures",
            operation="local-oci",
            remedy="pip install 'bootstream[local]'",
        )
    from bootstream.localoci.cloud import LocalCloud, Plan  # noqa: PLC0415 - an extra

    if ready_fd is not None:
        _check_descriptor(ready_fd)
    plan = Plan(
        data.absolute(),
        port,
        region,
        namespace,
        bucket,
        token_lifetime,
        workload_port,
        registry,
        float(registry_token_seconds),
    )
    with cli.interruption, LocalCloud(plan) as cloud:
        if write_env is not None:
            cloud.write_environment(write_env)
        if ready_fd is None:
            click.echo(cloud.place.url)
            sys.stdout.flush()
        else:
            os.write(ready_fd, b"\n")
            os.close(ready_fd)
        cli.interruption.wait()
        cli.interruption.signum = None  # for a server the regular end


def _check_descriptor(number: int) -> None:
    """Refuse a descriptor that the caller did not pass, before anything is served."""
    try:
        os.fstat(number)
    except OSError as error:
        raise InvalidInput(
            "no such descriptor was passed",
            operation="local-oci --ready-fd",
            object=str(number),
            remedy="open it in the parent and let the child inherit it",
        ) from error
