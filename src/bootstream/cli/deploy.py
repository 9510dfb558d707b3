"""``deploy``: hosts that run the services, from one settings file."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bootstream.cli.base import json_option, verb
from bootstream.cli.context import Cli, pass_cli
from bootstream.cli.errors import OTHER
from bootstream.cli.output import emit_json, human_size, printable
from bootstream.errors import BootstreamError, InvalidInput

if TYPE_CHECKING:
    from bootstream.deploy.bundle import Bundle
    from bootstream.deploy.remote import Outcome
    from bootstream.deploy.settings import FleetSettings
    from bootstream.deploy.submit import NomadAccess


@verb(
    "deploy",
    """
    bootstream deploy fleet.toml --dry-run
    bootstream deploy fleet.toml --check
    bootstream deploy fleet.toml
    """,
)
@click.argument("settings", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--dry-run", is_flag=True, help="Print what each host would get; connect to none.")
@click.option("--check", is_flag=True, help="Look at each host; change nothing there.")
@click.option("--host", "only", metavar="HOST", multiple=True, help="Only this one. Repeatable.")
@click.option(
    "--jobs",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="With mode nomad: write the jobs here, filled in.",
)
@click.option("--submit", is_flag=True, help="With mode nomad: submit the jobs to NOMAD_ADDR.")
@json_option
@pass_cli
def deploy(
    cli: Cli,
    settings: Path,
    dry_run: bool,
    check: bool,
    only: tuple[str, ...],
    jobs: Path | None,
    submit: bool,
    as_json: bool,
) -> int:
    """Install and start the services on the hosts of a fleet.

    SETTINGS is a TOML file: docs/deploy/deploy.md has all of it. Hosts are done one after
    the other over ssh, the manager's last, and the first that fails ends it. A host where the
    services are not healthy after the start goes back to what it had. Running it again is
    safe at any time; a host that has everything already is left alone.
    """
    from bootstream.deploy.bundle import make_bundle  # noqa: PLC0415 - not for --help
    from bootstream.deploy.settings import load_fleet  # noqa: PLC0415

    fleet = load_fleet(settings)
    for host in only:
        if host not in fleet.hosts:
            raise InvalidInput("it is not among the hosts", operation="deploy to", object=host)
    hosts = [host for host in fleet.hosts if not only or host in only]
    hosts.sort(key=lambda host: host == fleet.manager)  # its clients are ready before it
    if (jobs is not None or submit) and fleet.mode != "nomad":
        raise InvalidInput(
            "there are jobs with mode nomad only", operation="use", object="--jobs, --submit"
        )
    if submit and (dry_run or check):
        raise InvalidInput("it would change something", operation="use", object="--submit")
    access = _nomad(cli) if submit else None
    if jobs is not None:
        _write_jobs(fleet, jobs)
    bundles = [make_bundle(fleet, host) for host in hosts]
    if dry_run:
        _print_plan(bundles, as_json=as_json)
        return 0
    code, document = _run(cli, fleet, bundles, "check" if check else "apply", as_json=as_json)
    if access is not None and code == 0:
        document["jobs"] = _submit(cli, fleet, access, as_json=as_json)
    if as_json:
        emit_json(document)
    return code


def _nomad(cli: Cli) -> NomadAccess:
    from bootstream.deploy.submit import NomadAccess  # noqa: PLC0415 - as above

    address = (os.environ.get("NOMAD_ADDR") or "http://127.0.0.1:4646").rstrip("/")
    if re.fullmatch(r"https?://[A-Za-z0-9._:\[\]-]+", address) is None:
        raise InvalidInput(
            "it is not the address of Nomad's API",
            operation="read",
            object="NOMAD_ADDR",
            remedy="write https://HOST:4646",
        )
    return NomadAccess(
        address,
        token=os.environ.get("NOMAD_TOKEN") or None,
        namespace=os.environ.get("NOMAD_NAMESPACE") or None,
        region=os.environ.get("NOMAD_REGION") or None,
        ca_file=os.environ.get("NOMAD_CACERT") or None,
        proxies=cli.settings.proxies,
    )


def _submit(
    cli: Cli, fleet: FleetSettings, access: NomadAccess, *, as_json: bool
) -> dict[str, str]:
    from bootstream.deploy.nomad import JOBS, fill_in, render_job  # noqa: PLC0415 - as above
    from bootstream.deploy.submit import Nomad  # noqa: PLC0415

    nomad = Nomad(access)
    done = {}
    try:
        # What the manager dispatches to, and what serves its builds, is there before it.
        for job in sorted(JOBS, key=lambda name: name == "template-manager"):
            cli.interruption.check()
            done[job] = nomad.submit(fill_in(render_job(job, fleet.cloud), fleet.values), job)
            if not as_json:
                click.echo(f"{job}: {done[job]}")
    finally:
        nomad.close()
    return done


def _write_jobs(fleet: FleetSettings, folder: Path) -> None:
    from bootstream.deploy.nomad import JOBS, fill_in, render_job  # noqa: PLC0415 - as above

    folder.mkdir(parents=True, exist_ok=True)
    for job in JOBS:
        text = fill_in(render_job(job, fleet.cloud), fleet.values)
        (folder / f"{job}.hcl").write_text(text, "utf-8")


def _print_plan(bundles: list[Bundle], *, as_json: bool) -> None:
    if as_json:
        emit_json(
            [
                {
                    "host": bundle.host,
                    "release": bundle.release,
                    "services": bundle.services,
                    "files": [
                        {"name": name, "size": size, "sha256": digest}
                        for name, size, digest in bundle.describe()
                    ],
                }
                for bundle in bundles
            ]
        )
        return
    for bundle in bundles:
        services = ", ".join(bundle.services) or "no services: Nomad runs them"
        click.echo(f"{bundle.host}: release {bundle.release}, {services}")
        for name, size, digest in bundle.describe():
            click.echo(f"  {name:<45} {human_size(size):>10}  {digest[:16]}")


def _run(
    cli: Cli, fleet: FleetSettings, bundles: list[Bundle], action: str, *, as_json: bool
) -> tuple[int, dict[str, object]]:
    from bootstream.deploy.remote import run_on  # noqa: PLC0415 - as above

    done: list[dict[str, object]] = []
    failed = False
    with cli.job():
        for bundle in bundles:
            host = bundle.host

            def say(text: str, host: str = host) -> None:
                if not as_json and not cli.quiet:
                    click.echo(f"{host}: {printable(text)}")

            try:
                outcome = run_on(fleet.ssh, bundle, action, on_step=say)
            except BootstreamError:
                left = [other.host for other in bundles[len(done) :]]
                if as_json:
                    emit_json({"hosts": done, "not_done": left})
                else:
                    click.echo(f"not done: {', '.join(left)}")
                raise
            done.append(_plain(bundle, outcome))
            if not as_json:
                click.echo(f"{host}: {outcome.result or f'failed with {outcome.code}'}")
            if outcome.code != 0:
                failed = True
                _tell(cli, bundle, outcome)
                if action == "apply":
                    break  # the others keep what they have
    left = [bundle.host for bundle in bundles[len(done) :]]
    if left and not as_json:
        click.echo(f"not done: {', '.join(left)}")
    return OTHER if failed else 0, {"hosts": done, "not_done": left}


def _plain(bundle: Bundle, outcome: Outcome) -> dict[str, object]:
    return {
        "host": bundle.host,
        "release": bundle.release,
        "result": outcome.result or "failed",
        "steps": outcome.steps,
        "missing": outcome.missing,
    }


def _tell(cli: Cli, bundle: Bundle, outcome: Outcome) -> None:
    for line in outcome.status[-20:]:
        cli.warn(f"{bundle.host}: {printable(line)}")
