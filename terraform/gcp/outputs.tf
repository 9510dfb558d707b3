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
