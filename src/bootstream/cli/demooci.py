"""``demo --oci``: from OCIR into Object Storage, on a local OCI, as an instance principal.

What the commands know is what a host in the cloud would be told: region, bucket, repository, and
to sign in as the instance that they run on. The addresses are those of the local OCI; in the
cloud they follow from the region. There is no key, no password and no file of credentials.
"""

from __future__ import annotations

import json
import os
import shlex
import time
from pathlib import Path

import click

from bootstream.cli.context import Cli
from bootstream.cli.demo_image import TAG, write_layout
from bootstream.cli.demosteps import Runner

_TOLD = (
    "STORAGE_PROVIDER",
    "TEMPLATE_BUCKET_NAME",
    "ARTIFACTS_REGISTRY_PROVIDER",
    "OCI_CONTAINER_REPOSITORY_NAME",
    "OCI_REGION",
)
_ADDRESSES = (
    "OCI_METADATA_BASE_URL",
    "OCI_CLI_FEDERATION_ENDPOINT",
    "OCI_OBJECT_STORAGE_ENDPOINT",
    "OCIR_ENDPOINT",
    "OCI_ARTIFACTS_ENDPOINT",
)
_OTHERS = ("OCI_", "OCIR_", "AWS_", "GCP_", "GOOGLE_", "AZURE_", "TEMPLATE_", "BOOTSTREAM_")


class OciDemo(Runner):
    """The steps, in one folder."""

    def __init__(self, folder: Path, cli: Cli) -> None:
        kept = {name: text for name, text in os.environ.items() if not name.startswith(_OTHERS)}
        super().__init__(folder, cli, {**kept, "BOOTSTREAM_CACHE_DIR": str(folder / "cache")})

    def run(self, *, tidy: bool) -> None:
        """Do all of it; raises the first thing that is not as it must be."""
        started = time.monotonic()
        self.say("Oracle's cloud on this machine: storage, registry, sign-in")
        with self.running("local-oci", "--registry", "--data", "oci", "--write-env", "oci.env"):
            self._sign_in()
            builds = self._push()
            self._build(builds[0])
            self.serve_and_compare("demo")
            self._remove(builds)
            if tidy:
                self._tidy(builds[1])
        self.say(f"all of it took {time.monotonic() - started:.1f} s")

    def how_to_look(self) -> list[str]:
        """Return the lines of a shell that make its store the one that commands use."""
        return [
            "bootstream local-oci --registry --data oci --write-env oci.env &",
            ". ./oci.env",
            "export OCI_CLI_AUTH=instance_principal",
        ]

    def _sign_in(self) -> None:
        lines = (self.folder / "oci.env").read_text().splitlines()
        pairs = [shlex.split(line)[1] for line in lines if line.startswith("export ")]
        values = dict(pair.split("=", 1) for pair in pairs)
        values["OCI_CLI_AUTH"] = "instance_principal"
        self.say("all that this host is told; it signs in as the instance that it is")
        for name in (*_TOLD, "OCI_CLI_AUTH"):
            click.echo(f"  {name}={values[name]}")
        click.echo("  and where the local cloud answers; the real one's addresses are known")
        for name in (*_TOLD, *_ADDRESSES, "OCI_CLI_AUTH"):
            self.environment[name] = values[name]

    def _push(self) -> tuple[str, str]:
        self.say("a container image, twice in the registry: two builds share its layers")
        write_layout(self.folder / "image", message="from OCIR")
        first = self.bootstream("image", "push", f"oci:image:{TAG}", "-t", "demo").strip()
        second = self.bootstream("image", "push", f"oci:image:{TAG}", "-t", "demo").strip()
        self.bootstream("image", "ls")
        return first, second

    def _build(self, build: str) -> None:
        self.say("a template from the registry's image, in Object Storage")
        self.bootstream("build", "--template", "demo", "--build", build, "--free", "64M")
        self.bootstream("ls")
        said = self.bootstream("cat", "demo:/etc/message")
        self.insist(said == "from OCIR\n", "the file is not what the image has")

    def _remove(self, builds: tuple[str, str]) -> None:
        self.say("one of the two images goes; the other one stays whole")
        self.bootstream("image", "rm", f"demo/{builds[0]}")
        pulled = self.bootstream("image", "pull", f"demo/{builds[1]}", "-o", f"oci:pulled:{TAG}")
        index = json.loads((self.folder / "image" / "index.json").read_text())
        pushed = index["manifests"][0]["digest"]
        self.insist(pulled.strip() == pushed, "the image is not the one that was pushed")

    def _tidy(self, build: str) -> None:
        self.say("delete, collect: nothing is left")
        self.bootstream("image", "rm", f"demo/{build}")
        self.bootstream("rm", "demo", "--all")
        self.bootstream("gc", "--older-than", "0s")
        images = json.loads(self.bootstream("image", "ls", "--json", quiet=True))
        builds = json.loads(self.bootstream("du", "--json", quiet=True))
        self.insist(images == builds == [], "something is left")
        click.echo("  registry and bucket are empty")
