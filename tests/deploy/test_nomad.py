"""Nomad's jobs: made from one table, filled in by the real Terraform, parsed as HCL."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import hcl2
import pytest
from tests.deploy.terraform import ROOT, Terraform, planned

from bootstream.config import Settings
from bootstream.deploy.nomad import JOBS, fill_in, job_files, render_job
from bootstream.deploy.variables import CLOUDS, SERVICES, template_names
from bootstream.services.settings import ServiceSettings

VALUES = {
    "oci": {
        "oci_bucket_name": "fc-template",
        "oci_region": "us-ashburn-1",
        "oci_namespace": "axexample",
        "oci_repo_name": "e2b-templates",
    },
    "aws": {
        "aws_bucket_name": "templates",
        "aws_region": "eu-west-1",
        "aws_repo_name": "e2bdev/base",
    },
    "gcp": {
        "gcp_bucket_name": "templates",
        "gcp_project_id": "project-1",
        "gcp_region": "us-central1",
        "gcp_repo_name": "e2b-templates",
    },
    "local": {"local_template_path": "/srv/templates", "local_registry_path": "/srv/images"},
}
GUIDES_JOBS = {
    "template-manager": """
job "template-manager" {
  group "template-manager" {
    task "start" {
      driver = "raw_exec"
      env {
        NODE_ID                          = "$${node.unique.id}"
        STORAGE_PROVIDER                 = "OCIBucket"
        TEMPLATE_BUCKET_NAME             = "${oci_bucket_name}"
        ARTIFACTS_REGISTRY_PROVIDER      = "OCI_OCIR"
        OCI_REGION                       = "${oci_region}"
        OCI_NAMESPACE                    = "${oci_namespace}"
        OCI_CONTAINER_REPOSITORY_NAME    = "${oci_repo_name}"
      }
    }
  }
}
""",
    "orchestrator": """
job "orchestrator" {
  group "orchestrator" {
    task "start" {
      driver = "raw_exec"
      env {
        NODE_ID                  = "$${node.unique.id}"
        STORAGE_PROVIDER         = "OCIBucket"
        TEMPLATE_BUCKET_NAME     = "${oci_bucket_name}"
        ARTIFACTS_REGISTRY_PROVIDER = "OCI_OCIR"
        OCI_REGION               = "${oci_region}"
      }
    }
  }
}
""",
}


@pytest.fixture(scope="module")
def terraform(tmp_path_factory: pytest.TempPathFactory) -> Terraform:
    return Terraform(tmp_path_factory.mktemp("terraform"), {})


def plain(value: Any) -> Any:
    """What hcl2 parsed, without its quotes and marks."""
    if isinstance(value, dict):
        return {
            plain(key): plain(inner) for key, inner in value.items() if not key.startswith("__")
        }
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    if isinstance(value, str) and value[:1] == value[-1:] == '"':
        return value[1:-1]
    return value


def parse(text: str) -> dict[str, Any]:
    """The job's body by its name."""
    (job,) = plain(hcl2.loads(text))["job"]
    found: dict[str, Any] = job
    return found


def task_of(job: dict[str, Any]) -> dict[str, Any]:
    """The one task of a job."""
    (body,) = job.values()
    (group,) = body["group"]
    (inside,) = group.values()
    (task,) = inside["task"]
    (found,) = task.values()
    assert isinstance(found, dict)
    return found


def as_nomad(variables: dict[str, str]) -> dict[str, str]:
    """A task's environment as the process gets it on some host."""
    known = {
        "node.unique.id": "6a4f0e2c-1111-2222-3333-444455556666",
        "NOMAD_IP_http": "10.0.0.7",
        "NOMAD_PORT_http": "5008",
        "NOMAD_SECRETS_DIR": "/secrets",
    }
    return {
        name: re.sub(r"\$\{([\w.]+)\}", lambda match: known[match[1]], value)
        for name, value in variables.items()
    }


def test_files_are_what_is_generated() -> None:
    """Nobody edited them, and none is missing."""
    there = {
        str(path.relative_to(ROOT / "nomad")): path.read_text("utf-8")
        for path in (ROOT / "nomad").rglob("*.hcl")
    }
    assert there == dict(job_files()), "python -m bootstream.deploy.nomad nomad"


