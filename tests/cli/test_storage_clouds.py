"""``bootstream storage`` on servers that speak for other clouds, found by address and variables."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from bootstream.testing.cli import CommandLine
from bootstream.testing.servers.azurite import Azurite
from bootstream.testing.servers.gcs import GoogleServer
from bootstream.testing.servers.s3 import Moto, Nanio


class Cloud(NamedTuple):
    """A bucket's address, and the variables that lead there."""

    address: str
    variables: dict[str, str]


@pytest.fixture(scope="module", params=["s3", "gs", "az"])
def cloud(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cloud]:
    folder = tmp_path_factory.mktemp("cloud")
    if request.param == "s3":
        with Moto(folder) as server:
            server.create_bucket("bucket")
            yield Cloud("s3://bucket", s3_variables(server))
    elif request.param == "gs":
        with GoogleServer(folder) as google:
            google.create_bucket("bucket")
            yield Cloud("gs://bucket", {"STORAGE_EMULATOR_HOST": google.url})
    else:
        with Azurite(folder) as azurite:
            azurite.create_bucket("container")
            yield Cloud(
                "az://container",
                {
                    "AZURE_STORAGE_ACCOUNT_NAME": azurite.account,
                    "AZURE_STORAGE_ACCOUNT_KEY": azurite.account_key,
                    "AZURE_STORAGE_ENDPOINT": azurite.endpoint,
                },
            )


def s3_variables(server: Moto | Nanio) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": server.url,
        "AWS_ACCESS_KEY_ID": server.keys.access_key,
        "AWS_SECRET_ACCESS_KEY": server.keys.secret_key,
    }


@pytest.fixture
def cli(cloud: Cloud, tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path, cloud.variables)


def test_check(cli: CommandLine, cloud: Cloud) -> None:
    """Everything needed is allowed, below a prefix, and nothing is left."""
    found = cli("storage", "check", "--json", "--store", f"{cloud.address}/a/prefix").json
    assert found["ok"], found
    assert found["store"] == f"{cloud.address}/a/prefix"
    assert cli.ok("storage", "ls", cloud.address) == ""


def test_there_and_back(cli: CommandLine, cloud: Cloud) -> None:
    """Up, listed, down, across to a folder and back, removed."""
    data = os.urandom(12_000_001)
    source = cli.folder / "source"
    source.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    [up] = cli.json("storage", "cp", source, f"{cloud.address}/a/b")
    assert up["sha256"] == digest
    [again] = cli.json("storage", "cp", "--resume", source, f"{cloud.address}/a/b")
    assert again["skipped"]
    assert cli.json("storage", "ls", f"{cloud.address}/a")[0]["size"] == len(data)
    cli.ok("storage", "cp", f"{cloud.address}/a/b", "store:copied")
    assert (cli.store / "copied").read_bytes() == data
    cli.ok("storage", "cp", "store:copied", f"{cloud.address}/a/c")
    cli.ok("storage", "cp", "-r", "--resume", f"{cloud.address}/a", cli.folder / "out")
    assert (cli.folder / "out/b").read_bytes() == (cli.folder / "out/c").read_bytes() == data
    assert cli.json("storage", "rm", "-r", f"{cloud.address}/a") == {"deleted": 2}


def test_bucket_that_is_missing(cli: CommandLine, cloud: Cloud) -> None:
    """Exit code 3, and the bucket is named."""
    result = cli("storage", "ls", f"{cloud.address}-missing/x")
    assert result.code == 3
    assert "missing" in result.stderr


def test_storage_that_ignores_conditions(tmp_path: Path) -> None:
    """It is found out, and everything else is still tried."""
    with Nanio(tmp_path / "server") as server:
        server.create_bucket("bucket")
        cli = CommandLine(tmp_path, s3_variables(server))
        result = cli("storage", "check", "--json", "--store", "s3://bucket")
    assert result.code != 0
    steps = {step["name"]: step for step in json.loads(result.stdout)["steps"]}
    states = {name: step["state"] for name, step in steps.items()}
    assert states["overwrite"] == "failed"
    assert "ignores the conditions" in steps["overwrite"]["error"]
    assert states["create only"] == "skipped"
    assert (states["create"], states["read"], states["delete"]) == ("ok", "ok", "ok")


def test_doctor(cloud: Cloud, tmp_path: Path) -> None:
    """``doctor`` is content with a bucket of each cloud, its clock with it."""
    cli = CommandLine(tmp_path, cloud.variables)
    checks = ("clock", "principal", "region", "namespace", "storage")
    only = [word for check in checks for word in ("--only", check)]
    found = {f["name"]: f for f in cli.json("doctor", "--store", cloud.address, *only)["findings"]}
    assert found["clock"]["state"] == "ok", found
    assert found["storage.create-only"]["state"] == "ok", found
    assert not [f for f in found.values() if f["state"] == "failed"]
