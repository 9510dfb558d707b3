"""``demo`` keeps what it promises: it runs anywhere, shows its commands, and leaves nothing."""

from __future__ import annotations

import signal
from pathlib import Path

from bootstream.testing.cli import CommandLine


def test_demo_leaves_nothing(tmp_path: Path) -> None:
    """The whole job, each command shown as it could be typed."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    said = CommandLine(tmp_path, {"TMPDIR": str(temporary)}).ok("demo")
    for verb in ("build", "ls", "inspect", "files", "cat", "export", "serve", "verify", "rm", "gc"):
        assert f"\n$ bootstream {verb} " in said.replace(
            "\n$ bootstream ls\n", "\n$ bootstream ls \n"
        )
    assert "the store is empty" in said
    assert list(tmp_path.iterdir()) == [temporary]
    assert list(temporary.iterdir()) == []


def test_demo_keeps_on_request(tmp_path: Path) -> None:
    """With --keep two templates stay; a folder that is in use is refused."""
    cli = CommandLine(tmp_path)
    kept = tmp_path / "kept"
    said = cli.ok("demo", "--keep", kept)
    assert f"export LOCAL_TEMPLATE_STORAGE_BASE_PATH={kept / 'templates'}" in said
    builds = cli.json("ls", "--store", kept / "templates")
    assert [build["tags"] for build in builds] == [["1"], ["2"]]
    assert not (kept / "nbd.sock").exists()
    assert cli("demo", "--keep", kept).code == 4


def test_demo_interrupted(tmp_path: Path) -> None:
    """Ctrl-C ends the command in hand too, and the folder goes."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    with CommandLine(tmp_path, {"TMPDIR": str(temporary)}).start("demo") as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("$ bootstream"):
                break
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    assert process.returncode == 130
    assert list(temporary.iterdir()) == []
