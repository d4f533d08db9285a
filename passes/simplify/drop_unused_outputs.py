"""Outputs that nobody uses: optional ones go, an If loses them in both branches, a Split with one left is a Slice."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from graphopt.ir import optable
from graphopt.manager.base import Pass

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.manager.context import Context

_DOMAINS = frozenset({"", "ai.onnx.ml"})
# With and without its second output ONNX Runtime's MaxPool treats NaN differently; Loop and Scan outputs have places.
_KEPT = frozenset({"MaxPool", "Loop", "Scan"})


class DropUnusedOutputs(Pass):
    """y, unused = f(x) -> y = f(x) where the output is optional; Split with one used part -> Slice."""

    name: ClassVar[str] = "drop-unused-outputs"
    level: ClassVar[int | None] = 1

    def run(self, model: ir.Model, ctx: Context) -> None:
        for scope in reversed(list(ctx.rewriter.scopes())):
            for node in reversed(list(scope.graph)):
                if node.graph is None or len(node.outputs) < 2 or node.domain not in _DOMAINS:
                    continue
                if node.op_type == "Split":
                    _slice_of_split(self, ctx, node)
                elif node.op_type == "If":
                    _shorten_if(self, ctx, node)
                else:
                    _shorten(self, ctx, node)


def _used(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


def _trailing(node: ir.Node, least: int) -> int:
    """How many outputs are left when unused ones at the end go."""
    count = len(node.outputs)
    while count > least and not _used(node.outputs[count - 1]):
        count -= 1
    return count


def _shorten(item: DropUnusedOutputs, ctx: Context, node: ir.Node) -> None:
    schema = optable.schema(node.domain, node.op_type, ctx.rewriter.opset(node.domain, node))
    # Where outputs are variadic or mean something by their number, min_outputs says nothing.
    if schema is None or schema.max_outputs < 0 or node.op_type in _KEPT:
        return
    count = _trailing(node, max(1, schema.min_outputs))
    inner = [out for out in node.outputs[schema.min_outputs : count] if out.name and not _used(out)]
    if count == len(node.outputs) and not inner:
        return
    dropped = len(node.outputs) - count + len(inner)
    ctx.rewriter.count(node)
    node.resize_outputs(count)
    for out in inner:
        out.name = ""
    ctx.remarks.applied(item.name, ctx.rewriter.site(node), node.op_type, f"{dropped} outputs are not used")


def _shorten_if(item: DropUnusedOutputs, ctx: Context, node: ir.Node) -> None:
    count = _trailing(node, 1)
    if count == len(node.outputs):
        return
    ctx.rewriter.count(node)
    dropped = len(node.outputs) - count
    for name in ("then_branch", "else_branch"):
        outputs = node.attributes[name].as_graph().outputs
        while len(outputs) > count:
            outputs.pop()
    node.resize_outputs(count)
    ctx.remarks.applied(item.name, ctx.rewriter.site(node), "If", f"{dropped} outputs are not used")


def _slice_of_split(item: DropUnusedOutputs, ctx: Context, node: ir.Node) -> None:
    used = [index for index, out in enumerate(node.outputs) if _used(out)]
    if len(used) != 1 or ctx.rewriter.opset("", node) < 10:
        return
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    sizes = _sizes(ctx, node, axis)
    if sizes is None:
        ctx.remarks.missed(item.name, ctx.rewriter.site(node), "Split", "the sizes of its parts are not known")
        return
    place = used[0]
    start = sum(sizes[:place])
    site, builder = ctx.rewriter.site(node), ctx.rewriter.builder(node)
    part = builder.Slice(
        node.inputs[0],
        builder.const([start], "start"),
        builder.const([start + sizes[place]], "end"),
        builder.const([axis], "axis"),
    )
    ctx.rewriter.replace(node, [part if index == place else None for index in range(len(node.outputs))], builder)
    ctx.remarks.applied(item.name, site, "Split", "only one of its parts is used")


def _sizes(ctx: Context, node: ir.Node, axis: int) -> list[int] | None:
    """The static sizes of all parts."""
    found: list[int] = []
    for out in node.outputs:
        dims = ctx.shapes.dims(out)
        if dims is None or not isinstance(dims[axis], int):
            return None
        found.append(dims[axis])  # type: ignore[arg-type]
    return found
