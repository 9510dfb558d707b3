"""How progress is shown, and that it never stands in the work's way."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import threading

import pytest

from bootstream.cli.output import human_size, percent, printable
from bootstream.cli.progress import Lines, Silent
from bootstream.errors import Cancelled


def never() -> None:
    """Nobody asked for an end."""


def test_lines_say_what_a_phase_was() -> None:
    """One line when it ends, with amount and unit; logs pass through."""
    said: list[str] = []
    with Lines(never, said.append) as progress:
        progress.phase("pull", 3 << 20)
        progress.advance("pull", 1 << 20)
        progress.advance("pull", 2 << 20)
        progress.done("pull")
        progress.phase("check", None, "chunks")
        progress.advance("check", 7)
        progress.done("check")
        progress.part("pull", "sha256:0123456789abcdef", 1 << 10, 1 << 20)
        progress.part("pull", "sha256:0123456789abcdef", 1 << 20, 1 << 20)
        progress.log("and that")
        progress.done("never begun")
    assert [line.rpartition(" in ")[0] or line for line in said] == [
        "pull: 3.0 MiB",
        "check: 7 chunks",
        "pull: 0123456789ab, 1.0 MiB",
        "and that",
    ]


def test_counts_from_many_threads_add_up() -> None:
    """advance may be called from anywhere."""
    said: list[str] = []
    progress = Lines(never, said.append)
    progress.phase("x", 80_000, "things")

    def work() -> None:
        for _ in range(10_000):
            progress.advance("x", 1)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    progress.done("x")
    assert said[0].startswith("x: 80000 things")


def test_every_kind_stops_work() -> None:
    """Also the silent one raises once somebody asked for an end."""

    def stop() -> None:
        raise Cancelled("asked")

    for progress in (Silent(stop), Lines(stop, lambda _line: None)):
        progress.phase("x")
        with pytest.raises(Cancelled):
            progress.advance("x", 1)


BARS = """
from bootstream.cli.progress import Bars
with Bars(lambda: None) as bars:
    bars.phase("pull", 1000)
    bars.advance("pull", 400)
    bars.log("a [line] above")
    bars.part("pull", "sha256:0123456789abcdef", 400, 900)
    bars._bars.refresh()  # the picture of this moment, whatever the clock says
    bars.part("pull", "sha256:0123456789abcdef", 900, 900)
    bars.part("pull", "sha256:fedcba9876543210", 100, 100)
    bars.phase("pull", 2000)
    bars.advance("pull", 1600)
    bars.done("pull")
    bars.phase("empty", 0)
    bars.done("empty")
    bars.advance("unknown", 1)
    bars.done("unknown")
print("result")
"""


def test_bars_on_a_terminal() -> None:
    """Bars are drawn on stderr, logs appear as they are, and stdout holds the result alone."""
    leader, follower = pty.openpty()
    with os.fdopen(leader, "rb", buffering=0) as terminal:
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", BARS],
            stdout=subprocess.PIPE,
            stderr=follower,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
        )
        os.close(follower)
        shown = b""
        try:
            while data := terminal.read(4096):
                shown += data
        except OSError:  # how a terminal says that the other side is gone
            pass
        out, _ = process.communicate(timeout=20)
    assert process.returncode == 0, shown
    assert out == b"result\n"
    assert b"pull" in shown
    assert b"0123456789ab " in shown
    assert b"400 B of 900 B" in shown
    assert b"fedcba987654" not in shown
    assert b"a [line] above" in shown


def test_sizes_and_shares() -> None:
    """Sizes as people read them."""
    sizes = [0, 1023, 1024, 1536, 5 << 20, 3 << 30, 2 << 40, 5 << 50]
    assert [human_size(size) for size in sizes] == [
        "0 B", "1023 B", "1.0 KiB", "1.5 KiB", "5.0 MiB", "3.0 GiB", "2.0 TiB", "5120.0 TiB",
    ]  # fmt: skip
    assert (percent(1, 8), percent(1, 0)) == ("12.5 %", "-")


def test_names_cannot_steer_a_terminal() -> None:
    """Control characters, foreign bytes and separators are escaped; letters stay."""
    assert printable("übung/naïve 日本".encode()) == "übung/naïve 日本"
    assert printable(b"a\x1b[2J\n\xff") == "a\\x1b[2J\\x0a\\xff"
    assert printable("a\u2028b") == "a\\u2028b"
