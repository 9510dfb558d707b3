"""Who holds something in the bucket, and whether it can still be alive.

Heartbeats and leases are objects that a living process renews; their age, by the
storage's clock, says whether anybody is still there. Age alone makes everyone
wait after a crash, so the body also names the process: on the host where it ran,
collection sees at once that it is gone.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bootstream.errors import BootstreamError


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _start_time(pid: int) -> str:
    """The process's start in clock ticks since boot: with the pid, it names one process."""
    stat = _read(f"/proc/{pid}/stat")
    return stat.rpartition(")")[2].split()[19] if stat else ""


@dataclass(frozen=True, slots=True)
class Holder:
    """One process, named so that it cannot be mistaken for another or a later one."""

    node_id: str
    boot_id: str
    pid_namespace: str
    pid: int
    start_time: str

    @classmethod
    def current(cls, node_id: str, pid: int | None = None) -> Holder:
        """This process, or that of ``pid``, on the host called ``node_id``."""
        try:
            namespace = str(Path("/proc/self/ns/pid").readlink())
        except OSError:
            namespace = ""
        return cls(
            node_id=node_id,
            boot_id=_read("/proc/sys/kernel/random/boot_id"),
            pid_namespace=namespace,
            pid=pid or os.getpid(),
            start_time=_start_time(pid or os.getpid()),
        )

    def to_json(self, **more: str) -> bytes:
        """Serialise for the body of a heartbeat or lease, with further fields."""
        return json.dumps(asdict(self) | more).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Holder | None:
        """Parse; None for anything that is not one, which then counts by its age alone."""
        try:
            fields: Any = json.loads(data)
            return cls(
                node_id=str(fields["node_id"]),
                boot_id=str(fields["boot_id"]),
                pid_namespace=str(fields["pid_namespace"]),
                pid=int(fields["pid"]),
                start_time=str(fields["start_time"]),
            )
        except (ValueError, TypeError, KeyError, RecursionError):
            return None

    def is_surely_dead(self) -> bool:
        """Tell whether this very process ran here and ended; False where one cannot know."""
        here = Holder.current("")
        if not self.boot_id or not self.pid_namespace:
            return False
        if (self.boot_id, self.pid_namespace) != (here.boot_id, here.pid_namespace):
            return False
        started = _start_time(self.pid)
        if started:
            return started != self.start_time
        try:  # /proc may hide the processes of other users
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:
            return False
        return False


class Renewal:
    """A thread that calls ``renew`` every ``interval`` seconds until it is stopped.

    Trouble that may pass is reported and tried again at the next turn; ``on_lost``
    is called, once, when ``renew`` says that what it renews is no longer ours.
    """

    def __init__(
        self,
        renew: Callable[[], bool],
        interval: float,
        *,
        on_lost: Callable[[], None],
        on_trouble: Callable[[BootstreamError], None],
    ) -> None:
        self._renew = renew
        self._interval = interval
        self._on_lost = on_lost
        self._on_trouble = on_trouble
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="bootstream-renewal", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            try:
                if not self._renew():
                    self._on_lost()
                    return
            except BootstreamError as error:
                self._on_trouble(error)

    def stop(self) -> None:
        """Return once no further renewal will be made; idempotent."""
        self._stop.set()
        self._thread.join()
