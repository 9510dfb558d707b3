# Made by 'python -m bootstream.deploy.nomad nomad': change src/bootstream/deploy.
job "orchestrator" {
  datacenters = ["*"]
  type        = "system"
  priority    = 90

  constraint {
    attribute = "$${attr.kernel.name}"
    value     = "linux"
  }

  update {
    max_parallel = 1
    stagger      = "60s"
  }

  group "orchestrator" {
    restart {
      attempts = 10
      interval = "10m"
      delay    = "5s"
      mode     = "delay"
    }

    network {
      port "http" {
        static = 5008
      }
    }

    service {
      name     = "orchestrator"
      port     = "http"
      provider = "nomad"

      check {
        name            = "alive"
        type            = "http"
        protocol        = "https"
        tls_skip_verify = true
        path            = "/health"
        interval        = "20s"
        timeout         = "5s"
      }

      check {
        name            = "ready"
        type            = "http"
        protocol        = "https"
        tls_skip_verify = true
        path            = "/ready"
        interval        = "20s"
        timeout         = "5s"
      }
    }

    task "start" {
      driver       = "raw_exec"
      kill_signal  = "SIGTERM"
      kill_timeout = "130s"

      config {
        command = "${bootstream_command}"
        args    = ["orchestrator"]
      }

      env {
        NODE_ID                     = "$${node.unique.id}"
        STORAGE_PROVIDER            = "GCPBucket"
        TEMPLATE_BUCKET_NAME        = "${gcp_bucket_name}"
        ARTIFACTS_REGISTRY_PROVIDER = "GCP_ARTIFACTS"
        GCP_PROJECT_ID              = "${gcp_project_id}"
        GCP_REGION                  = "${gcp_region}"
        GCP_DOCKER_REPOSITORY_NAME  = "${gcp_repo_name}"
        BOOTSTREAM_CACHE_DIR        = "/var/cache/bootstream"
        BOOTSTREAM_STATE_DIR        = "/var/lib/bootstream/orchestrator"
        BOOTSTREAM_LISTEN_HOST      = "$${NOMAD_IP_http}"
        BOOTSTREAM_LISTEN_PORT      = "$${NOMAD_PORT_http}"
        BOOTSTREAM_TOKENS_FILE      = "$${NOMAD_SECRETS_DIR}/tokens.json"
        BOOTSTREAM_TLS_CERT_FILE    = "$${NOMAD_SECRETS_DIR}/tls.crt"
        BOOTSTREAM_TLS_KEY_FILE     = "$${NOMAD_SECRETS_DIR}/tls.key"
      }

      template {
        destination = "$${NOMAD_SECRETS_DIR}/tokens.json"
        perms       = "0600"
        change_mode = "noop"

        data = <<-EOT
        {{ with nomadVar "nomad/jobs/orchestrator" }}{{ .tokens }}{{ end }}
        EOT
      }

      template {
        destination = "$${NOMAD_SECRETS_DIR}/tls.crt"
        perms       = "0600"
        change_mode = "restart"

        data = <<-EOT
        {{ with nomadVar "nomad/jobs/orchestrator" }}{{ .tls_certificate }}{{ end }}
        EOT
      }

      template {
        destination = "$${NOMAD_SECRETS_DIR}/tls.key"
        perms       = "0600"
        change_mode = "restart"

        data = <<-EOT
        {{ with nomadVar "nomad/jobs/orchestrator" }}{{ .tls_key }}{{ end }}
        EOT
      }

      resources {
        cpu        = 1000
        memory     = 1024
        memory_max = 8192
      }
    }
  }
}
