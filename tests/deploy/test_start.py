"""The services themselves, started with what jobs and units give them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.deploy.test_nomad import GUIDES_JOBS, VALUES, parse, task_of

from bootstream.deploy.bundle import environment_file, make_bundle
from bootstream.deploy.nomad import fill_in, render_job
from bootstream.deploy.settings import load_fleet
from bootstream.deploy.units import SECRET_FILES, unit_name
from bootstream.deploy.variables import SERVICES
from bootstream.testing.cli import CommandLine
from bootstream.testing.localoci import LocalOciServer


@contextlib.contextmanager
def started(
    folder: Path, service: str, variables: Mapping[str, str], *options: str
) -> Iterator[str]:
    """Run a service until it is ready; yield its URL; end it as Nomad and systemd do."""
    reader, writer = os.pipe()
    cli = CommandLine(folder, variables)
    process = cli.start(service, "--ready-fd", str(writer), *options, pass_fds=[writer])
    os.close(writer)
    try:
        ready = select.select([reader], [], [], 20)[0]
        url = os.read(reader, 1000).decode().strip() if ready else ""
        if not url:
            process.kill()
            raise AssertionError(process.communicate()[1])
        yield url
    finally:
        os.close(reader)
        process.terminate()
        _, said = process.communicate(timeout=20)
    assert process.returncode == 0, said


def ask(url: str, path: str) -> Any:
    """The answer to a GET, without looking at certificates: they are our own."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    )
    with opener.open(f"{url.rstrip('/')}{path}", timeout=10) as answer:
        assert answer.status == 200
        return json.load(answer)


def wait_ready(url: str) -> None:
    """Return when the service says that it can work: it asks the store by itself."""
    for _ in range(300):
        try:
            assert ask(url, "/ready")["ready"]
        except urllib.error.HTTPError as error:
            error.close()
            time.sleep(0.05)
        else:
            return
    raise AssertionError(f"{url} is never ready")


def free_of(variables: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Variables with the host's folders below a test's own."""
    return {
        name: f"{folder}{value}" if name.endswith("_DIR") else value
        for name, value in variables.items()
    }


@pytest.mark.parametrize("service", SERVICES)
def test_job_of_nomad(service: str, tmp_path: Path) -> None:
    """The variables of the generated job, with tokens and TLS, as the checks ask it."""
    cli = CommandLine(tmp_path)
    tokens, key, certificate = (tmp_path / name for name in ("tokens.json", "tls.key", "tls.crt"))
    cli.ok("token", "ci", "--file", tokens, "--scope", "*")
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-subj",
            "/CN=localhost",
            "-keyout",
            str(key),
            "-out",
            str(certificate),
        ],
        check=True,
        capture_output=True,
    )
    values = {
        "local_template_path": str(tmp_path / "templates"),
        "local_registry_path": str(tmp_path / "images"),
    }
    environment = task_of(parse(fill_in(render_job(service, "local"), values)))["env"][0]
    known = {
        "node.unique.id": "6a4f0e2c-1111-2222-3333-444455556666",
        "NOMAD_IP_http": "127.0.0.1",
        "NOMAD_PORT_http": "0",
        "NOMAD_SECRETS_DIR": str(tmp_path),
    }
    variables = {
        name: re.sub(r"\$\{([\w.]+)\}", lambda match: known[match[1]], value)
        for name, value in environment.items()
    }
    with started(tmp_path, service, free_of(variables, tmp_path)) as url:
        assert url.startswith("https://127.0.0.1:")
        ask(url, "/health")
        wait_ready(url)


@pytest.mark.parametrize("service", SERVICES)
def test_unit_of_systemd(service: str, tmp_path: Path) -> None:
    """The environment file and the unit's own variables, as ``deploy`` writes them."""
    settings = tmp_path / "fleet.toml"
    settings.write_text(
        'cloud = "local"\nhosts = ["10.0.0.5"]\n[values]\n'
        f'local_template_path = "{tmp_path}/templates"\n'
        f'local_registry_path = "{tmp_path}/images"\n'
    )
    fleet = load_fleet(settings)
    bundle = make_bundle(fleet, "10.0.0.5")
    unit = bundle.contents[f"units/{unit_name(service)}"].decode()
    variables = dict(re.findall(r"^Environment=(\w+)=(.*)$", unit, re.MULTILINE))
    assert not set(variables) & set(SECRET_FILES.values())
    variables.update(fleet.variables_of(service))
    written = bundle.contents[f"etc/{service}.env"]
    assert written == environment_file(fleet.variables_of(service))
    assert f"ExecStart=/opt/bootstream/current/venv/bin/bootstream {service}\n" in unit
    with started(tmp_path, service, free_of(variables, tmp_path), "--port", "0") as url:
        assert url.startswith("http://127.0.0.1:")
        wait_ready(url)


@pytest.mark.parametrize("service", SERVICES)
def test_the_guides_own_job(service: str, tmp_path: Path) -> None:
    """With the guide's variables alone, on an instance of the local OCI."""
    with LocalOciServer(tmp_path / "oci", registry=True) as oci:
        values = {
            **VALUES["oci"],
            "oci_bucket_name": oci.bucket,
            "oci_region": oci.region,
            "oci_namespace": oci.namespace,
            "oci_repo_name": oci.repository,
        }
        environment = task_of(parse(fill_in(GUIDES_JOBS[service], values)))["env"][0]
        # Where the cloud is, which an instance in the cloud need not be told.
        elsewhere = (
            "OCI_OBJECT_STORAGE_ENDPOINT",
            "OCI_METADATA_BASE_URL",
            "OCI_CLI_FEDERATION_ENDPOINT",
            "OCIR_ENDPOINT",
            "OCI_ARTIFACTS_ENDPOINT",
        )
        variables = {
            **{name: oci.variables[name] for name in elsewhere},
            **environment,
            "NODE_ID": "node-1",
            "HOME": str(tmp_path),
        }
        with started(tmp_path, service, variables, "--port", "0") as url:
            ask(url, "/health")
            wait_ready(url)
