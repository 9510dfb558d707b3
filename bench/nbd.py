"""Reads and writes over a unix socket: ``bootstream serve``, ``nbdkit`` and ``qemu-nbd``.

One raw image; ours is imported as a chunked template and its node cache warmed by copying
the export once, theirs lies in the page cache. Writes go to an overlay: ours, ``nbdkit
--filter=cow``, and a qcow2 file on ``qemu-nbd``. fio's nbd engine is the client of all. Rounds
are interleaved and medians are compared, so that what else the machine does hits all alike.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20


@dataclass(frozen=True)
class Case:
    """What fio does: pattern, block size, depth, connections."""

    pattern: str
    block: str
    depth: int
    connections: int = 1

    def __str__(self) -> str:
        plural = "s" if self.connections > 1 else ""
        return (
            f"{self.pattern:<9} {self.block:>3} depth {self.depth:<2} "
            f"{self.connections} connection{plural}"
        )


READS = (
    Case("randread", "4k", 1),
    Case("randread", "4k", 16),
    Case("randread", "4k", 64),
    Case("randread", "4k", 1, 4),
    Case("randread", "4k", 16, 4),
    Case("randread", "1m", 16),
    Case("read", "1m", 16),
    Case("randread", "1m", 16, 4),
)
WRITES = (
    Case("randwrite", "4k", 1),
    Case("randwrite", "4k", 16),
    Case("randwrite", "4k", 16, 4),
    Case("randwrite", "64k", 16),
    Case("write", "1m", 16),
    Case("write", "1m", 16, 4),
)


def make_image(path: Path, size: int) -> None:
    """Write random bytes: nothing may be gained by leaving zeros out."""
    with path.open("wb") as file:
        for _ in range(size // MIB):
            file.write(os.urandom(MIB))


def fio(path: Path, case: Case, size: int, seconds: float) -> float:
    """Run one case; return bytes a second."""
    command = [
        "fio",
        "--name=bench",
        "--ioengine=nbd",
        f"--uri=nbd+unix:///?socket={path}",
        f"--rw={case.pattern}",
        f"--bs={case.block}",
        f"--iodepth={case.depth}",
        f"--numjobs={case.connections}",
        "--group_reporting",
        f"--size={size}",
        f"--runtime={seconds}",
        "--time_based",
        "--output-format=json",
    ]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    job = json.loads(said[said.index("{") :])["jobs"][0]
    if job["error"]:
        raise SystemExit(f"fio failed with error {job['error']}: {case} on {path}")
    return float(job["write" if "write" in case.pattern else "read"]["bw_bytes"])


def listens(path: Path) -> bool:
    """Whether somebody listens on a unix socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0 and bool(probe.recv(18))


@contextmanager
def process(command: list[str], path: Path, environment: dict[str, str]) -> Iterator[None]:
    """Run a server in the foreground while the block lasts."""
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as server:
        try:
            deadline = time.monotonic() + 20
            while not listens(path):
                if server.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"did not start: {' '.join(command)}")
                time.sleep(0.01)
            yield
        finally:
            server.terminate()


