"""The main job by the command line on every cloud's storage: the same steps, the same bytes."""

from __future__ import annotations

import json
import random
import select
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from bootstream.testing.cli import CommandLine
from bootstream.testing.images import LayerBuilder, write_layout
from bootstream.testing.localoci import LocalOciServer
from bootstream.testing.servers import Azurite, GoogleServer, Moto

BUCKET = "templates"


@contextmanager
def oci(folder: Path) -> Iterator[Mapping[str, str]]:
    """The local OCI, as its own environment file describes it."""
    with LocalOciServer(folder) as server:
        yield {**server.variables, "STORAGE_PROVIDER": "OCIBucket"}


@contextmanager
def instance(folder: Path) -> Iterator[Mapping[str, str]]:
    """The local OCI from an instance of its, with no key at all."""
    with oci(folder) as variables:
        keys = {"OCI_CONFIG_FILE", "OCI_CLI_CONFIG_FILE", "OCI_CLI_AUTH"}
        without = {name: value for name, value in variables.items() if name not in keys}
        yield {**without, "OCI_CLI_AUTH": "instance_principal"}


@contextmanager
def aws(folder: Path) -> Iterator[Mapping[str, str]]:
    """S3, by moto."""
    with Moto(folder) as server:
        yield {
            "STORAGE_PROVIDER": "AWSBucket",
            "TEMPLATE_BUCKET_NAME": server.create_bucket(BUCKET),
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": server.url,
            "AWS_ACCESS_KEY_ID": server.keys.access_key,
            "AWS_SECRET_ACCESS_KEY": server.keys.secret_key,
        }


@contextmanager
def azure(folder: Path) -> Iterator[Mapping[str, str]]:
    """Azure Blob Storage, by Azurite."""
    with Azurite(folder) as server:
        yield {
            "STORAGE_PROVIDER": "AzureBlob",
            "TEMPLATE_BUCKET_NAME": server.create_bucket(BUCKET),
            "AZURE_STORAGE_ACCOUNT_NAME": server.account,
            "AZURE_STORAGE_ACCOUNT_KEY": server.account_key,
            "AZURE_STORAGE_ENDPOINT": server.endpoint,
        }


@contextmanager
def google(folder: Path) -> Iterator[Mapping[str, str]]:
    """Google Cloud Storage, by a stand-in that lets everybody in."""
    with GoogleServer(folder) as server:
        key = folder / "key.json"
        key.write_text(json.dumps(service_account()))
        yield {
            "STORAGE_PROVIDER": "GCPBucket",
            "TEMPLATE_BUCKET_NAME": server.create_bucket(BUCKET),
            "GOOGLE_APPLICATION_CREDENTIALS": str(key),
            "GCP_STORAGE_ENDPOINT": server.url,
        }


def service_account() -> dict[str, str]:
    """A key file as Google hands it out."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return {
        "type": "service_account",
        "client_email": "bootstream@project.example",
        "private_key": pem.decode(),
        "private_key_id": "1",
        "token_uri": "http://127.0.0.1:1/token",
    }


CLOUDS = (oci, instance, aws, azure, google)


@pytest.mark.parametrize("cloud", CLOUDS, ids=lambda cloud: cloud.__name__)
def test_main_job(cloud: object, tmp_path: Path) -> None:
    """Build twice, list, verify, serve, export, delete, collect: nothing is left."""
    assert callable(cloud)
    (tmp_path / "server").mkdir()
    with cloud(tmp_path / "server") as variables:
        cli = CommandLine(tmp_path, {"TEMPLATE_BUCKET_PREFIX": "fleet", **variables})
        for version in ("1", "2"):
            cli.ok("build", image(tmp_path / version, version), "-t", f"demo:{version}")
        first, second = cli.json("ls")
        assert (first["tags"], second["tags"]) == (["1"], ["2"])
        assert second["parent"] == first["build_id"]
        assert second["stored_size"] < first["stored_size"] * 0.1
        assert cli.json("verify", "demo:2")["ok"]
        assert cli.ok("cat", "demo:2:/etc/version") == "2"
        cli.ok("export", "demo:2", tmp_path / "expected")
        copy_of_export(cli, "demo:2", tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == (tmp_path / "expected").read_bytes()
        cli.ok("rm", "demo", "--all")
        cli.ok("gc", "--older-than", "0s")
        assert cli.json("storage", "ls") == []


def image(folder: Path, version: str) -> str:
    """A few MiB that do not compress, and one file that differs."""
    base = LayerBuilder().file("noise", random.Random(1).randbytes(3 << 20))
    top = LayerBuilder().folder("etc").file("etc/version", version.encode())
    write_layout(folder, [base, top], tag="v")
    return f"oci:{folder}:v"


def copy_of_export(cli: CommandLine, ref: str, target: Path) -> None:
    """Read an export with nbdcopy, from a cold cache."""
    process = cli.start("serve", ref, "--socket", cli.folder / "s", "--read-only")
    try:
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], 20)
        assert ready, "nothing was printed"
        uri = process.stdout.readline().strip()
        subprocess.run(["nbdcopy", uri, target], check=True, timeout=25)
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=20) == ("", "")
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate()
