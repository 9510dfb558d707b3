variable "bucket_name" {
  description = "Bucket of the templates: TEMPLATE_BUCKET_NAME. Unique in the world."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$", var.bucket_name))
    error_message = "A bucket's name has 3 to 63 lower-case letters, digits, dots and dashes."
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
  description = "What repositories in ECR begin with: AWS_DOCKER_REPOSITORY_NAME. They are made by the first push."
  type        = string
  default     = "e2bdev/base"

  validation {
    condition     = can(regex("^[a-z0-9]+([._/-][a-z0-9]+)*$", var.docker_repository_name))
    error_message = "Lower-case letters and digits, with single separators between them."
  }
}

variable "role_name" {
  description = "IAM role of the hosts, and its instance profile."
  type        = string
  default     = "bootstream-hosts"
}
