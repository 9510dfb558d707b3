"""The main job by the command line: build, look, change, tidy; output as scripts rely on it."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import subprocess
from datetime import datetime
from pathlib import Path

import pytest

from bootstream.cli.demo_image import TAG, write_layout
from bootstream.testing.cli import COMMAND, CommandLine

BUILD_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions of one image, as OCI layouts ``one`` and ``two``."""
    folder = tmp_path_factory.mktemp("images")
    write_layout(folder / "one", message="version 1")
    write_layout(folder / "two", message="version 2")
    return folder


@pytest.fixture(scope="module")
def cli(images: Path, tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    """A store with both versions built; tests that share it change nothing."""
    cli = CommandLine(tmp_path_factory.mktemp("shared"))
    for tag, version in (("1", "one"), ("2", "two")):
        result = cli("build", f"oci:{images / version}:{TAG}", "-t", f"demo:{tag}")
        assert result.code == 0, result
        assert BUILD_ID.fullmatch(result.stdout.strip())
        assert result.stderr == "", "a build is quiet when piped"
    return cli


@pytest.fixture
def own(images: Path, tmp_path: Path) -> CommandLine:
    """A store of the test's own, with version one built as ``demo:1``."""
    cli = CommandLine(tmp_path)
    cli.ok("build", f"oci:{images / 'one'}:{TAG}", "-t", "demo:1")
    return cli


def files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if not path.is_dir())


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# -- looking ---------------------------------------------------------------------------------


def test_ls(cli: CommandLine) -> None:
    """One entry a build, oldest first, as text and JSON."""
    builds = cli.json("ls")
    assert [build["tags"] for build in builds] == [["1"], ["2"]]
    for build in builds:
        assert set(build) >= {
            "template_id", "build_id", "tags", "created", "size", "stored_size", "parent",
            "artifacts",
        }  # fmt: skip
        assert datetime.fromisoformat(build["created"]).tzinfo is not None
        assert build["artifacts"] == ["rootfs.ext4"]
    assert builds[0]["parent"] is None
    lines = cli.ok("ls").splitlines()
    assert lines[0].split() == ["TEMPLATE", "TAGS", "BUILD", "CREATED", "SIZE", "STORED"]
    assert [line.split()[2] for line in lines[1:]] == [build["build_id"] for build in builds]
    assert cli.json("ls", "demo") == builds
    assert cli.json("ls", "other") == []


def test_second_build_stores_little(cli: CommandLine) -> None:
    """A rebuild with one changed file names the first as its parent when told, and shares."""
    first, second = cli.json("show", "demo:1"), cli.json("show", "demo:2")
    assert second["parent"] == first["build_id"]
    assert second["depends_on"] == [first["build_id"]]
    stored = [shown["artifacts"]["rootfs.ext4"]["stored_size"] for shown in (first, second)]
    assert stored[1] < stored[0] * 0.1


def test_show(cli: CommandLine) -> None:
    """The manifest and the tags; the text names the same build."""
    shown = cli.json("show", "demo:1")
    assert shown["tags"] == ["1"]
    assert shown["state"] == "published"
    assert shown["image"]["cmd"] == ["/usr/bin/app"]
    text = cli.ok("show", shown["build_id"])
    assert shown["build_id"] in text
    assert shown["image"]["digest"] in text


def test_inspect(cli: CommandLine, tmp_path: Path) -> None:
    """Parts add up to the image, and the pictures are what they say."""
    report = cli.json("inspect", "demo:2")
    first = cli.json("show", "demo:1")["build_id"]
    assert {part["kind"] for part in report["parts"]} == {"zero", "own", "ancestor"}
    assert [p["build_id"] for p in report["parts"] if p["kind"] == "ancestor"] == [first]
    assert sum(part["size"] for part in report["parts"]) == report["size"]
    assert sum(part["chunks"] for part in report["parts"]) == report["chunks"]
    stored = cli.json("show", "demo:2")["artifacts"]["rootfs.ext4"]["stored_size"]
    own = next(part for part in report["parts"] if part["kind"] == "own")
    assert own["stored_size"] == stored
    text = cli.ok("inspect", "demo:2")
    assert first in text
    assert "\x1b" not in text, "no colours into a pipe"
    for name, start in (("map.svg", "<svg"), ("map.html", "<!DOCTYPE html>")):
        cli.ok("inspect", "demo:2", "--picture", tmp_path / name)
        drawn = (tmp_path / name).read_text("utf-8")
        assert drawn.startswith(start)
        assert first[:8] in drawn
    assert cli("inspect", "demo:2", "--picture", tmp_path / "map.bmp").code == 2


