locals {
  folder = var.cloud == "oci" ? "" : "${var.cloud}/"
  values = merge(var.job_values, { bootstream_command = var.bootstream_command })

  needed = {
    oci   = ["oci_bucket_name", "oci_region", "oci_namespace", "oci_repo_name"]
    aws   = ["aws_bucket_name", "aws_region", "aws_repo_name"]
    gcp   = ["gcp_bucket_name", "gcp_project_id", "gcp_region", "gcp_repo_name"]
    local = ["local_template_path", "local_registry_path"]
  }
  missing = setsubtract(local.needed[var.cloud], keys(var.job_values))
}

resource "nomad_job" "bootstream" {
  for_each = toset(["template-build", "orchestrator", "template-manager"])

  # What is missing is told by the precondition, not as a template's fault.
  jobspec = length(local.missing) > 0 ? "" : templatefile("${path.module}/../nomad/${local.folder}${each.key}.hcl", local.values)
  detach  = each.key == "template-build"

  lifecycle {
    precondition {
      condition     = length(local.missing) == 0
      error_message = "job_values lacks ${join(", ", local.missing)}."
    }
  }
}
