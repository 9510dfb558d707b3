"""All checks, in the order in which people read them."""

from __future__ import annotations

from bootstream.doctor.devices import check_fuse, check_kvm, check_nbd
from bootstream.doctor.finding import Check
from bootstream.doctor.host import (
    check_disk,
    check_e2fsprogs,
    check_memory,
    check_ports,
    check_programs,
    check_version,
)
from bootstream.doctor.registry import check_registry
from bootstream.doctor.signin import (
    check_clock,
    check_namespace,
    check_principal,
    check_region,
)
from bootstream.doctor.storage import check_storage

PORTS = {"template-manager": 5009, "orchestrator": 5008}

CHECKS: tuple[Check, ...] = (
    Check("version", "what runs here", check_version),
    Check("clock", "this host's clock and the storage's", check_clock, limit=15.0),
    Check("principal", "who signs requests, and until when", check_principal, limit=40.0),
    Check("region", "where the bucket is", check_region, after=("principal",), limit=40.0),
    Check("namespace", "Object Storage's", check_namespace, after=("principal",), limit=40.0),
    Check(
        "storage", "the bucket, each permission", check_storage, after=("principal",), limit=60.0
    ),
    Check("registry", "sign-in, pull, push", check_registry, after=("principal",), limit=40.0),
    Check("nbd", "the kernel's NBD driver", check_nbd),
    Check("fuse", "mounting without it", check_fuse),
    Check("kvm", "whether KVM boots a kernel", check_kvm, limit=20.0),
    Check("e2fsprogs", "who else checks file systems", check_e2fsprogs),
    Check("disk", "room for the cache", check_disk),
    Check("memory", "memory and descriptors", check_memory),
    Check("ports", "of the services", check_ports),
    Check("programs", "that some verbs need", check_programs, limit=20.0),
)
