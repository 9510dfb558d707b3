"""A cold boot to its first useful output: a Debian VM whose root is behind a slow link.

    .venv/bin/python bench/boot.py [--latency MS] [--rate MB/S] [--runs N] [--json]

The local OCI holds a template of Debian with Python, behind one link that all connections share.
Each run starts QEMU with the root over a unix socket, and is timed to the first line of a Python
program in the guest:

- *local file*: ``nbdkit file`` on the raw image, in the page cache: as fast as it could be;
- *ours, cold*: ``bootstream serve`` with an empty cache, nothing known of earlier boots;
- *ours, trace*: the same, replaying the trace that the first boot left;
- *download*: ``bootstream export`` through the same link, then as *local file*.

Runs take turns; medians. Bytes are what the guest's reads fetched, of the image's size.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from link import Link

from bootstream.testing.localoci import LocalOciServer
from bootstream.testing.vm import guest_layout, kernel_folder

BOOTSTREAM = [sys.executable, "-m", "bootstream"]
PROGRAM = "python3 -c 'import json, email, urllib.request; print(\"ready\", flush=True)'"


class Bench:
    """A template behind a link, and ways to boot it."""

    def __init__(
        self, folder: Path, images: Path, rate: float, latency: float, stack: ExitStack
    ) -> None:
        self.folder = folder
        self.kernel = kernel_folder(images)
        oci = stack.enter_context(LocalOciServer(folder / "oci"))
        self.environment = os.environ | oci.variables
        self.environment["BOOTSTREAM_CACHE_DIR"] = str(folder / "cache")
        layout = f"oci:{guest_layout(images)}:bookworm"
        self.run("build", layout, "-t", "guest")
        self.image = folder / "guest.img"
        self.run("export", "guest", str(self.image))
        target = oci.endpoint.partition("://")[2]
        link = stack.enter_context(Link(target, rate=rate, latency=latency))
        self.environment["OCI_OBJECT_STORAGE_ENDPOINT"] = f"http://127.0.0.1:{link.port}"
        self.run("boot", "guest", "--kernel", str(self.kernel), "--cmd", "true")  # KVM, once

    def run(self, *arguments: str) -> str:
        """Run a verb."""
        done = subprocess.run(
            [*BOOTSTREAM, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"bootstream {arguments}: {done.stderr[-2000:]}")
        return done.stdout

    @contextmanager
    def server(self, command: list[str], path: Path) -> Iterator[None]:
        """Run a server of a socket while the block lasts."""
        with subprocess.Popen(
            command, env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            try:
                deadline = time.monotonic() + 30
                while not path.exists():
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise SystemExit(f"did not start: {command}")
                    time.sleep(0.005)
                yield
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait()
                path.unlink(missing_ok=True)

    def guest(self, path: Path) -> None:
        """Boot the root behind a socket to the program's line."""
        command = ["boot", f"nbd+unix:///?socket={path}", "--kernel", str(self.kernel)]
        with subprocess.Popen(
            [*BOOTSTREAM, *command, "--cmd", PROGRAM, "--time-limit", "120s"],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
            text=True,
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if "ready" in line:
                    self.ready = time.perf_counter()
            process.wait()
            if process.returncode:
                raise SystemExit(f"the guest ended with {process.returncode}")

    def local(self) -> float:
        """Return the seconds of a boot from a local file."""
        path = self.folder / "local.sock"
        began = time.perf_counter()
        with self.server(["nbdkit", "-f", "-U", str(path), "file", str(self.image)], path):
            self.guest(path)
        return self.ready - began

    def ours(self, trace: str) -> tuple[float, dict[str, Any]]:
        """Return the seconds of a boot with nothing cached, and its statistics."""
        shutil.rmtree(self.folder / "cache" / "node", ignore_errors=True)
        path, stats = self.folder / "ours.sock", self.folder / "stats.json"
        command = ["serve", "guest", "--socket", str(path), "--trace", trace]
        began = time.perf_counter()
        with self.server([*BOOTSTREAM, *command, "--stats", str(stats)], path):
            self.guest(path)
        return self.ready - began, json.loads(stats.read_text())["devices"][0]

    def download(self) -> float:
        """Return the seconds of a download and a boot of it."""
        copy = self.folder / "copy.img"
        copy.unlink(missing_ok=True)
        began = time.perf_counter()
        self.run("export", "guest", str(copy))
        path = self.folder / "copy.sock"
        with self.server(["nbdkit", "-f", "-U", str(path), "file", str(copy)], path):
            self.guest(path)
        return self.ready - began


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--latency", type=float, default=25.0, help="milliseconds of a round trip")
    parser.add_argument("--rate", type=float, default=100.0, help="MB/s of the link")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where files and servers live, for a while")
    parser.add_argument(
        "--images",
        type=Path,
        default=Path(os.environ.get("BOOTSTREAM_TEST_IMAGES", ".venv/test-images")).absolute(),
        help="where kernel and guest are kept",
    )
    parser.add_argument("--json", action="store_true", help="print JSON to stdout")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name, ExitStack() as stack:
        bench = Bench(Path(name), options.images, options.rate * 1e6, options.latency / 1000, stack)
        size = bench.image.stat().st_blocks * 512
        times: dict[str, list[float]] = {}
        devices: dict[str, dict[str, Any]] = {}
        bench.ours("record")
        for _ in range(options.runs):
            times.setdefault("local file", []).append(bench.local())
            for name_, trace in (("ours, cold", "off"), ("ours, trace", "auto")):
                seconds, devices[name_] = bench.ours(trace)
                times.setdefault(name_, []).append(seconds)
            times.setdefault("download", []).append(bench.download())
    local = statistics.median(times["local file"])
    results = []
    for name_, found in times.items():
        seconds = statistics.median(found)
        counters = devices.get(name_, {}).get("counters", {})
        result = {"case": name_, "seconds": seconds, "of_local": seconds / local} | {
            key: counters[key]
            for key in ("fetched_bytes", "stored_bytes", "requests", "prefetches", "waits")
            if key in counters
        }
        results.append(result)
        text = f"{name_:<14}{seconds:7.2f} s  {seconds / local:5.2f} of local file"
        if counters:
            text += (
                f"   {counters['fetched_bytes'] / 1e6:6.1f} MB of {size / 1e6:.0f} "
                f"({counters['fetched_bytes'] / size:.1%}), {counters['requests']} requests that "
                f"were waited for, {counters['prefetches']} others, {counters['waits']} waits"
            )
        print(text, file=sys.stderr)
    if options.json:
        print(json.dumps({"image_bytes": size, "results": results}, indent=2))


if __name__ == "__main__":
    main()
