"""Gathers of a Gather with constant indices."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from graphopt.manager.worklist import NodePass
from graphopt.passes.simplify._above import require_above

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.match import Match


class MergeGathers(NodePass):
    """Gather(Gather(x, i, axis=a), j, axis=b) -> Gather(x, i[j], axis=a), for constants i, j and b an axis of i."""

    name: ClassVar[str] = "merge-gathers"
    level: ClassVar[int | None] = 1
    ops: ClassVar[tuple[str, ...]] = ("Gather",)

    def rewrite_node(self, op: Builder, m: Match, node: ir.Node) -> ir.Value:
        import numpy as np

        inner = require_above(m, "Gather")
        x = inner.inputs[0]
        rank = m.rank(x)
        axis = m.axis(m.attr(inner, "axis", 0), rank)
        width = m.rank(inner.inputs[1])
        outer = m.axis(m.attr(node, "axis", 0), rank - 1 + width)
        m.require(axis <= outer < axis + width, "they pick along different axes")
        indices, picked = m.const(inner.inputs[1]), m.const(node.inputs[1])
        size = indices.shape[outer - axis]
        m.require(((picked >= -size) & (picked < size)).all(), "an index is out of range")
        joined = np.take(indices, picked, axis=outer - axis)
        return op.Gather(x, op.const(joined, "indices"), axis=axis)
