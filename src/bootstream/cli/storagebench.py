"""``storage bench``: what the bucket does for this host, at several degrees of parallelism."""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import click

from bootstream.cli.base import SIZE, json_option, verb
from bootstream.cli.context import Cli, pass_cli
from bootstream.cli.output import emit_json, human_size, table
from bootstream.errors import Throttled
from bootstream.storage.protocol import StorageProvider
from bootstream.wiring import store_address

_FOLDER = "bootstream-bench"
_SMALL = 4096
_RANGE = 64 << 10
_PARALLEL = (1, 4, 16, 32)
_ENOUGH = 0.9


@dataclass(frozen=True, slots=True)
class Figures:
    """One operation at one degree of parallelism. Times in milliseconds, sizes in bytes."""

    operation: str
    parallel: int
    calls: int
    size: int
    seconds: float
    median_ms: float
    p95_ms: float
    calls_per_second: float
    bytes_per_second: float
    throttled: int


@verb(
    "bench",
    """
    bootstream storage bench
    bootstream storage bench --seconds 10 --object-size 256M --json
    """,
)
@click.option(
    "--seconds",
    type=click.FloatRange(0.05, 600),
    default=1.5,
    show_default=True,
    help="How long each of the 16 measurements lasts.",
)
@click.option(
    "--object-size",
    type=SIZE,
    default="64M",
    show_default=True,
    help="Size of the object that ranges are read from, and of those uploaded, an eighth.",
)
@json_option
@pass_cli
def bench(cli: Cli, seconds: float, object_size: int, as_json: bool) -> None:
    """Measure the bucket from this host.

    Latency of small writes and of reads at random places, and throughput of large ones,
    by 1, 4, 16 and 32 threads, through the same stack that templates use. Suggests how
    many threads are worth it. Everything that was written is removed again; a cloud may
    charge for the requests.
    """
    object_size = max(object_size, 1 << 20)
    measured: list[Figures] = []
    with cli.job() as progress:
        runner = _Runner(cli.storage, seconds, object_size)
        progress.phase("measure", 4 * len(_PARALLEL), "measurements")
        try:
            runner.prepare()
            for parallel in _PARALLEL:
                for name in ("put", "read_at", "upload", "download"):
                    progress.advance("measure", 0)
                    measured.append(runner.measure(name, parallel))
                    progress.advance("measure", 1)
        finally:
            runner.remove()
        progress.done("measure")
    best = _suggest(measured)
    store = str(store_address(cli.settings))
    if as_json:
        emit_json({"store": store, "figures": [asdict(f) for f in measured], "parallel": best})
        return
    click.echo(f"store: {store}")
    rows = [
        (
            one.operation,
            human_size(one.size),
            str(one.parallel),
            f"{one.median_ms:.1f} ms",
            f"{one.p95_ms:.1f} ms",
            f"{one.calls_per_second:.0f}",
            f"{human_size(one.bytes_per_second)}/s",
            str(one.throttled or ""),
        )
        for one in sorted(measured, key=lambda one: one.operation != "put")
    ]
    rows.sort(key=lambda row: ("put", "read_at", "upload", "download").index(row[0]))
    headers = ("OPERATION", "SIZE>", "THREADS>", "MEDIAN>", "P95>", "CALLS/S>", "BYTES>", "SLOWED>")
    table(headers, rows)
    click.echo(f"\nworth it from this host: {best} at a time")


def _suggest(measured: list[Figures]) -> int:
    """Return the fewest threads that read nearly as fast as the best number of them."""
    reads = [one for one in measured if one.operation == "download"]
    most = max(one.bytes_per_second for one in reads)
    return min(one.parallel for one in reads if one.bytes_per_second >= _ENOUGH * most)


class _Runner:
    """Makes measurements in a folder of its own of the store."""

    def __init__(self, storage: StorageProvider, seconds: float, object_size: int) -> None:
        self._storage = storage
        self._seconds = seconds
        self._size = object_size
        self._folder = f"{_FOLDER}/{secrets.token_hex(8)}"
        self._large = storage.open_object(f"{self._folder}/large")
        # Nothing that a store could compress or find twice.
        self._bytes = os.urandom(1 << 20) * (max(object_size, 8 << 20) >> 20)
        self._part = min(8 << 20, max(object_size // 8, 1 << 20))

    def prepare(self) -> None:
        """Upload the object that is read."""
        self._large.read_from(_Bytes(memoryview(self._bytes)[: self._size]))

    def remove(self) -> None:
        """Remove everything."""
        self._storage.delete_objects_with_prefix(self._folder)

    def measure(self, name: str, parallel: int) -> Figures:
        """Call an operation from ``parallel`` threads until the time is over."""
        size, call = self._operation(name)
        times: list[list[float]] = [[] for _ in range(parallel)]
        throttled = [0] * parallel
        barrier = threading.Barrier(parallel + 1)
        deadline = 0.0

        def work(thread: int) -> None:
            barrier.wait()
            while True:
                began = time.perf_counter()
                try:
                    call(thread)
                except Throttled:
                    throttled[thread] += 1
                else:
                    times[thread].append(time.perf_counter() - began)
                if time.perf_counter() >= deadline:
                    return

        with ThreadPoolExecutor(parallel) as pool:
            jobs = [pool.submit(work, thread) for thread in range(parallel)]
            deadline = time.perf_counter() + self._seconds
            began = time.perf_counter()
            barrier.wait()
            for job in jobs:
                job.result()
            seconds = time.perf_counter() - began
        everything = sorted(one for thread in times for one in thread) or [seconds]
        calls = sum(len(thread) for thread in times)
        return Figures(
            name,
            parallel,
            calls,
            size,
            seconds,
            1e3 * everything[len(everything) // 2],
            1e3 * everything[min(len(everything) - 1, len(everything) * 95 // 100)],
            calls / seconds,
            calls * size / seconds,
            sum(throttled),
        )

    def _operation(self, name: str) -> tuple[int, Callable[[int], object]]:
        """Return the bytes of one call, and the call, which is given its thread's number."""
        part = memoryview(self._bytes)[: self._part]
        match name:
            case "put":
                small = part[:_SMALL]
                return _SMALL, lambda n: self._storage.open_object(self._name("put", n)).put(small)
            case "upload":
                return self._part, lambda n: self._storage.open_object(
                    self._name("upload", n)
                ).read_from(_Bytes(part))
        length = min(_RANGE if name == "read_at" else self._part, self._size)
        places = self._size - length + 1
        buffers: dict[int, bytearray] = {}

        def read(number: int) -> None:
            buffer = buffers.setdefault(number, bytearray(length))
            self._large.read_at(buffer, secrets.randbelow(places))

        return length, read

    def _name(self, kind: str, number: int) -> str:
        return f"{self._folder}/{kind}/{number}"


class _Bytes:
    """Memory as a source that can be rewound."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._offset = 0

    def read(self, size: int, /) -> memoryview:
        piece = self._data[self._offset : self._offset + size]
        self._offset += len(piece)
        return piece

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._offset

    def seek(self, offset: int, /) -> int:
        self._offset = offset
        return offset
