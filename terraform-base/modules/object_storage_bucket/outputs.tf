output "name" {
  description = "The bucket's name."
  value       = oci_objectstorage_bucket.this.name
}
