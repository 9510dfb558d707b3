#!/bin/sh
# From one settings file to hosts that run the services: `bootstream deploy`, with the settings
# of an OCI fleet made from these variables. Without them it takes ./fleet.toml, or $FLEET_FILE.
#
#   OCI_REGION=us-ashburn-1 OCI_NAMESPACE=… TEMPLATE_BUCKET_NAME=fc-template HOSTS="10.0.0.5 10.0.0.6" \
#     ./deploy-poc.sh [--dry-run | --check] [further options of bootstream deploy]
set -eu

bootstream=${BOOTSTREAM:-bootstream}
command -v "$bootstream" >/dev/null 2>&1 || {
  echo "bootstream is not installed: pip install 'bootstream[oci,server]'" >&2
  exit 3
}

if [ -z "${HOSTS:-}" ]; then
  exec "$bootstream" deploy "${FLEET_FILE:-fleet.toml}" "$@"
fi

: "${OCI_REGION:?set it to the region of the bucket, such as us-ashburn-1}"
: "${OCI_NAMESPACE:?set it to what 'oci os ns get' prints}"
: "${TEMPLATE_BUCKET_NAME:?set it to the bucket of the templates, such as fc-template}"

# The settings name what they mean; a quote or a line break in a value is told by whoever reads them.
hosts=
for host in $HOSTS; do hosts="$hosts\"$host\", "; done

settings=$(mktemp "${TMPDIR:-/tmp}/fleet-XXXXXXXX")
trap 'rm -f "$settings"' EXIT
trap 'exit 129' HUP INT TERM
cat >"$settings" <<TOML
cloud = "oci"
hosts = [$hosts]
${MANAGER_HOST:+manager = "$MANAGER_HOST"}
${BOOTSTREAM_WHEELS:+wheels = "$(realpath "$BOOTSTREAM_WHEELS")"}

[values]
oci_bucket_name = "$TEMPLATE_BUCKET_NAME"
oci_region = "$OCI_REGION"
oci_namespace = "$OCI_NAMESPACE"
oci_repo_name = "${OCI_CONTAINER_REPOSITORY_NAME:-e2b-templates}"

[environment]
OCI_CLI_AUTH = "instance_principal"

[ssh]
${SSH_USER:+user = "$SSH_USER"}
${SSH_BASTION:+bastion = "$SSH_BASTION"}
${SSH_IDENTITY:+identity = "$(realpath "$SSH_IDENTITY")"}
TOML
"$bootstream" deploy "$settings" "$@"
