"""Peak memory of a process, for benchmarks."""

from __future__ import annotations

import re
from pathlib import Path


def peak_memory() -> int:
    """Return the most bytes of memory that this process had at a time.

    From ``/proc``, where ``exec`` begins anew: ``ru_maxrss`` would also count what the
    process was forked from.
    """
    status = Path("/proc/self/status").read_text("ascii")
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    assert found is not None
    return int(found[1]) << 10
