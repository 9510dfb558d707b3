"""Minutes of trouble: one export under writers and readers while everything around it is killed.

    .venv/bin/python bench/soak.py [--minutes N] [--seed N] [--json]

The local OCI holds a template; ``bootstream serve`` offers it with an overlay file and a cache
far too small for it. Against that run, all the time:

- fio, which writes a part of the export and verifies it (crc32c), at once and after restarts;
- a writer that knows what it has flushed, and reads it back whenever the server has died;
- readers that compare what was never written with the file that the template was made of.

Meanwhile server and storage are killed with SIGKILL and started again, and the storage fails,
stalls, breaks off and lies. Errors are allowed while that goes on; a wrong byte never is. In the
end all of it is read once more without trouble, and nothing may be left: no process, thread,
descriptor, socket, lease, file. Exits with 1 where something was wrong or was left.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bootstream.errors import BootstreamError
from bootstream.nbd.client import Client, connect
from bootstream.testing.localoci import LocalOciServer

MIB = 1 << 20
BLOCK = 4096
FIO_SIZE = 16 * MIB
WRITER = range(16 * MIB, 32 * MIB)
READ_ONLY = range(32 * MIB, 96 * MIB)
SIZE = READ_ONLY.stop
CACHE_SIZE = 24 * MIB
START_SECONDS = 90.0
COMMAND = [sys.executable, "-m", "bootstream"]

PACK: dict[str, Any] = {"operation": "GetObject", "object": "*.pack"}
FAULTS: list[dict[str, Any]] = [
    {"effect": "flip", "probability": 0.3, **PACK},
    {"effect": "short", "probability": 0.3, **PACK},
    {"effect": "long", "probability": 0.3, **PACK},
    {"effect": "cut", "probability": 0.3, **PACK},
    {"effect": "reset", "probability": 0.3},
    {"effect": "reset", "probability": 0.3, "after": 1000, **PACK},
    {"effect": "stall", "probability": 0.1, "seconds": 4.0, **PACK},
    {"effect": "latency", "seconds": 0.05, "jitter": 0.1},
    {"effect": "bandwidth", "rate": 2 * MIB, **PACK},
    {"effect": "status", "status": 503, "probability": 0.5},
    {"effect": "status", "status": 429, "retry_after": 1, "probability": 0.5},
    {"effect": "status", "status": 500, "late": True, "probability": 0.3},
    {"effect": "html", "status": 502, "probability": 0.3},
    {"effect": "expired", "probability": 0.2},
    {"effect": "stray", "probability": 0.1, **PACK},
]
"""Index and manifest are not lied about: a server would rightly not start."""


class Failed(Exception):
    """Something that must never be."""


class Tally:
    """What happened, counted. Thread safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []
        self.longest = 0.0

    def add(self, what: str, count: int = 1) -> None:
        """Count something."""
        with self._lock:
            self.counts[what] += count

    def took(self, seconds: float) -> None:
        """Note how long a request took, whatever came of it."""
        with self._lock:
            self.longest = max(self.longest, seconds)

    def wrong(self, text: str) -> None:
        """Note what must never be."""
        with self._lock:
            self.problems.append(text)
        print(f"WRONG: {text}", file=sys.stderr, flush=True)


def inside(pid: int) -> tuple[int, int, int]:
    """Return descriptors, threads and resident bytes of a process."""
    folder = Path(f"/proc/{pid}")
    status = dict(
        line.split(":", 1) for line in (folder / "status").read_text().splitlines() if ":" in line
    )
    descriptors = len(list((folder / "fd").iterdir()))
    return descriptors, int(status["Threads"]), int(status["VmRSS"].split()[0]) << 10


