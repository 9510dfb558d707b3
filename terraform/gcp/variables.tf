variable "project_id" {
  description = "GCP_PROJECT_ID."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{4,28}[a-z0-9]$", var.project_id))
    error_message = "Give the project's id, not its name or number."
  }
}

variable "region" {
  description = "GCP_REGION, of the registry and of the bucket."
  type        = string
}

variable "bucket_name" {
  description = "Bucket of the templates: TEMPLATE_BUCKET_NAME. Unique in the world."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]$", var.bucket_name))
    error_message = "Lower-case letters, digits, dots, dashes and underscores."
  }
}

variable "create_bucket" {
  description = "Make the bucket; false uses one that exists."
  type        = bool
  default     = true
}

variable "bucket_versioning" {
  description = "Whether overwritten and deleted objects are kept for a while."
  type        = bool
  default     = false
}

variable "previous_versions_days" {
  description = "Days for which they are, with versioning."
  type        = number
  default     = 7
}

variable "abort_uploads_after_days" {
  description = "Days after which uploads that nobody finished are removed."
  type        = number
  default     = 7

  validation {
    condition     = var.abort_uploads_after_days >= 1
    error_message = "At least one day: builds in progress have uploads that are not finished."
  }
}

variable "docker_repository_name" {
  description = "Repository in Artifact Registry: GCP_DOCKER_REPOSITORY_NAME."
  type        = string
  default     = "e2b-templates"
}

variable "service_account_id" {
  description = "Service account of the hosts."
  type        = string
  default     = "bootstream-hosts"
}

variable "allow_signed_uploads" {
  description = "Let hosts sign URLs for uploads."
  type        = bool
  default     = true
}