class Bench:
    """An image, a template of it, and servers on both."""

    def __init__(self, folder: Path, size: int, stack: ExitStack) -> None:
        self.folder = folder
        self.image = folder / "image"
        self._stack = stack
        self._size = size
        self._environment = os.environ | {
            "STORAGE_PROVIDER": "Local",
            "LOCAL_TEMPLATE_STORAGE_BASE_PATH": str(folder / "templates"),
            "TEMPLATE_BUCKET_PREFIX": "",
            "BOOTSTREAM_CACHE_DIR": str(folder / "cache"),
            "BOOTSTREAM_CACHE_SIZE": str(4 * size),
        }
        make_image(self.image, size)
        self._bootstream = [sys.executable, "-m", "bootstream"]
        subprocess.run(
            [*self._bootstream, "import", str(self.image), "-t", "bench"],
            env=self._environment,
            check=True,
            stdout=subprocess.DEVNULL,
        )

    def start(self, name: str, command: Callable[[str], list[str]]) -> Path:
        """Start a server and read all of its export once; return its socket."""
        path = self.folder / f"{name}.sock"
        self._stack.enter_context(process(command(str(path)), path, self._environment))
        copy = ["nbdcopy", f"nbd+unix:///?socket={path}", "null:"]
        subprocess.run(copy, check=True)
        return path

    def readers(self) -> dict[str, Path]:
        """Start what is read from."""
        image = str(self.image)
        serve = [*self._bootstream, "serve", "bench", "--read-only", "--socket"]
        qemu = ["qemu-nbd", "-r", "-f", "raw", "-t", "-e", "16", "-k"]
        return {
            "bootstream": self.start("ours", lambda s: [*serve, s]),
            "nbdkit": self.start(
                "nbdkit", lambda s: ["nbdkit", "-f", "-r", "-U", s, "file", image]
            ),
            "qemu-nbd": self.start("qemu", lambda s: [*qemu, s, image]),
        }

    def writers(self) -> dict[str, Path]:
        """Start what is written to: throw-away overlays over the same image."""
        image = str(self.image)
        serve = [*self._bootstream, "serve", "bench", "--socket"]
        cow = ["nbdkit", "-f", "--filter=cow", "-U"]
        qcow2 = str(self.folder / "image.qcow2")
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", "-b", image, "-F", "raw", qcow2], check=True
        )
        qemu = ["qemu-nbd", "-f", "qcow2", "-t", "-e", "16", "-k"]
        return {
            "bootstream": self.start("ours-rw", lambda s: [*serve, s]),
            "nbdkit": self.start("nbdkit-rw", lambda s: [*cow, s, "file", image]),
            "qemu-nbd": self.start("qemu-rw", lambda s: [*qemu, s, qcow2]),
        }

    def measure(
        self, servers: dict[str, Path], cases: tuple[Case, ...], rounds: int, seconds: float
    ) -> dict[Case, dict[str, float]]:
        """Return the median of each case for each server, in bytes a second."""
        found: dict[Case, dict[str, float]] = {}
        for case in cases:
            runs: dict[str, list[float]] = {name: [] for name in servers}
            for _ in range(rounds):
                for name, path in servers.items():
                    # Each job of several has a size of its own; together they see it all.
                    runs[name].append(fio(path, case, self._size, seconds))
            found[case] = {name: statistics.median(values) for name, values in runs.items()}
            report(case, found[case])
        return found


def report(case: Case, results: dict[str, float]) -> None:
    """Print one line: ours, theirs, ratios."""
    parts = [f"{case!s:<38}"]
    small = case.block == "4k"
    for name, rate in results.items():
        figure = f"{rate / 4096 / 1000:7.1f}k/s" if small else f"{rate / 1e6:6.0f} MB/s"
        ratio = "" if name == "bootstream" else f" ({results['bootstream'] / rate:.2f} x)"
        parts.append(f"{name} {figure}{ratio}")
    print("  ".join(parts), file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=512, help="MiB of the image")
    parser.add_argument("--rounds", type=int, default=3, help="the median of so many counts")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each run of fio")
    parser.add_argument("--only", choices=["reads", "writes"], help="half of it")
    parser.add_argument("--json", action="store_true", help="print JSON to stdout")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        bench = Bench(Path(folder), options.size * MIB, stack)
        results: dict[Case, dict[str, float]] = {}
        if options.only != "writes":
            results |= bench.measure(bench.readers(), READS, options.rounds, options.seconds)
        if options.only != "reads":
            results |= bench.measure(bench.writers(), WRITES, options.rounds, options.seconds)
    if options.json:
        print(json.dumps({str(case): rates for case, rates in results.items()}, indent=2))


if __name__ == "__main__":
    main()
