"""Cold reads over a unix socket out of an object store some milliseconds away.

    .venv/bin/python bench/stream.py [--size MIB] [--latency MS] [--rate MB/S] [--runs N] [--json]

The local OCI holds one image, as a raw object and as a chunked template, and every request
waits before it is answered. Ours is ``bootstream serve`` with an empty cache each time; the peer
is ``nbdkit curl`` with a URL of its own (a pre-authenticated request), with nbdkit's readahead
filter and without, and as many connections as clients open. nbdcopy reads all of it in order;
fio reads blocks of 4 KiB at random places, none twice.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from bootstream.config import Settings
from bootstream.testing.localoci import LocalOciServer
from bootstream.wiring import get_template_storage_provider

MIB = 1 << 20
CONNECTIONS = 16


def make_image(path: Path, size: int) -> None:
    """Write what compresses to a half, as a root file system does."""
    places = random.Random(1)
    with path.open("wb") as file:
        for _ in range(size // MIB):
            for _ in range(16):
                file.write(
                    places.randbytes(28 << 10) + b"all work and no play\n" * 1755 + b"\0" * 9
                )
        file.truncate(size)


@dataclass(frozen=True)
class Case:
    """What reads: in order all of it, or at random for some seconds."""

    name: str
    seconds: float = 0.0
    depth: int = 0


SEQUENTIAL = Case("sequential")
RANDOM = Case("random 4 KiB, depth 16", 3.0, 16)
SINGLE = Case("random 4 KiB, depth 1", 2.0, 1)


def read_all(path: Path, size: int) -> tuple[float, float]:
    """Return bytes a second of one copy into nothing, and its seconds."""
    began = time.perf_counter()
    uri = f"nbd+unix:///?socket={path}"
    command = ["nbdcopy", f"--connections={CONNECTIONS}", uri, "null:"]
    subprocess.run(command, check=True)
    seconds = time.perf_counter() - began
    return size / seconds, seconds


def read_some(path: Path, case: Case, size: int) -> tuple[float, float]:
    """Return bytes a second of random reads."""
    command = [
        "fio",
        "--name=bench",
        "--ioengine=nbd",
        f"--uri=nbd+unix:///?socket={path}",
        "--rw=randread",
        "--bs=4k",
        f"--iodepth={case.depth}",
        f"--size={size}",
        f"--runtime={case.seconds}",
        "--time_based",
        "--output-format=json",
    ]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    job = json.loads(said[said.index("{") :])["jobs"][0]
    return float(job["read"]["bw_bytes"]), case.seconds


def listens(path: Path) -> bool:
    """Whether somebody listens on a unix socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0 and bool(probe.recv(18))


