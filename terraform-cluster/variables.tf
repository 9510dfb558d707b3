variable "nomad_address" {
  description = "Nomad's API."
  type        = string
  default     = "https://127.0.0.1:4646"

  validation {
    condition     = can(regex("^https?://[^/]+$", var.nomad_address))
    error_message = "Give a URL without a path, such as https://nomad.example.com:4646."
  }
}

variable "cloud" {
  description = "Where templates are kept: oci, aws, gcp or local."
  type        = string
  default     = "oci"

  validation {
    condition     = contains(["oci", "aws", "gcp", "local"], var.cloud)
    error_message = "The cloud is oci, aws, gcp or local."
  }
}

variable "job_values" {
  description = "What the jobs' templates are filled in with: the output job_values of terraform-base, or of the cloud's module."
  type        = map(string)

  validation {
    condition     = alltrue([for value in values(var.job_values) : can(regex("^[A-Za-z0-9._/:-]+$", value))])
    error_message = "Names of buckets, regions, namespaces, repositories and folders have letters, digits and ._/:- only."
  }
}

variable "bootstream_command" {
  description = "The program on the hosts, as 'bootstream deploy' and the packages install it."
  type        = string
  default     = "/opt/bootstream/bin/bootstream"

  validation {
    condition     = can(regex("^/[A-Za-z0-9._/-]+$", var.bootstream_command))
    error_message = "Give an absolute path."
  }
}
