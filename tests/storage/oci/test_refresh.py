"""Tokens of an instance that end every other second, under 16 threads that never rest."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path

from bootstream.storage.oci import OCIBucketStorageProvider
from bootstream.testing.localoci import LocalOciServer

DATA = random.Random(4).randbytes(1 << 20)
_RENEWALS = 3
_LONGEST = 20.0


def test_no_request_fails_over_three_renewals(tmp_path: Path) -> None:
    """There is no retry wrapper here: whatever a renewal broke would be raised."""
    with LocalOciServer(tmp_path, token_lifetime=2) as oci:
        principal = oci.principal("instance_principal")
        provider = OCIBucketStorageProvider(
            oci.bucket, namespace=None, principal=principal, endpoint=oci.endpoint
        )
        provider.open_object("data").put(DATA)
        oci.take_requests()
        enough = threading.Event()
        deadline = time.monotonic() + _LONGEST

        def work(number: int) -> int:
            rng = random.Random(number)
            name, buffer, count = f"own/{number}", bytearray(4096), 0
            while not enough.is_set():
                offset = rng.randrange(len(DATA) - len(buffer))
                assert provider.open_object("data").read_at(buffer, offset) == len(buffer)
                assert buffer == DATA[offset : offset + len(buffer)]
                if count % 8 == number % 8:
                    etag = provider.open_object(name).put(buffer)
                    assert provider.open_object(name).stat().etag == etag
                if number == 0 and count % 25 == 0:
                    renewals = oci.administer("GET", "requests").get("Federation", 0)
                    if renewals >= _RENEWALS or time.monotonic() > deadline:
                        enough.set()
                count += 1
            return count

        try:
            with ThreadPoolExecutor(16) as pool:
                futures = [pool.submit(work, number) for number in range(16)]
                wait(futures, return_when=FIRST_EXCEPTION)
                enough.set()
                counts = [future.result() for future in futures]
            requests = oci.take_requests()
        finally:
            provider.close()
    assert requests["Federation"] >= _RENEWALS
    assert min(counts) > 0
    assert requests["GetObject"] >= sum(counts)
