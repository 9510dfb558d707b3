"""``bootstream storage``: on a folder, as users meet it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import click
import pytest

from bootstream.cli.storage import VERBS, storage
from bootstream.testing.cli import CommandLine


@pytest.fixture
def cli(tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path)


def put(cli: CommandLine, name: str, data: bytes) -> Path:
    path = cli.store / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


# -- help ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VERBS)
def test_help(cli: CommandLine, name: str) -> None:
    """Each verb's help opens with what the overview says, ends with examples, touches nothing."""
    text = cli.ok("storage", name, "--help")
    assert VERBS[name][2] in text
    assert f"bootstream storage {name}" in text.partition("Examples:")[2]
    assert list(cli.folder.iterdir()) == []


@pytest.mark.parametrize("name", VERBS)
def test_every_option_is_described(name: str) -> None:
    """No option without help."""
    with click.Context(storage) as context:
        command = storage.get_command(context, name)
    assert command is not None
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.name}"


def test_overview(cli: CommandLine) -> None:
    """Alone it helps; an unknown verb is wrong usage."""
    assert cli.ok("storage").startswith("Usage: bootstream storage")
    assert cli("storage", "mv").code == 2


# -- ls and rm -------------------------------------------------------------------------------


def test_ls(cli: CommandLine) -> None:
    """Objects by name, at any depth; whole components; an address says the same."""
    assert cli("storage", "ls").code == 0
    for name in ("a/b/c", "a/d", "ab/e"):
        put(cli, name, name.encode())
    assert cli.ok("storage", "ls").splitlines() == ["a/b/c", "a/d", "ab/e"]
    assert cli.ok("storage", "ls", "a").splitlines() == ["a/b/c", "a/d"]
    assert cli.ok("storage", "ls", "a/d") == "a/d"
    assert cli.ok("storage", "ls", f"file://{cli.store}/a/").splitlines() == [
        "a/b/c",
        "a/d",
    ]
    [document] = cli.json("storage", "ls", "ab/")
    assert document["path"] == "ab/e"
    assert document["size"] == 4
    assert document["last_modified"].endswith("Z")
    assert "4 B" in cli.ok("storage", "ls", "-l", "ab")
    missing = cli("storage", "ls", "nothing")
    assert (missing.code, missing.stdout) == (3, "")
    assert cli("storage", "ls", "../x").code == 2
    assert cli("storage", "ls", "ftp://x/y").code == 2


def test_names_cannot_steer_the_terminal(cli: CommandLine) -> None:
    """What is not printable is shown as a code."""
    put(cli, "right\u202eleft", b"")
    assert "\u202e" not in cli.ok("storage", "ls")


def test_rm(cli: CommandLine) -> None:
    """One object; with -r what is below; never everything; nothing is exit code 3."""
    for name in ("a/b", "a/c", "ab/c", "z"):
        put(cli, name, b"")
    assert cli.json("storage", "rm", "z") == {"deleted": 1}
    assert cli("storage", "rm", "z").code == 3
    assert cli("storage", "rm", "a").code == 3
    assert cli("storage", "rm", "a/").code == 2
    for everything in ("", "/", f"file://{cli.store}/../..//", "store:"):
        assert cli("storage", "rm", "-r", everything).code == 2
    assert cli.json("storage", "rm", "-r", "a") == {"deleted": 2}
    assert cli.ok("storage", "ls") == "ab/c"
    assert cli.json("storage", "rm", "-r", f"file://{cli.store}/ab") == {"deleted": 1}
    assert cli.ok("storage", "ls") == ""


# -- cp --------------------------------------------------------------------------------------


def test_cp_up_and_down(cli: CommandLine) -> None:
    """Bytes arrive, their sha256 is kept and printed, and nothing else is left."""
    data = os.urandom(3_000_001)
    digest = hashlib.sha256(data).hexdigest()
    source = cli.folder / "source"
    source.write_bytes(data)
    [up] = cli.json("storage", "cp", source, "store:a/b")
    assert (up["size"], up["sha256"], up["skipped"]) == (len(data), digest, False)
    assert os.getxattr(cli.store / "a/b", "user.bootstream.metadata") == (
        f"sha256={digest}\n".encode()
    )
    target = cli.folder / "out"
    [down] = cli.json("storage", "cp", "store:a/b", target)
    assert down["sha256"] == digest
    assert target.read_bytes() == data
    cli.ok("storage", "cp", "store:a/b", f"{cli.folder}/into/")
    assert (cli.folder / "into/b").read_bytes() == data
    assert {p.name for p in cli.folder.iterdir()} == {"source", "templates", "out", "into"}


def test_cp_within_and_between_stores(cli: CommandLine) -> None:
    """From store to store, with what is kept of the sha256."""
    source = cli.folder / "source"
    source.write_bytes(b"x" * 5_000_000)
    cli.ok("storage", "cp", source, "store:a")
    cli.ok("storage", "cp", "store:a", "store:b")
    assert (cli.store / "b").read_bytes() == source.read_bytes()
    assert os.getxattr(cli.store / "b", "user.bootstream.metadata").startswith(b"sha256=")
    assert cli("storage", "cp", "store:a", "store:a").code == 2


