"""``bootstream deploy``: twice, with a failure in the middle, through a bastion, to real sshds."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped] # no stubs of it here
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.deploy.hosts import Host, bastion, make_key, make_wheel
from tests.deploy.terraform import ROOT
from tests.deploy.test_submit import serving_nomad

from bootstream.deploy.bundle import environment_file, make_bundle
from bootstream.deploy.remote import command_line
from bootstream.deploy.settings import _Reader, load_fleet
from bootstream.deploy.units import main as write_units
from bootstream.deploy.units import unit_name
from bootstream.errors import BootstreamError, InvalidInput, NotFound
from bootstream.testing.cli import CommandLine

GOOD = """
cloud = "oci"
hosts = ["10.0.0.5", "10.0.0.6"]

[values]
oci_bucket_name = "fc-template"
oci_region = "us-ashburn-1"
oci_namespace = "ns"
oci_repo_name = "e2b-templates"
"""


# -- the settings ---------------------------------------------------------------------------------


def write(folder: Path, text: str) -> Path:
    path = folder / "fleet.toml"
    path.write_text(text)
    return path


def test_settings(tmp_path: Path) -> None:
    """What is not said has a default; services go where they belong."""
    fleet = load_fleet(write(tmp_path, GOOD))
    assert fleet.manager == "10.0.0.5"
    assert fleet.services_of("10.0.0.5") == ("template-manager", "orchestrator")
    assert fleet.services_of("10.0.0.6") == ("orchestrator",)
    variables = fleet.variables_of("orchestrator")
    assert variables["TEMPLATE_BUCKET_NAME"] == "fc-template"
    assert variables["ARTIFACTS_REGISTRY_PROVIDER"] == "OCI_OCIR"


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ('cloud = "oci"', 'cloud = "ibm"', "cloud"),
        ('cloud = "oci"', "", "cloud"),
        ('"10.0.0.6"', '"-oProxyCommand=x"', "hosts"),
        ('"10.0.0.6"', '"10.0.0.5"', "hosts"),
        ('"10.0.0.6"]', '"10.0.0.6"]\nmanager = "10.0.0.9"', "manager"),
        ('"10.0.0.6"]', '"10.0.0.6"]\nmanger = "10.0.0.6"', "manger"),
        ('"10.0.0.6"]', '"10.0.0.6"]\nlisten = "0.0.0.0"', "listen"),
        ('"10.0.0.6"]', '"10.0.0.6"]\nnbd_devices = 100000', "nbd_devices"),
        ('"10.0.0.6"]', '"10.0.0.6"]\nsystem_packages = ["a; rm -rf /"]', "system_packages"),
        ('oci_namespace = "ns"', "", "values.oci_namespace"),
        ('oci_namespace = "ns"', "oci_namespace = 'a\"b'", "values.oci_namespace"),
        ("[values]", '[ssh]\nbastion = "a b"\n[values]', "ssh.bastion"),
        ("[values]", '[environment]\n"A=B" = "x"\n[values]', "environment.A=B"),
        ("[values]", '[environment]\nNODE_ID = "a\\nB=1"\n[values]', "environment.NODE_ID"),
        (
            "[values]",
            '[environment]\nBOOTSTREAM_CACHE_SIZE = "x"\n[values]',
            "BOOTSTREAM_CACHE_SIZE",
        ),
        ("[values]", "[values", "the file"),
    ],
)
def test_wrong_settings(old: str, new: str, key: str, tmp_path: Path) -> None:
    """Each mistake is told with its key, before any host is asked."""
    with pytest.raises(InvalidInput) as caught:
        load_fleet(write(tmp_path, GOOD.replace(old, new)))
    assert key in str(caught.value)


_VALUES = st.recursive(
    st.one_of(
        st.booleans(),
        st.integers(-10, 10**6),
        st.floats(allow_nan=False),
        st.text(max_size=12),
        st.sampled_from(["oci", "local", "nomad", "10.0.0.5", "~nobody-here/x", "a\x00b", "/srv"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
_KEYS = ("cloud", "mode", "hosts", "manager", "package", "wheels", "python", "system_packages")
_TABLES = ("ssh", "values", "environment", "secrets")


@given(
    changes=st.dictionaries(
        st.sampled_from([*_KEYS, *_TABLES, "listen", "nbd_devices", "other"]), _VALUES, max_size=4
    ),
    table=st.sampled_from(_TABLES),
    inner=st.dictionaries(
        st.one_of(
            st.text(max_size=8),
            st.sampled_from(["user", "bastion", "identity", "tls.key", "A", "orchestrator"]),
        ),
        _VALUES,
        max_size=3,
    ),
)
@settings(max_examples=150, deadline=None)
def test_any_settings(
    changes: dict[str, Any], table: str, inner: dict[str, Any], tmp_path_factory: Any
) -> None:
    """Whatever is in the file: settings from which hosts' releases are made, or one error."""
    folder = tmp_path_factory.getbasetemp()
    document = {**tomllib.loads(GOOD), table: inner, **changes}
    try:
        fleet = _Reader(document, folder).fleet()
    except BootstreamError:
        return
    for host in fleet.hosts:
        assert make_bundle(fleet, host).archive()


