"""Ctrl-C and SIGTERM: what is in hand is cleaned up, and the exit code says which it was."""

from __future__ import annotations

import os
import random
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bootstream.cli import interrupt
from bootstream.cli.demo_image import TAG, write_layout
from bootstream.cli.interrupt import Interruption
from bootstream.errors import Cancelled
from bootstream.testing.cli import CommandLine


def files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if not path.is_dir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_first_signal_asks(number: signal.Signals) -> None:
    """Work hears of it where it reports progress; handlers are restored afterwards."""
    before = signal.getsignal(number)
    with Interruption() as interruption:
        interruption.check()
        signal.raise_signal(number)
        assert interruption.signum == number
        with pytest.raises(Cancelled):
            interruption.check()
    assert signal.getsignal(number) is before


def test_other_threads_hear_of_it() -> None:
    """A worker's report of progress ends the work too."""
    raised = threading.Event()
    with Interruption() as interruption:

        def work() -> None:
            try:
                while True:
                    interruption.check()
            except Cancelled:
                raised.set()

        worker = threading.Thread(target=work)
        worker.start()
        signal.raise_signal(signal.SIGINT)
        worker.join(10)
    assert raised.is_set()


def test_work_that_does_not_listen_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A main thread that waits for something is woken by an exception."""
    monkeypatch.setattr(interrupt, "PATIENCE_SECONDS", 0.05)
    never = threading.Event()
    with Interruption(), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)
        never.wait(20)


def test_waiting_ends_with_the_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal before or during the wait ends it, and nothing is raised later."""
    monkeypatch.setattr(interrupt, "PATIENCE_SECONDS", 0.05)
    with Interruption() as interruption:
        signal.raise_signal(signal.SIGTERM)
        interruption.wait()
        time.sleep(0.1)  # past the patience that an attentive waiter does not need
    with Interruption() as interruption:
        timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        interruption.wait()
        timer.join()
        assert interruption.signum == signal.SIGINT


def test_too_late_to_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the work is settled signals change nothing, to the end of the process."""
    monkeypatch.setattr(interrupt, "PATIENCE_SECONDS", 0.05)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with Interruption() as interruption:
            signal.raise_signal(signal.SIGINT)
            interruption.settle()
            signal.raise_signal(signal.SIGTERM)
            interruption.check()
            assert interruption.signum is None
        signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("images") / "one"
    write_layout(folder, message="version 1")
    return f"oci:{folder}:{TAG}"


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "sigterm"]
)
def test_interrupted_build_leaves_nothing(
    image: str, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """While chunks are being compressed, slowly: no build, no tag, no scratch, no temporary."""
    cli = CommandLine(tmp_path)
    process = cli.start("build", image, "-t", "demo", "-v", "--level", "19", "--threads", "1")
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if line.startswith("rootfs: "):  # that phase is over: the artifact's begins
                break
        process.send_signal(number)
        out, said = process.communicate(timeout=20)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, out) == (code, "")
    assert said.splitlines()[-1] == "error: interrupted"
    assert files_below(cli.store) == []
    assert list((cli.folder / "cache" / "scratch").glob("work-*")) == []
    cli.ok("build", image, "-t", "demo")
    assert cli.json("verify", "demo")["ok"]


def test_interrupted_at_any_moment(image: str, tmp_path: Path) -> None:
    """Ten random moments: either the build is whole, or there is nothing of it."""
    cli = CommandLine(tmp_path)
    moments = random.Random(7)
    for _ in range(6):
        process = cli.start("build", image, "-t", "demo", "--parent", "none")
        time.sleep(moments.uniform(0.05, 1.2))
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=20)
        if process.returncode == 0:
            assert cli.json("verify", out.strip())["ok"]
            cli.ok("rm", out.strip())
        else:
            assert out == ""
        cli.ok("gc", "--older-than", "0s")
        assert files_below(cli.store) == []


@pytest.fixture
def silent_registry() -> Iterator[tuple[int, threading.Event]]:
    """A server that takes a connection and never answers; the event is set when one came."""
    came = threading.Event()
    kept: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            try:
                while True:
                    kept.append(server.accept()[0])
                    came.set()
            except OSError:
                return

        thread = threading.Thread(target=accept)
        thread.start()
        yield server.getsockname()[1], came
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
    for connection in kept:
        connection.close()


def test_interrupted_while_a_server_keeps_silent(
    silent_registry: tuple[int, threading.Event], tmp_path: Path
) -> None:
    """A wait in the network ends after a few seconds of patience."""
    port, came = silent_registry
    cli = CommandLine(tmp_path)
    process = cli.start("build", f"127.0.0.1:{port}/a:b", "-t", "demo", "--plain-http")
    try:
        assert came.wait(20)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=15)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130
    assert said == "error: interrupted\n"
    assert files_below(cli.store) == []


def test_second_signal_kills(silent_registry: tuple[int, threading.Event], tmp_path: Path) -> None:
    """Whoever presses Ctrl-C twice need not wait."""
    port, came = silent_registry
    process = CommandLine(tmp_path).start(
        "build", f"127.0.0.1:{port}/a:b", "-t", "demo", "--plain-http"
    )
    try:
        assert came.wait(20)
        process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + 10
        while process.poll() is None and time.monotonic() < deadline:
            process.send_signal(signal.SIGINT)
            time.sleep(0.01)
        process.communicate(timeout=10)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode in (-signal.SIGINT, 130)
