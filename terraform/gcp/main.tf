resource "google_storage_bucket" "templates" {
  count = var.create_bucket ? 1 : 0

  project                     = var.project_id
  name                        = var.bucket_name
  location                    = var.region
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"

  versioning {
    enabled = var.bucket_versioning
  }

  lifecycle_rule {
    action {
      type = "AbortIncompleteMultipartUpload"
    }
    condition {
      age = var.abort_uploads_after_days
    }
  }

  lifecycle_rule {
    action {
      type = "Delete"
    }
    condition {
      days_since_noncurrent_time = var.previous_versions_days
    }
  }

  lifecycle {
    prevent_destroy = true
  }
}

resource "google_artifact_registry_repository" "templates" {
  project       = var.project_id
  location      = var.region
  repository_id = var.docker_repository_name
  format        = "DOCKER"
  description   = "Images of templates"

  docker_config {
    immutable_tags = false # a build that is made again moves its tag
  }
}

resource "google_service_account" "hosts" {
  project      = var.project_id
  account_id   = var.service_account_id
  display_name = "Hosts that build templates and stream them"
}

resource "google_storage_bucket_iam_member" "objects" {
  bucket = var.create_bucket ? google_storage_bucket.templates[0].name : var.bucket_name
  role   = "roles/storage.objectUser"
  member = "serviceAccount:${google_service_account.hosts.email}"
}

# Deleting images needs more than roles/artifactregistry.writer.
resource "google_artifact_registry_repository_iam_member" "images" {
  project    = var.project_id
  location   = google_artifact_registry_repository.templates.location
  repository = google_artifact_registry_repository.templates.name
  role       = "roles/artifactregistry.repoAdmin"
  member     = "serviceAccount:${google_service_account.hosts.email}"
}

# Signed URLs without a key file: the account signs as itself.
resource "google_service_account_iam_member" "sign" {
  count = var.allow_signed_uploads ? 1 : 0

  service_account_id = google_service_account.hosts.name
  role               = "roles/iam.serviceAccountTokenCreator"
  member             = "serviceAccount:${google_service_account.hosts.email}"
}
