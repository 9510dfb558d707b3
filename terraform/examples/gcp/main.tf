variable "project_id" {
  description = "The project."
  type        = string
}

variable "region" {
  description = "Region of the bucket and of the registry."
  type        = string
  default     = "us-central1"
}

variable "bucket_name" {
  description = "Bucket of the templates; unique in the world."
  type        = string
}

provider "google" {
  project = var.project_id
  region  = var.region
}

module "bootstream" {
  source = "../../gcp"

  project_id  = var.project_id
  region      = var.region
  bucket_name = var.bucket_name
}

output "service_account" {
  description = "Service account of the hosts."
  value       = module.bootstream.service_account
}

output "environment" {
  description = "Variables of the services."
  value       = module.bootstream.environment
}

output "job_values" {
  description = "For terraform-cluster."
  value       = module.bootstream.job_values
}
