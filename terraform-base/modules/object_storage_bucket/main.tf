resource "oci_objectstorage_bucket" "this" {
  compartment_id = var.compartment_ocid
  namespace      = var.namespace
  name           = var.name
  access_type    = "NoPublicAccess"
  storage_tier   = "Standard"
  auto_tiering   = "Disabled" # packs are read at random: the infrequent tier would cost more
  versioning     = var.versioning
  kms_key_id     = var.kms_key_id

  lifecycle {
    prevent_destroy = true
  }
}

resource "oci_objectstorage_object_lifecycle_policy" "this" {
  count = var.lifecycle_rules ? 1 : 0

  namespace = var.namespace
  bucket    = oci_objectstorage_bucket.this.name

  rules {
    name        = "abort-unfinished-uploads"
    action      = "ABORT"
    target      = "multipart-uploads"
    is_enabled  = true
    time_amount = var.abort_uploads_after_days
    time_unit   = "DAYS"
  }

  dynamic "rules" {
    for_each = var.versioning == "Disabled" ? [] : [var.previous_versions_days]

    content {
      name        = "delete-previous-versions"
      action      = "DELETE"
      target      = "previous-object-versions"
      is_enabled  = true
      time_amount = rules.value
      time_unit   = "DAYS"
    }
  }
}
