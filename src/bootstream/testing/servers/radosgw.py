"""Ceph's object gateway, radosgw, over a cluster of one monitor and one disk.

The cluster is as small as Ceph lets it be: one monitor, one OSD whose bluestore is a sparse
file, the gateway; no manager (it only counts), no systemd, nothing outside one folder.
cephx stays on, since the gateway hangs with authentication switched off. All keys are in the
keyring that the monitor is made with, so there is nobody to ask for them later.

``python -m bootstream.testing.servers.radosgw FOLDER`` serves until it is interrupted, and
prints what an S3 client needs. Debian's packages: radosgw, ceph-mon, ceph-osd, ceph-common.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self
from uuid import uuid4

from bootstream.testing.servers.process import free_port
from bootstream.testing.servers.s3 import REGION, S3Server

PROGRAMS = (
    "ceph",
    "ceph-authtool",
    "ceph-mon",
    "ceph-osd",
    "monmaptool",
    "radosgw",
    "radosgw-admin",
)
PACKAGES = "radosgw ceph-mon ceph-osd ceph-common"

_STEP_SECONDS = 60.0
_DISK = 16 << 30  # bytes, of a sparse file

_CONFIG = """\
[global]
fsid = {fsid}
mon_initial_members = a
mon_host = {address}
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
auth_cluster_required = cephx
auth_service_required = cephx
auth_client_required = cephx
keyring = {folder}/keyring
run_dir = {folder}
crash_dir = {folder}
admin_socket =
log_file = {folder}/$name.log
mon_cluster_log_file = {folder}/cluster.log
mon_data = {folder}/mon
osd_data = {folder}/osd
rgw_data = {folder}/rgw
osd_crush_chooseleaf_type = 0
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 8
osd_pool_default_pg_autoscale_mode = off
mon_allow_pool_size_one = true
mon_warn_on_pool_no_redundancy = false
mon_max_pg_per_osd = 1000
mon_data_avail_crit = 1
osd_objectstore = bluestore
osd_memory_target = 1073741824
osd_numa_auto_affinity = false
bluestore_block_size = {disk}
bluestore_fsck_on_mount = false
rgw_enable_usage_log = false
rgw_dns_name =
"""

_CAPABILITIES = {
    "mon.": {"mon": "allow *"},
    "client.admin": {"mon": "allow *", "osd": "allow *", "mgr": "allow *", "mds": "allow *"},
    "osd.0": {"mon": "allow profile osd", "osd": "allow *", "mgr": "allow profile osd"},
    "client.rgw": {"mon": "allow rw", "osd": "allow rwx", "mgr": "allow rw"},
}


class RadosGateway(S3Server):
    """S3 by radosgw, with signatures and conditions, over a Ceph cluster of its own.

    It is ready some fifteen seconds after it is entered. Leaving it ends its processes by
    their ids; the folder stays.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder.resolve())
        self._daemons: list[subprocess.Popen[bytes]] = []

    def command(self, port: int) -> Sequence[str]:
        """See the base class."""
        frontend = f"beast endpoint=127.0.0.1:{port}"
        return [*self._ceph("radosgw", "-f", "-n", "client.rgw"), "--rgw_frontends", frontend]

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._start_cluster()
            self._create_user()
            return super().__enter__()
        except BaseException:
            self._stop_cluster()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, traceback)
        self._stop_cluster()

    def _start_cluster(self) -> None:
        fsid, disk = str(uuid4()), str(uuid4())
        port, old_port = free_port(), free_port()
        address = f"[v2:127.0.0.1:{port}/0,v1:127.0.0.1:{old_port}/0]"
        for name in ("mon", "osd", "rgw"):
            (self.folder / name).mkdir()
        (self.folder / "ceph.conf").write_text(
            _CONFIG.format(fsid=fsid, address=address, folder=self.folder, disk=_DISK)
        )
        self._make_keyring()
        monmap = str(self.folder / "monmap")
        self._run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", address, monmap)
        monitor = self._ceph("ceph-mon", "-i", "a")
        self._run(*monitor, "--mkfs", "--monmap", monmap, "--keyring", self._keyring)
        self._daemon(*monitor, "-f")
        self._run(*self._ceph("ceph"), "osd", "new", disk, "0")
        storage = self._ceph("ceph-osd", "-i", "0")
        self._run(*storage, "--mkfs", "--osd-uuid", disk)
        self._daemon(*storage, "-f")

    def _make_keyring(self) -> None:
        for name, capabilities in _CAPABILITIES.items():
            new = [] if (self.folder / "keyring").exists() else ["--create-keyring"]
            caps = [word for pair in capabilities.items() for word in ("--cap", *pair)]
            self._run("ceph-authtool", *new, self._keyring, "--gen-key", "-n", name, *caps)

    def _create_user(self) -> None:
        """Create the user whose keys these are; this makes the gateway's pools, too."""
        keys = ["--access-key", self.keys.access_key, "--secret-key", self.keys.secret_key]
        user = ["user", "create", "--uid", "test", "--display-name", "test"]
        self._run(*self._ceph("radosgw-admin", "-n", "client.rgw"), *user, *keys)

    @property
    def _keyring(self) -> str:
        return str(self.folder / "keyring")

    def _ceph(self, program: str, *arguments: str) -> list[str]:
        return [program, "-c", str(self.folder / "ceph.conf"), *arguments]

    def _run(self, *command: str) -> None:
        """Run one step to its end; its output is told where it fails."""
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_STEP_SECONDS,
            cwd=self.folder,
            check=False,
        )
        if done.returncode:
            output = done.stdout.decode(errors="replace")[-2000:]
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{output}")

    def _daemon(self, *command: str) -> None:
        with (self.folder / "daemons.log").open("ab") as output:
            self._daemons.append(
                subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd=self.folder,
                )
            )

    def _stop_cluster(self) -> None:
        """End the daemons, the last one first; nothing of theirs is worth waiting for."""
        self.close()
        while self._daemons:
            daemon = self._daemons.pop()
            daemon.kill()
            daemon.wait()


def missing() -> list[str]:
    """Return those of Ceph's programs that are not installed."""
    return [program for program in PROGRAMS if shutil.which(program) is None]


def main() -> None:
    """Serve until interrupted, and print what a client needs as lines for a shell."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m bootstream.testing.servers.radosgw FOLDER")
    if lost := missing():
        sys.exit(f"missing: {' '.join(lost)}; Debian has them in {PACKAGES}")
    end = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: end.set())
    with RadosGateway(Path(sys.argv[1])) as server:
        print(f"export AWS_ENDPOINT_URL={server.url}")
        print(f"export AWS_REGION={REGION}")
        print(f"export AWS_ACCESS_KEY_ID={server.keys.access_key}")
        print(f"export AWS_SECRET_ACCESS_KEY={server.keys.secret_key}", flush=True)
        end.wait()


if __name__ == "__main__":
    main()
