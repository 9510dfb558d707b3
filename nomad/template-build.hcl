# Made by 'python -m bootstream.deploy.nomad nomad': change src/bootstream/deploy.
job "template-build" {
  datacenters = ["*"]
  type        = "batch"
  priority    = 50

  constraint {
    attribute = "$${attr.kernel.name}"
    value     = "linux"
  }

  parameterized {
    payload       = "forbidden"
    meta_required = ["image", "template", "build_id"]
    meta_optional = ["parent"]
  }

  meta {
    parent = "auto"
  }

  group "build" {
    restart {
      attempts = 0
      mode     = "fail"
    }

    reschedule {
      attempts  = 0
      unlimited = false
    }

    ephemeral_disk {
      size = 300
    }

    task "build" {
      driver       = "raw_exec"
      kill_signal  = "SIGTERM"
      kill_timeout = "30s"

      config {
        command = "${bootstream_command}"
        args    = [
          "build",
          "--tag",
          "$${NOMAD_META_template}",
          "--build-id",
          "$${NOMAD_META_build_id}",
          "--parent",
          "$${NOMAD_META_parent}",
          "-v",
          "--",
          "$${NOMAD_META_image}",
        ]
      }

      env {
        NODE_ID                       = "$${node.unique.id}"
        STORAGE_PROVIDER              = "OCIBucket"
        TEMPLATE_BUCKET_NAME          = "${oci_bucket_name}"
        ARTIFACTS_REGISTRY_PROVIDER   = "OCI_OCIR"
        OCI_REGION                    = "${oci_region}"
        OCI_NAMESPACE                 = "${oci_namespace}"
        OCI_CONTAINER_REPOSITORY_NAME = "${oci_repo_name}"
        BOOTSTREAM_CACHE_DIR          = "/var/cache/bootstream"
      }

      resources {
        cpu        = 2000
        memory     = 1024
        memory_max = 4096
      }
    }
  }
}
