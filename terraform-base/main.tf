locals {
  object_storage_buckets = merge(
    {
      (var.template_bucket_name) = {
        versioning               = var.bucket_versioning
        abort_uploads_after_days = var.abort_uploads_after_days
      }
    },
    var.additional_buckets,
  )
}

# The namespace is the registry's, too.
data "oci_objectstorage_namespace" "ns" {
  compartment_id = var.compartment_ocid
}

module "object_storage_buckets" {
  source   = "./modules/object_storage_bucket"
  for_each = var.enable_object_storage ? local.object_storage_buckets : {}

  compartment_ocid         = var.compartment_ocid
  namespace                = data.oci_objectstorage_namespace.ns.namespace
  name                     = each.key
  versioning               = each.value.versioning
  abort_uploads_after_days = each.value.abort_uploads_after_days
  previous_versions_days   = var.previous_versions_days
  kms_key_id               = var.kms_key_id
  lifecycle_rules          = var.allow_service

  # A lifecycle policy is refused before the service may act on the bucket.
  depends_on = [oci_identity_policy.service]
}

# A bucket that exists has to be there: hosts would only fail later.
data "oci_objectstorage_bucket" "existing" {
  count = var.enable_object_storage ? 0 : 1

  namespace = data.oci_objectstorage_namespace.ns.namespace
  name      = var.template_bucket_name
}

resource "oci_artifacts_container_repository" "template_registry" {
  count = var.enable_container_registry ? 1 : 0

  compartment_id = var.compartment_ocid
  display_name   = var.container_repository_name
  is_public      = false
  is_immutable   = false # a build that is made again moves its tag
}
