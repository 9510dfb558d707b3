"""Nomad's jobs, made from the one table of variables so that they cannot drift.

``python -m bootstream.deploy.nomad FOLDER`` writes them: for OCI in the folder itself, under the
guide's names, for the others in folders of their own. They are Terraform templates.

Tokens and certificates come from Nomad variables at ``nomad/jobs/JOB`` (Nomad's own default path,
which a job may read without a policy), never from a job's ``env``, which everybody who may read
jobs sees.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from bootstream.deploy.hcl import Block, Value
from bootstream.deploy.variables import CACHE, CLOUD_VARIABLES, CLOUDS, SERVICES, STATE

JOBS = ("template-manager", "orchestrator", "template-build")
COMMAND = "${bootstream_command}"
DEFAULT_COMMAND = "/opt/bootstream/bin/bootstream"
_HEAD = "# Made by 'python -m bootstream.deploy.nomad nomad': change src/bootstream/deploy.\n"
_SECRETS = "$${NOMAD_SECRETS_DIR}"
_META = ("image", "template", "build_id")


def render_job(job: str, cloud: str) -> str:
    """Return a job for a cloud, a Terraform template."""
    block = _build(cloud) if job == "template-build" else _service(job, cloud)
    return _HEAD + "\n".join(block.lines()) + "\n"


def fill_in(text: str, values: Mapping[str, str], command: str = DEFAULT_COMMAND) -> str:
    """Return a job as Terraform would make it of a template: what Nomad is given.

    Args:
        text: of ``render_job``.
        values: by the names in the template; without quotes, braces and line breaks.
        command: the program on the hosts.
    """
    known = {**values, "bootstream_command": command}
    filled = re.sub(r"(?<!\$)\$\{(\w+)\}", lambda match: known[match[1]], text)
    return filled.replace("$${", "${")


def job_files() -> Iterator[tuple[str, str]]:
    """Yield the names of all files below the folder, and their contents."""
    for cloud in CLOUDS:
        folder = "" if cloud == "oci" else f"{cloud}/"
        for job in JOBS:
            yield f"{folder}{job}.hcl", render_job(job, cloud)


def _service(job: str, cloud: str) -> Block:
    manager = job == "template-manager"
    blocks = [_linux()]
    if manager:
        blocks.append(
            Block(
                "update",
                arguments={
                    "max_parallel": 1,
                    "min_healthy_time": "20s",
                    "healthy_deadline": "5m",
                    "auto_revert": True,
                },
            )
        )
    else:
        blocks.append(Block("update", arguments={"max_parallel": 1, "stagger": "60s"}))
    blocks.append(_group(job, cloud))
    return Block(
        "job",
        (job,),
        {
            "datacenters": ["*"],
            "type": "service" if manager else "system",
            "priority": 70 if manager else 90,
        },
        blocks,
    )


def _group(job: str, cloud: str) -> Block:
    restart: dict[str, Value] = {
        "attempts": 10,
        "interval": "10m",
        "delay": "5s",
        "mode": "delay",
    }
    network = Block("network", blocks=[Block("port", ("http",), {"static": SERVICES[job]})])
    service = Block(
        "service",
        arguments={"name": job, "port": "http", "provider": "nomad"},
        blocks=[_check("alive", "/health"), _check("ready", "/ready")],
    )
    return Block(
        "group",
        (job,),
        {"count": 1} if job == "template-manager" else {},
        [Block("restart", arguments=restart), network, service, _service_task(job, cloud)],
    )


def _check(name: str, path: str) -> Block:
    return Block(
        "check",
        arguments={
            "name": name,
            "type": "http",
            "protocol": "https",
            "tls_skip_verify": True,
            "path": path,
            "interval": "20s",
            "timeout": "5s",
        },
    )


def _service_task(job: str, cloud: str) -> Block:
    manager = job == "template-manager"
    environment = {
        **_environment(cloud),
        "BOOTSTREAM_STATE_DIR": f"{STATE}/{job}",
        "BOOTSTREAM_LISTEN_HOST": "$${NOMAD_IP_http}",
        "BOOTSTREAM_LISTEN_PORT": "$${NOMAD_PORT_http}",
        "BOOTSTREAM_TOKENS_FILE": f"{_SECRETS}/tokens.json",
        "BOOTSTREAM_TLS_CERT_FILE": f"{_SECRETS}/tls.crt",
        "BOOTSTREAM_TLS_KEY_FILE": f"{_SECRETS}/tls.key",
    }
    return Block(
        "task",
        ("start",),
        {
            "driver": "raw_exec",
            "kill_signal": "SIGTERM",
            # What is under way ends or is handed over before: builds are resumed, exports drain.
            "kill_timeout": "70s" if manager else "130s",
        },
        [
            Block("config", arguments={"command": COMMAND, "args": [job]}),
            Block("env", arguments=environment),
            _secret(job, "tokens", "tokens.json"),
            _secret(job, "tls_certificate", "tls.crt"),
            _secret(job, "tls_key", "tls.key"),
            Block(
                "resources",
                arguments={"cpu": 2000, "memory": 2048, "memory_max": 8192}
                if manager
                else {"cpu": 1000, "memory": 1024, "memory_max": 8192},
            ),
        ],
    )


def _secret(job: str, item: str, file: str) -> Block:
    return Block(
        "template",
        arguments={
            "destination": f"{_SECRETS}/{file}",
            "perms": "0600",
            # The services read tokens again by themselves; a certificate needs a start.
            "change_mode": "noop" if item == "tokens" else "restart",
        },
        heredocs={
            "data": f'{{{{ with nomadVar "nomad/jobs/{job}" }}}}{{{{ .{item} }}}}{{{{ end }}}}'
        },
    )


def _build(cloud: str) -> Block:
    task = Block(
        "task",
        ("build",),
        {"driver": "raw_exec", "kill_signal": "SIGTERM", "kill_timeout": "30s"},
        [
            Block(
                "config",
                arguments={
                    "command": COMMAND,
                    "args": [
                        "build",
                        "--tag",
                        "$${NOMAD_META_template}",
                        "--build-id",
                        "$${NOMAD_META_build_id}",
                        "--parent",
                        "$${NOMAD_META_parent}",
                        "-v",
                        "--",
                        "$${NOMAD_META_image}",
                    ],
                },
            ),
            Block("env", arguments=_environment(cloud)),
            Block("resources", arguments={"cpu": 2000, "memory": 1024, "memory_max": 4096}),
        ],
    )
    group = Block(
        "group",
        ("build",),
        {},
        [
            # A build id is used once: whoever dispatched it decides about another try.
            Block("restart", arguments={"attempts": 0, "mode": "fail"}),
            Block("reschedule", arguments={"attempts": 0, "unlimited": False}),
            Block("ephemeral_disk", arguments={"size": 300}),
            task,
        ],
    )
    return Block(
        "job",
        ("template-build",),
        {"datacenters": ["*"], "type": "batch", "priority": 50},
        [
            _linux(),
            Block(
                "parameterized",
                arguments={
                    "payload": "forbidden",
                    "meta_required": _META,
                    "meta_optional": ["parent"],
                },
            ),
            Block("meta", arguments={"parent": "auto"}),
            group,
        ],
    )


def _environment(cloud: str) -> dict[str, Value]:
    return {
        "NODE_ID": "$${node.unique.id}",
        **{variable.name: variable.value for variable in CLOUD_VARIABLES[cloud]},
        "BOOTSTREAM_CACHE_DIR": CACHE,
    }


def _linux() -> Block:
    return Block("constraint", arguments={"attribute": "$${attr.kernel.name}", "value": "linux"})


def main(folder: Path) -> None:
    """Write all jobs below a folder."""
    for name, text in job_files():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
