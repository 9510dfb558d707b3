#!/bin/sh
# Installs one release beside the others, makes it the current one, and goes back if it is not
# healthy. Run as root on a host, from the folder that 'bootstream deploy' unpacked:
#
#   install.sh check      what is there, and what is missing; changes nothing
#   install.sh apply      install, activate, look, and go back if need be
#
# It says 'step: what' for each step, 'missing: what' for what has to be mended, and ends with
# 'result: unchanged', 'result: installed', 'result: rolled back' or 'result: not healthy'. Running it again is safe at any
# time, also after it was killed: a release counts once '.complete' is in it, and which one is
# current is one link, replaced at once.
set -eu
umask 022

here=$(cd "$(dirname "$0")" && pwd)
# It sets RELEASE PROGRAM_ID PYTHON PACKAGE SERVICES SYSTEM_PACKAGES NBD_DEVICES HEALTH_SECONDS KEEP HEALTH_URLS.
# shellcheck source=/dev/null
. "$here/release.env"

root=/opt/bootstream
releases=$root/releases
new=$releases/$RELEASE
venv=$root/programs/$PROGRAM_ID
units=/etc/systemd/system

step() { printf 'step: %s\n' "$*"; }
missing() { printf 'missing: %s\n' "$*"; }

current_release() {
  link=$(readlink "$root/current" 2>/dev/null) || return 0
  printf '%s\n' "${link##*/}"
}

# same FILE TARGET: copies only what differs; says whether it did.
put() {
  if cmp -s "$1" "$2"; then return 1; fi
  install -D -m 0644 "$1" "$2.new"
  mv -f "$2.new" "$2"
}

has_package() {
  if command -v dpkg-query >/dev/null 2>&1; then
    [ "$(dpkg-query -W -f '${db:Status-Abbrev}' "$1" 2>/dev/null | cut -c1-2)" = ii ]
  elif command -v rpm >/dev/null 2>&1; then
    rpm -q "$1" >/dev/null 2>&1
  else
    return 1
  fi
}

look() {
  found=0
  if [ "$(id -u)" != 0 ]; then missing "root: let the user sudo without a password"; found=1; fi
  for program in systemctl install cmp readlink; do
    command -v "$program" >/dev/null 2>&1 || { missing "the program $program"; found=1; }
  done
  if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    missing "$PYTHON of version 3.11 or newer (setting 'python')"; found=1
  elif ! "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null; then
    missing "venv of $PYTHON (Debian: python3-venv)"; found=1
  fi
  free=$(df -Pk /opt 2>/dev/null | awk 'NR == 2 { print $4 }')
  if [ "${free:-0}" -lt 1048576 ]; then missing "1 GiB of room below /opt: ${free:-0} KiB are free"; found=1; fi
  return "$found"
}

add_packages() {
  wanted=
  for package in $SYSTEM_PACKAGES; do
    has_package "$package" || wanted="$wanted $package"
  done
  [ -n "$wanted" ] || return 0
  step "packages:$wanted"
  if command -v apt-get >/dev/null 2>&1; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    # shellcheck disable=SC2086
    apt-get install -y -qq --no-install-recommends $wanted >/dev/null
  elif command -v dnf >/dev/null 2>&1; then
    # shellcheck disable=SC2086
    dnf install -y -q $wanted >/dev/null
  else
    missing "packages$wanted: neither apt-get nor dnf is there"
    return 1
  fi
}

# The driver is not needed by all that the services do: doctor says what is missing without it.
load_driver() {
  [ "$NBD_DEVICES" != 0 ] || return 0
  changed=1
  put "$here/etc/modules-load.conf" /etc/modules-load.d/bootstream.conf && changed=0
  put "$here/etc/modprobe.conf" /etc/modprobe.d/bootstream.conf && changed=0
  [ "$changed" = 1 ] || step "kernel: nbd with $NBD_DEVICES devices from the next boot on"
  if [ ! -d /sys/module/nbd ]; then
    if modprobe nbd 2>/dev/null; then
      step "kernel: nbd loaded"
    else
      step "kernel: no nbd here; templates are served and mounted without it"
    fi
  fi
}

# The program is one thing, its settings another: a release that changes only those is quick.
add_program() {
  if [ -f "$venv/.complete" ]; then return 0; fi
  step "program $PROGRAM_ID: installing"
  rm -rf "$venv"
  mkdir -p "$venv"
  "$PYTHON" -m venv "$venv"
  # shellcheck disable=SC2153 # it is set by release.env
  requirement=$PACKAGE
  # The package's wheels lie beside us, or an index has them.
  if [ -d "$here/wheels" ]; then
    "$venv/bin/python" -m pip install -q --disable-pip-version-check --no-index \
      --find-links "$here/wheels" "$requirement"
  else
    "$venv/bin/python" -m pip install -q --disable-pip-version-check "$requirement"
  fi
  touch "$venv/.complete"
}

add_release() {
  if [ -f "$new/.complete" ]; then return 0; fi
  step "release $RELEASE: installing"
  rm -rf "$new"
  mkdir -p "$new"
  ln -s "../../programs/$PROGRAM_ID" "$new/venv"
  cp -R "$here/etc" "$here/units" "$new/"
  chmod 0700 "$new/etc"
  find "$new/etc" -type f -exec chmod 0600 {} +
  touch "$new/.complete"
}

