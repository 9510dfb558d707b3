"""Hosts to deploy to: network and mount namespaces, each with a real sshd.

A host sees this machine's files, with folders of its own over ``/opt``, ``/etc`` and ``/var``, and
reaches nothing but us. Its ``systemctl`` is ``systemctl.py``, which starts what units say: a
namespace has no systemd. Needs root, as the project's gate has it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
import socket
import subprocess
import sys
import time
import zipfile
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
_INSIDE = """\
set -e
mount --make-rprivate /
mkdir -p {folder}/over && mount -t tmpfs tmpfs {folder}/over
for name in opt etc var; do
  mkdir -p {folder}/over/$name-upper {folder}/over/$name-work
  mount -t overlay overlay \
    -o lowerdir=/$name,upperdir={folder}/over/$name-upper,workdir={folder}/over/$name-work /$name
done
mkdir -p /etc/systemd/system /etc/modules-load.d /etc/modprobe.d
ip link set lo up
echo up
exec {sshd}
"""


class Host:
    """One host, up while the context lasts.

    Attributes:
        address: where its sshd listens, at port 22.
    """

    def __init__(self, folder: Path, number: int, key: Path) -> None:
        self._folder = folder / f"host{number}"
        self._folder.mkdir(parents=True)
        self._key = key
        self._interface = f"bs{os.getpid() % 100_000}x{number}"
        net = f"10.{200 + os.getpid() % 50}.{os.getpid() // 50 % 250}"
        self._ours, self.address = f"{net}.{4 * number + 1}", f"{net}.{4 * number + 2}"
        self._process: subprocess.Popen[str] | None = None
        self.host_key = make_key(self._folder / "host_key")

    def __enter__(self) -> Host:
        programs = self._folder / "bin"
        programs.mkdir()
        for name, text in {
            "systemctl": f'exec {sys.executable} {HERE}/systemctl.py {self._folder}/units "$@"',
            "modprobe": f'echo "$@" >>{self._folder}/modprobe.log; exit 1',
        }.items():
            (programs / name).write_text(f"#!/bin/sh\n{text}\n")
            (programs / name).chmod(0o755)
        python = Path(sys.executable).resolve().parent
        path = f"{programs}:{python}:/usr/sbin:/usr/bin:/sbin:/bin"
        config = sshd_config(self._folder, self.address, 22, self.host_key, self._key, path)
        script = _INSIDE.format(
            folder=shlex.quote(str(self._folder)), sshd=f"/usr/sbin/sshd -D -e -f {config}"
        )
        log = (self._folder / "sshd.log").open("w")
        with log:
            self._process = subprocess.Popen(
                [
                    "unshare",
                    "--mount",
                    "--net",
                    "--pid",
                    "--fork",
                    "--mount-proc",
                    "--kill-child",
                    "sh",
                    "-c",
                    f"read line; {script}",
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        process = self._process
        try:
            inside = self._child(process.pid)
            ip = ["ip", "link"]
            run(
                *ip, "add", self._interface, "type", "veth", "peer", "name", "eth0", "netns", inside
            )
            run("ip", "address", "add", f"{self._ours}/30", "dev", self._interface)
            run(*ip, "set", self._interface, "up")
            for command in (
                f"ip address add {self.address}/30 dev eth0",
                "ip link set eth0 up",
            ):
                run("nsenter", "-t", inside, "-n", *command.split())
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("go\n")
            process.stdin.close()
            assert process.stdout.readline() == "up\n", (self._folder / "sshd.log").read_text()
            wait_for(self.address, 22)
        except BaseException:
            self.close()
            raise
        return self

    def _child(self, parent: int) -> str:
        """The first process inside, by its number here."""
        listing = Path(f"/proc/{parent}/task/{parent}/children")
        end = time.monotonic() + 10
        while not (found := listing.read_text().split()):
            assert time.monotonic() < end, "unshare starts nothing"
            time.sleep(0.01)
        return found[0]

    def run(self, command: str) -> str:
        """Run a command inside by the shell; return what it printed."""
        assert self._process is not None
        inside = self._child(self._process.pid)
        return run("nsenter", "-t", inside, "-m", "-n", "-p", "sh", "-c", command)

    @property
    def modprobe_log(self) -> Path:
        """What modprobe was called with."""
        return self._folder / "modprobe.log"

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all that runs inside; its network goes with it."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        with contextlib.suppress(subprocess.CalledProcessError):
            subprocess.run(
                ["ip", "link", "del", self._interface], check=True, stderr=subprocess.DEVNULL
            )


@contextlib.contextmanager
def bastion(folder: Path, key: Path) -> Iterator[tuple[int, Path]]:
    """Run an sshd on loopback; yield its port and its public key's file."""
    folder.mkdir()
    host_key = make_key(folder / "host_key")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    config = sshd_config(folder, "127.0.0.1", port, host_key, key, os.environ["PATH"])
    with (folder / "sshd.log").open("w") as log:
        process = subprocess.Popen(["/usr/sbin/sshd", "-D", "-e", "-f", str(config)], stderr=log)
    try:
        wait_for("127.0.0.1", port)
        yield port, host_key
    finally:
        process.terminate()
        process.wait()


def sshd_config(
    folder: Path, address: str, port: int, host_key: Path, key: Path, path: str
) -> Path:
    """Write sshd's configuration: one key, no passwords."""
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    config = folder / "sshd_config"
    config.write_text(
        f"ListenAddress {address}\nPort {port}\nHostKey {host_key}\n"
        f"AuthorizedKeysFile {key}.pub\nPidFile none\nStrictModes no\nUsePAM no\n"
        "PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin yes\n"
        f"SetEnv PATH={path}\nUseDNS no\n"
    )
    return config


def make_key(path: Path) -> Path:
    """Make a key pair."""
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(path))
    return path


def wait_for(address: str, port: int) -> None:
    """Return when somebody listens there."""
    end = time.monotonic() + 15
    while True:
        try:
            socket.create_connection((address, port), timeout=1).close()
        except OSError:
            assert time.monotonic() < end, f"nobody listens on {address}:{port}"
            time.sleep(0.02)
        else:
            return


def run(*command: str) -> str:
    """Run a command that has to succeed; return its output."""
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=25)
    assert result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"
    return result.stdout


_PROGRAM = """\
import http.server, os, sys
if os.environ.get("BROKEN") == sys.argv[1]:
    sys.exit("broken as asked")
ports = {"template-manager": 5009, "orchestrator": 5008}
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = ("VERSION " + os.environ.get("TEMPLATE_BUCKET_NAME", "")).encode()
        self.send_response(200 if self.path == "/health" else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
def main():
    http.server.HTTPServer(("127.0.0.1", ports[sys.argv[1]]), Handler).serve_forever()
"""


def make_wheel(folder: Path, version: str) -> Path:
    """Write a wheel whose ``bootstream SERVICE`` answers ``/health``, without any dependency.

    It stands for the package, whose own dependencies an index would have to give.
    """
    folder.mkdir(parents=True, exist_ok=True)
    info = f"bootstream-{version}.dist-info"
    content = {
        "bootstream.py": _PROGRAM.replace("VERSION", version),
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: bootstream\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[console_scripts]\nbootstream = bootstream:main\n",
    }
    record = []
    path = folder / f"bootstream-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, text in content.items():
            data = text.encode()
            digest = urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            record.append(f"{name},sha256={digest},{len(data)}\n")
            wheel.writestr(zipfile.ZipInfo(name), data)
        wheel.writestr(zipfile.ZipInfo(f"{info}/RECORD"), "".join(record) + f"{info}/RECORD,,\n")
    return path
