# What hosts may do, one permission for each thing that the code does. `bootstream doctor`
# tries each of them from a host, and names the statement that is missing.
locals {
  hosts  = "dynamic-group ${var.dynamic_group_name}"
  where  = "in compartment id ${var.compartment_ocid} where"
  bucket = "target.bucket.name='${var.template_bucket_name}'"
  repo   = "target.repo.name='${var.container_repository_name}'"

  object_permissions     = ["OBJECT_INSPECT", "OBJECT_READ", "OBJECT_CREATE", "OBJECT_OVERWRITE", "OBJECT_DELETE"]
  repository_permissions = ["REPOSITORY_INSPECT", "REPOSITORY_READ", "REPOSITORY_UPDATE"]

  any_object_permission     = join(", ", [for name in local.object_permissions : "request.permission='${name}'"])
  any_repository_permission = join(", ", [for name in local.repository_permissions : "request.permission='${name}'"])

  host_statements = concat(
    [
      "Allow ${local.hosts} to read buckets ${local.where} ${local.bucket}",
      "Allow ${local.hosts} to manage objects ${local.where} all {${local.bucket}, any {${local.any_object_permission}}}",
      "Allow ${local.hosts} to manage repos ${local.where} all {${local.repo}, any {${local.any_repository_permission}}}",
    ],
    var.allow_signed_uploads ? [
      "Allow ${local.hosts} to manage buckets ${local.where} all {${local.bucket}, request.permission='PAR_MANAGE'}",
    ] : [],
  )

  # Lifecycle rules act on every bucket that has some.
  service_buckets = var.enable_object_storage ? keys(local.object_storage_buckets) : [var.template_bucket_name]
  service_statements = [
    for name in local.service_buckets :
    "Allow service objectstorage-${var.region} to manage object-family ${local.where} target.bucket.name='${name}'"
  ]
}

resource "oci_identity_dynamic_group" "hosts" {
  count    = var.create_dynamic_group ? 1 : 0
  provider = oci.home

  compartment_id = var.tenancy_ocid
  name           = var.dynamic_group_name
  description    = "Hosts that build templates and stream them"
  matching_rule  = coalesce(var.dynamic_group_matching_rule, "instance.compartment.id = '${var.compartment_ocid}'")
}

resource "oci_identity_policy" "hosts" {
  provider = oci.home

  compartment_id = var.compartment_ocid
  name           = "bootstream-hosts"
  description    = "What hosts do with the templates' bucket and the repository of their images"
  statements     = local.host_statements

  depends_on = [oci_identity_dynamic_group.hosts]
}

resource "oci_identity_policy" "service" {
  count    = var.allow_service ? 1 : 0
  provider = oci.home

  compartment_id = var.compartment_ocid
  name           = "bootstream-object-storage"
  description    = "Lifecycle rules, and copies within a bucket, which Object Storage makes itself"
  statements     = local.service_statements
}