def test_cp_recursive_and_resume(cli: CommandLine) -> None:
    """A folder up and down again; a second run skips what is the same, copies what is not."""
    folder = cli.folder / "tree"
    for name in ("one", "deep/two", "deep/er/three"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode() * 100)
    (folder / "link").symlink_to("one")
    assert cli("storage", "cp", folder, "store:t").code == 2
    assert len(cli.json("storage", "cp", "-r", folder, "store:t")) == 3
    assert cli.ok("storage", "ls").splitlines() == ["t/deep/er/three", "t/deep/two", "t/one"]
    (folder / "one").write_bytes(b"two" * 100)
    (cli.store / "t/deep/two").unlink()
    again = cli.json("storage", "cp", "-r", "--resume", folder, "store:t")
    assert [Path(one["source"]).name for one in again if not one["skipped"]] == ["one", "two"]
    out = cli.folder / "out"
    cli.ok("storage", "cp", "-r", "store:t", out)
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()) == [
        "deep/er/three",
        "deep/two",
        "one",
    ]
    assert (out / "one").read_bytes() == b"two" * 100
    assert all(
        one["skipped"] for one in cli.json("storage", "cp", "-r", "--resume", "store:t", out)
    )


def test_cp_goes_on_with_a_broken_download(cli: CommandLine) -> None:
    """What is there already is not asked for again; of another version it is not used."""
    data = os.urandom(20_000_000)
    path = put(cli, "large", data)
    etag = cli.json("storage", "ls", "large")[0]["etag"]
    mark = hashlib.sha256(f"large\0{etag}".encode()).hexdigest()[:16]
    part = cli.folder / f".out.{mark}.part"
    part.write_bytes(data[:17_000_000])
    stale = cli.folder / ".out.0123456789abcdef.part"
    stale.write_bytes(b"of another version")
    cli.ok("storage", "cp", "--resume", "store:large", cli.folder / "out")
    assert (cli.folder / "out").read_bytes() == path.read_bytes()
    assert not part.exists()
    # A part with wrong bytes is found out, and not gone on with again.
    part.write_bytes(bytes(17_000_000))
    (cli.folder / "out").unlink()
    wrong = cli("storage", "cp", "--resume", "store:large", cli.folder / "out")
    assert wrong.code == 7
    assert not part.exists()
    cli.ok("storage", "cp", "--resume", "store:large", cli.folder / "out")


def test_cp_finds_corruption(cli: CommandLine) -> None:
    """Bytes that are not those of the sha256 kept with them are refused, and leave no file."""
    source = cli.folder / "source"
    source.write_bytes(b"right" * 1000)
    cli.ok("storage", "cp", source, "store:a")
    with (cli.store / "a").open("r+b") as file:
        file.write(b"wrong")
    result = cli("storage", "cp", "store:a", cli.folder / "out")
    assert result.code == 7
    assert "sha256" in result.stderr
    assert not (cli.folder / "out").exists()


def test_cp_of_nothing(cli: CommandLine) -> None:
    """What is missing is exit code 3, on either side; two local paths are wrong usage."""
    assert cli("storage", "cp", "store:missing", cli.folder / "out").code == 3
    assert cli("storage", "cp", "-r", "store:missing", cli.folder / "out").code == 3
    assert cli("storage", "cp", cli.folder / "missing", "store:a").code == 3
    assert cli("storage", "cp", "one", "two").code == 2
    assert cli("storage", "cp", "s3://user:hunter2@host/x", ".").code == 2
    assert not (cli.folder / "out").exists()


# -- check and bench -------------------------------------------------------------------------


def test_check(cli: CommandLine) -> None:
    """A store in order passes, and is left as it was."""
    put(cli, "kept", b"")
    found = cli.json("storage", "check")
    assert found["ok"] is True
    states = {step["name"]: step["state"] for step in found["steps"]}
    assert states.pop("sign") == "none"
    assert set(states.values()) == {"ok"}
    assert cli.ok("storage", "ls") == "kept"
    assert "of eight creators one wins" in cli.ok("storage", "check")


def test_check_of_what_is_no_store(cli: CommandLine) -> None:
    """The first failure decides the exit code; what depends on it is skipped."""
    cli.store.write_bytes(b"a file")
    result = cli("storage", "check", "--json")
    assert result.code == 3
    found = result.json
    assert found["ok"] is False
    assert {step["name"]: step["state"] for step in found["steps"]}["read"] == "skipped"


def test_bench(cli: CommandLine) -> None:
    """Figures for every operation at every degree, a suggestion, and nothing left."""
    found = cli.json("storage", "bench", "--seconds", "0.05", "--object-size", "2M")
    assert len(found["figures"]) == 16
    assert all(one["calls"] > 0 and one["seconds"] > 0 for one in found["figures"])
    assert found["parallel"] in (1, 4, 16, 32)
    assert cli.ok("storage", "ls") == ""
    assert "at a time" in cli.ok("storage", "bench", "--seconds", "0.05", "--object-size", "1M")


def test_what_was_asked_of_the_store(cli: CommandLine) -> None:
    """``-v`` says it at the end, on stderr, also when the verb failed."""
    source = cli.folder / "source"
    source.write_bytes(b"x" * 2048)
    result = cli("-v", "storage", "cp", source, "store:a")
    assert "storage read_from: 1 calls" in result.stderr
    assert "2.0 KiB" in result.stderr
    assert "1 ObjectNotFound" in cli("storage", "ls", "missing", "-v").stderr
    assert "storage" not in cli("storage", "ls").stderr