def test_verify(cli: CommandLine) -> None:
    """A sound build is said to be sound."""
    report = cli.json("verify", "demo:2")
    assert (report["ok"], report["problems"]) == (True, [])
    assert report["chunks"] > 0
    assert "sound" in cli.ok("verify", "demo:1")


def test_cat(cli: CommandLine) -> None:
    """Both forms, through a symbolic link, and what is not there."""
    assert cli.ok("cat", "demo:1:/etc/message") == "version 1"
    assert cli.ok("cat", "demo:2", "etc/message") == "version 2"
    assert cli.ok("cat", "demo:1:/lib/python3/abc.py") == Path(os.__file__).with_name(
        "abc.py"
    ).read_text("utf-8").rstrip("\n")
    missing = cli("cat", "demo:1:/etc/motd")
    assert (missing.code, missing.stdout) == (3, "")
    assert "/etc/motd" in missing.stderr
    assert cli("cat", "demo:1:/etc").code == 2
    assert cli("cat", "demo:1").code == 2


def test_files(cli: CommandLine) -> None:
    """Types, modes, owners and links of what the image's layers made."""
    entries = {entry["path"]: entry for entry in cli.json("files", "demo:1", "/", "-R")}
    assert "/etc/motd" not in entries, "a whiteout deleted it"
    assert "/var/cache/old/one" not in entries, "an opaque directory hides it"
    assert entries["/var/cache/old/two"]["type"] == "file"
    assert entries["/usr/bin/su"]["mode"] == "4755"
    assert entries["/tmp"] | {"size": 0} == entries["/tmp"] | {"type": "directory", "size": 0}
    assert entries["/tmp"]["mode"] == "1777"
    assert (entries["/lib"]["type"], entries["/lib"]["target"]) == ("symlink", "usr/lib")
    assert (entries["/home/app/notes"]["uid"], entries["/home/app/notes"]["mode"]) == (1000, "0600")
    assert entries["/srv/data"]["size"] == 256 * 8192
    assert entries["/etc/message"]["mtime"].startswith("2023-11-14T22:13:20")
    long_ = cli.ok("files", "demo:1:/usr/bin", "-l").splitlines()
    assert re.search(r"^-rwsr-xr-x +0:0 +\d+ +\S+ \S+ +/usr/bin/su$", "\n".join(long_), re.M)
    assert cli.ok("files", "demo:1", "/etc/message") == "/etc/message"


def test_cp(cli: CommandLine, tmp_path: Path) -> None:
    """A file, a file into a folder, a folder; never over what is there."""
    cli.ok("cp", "demo:1:/etc/message", tmp_path / "message")
    cli.ok("cp", "demo:2:/etc/message", tmp_path / "message")
    assert (tmp_path / "message").read_text() == "version 2\n"
    cli.ok("cp", "demo:1:/srv/data", tmp_path)
    assert (tmp_path / "data").read_bytes() == bytes(range(256)) * 8192
    cli.ok("cp", "demo:1:/etc", tmp_path / "etc")
    assert (tmp_path / "etc" / "app-release").read_bytes().startswith(b'NAME="Demo"')
    cli.ok("cp", "demo:1:/usr", tmp_path / "usr")
    assert stat.S_IMODE((tmp_path / "usr/bin/su").stat().st_mode) == 0o755, "without setuid"
    assert (tmp_path / "usr/bin/su").stat().st_mtime == 1_700_000_000
    assert cli("cp", "demo:1:/etc", tmp_path / "etc" / "..").code == 4


