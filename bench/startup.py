"""How soon the command line answers: ``bootstream --help`` and ``ls``, next to bare Python."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time


def best(command: list[str], environment: dict[str, str], runs: int) -> float:
    """Run a command several times; return the shortest time in seconds."""
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
        times.append(time.perf_counter() - started)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10, help="runs of each; the best counts")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    bootstream = [sys.executable, "-m", "bootstream"]
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"LOCAL_TEMPLATE_STORAGE_BASE_PATH": folder}
        results = {
            "python -c pass": best([sys.executable, "-c", "pass"], environment, options.runs),
            "bootstream --help": best([*bootstream, "--help"], environment, options.runs),
            "bootstream ls (empty)": best([*bootstream, "ls"], environment, options.runs),
        }
    if options.json:
        print(json.dumps(results, indent=2))
        return
    bare = results["python -c pass"]
    for name, seconds in results.items():
        print(f"{name:<24}{seconds * 1000:7.1f} ms  {seconds / bare:5.1f} x")


if __name__ == "__main__":
    main()
