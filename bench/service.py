"""What the services answer in a second, and how long a sandbox takes.

    .venv/bin/python bench/service.py [--seconds N] [--sandboxes N] [--json]

``status``: requests for a build's state, over so many connections that stay open, while a build
runs and its events are followed; the service is kept to one core, the client to another. The
service's CPU-seconds say how many it could answer if it had the core for itself. ``gap``: the
longest time between two events that a second, unloaded run and this one had.
``sandboxes``: made and deleted in a loop, so many there at a time, the cache warm; seconds from
request to answer, and what the service holds afterwards.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import subprocess
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bootstream.client import OrchestratorClient, TemplateManagerClient
from bootstream.testing.images import LayerBuilder, write_layout
from bootstream.testing.registry import DockerRegistry
from bootstream.testing.services import ServiceProcess

CONNECTIONS = 8
AT_ONCE = 50
TICKS = os.sysconf("SC_CLK_TCK")


def cpu_of(pid: int) -> float:
    """CPU-seconds of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def holds(pid: int) -> dict[str, int]:
    """Memory, descriptors and threads of a process."""
    process = Path(f"/proc/{pid}")
    memory = next(
        line for line in (process / "status").read_text().splitlines() if line.startswith("VmRSS")
    )
    return {
        "memory": int(memory.split()[1]) * 1024,
        "descriptors": len(list((process / "fd").iterdir())),
        "threads": len(list((process / "task").iterdir())),
    }


def percentile(values: list[float], share: float) -> float:
    """The value that so many are not above."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def ask_again_and_again(url: str, path: str, until: float, times: list[float]) -> None:
    """One connection: a request, its answer, the next."""
    import http.client  # noqa: PLC0415 - for this alone

    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port)
    while time.perf_counter() < until:
        began = time.perf_counter()
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        if answer.status != 200:
            raise RuntimeError(f"answered {answer.status}")
        times.append(time.perf_counter() - began)
    connection.close()


def push_image(folder: Path, host: str) -> str:
    """Put 200 MiB that do not compress into a registry."""
    data = random.Random(1).randbytes(40 << 20)
    layers = [LayerBuilder().file(f"data{n}", data[n:] + data[:n]).finish() for n in range(5)]
    write_layout(folder / "image", layers, tag="a")
    subprocess.run(
        [
            *("skopeo", "copy", "--quiet", "--dest-tls-verify=false"),
            *(f"oci:{folder / 'image'}:a", f"docker://{host}/bench/image:1"),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return f"{host}/bench/image:1"


def measure_status(folder: Path, seconds: float) -> dict[str, Any]:
    """Requests a second while a build runs and is followed."""
    with ExitStack() as stack:
        registry = stack.enter_context(DockerRegistry(folder / "registry"))
        image = push_image(folder, registry.host)
        environment = {
            "BOOTSTREAM_ALLOWED_HOSTS": registry.host,
            "BOOTSTREAM_UPLOAD_RATE": f"{int((200 << 20) / (seconds + 5))}",
        }
        service = stack.enter_context(
            ServiceProcess("template-manager", folder / "manager", environment=environment)
        )
        os.sched_setaffinity(service.process_id, {0})
        client = stack.enter_context(TemplateManagerClient(service.url))
        build = client.start_build("bench", image=image, plain_http=True)
        arrivals: list[float] = []

        def follow() -> None:
            for _ in client.events("bench", build.build_id):
                arrivals.append(time.perf_counter())

        follower = threading.Thread(target=follow)
        follower.start()
        time.sleep(3)
        quiet = max(b - a for a, b in zip(arrivals[-4:-1], arrivals[-3:], strict=True))
        times: list[float] = []
        path = f"/v1/templates/bench/builds/{build.build_id}"
        before, began = cpu_of(service.process_id), time.perf_counter()
        until = began + seconds
        threads = [
            threading.Thread(target=ask_again_and_again, args=(service.url, path, until, times))
            for _ in range(CONNECTIONS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        took = time.perf_counter() - began
        used = cpu_of(service.process_id) - before
        loaded = [moment for moment in arrivals if moment >= began]
        result = {
            "requests_per_second": round(len(times) / took),
            "requests_per_cpu_second": round(len(times) / used),
            "p50_ms": round(1e3 * percentile(times, 0.5), 2),
            "p99_ms": round(1e3 * percentile(times, 0.99), 2),
            "events_under_load": len(loaded),
            "gap_quiet_ms": round(1e3 * quiet),
            "gap_loaded_ms": round(
                1e3 * max((b - a for a, b in itertools.pairwise(loaded)), default=0)
            ),
            "state": client.get_build("bench", build.build_id).state,
        }
        follower.join()
        return result


def measure_sandboxes(folder: Path, count: int) -> dict[str, Any]:
    """Seconds to make and to delete a sandbox, and what is held after many."""
    with ExitStack() as stack:
        runtime = stack.enter_context(tempfile.TemporaryDirectory(prefix="bs-"))
        service = ServiceProcess(
            "orchestrator", folder / "host", environment={"BOOTSTREAM_RUNTIME_DIR": runtime}
        )
        disk = folder / "disk.raw"
        disk.write_bytes(random.Random(2).randbytes(64 << 20))
        service.cli.ok("import", disk, "-t", "disk")
        stack.enter_context(service)
        client = stack.enter_context(OrchestratorClient(service.url))
        names = [client.create("disk").sandbox_id for _ in range(AT_ONCE)]
        warm = holds(service.process_id)
        made: list[float] = []
        deleted: list[float] = []
        for _ in range(count):
            began = time.perf_counter()
            client.delete(names.pop(0))
            middle = time.perf_counter()
            names.append(client.create("disk").sandbox_id)
            deleted.append(middle - began)
            made.append(time.perf_counter() - middle)
        after = holds(service.process_id)
        return {
            "at_once": AT_ONCE,
            "count": count,
            "create_p50_ms": round(1e3 * percentile(made, 0.5), 2),
            "create_p99_ms": round(1e3 * percentile(made, 0.99), 2),
            "delete_p99_ms": round(1e3 * percentile(deleted, 0.99), 2),
            "held_warm": warm,
            "held_after": after,
            "folders": len(list((service.state / "sandboxes").iterdir())),
        }


def main() -> None:
    """Measure both and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--sandboxes", type=int, default=1000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result = {
            "status": measure_status(folder, options.seconds),
            "sandboxes": measure_sandboxes(folder, options.sandboxes),
        }
    if options.json:
        print(json.dumps(result))
        return
    for title, figures in result.items():
        print(title)
        for key, value in figures.items():
            print(f"  {key:<26}{value}")


if __name__ == "__main__":
    main()
