"""The systemd units of the services, as ``bootstream deploy`` and the packages install them.

``python -m bootstream.deploy.units FOLDER`` writes them. Variables come from environment files
beside the release, secrets as systemd's credentials: the manager runs as a user that exists
only while it does, and reads no file of root's.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from bootstream.deploy.variables import CURRENT, SERVICES

_HEAD = "# Made by 'python -m bootstream.deploy.units systemd': change src/bootstream/deploy.\n"

# Secrets of a release, and the variables that name them; systemd 247 and newer hand them in.
SECRET_FILES = {
    "tokens.json": "BOOTSTREAM_TOKENS_FILE",
    "tls.crt": "BOOTSTREAM_TLS_CERT_FILE",
    "tls.key": "BOOTSTREAM_TLS_KEY_FILE",
}

_COMMON = """\
[Unit]
Description={description}
Wants=network-online.target
After=network-online.target time-sync.target
StartLimitIntervalSec=10min
StartLimitBurst=10

[Service]
Type=notify
NotifyAccess=main
ExecStart={current}/venv/bin/bootstream {name}
EnvironmentFile={current}/etc/{name}.env
Environment=BOOTSTREAM_STATE_DIR=/var/lib/bootstream-{name}
Environment=BOOTSTREAM_CACHE_DIR=/var/cache/{cache}
Environment=BOOTSTREAM_RUNTIME_DIR=/run/{cache}
{secrets}StateDirectory=bootstream-{name}
StateDirectoryMode=0700
CacheDirectory={cache}
RuntimeDirectory={cache}
RuntimeDirectoryPreserve=yes
UMask=0077
Restart=on-failure
RestartSec=5s
TimeoutStartSec=2min
TimeoutStopSec={stop}
KillSignal=SIGTERM
KillMode={kill}
LimitNOFILE=65536
OOMScoreAdjust={oom}
ProtectHome=yes
ProtectClock=yes
ProtectHostname=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
{own}
[Install]
WantedBy=multi-user.target
"""

_MANAGER = """\
DynamicUser=yes
NoNewPrivileges=yes
CapabilityBoundingSet=
ProtectSystem=strict
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
PrivateDevices=yes
PrivateTmp=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=yes
"""

# It administers block devices, and starts machines.
_ORCHESTRATOR = """\
ProtectSystem=full
DeviceAllow=block-nbd rw
DeviceAllow=/dev/kvm rw
DeviceAllow=/dev/fuse rw
DevicePolicy=auto
"""

_DESCRIPTIONS = {
    "template-manager": "bootstream template-manager: builds of microVM templates",
    "orchestrator": "bootstream orchestrator: exports and sandboxes of this host",
}


def unit_name(service: str) -> str:
    """Return the name of a service's unit."""
    return f"bootstream-{service}.service"


def render_unit(service: str, secrets: Sequence[str] = (), folders: Sequence[str] = ()) -> str:
    """Return a service's unit.

    Args:
        service: its name.
        secrets: names of files in the release's ``etc`` that it is given as credentials, of
            ``SECRET_FILES``.
        folders: stores on this host, which are root's, and then so is the manager.
    """
    manager = service == "template-manager"
    lines = []
    for file in secrets:
        lines.append(f"LoadCredential={file}:{CURRENT}/etc/{file}")
        where = f"/run/credentials/{unit_name(service)}/{file}"
        lines.append(f"Environment={SECRET_FILES[file]}={where}")
    own = _MANAGER if manager else _ORCHESTRATOR
    if folders:
        own = own.replace("DynamicUser=yes\n", "")
        own += "".join(f"ReadWritePaths=-{folder}\n" for folder in folders)
        own += f"ExecStartPre=+/usr/bin/install -d -m 0700 {' '.join(folders)}\n"
    return _HEAD + _COMMON.format(
        name=service,
        description=_DESCRIPTIONS[service],
        current=CURRENT,
        # A user that comes and goes and root share no folder.
        cache="bootstream-template-manager" if manager else "bootstream",
        secrets="".join(f"{line}\n" for line in lines),
        stop="70s" if manager else "130s",
        oom=0 if manager else -500,
        # Builds are processes of their own, which the next start takes over.
        kill="process" if manager else "mixed",
        own=own,
    )


def main(folder: Path) -> None:
    """Write all units into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for service in SERVICES:
        (folder / unit_name(service)).write_text(render_unit(service), "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
