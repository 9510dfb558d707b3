"""Writes HCL, as far as Nomad's jobs need it: blocks, arguments, aligned as ``fmt`` has them.

Texts are Terraform templates: ``${name}`` in them is filled in by Terraform, and ``$${name}`` is
what Nomad sees as ``${name}``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

_MAX_LIST = 70
Value = str | int | bool | Sequence[str]


@dataclass(slots=True)
class Block:
    """A block: its type, labels, arguments, and blocks within.

    ``heredocs``: arguments whose text has lines of its own, written after the others.
    """

    kind: str
    labels: tuple[str, ...] = ()
    arguments: Mapping[str, Value] = field(default_factory=dict)
    blocks: Sequence[Block] = ()
    heredocs: Mapping[str, str] = field(default_factory=dict)
    comment: str | None = None

    def lines(self, indent: int = 0) -> list[str]:
        """Return the block's lines."""
        margin = " " * indent
        labels = "".join(f" {quoted(label)}" for label in self.labels)
        lines = [f"{margin}# {line}" for line in (self.comment or "").splitlines()]
        lines.append(f"{margin}{self.kind}{labels} {{")
        width = max((len(name) for name in self.arguments), default=0)
        for name, value in self.arguments.items():
            written = _written(value)
            if len(written) > _MAX_LIST and not isinstance(value, (str, int)):
                lines.append(f"{margin}  {name:<{width}} = [")
                lines += [f"{margin}    {quoted(item)}," for item in value]
                lines.append(f"{margin}  ]")
            else:
                lines.append(f"{margin}  {name:<{width}} = {written}")
        for name, text in self.heredocs.items():
            if self.arguments:
                lines.append("")
            lines.append(f"{margin}  {name} = <<-EOT")
            lines += [f"{margin}  {line}".rstrip() for line in text.splitlines()]
            lines.append(f"{margin}  EOT")
        for number, block in enumerate(self.blocks):
            if number or self.arguments or self.heredocs:
                lines.append("")
            lines += block.lines(indent + 2)
        lines.append(f"{margin}}}")
        return lines


def quoted(text: str) -> str:
    """Return a text in quotes; templates in it stay templates."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _written(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return quoted(value)
    return f"[{', '.join(quoted(item) for item in value)}]"
