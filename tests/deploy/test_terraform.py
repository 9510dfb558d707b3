"""The Terraform modules: formatted, valid and planned by the real program, against real schemas.

The policy statements of the plan are put into force on a local OCI: they are enough for
``doctor``, and without any one permission of them it names what is missing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.deploy.terraform import Terraform, planned

from bootstream.config import Settings
from bootstream.doctor.checks import CHECKS
from bootstream.doctor.finding import Context, Finding, State
from bootstream.doctor.run import choose, examine
from bootstream.testing.localoci import LocalOciServer

ROOTS = ("terraform-base", "terraform-cluster", "terraform/examples/aws", "terraform/examples/gcp")
DATA: dict[str, dict[str, object]] = {
    "oci_objectstorage_namespace": {"namespace": "ns"},
    "aws_partition": {"partition": "aws"},
    "aws_caller_identity": {"account_id": "123456789012"},
    "aws_region": {"id": "eu-west-1"},
}
OCI = {
    "tenancy_ocid": "ocid1.tenancy.oc1..aaaa",
    "compartment_ocid": "ocid1.compartment.oc1..aaaa",
    "region": "us-ashburn-1",
}
BUCKET = 'module.object_storage_buckets["{}"].oci_objectstorage_bucket.this'
RULES = 'module.object_storage_buckets["{}"].oci_objectstorage_object_lifecycle_policy.this[0]'


@pytest.fixture(scope="module")
def terraform(tmp_path_factory: pytest.TempPathFactory) -> Terraform:
    return Terraform(tmp_path_factory.mktemp("terraform"), DATA)


def test_formatted(terraform: Terraform) -> None:
    """``terraform fmt -check`` has nothing to say."""
    code, out, err = terraform.run(".", "fmt", "-check", "-recursive", "-diff")
    assert (code, out) == (0, ""), out + err


@pytest.mark.parametrize("root", ROOTS)
def test_valid(root: str, terraform: Terraform) -> None:
    """Every root is valid by the schemas of its providers."""
    assert terraform.validate(root) == []


def test_what_the_schema_does_not_know_is_refused(terraform: Terraform) -> None:
    """The stub is no rubber stamp: a misspelt argument and a missing one are errors."""
    place = terraform.copy / "wrong"
    place.mkdir()
    (place / "main.tf").write_text(
        'terraform {\n  required_providers {\n    oci = { source = "oracle/oci" }\n  }\n}\n'
        'resource "oci_artifacts_container_repository" "x" {\n  display_nam = "x"\n'
        '  compartment_id = "x"\n}\n'
    )
    said = " ".join(error["detail"] for error in terraform.validate("wrong"))
    assert "display_nam" in said
    assert '"display_name" is required' in said


def test_plan_of_the_base(terraform: Terraform) -> None:
    """A private bucket with a rule for old uploads, a private repository, a group, its policies."""
    document = terraform.plan("terraform-base", **OCI)
    made = planned(document)
    bucket = made[BUCKET.format("fc-template")]
    assert (bucket["access_type"], bucket["versioning"]) == ("NoPublicAccess", "Disabled")
    (rule,) = made[RULES.format("fc-template")]["rules"]
    assert (rule["action"], rule["target"]) == ("ABORT", "multipart-uploads")
    repository = made["oci_artifacts_container_repository.template_registry[0]"]
    assert repository["display_name"] == "e2b-templates"
    assert (repository["is_public"], repository["is_immutable"]) == (False, False)
    group = made["oci_identity_dynamic_group.hosts[0]"]
    assert group["compartment_id"] == OCI["tenancy_ocid"]
    assert group["matching_rule"] == f"instance.compartment.id = '{OCI['compartment_ocid']}'"
    outputs = {n: v.get("value") for n, v in document["planned_values"]["outputs"].items()}
    assert outputs["ocir_endpoint"] == "us-ashburn-1.ocir.io/ns/e2b-templates"
    settings = Settings.from_environment(outputs["environment"])
    assert settings.template_bucket_name == "fc-template"
    assert settings.registry.repository == "e2b-templates"


def test_versions_and_further_buckets(terraform: Terraform) -> None:
    """With versioning old versions go, too; other buckets are made, and hosts may not see them."""
    document = terraform.plan(
        "terraform-base",
        **OCI,
        bucket_versioning="Enabled",
        additional_buckets={"docker-contexts": {}},
    )
    made = planned(document)
    actions = [rule["action"] for rule in made[RULES.format("fc-template")]["rules"]]
    assert actions == ["ABORT", "DELETE"]
    assert BUCKET.format("docker-contexts") in made
    assert "docker-contexts" not in str(made["oci_identity_policy.hosts"])
    assert "docker-contexts" in str(made["oci_identity_policy.service[0]"])


def test_buckets_that_exist(terraform: Terraform) -> None:
    """Nothing is made but what lets hosts use them."""
    document = terraform.plan(
        "terraform-base",
        **OCI,
        enable_object_storage=False,
        enable_container_registry=False,
        create_dynamic_group=False,
        dynamic_group_name="'Default'/'hosts'",
        allow_service=False,
    )
    made = planned(document)
    assert list(made) == ["oci_identity_policy.hosts"]
    assert (
        "dynamic-group 'Default'/'hosts' to" in made["oci_identity_policy.hosts"]["statements"][0]
    )


def test_wrong_values_are_refused(terraform: Terraform) -> None:
    """All of them before anything is asked of a cloud, each with what would do."""
    wrong = {
        "region": ("iad", "such as us-ashburn-1, not its key"),
        "compartment_ocid": ("ocid1.instance.oc1..aaaa", "not the OCID of a compartment"),
        "tenancy_ocid": ("mine", "not the OCID of a tenancy"),
        "container_repository_name": ("E2B", "Lower-case letters"),
        "template_bucket_name": ("a b", "1 to 256 letters"),
        "bucket_versioning": ("On", "Disabled, Enabled or Suspended"),
        "abort_uploads_after_days": (0.5, "whole days, at least one"),
    }
    values = {name: value for name, (value, _) in wrong.items()}
    said = terraform.refused("terraform-base", **values)
    for name, (_, remedy) in wrong.items():
        assert f"var.{name} is" in said
        assert remedy in said


def test_plan_of_aws(terraform: Terraform) -> None:
    """The role's policy is what docs/clouds/aws.md has; its variables are settings."""
    document = terraform.plan("terraform/examples/aws", bucket_name="templates")
    made = planned(document)
    policy = made["module.bootstream.aws_iam_role_policy.hosts"]["policy"]
    page = (Path(__file__).parents[2] / "docs" / "clouds" / "aws.md").read_text("utf-8")
    actions = set(re.findall(r"\b(?:s3|ecr):[A-Z]\w+", page))
    assert actions == set(re.findall(r"\b(?:s3|ecr):[A-Z]\w+", policy))
    assert "repository/e2bdev/base/*" in policy
    rules = made["module.bootstream.aws_s3_bucket_lifecycle_configuration.templates[0]"]["rule"]
    assert rules[0]["abort_incomplete_multipart_upload"][0]["days_after_initiation"] == 7
    environment = document["planned_values"]["outputs"]["environment"]["value"]
    assert Settings.from_environment(environment).aws.region == "eu-west-1"