@contextmanager
def process(
    command: list[str], path: Path, environment: dict[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server in the foreground while the block lasts."""
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as server:
        try:
            deadline = time.monotonic() + 20
            while not listens(path):
                if server.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"did not start: {' '.join(command)}")
                time.sleep(0.01)
            yield server
        finally:
            server.terminate()
            server.wait()
            path.unlink(missing_ok=True)


def cpu_of(pid: int) -> float:
    """CPU seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Bench:
    """A store with an image, and servers on it."""

    def __init__(self, folder: Path, size: int, stack: ExitStack) -> None:
        self.folder = folder
        self.size = size
        self.oci = stack.enter_context(LocalOciServer(folder / "oci"))
        self.environment = os.environ | self.oci.variables
        self.environment["BOOTSTREAM_CACHE_DIR"] = str(folder / "cache")
        self.environment["BOOTSTREAM_CACHE_SIZE"] = str(4 * size)
        self._bootstream = [sys.executable, "-m", "bootstream"]
        image = folder / "image"
        make_image(image, size)
        for name, form in (("raw", "raw"), ("chunked", "chunked")):
            subprocess.run(
                [*self._bootstream, "import", str(image), "-t", name, "--form", form],
                env=self.environment,
                check=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        image.unlink()
        storage = get_template_storage_provider(Settings.from_environment(self.environment))
        self._raw = max(storage.list_objects(""), key=lambda found: found.size).path

    def _url(self) -> str:
        """Return an address at which anybody may read the raw object."""
        os.environ["OCI_PYTHON_SDK_NO_SERVICE_IMPORTS"] = "true"
        import oci  # type: ignore[import-untyped,unused-ignore]  # noqa: PLC0415 - only here
        from oci.object_storage import (  # type: ignore[import-untyped,unused-ignore]  # noqa: PLC0415
            ObjectStorageClient,
        )

        client = ObjectStorageClient(
            oci.config.from_file(str(self.oci.config_file)), service_endpoint=self.oci.endpoint
        )
        request = {
            "name": "bench",
            "accessType": "ObjectRead",
            "objectName": self._raw,
            "timeExpires": (datetime.now(UTC) + timedelta(hours=1)).isoformat(),
        }
        made = client.create_preauthenticated_request(self.oci.namespace, self.oci.bucket, request)
        return f"{self.oci.endpoint}{made.data.access_uri}"

    def ours(self, template: str) -> Callable[[str], list[str]]:
        """Return the command that serves a template at a socket."""
        serve = [*self._bootstream, "serve", template, "--read-only", "--trace=off", "--socket"]
        return lambda path: [*serve, path]

    def nbdkit(self, *filters: str) -> Callable[[str], list[str]]:
        """Return the command that serves the raw object at a socket."""
        chosen = [f"--filter={name}" for name in filters]
        url = self._url()
        return lambda path: ["nbdkit", "-f", "-r", *chosen, "-U", path, "curl", url]

    def run(self, command: Callable[[str], list[str]], case: Case) -> tuple[float, float]:
        """Measure one case with nothing cached; bytes a second, and CPU seconds a GB."""
        shutil.rmtree(self.folder / "cache", ignore_errors=True)
        path = self.folder / "bench.sock"
        with process(command(str(path)), path, self.environment) as server:
            before = cpu_of(server.pid)
            rate, seconds = (
                read_some(path, case, self.size) if case.depth else read_all(path, self.size)
            )
            used = cpu_of(server.pid) - before
        return rate, used / (rate * seconds / 1e9)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", type=int, default=512, help="MiB of the image")
    parser.add_argument("--latency", type=float, default=25.0, help="milliseconds of each request")
    parser.add_argument("--rate", type=float, help="MB/s of the whole link; no limit if left out")
    parser.add_argument("--runs", type=int, default=3, help="the median of so many counts")
    parser.add_argument("--only", choices=["ours", "peers"])
    parser.add_argument("--cases", nargs="*", default=["s", "r", "1"])
    parser.add_argument("--json", action="store_true", help="print JSON to stdout")
    options = parser.parse_args()
    chosen = {"s": SEQUENTIAL, "r": RANDOM, "1": SINGLE}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        bench = Bench(Path(folder), options.size * MIB, stack)
        bench.oci.faults.add("latency", seconds=options.latency / 1000, operation="GetObject")
        servers: dict[str, Callable[[str], list[str]]] = {}
        if options.only != "peers":
            servers |= {"ours, raw": bench.ours("raw"), "ours, chunked": bench.ours("chunked")}
        if options.only != "ours":
            servers |= {
                "nbdkit curl": bench.nbdkit(),
                "nbdkit readahead": bench.nbdkit("readahead"),
            }
        results = []
        for case in (chosen[key] for key in options.cases):
            runs: dict[str, list[tuple[float, float]]] = {name: [] for name in servers}
            for _ in range(options.runs):
                for name, command in servers.items():
                    runs[name].append(bench.run(command, case))
            for name, found in runs.items():
                rate = statistics.median(one[0] for one in found)
                cost = statistics.median(one[1] for one in found)
                results.append({"case": case.name, "server": name, "rate": rate, "cpu": cost})
                print(
                    f"{case.name:<26}{name:<18}{rate / 1e6:9.2f} MB/s  {cost:7.2f} CPU s/GB",
                    file=sys.stderr,
                )
    if options.json:
        print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
