"""One boot from start to end: the initrd, QEMU, what the guest reports, the time limit."""

from __future__ import annotations

import logging
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from bootstream.errors import BootstreamError, InvalidInput, NotFound, Unavailable
from bootstream.vm import guest, qemu
from bootstream.vm.guest import Stage
from bootstream.vm.initrd import build_initrd
from bootstream.vm.kernel import Kernel
from bootstream.vm.qemu import MICROVM, PC, Machine

log = logging.getLogger(__name__)

_MAX_LINE = 4096
_END_SECONDS = 5.0
_LAST = (Stage.EXIT, Stage.FAILED)


@dataclass(frozen=True, slots=True)
class Plan:
    """A boot to be.

    Attributes:
        kernel: see ``kernel.py``.
        busybox: a static one.
        root: URI of the export with the root file system; None for a machine without.
        command: run by the guest's shell in the place of its init; then the machine ends.
        files: by name, put into ``/run/bootstream`` of the guest.
        modules: further kernel modules to load, e.g. ``nbd``.
        kind: ``microvm`` or ``pc``; None takes what suits the kernel.
        accel: ``kvm`` or ``tcg``.
        memory: MiB.
        cpus: how many.
        network: a network of its own, in which the host is 10.0.2.2.
        read_only: mount the root read-only.
        interactive: the terminal is the guest's console; without a command, what is on
            standard input reaches the guest in any case.
        append: further kernel arguments.
        time_limit: seconds; None waits forever.
    """

    kernel: Kernel
    busybox: bytes
    root: str | None = None
    command: str | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)
    modules: Sequence[str] = ()
    kind: str | None = None
    accel: str = qemu.TCG
    memory: int = 512
    cpus: int = 1
    network: bool = False
    read_only: bool = False
    interactive: bool = False
    append: str = ""
    time_limit: float | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """What the guest reported: ``seconds`` since QEMU's start, ``uptime`` of its kernel."""

    stage: Stage
    seconds: float
    uptime: float
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Ended:
    """A machine that ended by itself.

    ``exit_code``: of its command or shell; None where the template's own init ran, which
    tells nobody.
    """

    exit_code: int | None
    seconds: float
    events: tuple[Event, ...]
    kind: str


def boot(
    plan: Plan,
    *,
    scratch: Path | None = None,
    stdout: int | None = None,
    on_event: Callable[[Event], None] = lambda _: None,
) -> Ended:
    """Boot a machine and wait for its end.

    Args:
        plan: what to boot.
        scratch: where its files are while it runs; None takes the system's place for such.
        stdout: descriptor for the console; None means this process's own.
        on_event: called with each report, in another thread.

    Raises:
        NotFound: QEMU is not installed, or the kernel lacks a module.
        InvalidInput: the plan's values do not suit.
        Unavailable: the guest did not end in time, could not go on, or QEMU failed.
    """
    if shutil.which(qemu.PROGRAM) is None:
        raise NotFound(
            "the program is not installed",
            operation="boot with",
            object=qemu.PROGRAM,
            remedy="install it (Debian: qemu-system-x86)",
        )
    kind = plan.kind or machine_kind(plan.kernel)
    with tempfile.TemporaryDirectory(prefix="bootstream-vm-", dir=scratch) as name:
        folder = Path(name)
        machine = _prepare(plan, kind, folder)
        tsc = qemu.host_tsc_khz(_cpuinfo())
        command = [*_bound_to_us(), *qemu.command_line(machine, tsc_khz=tsc)]
        log.info("starting %s", " ".join(command))
        with _Reports(machine.report, on_event) as reports:
            code, seconds, said = _run(command, plan, folder, reports, stdout)
        return _judge(plan, kind, code, seconds, said, reports.events)


def machine_kind(kernel: Kernel) -> str:
    """Return the kind of machine that suits a kernel."""
    return MICROVM if kernel.modules.has("virtio_mmio") else PC


def _prepare(plan: Plan, kind: str, folder: Path) -> Machine:
    """Write kernel and initrd; return the machine."""
    if plan.memory < 64 or plan.cpus < 1:
        raise InvalidInput(
            "a machine needs 64 MiB of memory and one processor at least", operation="boot"
        )
    needed = (*qemu.modules_for(kind, network=plan.network), *plan.modules)
    initrd = build_initrd(
        busybox=plan.busybox,
        modules=plan.kernel.modules.load(needed),
        settings=guest.settings(
            command=plan.command is not None,
            network=plan.network,
            probe=plan.root is None,
            read_only=plan.read_only,
        ),
        command=plan.command,
        files=plan.files,
    )
    (folder / "kernel").write_bytes(plan.kernel.image)
    (folder / "initrd").write_bytes(initrd)
    return Machine(
        kernel=folder / "kernel",
        initrd=folder / "initrd",
        report=folder / "report",
        root=plan.root,
        kind=kind,
        accel=plan.accel,
        memory=plan.memory,
        cpus=plan.cpus,
        network=plan.network,
        read_only=plan.read_only,
        interactive=plan.interactive,
        append=plan.append,
    )