def test_files_that_are_not_there(tmp_path: Path) -> None:
    """The settings, or what they name."""
    with pytest.raises(NotFound):
        load_fleet(tmp_path / "none.toml")
    with pytest.raises(NotFound) as caught:
        load_fleet(write(tmp_path, GOOD + '[secrets]\n"tls.key" = "nowhere"\n'))
    assert "secrets.tls.key" in str(caught.value)


def test_releases_are_named_by_what_is_in_them(tmp_path: Path) -> None:
    """The same settings give the same release; another value, secret or package another one."""
    fleet = load_fleet(write(tmp_path, GOOD))
    bundle = make_bundle(fleet, "10.0.0.5")
    assert make_bundle(fleet, "10.0.0.5").archive() == bundle.archive()
    seen = {bundle.release, make_bundle(fleet, "10.0.0.6").release}
    (tmp_path / "key").write_text("one")
    for change in (
        GOOD.replace('cloud = "oci"', 'cloud = "oci"\nsystem_packages = ["libnbd-bin"]'),
        GOOD.replace('"ns"', '"other"'),
        GOOD.replace('cloud = "oci"', 'cloud = "oci"\npackage = "bootstream[oci]==9"'),
        GOOD + '[secrets]\n"tls.key" = "key"\n',
    ):
        seen.add(make_bundle(load_fleet(write(tmp_path, change)), "10.0.0.5").release)
    assert len(seen) == 6


def test_environment_files_keep_every_character(tmp_path: Path) -> None:
    """What systemd, and a shell, read from them is what the settings say."""
    odd = {"A": "quotes \" ' and \\ and $HOME and `x` and # and %", "B": "", "C": "ü"}
    path = tmp_path / "file"
    path.write_bytes(environment_file(odd))
    script = f'. {path}; printf "%s\\n" "$A" "$B" "$C"'
    shown = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert shown.stdout.split("\n")[:-1] == list(odd.values())


def test_dry_run(tmp_path: Path) -> None:
    """Each host's files with sizes and digests; no secret's content, no connection."""
    (tmp_path / "tokens").write_text("very secret")
    settings = write(tmp_path, GOOD + '[secrets]\n"tokens.json" = "tokens"\n')
    cli = CommandLine(tmp_path)
    shown = cli.ok("deploy", settings, "--dry-run")
    assert "10.0.0.5: release" in shown
    assert "etc/tokens.json" in shown
    assert "very secret" not in shown
    first, second = cli.json("deploy", settings, "--dry-run")
    assert (first["host"], second["host"]) == ("10.0.0.6", "10.0.0.5")  # the manager is last
    names = {file["name"] for file in second["files"]}
    assert "units/bootstream-template-manager.service" in names
    assert cli("deploy", settings, "--host", "10.9.9.9").code == 2


def test_jobs_for_nomad(tmp_path: Path) -> None:
    """With Nomad hosts get the program and no units; the jobs are written, filled in."""
    settings = write(tmp_path, GOOD.replace('cloud = "oci"', 'cloud = "oci"\nmode = "nomad"'))
    cli = CommandLine(tmp_path)
    plans = cli.json("deploy", settings, "--dry-run", "--jobs", tmp_path / "jobs")
    assert all(plan["services"] == [] for plan in plans)
    text = (tmp_path / "jobs" / "orchestrator.hcl").read_text()
    assert 'TEMPLATE_BUCKET_NAME          = "fc-template"' in text
    assert '"${node.unique.id}"' in text
    assert cli("deploy", write(tmp_path, GOOD), "--dry-run", "--jobs", tmp_path / "jobs").code == 2