def test_plan_of_gcp(terraform: Terraform) -> None:
    """Bucket, repository, and an account with no role beyond them."""
    document = terraform.plan(
        "terraform/examples/gcp", project_id="project-1", bucket_name="templates"
    )
    made = planned(document)
    rules = made["module.bootstream.google_storage_bucket.templates[0]"]["lifecycle_rule"]
    assert rules[0]["action"][0]["type"] == "AbortIncompleteMultipartUpload"
    roles = {name: after["role"] for name, after in made.items() if "role" in after}
    assert set(roles.values()) == {
        "roles/storage.objectUser",
        "roles/artifactregistry.repoAdmin",
        "roles/iam.serviceAccountTokenCreator",
    }
    environment = document["planned_values"]["outputs"]["environment"]["value"]
    assert Settings.from_environment(environment).registry.provider == "GCP_ARTIFACTS"


# -- the statements, on a local OCI ---------------------------------------------------------------


@pytest.fixture(scope="module")
def oci(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalOciServer]:
    with LocalOciServer(tmp_path_factory.mktemp("oci"), registry=True) as server:
        yield server


@pytest.fixture(scope="module")
def statements(terraform: Terraform, oci: LocalOciServer) -> list[str]:
    """What Terraform writes for the local OCI's bucket and repository."""
    document = terraform.plan(
        "terraform-base",
        **OCI,
        template_bucket_name=oci.bucket,
        container_repository_name=oci.repository,
    )
    found: list[str] = planned(document)["oci_identity_policy.hosts"]["statements"]
    return found


