"""Exporters' debugging notes on nodes: stack traces (with paths of the machine that exported) and printed graphs."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from graphopt.ir import sites
from graphopt.manager.base import Pass

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.manager.context import Context

# Written by torch's exporter. What names layers (`namespace`, `pkg.torch.onnx.name_scopes`) stays.
_KEYS = ("pkg.torch.onnx.stack_trace", "pkg.torch.onnx.fx_node", "pkg.torch.onnx.class_hierarchy")


class StripDebugMetadata(Pass):
    """Drop the exporter's stack traces and printed graph lines from nodes; layer names stay."""

    name: ClassVar[str] = "strip-debug-metadata"
    stage: ClassVar[str] = "cleanup"
    level: ClassVar[int | None] = 2
    needs: ClassVar[tuple[str, ...]] = ()
    keeps: ClassVar[tuple[str, ...]] = ("shapes", "ranges")

    def run(self, model: ir.Model, ctx: Context) -> None:
        stripped = 0
        for node in sites.all_nodes(model):
            found = [key for key in _KEYS if key in node.metadata_props] if node.metadata_props else []
            if found:
                ctx.rewriter.drop_metadata(node, found)
                stripped += 1
        if stripped:
            kept = f"--disable-pass {self.name} keeps them"
            ctx.note(f"dropped debugging notes of the exporter from {stripped} nodes; {kept}")