def test_export_is_sparse_whole_and_careful(cli: CommandLine, tmp_path: Path) -> None:
    """e2fsck is content; an existing file stays unless --force; no temporary is left."""
    target = tmp_path / "image"
    cli.ok("export", "demo:1", target)
    subprocess.run(["e2fsck", "-fn", target], check=True, capture_output=True)
    status = target.stat()
    assert status.st_blocks * 512 < status.st_size
    again = cli("export", "demo:1", target)
    assert again.code == 4
    assert "--force" in again.stderr
    cli.ok("export", "demo:2", target, "--force")
    assert list(tmp_path.iterdir()) == [target]
    assert cli("export", "demo:1", tmp_path / "no" / "folder").code == 3
    assert cli("export", "demo:1", tmp_path).code == 2
    assert cli("export", "demo:1", tmp_path / "x", "--artifact", "memfile").code == 2


def test_du(cli: CommandLine) -> None:
    """Own and shared bytes; own bytes are those of the files in the store."""
    first, second = cli.json("du", "demo")
    assert second["shared_size"] > second["own_size"]
    assert first["shared_size"] == 0
    assert first["dependents"] == 1
    for build in (first, second):
        folder = cli.store / build["build_id"]
        assert build["own_size"] == sum(p.stat().st_size for p in files_below(folder))
    assert cli.ok("du").splitlines()[-1].startswith("total")


def test_store_option_before_and_after_the_verb(cli: CommandLine, tmp_path: Path) -> None:
    """--store takes the variable's place wherever it stands."""
    elsewhere = CommandLine(tmp_path)
    assert elsewhere.json("ls") == []
    expected = cli.json("ls")
    assert elsewhere.json("--store", cli.store, "ls") == expected
    assert elsewhere.json("ls", "--store", cli.store) == expected


def test_logs_and_progress_are_on_stderr(images: Path, tmp_path: Path) -> None:
    """-v says what is done, and stdout still holds the build id alone."""
    result = CommandLine(tmp_path)("build", f"oci:{images / 'one'}:{TAG}", "-t", "a", "-v")
    assert BUILD_ID.fullmatch(result.stdout.strip())
    assert "rootfs" in result.stderr


# -- changing --------------------------------------------------------------------------------


def test_json_build_and_options(images: Path, tmp_path: Path) -> None:
    """Options reach the file system and the writer."""
    cli = CommandLine(tmp_path)
    (tmp_path / "init").write_text("#!/bin/sh\n")
    built = cli.json(
        "build", f"oci:{images / 'one'}:{TAG}", "-t", "demo", "--size", "64M", "--label", "root",
        "--add", f"{tmp_path / 'init'}:/sbin/init:0700:5:6", "--chunk-size", "128k",
        "--parent", "none", "--threads", "1", "--level", "1",
        "--build-id", "00000000-0000-4000-8000-000000000001",
    )  # fmt: skip
    assert built["build_id"] == "00000000-0000-4000-8000-000000000001"
    assert built["size"] == 64 << 20
    assert set(built) >= {"template_id", "parent", "stored_size", "artifacts"}
    (init,) = cli.json("files", "demo", "/sbin/init")
    assert (init["mode"], init["uid"], init["gid"]) == ("0700", 5, 6)
    assert cli.json("show", "demo")["artifacts"]["rootfs.ext4"]["chunk_size"] == 128 << 10
    cli.ok("export", "demo", tmp_path / "image")
    label = subprocess.run(
        ["dumpe2fs", "-h", tmp_path / "image"], check=True, capture_output=True, text=True
    ).stdout
    assert re.search(r"volume name: +root$", label, re.M)


