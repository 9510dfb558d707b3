"""Whether KVM really runs a guest here.

``/dev/kvm`` may be there and still start no stock kernel: inside another virtual machine,
registers may be refused, or the guest may hang. So it is tried: the kernel boots with an
initrd that reports itself and switches off, within a time limit. What came out is
remembered until this host boots again.
"""

from __future__ import annotations

import json
import logging
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from bootstream.errors import BootstreamError
from bootstream.vm.boot import Plan, boot
from bootstream.vm.qemu import KVM, TCG

log = logging.getLogger(__name__)

PROBE_SECONDS = 10.0
_DEVICE = Path("/dev/kvm")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def choose(plan: Plan, *, remember: Path | None, device: Path = _DEVICE) -> str:
    """Return the accelerator to boot a plan's kernel with: KVM where it works.

    Args:
        plan: what is to be booted.
        remember: a file to keep the outcome in; None tries each time.
        device: KVM's device node.
    """
    if not os.access(device, os.R_OK | os.W_OK):
        return TCG
    key = f"{_line(_BOOT_ID)} {plan.kernel.version} {plan.kind} {os.geteuid()}"
    known = _recall(remember)
    if key not in known:
        since_boot = f"{_line(_BOOT_ID)} "
        known = {name: value for name, value in known.items() if name.startswith(since_boot)}
        known[key] = works(plan)
        _keep(remember, known)
    return KVM if known[key] else TCG


def works(plan: Plan) -> bool:
    """Whether the plan's kernel runs under KVM, by trying."""
    trial = replace(
        plan,
        accel=KVM,
        root=None,
        command=None,
        files={},
        modules=(),
        network=False,
        interactive=False,
        cpus=1,
        memory=256,
        time_limit=PROBE_SECONDS,
    )
    with open(os.devnull, "wb") as nowhere:
        try:
            boot(trial, stdout=nowhere.fileno())
        except BootstreamError as error:
            log.info("KVM does not work here: %s", error)
            return False
    return True


def _recall(path: Path | None) -> dict[str, bool]:
    if path is None:
        return {}
    try:
        known = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(known, dict):
        return {}
    return {key: value for key, value in known.items() if key and isinstance(value, bool)}


def _keep(path: Path | None, known: dict[str, bool]) -> None:
    if path is None:
        return
    with suppress(OSError):  # then it is tried again next time
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(known), "utf-8")
        temporary.replace(path)


def _line(path: Path) -> str:
    with suppress(OSError):
        return path.read_text("utf-8").strip()
    return "unknown"
