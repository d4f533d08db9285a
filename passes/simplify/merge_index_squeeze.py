"""Picking one index and then dropping, or restoring, its axis."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from graphopt.manager.worklist import NodePass
from graphopt.passes.simplify._above import require_above

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.match import Match


class MergeIndexSqueeze(NodePass):
    """Squeeze(Slice(x, i, i+1)) -> Gather(x, i), Squeeze(Gather(x, [i])) -> Gather(x, i), and back with Unsqueeze."""

    name: ClassVar[str] = "merge-index-squeeze"
    level: ClassVar[int | None] = 1
    ops: ClassVar[tuple[str, ...]] = ("Squeeze", "Unsqueeze", "Reshape")

    def rewrite_node(self, op: Builder, m: Match, node: ir.Node) -> ir.Value:
        import numpy as np

        inner = require_above(m, "Gather") if node.op_type == "Unsqueeze" else require_above(m, "Slice", "Gather")
        x = inner.inputs[0]
        rank = m.rank(x)
        index, axis = _slice_index(m, inner) if inner.op_type == "Slice" else _gather_index(m, inner, rank)
        before, after = m.dims(x), m.dims(node.outputs[0])
        kept = len(after) == rank
        m.require(kept == (node.op_type == "Unsqueeze"), "it does more than drop or restore an axis")
        wanted = [dim for at, dim in enumerate(before) if at != axis]
        if kept:
            wanted.insert(axis, 1)
        same = len(wanted) == len(after) and all(m.equal(a, b) for a, b in zip(wanted, after, strict=True))
        m.require(same, "another axis than the picked one is dropped or made")
        return op.Gather(x, op.const(np.array([index] if kept else index, np.int64), "index"), axis=axis)


def _slice_index(m: Match, node: ir.Node) -> tuple[int, int]:
    """The index and axis of a Slice that takes one element of one axis."""
    m.require(m.opset() >= 10, "before opset 10 the bounds are attributes")
    starts = m.ints(m.input(1, node))
    axes = m.ints(m.input(3, node)) if m.input(3, node) is not None else tuple(range(len(starts)))
    m.require(len(starts) == 1, "it cuts several axes")
    axis = m.axis(axes[0], m.rank(node.inputs[0]))
    m.require(m.dims(node.outputs[0])[axis] == 1, "it takes several elements")
    # The result has an element, so a start within the dim is where it lies; any other start was clamped.
    dim = m.dims(node.inputs[0])[axis]
    inside = isinstance(dim, int) and -dim <= starts[0] < dim
    m.require(inside or starts[0] in (0, -1), f"{starts[0]} may lie outside of the dim {dim}")
    return starts[0], axis


def _gather_index(m: Match, node: ir.Node, rank: int) -> tuple[int, int]:
    array = m.const(node.inputs[1])
    m.require(array.size == 1 and array.ndim <= 1, "it takes several elements")
    return int(array.reshape(-1)[0]), m.axis(m.attr(node, "axis", 0), rank)
