output "oci_bucket_name" {
  description = "TEMPLATE_BUCKET_NAME of the jobs."
  value       = var.template_bucket_name
}

output "oci_namespace" {
  description = "OCI_NAMESPACE: Object Storage's namespace, and the registry's."
  value       = data.oci_objectstorage_namespace.ns.namespace
}

output "oci_region" {
  description = "OCI_REGION."
  value       = var.region
}

output "oci_repo_name" {
  description = "OCI_CONTAINER_REPOSITORY_NAME."
  value       = var.container_repository_name
}

output "ocir_endpoint" {
  description = "Where images are pushed to: REGION.ocir.io/NAMESPACE/REPOSITORY."
  value       = "${var.region}.ocir.io/${data.oci_objectstorage_namespace.ns.namespace}/${var.container_repository_name}"
}

output "dynamic_group_name" {
  description = "Dynamic group that hosts have to be in."
  value       = var.dynamic_group_name
}

output "host_statements" {
  description = "What hosts may do, for those who write policies elsewhere."
  value       = local.host_statements
}

output "environment" {
  description = "Variables of the services, as an environment file has them."
  value = {
    STORAGE_PROVIDER              = "OCIBucket"
    TEMPLATE_BUCKET_NAME          = var.template_bucket_name
    ARTIFACTS_REGISTRY_PROVIDER   = "OCI_OCIR"
    OCI_REGION                    = var.region
    OCI_NAMESPACE                 = data.oci_objectstorage_namespace.ns.namespace
    OCI_CONTAINER_REPOSITORY_NAME = var.container_repository_name
    OCI_COMPARTMENT_ID            = var.compartment_ocid
    OCI_CLI_AUTH                  = "instance_principal"
  }
}

output "job_values" {
  description = "What the jobs' templates are filled in with, for terraform-cluster."
  value = {
    oci_bucket_name = var.template_bucket_name
    oci_region      = var.region
    oci_namespace   = data.oci_objectstorage_namespace.ns.namespace
    oci_repo_name   = var.container_repository_name
  }
}