def test_build_id_is_used_once(own: CommandLine, images: Path) -> None:
    """A second build under the same id is a conflict and harms nothing."""
    build_id = own.json("show", "demo:1")["build_id"]
    again = own("build", f"oci:{images / 'two'}:{TAG}", "-t", "demo:2", "--build-id", build_id)
    assert (again.code, again.stdout) == (4, "")
    assert "remedy: " in again.stderr
    assert own.json("verify", "demo:1")["ok"]
    assert own("show", "demo:2").code == 3


def test_import_gives_back_what_was_imported(tmp_path: Path) -> None:
    """Raw and chunked, with other artifacts; bytes come back the same."""
    cli = CommandLine(tmp_path)
    disk, memory = tmp_path / "disk", tmp_path / "memory"
    disk.write_bytes(os.urandom(300_000) + bytes(400_000) + b"end")
    memory.write_bytes(b"page" * 100_000)
    cli.ok("import", disk, "-t", "vm", "--artifact", f"memfile={memory}")
    raw = cli.json("import", disk, "-t", "vm:raw", "--form", "raw")
    assert cli.json("show", raw["build_id"])["artifacts"]["rootfs.ext4"]["form"] == "raw"
    cli.ok("export", "vm", tmp_path / "d")
    cli.ok("export", "vm:raw", tmp_path / "r")
    cli.ok("export", "vm", tmp_path / "m", "--artifact", "memfile")
    assert sha256(tmp_path / "d") == sha256(tmp_path / "r") == sha256(disk)
    assert sha256(tmp_path / "m") == sha256(memory)
    assert cli.json("verify", "vm")["ok"]
    assert cli.json("verify", "vm:raw")["ok"]
    assert cli("import", tmp_path / "nothing", "-t", "x").code == 2
    assert cli("import", disk, "-t", "x", "--artifact", "bad").code == 2
    assert cli("import", disk, "-t", "No:x").code == 2


def test_tag(own: CommandLine) -> None:
    """Another name for a build; conditional, and only within its template."""
    build_id = own.json("show", "demo:1")["build_id"]
    own.ok("tag", "demo:1", "demo")
    assert own.json("show", "demo")["build_id"] == build_id
    other = "00000000-0000-4000-8000-000000000001"
    assert own("tag", "demo:1", "demo", "--if-current", other).code == 4
    own.ok("tag", "demo:1", "demo", "--if-current", build_id)
    assert own("tag", "demo:1", "another").code == 2
    assert own("tag", "demo:none", "demo:3").code == 3


def test_remove_and_collect_leave_nothing(own: CommandLine, images: Path) -> None:
    """``rm`` takes builds out of listings, ``gc`` their bytes; the store ends empty."""
    own.ok("build", f"oci:{images / 'two'}:{TAG}", "-t", "demo:2")
    first = own.json("show", "demo:1")["build_id"]
    assert own("rm", "demo").code == 4, "there are tags that were not named"
    assert own.ok("rm", "demo:1") == first
    assert [build["tags"] for build in own.json("ls")] == [["2"]]
    held = own.json("gc", "--older-than", "0s")["held"]
    assert "reads from it" in held[first]
    assert own.json("verify", "demo:2")["ok"], "what is read from stays"
    dry = own.json("gc", "--older-than", "0s", "--dry-run")
    assert dry["dry_run"] is True
    own.ok("rm", "demo", "--all")
    assert own.json("ls") == []
    assert files_below(own.store), "bytes are reclaimed by gc alone"
    assert own.json("gc")["builds"] == [], "not before their time"
    before = files_below(own.store)
    own.ok("gc", "--older-than", "0s", "--dry-run")
    assert files_below(own.store) == before
    collected = own.json("gc", "--older-than", "0s")
    assert len(collected["builds"]) == 2
    assert collected["size"] > 0
    assert files_below(own.store) == []