def test_scripts_are_clean() -> None:
    """shellcheck has nothing to say."""
    scripts = [ROOT / "src/bootstream/deploy/install.sh", ROOT / "deploy-poc.sh"]
    result = subprocess.run(
        ["shellcheck", *map(str, scripts)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout


def verify(path: Path, text: str) -> list[str]:
    """What systemd finds wrong in a unit."""
    path.write_text(text)
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    return [
        line
        for line in verified.stderr.splitlines()
        if "is not executable" not in line and path.name in line  # it is not installed here
    ]


def test_units(tmp_path: Path) -> None:
    """The files are what is generated, and systemd finds no mistake in them."""
    write_units(tmp_path)
    for service in ("template-manager", "orchestrator"):
        name = unit_name(service)
        text = (tmp_path / name).read_text()
        assert text == (ROOT / "systemd" / name).read_text()
        assert verify(tmp_path / name, text) == []
        assert verify(tmp_path / name, text.replace("Restart=", "Restrat=")) != []


def test_units_of_a_store_on_the_host(tmp_path: Path) -> None:
    """A store in folders is root's, and the manager may write to it; systemd takes the unit."""
    text = 'cloud = "local"\nhosts = ["10.0.0.5"]\n[values]\nlocal_template_path = "{}"\n'
    text += 'local_registry_path = "/srv/images"\n'
    bundle = make_bundle(load_fleet(write(tmp_path, text.format("/srv/templates"))), "10.0.0.5")
    unit = bundle.contents["units/bootstream-template-manager.service"].decode()
    assert "DynamicUser" not in unit
    assert "ReadWritePaths=-/srv/templates\nReadWritePaths=-/srv/images\n" in unit
    assert verify(tmp_path / "bootstream-template-manager.service", unit) == []
    for wrong in ("templates", "/home/me/templates"):
        with pytest.raises(InvalidInput):
            load_fleet(write(tmp_path, text.format(wrong)))


# -- hosts ----------------------------------------------------------------------------------------


@dataclass
class Fleet:
    """Two hosts behind a bastion, and their settings file."""

    folder: Path
    hosts: list[Host]
    bastion: int
    lines: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def cli(self) -> CommandLine:
        return CommandLine(self.folder)

    @property
    def settings(self) -> Path:
        first, second = (host.address for host in self.hosts)
        top = "\n".join(f"{name} = {value}" for name, value in self.lines.items())
        variables = "\n".join(f'{name} = "{value}"' for name, value in self.environment.items())
        return write(
            self.folder,
            f'cloud = "oci"\nhosts = ["{first}", "{second}"]\npackage = "bootstream"\n'
            f'python = "{Path(sys.executable).resolve()}"\nhealth_seconds = 3\n{top}\n'
            '[values]\noci_bucket_name = "fc-template"\noci_region = "us-ashburn-1"\n'
            'oci_namespace = "ns"\noci_repo_name = "e2b-templates"\n'
            f'[ssh]\nuser = "root"\nport = 22\nidentity = "key"\nknown_hosts = "known"\n'
            f'bastion = "root@127.0.0.1:{self.bastion}"\n'
            f"[environment]\n{variables}\n",
        )

    def health(self, number: int, port: int) -> str:
        return (
            self.hosts[number]
            .run(
                f"{sys.executable} -c 'import urllib.request as u; "
                f'print(u.urlopen("http://127.0.0.1:{port}/health").read().decode())\''
            )
            .strip()
        )

    def deploy(self, *options: str) -> tuple[int, Any]:
        result = self.cli("deploy", self.settings, "--json", *options)
        assert result.stdout, result.stderr
        return result.code, result.json


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    if os.geteuid() != 0:
        pytest.skip("sshd in network namespaces needs root, which CI has")
    folder = tmp_path_factory.mktemp("fleet")
    key = make_key(folder / "key")
    with (
        bastion(folder / "bastion", key) as (port, bastion_key),
        Host(folder, 1, key) as first,
        Host(folder, 2, key) as second,
    ):
        known = [f"[127.0.0.1]:{port} {public(bastion_key)}"]
        known += [f"{host.address} {public(host.host_key)}" for host in (first, second)]
        (folder / "known").write_text("".join(known))
        yield Fleet(folder, [first, second], port, {"wheels": '"v1"'})


def public(key: Path) -> str:
    return key.with_name(f"{key.name}.pub").read_text()


def test_look(fleet: Fleet) -> None:
    """``--check`` tells what is to be done, and changes nothing."""
    make_wheel(fleet.folder / "v1", "1")
    make_wheel(fleet.folder / "v2", "2")
    code, looked = fleet.deploy("--check")
    assert code == 0, looked
    assert {host["result"] for host in looked["hosts"]} == {"to be installed"}
    assert fleet.hosts[0].run("ls /opt/bootstream 2>/dev/null || true") == ""


def test_one_host(fleet: Fleet) -> None:
    """A host that is no manager: program, settings that are root's alone, driver, one unit."""
    host = fleet.hosts[1]
    code, done = fleet.deploy("--host", host.address)
    assert code == 0, done
    assert [one["result"] for one in done["hosts"]] == ["installed"]
    assert fleet.health(1, 5008) == "1 fc-template"
    assert host.run("stat -c %a /opt/bootstream/current/etc/orchestrator.env") == "600\n"
    assert "nbds_max=64" in host.run("cat /etc/modprobe.d/bootstream.conf")
    assert host.modprobe_log.read_text() == "nbd\n"
    assert "template-manager" not in host.run("ls /etc/systemd/system")
    assert host.run("ls -d /tmp/bootstream-deploy-* 2>/dev/null || true") == ""


def test_the_rest_and_again(fleet: Fleet) -> None:
    """The other host follows; a second run touches nothing and restarts nothing."""
    code, done = fleet.deploy()
    assert code == 0, done
    assert [host["result"] for host in done["hosts"]] == ["unchanged", "installed"]
    assert fleet.health(0, 5009) == fleet.health(0, 5008) == "1 fc-template"
    process = fleet.hosts[0].run("pgrep -f '[b]ootstream orchestrator'")
    code, again = fleet.deploy()
    assert code == 0
    assert [host["result"] for host in again["hosts"]] == ["unchanged", "unchanged"]
    assert all(host["steps"] == [] for host in again["hosts"])
    assert fleet.hosts[0].run("pgrep -f '[b]ootstream orchestrator'") == process


def test_going_back(fleet: Fleet) -> None:
    """A release whose manager does not start: that host goes back, the other one has the new."""
    before = fleet.hosts[0].run("readlink /opt/bootstream/current").strip()
    fleet.environment["BROKEN"] = "template-manager"
    try:
        code, done = fleet.deploy()
    finally:
        del fleet.environment["BROKEN"]
    assert code == 1
    assert [host["result"] for host in done["hosts"]] == ["installed", "rolled back"]
    assert fleet.hosts[0].run("readlink /opt/bootstream/current").strip() == before
    assert fleet.health(0, 5009) == fleet.health(0, 5008) == "1 fc-template"
    result = fleet.cli("deploy", fleet.settings)
    assert result.code == 0, result  # what was right before is right again
    assert "unchanged" in result.stdout


def test_first_host_stops_it(fleet: Fleet) -> None:
    """A failure on the first host: the others keep what they have, and are named."""
    fleet.environment["BROKEN"] = "orchestrator"
    try:
        code, done = fleet.deploy()
    finally:
        del fleet.environment["BROKEN"]
    assert code == 1
    assert [host["result"] for host in done["hosts"]] == ["rolled back"]
    assert done["not_done"] == [fleet.hosts[0].address]
    assert fleet.health(1, 5008) == "1 fc-template"


def test_upgrade_and_killed_in_the_middle(fleet: Fleet) -> None:
    """What a killed run left half installed is made anew; then the new version runs."""
    fleet.lines["wheels"] = '"v2"'
    host = fleet.hosts[1]
    bundle = make_bundle(load_fleet(fleet.settings), host.address)
    (line,) = [
        text for text in bundle.contents["release.env"].decode().split() if "PROGRAM_ID" in text
    ]
    program = f"/opt/bootstream/programs/{line.partition('=')[2]}"
    host.run(f"mkdir -p {program}/bin && echo broken >{program}/bin/python")
    host.run(f"mkdir -p /opt/bootstream/releases/{bundle.release}/etc")
    code, done = fleet.deploy("--host", host.address)
    assert code == 0, done
    assert fleet.health(1, 5008) == "2 fc-template"
    current = host.run("readlink /opt/bootstream/current").strip()
    assert current == f"releases/{bundle.release}"


def test_over_to_nomad(fleet: Fleet) -> None:
    """Units go, the program stays where the jobs look for it, and the jobs are submitted."""
    host = fleet.hosts[1]
    fleet.lines["mode"] = '"nomad"'
    variables = {"NOMAD_TOKEN": "secret-token"}
    try:
        with serving_nomad() as nomad:
            cli = CommandLine(fleet.folder, {**variables, "NOMAD_ADDR": nomad.address})
            done = cli.json("deploy", fleet.settings, "--host", host.address, "--submit")
            again = cli.json("deploy", fleet.settings, "--host", host.address, "--submit")
    finally:
        del fleet.lines["mode"]
    assert done["hosts"][0]["result"] == "installed"
    assert set(done["jobs"].values()) == {"submitted"}
    assert again["hosts"][0]["result"] == "unchanged"
    assert set(again["jobs"].values()) == {"unchanged"}
    assert host.run("ls /etc/systemd/system/bootstream-* 2>/dev/null || true") == ""
    assert host.run("pgrep -f '[b]ootstream orchestrator' || true") == ""
    assert host.run("test -x /opt/bootstream/bin/bootstream && echo there") == "there\n"


def test_hosts_that_are_not_reached(fleet: Fleet) -> None:
    """An unknown host key, a key that is refused: told with what helps; nothing is asked."""
    known = (fleet.folder / "known").read_text()
    (fleet.folder / "known").write_text(known.splitlines()[0] + "\n")
    try:
        result = fleet.cli("deploy", fleet.settings)
    finally:
        (fleet.folder / "known").write_text(known)
    assert result.code == 6, result
    assert "Host key verification failed" in result.stderr
    assert "known_hosts" in result.stderr
    good = (fleet.folder / "key").read_bytes()
    (fleet.folder / "key").unlink()
    stranger = make_key(fleet.folder / "stranger")
    (fleet.folder / "key").write_bytes(stranger.read_bytes())
    (fleet.folder / "key").chmod(0o600)
    try:
        result = fleet.cli("deploy", fleet.settings)
    finally:
        (fleet.folder / "key").write_bytes(good)
    assert result.code in (5, 6), result
    assert "ermission denied" in result.stderr or "closed" in result.stderr
    assert "not done" in result.stdout


def test_ssh_commands(tmp_path: Path) -> None:
    """Nothing of the settings can become an option or another command."""
    (tmp_path / "id's key").write_text("")
    text = GOOD + '[ssh]\nuser = "opc"\nbastion = "opc@bastion:2222"\nidentity = "id\'s key"\n'
    fleet = load_fleet(write(tmp_path, text))
    command = command_line(fleet.ssh, "10.0.0.6")
    assert command[-2:] == ["--", "10.0.0.6"]
    proxy = next(word for word in command if word.startswith("ProxyCommand="))
    words = shlex.split(proxy.removeprefix("ProxyCommand="))
    assert words[words.index("-i") + 1] == str(tmp_path / "id's key")
    assert words[-2:] == ["--", "bastion"]
    assert words[words.index("-W") + 1] == "[%h]:%p"


def test_the_guides_script(tmp_path: Path) -> None:
    """deploy-poc.sh makes the settings of its variables, and hands the rest on."""
    scripts = Path(sys.executable).parent
    variables = {
        **CommandLine(tmp_path).variables,
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        "OCI_REGION": "us-ashburn-1",
        "OCI_NAMESPACE": "ns",
        "TEMPLATE_BUCKET_NAME": "fc-template",
        "HOSTS": "10.0.0.5 10.0.0.6",
        "TMPDIR": str(tmp_path),
    }

    def run(**changes: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(ROOT / "deploy-poc.sh"), "--dry-run"],
            env={**variables, **changes},
            capture_output=True,
            text=True,
            check=False,
        )

    done = run()
    assert done.returncode == 0, done.stderr
    assert re.search(r"10\.0\.0\.5: release \w+, template-manager, orchestrator", done.stdout)
    assert not list(tmp_path.glob("fleet-*"))
    missing = run(OCI_NAMESPACE="")
    assert "OCI_NAMESPACE" in missing.stderr
    assert run(TEMPLATE_BUCKET_NAME='a"b').returncode == 2


def test_containers() -> None:
    """The extras that the image installs exist, and compose starts verbs with known variables."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    text = (ROOT / "containers" / "Containerfile").read_text("utf-8")
    (extras,) = re.findall(r"/src\[([a-z,]+)\]", text)
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
    settings = (ROOT / "docs" / "settings.md").read_text("utf-8")
    services = yaml.safe_load((ROOT / "containers" / "compose.yaml").read_text("utf-8"))["services"]
    assert set(services) == {"template-manager", "orchestrator"}
    for name, service in services.items():
        assert service["command"] == [name]
        assert all(f"`{variable}`" in settings for variable in service["environment"])
