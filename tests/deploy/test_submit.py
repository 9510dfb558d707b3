"""Jobs submitted to Nomad's API: a server with its requests and answers, which parses HCL."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import hcl2
import pytest
from tests.deploy.test_nomad import VALUES

from bootstream.deploy.nomad import JOBS, fill_in, render_job
from bootstream.deploy.submit import Nomad, NomadAccess
from bootstream.errors import (
    BootstreamError,
    Conflict,
    Corrupt,
    InvalidInput,
    PermissionDenied,
    Unavailable,
)
from bootstream.testing.cli import CommandLine


class FakeNomad(ThreadingHTTPServer):
    """Keeps jobs; ``faults`` are answered first, one each."""

    daemon_threads = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.jobs: dict[str, tuple[Any, int]] = {}
        self.faults: list[tuple[int, str]] = []
        self.requests: list[str] = []
        self.meanwhile = False

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: FakeNomad

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(self.path)
        if self.server.faults:
            self.answer(*self.server.faults.pop(0))
        elif self.headers.get("X-Nomad-Token") != "secret-token":
            self.answer(403, "Permission denied")
        else:
            self.serve(body)

    def serve(self, body: Any) -> None:
        jobs = self.server.jobs
        if self.path == "/v1/jobs/parse":
            try:
                (job,) = hcl2.loads(body["JobHCL"])["job"]
            except Exception as error:  # noqa: BLE001 - whatever the parser has
                return self.answer(400, f"Failed to parse job: {error}")
            (name,) = (key.strip('"') for key in job if not key.startswith("__"))
            return self.answer(200, json.dumps({"ID": name, "Text": body["JobHCL"]}))
        job = body["Job"]
        known, index = jobs.get(job["ID"], (None, 0))
        if self.path.endswith("/plan"):
            kind = "None" if known == job else "Added" if known is None else "Edited"
            plan = {"Diff": {"Type": kind}, "JobModifyIndex": index}
            if self.server.meanwhile:
                jobs[job["ID"]] = ({"ID": job["ID"]}, index + 1)
            return self.answer(200, json.dumps(plan))
        if body["EnforceIndex"] and body["JobModifyIndex"] != index:
            return self.answer(500, f"Enforcing job modify index {body['JobModifyIndex']}: ...")
        jobs[job["ID"]] = (job, index + 1)
        return self.answer(200, json.dumps({"JobModifyIndex": index + 1}))

    def answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: Any) -> None:
        return


@contextmanager
def serving_nomad() -> Iterator[FakeNomad]:
    """Run a server while the context lasts."""
    server = FakeNomad()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def server() -> Iterator[FakeNomad]:
    with serving_nomad() as server:
        yield server


@pytest.fixture
def nomad(server: FakeNomad) -> Iterator[Nomad]:
    nomad = Nomad(NomadAccess(server.address, token="secret-token"), sleep=lambda _: None)
    yield nomad
    nomad.close()


def job(name: str = "orchestrator") -> str:
    return fill_in(render_job(name, "oci"), VALUES["oci"])


def test_submitted_once(server: FakeNomad, nomad: Nomad) -> None:
    """All jobs; a second time nothing is registered; a changed one is."""
    assert {nomad.submit(job(name), name) for name in JOBS} == {"submitted"}
    assert set(server.jobs) == set(JOBS)
    assert {nomad.submit(job(name), name) for name in JOBS} == {"unchanged"}
    changed = job().replace("fc-template", "another")
    assert nomad.submit(changed, "orchestrator") == "submitted"
    assert server.jobs["orchestrator"][1] == 2


def test_somebody_else_was_first(server: FakeNomad, nomad: Nomad) -> None:
    """A job that was changed between plan and registration is not overwritten."""
    server.meanwhile = True
    with pytest.raises(Conflict):
        nomad.submit(job(), "orchestrator")
    assert server.jobs["orchestrator"][0] == {"ID": "orchestrator"}


def test_trouble_that_passes(server: FakeNomad, nomad: Nomad) -> None:
    """No leader, a proxy's 502: looking is repeated; a registration is sent once."""
    server.faults = [(500, "No cluster leader"), (502, "<html>bad gateway</html>")]
    assert nomad.submit(job(), "orchestrator") == "submitted"
    assert server.requests.count("/v1/jobs") == 1


@pytest.mark.parametrize(
    ("status", "text", "kind"),
    [
        (500, "No cluster leader", Unavailable),
        (500, "", Unavailable),
        (500, "1 error occurred: * Missing job datacenters", InvalidInput),
        (400, "Failed to parse job", InvalidInput),
        (403, "Permission denied", PermissionDenied),
        (200, "<html>a page</html>", Corrupt),
        (200, "[]", Corrupt),
        (200, '{"ID": 7}', Corrupt),
    ],
)
def test_refusals(
    status: int, text: str, kind: type[BootstreamError], server: FakeNomad, nomad: Nomad
) -> None:
    """Each is an error of its kind, with Nomad's words, and never the token."""
    server.faults = [(status, text)] * 5
    with pytest.raises(kind) as caught:
        nomad.submit(job(), "orchestrator")
    assert "secret-token" not in f"{caught.value} {caught.value.remedy}"
    assert not server.jobs


def test_nobody_there(server: FakeNomad) -> None:
    """An address where nobody listens."""
    nomad = Nomad(NomadAccess("http://127.0.0.1:1"), sleep=lambda _: None)
    with pytest.raises(Unavailable) as caught:
        nomad.submit(job(), "orchestrator")
    assert "NOMAD_ADDR" in str(caught.value.remedy)
    nomad.close()


def test_verb(tmp_path: Path) -> None:
    """``--submit`` goes with Nomad alone, and never with what promises to change nothing."""
    text = 'cloud = "oci"\nhosts = ["10.0.0.5"]\n{}[values]\n' + "".join(
        f'{name} = "{value}"\n' for name, value in VALUES["oci"].items()
    )
    settings = tmp_path / "fleet.toml"
    settings.write_text(text.format(""))
    assert CommandLine(tmp_path)("deploy", settings, "--submit").code == 2
    settings.write_text(text.format('mode = "nomad"\n'))
    assert CommandLine(tmp_path)("deploy", settings, "--submit", "--dry-run").code == 2
    wrong = CommandLine(tmp_path, {"NOMAD_ADDR": "nomad.example.com"})
    result = wrong("deploy", settings, "--submit")
    assert result.code == 2
    assert "NOMAD_ADDR" in result.stderr
