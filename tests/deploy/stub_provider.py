"""A Terraform provider that knows a schema and nothing else, for ``validate`` and ``plan``.

Run by Terraform as ``terraform-provider-NAME`` with the Python of the tools' environment;
``STUB_SCHEMA`` names the file, ``STUB_DATA`` another with what data sources answer. It is
never asked to apply anything. Wire format: Terraform's ``docs/plugin-protocol`` (tfplugin6),
as package ``tf`` has it; values are MessagePack, unknown ones an extension of type 0.
"""

# ruff: noqa: N802 - the protocol's own names
# mypy: disable-error-code="import-not-found"
from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import msgpack
import tf.provider
import tf.runner
from tf.gen import tfplugin_pb2 as pb
from tf.gen import tfplugin_pb2_grpc as rpc

_UNKNOWN = msgpack.ExtType(0, b"\0")
_LIST, _SINGLE = pb.Schema.NestedBlock.NestingMode.LIST, pb.Schema.NestedBlock.NestingMode.SINGLE


def block_of(document: dict[str, Any]) -> Any:
    """Return a block of the schema in the protocol's form."""
    attributes = [
        pb.Schema.Attribute(
            name=name,
            type=json.dumps(field["type"]).encode(),
            required=field.get("required", False),
            optional=field.get("optional", False),
            computed=field.get("computed", False),
        )
        for name, field in document["attributes"].items()
    ]
    nested = [
        pb.Schema.NestedBlock(
            type_name=name,
            block=block_of(inner),
            nesting=_SINGLE if inner["mode"] == "single" else _LIST,
            min_items=inner["min"] if inner["mode"] == "list" else 0,
            max_items=inner["max"],
        )
        for name, inner in document["blocks"].items()
    ]
    return pb.Schema.Block(attributes=attributes, block_types=nested)


class Stub(rpc.ProviderServicer):  # type: ignore[misc] # generated without types
    """Answers what ``validate`` and ``plan`` ask."""

    def __init__(self, _: object) -> None:
        self._schema = json.loads(Path(os.environ["STUB_SCHEMA"]).read_text("utf-8"))
        self._data = json.loads(Path(os.environ["STUB_DATA"]).read_text("utf-8"))

    def GetProviderSchema(self, request: Any, context: Any) -> Any:
        """Return the whole schema."""

        def schema(document: dict[str, Any]) -> Any:
            return pb.Schema(block=block_of(document))

        return pb.GetProviderSchema.Response(
            provider=schema(self._schema["provider"]),
            resource_schemas={k: schema(v) for k, v in self._schema["resources"].items()},
            data_source_schemas={k: schema(v) for k, v in self._schema["data_sources"].items()},
        )

    def GetMetadata(self, request: Any, context: Any) -> Any:
        """Return the names."""
        return pb.GetMetadata.Response(
            resources=[
                pb.GetMetadata.ResourceMetadata(type_name=name)
                for name in self._schema["resources"]
            ],
            data_sources=[
                pb.GetMetadata.DataSourceMetadata(type_name=name)
                for name in self._schema["data_sources"]
            ],
        )

    def ValidateProviderConfig(self, request: Any, context: Any) -> Any:
        """Terraform itself has checked it against the schema."""
        return pb.ValidateProviderConfig.Response()

    def ValidateResourceConfig(self, request: Any, context: Any) -> Any:
        """As above."""
        return pb.ValidateResourceConfig.Response()

    def ValidateDataResourceConfig(self, request: Any, context: Any) -> Any:
        """As above."""
        return pb.ValidateDataResourceConfig.Response()

    def ConfigureProvider(self, request: Any, context: Any) -> Any:
        """Nothing is asked of any cloud."""
        return pb.ConfigureProvider.Response()

    def PlanResourceChange(self, request: Any, context: Any) -> Any:
        """Plan what is proposed, with what is computed unknown."""
        proposed = msgpack.unpackb(request.proposed_new_state.msgpack, strict_map_key=False)
        if proposed is not None:
            attributes = self._schema["resources"][request.type_name]["attributes"]
            for name, field in attributes.items():
                if field.get("computed") and proposed.get(name) is None:
                    proposed[name] = _UNKNOWN
        return pb.PlanResourceChange.Response(
            planned_state=pb.DynamicValue(msgpack=msgpack.packb(proposed))
        )

    def ReadDataSource(self, request: Any, context: Any) -> Any:
        """Answer what the file says of the type."""
        state = msgpack.unpackb(request.config.msgpack, strict_map_key=False)
        state.update(self._data.get(request.type_name, {}))
        return pb.ReadDataSource.Response(state=pb.DynamicValue(msgpack=msgpack.packb(state)))

    def GetFunctions(self, request: Any, context: Any) -> Any:
        """There are none."""
        return pb.GetFunctions.Response()

    def StopProvider(self, request: Any, context: Any) -> Any:
        """Say yes; the interceptor stops the server."""
        return pb.StopProvider.Response()


if __name__ == "__main__":
    tf.provider.ProviderServicer = Stub
    tf.runner.run_provider(None)
