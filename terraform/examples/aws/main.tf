variable "region" {
  description = "Region of the bucket and of the registry."
  type        = string
  default     = "us-east-1"
}

variable "bucket_name" {
  description = "Bucket of the templates; unique in the world."
  type        = string
}

provider "aws" {
  region = var.region
}

module "bootstream" {
  source = "../../aws"

  bucket_name = var.bucket_name
}

output "instance_profile" {
  description = "Instance profile of the hosts."
  value       = module.bootstream.instance_profile
}

output "environment" {
  description = "Variables of the services."
  value       = module.bootstream.environment
}

output "job_values" {
  description = "For terraform-cluster."
  value       = module.bootstream.job_values
}