class Host:
    """The storage and the server, both of which may die at any moment and come back."""

    def __init__(self, folder: Path, tally: Tally) -> None:
        self.folder = folder
        self.tally = tally
        self.socket = folder / "run" / "nbd"
        self.uri = f"nbd+unix:///?socket={self.socket}"
        self.overlay = folder / "overlays" / "kept"
        for path in (self.socket, self.overlay):
            path.parent.mkdir()
        self.oci = LocalOciServer(folder / "oci").__enter__()
        self._port = int(self.oci.endpoint.rpartition(":")[2])
        self.environment = os.environ | self.oci.variables
        self.environment["BOOTSTREAM_CACHE_DIR"] = str(folder / "cache")
        self.environment["BOOTSTREAM_CACHE_SIZE"] = str(CACHE_SIZE)
        self.environment["NODE_ID"] = "soak"
        self.log = (folder / "serve.log").open("ab")
        self.server: subprocess.Popen[bytes] | None = None

    def run(self, *arguments: str | Path) -> str:
        """Run a verb to its good end."""
        result = subprocess.run(
            [*COMMAND, *map(str, arguments)],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=START_SECONDS,
        )
        if result.returncode:
            raise Failed(f"bootstream {arguments} ended with {result.returncode}: {result.stderr}")
        return result.stdout

    def start_server(self) -> None:
        """Start it, again and again while the storage does not let it."""
        deadline = time.monotonic() + START_SECONDS
        options = ["serve", "soak", "--socket", str(self.socket), "--overlay", str(self.overlay)]
        while True:
            reader, writer = os.pipe()
            self.server = subprocess.Popen(
                [*COMMAND, *options, "--ready-fd", str(writer)],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=self.log,
                stderr=self.log,
                pass_fds=[writer],
            )
            os.close(writer)
            with os.fdopen(reader, "rb") as ready:
                if ready.read(1) == b"\n":
                    self.tally.add("server started")
                    return
            self.server.wait()
            self.tally.add("server did not start")
            if time.monotonic() > deadline:
                raise Failed("the server does not start any more")
            time.sleep(0.2)

    def kill_server(self) -> None:
        """End it as a crash does."""
        assert self.server is not None
        code = self.server.poll()
        if code is not None:
            self.tally.wrong(f"the server ended by itself with {code}")
        self.server.kill()
        self.server.wait()

    def stop_server(self) -> None:
        """End it as its operator does."""
        assert self.server is not None
        self.server.send_signal(signal.SIGTERM)
        code = self.server.wait(START_SECONDS)
        if code:
            self.tally.wrong(f"the server ended with {code} when asked to end")

    def restart_storage(self, pause: float) -> None:
        """Kill the storage, and start it again after ``pause`` seconds at the same port."""
        self.oci.kill()
        time.sleep(pause)
        self.oci = LocalOciServer(self.folder / "oci", port=self._port).__enter__()


class Work(threading.Thread):
    """One kind of load, round by round until it is told to stop. Errors end a round."""

    def __init__(self, host: Host, seed: int) -> None:
        super().__init__(name=type(self).__name__)
        self.host = host
        self.tally = host.tally
        self.random = random.Random(f"{seed} {self.name}")
        self.stopping = threading.Event()

    def run(self) -> None:
        """Work until told to stop."""
        while not self.stopping.is_set():
            try:
                self.round()
            except BootstreamError as error:
                self.tally.add(f"{self.name}: {type(error).__name__}")
                self.stopping.wait(0.1)
            except Exception as error:  # noqa: BLE001 - it is told, and makes the run a failure
                self.tally.wrong(f"{self.name}: {error!r}")
                return

    def timed(self, call: Callable[..., None], *arguments: Any) -> None:
        """Call, and note how long it took."""
        began = time.monotonic()
        try:
            call(*arguments)
        finally:
            self.tally.took(time.monotonic() - began)

    def round(self) -> None:
        """Do some work."""
        raise NotImplementedError


class Reader(Work):
    """Compares what nobody writes with the image."""

    def __init__(self, host: Host, seed: int, image: bytes) -> None:
        super().__init__(host, seed)
        self._image = image

    def round(self) -> None:
        """Read in order or at random, on one connection."""
        with connect(self.host.uri) as client:
            at = self.random.choice(range(READ_ONLY.start, READ_ONLY.stop - MIB, 512))
            in_order = self.random.random() < 0.3
            for _ in range(50):
                length = self.random.choice([512, 4096, 65536, 300_000, MIB])
                if not in_order or at + length > READ_ONLY.stop:
                    at = self.random.choice(range(READ_ONLY.start, READ_ONLY.stop - MIB, 512))
                buffer = bytearray(length)
                self.timed(client.read_into, memoryview(buffer), at)
                if buffer != self._image[at : at + length]:
                    self.tally.wrong(f"{length} bytes at {at} are not those of the image")
                self.tally.add("bytes compared", length)
                at += length
                if self.stopping.is_set():
                    return