def look(oci: LocalOciServer, folder: Path, statements: list[str]) -> list[Finding]:
    """What ``doctor`` finds wrong for an instance under these statements."""
    oci.set_policies({"groups": {"bootstream-hosts": ["instance"]}, "statements": statements})
    variables = {
        **oci.variables,
        "OCI_CLI_AUTH": "instance_principal",
        "BOOTSTREAM_CACHE_DIR": str(folder),
    }
    checks = choose(CHECKS, ["storage", "registry"], [])
    try:
        findings = examine(checks, Context(Settings.from_environment(variables)))
    finally:
        oci.set_policies(None)
    return [f for f in findings if f.state in (State.FAILED, State.LACKING)]


def without(statements: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield each permission, with the statements that grant all but it."""
    for number, statement in enumerate(statements):
        others = [text for text in statements if text is not statement]
        permissions = re.findall(r"request\.permission='(\w+)'", statement)
        if len(permissions) < 2:
            yield (permissions or ["to read buckets"])[0], others
            continue
        for permission in permissions:
            left = statement.replace(f"request.permission='{permission}'", "", 1)
            left = re.sub(r"\{, ", "{", re.sub(r", (?=[,}])", "", left))
            yield permission, [*others[:number], left, *others[number:]]


def test_the_statements_are_enough(
    statements: list[str], oci: LocalOciServer, tmp_path: Path
) -> None:
    """With what Terraform writes, and nothing else, all of the store and registry works."""
    assert look(oci, tmp_path, statements) == []


def test_every_permission_is_needed(
    statements: list[str], oci: LocalOciServer, tmp_path: Path
) -> None:
    """Each one taken away alone is a failure that names it, and what would grant it."""
    tried: list[str] = []
    for permission, left in without(statements):
        tried.append(permission)
        remedies: list[Any] = [finding.remedy for finding in look(oci, tmp_path, left)]
        assert any(permission in str(remedy) for remedy in remedies), (permission, remedies)
    assert len(tried) == 1 + 5 + 3 + 1


def test_documents_have_the_same_statements(terraform: Terraform) -> None:
    """docs/clouds/oci.md tells people what Terraform writes."""
    page = (Path(__file__).parents[2] / "docs" / "clouds" / "oci.md").read_text("utf-8")
    made = planned(terraform.plan("terraform-base", **OCI))
    written = [
        *made["oci_identity_policy.hosts"]["statements"],
        *made["oci_identity_policy.service[0]"]["statements"],
    ]
    for statement in written:
        plain = (
            statement.replace(f"compartment id {OCI['compartment_ocid']}", "compartment C")
            .replace("bootstream-hosts", "DG")
            .replace("'fc-template'", "'B'")
            .replace("'e2b-templates'", "'R'")
            .replace(OCI["region"], "REGION")
        )
        assert plain in page, plain