@pytest.mark.parametrize("cloud", CLOUDS)
def test_jobs_as_terraform_submits_them(cloud: str, terraform: Terraform) -> None:
    """Filled in by Terraform, parsed as HCL; the services accept the variables."""
    document = terraform.plan("terraform-cluster", cloud=cloud, job_values=VALUES[cloud])
    made = planned(document)
    assert len(made) == len(JOBS)
    for name in JOBS:
        text = made[f'nomad_job.bootstream["{name}"]']["jobspec"]
        assert text == fill_in(render_job(name, cloud), VALUES[cloud])
        job = parse(text)
        assert list(job) == [name]
        task = task_of(job)
        environment = as_nomad(task["env"][0])
        settings = Settings.from_environment(environment)
        assert settings.node_id == "6a4f0e2c-1111-2222-3333-444455556666"
        if name == "template-build":
            continue
        assert task["config"][0]["args"] == [name]
        service = ServiceSettings.from_environment(environment, port=SERVICES[name])
        service.listen.check()
        assert service.listen.tokens == Path("/secrets/tokens.json")


def test_what_is_missing_is_told(terraform: Terraform) -> None:
    """A value that the templates need, an odd character in one, a cloud that is none."""
    said = terraform.refused("terraform-cluster", job_values={"oci_bucket_name": "fc-template"})
    assert "job_values lacks oci_namespace, oci_region, oci_repo_name" in said
    hostile = {**VALUES["oci"], "oci_bucket_name": 'x"\n} job "y" {'}
    assert "letters, digits" in terraform.refused("terraform-cluster", job_values=hostile)
    said = terraform.refused("terraform-cluster", cloud="azure", job_values={})
    assert "oci, aws, gcp or local" in said


@pytest.mark.parametrize("name", GUIDES_JOBS)
def test_the_guides_own_jobs(name: str) -> None:
    """They start as they stand: the settings take their variables, and default the rest."""
    job = parse(fill_in(GUIDES_JOBS[name], VALUES["oci"]))
    environment = as_nomad(task_of(job)["env"][0])
    settings = Settings.from_environment(environment)
    assert settings.storage_provider == "OCIBucket"
    assert settings.template_bucket_name == "fc-template"
    assert settings.registry.provider == "OCI_OCIR"
    assert settings.registry.repository == "e2b-templates"
    assert settings.oci.region == "us-ashburn-1"
    service = ServiceSettings.from_environment(environment, port=SERVICES[name])
    service.listen.check()
    assert (service.listen.host, service.listen.port) == ("127.0.0.1", SERVICES[name])


def test_no_secret_is_in_a_job() -> None:
    """Tokens and keys are files; nothing in an ``env`` is one."""
    for _, text in job_files():
        for variables in task_of(parse(fill_in_loosely(text)))["env"]:
            for name in variables:
                assert not re.search(r"PASSWORD|SECRET|ACCESS_KEY|TOKEN(?!S_FILE)", name), name


def fill_in_loosely(text: str) -> str:
    """A job with every name in the place of its value."""
    return re.sub(r"(?<!\$)\$\{(\w+)\}", r"\1", text).replace("$${", "${")


def test_table_of_variables() -> None:
    """docs/deploy/nomad.md names the variables of all jobs, and no others."""
    page = (ROOT / "docs" / "deploy" / "nomad.md").read_text("utf-8")
    table = page.partition("## Variables")[2].partition("\n## ")[0]
    documented = set(re.findall(r"`([A-Z][A-Z0-9_]+)`", table))
    used: set[str] = set()
    for _, text in job_files():
        for variables in task_of(parse(fill_in_loosely(text)))["env"]:
            used |= set(variables)
    assert used == documented
    pages = [(ROOT / "docs" / name).read_text("utf-8") for name in ("settings.md", "services.md")]
    for name in used:
        assert any(f"`{name}`" in text for text in pages), name
    for cloud in CLOUDS:
        for name in template_names(cloud):
            assert f"`{name}`" in page, name