class Writer(Work):
    """Writes numbered blocks, flushes, and knows what has to be there after a crash."""

    def __init__(self, host: Host, seed: int, image: bytes) -> None:
        super().__init__(host, seed)
        self._image = image
        self._durable: dict[int, int] = {}
        self._since: dict[int, list[int]] = {}
        self._version = 0

    def content(self, block: int, version: int) -> bytes:
        """What a block holds in a version; 0 is the image."""
        if version == 0:
            return self._image[block * BLOCK : (block + 1) * BLOCK]
        return hashlib.sha256(b"%d %d" % (block, version)).digest() * (BLOCK // 32)

    def round(self) -> None:
        """See what is there, then write and flush until something fails."""
        with connect(self.host.uri) as client:
            self._recover(client)
            blocks = range(WRITER.start // BLOCK, WRITER.stop // BLOCK)
            for _ in range(20):
                for _ in range(self.random.randrange(1, 40)):
                    first = self.random.choice(blocks)
                    count = min(self.random.randrange(1, 17), blocks.stop - first)
                    self._version += 1
                    written = range(first, first + count)
                    for block in written:
                        self._since.setdefault(block, []).append(self._version)
                    data = b"".join(self.content(block, self._version) for block in written)
                    self.timed(client.write, memoryview(data), first * BLOCK)
                    self._check(client, self.random.choice(blocks))
                self.timed(client.flush)
                self.tally.add("flushes")
                self._durable.update((block, seen[-1]) for block, seen in self._since.items())
                self._since.clear()
                if self.stopping.is_set():
                    return

    def _check(self, client: Client, block: int) -> None:
        """While the server lives, what was written last is what is read."""
        seen = self._since.get(block)
        expected = seen[-1] if seen else self._durable.get(block, 0)
        buffer = bytearray(BLOCK)
        self.timed(client.read_into, memoryview(buffer), block * BLOCK)
        if buffer != self.content(block, expected):
            self.tally.wrong(f"block {block} is not as it was written, version {expected}")
        self.tally.add("bytes compared", BLOCK)

    def _recover(self, client: Client) -> None:
        """After a failure a block is as it was flushed, or as it was written since."""
        for block, seen in list(self._since.items()):
            buffer = bytearray(BLOCK)
            self.timed(client.read_into, memoryview(buffer), block * BLOCK)
            allowed = [self._durable.get(block, 0), *seen]
            found = [version for version in allowed if buffer == self.content(block, version)]
            if not found:
                self.tally.wrong(f"block {block} is none of the versions {allowed}")
            else:
                self._durable[block] = found[0]
            del self._since[block]
        self.tally.add("recoveries")

    def check_all(self) -> None:
        """Compare every block, without trouble."""
        with connect(self.host.uri) as client:
            self._recover(client)
            for block in range(WRITER.start // BLOCK, WRITER.stop // BLOCK):
                self._check(client, block)


class Fio(Work):
    """fio's own verification, at once, and once more when the server may have died since."""

    def __init__(self, host: Host, seed: int) -> None:
        super().__init__(host, seed)
        self._good: int | None = None

    def round(self) -> None:
        """Verify what an earlier round wrote, and write anew."""
        if self._good is not None:
            self._fio(self._good, "--verify_only")
        if self._good is None or self.random.random() < 0.5:
            self._good = None
            seed = self.random.randrange(1 << 31)
            if self._fio(seed, "--do_verify=1", "--end_fsync=1"):
                self._good = seed
        self.stopping.wait(0.2)

    def check(self) -> None:
        """Verify without trouble."""
        if self._good is not None and not self._fio(self._good, "--verify_only"):
            self.tally.wrong("fio could not verify though nothing was in its way")

    def _fio(self, seed: int, *more: str) -> bool:
        options = ["--ioengine=nbd", f"--uri={self.host.uri}", f"--size={FIO_SIZE}"]
        options += ["--rw=randwrite", "--bsrange=4k-64k", "--iodepth=16", f"--randseed={seed}"]
        options += ["--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0"]
        result = subprocess.run(
            ["fio", "--name=soak", *options, *more],
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
            cwd=self.host.folder / "fio",
        )
        said = result.stdout + result.stderr
        if "verify failed" in said or "bad magic" in said or "bad header" in said:
            self.tally.wrong(f"fio: {said[:2000]}")
        self.tally.add("fio: verified" if result.returncode == 0 else "fio: broke off")
        return result.returncode == 0


def trouble(host: Host, until: float, seed: int, tally: Tally) -> None:
    """Kill and break, one thing after the other, until it is time."""
    places = random.Random(seed)
    while time.monotonic() < until and not tally.problems:
        time.sleep(places.uniform(1, 6))
        kind = places.random()
        if kind < 0.35:
            host.kill_server()
            host.start_server()
        elif kind < 0.55:
            host.restart_storage(places.uniform(0, 3))
            tally.add("storage restarted")
        else:
            chosen = places.sample(FAULTS, places.choice([1, 1, 2]))
            for fault in chosen:
                host.oci.faults.add(**fault, seed=places.randrange(1 << 30))
            time.sleep(places.uniform(1, 6))
            tally.add("faults", sum(rule["hits"] for rule in host.oci.faults.rules()))
            host.oci.faults.clear()


def settled(pid: int) -> tuple[int, int, int]:
    """Return what ``inside`` does once threads without work have gone."""
    before = inside(pid)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        time.sleep(6)
        now = inside(pid)
        if now[:2] == before[:2]:
            break
        before = now
    return before


def check_process(host: Host, readers: Sequence[Reader], tally: Tally) -> dict[str, int]:
    """Two hundred clients come and go: the server is afterwards what it was before."""
    assert host.server is not None
    before = settled(host.server.pid)
    for number in range(200):
        with connect(host.uri) as client:
            client.read_views(READ_ONLY[number * 4096], BLOCK)
    for reader in readers:
        reader.stopping.clear()
        reader.round()
    after = settled(host.server.pid)
    # Segments of the cache are opened and let go all the time, two descriptors each.
    segments = 4 * CACHE_SIZE // MIB
    if after[1] > before[1] or after[0] > before[0] + segments:
        tally.wrong(f"descriptors, threads, bytes were {before} and are {after}")
    return {"descriptors": after[0], "threads": after[1], "resident": after[2]}


def check_rest(host: Host, tally: Tally) -> None:
    """Nothing is left but what is meant to stay."""
    host.run("gc", "--older-than", "0s")
    left = [str(path) for path in host.socket.parent.iterdir()]
    left += [str(path) for path in host.overlay.parent.iterdir() if path != host.overlay]
    cache = host.folder / "cache"
    left += [str(path) for path in cache.rglob("*.new")]
    left += [str(path) for path in (cache / "overlays").glob("*")]
    left += [name for name in host.run("storage", "ls").split() if "leases/" in name]
    for path in left:
        tally.wrong(f"left behind: {path}")
    used = sum(path.stat().st_blocks * 512 for path in cache.rglob("*.seg"))
    if used > CACHE_SIZE:
        tally.wrong(f"the cache has {used} bytes, more than {CACHE_SIZE}")


def children() -> list[str]:
    """Return what processes of ours are left."""
    listed = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ") for pid in listed]


def soak(folder: Path, minutes: float, seed: int) -> tuple[Tally, dict[str, int]]:
    """Run all of it; return what happened, and what the server was at the end."""
    tally = Tally()
    (folder / "fio").mkdir()
    image = random.Random(seed).randbytes(SIZE)
    (folder / "image").write_bytes(image)
    host = Host(folder, tally)
    try:
        host.run("import", folder / "image", "-t", "soak")
        host.start_server()
        readers = [Reader(host, seed + number, image) for number in range(2)]
        writer, fio = Writer(host, seed, image), Fio(host, seed)
        work: list[Work] = [*readers, writer, fio]
        for one in work:
            one.start()
        trouble(host, time.monotonic() + 60 * minutes, seed, tally)
        for one in work:
            one.stopping.set()
        for one in work:
            one.join()
        figures = check_process(host, readers, tally)
        for _ in range(2):  # as it is, and as the next server finds it
            writer.check_all()
            fio.check()
            with connect(host.uri) as client:
                for at in range(READ_ONLY.start, READ_ONLY.stop, MIB):
                    if bytes(client.read_views(at, MIB)[0]) != image[at : at + MIB]:
                        tally.wrong(f"the MiB at {at} is not the image's")
            host.stop_server()
            host.start_server()
        host.stop_server()
        check_rest(host, tally)
    finally:
        if host.server is not None:
            host.server.kill()
            host.server.wait()
        host.oci.close()
        host.log.close()
    for command in children():
        tally.wrong(f"a process is left: {command}")
    return tally, figures


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        tally, figures = soak(Path(folder), arguments.minutes, arguments.seed)
        if tally.problems:
            print((Path(folder) / "serve.log").read_text()[-4000:], file=sys.stderr)
    result = {
        "minutes": arguments.minutes,
        "seed": arguments.seed,
        "problems": tally.problems,
        "longest_request_seconds": round(tally.longest, 2),
        "server": figures,
        "counts": dict(sorted(tally.counts.items())),
    }
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        for name, value in tally.counts.items():
            print(f"{name:<40} {value:>14,}")
        print(f"longest request {tally.longest:.2f} s; the server at the end: {figures}")
        print("nothing was wrong" if not tally.problems else f"WRONG: {len(tally.problems)}")
    sys.exit(bool(tally.problems))


if __name__ == "__main__":
    main()
