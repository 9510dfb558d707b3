output "service_account" {
  description = "Service account of the hosts."
  value       = google_service_account.hosts.email
}

output "environment" {
  description = "Variables of the services, as an environment file has them."
  value = {
    STORAGE_PROVIDER            = "GCPBucket"
    TEMPLATE_BUCKET_NAME        = var.bucket_name
    ARTIFACTS_REGISTRY_PROVIDER = "GCP_ARTIFACTS"
    GCP_PROJECT_ID              = var.project_id
    GCP_REGION                  = var.region
    GCP_DOCKER_REPOSITORY_NAME  = var.docker_repository_name
  }
}

output "job_values" {
  description = "What the jobs' templates are filled in with, for terraform-cluster."
  value = {
    gcp_bucket_name = var.bucket_name
    gcp_project_id  = var.project_id
    gcp_region      = var.region
    gcp_repo_name   = var.docker_repository_name
  }
}
