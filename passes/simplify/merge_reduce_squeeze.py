"""Dropping or keeping the reduced axes, as a reduction does itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from graphopt.manager.worklist import NodePass, Uninteresting
from graphopt.passes.simplify._above import above

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.match import Match

_REDUCTIONS = (
    *("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2"),
    *("ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare", "ArgMax", "ArgMin"),
)


class MergeReduceSqueeze(NodePass):
    """Squeeze(ReduceSum(x, axes), axes) -> ReduceSum(x, axes, keepdims=0), and Unsqueeze with keepdims=1."""

    name: ClassVar[str] = "merge-reduce-squeeze"
    level: ClassVar[int | None] = 1
    ops: ClassVar[tuple[str, ...]] = ("Squeeze", "Unsqueeze", "Reshape", "Flatten")

    def rewrite_node(self, op: Builder, m: Match, node: ir.Node) -> ir.Value:
        inner = above(node, node.inputs[0], *_REDUCTIONS)
        if inner is None:
            raise Uninteresting("no reduction in front of it")
        m.sole_use(inner.outputs[0])
        m.interior = [inner]
        x = inner.inputs[0]
        kept = bool(m.attr(inner, "keepdims", 1))
        axes = self._axes(m, inner, m.rank(x))
        before = m.dims(x)
        wanted = [1 if i in axes else dim for i, dim in enumerate(before) if i not in axes or not kept]
        after = m.dims(node.outputs[0])
        same = len(wanted) == len(after) and all(m.equal(a, b) for a, b in zip(wanted, after, strict=True))
        m.require(same, f"it does not {'drop' if kept else 'restore'} just the reduced axes")
        return op.clone(inner, inner.inputs, keepdims=0 if kept else 1)

    def _axes(self, m: Match, inner: ir.Node, rank: int) -> set[int]:
        if inner.op_type in ("ArgMax", "ArgMin"):
            return {m.axis(m.attr(inner, "axis", 0), rank)}
        given = m.axes(inner)
        if not given:
            m.require(not m.attr(inner, "noop_with_empty_axes", 0), "it reduces nothing")
            return set(range(rank))
        return {m.axis(axis, rank) for axis in given}
