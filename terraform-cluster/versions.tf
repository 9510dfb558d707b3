terraform {
  required_version = ">= 1.5"

  required_providers {
    nomad = {
      source  = "hashicorp/nomad"
      version = ">= 2.0"
    }
  }
}

# The token comes from NOMAD_TOKEN, certificates from NOMAD_CACERT and its kin.
provider "nomad" {
  address = var.nomad_address
}
