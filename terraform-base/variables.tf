variable "tenancy_ocid" {
  description = "OCID of the tenancy, where the dynamic group lives."
  type        = string

  validation {
    condition     = can(regex("^ocid1\\.tenancy\\.[a-z0-9-]+\\..*\\.[a-z0-9]+$", var.tenancy_ocid))
    error_message = "This is not the OCID of a tenancy; 'oci iam availability-domain list' shows it as compartment-id."
  }
}

variable "compartment_ocid" {
  description = "OCID of the compartment of buckets, repository and hosts."
  type        = string

  validation {
    condition     = can(regex("^ocid1\\.(compartment|tenancy)\\.[a-z0-9-]+\\..*\\.[a-z0-9]+$", var.compartment_ocid))
    error_message = "This is not the OCID of a compartment."
  }
}

variable "region" {
  description = "Region of the buckets and of the repository, such as us-ashburn-1."
  type        = string

  validation {
    condition     = can(regex("^[a-z]{2,}(-[a-z]+)+-[0-9]+$", var.region))
    error_message = "Give the region's identifier, such as us-ashburn-1, not its key."
  }
}

variable "home_region" {
  description = "Home region of the tenancy, where IAM is written; null: the same as region."
  type        = string
  default     = null
}

variable "enable_object_storage" {
  description = "Make the buckets; false uses a bucket that exists, called template_bucket_name."
  type        = bool
  default     = true
}

variable "template_bucket_name" {
  description = "Bucket of the templates: TEMPLATE_BUCKET_NAME."
  type        = string
  default     = "fc-template"

  validation {
    condition     = can(regex("^[A-Za-z0-9._-]{1,256}$", var.template_bucket_name))
    error_message = "A bucket's name has 1 to 256 letters, digits, dots, dashes and underscores."
  }
}

variable "additional_buckets" {
  description = "Further buckets by name, which others use; hosts get no access to them."
  type = map(object({
    versioning               = optional(string, "Disabled")
    abort_uploads_after_days = optional(number, 7)
  }))
  default = {}
}

variable "bucket_versioning" {
  description = "Versioning of the templates' bucket: Disabled, Enabled or Suspended."
  type        = string
  default     = "Disabled"

  validation {
    condition     = contains(["Disabled", "Enabled", "Suspended"], var.bucket_versioning)
    error_message = "Versioning is Disabled, Enabled or Suspended."
  }
}

variable "previous_versions_days" {
  description = "Days for which overwritten and deleted objects are kept, with versioning."
  type        = number
  default     = 7

  validation {
    condition     = var.previous_versions_days >= 1 && floor(var.previous_versions_days) == var.previous_versions_days
    error_message = "Give whole days, at least one."
  }
}

variable "abort_uploads_after_days" {
  description = "Days after which uploads that nobody finished are removed; the longest build takes less."
  type        = number
  default     = 7

  validation {
    condition     = var.abort_uploads_after_days >= 1 && floor(var.abort_uploads_after_days) == var.abort_uploads_after_days
    error_message = "Give whole days, at least one: builds in progress have uploads that are not finished."
  }
}

variable "kms_key_id" {
  description = "OCID of a key to encrypt the buckets with; null: Oracle's."
  type        = string
  default     = null
}

variable "enable_container_registry" {
  description = "Make the container repository; false uses one that exists, or none."
  type        = bool
  default     = true
}

variable "container_repository_name" {
  description = "Repository of template images: OCI_CONTAINER_REPOSITORY_NAME. Unique in the tenancy."
  type        = string
  default     = "e2b-templates"

  validation {
    condition     = can(regex("^[a-z0-9]+([._-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*$", var.container_repository_name))
    error_message = "Lower-case letters and digits, with single separators between them."
  }
}

variable "create_dynamic_group" {
  description = "Make the dynamic group; false uses one that exists, called dynamic_group_name."
  type        = bool
  default     = true
}

variable "dynamic_group_name" {
  description = "Dynamic group of the hosts; with an identity domain: 'DOMAIN'/'GROUP'."
  type        = string
  default     = "bootstream-hosts"
}

variable "dynamic_group_matching_rule" {
  description = "Which instances are hosts; null: all in the compartment."
  type        = string
  default     = null
}

variable "allow_signed_uploads" {
  description = "Let hosts make URLs for uploads (pre-authenticated requests)."
  type        = bool
  default     = true
}

variable "allow_service" {
  description = "Let Object Storage itself act on the bucket: lifecycle rules, and copies within it."
  type        = bool
  default     = true
}
