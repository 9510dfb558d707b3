"""The local OCI alone: what it can give, and what it costs, with clients that cost little.

    .venv/bin/python bench/localoci.py [--seconds S] [--runs N] [--json]

One thread drives 16 connections by epoll. Requests are built and signed before the clock starts;
answers are counted, not looked at, but for status and length. ``same`` repeats one signature, as
a client does that signs once a second; ``new`` has another signature for each request. CPU is the
server's. The best of all runs; the server is the command, in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import selectors
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from bootstream.clouds.oci.signing import http_date, sign
from bootstream.testing.localoci import LocalOciServer

CONNECTIONS = 16
KIB, MIB = 1 << 10, 1 << 20
LARGE = 256 * MIB
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class Turn:
    """One connection and the request that it is at."""

    socket: socket.socket
    send: list[memoryview] = field(default_factory=list)
    left: int = -1  # bytes of the answer's body still to come; -1 before its head


@dataclass(frozen=True, slots=True)
class Figure:
    """What one case gave."""

    requests: int
    size: int
    seconds: float
    server_cpu: float
    client_cpu: float

    def as_json(self, case: str) -> dict[str, Any]:
        """Return it for machines, and for the table."""
        gigabytes = self.size / 1e9
        return {
            "case": case,
            "requests_per_second": self.requests / self.seconds,
            "mb_per_second": self.size / 1e6 / self.seconds,
            "server_us_per_request": self.server_cpu / self.requests * 1e6,
            "server_cpu_seconds_per_gb": self.server_cpu / gigabytes,
            "client_us_per_request": self.client_cpu / self.requests * 1e6,
        }


class Bench:
    """A server, and requests to it."""

    def __init__(self, server: LocalOciServer) -> None:
        self._server = server
        self._address = server.endpoint.removeprefix("http://")
        self._credentials = server.principal().credentials()
        self._base = f"/n/{server.namespace}/b/{server.bucket}"
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        self._status = Path(f"/proc/{children[0]}/stat")

    def head(self, method: str, target: str, *more: str) -> bytes:
        """Return a signed request's head."""
        date = http_date()
        signed = sign(self._credentials, method, self._address, target, date=date)
        lines = [f"{method} {target} HTTP/1.1", f"date: {date}", f"host: {self._address}"]
        lines += [f"authorization: {signed}", "accept: */*", "user-agent: bench", *more]
        return "\r\n".join([*lines, "", ""]).encode()

    def path(self, name: str) -> str:
        """Return an object's target."""
        return f"{self._base}/o/{name}"

    def create(self, name: str, size: int) -> None:
        """Store an object."""
        data = random.Random(size).randbytes(MIB) * (size // MIB)
        request = self.put_request(self.path(name), size, memoryview(data))
        self.run(iter([request]), 1e9)

    def put_request(self, target: str, size: int, data: memoryview) -> list[memoryview]:
        """Return a request with a body."""
        more = (f"content-length: {size}", "content-type: application/octet-stream")
        return [memoryview(self.head("PUT", target, *more)), data[:size]]

    def reads(self, size: int, *, new: bool, distinct: int) -> Iterator[list[memoryview]]:
        """Return endless reads of random ranges of the large object."""
        places, target = random.Random(1), self.path("large")
        heads = [
            self.head("GET", f"{target}?number={number}" if new else target)
            for number in range(distinct if new else 1)
        ]
        for number in count():
            head = heads[number % len(heads)]
            first = places.randrange(LARGE - size)
            span = f"range: bytes={first}-{first + size - 1}\r\n\r\n".encode()
            yield [memoryview(head[:-2] + span)]

    def puts(self, size: int) -> Iterator[list[memoryview]]:
        """Return endless writes, which replace 64 objects in turn."""
        data = memoryview(random.Random(2).randbytes(size))
        ready = [self.put_request(self.path(f"small/{one}"), size, data) for one in range(64)]
        for number in count():
            yield list(ready[number % len(ready)])

    def parts(self, size: int) -> Iterator[list[memoryview]]:
        """Return endless parts, which replace 64 parts of one upload in turn."""
        body = json.dumps({"object": "parts"}).encode()
        upload = json.loads(self.post(f"{self._base}/u", body))["uploadId"]
        data = memoryview(random.Random(3).randbytes(size))
        target = f"{self._base}/u/parts?uploadId={upload}&uploadPartNum="
        ready = [self.put_request(f"{target}{part}", size, data) for part in range(1, 65)]
        for number in count():
            yield list(ready[number % len(ready)])

    def post(self, target: str, body: bytes) -> bytes:
        """Send one signed request with a JSON body; return the answer's body."""
        from http.client import HTTPConnection  # noqa: PLC0415 - only here

        from bootstream.clouds.oci.signing import body_headers  # noqa: PLC0415 - only here

        date, more = http_date(), body_headers(body)
        signed = sign(
            self._credentials, "POST", self._address, target, date=date, body_headers=more
        )
        connection = HTTPConnection(self._address)
        connection.request("POST", target, body, {"date": date, "authorization": signed, **more})
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        assert answer.status == 200, text
        return text

    def cpu(self) -> float:
        """Return the server's CPU seconds until now."""
        fields = self._status.read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def run(
        self, requests: Iterator[list[memoryview]], seconds: float, body: int = 0
    ) -> tuple[Figure, int]:
        """Keep all connections busy for a while; ``body`` is what each request sends."""
        host, _, port = self._address.partition(":")
        selector = selectors.EpollSelector()
        turns = []
        for _ in range(CONNECTIONS):
            connection = socket.create_connection((host, int(port)))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setblocking(False)
            turns.append(Turn(connection))
            selector.register(connection, selectors.EVENT_READ, turns[-1])
        done = moved = busy = 0
        buffer = memoryview(bytearray(4 * MIB))
        before, own = self.cpu(), time.process_time()
        began = time.perf_counter()
        deadline = began + seconds

        def start(turn: Turn) -> bool:
            request = next(requests, None) if time.perf_counter() < deadline else None
            if request is None:
                return False
            turn.send, turn.left = request, -1
            push(turn)
            return True

        def push(turn: Turn) -> None:
            try:
                while turn.send:
                    sent = turn.socket.send(turn.send[0])
                    if sent == len(turn.send[0]):
                        del turn.send[0]
                    else:
                        turn.send[0] = turn.send[0][sent:]
            except BlockingIOError:
                selector.modify(turn.socket, selectors.EVENT_READ | selectors.EVENT_WRITE, turn)
            else:
                if len(selector.get_map()) and body:
                    selector.modify(turn.socket, selectors.EVENT_READ, turn)

        busy = sum(start(turn) for turn in turns)
        while busy:
            for key, events in selector.select():
                turn = key.data
                if events & selectors.EVENT_WRITE:
                    push(turn)
                if events & selectors.EVENT_READ:
                    taken = turn.socket.recv_into(buffer)
                    assert taken, "the server ended a connection"
                    if turn.left < 0:
                        turn.left, taken = _begin(buffer, taken)
                    turn.left -= taken
                    moved += taken
                    if not turn.left:
                        done += 1
                        moved += body
                        busy -= not start(turn)
        took = time.perf_counter() - began
        figure = Figure(done, max(moved, 1), took, self.cpu() - before, time.process_time() - own)
        for turn in turns:
            turn.socket.close()
        selector.close()
        return figure, done


def _begin(buffer: memoryview, taken: int) -> tuple[int, int]:
    """Return the length of the body whose head is in a buffer, and how much of it came too."""
    head, end, _ = bytes(buffer[: min(taken, 4096)]).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 20"), head
    assert end, "a head in pieces"
    length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
    return int(length), taken - len(head) - 4


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=1.5, help="of each case and run")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", help="cases whose names contain this")
    parser.add_argument("--folder", type=Path, help="where the server keeps its objects")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    documents = []
    with (
        tempfile.TemporaryDirectory(dir=arguments.folder) as name,
        LocalOciServer(Path(name)) as server,
    ):
        bench = Bench(server)
        bench.create("large", LARGE)
        cases: list[tuple[str, Callable[[], Iterator[list[memoryview]]], int]] = [
            ("read 4 KiB, same", lambda: bench.reads(4 * KIB, new=False, distinct=1), 0),
            ("read 4 KiB, new", lambda: bench.reads(4 * KIB, new=True, distinct=8000), 0),
            ("read 64 KiB", lambda: bench.reads(64 * KIB, new=False, distinct=1), 0),
            ("read 1 MiB", lambda: bench.reads(MIB, new=False, distinct=1), 0),
            ("read 8 MiB", lambda: bench.reads(8 * MIB, new=False, distinct=1), 0),
            ("put 4 KiB", lambda: bench.puts(4 * KIB), 4 * KIB),
            ("put 1 MiB", lambda: bench.puts(MIB), MIB),
            ("part 8 MiB", lambda: bench.parts(8 * MIB), 8 * MIB),
        ]
        if not arguments.json:
            print(
                f"{'case':<18}{'req/s':>8}{'MB/s':>7}{'server us':>11}{'s/GB':>7}{'client us':>11}"
            )
        for case, make, body in cases:
            if arguments.only and arguments.only not in case:
                continue
            best: Figure | None = None
            requests = make()
            for _ in range(arguments.runs):
                figure, _ = bench.run(requests, arguments.seconds, body)
                if best is None or figure.requests / figure.seconds > best.requests / best.seconds:
                    best = figure
            assert best is not None
            one = best.as_json(case)
            documents.append(one)
            if not arguments.json:
                print(
                    f"{case:<18}{one['requests_per_second']:>8.0f}{one['mb_per_second']:>7.0f}"
                    f"{one['server_us_per_request']:>11.0f}"
                    f"{one['server_cpu_seconds_per_gb']:>7.2f}{one['client_us_per_request']:>11.0f}",
                    flush=True,
                )
    if arguments.json:
        print(json.dumps(documents, indent=2))


if __name__ == "__main__":
    main()
