"""Many exports of one template in one server: memory, time until ready, and what idling costs.

    .venv/bin/python bench/exports.py [--exports N...] [--size MIB] [--latency MS] [--json]

The local OCI holds one template with as many tags as there are exports; every request to it waits
``--latency``. ``bootstream serve`` is started with one of the tags, and with N of them: with an
empty cache, and with the index in the cache. Each tag is two exports, the root file system and
the artifact by its name, each with an overlay of its own; with ``--read-only`` there are none.
What Python and the imports take is measured beside it, by a process that does nothing else.
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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bootstream.block.indexes import IndexCache
from bootstream.chunks.reader import load_index
from bootstream.config import Settings
from bootstream.templates.build import ROOTFS
from bootstream.templates.catalogue import Catalogue
from bootstream.testing.localoci import LocalOciServer
from bootstream.wiring import get_template_storage_provider

MIB = 1 << 20
CHUNK = 64 << 10
IDLE_SECONDS = 5.0
IMPORTS = (
    "import bootstream.__main__, bootstream.cli.serve, bootstream.block.chunked, "
    "bootstream.block.overlay, bootstream.chunks.reader, bootstream.storage.retry, "
    "bootstream.storage.oci, bootstream.clouds.oci, bootstream.templates.catalogue"
)


def make_image(path: Path, size: int) -> None:
    """Write chunks that all differ, and compress to nearly nothing."""
    with path.open("wb") as file:
        for number in range(size // CHUNK):
            file.write(b"%032d" % number + bytes(CHUNK - 32))


class Bench:
    """A store with a template, and servers on it."""

    def __init__(self, folder: Path, oci: LocalOciServer, size: int, tags: int) -> None:
        self.folder = folder
        self.cache = folder / "cache"
        self.environment = os.environ | oci.variables
        self.environment["BOOTSTREAM_CACHE_DIR"] = str(self.cache)
        self.environment["BOOTSTREAM_CACHE_SIZE"] = "4G"
        image = folder / "image"
        make_image(image, size)
        command = [sys.executable, "-m", "bootstream", "import", str(image), "-t", "many:1"]
        subprocess.run(command, env=self.environment, check=True, capture_output=True)
        image.unlink()
        self.storage = get_template_storage_provider(Settings.from_environment(self.environment))
        catalogue = Catalogue(self.storage)
        self.manifest = catalogue.resolve("many:1")
        for number in range(2, tags + 1):
            catalogue.set_tag("many", str(number), self.manifest.build_id)

    def serve(self, exports: int, options: Sequence[str], *, cold: bool) -> dict[str, float]:
        """Start a server, let it idle for a while, and end it."""
        if cold:
            shutil.rmtree(self.cache, ignore_errors=True)
        refs = [f"many:{number}" for number in range(1, exports + 1)]
        command = [sys.executable, "-m", "bootstream", "serve", *refs, "--trace", "off"]
        reader, writer = os.pipe()
        began = time.perf_counter()
        server = subprocess.Popen(
            [*command, *options, "--socket", str(self.folder / "s"), "--ready-fd", str(writer)],
            env=self.environment,
            pass_fds=[writer],
        )
        os.close(writer)
        with os.fdopen(reader, "rb") as ready:
            if ready.read(1) != b"\n":
                raise SystemExit("the server does not start")
        seconds = time.perf_counter() - began
        time.sleep(0.5)
        before = cpu_of(server.pid)
        time.sleep(IDLE_SECONDS)
        figures = {
            "ready": seconds,
            "idle_cpu": (cpu_of(server.pid) - before) / IDLE_SECONDS,
            **inside(server.pid),
        }
        began = time.perf_counter()
        server.send_signal(signal.SIGTERM)
        server.wait()
        return {**figures, "end": time.perf_counter() - began}

    def index_seconds(self) -> dict[str, float]:
        """Return how long the index alone takes, from the store and from the cache."""
        entry = self.manifest.artifact(ROOTFS)
        proof: dict[str, Any] = {"sha256": entry.index_sha256, "size": entry.index_size}
        names = (self.storage, self.manifest.build_id, ROOTFS)
        cache = IndexCache(self.folder / "indexes", 256 * MIB)
        cache.load(*names, **proof)
        return {
            "size": entry.index_size,
            "store": timed(lambda: load_index(*names, **proof)),
            "cache": timed(lambda: cache.load(*names, **proof)),
        }


def timed(call: Any) -> float:
    """Return the median of five calls in seconds."""
    taken = []
    for _ in range(5):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def cpu_of(pid: int) -> float:
    """CPU seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def inside(pid: int) -> dict[str, float]:
    """Memory of its own in bytes, threads and descriptors of a process."""
    folder = Path(f"/proc/{pid}")
    lines = (folder / "status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines)
    return {
        "memory": int(status["RssAnon"].split()[0]) << 10,
        "threads": int(status["Threads"]),
        "descriptors": len(list((folder / "fd").iterdir())),
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--exports", type=int, nargs="+", default=[100, 200])
    parser.add_argument("--size", type=int, default=1024, help="MiB of the image")
    parser.add_argument("--latency", type=float, default=25, help="ms of every request")
    parser.add_argument("--read-only", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    options = ["--read-only"] if arguments.read_only else []
    rows = []
    with (
        tempfile.TemporaryDirectory(prefix="exports-") as name,
        LocalOciServer(Path(name) / "oci") as oci,
    ):
        bench = Bench(Path(name), oci, arguments.size * MIB, max(arguments.exports))
        oci.faults.add("latency", seconds=arguments.latency / 1000)
        index = bench.index_seconds()
        start = timed(lambda: subprocess.run([sys.executable, "-c", IMPORTS], check=True))
        for exports in [1, *arguments.exports]:
            for cold in (True, False):
                runs = [bench.serve(exports, options, cold=cold) for _ in range(1 + (exports == 1))]
                rows.append({"exports": exports, "cold": cold, **runs[-1]})
    one = rows[1]["memory"]
    for row in rows[2:]:
        row["memory_each"] = (row["memory"] - one) / (row["exports"] - 1)
    if arguments.json:
        print(json.dumps({"start": start, "index": index, "rows": rows}, indent=2))
        return
    print(f"Python and imports: {start:.3f} s")
    print(
        f"the index, {index['size'] / MIB:.1f} MiB: {index['store']:.3f} s from the store, "
        f"{index['cache']:.3f} s from the cache"
    )
    for row in rows:
        each = f"{row['memory_each'] / 1e6:.2f} MB each further" if "memory_each" in row else ""
        print(
            f"{row['exports']:>4} tags, {'empty cache' if row['cold'] else 'index cached'}: ready "
            f"{row['ready']:.2f} s, end {row['end']:.2f} s, {row['memory'] / 1e6:.0f} MB {each} "
            f"{row['threads']:.0f} threads, {row['descriptors']:.0f} descriptors, "
            f"idle {row['idle_cpu'] * 100:.1f} % CPU"
        )


if __name__ == "__main__":
    main()
