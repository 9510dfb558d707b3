"""Runs a release's script on a host over ssh, through a bastion where there is one.

The system's ssh does it, with its agent, its configuration and its known hosts; it never asks
anything. The archive goes in by standard input, into a folder of its own that goes with the
connection; what the script needs is in it, so no value becomes part of a command line.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from bootstream.deploy.bundle import Bundle
from bootstream.deploy.settings import SshSettings
from bootstream.errors import BootstreamError, NotFound, PermissionDenied, Unavailable

_UNREACHED = 255
_MOST_LINES = 50
_SCRIPT = """\
umask 077
d=$(mktemp -d /tmp/bootstream-deploy-XXXXXXXX) || exit 1
trap 'rm -rf "$d"' EXIT
trap 'exit 129' HUP INT TERM PIPE
tar -x -C "$d" || exit 1
if [ "$(id -u)" = 0 ]; then sh "$d/install.sh" {verb} </dev/null
else sudo -n sh "$d/install.sh" {verb} </dev/null; fi
"""
_HINTS = {
    "Permission denied": "see that the key is known there: ssh-copy-id, or [ssh] identity",
    "Host key verification failed": "connect once by hand and compare the key, or name a "
    "known_hosts file in [ssh]",
    "Could not resolve": "see that the host's name is right",
    "timed out": "see that the port is open from here, or set a bastion in [ssh]",
    "refused": "see that sshd listens there, and at which port",
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a script ended on a host.

    ``result``: as it says itself, such as ``installed``; ``steps`` and ``missing`` likewise.
    """

    result: str
    code: int
    steps: tuple[str, ...]
    missing: tuple[str, ...]
    status: tuple[str, ...]


def command_line(ssh: SshSettings, host: str) -> list[str]:
    """Return the command that reaches a host, without what is run there."""
    command = [
        "ssh",
        "-T",
        "-o",
        "BatchMode=yes",
        "-o",
        f"ConnectTimeout={ssh.connect_seconds}",
        "-o",
        "ServerAliveInterval=15",
        "-o",
        "ServerAliveCountMax=4",
    ]
    if ssh.known_hosts is not None:
        command += ["-o", f"UserKnownHostsFile={ssh.known_hosts}"]
    if ssh.identity is not None:
        command += ["-i", str(ssh.identity), "-o", "IdentitiesOnly=yes"]
    if ssh.bastion is not None:
        command += ["-o", f"ProxyCommand={_through(ssh)}"]
    if ssh.user is not None:
        command += ["-l", ssh.user]
    if ssh.port is not None:
        command += ["-p", str(ssh.port)]
    return [*command, "--", host]


def _through(ssh: SshSettings) -> str:
    """Return the command to the bastion: ``-J`` would not take the identity along."""
    assert ssh.bastion is not None
    user, _, rest = ssh.bastion.rpartition("@")
    name, _, port = rest.partition(":")
    parts = ["ssh", "-T", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={ssh.connect_seconds}"]
    if ssh.known_hosts is not None:
        parts += ["-o", f"UserKnownHostsFile={ssh.known_hosts}"]
    if ssh.identity is not None:
        parts += ["-i", str(ssh.identity), "-o", "IdentitiesOnly=yes"]
    if user:
        parts += ["-l", user]
    if port:
        parts += ["-p", port]
    quoted = ["'" + part.replace("'", "'\\''").replace("%", "%%") + "'" for part in parts]
    return " ".join([*quoted, "-W", "'[%h]:%p'", "--", name])


def run_on(
    ssh: SshSettings, bundle: Bundle, verb: str, *, on_step: Callable[[str], None]
) -> Outcome:
    """Bring a bundle to its host and run its script.

    Args:
        ssh: how to get there.
        bundle: what.
        verb: ``check`` or ``apply``.
        on_step: called with each step as it happens.

    Raises:
        NotFound: there is no ssh here.
        PermissionDenied, Unavailable: the host is not reached; nothing was done there, or its
            connection broke off: running it again is safe.
    """
    if shutil.which("ssh") is None:
        raise NotFound("the program is not installed", operation="deploy with", object="ssh")
    command = [*command_line(ssh, bundle.host), shlex.join(["sh", "-c", _SCRIPT.format(verb=verb)])]
    lines: dict[str, list[str]] = {"step": [], "missing": [], "status": [], "result": []}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None
        feeding = threading.Thread(target=_feed, args=(process, bundle.archive()))
        feeding.start()
        try:
            for data in process.stdout:
                line = data.decode("utf-8", "replace").rstrip("\r\n")
                kind, colon, rest = line.partition(": ")
                if not colon or kind not in lines:
                    kind, rest = "status", line
                lines[kind].append(rest)
                del lines["status"][:-_MOST_LINES]
                if kind in ("step", "missing"):
                    on_step(rest if kind == "step" else f"missing: {rest}")
        except BaseException:
            process.kill()
            raise
        finally:
            feeding.join()
    code = process.returncode
    if code == _UNREACHED:
        raise _unreached(bundle.host, "\n".join(lines["status"]))
    result = lines["result"][-1] if lines["result"] else ""
    return Outcome(
        result, code, tuple(lines["step"]), tuple(lines["missing"]), tuple(lines["status"])
    )


def _feed(process: subprocess.Popen[bytes], data: bytes) -> None:
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # ssh ended, and says why
        process.stdin.write(data)
    with suppress(BrokenPipeError):
        process.stdin.close()


def _unreached(host: str, said: str) -> BootstreamError:
    lines = [line for line in said.splitlines() if line.strip()]
    remedy = next((hint for sign, hint in _HINTS.items() if sign in said), None)
    kind = PermissionDenied if "Permission denied" in said else Unavailable
    return kind(
        lines[-1][:300] if lines else "ssh ended without a word",
        operation="deploy to",
        object=host,
        remedy=remedy or "run it again: it is safe",
    )