def _run(
    command: list[str], plan: Plan, folder: Path, reports: _Reports, stdout: int | None
) -> tuple[int | None, float, str]:
    """Run QEMU; return its exit code, None past the time limit, seconds, and its words."""
    said = folder / "stderr"
    with said.open("wb") as stderr:
        started = time.monotonic()
        process = reports.start(
            lambda: subprocess.Popen(
                command,
                stdin=None if plan.command is None and plan.root else subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
            )
        )
        code: int | None = None
        try:
            with suppress(subprocess.TimeoutExpired):
                code = process.wait(plan.time_limit)
        finally:
            _end(process)
    return code, time.monotonic() - started, said.read_text("utf-8", "replace").strip()


def _judge(
    plan: Plan, kind: str, code: int | None, seconds: float, said: str, events: list[Event]
) -> Ended:
    last = {event.stage: event for event in events}
    if Stage.FAILED in last:
        raise _failed(last[Stage.FAILED].detail, plan)
    ended = last.get(Stage.EXIT)
    if ended is not None:
        number = int(ended.detail) if ended.detail.isdecimal() else None
        return Ended(number, seconds, tuple(events), kind)
    if code is None:
        reached = f"it got as far as {events[-1].stage!s}" if events else "its kernel did not start"
        raise _failed(f"it did not end within {plan.time_limit:g} seconds: {reached}", plan)
    if code != 0:
        raise _failed(f"{qemu.PROGRAM} ended with {code}: {said or 'it said nothing'}", plan)
    if plan.command is not None or Stage.INIT not in last:
        raise _failed("it stopped before its end; its console says more", plan)
    return Ended(None, seconds, tuple(events), kind)


def _bound_to_us() -> list[str]:
    """Return what to put before a command so that it ends when this process is killed.

    A machine whose disk was served here would hang forever. util-linux has it; without, a
    machine may be left.
    """
    program = shutil.which("setpriv")
    return [] if program is None else [program, "--pdeathsig", "TERM"]


def _failed(what: str, plan: Plan) -> BootstreamError:
    return Unavailable(
        what, operation="boot with kernel", object=plan.kernel.source, transient=False
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    """End QEMU, if it still runs."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class _Reports:
    """Listens for what the guest reports, in a thread, while the block lasts."""

    def __init__(self, path: Path, on_event: Callable[[Event], None]) -> None:
        self.events: list[Event] = []
        self._on_event = on_event
        self._started = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listening.bind(str(path))
        self._listening.listen(1)
        self._thread = threading.Thread(target=self._listen, name="vm-reports", daemon=True)

    def start(self, start: Callable[[], subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
        """Start the machine, which is ended once its guest says that it is done.

        The guest has written everything by then; if it switched off by itself, its kernel
        would say so on the console.
        """
        self._started = time.monotonic()
        self._process = start()
        return self._process

    def __enter__(self) -> _Reports:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)  # wakes accept
        self._thread.join()
        self._listening.close()

    def _listen(self) -> None:
        try:
            connection, _ = self._listening.accept()
        except OSError:  # no machine came
            return
        with connection, connection.makefile("rb") as lines, suppress(OSError):
            while line := lines.readline(_MAX_LINE):
                event = parse_report(line, time.monotonic() - self._started)
                if event is not None:
                    self.events.append(event)
                    self._on_event(event)
                    if event.stage in _LAST and self._process is not None:
                        self._process.terminate()


def parse_report(line: bytes, seconds: float) -> Event | None:
    """Return what a line of the guest's reports says; None for any other line."""
    words = line.decode("utf-8", "replace").split(maxsplit=2)
    try:
        return Event(Stage(words[0]), seconds, float(words[1]), " ".join(words[2:]).strip())
    except (IndexError, ValueError):
        return None


def _cpuinfo() -> str:
    with suppress(OSError):
        return Path("/proc/cpuinfo").read_text("utf-8", "replace")
    return ""
