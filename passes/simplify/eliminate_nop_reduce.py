"""Reductions and poolings over one element."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from graphopt.manager.worklist import NodePass, Uninteresting

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.match import Match


_REDUCTIONS = ("ReduceSum", "ReduceMean", "ReduceProd", "ReduceMax", "ReduceMin")


class EliminateNopReduce(NodePass):
    """ReduceMean(x, axes of size 1) -> x or Squeeze(x), and so for sums, products, extremes and 1x1 average pooling."""

    name: ClassVar[str] = "eliminate-nop-reduce"
    level: ClassVar[int | None] = 1
    ops: ClassVar[tuple[str, ...]] = (*_REDUCTIONS, "AveragePool", "GlobalAveragePool")

    def rewrite_node(self, op: Builder, m: Match, node: ir.Node) -> ir.Value:
        x = node.inputs[0]
        if x is None or x.shape is None:
            raise Uninteresting("the rank is unknown")
        if node.op_type == "AveragePool":
            kernel = m.attr(node, "kernel_shape", ())
            strides, pads = m.attr(node, "strides", ()), m.attr(node, "pads", ())
            if any(size != 1 for size in (*kernel, *strides)) or any(pads):
                raise Uninteresting("it looks at several elements, or skips some")
            return x
        rank = len(x.shape)
        if node.op_type == "GlobalAveragePool":
            axes: tuple[int, ...] = tuple(range(2, rank))
        else:
            given = m.axes(node)
            if not given and m.attr(node, "noop_with_empty_axes", 0):
                return x
            axes = tuple(m.axis(axis, rank) for axis in given) if given else tuple(range(rank))
        if any(x.shape[axis] != 1 for axis in axes):
            raise Uninteresting("it reduces over several elements")
        if node.op_type == "GlobalAveragePool" or m.attr(node, "keepdims", 1) or not axes:
            return x
        return _squeeze(op, m, x, axes)


def _squeeze(op: Builder, m: Match, x: ir.Value, axes: tuple[int, ...]) -> ir.Value:
    if m.opset() < 13:
        return op.Squeeze(x, axes=axes)
    return op.Squeeze(x, op.const(sorted(axes), "axes"))
