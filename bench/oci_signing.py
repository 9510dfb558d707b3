"""Signatures of OCI requests a second: ours, and the signer of Oracle's SDK."""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from oci._vendor import requests  # type: ignore[import-untyped]
from oci.signer import Signer  # type: ignore[import-untyped]

from bootstream.clouds.oci import Credentials, http_date, sign

HOST = "objectstorage.us-ashburn-1.oraclecloud.com"
TARGET = "/n/namespace/b/bucket/o/0f8fad5b-d9cb-469f-a165-70867728950e%2Frootfs.ext4.pack"


def rate(work: Callable[[], object], threads: int, count: int, runs: int) -> float:
    """Return calls a second over all threads; the best of several runs."""

    def run() -> None:
        for _ in range(count // threads):
            work()

    best = 0.0
    for _ in range(runs):
        workers = [threading.Thread(target=run) for _ in range(threads)]
        started = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        best = max(best, count // threads * threads / (time.perf_counter() - started))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=3000, help="signatures of a run")
    parser.add_argument("--runs", type=int, default=5, help="runs of each; the best counts")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    key = rsa.generate_private_key(65537, 2048)
    credentials = Credentials("ST$" + "x" * 1500, key)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    signer = Signer("tenancy", "user", "x" * 1500, None, private_key_content=pem)
    request = requests.Request("GET", f"https://{HOST}{TARGET}").prepare()

    padding, digest = PKCS1v15(), SHA256()

    def ours() -> None:
        sign(credentials, "GET", HOST, TARGET, date=http_date())

    def sdk() -> None:
        copy = request.copy()
        signer(copy)

    def bare() -> None:
        key.sign(b"x" * 200, padding, digest)

    results = {
        f"{name}, {threads} thread{'s' if threads > 1 else ''}": rate(
            work, threads, options.count, options.runs
        )
        for name, work in (("RSA alone", bare), ("bootstream", ours), ("SDK", sdk))
        for threads in (1, 2, 16)
    }
    if options.json:
        print(json.dumps(results, indent=2))
        return
    for name, number in results.items():
        print(f"{name:<24}{number:8,.0f}/s")


if __name__ == "__main__":
    main()
