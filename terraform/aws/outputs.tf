output "instance_profile" {
  description = "Instance profile of the hosts."
  value       = aws_iam_instance_profile.hosts.name
}

output "environment" {
  description = "Variables of the services, as an environment file has them."
  value = {
    STORAGE_PROVIDER            = "AWSBucket"
    TEMPLATE_BUCKET_NAME        = var.bucket_name
    ARTIFACTS_REGISTRY_PROVIDER = "AWS_ECR"
    AWS_DOCKER_REPOSITORY_NAME  = var.docker_repository_name
    AWS_REGION                  = data.aws_region.current.id
  }
}

output "job_values" {
  description = "What the jobs' templates are filled in with, for terraform-cluster."
  value = {
    aws_bucket_name = var.bucket_name
    aws_region      = data.aws_region.current.id
    aws_repo_name   = var.docker_repository_name
  }
}
