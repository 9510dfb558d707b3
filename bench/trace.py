"""A cold boot with a trace and without one, out of an object store some milliseconds away.

    .venv/bin/python bench/trace.py [--latency MS] [--runs N] [--images FOLDER] [--report FILE]

The local OCI holds a Debian root file system, and every read of it waits before it is answered.
A boot is played by one reader: it looks up and reads programs, libraries and data of the image
one after another, through ``bootstream serve`` with an empty cache, each block once, as the
guest's page cache would. The first one has no trace and leaves one; the others have it. The
time counts from the moment when the server listens: no reader is given a head start.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import stat
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bootstream.nbd.client import Client, connect
from bootstream.rootfs.ext4.reader import Ext4FileSystem
from bootstream.testing.debian import debian_layout
from bootstream.testing.localoci import LocalOciServer

WANTED = (
    "/bin/sh", "/bin/bash", "/usr/bin/perl", "/etc/passwd", "/etc/group", "/etc/nsswitch.conf",
    "/etc/ld.so.cache", "/usr/bin/dpkg", "/usr/bin/apt", "/var/lib/dpkg/status",
    "/usr/bin/ls", "/usr/bin/cp", "/usr/bin/grep", "/usr/bin/sed", "/usr/bin/find",
    "/usr/bin/sort", "/usr/bin/tar", "/usr/bin/gzip", "/usr/sbin/useradd", "/usr/bin/login",
)  # fmt: skip
FOLDERS = ("/etc", "/usr/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu/perl-base")
MOST_OF_A_FILE = 1 << 20


class Guest:
    """Reads blocks of an export, each once, 16 KiB at a time."""

    block = 16 << 10

    def __init__(self, client: Client) -> None:
        self._client = client
        self._blocks: dict[int, bytes] = {}

    def read_at(self, view: memoryview, offset: int) -> None:
        """Fill ``view``, from what was read before where possible."""
        end = offset + len(view)
        at = offset
        while at < end:
            number = at // self.block
            if number not in self._blocks:
                start = number * self.block
                data = bytearray(min(self.block, self._client.size - start))
                self._client.read_into(memoryview(data), start)
                self._blocks[number] = bytes(data)
            skip = at - number * self.block
            length = min(end - at, self.block - skip)
            view[at - offset : at - offset + length] = self._blocks[number][skip : skip + length]
            at += length


def boot(uri: str) -> tuple[float, int]:
    """Play a boot; return its seconds, and the bytes of files that were read."""
    began = time.perf_counter()
    size = 0
    with connect(uri) as client:
        system = Ext4FileSystem(Guest(client).read_at, client.size)
        paths = [path.encode() for path in WANTED]
        for folder in FOLDERS:
            names = sorted(system.listdir(folder.encode()))
            paths += [folder.encode() + b"/" + name for name in names[::4]]
        for path in paths:
            try:
                if not stat.S_ISREG(system.stat(path).mode):
                    continue
            except Exception:  # noqa: BLE001 - a link to nowhere: not every image has all
                continue
            with system.open(path) as file:
                size += len(file.read(MOST_OF_A_FILE))
    return time.perf_counter() - began, size


def run(environment: dict[str, str], folder: Path, name: str, *options: str) -> dict[str, Any]:
    """Boot once with nothing cached; return the server's figures, and the seconds."""
    shutil.rmtree(folder / "cache", ignore_errors=True)
    path = folder / f"{name}.json"
    command = [
        sys.executable, "-m", "bootstream", "serve", "debian", "--read-only",
        "--socket", str(folder / "s"), "--stats", str(path), *options,
    ]  # fmt: skip
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        uri = server.stdout.readline().strip()
        seconds, size = boot(uri)
        server.send_signal(signal.SIGTERM)
        server.wait()
    device: dict[str, Any] = json.loads(path.read_text())["devices"][0]
    return {"seconds": seconds, "files": size, **device["counters"]}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--latency", type=float, default=25.0, help="milliseconds of each read")
    parser.add_argument("--runs", type=int, default=3, help="the median of so many counts")
    parser.add_argument(
        "--images", type=Path, default=Path(tempfile.gettempdir()) / "bootstream-test-images"
    )
    parser.add_argument("--report", type=Path, help="also write the page that compares two")
    options = parser.parse_args()
    layout = debian_layout(options.images)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        oci = stack.enter_context(LocalOciServer(folder / "oci"))
        environment = os.environ | oci.variables
        environment["BOOTSTREAM_CACHE_DIR"] = str(folder / "cache")
        bootstream = [sys.executable, "-m", "bootstream"]
        build = [*bootstream, "build", f"oci:{layout}:bookworm", "-t", "debian", "-q"]
        subprocess.run(build, env=environment, check=True, stdout=subprocess.DEVNULL)
        oci.faults.add("latency", seconds=options.latency / 1000, operation="GetObject")
        run(environment, folder, "record")
        cases = {"without a trace": ("--trace=off",), "with a trace": ()}
        runs: dict[str, list[dict[str, Any]]] = {case: [] for case in cases}
        for _ in range(options.runs):
            for case, more in cases.items():
                runs[case].append(run(environment, folder, case.split()[0], *more))
        for case, found in runs.items():
            middle = {key: statistics.median(one[key] for one in found) for key in found[0]}
            print(
                f"{case:<18}{middle['seconds']:7.2f} s  {middle['waits']:5.0f} waits of "
                f"{middle['wait_ms'] / 1000:.2f} s together (longest "
                f"{middle['wait_max_ms']:.0f} ms), {middle['requests']:.0f} requests on demand, "
                f"{middle['prefetches']:.0f} ahead; {middle['touched_bytes'] / 1e6:.1f} MB asked, "
                f"{middle['fetched_bytes'] / 1e6:.1f} MB fetched, "
                f"{middle['wasted_bytes'] / 1e6:.1f} MB wasted"
            )
        if options.report:
            files = [str(folder / "without.json"), str(folder / "with.json")]
            command = [*bootstream, "report", *files, "-o", str(options.report)]
            subprocess.run(command, env=environment, check=True)


if __name__ == "__main__":
    main()
