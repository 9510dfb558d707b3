"""``bootstream local-oci``: starts, says so, points programs at itself, and ends cleanly."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from bootstream.errors import Corrupt, InvalidInput
from bootstream.localoci.cloud import LocalCloud, Plan
from bootstream.testing.cli import CommandLine
from bootstream.testing.localoci import LocalOciServer, read_environment


def started(cli: CommandLine, *arguments: str | Path) -> tuple[subprocess.Popen[str], str]:
    """Start one; return its process and the URL that it prints."""
    process = cli.start("local-oci", *arguments)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_start_and_end(tmp_path: Path, signum: int) -> None:
    """The shell file is there when the URL is printed; the signal ends it with 0."""
    cli = CommandLine(tmp_path)
    environment = tmp_path / "oci env"
    process, url = started(cli, "--data", tmp_path / "data", "--write-env", environment)
    values = read_environment(environment)
    assert values["OCI_OBJECT_STORAGE_ENDPOINT"] == url
    assert environment.stat().st_mode & 0o777 == 0o600
    with urllib.request.urlopen(f"{url}/_local/health", timeout=10) as answer:
        assert json.load(answer) == {"status": "ok"}
    process.send_signal(signum)
    output, errors = process.communicate(timeout=20)
    assert (process.returncode, output, errors) == (0, "", "")


def test_shell_reads_the_file(tmp_path: Path) -> None:
    """What a shell makes of it is what was meant, whatever is in a path."""
    cli = CommandLine(tmp_path)
    folder = tmp_path / "it's $HOME; `x`"
    folder.mkdir()
    process, url = started(cli, "--data", folder / "data", "--write-env", folder / "env")
    try:
        script = f'. "{folder}/env"; echo "$OCI_CONFIG_FILE"; cat "$OCI_CONFIG_FILE"'.replace(
            "$HOME", "\\$HOME"
        ).replace("`", "\\`")
        text = subprocess.run(
            ["sh", "-eu", "-c", script], capture_output=True, text=True, check=True, timeout=20
        ).stdout
    finally:
        process.terminate()
        process.communicate(timeout=20)
    path, _, config = text.partition("\n")
    assert path == str(folder / "data" / "identity" / "config")
    assert f"key_file={folder}/data/identity/user.key" in config
    assert url.startswith("http://127.0.0.1:")


def test_port_in_use(tmp_path: Path) -> None:
    """The error names the port, and what else to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = CommandLine(tmp_path)(
            "local-oci", "--data", tmp_path / "data", "--port", str(port)
        )
    assert result.code == 2
    assert f"127.0.0.1:{port}" in result.stderr
    assert "0 for a free one" in result.stderr


def test_folder_in_use(tmp_path: Path) -> None:
    """Two servers never share a folder."""
    with LocalOciServer(tmp_path):
        result = CommandLine(tmp_path)("local-oci", "--data", tmp_path / "data")
    assert result.code == 4
    assert "another local OCI uses the folder" in result.stderr


def test_without_the_library(tmp_path: Path) -> None:
    """The error names the extra to install."""
    code = (
        "import sys, importlib.util as util\n"
        "find = util.find_spec\n"
        "util.find_spec = lambda name: None if name == 'cryptography' else find(name)\n"
        "from bootstream.cli.app import run\n"
        "sys.exit(run(['local-oci']))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
        cwd=tmp_path,
    )
    assert result.returncode == 2
    assert "pip install 'bootstream[local]'" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_unwritable_environment_file(tmp_path: Path) -> None:
    """An error before anything is said to listen."""
    result = CommandLine(tmp_path)(
        "local-oci", "--data", tmp_path / "data", "--write-env", tmp_path / "no" / "folder"
    )
    assert result.code != 0
    assert result.stdout == ""
    assert "no/folder" in result.stderr


def test_descriptor_that_was_not_passed(tmp_path: Path) -> None:
    """It is refused before the folder is made."""
    result = CommandLine(tmp_path)("local-oci", "--data", tmp_path / "data", "--ready-fd", "99")
    assert result.code == 2
    assert not (tmp_path / "data").exists()


def test_everything_is_there_again(tmp_path: Path) -> None:
    """Keys, tokens and names outlive the process; the port need not."""
    with LocalOciServer(tmp_path) as first:
        before = dict(first.variables)
        config = first.config_file.read_text()
    with LocalOciServer(tmp_path) as second:
        after = dict(second.variables)
        assert second.config_file.read_text() == config
    changed = {name for name in before if before[name] != after[name]}
    assert all(first.endpoint in before[name] for name in changed)


def test_open_files_do_not_grow(tmp_path: Path) -> None:
    """Start and end, again and again, in one process."""
    with LocalCloud(Plan(tmp_path / "data")):
        pass
    held = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with LocalCloud(Plan(tmp_path / "data", workload_port=0)):
            pass
    assert len(os.listdir("/proc/self/fd")) == held


@pytest.mark.parametrize("name", ["identity.json", "user.key", "root.pem", "token.key"])
@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\x00", b'{"users": []}', b"[1]"])
def test_damaged_identity(
    tmp_path_factory: pytest.TempPathFactory, name: str, content: bytes
) -> None:
    """Damaged files are told, not a crash."""
    folder = _identity(tmp_path_factory)
    original = (folder / name).read_bytes()
    (folder / name).write_bytes(content)
    try:
        with pytest.raises(Corrupt) as caught:
            LocalCloud(Plan(folder.parent))
        assert caught.value.remedy
    finally:
        (folder / name).write_bytes(original)


_FOLDERS: list[Path] = []


def _identity(factory: pytest.TempPathFactory) -> Path:
    """An identity, made once: its keys take a while."""
    if not _FOLDERS:
        data = factory.mktemp("damaged")
        LocalCloud(Plan(data)).close()
        _FOLDERS.append(data / "identity")
    return _FOLDERS[0]


@pytest.mark.parametrize("bucket", ["", "a/b", "x" * 257, "ü"])
def test_bucket_names(tmp_path: Path, bucket: str) -> None:
    """A bucket that could not be named in a URL is refused."""
    with pytest.raises(InvalidInput):
        LocalCloud(Plan(tmp_path, bucket=bucket))
