# Made by 'python -m bootstream.deploy.nomad nomad': change src/bootstream/deploy.
job "template-manager" {
  datacenters = ["*"]
  type        = "service"
  priority    = 70

  constraint {
    attribute = "$${attr.kernel.name}"
    value     = "linux"
  }

  update {
    max_parallel     = 1
    min_healthy_time = "20s"
    healthy_deadline = "5m"
    auto_revert      = true
  }

  group "template-manager" {
    count = 1

    restart {
      attempts = 10
      interval = "10m"
      delay    = "5s"
      mode     = "delay"
    }

    network {
      port "http" {
        static = 5009
      }
    }

    service {
      name     = "template-manager"
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
      kill_timeout = "70s"

      config {
        command = "${bootstream_command}"
        args    = ["template-manager"]
      }

      env {
        NODE_ID                     = "$${node.unique.id}"
        STORAGE_PROVIDER            = "AWSBucket"
        TEMPLATE_BUCKET_NAME        = "${aws_bucket_name}"
        ARTIFACTS_REGISTRY_PROVIDER = "AWS_ECR"
        AWS_REGION                  = "${aws_region}"
        AWS_DOCKER_REPOSITORY_NAME  = "${aws_repo_name}"
        BOOTSTREAM_CACHE_DIR        = "/var/cache/bootstream"
        BOOTSTREAM_STATE_DIR        = "/var/lib/bootstream/template-manager"
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
        {{ with nomadVar "nomad/jobs/template-manager" }}{{ .tokens }}{{ end }}
        EOT
      }

      template {
        destination = "$${NOMAD_SECRETS_DIR}/tls.crt"
        perms       = "0600"
        change_mode = "restart"

        data = <<-EOT
        {{ with nomadVar "nomad/jobs/template-manager" }}{{ .tls_certificate }}{{ end }}
        EOT
      }

      template {
        destination = "$${NOMAD_SECRETS_DIR}/tls.key"
        perms       = "0600"
        change_mode = "restart"

        data = <<-EOT
        {{ with nomadVar "nomad/jobs/template-manager" }}{{ .tls_key }}{{ end }}
        EOT
      }

      resources {
        cpu        = 2000
        memory     = 2048
        memory_max = 8192
      }
    }
  }
}
