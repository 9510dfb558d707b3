"""How fast layers are read, and pulled from a registry, next to the programs people know.

    .venv/bin/python bench/images.py [--runs N] [--json]

Reading: a real Debian root file system as gzip, zstd and plain tar, decoded and checked
against its diff id, next to ``gzip -dc`` and ``zstd -dc`` into ``openssl dgst -sha256``. Pulling:
four layers that do not compress, from a registry on this machine into an empty cache,
next to ``skopeo copy`` to a layout. MB/s of tar or blob, best of all runs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bootstream.images import BlobCache, resolve
from bootstream.images.files import FileSlice, SharedFile
from bootstream.images.layers import DecodedLayer
from bootstream.progress import NO_PROGRESS
from bootstream.testing.debian import debian_layout
from bootstream.testing.images import LayerBuilder, write_layout
from bootstream.testing.registry import DockerRegistry

LAYERS, LAYER_BYTES = 4, 100 << 20
COMPRESSORS = {"gzip": "gzip -6 -c", "zstd": "zstd -q -3 -c", "none": "cat"}
DECODERS = {"gzip": "gzip -dc", "zstd": "zstd -q -dc", "none": "cat"}


def best(runs: int, size: int, call: Callable[[], object]) -> float:
    """Return MB/s of the fastest run."""
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return size / 1e6 / min(times)


def read_layer(path: Path, diff_id: str) -> None:
    """Read a layer to its end, where its diff id is checked."""
    blob = FileSlice(SharedFile.open(str(path), what="a blob"))
    with DecodedLayer(blob, diff_id=diff_id, name=str(path), damaged=str) as layer:
        while layer.read(1 << 20):
            pass


def reading(folder: Path, runs: int) -> dict[str, float]:
    """Measure decoding, ours and that of the programs."""
    images = Path(os.environ.get("BOOTSTREAM_TEST_IMAGES", "/tmp/bootstream-test-images"))
    debian_layout(images)
    tar = images / "base.tar"
    size = tar.stat().st_size
    with tar.open("rb") as file:
        diff_id = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    results = {}
    for name, command in COMPRESSORS.items():
        blob = folder / name
        with tar.open("rb") as source, blob.open("wb") as target:
            subprocess.run(command.split(), stdin=source, stdout=target, check=True)
        theirs = f"{DECODERS[name]} < '{blob}' | openssl dgst -sha256 >/dev/null"
        results[f"read {name}"] = best(runs, size, lambda b=blob: read_layer(b, diff_id))  # type: ignore[misc]  # default
        results[f"read {name}, {DECODERS[name]} | openssl sha256"] = best(
            runs,
            size,
            lambda t=theirs: subprocess.run(["sh", "-c", t], check=True),  # type: ignore[misc]  # default
        )
    return results


def pulling(folder: Path, runs: int) -> dict[str, float]:
    """Measure pulls, ours and skopeo's."""
    layers = [
        LayerBuilder().file("noise", random.Random(number).randbytes(LAYER_BYTES))
        for number in range(LAYERS)
    ]
    write_layout(folder / "layout", layers, tag="x", compression="none")
    with DockerRegistry(folder / "registry") as registry:
        reference = registry.push(f"oci:{folder / 'layout'}:x", "bench:1")

        def ours() -> None:
            shutil.rmtree(folder / "cache", ignore_errors=True)
            resolve(reference, cache=BlobCache(folder / "cache")).fetch(NO_PROGRESS)

        def theirs() -> None:
            shutil.rmtree(folder / "copy", ignore_errors=True)
            copy = ["skopeo", "copy", "--insecure-policy", "--src-tls-verify=false", "--quiet"]
            subprocess.run([*copy, f"docker://{reference}", f"oci:{folder}/copy:x"], check=True)

        size = LAYERS * LAYER_BYTES
        return {
            "pull": best(runs, size, ours),
            "pull, skopeo copy": best(runs, size, theirs),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = reading(Path(folder), arguments.runs) | pulling(Path(folder), arguments.runs)
    if arguments.json:
        json.dump(results, sys.stdout, indent=2)
        return
    for name, value in results.items():
        sys.stdout.write(f"{name:40} {value:7.0f} MB/s\n")


if __name__ == "__main__":
    main()
