"""The variables that the services are started with, by cloud: one table for jobs and units.

A value in ``${…}`` is filled in by Terraform, or by ``bootstream deploy`` from its settings
file. The names are the guide's for OCI, and the clouds' own otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

CLOUDS = ("oci", "aws", "gcp", "local")
SERVICES = {"template-manager": 5009, "orchestrator": 5008}


@dataclass(frozen=True, slots=True)
class Variable:
    """One variable of a process, and what its value is made of."""

    name: str
    value: str


CLOUD_VARIABLES: dict[str, tuple[Variable, ...]] = {
    "oci": (
        Variable("STORAGE_PROVIDER", "OCIBucket"),
        Variable("TEMPLATE_BUCKET_NAME", "${oci_bucket_name}"),
        Variable("ARTIFACTS_REGISTRY_PROVIDER", "OCI_OCIR"),
        Variable("OCI_REGION", "${oci_region}"),
        Variable("OCI_NAMESPACE", "${oci_namespace}"),
        Variable("OCI_CONTAINER_REPOSITORY_NAME", "${oci_repo_name}"),
    ),
    "aws": (
        Variable("STORAGE_PROVIDER", "AWSBucket"),
        Variable("TEMPLATE_BUCKET_NAME", "${aws_bucket_name}"),
        Variable("ARTIFACTS_REGISTRY_PROVIDER", "AWS_ECR"),
        Variable("AWS_REGION", "${aws_region}"),
        Variable("AWS_DOCKER_REPOSITORY_NAME", "${aws_repo_name}"),
    ),
    "gcp": (
        Variable("STORAGE_PROVIDER", "GCPBucket"),
        Variable("TEMPLATE_BUCKET_NAME", "${gcp_bucket_name}"),
        Variable("ARTIFACTS_REGISTRY_PROVIDER", "GCP_ARTIFACTS"),
        Variable("GCP_PROJECT_ID", "${gcp_project_id}"),
        Variable("GCP_REGION", "${gcp_region}"),
        Variable("GCP_DOCKER_REPOSITORY_NAME", "${gcp_repo_name}"),
    ),
    "local": (
        Variable("STORAGE_PROVIDER", "Local"),
        Variable("TEMPLATE_BUCKET_NAME", "local"),
        Variable("LOCAL_TEMPLATE_STORAGE_BASE_PATH", "${local_template_path}"),
        Variable("ARTIFACTS_REGISTRY_PROVIDER", "Local"),
        Variable("LOCAL_ARTIFACTS_REGISTRY_BASE_PATH", "${local_registry_path}"),
    ),
}

# Folders of a host that stay when a job or a unit is started anew.
CACHE = "/var/cache/bootstream"
STATE = "/var/lib/bootstream"
CURRENT = "/opt/bootstream/current"


def template_names(cloud: str) -> tuple[str, ...]:
    """Return what has to be filled in for a cloud, without the braces."""
    return tuple(
        variable.value[2:-1]
        for variable in CLOUD_VARIABLES[cloud]
        if variable.value.startswith("${")
    )