def test_prune(tmp_path: Path) -> None:
    """The newest, the tagged and what ``latest`` names stay."""
    cli = CommandLine(tmp_path)
    disk = tmp_path / "disk"
    built = {}
    for tag in ("stable", "latest", "a", "b", "c"):
        disk.write_text(tag * 1000)
        built[tag] = cli.ok("import", disk, "-t", f"vm:{tag}", "--parent", "none")
    arguments = ("prune", "vm", "--keep-last", "1", "--keep-tag", "sta*")
    planned = cli.json(*arguments, "--dry-run")
    assert planned == {"deleted": [built["a"], built["b"]], "kept": 3, "dry_run": True}
    assert len(cli.json("ls", "vm")) == 5
    assert cli.ok(*arguments).split() == [built["a"], built["b"]]
    assert [build["tags"] for build in cli.json("ls")] == [["stable"], ["latest"], ["c"]]
    assert cli("prune", "vm").code == 2
    assert cli("prune", "nothing", "--keep-last", "1").code == 3


# -- failing ---------------------------------------------------------------------------------


def test_missing_things_say_what_there_is(cli: CommandLine, tmp_path: Path) -> None:
    """Exit code 3 with a remedy, for images, templates, tags and builds."""
    for arguments in (
        ("build", f"oci:{tmp_path / 'none'}", "-t", "x"),
        ("show", "nothing"),
        ("show", "demo:9"),
        ("show", "00000000-0000-4000-8000-000000000009"),
        ("rm", "demo:9"),
        ("verify", "nothing"),
    ):
        result = cli(*arguments)
        assert (result.code, result.stdout) == (3, ""), (arguments, result)
        assert result.stderr.startswith("error: ")
        assert "Traceback" not in result.stderr
    assert "its tags: 1, 2" in cli("show", "demo:9").stderr


def test_missing_platform(cli: CommandLine, images: Path) -> None:
    """An architecture that the image does not have is not replaced by another."""
    result = cli("build", f"oci:{images / 'one'}:{TAG}", "-t", "x", "--platform", "linux/s390x")
    assert result.code == 3
    assert "s390x" in result.stderr
    assert cli("show", "x").code == 3


def test_corruption_is_exit_code_seven(own: CommandLine, tmp_path: Path) -> None:
    """One flipped byte in a pack: verify and export say so, and no file appears."""
    (pack,) = own.store.glob("*/rootfs.ext4.pack")
    data = bytearray(pack.read_bytes())
    data[len(data) // 2] ^= 1
    pack.chmod(0o600)
    pack.write_bytes(data)
    checked = own("verify", "demo:1", "--json")
    assert checked.code == 7
    assert checked.json["ok"] is False
    assert checked.json["problems"]
    assert own("verify", "demo:1").code == 7
    assert own("export", "demo:1", tmp_path / "image").code == 7
    assert not list(tmp_path.glob("*image*"))


def test_unreachable_registry_is_exit_code_six(tmp_path: Path) -> None:
    """A refused connection, after retries, names the registry."""
    result = CommandLine(tmp_path)("build", "127.0.0.1:1/a/b:c", "-t", "x", "--plain-http")
    assert result.code == 6
    assert "127.0.0.1:1" in result.stderr


def test_denied_store_is_exit_code_five(tmp_path: Path) -> None:
    """A store that this user may not write; root lays its powers down for it."""
    store = tmp_path / "templates"
    store.mkdir(mode=0o500)
    (tmp_path / "disk").write_text("x")
    powerless = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]
    prefix = powerless if os.geteuid() == 0 else []
    try:
        result = subprocess.run(
            [*prefix, *COMMAND, "import", str(tmp_path / "disk"), "-t", "x"],
            env=CommandLine(tmp_path).variables,
            capture_output=True,
            text=True,
            check=False,
            timeout=20,
        )
    finally:
        store.chmod(0o700)
    assert result.returncode == 5, result.stderr
    assert "Traceback" not in result.stderr


def test_reader_that_goes_away_is_no_error(cli: CommandLine) -> None:
    """``bootstream files … | head -1`` says nothing on stderr."""
    with subprocess.Popen(
        [*COMMAND, "cat", "demo:1:/srv/data"],
        env=cli.variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(20) == 141