# point RELEASE: makes it the current one, at once.
point() {
  ln -sfn "releases/$1" "$root/current.new"
  mv -Tf "$root/current.new" "$root/current"
  ln -sfn current/venv/bin "$root/bin.new"
  mv -Tf "$root/bin.new" "$root/bin"
}

# start RELEASE: its units, and no others of ours, run what it has.
start() {
  for unit in "$units"/bootstream-*.service; do
    [ -e "$unit" ] || continue
    if [ ! -e "$releases/$1/units/${unit##*/}" ]; then
      step "unit ${unit##*/}: removed"
      systemctl disable --now "${unit##*/}" >/dev/null 2>&1 || :
      rm -f "$unit"
    fi
  done
  for unit in "$releases/$1"/units/*.service; do
    [ -e "$unit" ] || continue
    put "$unit" "$units/${unit##*/}" || :
  done
  systemctl daemon-reload
  for unit in "$releases/$1"/units/*.service; do
    [ -e "$unit" ] || continue
    name=${unit##*/}
    systemctl enable "$name" >/dev/null 2>&1 || return 1
    systemctl restart "$name" || return 1
    step "unit $name: started"
  done
}

healthy() {
  for service in $SERVICES; do
    systemctl is-active --quiet "bootstream-$service.service" || return 1
  done
  for url in $HEALTH_URLS; do
    "$root/current/venv/bin/python" - "$url" <<'PYTHON' || return 1
import ssl, sys, urllib.request
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # our own host, by its address
handlers = [urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)]
try:
    with urllib.request.build_opener(*handlers).open(sys.argv[1], timeout=3) as answer:
        sys.exit(answer.status != 200)
except OSError:
    sys.exit(1)
PYTHON
  done
}

wait_healthy() {
  end=$(($(date +%s) + HEALTH_SECONDS))
  until healthy; do
    [ "$(date +%s)" -lt "$end" ] || return 1
    sleep 0.5
  done
}

remove_old() {
  kept=0
  # shellcheck disable=SC2045 # they are named by digests, and their times matter
  for old in $(ls -1t "$releases"); do
    if [ "$old" = "$RELEASE" ] || [ "$old" = "$1" ]; then continue; fi
    kept=$((kept + 1))
    if [ "$kept" -ge "$KEEP" ]; then
      step "release $old: removed"
      rm -rf "${releases:?}/$old"
    fi
  done
  for program in "$root"/programs/*; do
    used=0
    for link in "$releases"/*/venv; do
      [ "$(readlink "$link")" != "../../programs/${program##*/}" ] || used=1
    done
    if [ "$used" = 0 ]; then
      step "program ${program##*/}: removed"
      rm -rf "$program"
    fi
  done
}

tell_status() {
  for service in $SERVICES; do
    systemctl status --no-pager -n 20 "bootstream-$service.service" 2>&1 | sed 's/^/status: /' || :
  done
}

go_back() {
  if [ -n "$1" ] && [ -f "$releases/$1/.complete" ]; then
    step "going back to release $1"
    point "$1"
    start "$1" || :
    if [ -z "$SERVICES" ] || wait_healthy; then step "release $1 is healthy"; else step "release $1 is not healthy either"; fi
  else
    step "there is no release to go back to: stopping"
    for service in $SERVICES; do
      systemctl disable --now "bootstream-$service.service" >/dev/null 2>&1 || :
      rm -f "$units/bootstream-$service.service"
    done
    systemctl daemon-reload
    rm -f "$root/current" "$root/bin"
  fi
  printf 'result: rolled back\n'
  exit 3
}

case "${1:-}" in
  check)
    step "current release: $(current_release)"
    look || exit 4
    if [ "$(current_release)" = "$RELEASE" ] && healthy; then
      printf 'result: unchanged\n'
    else
      printf 'result: to be installed\n'
    fi
    ;;
  apply)
    # One at a time on a host.
    mkdir -p "$releases"
    exec 9>"$root/.lock"
    if command -v flock >/dev/null 2>&1; then
      flock -n 9 || { missing "another deploy is at work on this host"; exit 4; }
    fi
    look || exit 4
    before=$(current_release)
    # All that is installed is in the release's name, so there is nothing to look at again.
    if [ "$before" = "$RELEASE" ] && healthy; then
      printf 'result: unchanged\n'
      exit 0
    fi
    add_packages
    load_driver
    add_program
    add_release
    point "$RELEASE"
    if start "$RELEASE" && wait_healthy; then
      step "release $RELEASE is healthy"
      remove_old "$before"
      printf 'result: installed\n'
      exit 0
    fi
    tell_status
    if [ "$before" = "$RELEASE" ]; then
      # It was the current one before: there is nothing to go back to, and it may yet recover.
      printf 'result: not healthy\n'
      exit 5
    fi
    go_back "$before"
    ;;
  *)
    echo "usage: install.sh check|apply" >&2
    exit 2
    ;;
esac
