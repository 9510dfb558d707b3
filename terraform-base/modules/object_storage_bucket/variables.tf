variable "compartment_ocid" {
  description = "Compartment of the bucket."
  type        = string
}

variable "namespace" {
  description = "Object Storage's namespace."
  type        = string
}

variable "name" {
  description = "The bucket's name."
  type        = string
}

variable "versioning" {
  description = "Disabled, Enabled or Suspended."
  type        = string
  default     = "Disabled"

  validation {
    condition     = contains(["Disabled", "Enabled", "Suspended"], var.versioning)
    error_message = "Versioning is Disabled, Enabled or Suspended."
  }
}

variable "abort_uploads_after_days" {
  description = "Days after which uploads that nobody finished are removed."
  type        = number
  default     = 7
}

variable "previous_versions_days" {
  description = "Days for which previous versions are kept, with versioning."
  type        = number
  default     = 7
}

variable "kms_key_id" {
  description = "OCID of a key; null: Oracle's."
  type        = string
  default     = null
}

variable "lifecycle_rules" {
  description = "Whether the bucket has lifecycle rules, which need the service's own policy."
  type        = bool
  default     = true
}
