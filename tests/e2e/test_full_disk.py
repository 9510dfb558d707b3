"""A disk that fills up in the middle of each verb: a clear error, and nothing is harmed.

The small disk is a tmpfs in a mount namespace of its own, as an ordinary user may have it.
"""

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path

import pytest

from bootstream.testing.cli import COMMAND, CommandLine
from bootstream.testing.images import LayerBuilder, write_layout

SMALL = "8m"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image of 12 MiB that do not compress."""
    folder = tmp_path_factory.mktemp("image")
    layer = LayerBuilder()
    layer.file("noise", random.Random(1).randbytes(12 << 20))
    write_layout(folder, [layer], tag="v1")
    return f"oci:{folder}:v1"


def with_small_disk(cli: CommandLine, disk: Path, script: str, *arguments: str) -> str:
    """Run a shell script with ``disk`` mounted small and ``$bootstream`` set; return its stdout."""
    disk.mkdir(parents=True, exist_ok=True)
    namespace = ["unshare", "--mount"]
    if os.geteuid() != 0:
        namespace += ["--user", "--map-root-user"]
    prologue = f'set -eu; mount -t tmpfs -o size={SMALL} none "$disk"; '
    result = subprocess.run(
        [*namespace, "sh", "-c", prologue + script, "sh", *arguments],
        env=cli.variables | {"disk": str(disk), "bootstream": " ".join(COMMAND)},
        capture_output=True,
        text=True,
        check=False,
        timeout=28,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


REFUSED = """
refused() {
    code=0; said=$("$@" 2>&1) || code=$?
    [ $code = 6 ] || { echo "exit code $code: $said"; exit 1; }
    case $said in *remedy:*) ;; *) echo "no remedy: $said"; exit 1;; esac
    case $said in *Traceback*) echo "$said"; exit 1;; esac
}
"""


def test_store_fills_up(image: str, tmp_path: Path) -> None:
    """The build fails and leaves nothing; what was published before is whole; less still fits."""
    cli = CommandLine(tmp_path)
    (tmp_path / "small").write_bytes(b"small" * 1000)
    script = (
        REFUSED
        + """
    $bootstream import "$2" -t kept > /dev/null
    before=$(find "$disk" | sort)
    refused $bootstream build "$1" -t new
    [ "$(find "$disk" | sort)" = "$before" ]
    refused $bootstream import "$disk/../noise" -t new --form raw
    [ "$(find "$disk" | sort)" = "$before" ]
    $bootstream verify kept > /dev/null
    $bootstream import "$2" -t new > /dev/null
    $bootstream ls
    """
    )
    (tmp_path / "noise").write_bytes(random.Random(2).randbytes(12 << 20))
    listed = with_small_disk(cli, cli.store, script, image, str(tmp_path / "small"))
    assert [line.split()[0] for line in listed.splitlines()[1:]] == ["kept", "new"]


def test_scratch_fills_up(image: str, tmp_path: Path) -> None:
    """The file system that is being made does not fit: no build, no scratch is left."""
    cli = CommandLine(tmp_path)
    script = (
        REFUSED
        + """
    refused $bootstream build "$1" -t new
    find "$disk/scratch" -mindepth 1
    """
    )
    assert with_small_disk(cli, cli.folder / "cache", script, image) == ""
    assert cli.json("ls") == []
    assert [path for path in cli.store.rglob("*") if path.is_file()] == []


def test_exports_target_fills_up(image: str, tmp_path: Path) -> None:
    """No file appears, and none stays behind."""
    cli = CommandLine(tmp_path)
    cli.ok("build", image, "-t", "t")
    script = (
        REFUSED
        + """
    refused $bootstream export t "$disk/image"
    find "$disk" -mindepth 1
    """
    )
    assert with_small_disk(cli, tmp_path / "disk", script) == ""


def test_cache_fills_up(tmp_path: Path) -> None:
    """An export is served without its cache, and every byte is right."""
    cli = CommandLine(tmp_path)
    raw = tmp_path / "raw"
    raw.write_bytes(random.Random(3).randbytes(12 << 20))
    cli.ok("import", raw, "-t", "t")
    script = """
    $bootstream serve t --socket "$1/s" --read-only > "$1/uri" 2> "$1/said" &
    server=$!
    while [ ! -s "$1/uri" ]; do kill -0 $server; done
    nbdcopy "$(cat "$1/uri")" "$1/copy"
    nbdcopy "$(cat "$1/uri")" "$1/again"
    kill $server
    wait $server
    """
    with_small_disk(cli, cli.folder / "cache", script, str(tmp_path))
    assert (tmp_path / "copy").read_bytes() == raw.read_bytes()
    assert (tmp_path / "again").read_bytes() == raw.read_bytes()
    assert "cache" in (tmp_path / "said").read_text()


def test_overlay_fills_up(tmp_path: Path) -> None:
    """Writers hear of it, readers go on; the overlay is sound afterwards."""
    cli = CommandLine(tmp_path)
    raw = tmp_path / "raw"
    raw.write_bytes(random.Random(4).randbytes(12 << 20))
    cli.ok("import", raw, "-t", "t")
    script = """
    $bootstream serve t --socket "$1/s" --overlay "$disk/overlay" > "$1/uri" 2> "$1/said" &
    server=$!
    while [ ! -s "$1/uri" ]; do kill -0 $server; done
    uri=$(cat "$1/uri")
    qemu-io -f raw -c 'write -P 7 64k 64k' -c flush "$uri"
    ! qemu-io -f raw -c 'write -P 8 1M 10M' "$uri" > "$1/full" 2>&1
    qemu-io -f raw -c 'read -P 7 64k 64k' "$uri"
    kill $server
    wait $server
    """
    with_small_disk(cli, tmp_path / "disk", script, str(tmp_path))
    assert "No space left" in (tmp_path / "full").read_text()
